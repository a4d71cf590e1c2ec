//! The configured token, where the program was built with the feature `pkcs11`.

#[cfg(not(feature = "pkcs11"))]
pub(super) use without::Token;

#[cfg(feature = "pkcs11")]
pub(super) use with::Token;

#[cfg(feature = "pkcs11")]
mod with {
    use std::error::Error as StdError;
    use std::sync::Arc;

    use crate::config::Config;
    use crate::crypto::Provider;
    use crate::crypto::pkcs11::root::TokenRoot;
    use crate::crypto::pkcs11::rsa::TokenRsa;
    use crate::crypto::pkcs11::{Module, ModuleError, Settings};
    use crate::crypto::root::Root;
    use crate::server::StartError;

    /// A token, logged in to, and what it is configured for.
    pub(in crate::server) struct Token {
        module: Arc<Module>,
        root_key: Option<String>,
    }

    impl Token {
        /// Logs in to the token that `config` names, if it names one.
        pub(in crate::server) fn open(config: &Config) -> Result<Option<Self>, StartError> {
            let Some(configured) = &config.pkcs11 else {
                return Ok(None);
            };
            let module = Module::open(Settings {
                module: configured.module.clone(),
                token: configured.token.clone(),
                pin_file: configured.pin_file.clone(),
                sessions: configured.sessions.get(),
            })?;
            Ok(Some(Self {
                module: Arc::new(module),
                root_key: configured.root_key.clone(),
            }))
        }

        /// The root key in the token that has this label.
        pub(in crate::server) fn root_key(&self, label: &str) -> Result<Arc<dyn Root>, StartError> {
            let root = TokenRoot::load(Arc::clone(&self.module), label)?;
            Ok(Arc::new(root))
        }

        /// Makes the root key in the token.
        pub(in crate::server) fn new_root_key(&self) -> Result<(), StartError> {
            TokenRoot::create(Arc::clone(&self.module), self.label()?)?;
            Ok(())
        }

        /// RSA keys in the token.
        pub(in crate::server) fn provider(
            &self,
            root: &Arc<dyn Root>,
        ) -> Result<Arc<dyn Provider>, StartError> {
            let provider = TokenRsa::new(Arc::clone(&self.module), Arc::clone(root))?;
            Ok(Arc::new(provider))
        }

        /// Whether the token answered when it was last asked.
        pub(in crate::server) fn is_there(&self) -> bool {
            self.module.is_connected()
        }

        fn label(&self) -> Result<&str, StartError> {
            self.root_key.as_deref().ok_or(StartError::NoToken)
        }
    }

    impl From<ModuleError> for StartError {
        fn from(error: ModuleError) -> Self {
            let error: Box<dyn StdError + Send + Sync> = error.into();
            Self::Token(error)
        }
    }
}

#[cfg(not(feature = "pkcs11"))]
mod without {
    use std::sync::Arc;

    use crate::config::Config;
    use crate::crypto::Provider;
    use crate::crypto::root::Root;
    use crate::server::StartError;

    /// There is none.
    pub(in crate::server) enum Token {}

    impl Token {
        pub(in crate::server) fn open(config: &Config) -> Result<Option<Self>, StartError> {
            match config.pkcs11 {
                Some(_) => Err(StartError::WithoutPkcs11),
                None => Ok(None),
            }
        }

        pub(in crate::server) fn root_key(&self, _: &str) -> Result<Arc<dyn Root>, StartError> {
            match *self {}
        }

        pub(in crate::server) fn new_root_key(&self) -> Result<(), StartError> {
            match *self {}
        }

        pub(in crate::server) fn provider(
            &self,
            _: &Arc<dyn Root>,
        ) -> Result<Arc<dyn Provider>, StartError> {
            match *self {}
        }

        pub(in crate::server) fn is_there(&self) -> bool {
            match *self {}
        }
    }
}
