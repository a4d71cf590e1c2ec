//! Cryptography, behind one seam.
//!
//! A [`Provider`] makes keys and opens them; an opened key does the work. The rest of the service
//! never sees key material, a nonce, or a library's name:
//!
//! ```text
//! generate(name) ──► SealedKey ──► (key store) ──► open ──► OpenKey ──► encrypt, decrypt
//! ```
//!
//! Sealed keys are opaque outside a provider. A provider in software seals the material's
//! provider-neutral encoding under the [root key](root), so that a key which one such provider made
//! opens in any other.
//!
//! # Adding a provider
//!
//! Implement [`Provider`] in one file, then add one line to `tests/providers.rs`. The battery there
//! decides whether it is correct.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::domain::frame::HEAD;
use crate::domain::key::{KeyId, KeySpec, KeyVersion, ProjectId};
use crate::domain::secret::{Material, Plaintext};

mod aes;
pub mod aws_lc;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod pool;
pub mod root;
mod rsa;
pub mod rustcrypto;

/// A source of keys: a software library, or a hardware module.
pub trait Provider: fmt::Debug + Send + Sync {
    /// The name used in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// Whether [`generate`](Self::generate), [`seal`](Self::seal) and [`open`](Self::open) work for
    /// `spec`.
    fn supports(&self, spec: KeySpec) -> bool;

    /// Whether [`open`](Self::open) is the one to ask about `key`: it is of a kind that this provider
    /// seals. Says nothing of whether it will open.
    fn opens(&self, key: &SealedKey) -> bool;

    /// Makes a fresh key version. It leaves the provider only in sealed form. May compute for
    /// seconds.
    fn generate(&self, name: &VersionName) -> Result<SealedKey, ProviderError>;

    /// Seals material that was made elsewhere, so that it opens as `name`.
    ///
    /// Fails with [`ProviderError::Unsupported`] if the material is not a key of the spec.
    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError>;

    /// Readies a sealed key for use. May compute for milliseconds.
    ///
    /// Fails with [`ProviderError::BadSeal`] if the key was altered, or was sealed under another
    /// name or root key.
    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<OpenKey, ProviderError>;

    /// Where [`open`](Self::open) is to be called for this key, or [`generate`](Self::generate). A key with one
    /// half is short work where it is for the pool.
    fn place(&self, key: Option<&SealedKey>) -> Place;

    /// Seals a key again under the root key that seals now; none if it was sealed by that one. The
    /// material stays the same, and stays inside.
    ///
    /// Fails with [`ProviderError::BadSeal`] as [`open`](Self::open) does.
    fn reseal(
        &self,
        name: &VersionName,
        key: &SealedKey,
    ) -> Result<Option<SealedKey>, ProviderError>;
}

/// Names one version of one key. A seal is bound to it, so a sealed key does not open in another's
/// place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionName {
    /// The project that owns the key.
    pub project: ProjectId,
    /// The key.
    pub key_id: KeyId,
    /// The version.
    pub version: KeyVersion,
    /// What the key is made of.
    pub spec: KeySpec,
}

/// A key version outside its provider: encrypted, authenticated, opaque.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey(pub Vec<u8>);

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedKey({} bytes)", self.0.len())
    }
}

/// A key version ready for use. What it can do is which variant it is.
pub enum OpenKey {
    /// One secret, which fills [frames](crate::domain::frame). Its work is short and done where it
    /// is called.
    Symmetric(Box<dyn Symmetric>),
    /// A public and a private half.
    Pair(Box<dyn KeyPair>),
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symmetric(_) => "OpenKey::Symmetric",
            Self::Pair(_) => "OpenKey::Pair",
        })
    }
}

/// Authenticated encryption under one key version, committing to it.
pub trait Symmetric: Send + Sync {
    /// Completes a frame: `frame` holds its head, and commitment, nonce, ciphertext and tag are put
    /// behind it.
    ///
    /// `plaintext` has 1 to 4096 bytes. The head and `aad` are bound to the ciphertext.
    fn encrypt(
        &self,
        frame: &mut Vec<u8>,
        plaintext: &Plaintext,
        aad: &[u8],
    ) -> Result<(), ProviderError>;

    /// Decrypts the `body` that [`encrypt`](Self::encrypt) put behind `head` for the same `aad`.
    ///
    /// All three come from the network: anything may arrive here, and all that is wrong fails alike
    /// with [`ProviderError::Rejected`].
    fn decrypt(
        &self,
        head: &[u8; HEAD],
        body: &[u8],
        aad: &[u8],
    ) -> Result<Plaintext, ProviderError>;
}

/// Public-key encryption under one key version.
pub trait KeyPair: Send + Sync {
    /// Encrypts under the public half. Fails with [`ProviderError::TooLong`] over the spec's limit.
    fn encrypt(&self, plaintext: &Plaintext) -> Result<Vec<u8>, ProviderError>;

