//! Blocks that are nearly those of RSAES-OAEP, and encrypted all the same.

use rsa::BoxedUint;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256};

/// An encoded message of RSAES-OAEP with SHA-256 and the empty label, for a modulus of 2048 bits.
pub(crate) struct Block {
    pub(crate) first: u8,
    /// The hash of the label, zeros, 1, the message.
    pub(crate) data: [u8; 223],
}

impl Block {
    pub(crate) fn new() -> Self {
        let mut data = [0; 223];
        data[..32].copy_from_slice(&Sha256::digest(b""));
        data[190] = 1;
        getrandom::fill(&mut data[191..]).unwrap();
        Self { first: 0, data }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let mut data = self.data;
        mask(&mut data, &seed);
        mask(&mut seed, &data);
        [&[self.first][..], &seed, &data].concat()
    }
}

/// Adds MGF1 of `seed` (RFC 8017, appendix B.2.1).
fn mask(data: &mut [u8], seed: &[u8]) {
    for (counter, chunk) in (0_u32..).zip(data.chunks_mut(32)) {
        let stream = Sha256::new_with_prefix(seed)
            .chain_update(counter.to_be_bytes())
            .finalize();
        chunk
            .iter_mut()
            .zip(stream)
            .for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// The block to the power of 65537.
pub(crate) fn raw_encrypt(key: &rsa::PublicKey, block: &[u8]) -> Vec<u8> {
    let number = BoxedUint::from_be_slice(block, key.n().bits_precision()).unwrap();
    let power = (0..16).fold(number.clone(), |power, _| power.mul_mod(&power, key.n()));
    power.mul_mod(&number, key.n()).to_be_bytes().into()
}
