//! AES-256: XAES-256-GCM on AWS-LC's block cipher and its AES-GCM.
//!
//! A message's key is NIST SP 800-108r1's KDF in counter mode with CMAC, for which two blocks are
//! encrypted (<https://c2sp.org/XAES-256-GCM>):
//!
//! ```text
//! L = AES-256(K, 0)       K1 = L · x in GF(2^128), as CMAC's (NIST SP 800-38B, section 6.1)
//! Kx = AES-256(K, K1 ⊕ (0 1 "X" 0 ‖ N[..12])) ‖ AES-256(K, K1 ⊕ (0 2 "X" 0 ‖ N[..12]))
//! ciphertext ‖ tag = AES-256-GCM(Kx, nonce = N[12..])
//! ```

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::crypto::ProviderError;
use crate::crypto::aes::{NONCE, TAG, Xaes};
use crate::crypto::aws_lc::unavailable;
use crate::domain::secret::Material;

/// Fresh material.
pub(super) fn generate() -> Result<Material, ProviderError> {
    let mut key = Zeroizing::new(vec![0; 32]);
    rand::fill(&mut key).map_err(unavailable)?;
    Ok(Material::new(std::mem::take(&mut *key)))
}

/// XAES-256-GCM under one key.
pub(super) struct Xaes256 {
    block_cipher: EncryptingKey,
    k1: Zeroizing<[u8; BLOCK]>,
}

impl Xaes256 {
    /// The message's AES-256-GCM key, and the rest of the nonce.
    fn derive(&self, nonce: &[u8; NONCE]) -> Option<(LessSafeKey, Nonce)> {
        let (first, second) = nonce.split_first_chunk::<12>()?;
        let mut blocks = Zeroizing::new([0; 2 * BLOCK]);
        for (counter, block) in (1..).zip(blocks.chunks_exact_mut(BLOCK)) {
            let input = [0, counter, b'X', 0].into_iter().chain(*first);
            for ((to, k1), byte) in block.iter_mut().zip(&*self.k1).zip(input) {
                *to = k1 ^ byte;
            }
        }
        // Blocks that are encrypted each on its own are a mode named ECB.
        self.block_cipher.encrypt(blocks.as_mut_slice()).ok()?;
        let key = UnboundKey::new(&AES_256_GCM, blocks.as_slice()).ok()?;
        let nonce = Nonce::try_assume_unique_for_key(second).ok()?;
        Some((LessSafeKey::new(key), nonce))
    }
}

impl Xaes for Xaes256 {
    fn new(key: &[u8; 32]) -> Option<Self> {
        let key = UnboundCipherKey::new(&AES_256, key).ok()?;
        let block_cipher = EncryptingKey::ecb(key).ok()?;
        let mut l = Zeroizing::new([0; BLOCK]);
        block_cipher.encrypt(l.as_mut_slice()).ok()?;
        Some(Self {
            block_cipher,
            k1: Zeroizing::new(doubled(u128::from_be_bytes(*l)).to_be_bytes()),
        })
    }

    fn nonce() -> Result<[u8; NONCE], ProviderError> {
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).map_err(unavailable)?;
        Ok(nonce)
    }

    fn seal(&self, nonce: &[u8; NONCE], bound: &[u8], body: &mut [u8]) -> Option<[u8; TAG]> {
        let (key, nonce) = self.derive(nonce)?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(bound), body);
        tag.ok()?.as_ref().try_into().ok()
    }

    fn open(
        &self,
        nonce: &[u8; NONCE],
        bound: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG],
    ) -> Option<()> {
        let (key, nonce) = self.derive(nonce)?;
        let opened = key.open_in_place_separate_tag(nonce, Aad::from(bound), tag, body);
        opened.ok().map(drop)
    }
}

const BLOCK: usize = 16;

/// A secret element of GF(2^128) times x, in constant time: the reduction is by
/// x^128 + x^7 + x^2 + x + 1.
const fn doubled(element: u128) -> u128 {
    (element << 1) ^ ((element >> 127) * 0x87)
}

#[cfg(test)]
#[path = "../../../tests/xaes/mod.rs"]
mod xaes;

#[cfg(test)]
mod tests {
    use super::*;

    /// The subkeys of NIST SP 800-38B's example for AES-256: L, and K1 and K2, each the double of
    /// the one before.
    #[test]
    fn doubling_is_as_published() {
        let l = 0xe568_f681_94cf_76d6_174d_4cc0_4310_a854;
        let k1 = 0xcad1_ed03_299e_edac_2e9a_9980_8621_502f;
        let k2 = 0x95a3_da06_533d_db58_5d35_3301_0c42_a0d9;
        assert_eq!((doubled(l), doubled(k1)), (k1, k2));
    }

    #[test]
    fn ten_thousand_ciphertexts_are_as_published() {
        let [(count, published), _] = xaes::PUBLISHED;
        let seal = |key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8], aad: &[u8]| {
            let key = Xaes256::new(key).unwrap();
            let mut sealed = plaintext.to_vec();
            let tag = key.seal(nonce, aad, &mut sealed).unwrap();
            let mut opened = sealed.clone();
            key.open(nonce, aad, &mut opened, &tag).unwrap();
            assert_eq!(opened, plaintext);
            sealed.extend(tag);
            sealed
        };
        assert_eq!(xaes::accumulate(count, seal), published);
    }
}
