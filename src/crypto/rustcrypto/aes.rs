//! AES-256 by the crate `xaes-256-gcm`.

use aes_gcm::aead::{AeadInOut, KeyInit};
use xaes_256_gcm::{Nonce, Tag, Xaes256Gcm};
use zeroize::Zeroizing;

use crate::crypto::ProviderError;
use crate::crypto::aes::{NONCE, TAG, Xaes};
use crate::crypto::rustcrypto::no_randomness;
use crate::domain::secret::Material;

/// Fresh material.
pub(super) fn generate() -> Result<Material, ProviderError> {
    let mut key = Zeroizing::new(vec![0; 32]);
    getrandom::fill(&mut key).map_err(no_randomness)?;
    Ok(Material::new(std::mem::take(&mut *key)))
}

impl Xaes for Xaes256Gcm {
    fn new(key: &[u8; 32]) -> Option<Self> {
        Some(KeyInit::new(key.into()))
    }

    fn nonce() -> Result<[u8; NONCE], ProviderError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(no_randomness)?;
        Ok(nonce)
    }

    fn seal(&self, nonce: &[u8; NONCE], bound: &[u8], body: &mut [u8]) -> Option<[u8; TAG]> {
        let nonce = Nonce::from(*nonce);
        let tag = self.encrypt_inout_detached(&nonce, bound, body.into());
        tag.ok().map(Into::into)
    }

    fn open(
        &self,
        nonce: &[u8; NONCE],
        bound: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG],
    ) -> Option<()> {
        let (nonce, tag) = (Nonce::from(*nonce), Tag::from(*tag));
        self.decrypt_inout_detached(&nonce, bound, body.into(), &tag)
            .ok()
    }
}
