//! AES-256 keys in software: XAES-256-GCM in a frame that commits to its key, whatever library
//! does XAES-256-GCM.
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

use hkdf::Hkdf;
use sha2::Sha256;
use subtle::{ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::{ProviderError, Symmetric, VersionName};
use crate::domain::algorithm::MAX_PLAINTEXT;
use crate::domain::frame::{HEAD, Suite};
use crate::domain::secret::{Material, Plaintext};

/// XAES-256-GCM under one key, by some library.
pub(super) trait Xaes: Send + Sync + Sized {
    /// Readies a key.
    fn new(key: &[u8; 32]) -> Option<Self>;

    /// A nonce from the library's random source.
    fn nonce() -> Result<[u8; NONCE], ProviderError>;

    /// Encrypts `body` in place, binding `bound`.
    fn seal(&self, nonce: &[u8; NONCE], bound: &[u8], body: &mut [u8]) -> Option<[u8; TAG]>;

    /// Decrypts `body` in place, if it and `bound` are what was sealed. Compares tags in constant
    /// time.
    fn open(
        &self,
        nonce: &[u8; NONCE],
        bound: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG],
    ) -> Option<()>;
}

/// The length of a nonce.
pub(super) const NONCE: usize = 24;

/// The length of a tag.
pub(super) const TAG: usize = 16;

/// An AES-256 key ready for use.
pub(super) struct Aes<C> {
    cipher: C,
    commitment: [u8; COMMITMENT],
}

impl<C: Xaes> Aes<C> {
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
            cipher: C::new(key)?,
            commitment: commitment.try_into().ok()?,
        })
    }

    fn encrypt_with(
        &self,
        nonce: &[u8; NONCE],
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
        // Room for everything at once: were the frame to move later, it would leave the plaintext
        // behind.
        let padding = padding(plaintext.len());
        let padded = plaintext.len() + usize::from(padding);
        frame.reserve_exact(COMMITMENT + NONCE + padded + TAG);
        frame.extend_from_slice(&self.commitment);
        frame.extend_from_slice(nonce);
        let start = frame.len();
        frame.extend_from_slice(plaintext);
        frame.resize(start + padded, padding);

        let sealed = frame
            .split_at_mut_checked(start)
            .and_then(|(before, body)| {
                joined([before, &[], aad], |bound| {
                    self.cipher.seal(nonce, bound, body)
                })
            });
        let Some(tag) = sealed else {
            frame.zeroize();
            return Err(ProviderError::TooLong);
        };
        frame.extend_from_slice(&tag);
        Ok(())
    }
}

impl<C: Xaes> Symmetric for Aes<C> {
    fn encrypt(
        &self,
        frame: &mut Vec<u8>,
        plaintext: &Plaintext,
        aad: &[u8],
    ) -> Result<(), ProviderError> {
        self.encrypt_with(&C::nonce()?, frame, plaintext, aad)
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
        let (ciphertext, tag) = ciphertext
            .split_last_chunk::<TAG>()
            .ok_or(ProviderError::Rejected)?;
        if !bool::from(commitment.ct_eq(&self.commitment)) {
            return Err(ProviderError::Rejected);
        }
        let mut plaintext = Zeroizing::new(ciphertext.to_vec());
        joined([head, bound, aad], |bound| {
            self.cipher.open(nonce, bound, &mut plaintext, tag)
        })
        .ok_or(ProviderError::Rejected)?;
        let length = unpadded(&plaintext).ok_or(ProviderError::Rejected)?;
        plaintext.truncate(length);
        Ok(Plaintext::new(std::mem::take(&mut *plaintext)))
    }
}

const COMMITMENT: usize = 32;

/// Does `work` on the parts as one. The libraries take associated data in one piece; what fits the
/// stack is joined there, because an allocation costs a small message a tenth of its time.
fn joined<T>(parts: [&[u8]; 3], work: impl FnOnce(&[u8]) -> T) -> T {
    let length = parts.iter().map(|part| part.len()).sum();
    let (mut short, mut long) = ([0; 256], Vec::new());
    let whole = match short.get_mut(..length) {
        Some(whole) => whole,
        None => {
            long.resize(length, 0);
            &mut long
        }
    };
    let mut rest = &mut *whole;
    for part in parts {
        let (to, after) = rest.split_at_mut(part.len());
        to.copy_from_slice(part);
        rest = after;
    }
    work(whole)
}

/// The byte that pads `length` bytes to a multiple of 16, as often as it says: 1 to 16 (PKCS#7, RFC
/// 5652, section 6.3).
const fn padding(length: usize) -> u8 {
    let [low, ..] = length.to_le_bytes();
    16 - low % 16
}

/// The length of what was padded, which was 1 to 4096 bytes.
///
/// Bad padding is behind a tag that was right, so only who has the key can bring it here. It is still
/// looked at in a time that depends on nothing but the length, which everybody sees.
fn unpadded(padded: &[u8]) -> Option<usize> {
    let (before, block) = padded.split_last_chunk::<16>()?;
    if !before.len().is_multiple_of(16) {
        return None;
    }
    // So much that no more than the longest message is left, and that something is.
    let least = u8::try_from(padded.len().saturating_sub(MAX_PLAINTEXT).max(1)).ok()?;
    let most = if before.is_empty() { 15 } else { 16 };
    let [.., padding] = *block;
    let mut good = !padding.ct_lt(&least) & !padding.ct_gt(&most);
    for (distance, byte) in (1u8..).zip(block.iter().rev()) {
        good &= byte.ct_eq(&padding) | distance.ct_gt(&padding);
    }
    let length = padded.len().saturating_sub(usize::from(padding));
    bool::from(good).then_some(length)
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
