//! The provider built on the RustCrypto crates: `xaes-256-gcm`, `rsa`, `sm2`.

use std::sync::Arc;

use xaes_256_gcm::Xaes256Gcm;

use crate::crypto::aes::Aes;
use crate::crypto::root::Root;
use crate::crypto::{OpenKey, Place, Provider, ProviderError, SealedKey, VersionName};
use crate::domain::key::{Family, KeySpec};
use crate::domain::secret::Material;

mod aes;
mod der;
mod rsa;
mod sm2;

/// Keys in software, sealed under a root key.
#[derive(Debug)]
pub struct RustCrypto {
    root: Arc<dyn Root>,
}

impl RustCrypto {
    /// A provider whose keys are sealed under `root`.
    pub fn new(root: Arc<dyn Root>) -> Self {
        Self { root }
    }
}

impl Provider for RustCrypto {
    fn name(&self) -> &'static str {
        "rustcrypto"
    }

    fn supports(&self, spec: KeySpec) -> bool {
        match spec.family() {
            Family::Symmetric | Family::Rsa | Family::Sm2 => true,
        }
    }

    fn opens(&self, key: &SealedKey) -> bool {
        self.root.seals(key)
    }

    fn generate(&self, name: &VersionName) -> Result<SealedKey, ProviderError> {
        let material = match name.spec {
            KeySpec::Aes256 => aes::generate(),
            KeySpec::Rsa2048 => rsa::generate(2048),
            KeySpec::Rsa3072 => rsa::generate(3072),
            KeySpec::Rsa4096 => rsa::generate(4096),
            KeySpec::Sm2 => sm2::generate(),
        }?;
        self.root.seal(name, &material)
    }

    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError> {
        ready(name, material).ok_or(ProviderError::Unsupported)?;
        self.root.seal(name, material)
    }

    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<OpenKey, ProviderError> {
        let material = self.root.open(name, key)?;
        ready(name, &material).ok_or(ProviderError::BadSeal)
    }

    fn place(&self, key: Option<&SealedKey>) -> Place {
        if self.root.is_device(key) {
            Place::Device
        } else {
            Place::Pool
        }
    }

    fn reseal(
        &self,
        name: &VersionName,
        key: &SealedKey,
    ) -> Result<Option<SealedKey>, ProviderError> {
        self.root.reseal(name, key)
    }
}

/// Readies material for use, if it is a key of the spec.
fn ready(name: &VersionName, material: &Material) -> Option<OpenKey> {
    Some(match name.spec {
        KeySpec::Aes256 => OpenKey::Symmetric(Box::new(Aes::<Xaes256Gcm>::new(name, material)?)),
        KeySpec::Rsa2048 => OpenKey::Pair(Box::new(rsa::Rsa::new(2048, material)?)),
        KeySpec::Rsa3072 => OpenKey::Pair(Box::new(rsa::Rsa::new(3072, material)?)),
        KeySpec::Rsa4096 => OpenKey::Pair(Box::new(rsa::Rsa::new(4096, material)?)),
        KeySpec::Sm2 => OpenKey::Pair(Box::new(sm2::Sm2::new(material)?)),
    })
}

/// For fuzzing: an SM2 ciphertext written again from what was read of it; none if it is refused.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn sm2_rewritten(ciphertext: &[u8]) -> Option<Vec<u8>> {
    let der::Parts { x, y, c3, c2 } = der::Parts::parse(ciphertext)?;
    let mut written = der::before_c2(&x, &y, c3, c2.len());
    written.extend(c2);
    Some(written)
}

/// The system's random source failed.
fn no_randomness(error: getrandom::Error) -> ProviderError {
    ProviderError::Unavailable(error.into())
}