    /// Decrypts with the private half.
    ///
    /// `ciphertext` comes from the network: anything may arrive here, and all that is wrong fails
    /// alike with [`ProviderError::Rejected`].
    fn decrypt(&self, ciphertext: &[u8]) -> Result<Plaintext, ProviderError>;

    /// The public half as SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7).
    fn public_key(&self) -> &[u8];

    /// Where [`encrypt`](Self::encrypt) is to be called next: a key may ready itself at the first.
    fn encrypts(&self) -> Place;

    /// Where [`decrypt`](Self::decrypt) is to be called.
    fn decrypts(&self) -> Place;
}

/// Where an operation is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where it is needed: it takes microseconds.
    Inline,
    /// On the [CPU pool](pool): it would hold up other requests.
    Pool,
    /// On the pool's threads for devices: it waits for one, which may be slow or hang.
    Device,
}

/// Why a provider refused.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Wrong key, wrong associated data, or altered bytes. Says no more than that, so that the
    /// answer is no oracle. The caller's fault.
    #[error("the ciphertext does not open")]
    Rejected,
    /// The plaintext is over the key's limit. The caller's fault.
    #[error("the plaintext is too long for the key")]
    TooLong,
    /// A sealed key does not open. Our fault: the store holds bad data, or the root key is another.
    #[error("the sealed key does not open")]
    BadSeal,
    /// Asked for a spec that it does not [support](Provider::supports), or to seal material that is
    /// no such key.
    #[error("the key spec or material is not supported")]
    Unsupported,
    /// The hardware, the library or the system's random source cannot serve now; a retry may work.
    #[error("the provider is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
}

/// The providers in the order in which they are preferred, each for some key specs.
///
/// The first that has a spec makes its keys. A key that exists is opened by the first that has its
/// spec and [opens](Provider::opens) its kind of seal, so that keys live on when the order changes.
#[derive(Debug)]
pub struct Providers(Vec<Choice>);

/// A provider, and what it is asked for.
#[derive(Debug)]
pub struct Choice {
    /// The provider.
    pub provider: Arc<dyn Provider>,
    /// The specs that it has; all that it supports if absent.
    pub specs: Option<Vec<KeySpec>>,
}

impl Providers {
    /// Prefers `choices` in this order, if they leave no spec out and ask no provider for what it
    /// does not support.
    pub fn new(choices: Vec<Choice>) -> Result<Self, InvalidProviders> {
        for Choice { provider, specs } in &choices {
            let mut asked = specs.iter().flatten();
            if let Some(spec) = asked.find(|spec| !provider.supports(**spec)) {
                let provider = provider.name();
                return Err(InvalidProviders::Unsupported {
                    provider,
                    spec: spec.name(),
                });
            }
        }
        let providers = Self(choices);
        let mut all = KeySpec::ALL.iter();
        match all.find(|spec| providers.maker(**spec).is_err()) {
            Some(spec) => Err(InvalidProviders::Missing(spec.name())),
            None => Ok(providers),
        }
    }

    /// The provider that makes keys of `spec`.
    pub fn maker(&self, spec: KeySpec) -> Result<&dyn Provider, ProviderError> {
        self.having(spec).next().ok_or(ProviderError::Unsupported)
    }

    /// The provider that opens a key of `spec`.
    ///
    /// Fails with [`ProviderError::BadSeal`] if none of those that have the spec knows such a seal: the
    /// key was damaged, or its provider is no longer configured.
    pub fn opener(&self, spec: KeySpec, key: &SealedKey) -> Result<&dyn Provider, ProviderError> {
        let mut opening = self.having(spec).filter(|provider| provider.opens(key));
        opening.next().ok_or(ProviderError::BadSeal)
    }

    fn having(&self, spec: KeySpec) -> impl Iterator<Item = &dyn Provider> {
        let chosen = self.0.iter().filter(move |choice| {
            let specs = choice.specs.as_ref();
            choice.provider.supports(spec) && specs.is_none_or(|specs| specs.contains(&spec))
        });
        chosen.map(|choice| &*choice.provider)
    }
}

/// Why a list of providers cannot be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProviders {
    /// Keys of a spec could be neither made nor opened.
    #[error("none is for {0}")]
    Missing(&'static str),
    /// A provider is asked for what it does not [support](Provider::supports).
    #[error("{provider} does not support {spec}")]
    Unsupported {
        /// The provider's name.
        provider: &'static str,
        /// The spec's name.
        spec: &'static str,
    },
}

impl<P: Provider + 'static> From<P> for Providers {
    /// One provider, for everything that it supports and for nothing else.
    fn from(provider: P) -> Self {
        Self(vec![Choice {
            provider: Arc::new(provider),
            specs: None,
        }])
    }
}
