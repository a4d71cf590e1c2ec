//! SM2 beside the crate `sm2`'s own calls, which do the same with its general multiplication.
//!
//! `cargo bench --bench sm2`.

#![allow(clippy::print_stdout, reason = "a benchmark's output")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use getrandom::SysRng;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{KeyPair, OpenKey, Provider, VersionName};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};
use sm2::SecretKey;
use sm2::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use sm2::pke::DecryptingKey;

mod pairs;

fn main() {
    let key = SecretKey::from_pkcs8_pem(include_str!("../tests/vectors/sm2.pem")).unwrap();
    let theirs = DecryptingKey::new(key.clone());
    let material = key.to_pkcs8_der().unwrap().as_bytes().to_vec();

    pairs::table("sm2 crate", "ours");
    for length in [32, 4096] {
        let message = vec![7; length];
        let plaintext = Plaintext::new(message.clone());
        let ours = open(material.clone());
        pairs::row(
            &format!("encrypt {length} B"),
            || {
                let key = theirs.encrypting_key();
                key.encrypt_der(&mut SysRng, black_box(&message)).unwrap()
            },
            || ours.encrypt(black_box(&plaintext)).unwrap(),
        );
        let ciphertext = ours.encrypt(&plaintext).unwrap();
        pairs::row(
            &format!("decrypt {length} B"),
            || theirs.decrypt_der(black_box(&ciphertext)).unwrap(),
            || ours.decrypt(black_box(&ciphertext)).unwrap(),
        );
    }

    let plaintext = Plaintext::new(vec![7; 32]);
    let mut firsts: Vec<Duration> = (0..pairs::PAIRS)
        .map(|_| {
            let key = open(material.clone());
            let began = Instant::now();
            black_box(key.encrypt(&plaintext).unwrap());
            began.elapsed()
        })
        .collect();
    firsts.sort();
    println!(
        "the first encryption under a key: {:?}",
        firsts[pairs::PAIRS / 2]
    );
}

fn open(material: Vec<u8>) -> Box<dyn KeyPair> {
    let provider = RustCrypto::new(Arc::new(RootKey::generate().unwrap()));
    let name = VersionName {
        project: "project".parse().unwrap(),
        key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse().unwrap(),
        version: KeyVersion::FIRST,
        spec: KeySpec::Sm2,
    };
    let sealed = provider.seal(&name, &Material::new(material)).unwrap();
    match provider.open(&name, &sealed).unwrap() {
        OpenKey::Pair(pair) => pair,
        OpenKey::Symmetric(_) => panic!("not a pair"),
    }
}
