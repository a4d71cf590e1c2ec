//! AES-256 keys: XAES-256-GCM in a frame that commits to its key.
//!
//! From the material, two independent halves, with HKDF-SHA-256 (RFC 5869):
//!
//! ```text
//! encryption key (32) ‖ commitment (32) = HKDF(salt = "", ikm = material,
//!     info = "kmsgate frame v3" ‖ suite (1) ‖ key id (36) ‖ version (4, big-endian))
//! ```
//!
//! XAES-256-GCM derives a key for every message from the first half of a nonce of 192 random bits,
//! so that nonces may be drawn at random for ever (<https://c2sp.org/XAES-256-GCM>).
//!
//! AES-GCM alone does not commit to its key: for two keys of one's choice a ciphertext can be made
//! that opens under both. The commitment, which only the right key reproduces, rules that out.

use aes_gcm::Tag;
use aes_gcm::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use xaes_256_gcm::{Key, Nonce, Xaes256Gcm};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::rustcrypto::no_randomness;
use crate::crypto::{ProviderError, Symmetric, VersionName};
use crate::domain::algorithm::MAX_PLAINTEXT;
use crate::domain::frame::{HEAD, Suite};
use crate::domain::secret::{Material, Plaintext};

/// Fresh material.
pub(super) fn generate() -> Result<Material, ProviderError> {
    let mut key = Zeroizing::new(vec![0; 32]);
    getrandom::fill(&mut key).map_err(no_randomness)?;
    Ok(Material::new(std::mem::take(&mut *key)))
}

/// An AES-256 key ready for use.
pub(super) struct Aes {
    cipher: Xaes256Gcm,
    commitment: [u8; COMMITMENT],
}

impl Aes {
    /// Derives both halves, if the material is 32 bytes.
    pub(super) fn new(name: &VersionName, material: &Material) -> Option<Self> {
        let material: &[u8; 32] = material.expose().try_into().ok()?;
        let info = [
            b"kmsgate frame v3",
            &[Suite::Xaes256Gcm.number()][..],
            name.key_id.as_bytes(),
            &name.version.get().to_be_bytes(),
        ];
        let mut derived = Zeroizing::new([0; 32 + COMMITMENT]);
        let hkdf = Hkdf::<Sha256>::new(None, material);
        hkdf.expand_multi_info(&info, derived.as_mut_slice()).ok()?;
        let (key, commitment) = derived.split_first_chunk::<32>()?;
        Some(Self {
            cipher: Xaes256Gcm::new(<&Key>::from(key)),
            commitment: commitment.try_into().ok()?,
        })
    }
}

impl Symmetric for Aes {
    fn encrypt(
        &self,
        frame: &mut Vec<u8>,
        plaintext: &Plaintext,
        aad: &[u8],
    ) -> Result<(), ProviderError> {
        let plaintext = plaintext.expose();
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(ProviderError::TooLong);
        }
        // What is bound has one reading only because the head has one length, and no frame is made
        // that would not open.
        if plaintext.is_empty() || frame.len() != HEAD {
            return Err(ProviderError::Unsupported);
        }
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(no_randomness)?;

        // Room for everything at once: were the frame to move later, it would leave the plaintext
        // behind.
        let padding = padding(plaintext.len());
        let padded = plaintext.len() + usize::from(padding);
        frame.reserve_exact(COMMITMENT + NONCE + padded + TAG);
        frame.extend_from_slice(&self.commitment);
        frame.extend_from_slice(&nonce);
        let bound = [frame, aad].concat();
        let start = frame.len();
        frame.extend_from_slice(plaintext);
        frame.resize(start + padded, padding);

        let body = frame.get_mut(start..).unwrap_or_default();
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce, &bound, body.into())
            .map_err(|_| {
                frame.zeroize();
                ProviderError::TooLong
            })?;
        frame.extend_from_slice(&tag);
        Ok(())
    }

    fn decrypt(
        &self,
        head: &[u8; HEAD],
        body: &[u8],
        aad: &[u8],
    ) -> Result<Plaintext, ProviderError> {
        let (bound, ciphertext) = body
            .split_at_checked(COMMITMENT + NONCE)
            .ok_or(ProviderError::Rejected)?;
        let (commitment, nonce) = bound
            .split_last_chunk::<NONCE>()
            .ok_or(ProviderError::Rejected)?;
        let (ciphertext, &tag) = ciphertext
            .split_last_chunk::<TAG>()
            .ok_or(ProviderError::Rejected)?;
        if !bool::from(commitment.ct_eq(&self.commitment)) {
            return Err(ProviderError::Rejected);
        }
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        self.cipher
            .decrypt_inout_detached(
                &Nonce::from(*nonce),
                &[head, bound, aad].concat(),
                plaintext.as_mut_slice().into(),
                &Tag::from(tag),
            )
            .map_err(|_| ProviderError::Rejected)?;
        let length = unpadded(&plaintext).ok_or(ProviderError::Rejected)?;
        plaintext.truncate(length);
        Ok(Plaintext::new(std::mem::take(&mut *plaintext)))
    }
}

const COMMITMENT: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;

/// The byte that pads `length` bytes to a multiple of 16, as often as it says: 1 to 16 (PKCS#7, RFC
/// 5652, section 6.3).
const fn padding(length: usize) -> u8 {
    let [low, ..] = length.to_le_bytes();
    16 - low % 16
}

/// The length of what was padded, which was 1 to 4096 bytes.
///
/// The padding is authenticated, so how long this takes tells nobody anything.
fn unpadded(padded: &[u8]) -> Option<usize> {
    let padding = *padded.last()?;
    let length = padded.len().checked_sub(usize::from(padding))?;
    let (_, tail) = padded.split_at_checked(length)?;
    let fits = (1..=16).contains(&padding)
        && padded.len().is_multiple_of(16)
        && (1..=MAX_PLAINTEXT).contains(&length)
        && tail.iter().all(|byte| *byte == padding);
    fits.then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_fills_a_block_and_never_nothing() {
        for (length, expected) in [(1, 15), (15, 1), (16, 16), (17, 15), (4096, 16)] {
            assert_eq!(padding(length), expected, "{length}");
        }
    }

    #[test]
    fn only_padding_that_we_write_is_taken_off() {
        let block = |last: &[u8]| [&[7; 32][last.len()..], last].concat();
        for (padded, expected) in [
            (block(&[1]), Some(31)),
            (block(&[2, 2]), Some(30)),
            (block(&[16; 16]), Some(16)),
            (block(&[0]), None),
            (block(&[1, 2]), None),
            (block(&[17; 17]), None),
            (block(&[255]), None),
            (vec![16; 16], None),
            (vec![1; 15], None),
            (vec![], None),
            (vec![16; 4096 + 16], Some(4096)),
            (vec![16; 4096 + 32], None),
        ] {
            assert_eq!(unpadded(&padded), expected, "{padded:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_padded_unpads(message in proptest::collection::vec(any::<u8>(), 1..=4096)) {
            let padding = padding(message.len());
            let mut padded = message.clone();
            padded.resize(message.len() + usize::from(padding), padding);
            prop_assert_eq!(padded.len() % 16, 0);
            prop_assert_eq!(unpadded(&padded), Some(message.len()));
        }

        #[test]
        fn one_padded_text_has_one_plaintext(padded in proptest::collection::vec(0u8..=17, 0..=64)) {
            if let Some(length) = unpadded(&padded) {
                let mut again = padded[..length].to_vec();
                again.resize(padded.len(), padding(length));
                prop_assert_eq!(again, padded);
            }
        }
    }
}
