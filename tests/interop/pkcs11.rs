//! The token in which the battery of `tests/providers.rs` works. `tests/interop/pkcs11.sh` makes it
//! and says in the environment where it is.

use std::sync::{Arc, OnceLock};

use kmsgate::crypto::pkcs11::root::TokenRoot;
use kmsgate::crypto::pkcs11::rsa::TokenRsa;
use kmsgate::crypto::pkcs11::{Module, ModuleError, Settings};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{Place, Provider};

/// Keys in software, sealed under a root key in the token.
pub(crate) fn under_its_root_key() -> RustCrypto {
    static ROOT: OnceLock<Arc<TokenRoot>> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let root = match TokenRoot::load(module(), "battery") {
            Err(ModuleError::NoRootKey(_)) => TokenRoot::create(module(), "battery"),
            found => found,
        };
        Arc::new(root.unwrap())
    });
    let provider = RustCrypto::new(Arc::<TokenRoot>::clone(root));
    assert_eq!(provider.place(None), Place::Device);
    provider
}

/// RSA keys in the token, whose references are sealed under a root key in a file.
pub(crate) fn rsa() -> TokenRsa {
    TokenRsa::new(module(), super::root()).unwrap()
}

/// A process loads a module once.
fn module() -> Arc<Module> {
    static MODULE: OnceLock<Arc<Module>> = OnceLock::new();
    let open = || {
        let told = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("run tests/interop/pkcs11.sh: no {name}"))
        };
        let settings = Settings {
            module: told("PKCS11_MODULE").into(),
            token: told("PKCS11_TOKEN"),
            pin_file: told("PKCS11_PIN_FILE").into(),
            sessions: 4,
        };
        Arc::new(Module::open(settings).unwrap())
    };
    Arc::clone(MODULE.get_or_init(open))
}
