//! RSA ciphertexts. The input is what stands under the encryption, the padded block of RFC 8017,
//! section 7.1.1, so that fuzzing reaches every branch of the unpadding. Whether it opens, and to
//! what, is decided a second time here, from the standard; every provider must agree. A block whose
//! first octet is not zero may open or not: only who knows the plaintext can make one.
#![no_main]

use std::sync::LazyLock;

use kmsgate::crypto::{KeyPair, ProviderError};
use kmsgate::domain::key::KeySpec;
use kmsgate_fuzz::{RSA_2048, byte, pairs};
use libfuzzer_sys::fuzz_target;
use rsa::hazmat::rsa_encrypt;
use rsa::pkcs8::DecodePublicKey;
use rsa::{BoxedUint, PublicKey};
use sha2::{Digest, Sha256};

static PAIRS: LazyLock<Vec<Box<dyn KeyPair>>> = LazyLock::new(|| pairs(KeySpec::Rsa2048, RSA_2048));
static PUBLIC: LazyLock<PublicKey> =
    LazyLock::new(|| PublicKey::from_public_key_der(PAIRS[0].public_key()).unwrap());

const BLOCK: usize = 256;
const HASH: usize = 32;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    match byte(&mut rest) {
        // The bytes of a ciphertext, as they may come from the network.
        0 => agree(rest, None),
        kind => {
            let (block, message) = block(kind, rest);
            let number = BoxedUint::from_be_slice(&block, 2048).unwrap();
            let encrypted = rsa_encrypt(&*PUBLIC, &number).unwrap();
            agree(&encrypted.to_be_bytes(), Some((block[0] == 0, message)));
        }
    }
});

/// Decrypts with every provider, and holds them to each other and to what is expected: whether the
/// first octet is right, and the message, if there is one.
fn agree(ciphertext: &[u8], expected: Option<(bool, Option<Vec<u8>>)>) {
    let open = |pair: &dyn KeyPair| match pair.decrypt(ciphertext) {
        Ok(plaintext) => Some(plaintext.expose().to_vec()),
        Err(ProviderError::Rejected) => None,
        Err(error) => panic!("{error}"),
    };
    let opened: Vec<_> = PAIRS.iter().map(|pair| open(&**pair)).collect();
    match expected {
        Some((true, message)) => assert!(opened.iter().all(|one| *one == message)),
        Some((false, message)) => {
            assert!(opened.iter().all(|one| one.is_none() || *one == message));
        }
        None => assert!(opened.iter().all(|one| *one == opened[0])),
    }
}

/// A block, and the message that it pads, if it does.
fn block(kind: u8, data: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut rest = data;
    let first = if kind & 1 == 0 {
        0
    } else {
        byte(&mut rest) & 0x7f
    };
    let mut inner = Vec::new();
    if kind & 2 == 0 {
        inner.extend(Sha256::digest(b""));
    }
    if kind & 4 != 0 {
        // Zeros are dear to a fuzzer.
        inner.resize(inner.len() + usize::from(byte(&mut rest)), 0);
    }
    let mut seed = [0; HASH];
    for byte in &mut seed {
        *byte = kmsgate_fuzz::byte(&mut rest);
    }
    inner.extend(rest);
    inner.resize(BLOCK - HASH - 1, 0);
    let message = message(&inner).map(<[u8]>::to_vec);

    mask(&seed, &mut inner);
    mask(&inner, &mut seed);
    ([&[first][..], &seed, &inner].concat(), message)
}

/// What an unmasked data block holds.
fn message(block: &[u8]) -> Option<&[u8]> {
    let after_hash = block.strip_prefix(&Sha256::digest(b"")[..])?;
    let end = after_hash.iter().position(|byte| *byte != 0)?;
    after_hash[end..].strip_prefix(&[1])
}

/// Combines `to` with MGF1-SHA-256 of `seed`.
fn mask(seed: &[u8], to: &mut [u8]) {
    for (counter, chunk) in (0u32..).zip(to.chunks_mut(HASH)) {
        let hash = Sha256::new()
            .chain_update(seed)
            .chain_update(counter.to_be_bytes());
        for (byte, mask) in chunk.iter_mut().zip(hash.finalize()) {
            *byte ^= mask;
        }
    }
}
