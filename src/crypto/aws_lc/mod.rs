//! The provider built on AWS-LC, by the crate `aws-lc-rs`.
//!
//! It has no SM2. AWS-LC does RSA in assembly, with private operations that are blinded and take the
//! same time for every ciphertext.

use std::sync::Arc;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::KeySize;

use crate::crypto::aes::Aes;
use crate::crypto::root::Root;
use crate::crypto::rsa::read;
use crate::crypto::{OpenKey, Place, Provider, ProviderError, SealedKey, VersionName};
use crate::domain::key::{Family, KeySpec};
use crate::domain::secret::Material;

mod aes;
mod rsa;

/// Keys in software, sealed under a root key.
#[derive(Debug)]
pub struct AwsLc {
    root: Arc<dyn Root>,
}

impl AwsLc {
    /// A provider whose keys are sealed under `root`.
    pub fn new(root: Arc<dyn Root>) -> Self {
        Self { root }
    }
}

impl Provider for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc-rs"
    }

    fn supports(&self, spec: KeySpec) -> bool {
        match spec.family() {
            Family::Symmetric | Family::Rsa => true,
            Family::Sm2 => false,
        }
    }

    fn opens(&self, key: &SealedKey) -> bool {
        self.root.seals(key)
    }

    fn generate(&self, name: &VersionName) -> Result<SealedKey, ProviderError> {
        let material = match name.spec {
            KeySpec::Aes256 => aes::generate(),
            KeySpec::Rsa2048 => rsa::generate(KeySize::Rsa2048),
            KeySpec::Rsa3072 => rsa::generate(KeySize::Rsa3072),
            KeySpec::Rsa4096 => rsa::generate(KeySize::Rsa4096),
            KeySpec::Sm2 => Err(ProviderError::Unsupported),
        }?;
        self.root.seal(name, &material)
    }

    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError> {
        // AWS-LC takes keys that the other providers refuse, such as one with a longer and a shorter
        // prime.
        if let Some(bits) = name.spec.rsa_bits() {
            let bits = u32::try_from(bits).map_err(|_| ProviderError::Unsupported)?;
            read(bits, material).ok_or(ProviderError::Unsupported)?;
        }
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
        KeySpec::Aes256 => OpenKey::Symmetric(Box::new(Aes::<aes::Xaes256>::new(name, material)?)),
        KeySpec::Rsa2048 => OpenKey::Pair(Box::new(rsa::Rsa::new(2048, material)?)),
        KeySpec::Rsa3072 => OpenKey::Pair(Box::new(rsa::Rsa::new(3072, material)?)),
        KeySpec::Rsa4096 => OpenKey::Pair(Box::new(rsa::Rsa::new(4096, material)?)),
        KeySpec::Sm2 => return None,
    })
}

/// The library refused what depends on no caller's input: it had no memory or no randomness.
fn unavailable(error: Unspecified) -> ProviderError {
    ProviderError::Unavailable(error.into())
}
