//! SM2 ciphertexts. Every one that is read is written again as it was, so that each has one
//! encoding; what was encrypted comes back, and with any byte changed does not.
#![no_main]

use std::sync::LazyLock;

use kmsgate::crypto::rustcrypto::sm2_rewritten;
use kmsgate::crypto::{KeyPair, ProviderError};
use kmsgate::domain::key::KeySpec;
use kmsgate::domain::secret::Plaintext;
use kmsgate_fuzz::{SM2, byte, pairs};
use libfuzzer_sys::fuzz_target;

static PAIRS: LazyLock<Vec<Box<dyn KeyPair>>> = LazyLock::new(|| pairs(KeySpec::Sm2, SM2));

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    match byte(&mut rest) {
        0 => read(rest),
        place => written(place, rest),
    }
});

fn read(der: &[u8]) {
    if let Some(rewritten) = sm2_rewritten(der) {
        assert_eq!(rewritten, der);
    }
    for pair in &*PAIRS {
        match pair.decrypt(der) {
            Ok(plaintext) => assert!((1..=4096).contains(&plaintext.expose().len())),
            Err(error) => assert!(matches!(error, ProviderError::Rejected), "{error}"),
        }
    }
}

fn written(place: u8, plaintext: &[u8]) {
    let secret = Plaintext::new(plaintext.to_vec());
    for one in &*PAIRS {
        let encrypted = one.encrypt(&secret);
        let fits = (1..=4096).contains(&plaintext.len());
        assert_eq!(encrypted.is_ok(), fits, "{} bytes", plaintext.len());
        let Ok(ciphertext) = encrypted else { return };
        assert_eq!(sm2_rewritten(&ciphertext), Some(ciphertext.clone()));
        for other in &*PAIRS {
            let opened = other.decrypt(&ciphertext).unwrap();
            assert_eq!(opened.expose(), plaintext);
            let mut changed = ciphertext.clone();
            let at = usize::from(place) * ciphertext.len() / 256;
            changed[at] ^= place;
            let refused = other.decrypt(&changed);
            assert!(matches!(refused, Err(ProviderError::Rejected)), "byte {at}");
        }
    }
}
