//! SM2 beside the crate `sm2`'s own calls, which do the same with its general multiplication.
//!
//! `cargo bench --bench sm2`. Each row is measured in pairs, one right after the other, the order
//! changing from pair to pair, so that the ratio does not depend on what else the machine does.

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

const PAIRS: usize = 15;
const TURN: Duration = Duration::from_millis(100);

fn main() {
    let key = SecretKey::from_pkcs8_pem(include_str!("../tests/vectors/sm2.pem")).unwrap();
    let theirs = DecryptingKey::new(key.clone());
    let material = key.to_pkcs8_der().unwrap().as_bytes().to_vec();

    println!("median of {PAIRS} pairs        sm2 crate       ours   ratio (least, most)");
    for length in [32, 4096] {
        let message = vec![7; length];
        let plaintext = Plaintext::new(message.clone());
        let ours = open(material.clone());
        row(
            &format!("encrypt {length} B"),
            || {
                let key = theirs.encrypting_key();
                key.encrypt_der(&mut SysRng, black_box(&message)).unwrap()
            },
            || ours.encrypt(black_box(&plaintext)).unwrap(),
        );
        let ciphertext = ours.encrypt(&plaintext).unwrap();
        row(
            &format!("decrypt {length} B"),
            || theirs.decrypt_der(black_box(&ciphertext)).unwrap(),
            || ours.decrypt(black_box(&ciphertext)).unwrap(),
        );
    }

    let plaintext = Plaintext::new(vec![7; 32]);
    let mut firsts: Vec<Duration> = (0..PAIRS)
        .map(|_| {
            let key = open(material.clone());
            let began = Instant::now();
            black_box(key.encrypt(&plaintext).unwrap());
            began.elapsed()
        })
        .collect();
    firsts.sort();
    println!("the first encryption under a key: {:?}", firsts[PAIRS / 2]);
}

fn row<T, U>(name: &str, mut theirs: impl FnMut() -> T, mut ours: impl FnMut() -> U) {
    let mut pairs: Vec<(f64, f64)> = (0..PAIRS)
        .map(|pair| {
            if pair % 2 == 0 {
                let baseline = rate(&mut theirs);
                (baseline, rate(&mut ours))
            } else {
                let subject = rate(&mut ours);
                (rate(&mut theirs), subject)
            }
        })
        .collect();
    let median = |of: fn(&(f64, f64)) -> f64, pairs: &mut Vec<(f64, f64)>| {
        pairs.sort_by(|a, b| of(a).total_cmp(&of(b)));
        of(&pairs[PAIRS / 2])
    };
    let baseline = median(|pair| pair.0, &mut pairs);
    let subject = median(|pair| pair.1, &mut pairs);
    let of = |pair: &(f64, f64)| pair.1 / pair.0;
    let ratio = median(of, &mut pairs);
    let (least, most) = (of(&pairs[0]), of(&pairs[PAIRS - 1]));
    println!("{name:<22} {baseline:>10.0}/s {subject:>8.0}/s   {ratio:.2} ({least:.2}, {most:.2})");
}

/// Calls a second, over one turn.
fn rate<T>(call: &mut impl FnMut() -> T) -> f64 {
    let began = Instant::now();
    let mut calls = 0;
    while began.elapsed() < TURN {
        black_box(call());
        calls += 1;
    }
    f64::from(calls) / began.elapsed().as_secs_f64()
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
