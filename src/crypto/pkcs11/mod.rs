//! Keys in a hardware module, over PKCS#11.
//!
//! Two things may live in a token, and either alone: the [root key](root::TokenRoot), under which
//! providers in software seal their keys, and [RSA keys](rsa::TokenRsa). Both are made by the token
//! as objects that are sensitive and not extractable; the module does the work.
//!
//! ```text
//! TokenRoot ─┐
//!            ├─► session::Module ─► a logged-in session, one thread at a time ─► the token
//! TokenRsa  ─┘
//! ```
//!
//! A token that is gone costs the calls that need it [`ProviderError::Unavailable`]; keys that are
//! open in memory go on. When it is back, so are they.

use cryptoki::context::Function;

use crate::crypto::ProviderError;

pub mod root;
pub mod rsa;
pub mod session;

pub use session::{Module, Settings};

/// Why the module cannot be used, for whoever starts the server.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The library cannot be loaded, or refuses.
    #[error("the module: {0}")]
    Module(#[from] cryptoki::error::Error),
    /// No slot has the token.
    #[error("no token is labelled {0:?}")]
    NoToken(String),
    /// More than one slot has such a token.
    #[error("more than one token is labelled {0:?}")]
    TokenTwice(String),
    /// The file with the PIN cannot be read.
    #[error("the PIN's file {0}: {1}")]
    PinFile(String, #[source] std::io::Error),
    /// "Others" may read or write the file with the PIN.
    #[error("the PIN's file {0} is open to others: take their rights away with chmod o-rwx")]
    PinTooOpen(String),
    /// The file holds no line of text.
    #[error("the PIN's file {0} does not hold one line")]
    PinMalformed(String),
    /// The token refused the PIN. It counts refusals, so the same PIN is not tried again.
    #[error("the token refuses the PIN, which is not tried again until its file changes")]
    PinRefused,
    /// One more refusal would lock the token.
    #[error("the token takes one more try of the PIN before it locks: log in by other means first")]
    LastTry,
    /// The token lacks a root key.
    #[error(
        "the token has no root key labelled {0:?}: make one with kmsgate root-key new-in-token"
    )]
    NoRootKey(String),
    /// A root key is there already.
    #[error("the token has a root key labelled {0:?} already, and none is ever replaced")]
    RootKeyExists(String),
    /// The objects are no root key that this program would make.
    #[error("the root key labelled {0:?} {1}")]
    UnfitRootKey(String, &'static str),
    /// The module lacks an operation.
    #[error("the module does not do {0}")]
    Lacks(&'static str),
    /// The token went away during the start.
    #[error("the token: {0}")]
    Provider(#[from] ProviderError),
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// Why the token did not do what it was asked.
#[derive(Debug)]
enum Fault {
    /// It answered, and refused.
    Refused(cryptoki::error::Error),
    /// It is gone, or too busy.
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
}

impl Fault {
    /// For a decryption: the token refused the bytes, which is `refusal`, or could not look at them.
    ///
    /// Which code says that bytes do not decrypt differs between modules, and all are one answer. But
    /// only `C_Decrypt` is given the bytes, so whatever else is refused says nothing of them.
    fn of_decryption(self, refusal: ProviderError) -> ProviderError {
        match self {
            Self::Refused(cryptoki::error::Error::Pkcs11(_, Function::Decrypt)) => refusal,
            Self::Refused(error) => {
                tracing::warn!(%error, "the pkcs11 token refuses a key to decrypt with");
                ProviderError::Unavailable(error.into())
            }
            Self::Unavailable(error) => ProviderError::Unavailable(error),
        }
    }
}

impl From<Fault> for ProviderError {
    /// For operations that do not depend on bytes from elsewhere: no refusal is the caller's fault.
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(error) => Self::Unavailable(error.into()),
            Fault::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<Fault> for ModuleError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(error) => Self::Module(error),
            Fault::Unavailable(error) => Self::Provider(ProviderError::Unavailable(error)),
        }
    }
}
