//! EncryptData.

use std::sync::Arc;

use crate::crypto::pool::Share;
use crate::crypto::{KeyPair, OpenKey, Place};
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::cost::Work;
use crate::domain::frame::{Head, OVERHEAD, Suite};
use crate::domain::key::{Family, KeyId, KeyUsage, KeyVersion};
use crate::domain::request::Aad;
use crate::domain::secret::Plaintext;
use crate::error::{Error, Kind};
use crate::service::keyring::Held;
use crate::service::{Call, Kms};
use crate::store::KeyRecord;

/// What to encrypt, and how.
#[derive(Debug)]
pub struct Encrypt {
    /// Under which key.
    pub key_id: KeyId,
    /// 1 to 4096 bytes.
    pub plaintext: Plaintext,
    /// By which algorithm.
    pub algorithm: EncryptionAlgorithm,
    /// Bound to the ciphertext; empty with an asymmetric algorithm.
    pub aad: Aad,
}

/// What came of it.
#[derive(Debug)]
pub struct Encrypted {
    /// The key that encrypted.
    pub key_id: KeyId,
    /// The ciphertext.
    pub ciphertext: Vec<u8>,
}

/// How often a data call starts again because its key changed under it, before it gives up.
pub(super) const ATTEMPTS: usize = 8;

impl Kms {
    /// Encrypts under a key's newest version.
    pub async fn encrypt(&self, call: &Call<'_>, ask: Encrypt) -> Result<Encrypted, Error> {
        let access = call.access_by(ask.key_id, ask.algorithm)?;
        let Encrypt {
            key_id,
            plaintext,
            algorithm,
            aad,
        } = ask;
        let plaintext = Arc::new(plaintext);
        for _ in 0..ATTEMPTS {
            let found = self.find(&access, is_enabled).await?;
            access.to(found.as_deref().map(Held::record))?;
            let held = found.ok_or(Kind::KeyNotFound)?;
            usable(held.record(), algorithm)?;
            fits(held.record(), &plaintext)?;
            call.charge_for(&held, held.newest_version()?, Work::Encrypt)?;
            let ciphertext = self
                .encrypt_under(call.pool(), &held, &plaintext, &aad)
                .await?;
            // A change that was acknowledged during the work (an RSA key may have queued) decides
            // the answer.
            if self.is_as_it_was(&held)? {
                return Ok(Encrypted { key_id, ciphertext });
            }
        }
        Err(Kind::Unavailable.into())
    }

    async fn encrypt_under(
        &self,
        pool: Share<'_>,
        held: &Held,
        plaintext: &Arc<Plaintext>,
        aad: &Aad,
    ) -> Result<Vec<u8>, Error> {
        let (version, key) = held.newest(&self.providers, pool).await?;
        match &**key {
            OpenKey::Symmetric(key) => {
                let mut frame = frame(held.record().key_id, version, plaintext, aad);
                key.encrypt(&mut frame, plaintext, aad.as_bytes())?;
                Ok(frame)
            }
            OpenKey::Pair(pair) if pair.encrypts() == Place::Inline => Ok(pair.encrypt(plaintext)?),
            OpenKey::Pair(halves) => {
                let place = halves.encrypts();
                let (key, plaintext) = (Arc::clone(key), Arc::clone(plaintext));
                let job = move || pair(&key)?.encrypt(&plaintext).map_err(Error::from);
                let cost = held.record().spec.micros(Work::Encrypt);
                pool.run(place, cost, job).await?
            }
        }
    }
}

/// The head of a new frame, with room for the rest.
fn frame(key_id: KeyId, version: KeyVersion, plaintext: &Plaintext, aad: &Aad) -> Vec<u8> {
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: !aad.is_empty(),
        version,
        key_id,
    };
    let mut frame = Vec::with_capacity(OVERHEAD + plaintext.expose().len() + 16);
    frame.extend_from_slice(&head.to_bytes());
    frame
}

/// The two halves of a key that has them.
pub(super) fn pair(key: &OpenKey) -> Result<&dyn KeyPair, Error> {
    match key {
        OpenKey::Pair(pair) => Ok(&**pair),
        OpenKey::Symmetric(_) => Err(Kind::Internal.into()),
    }
}

/// Whether the key may encrypt and decrypt now.
pub(super) fn is_enabled(key: &KeyRecord) -> bool {
    key.state.usable().is_ok()
}

/// Refuses a key that may not encrypt or decrypt now, or not by `algorithm`: state, then usage,
/// then algorithm.
pub(super) fn usable(key: &KeyRecord, algorithm: EncryptionAlgorithm) -> Result<(), Error> {
    key.state.usable()?;
    if key.usage != KeyUsage::EncryptDecrypt {
        return Err(Kind::KeySigns.into());
    }
    if algorithm == key.spec.algorithm() {
        return Ok(());
    }
    let kind = match key.spec.family() {
        Family::Symmetric => Kind::SymmetricKeyAlgorithm,
        Family::Rsa => Kind::RsaKeyAlgorithm,
        Family::Sm2 => Kind::Sm2KeyAlgorithm,
    };
    Err(kind.into())
}

/// Refuses a plaintext over the key's own limit.
fn fits(key: &KeyRecord, plaintext: &Plaintext) -> Result<(), Error> {
    if plaintext.expose().len() <= key.spec.max_plaintext() {
        return Ok(());
    }
    let kind = match key.spec.family() {
        Family::Rsa => Kind::RsaPlaintextTooLong,
        Family::Symmetric | Family::Sm2 => Kind::InvalidPlaintext,
    };
    Err(kind.into())
}
