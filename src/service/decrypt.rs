//! DecryptData.

use std::sync::Arc;

use crate::crypto::pool::Share;
use crate::crypto::{OpenKey, Place, ProviderError};
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::cost::Work;
use crate::domain::frame::{HEAD, Head};
use crate::domain::key::{Family, KeyId};
use crate::domain::request::Aad;
use crate::domain::secret::Plaintext;
use crate::error::{Error, Kind};
use crate::service::encrypt::{ATTEMPTS, is_enabled, pair, usable};
use crate::service::keyring::Held;
use crate::service::{Call, Kms};
use crate::store::KeyRecord;

/// What to decrypt, and how.
#[derive(Debug)]
pub struct Decrypt {
    /// Under which key; present with an asymmetric algorithm.
    pub key_id: Option<KeyId>,
    /// What was encrypted.
    pub ciphertext: Vec<u8>,
    /// By which algorithm.
    pub algorithm: EncryptionAlgorithm,
    /// What was bound to it.
    pub aad: Aad,
}

/// What came of it.
#[derive(Debug)]
pub struct Decrypted {
    /// The key that decrypted.
    pub key_id: KeyId,
    /// The plaintext.
    pub plaintext: Plaintext,
}

impl Kms {
    /// Decrypts under the version that encrypted.
    pub async fn decrypt(&self, call: &mut Call<'_>, ask: Decrypt) -> Result<Decrypted, Error> {
        if ask.algorithm.is_symmetric() {
            return self.decrypt_frame(call, ask).await;
        }
        let key_id = ask.key_id.ok_or(Kind::MissingParameter)?;
        let access = call.access_by(key_id, ask.algorithm)?;
        let ciphertext = Arc::new(ask.ciphertext);
        for _ in 0..ATTEMPTS {
            let found = self.find(&access, is_enabled).await?;
            access.to(found.as_deref().map(Held::record))?;
            let held = found.ok_or(Kind::KeyNotFound)?;
            usable(held.record(), ask.algorithm)?;
            call.charge_for(&held, held.newest_version()?, Work::Decrypt)?;
            let plaintext = self.decrypt_with(call.pool(), &held, &ciphertext).await?;
            if self.is_as_it_was(&held)? {
                return Ok(Decrypted { key_id, plaintext });
            }
        }
        Err(Kind::Unavailable.into())
    }

    /// Decrypts a frame. It names its key; a key that the caller names must be the same one.
    async fn decrypt_frame(&self, call: &mut Call<'_>, ask: Decrypt) -> Result<Decrypted, Error> {
        if let Some(named) = ask.key_id {
            let access = call.access_by(named, ask.algorithm)?;
            // An asymmetric key is told as the wrong one for the algorithm before its ciphertext
            // fails to be a frame.
            let held = self.find(&access, is_enabled).await?;
            access.to(held.as_deref().map(Held::record))?;
            if let Some(held) = held.filter(|held| held.record().spec.family() != Family::Symmetric)
            {
                usable(held.record(), ask.algorithm)?;
            }
        } else {
            // The right comes before the form of the ciphertext, which alone names the key.
            call.allowed_with_some_key(ask.algorithm)?;
        }
        let (head, body) = Head::parse(&ask.ciphertext)?;
        if ask.key_id.is_some_and(|named| named != head.key_id) {
            return Err(Kind::InvalidCiphertext.into());
        }
        call.key_id = Some(head.key_id);
        let access = call.access_by(head.key_id, ask.algorithm)?;
        for _ in 0..ATTEMPTS {
            let has_version = |key: &KeyRecord| {
                let newest = key.versions.last();
                newest.is_some_and(|newest| head.version <= newest.version)
            };
            let suits = |key: &KeyRecord| is_enabled(key) && has_version(key);
            let held = self.find(&access, suits).await?;
            access.to(held.as_deref().map(Held::record))?;
            let held = held.filter(|held| held.record().spec.family() == Family::Symmetric);
            let held = held.ok_or(Kind::InvalidCiphertext)?;
            usable(held.record(), ask.algorithm)?;
            call.charge_for(&held, head.version, Work::Decrypt)?;
            let plaintext = self
                .open_frame(call.pool(), &held, &head, body, &ask.aad)
                .await?;
            if self.is_as_it_was(&held)? {
                return Ok(Decrypted {
                    key_id: head.key_id,
                    plaintext,
                });
            }
        }
        Err(Kind::Unavailable.into())
    }

    async fn open_frame(
        &self,
        pool: Share<'_>,
        held: &Held,
        head: &Head,
        body: &[u8],
        aad: &Aad,
    ) -> Result<Plaintext, Error> {
        let key = held.version(head.version, &self.providers, pool).await?;
        let key = key.ok_or(Kind::InvalidCiphertext)?;
        let OpenKey::Symmetric(key) = &**key else {
            return Err(Kind::Internal.into());
        };
        let bytes: [u8; HEAD] = head.to_bytes();
        let plaintext = key.decrypt(&bytes, body, aad.as_bytes())?;
        // The flag is authenticated, so a frame that opens and disagrees with the request was never
        // written by us.
        if head.has_aad == aad.is_empty() {
            return Err(Kind::InvalidCiphertext.into());
        }
        Ok(plaintext)
    }

    /// Decrypts with a private key, where that is to be done.
    async fn decrypt_with(
        &self,
        pool: Share<'_>,
        held: &Held,
        ciphertext: &Arc<Vec<u8>>,
    ) -> Result<Plaintext, Error> {
        let (_, key) = held.newest(&self.providers, pool).await?;
        let rejected = match held.record().spec.family() {
            Family::Rsa => Kind::RsaDecryptionFailed,
            Family::Symmetric | Family::Sm2 => Kind::InvalidCiphertext,
        };
        let refuse = move |error| match error {
            ProviderError::Rejected => Error::from(rejected),
            error => error.into(),
        };
        let place = pair(key)?.decrypts();
        if place == Place::Inline {
            return pair(key)?.decrypt(ciphertext).map_err(refuse);
        }
        let (key, ciphertext) = (Arc::clone(key), Arc::clone(ciphertext));
        let job = move || pair(&key)?.decrypt(&ciphertext).map_err(refuse);
        let cost = held.record().spec.micros(Work::Decrypt);
        pool.run(place, cost, job).await?
    }
}
