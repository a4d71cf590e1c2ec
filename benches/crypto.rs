//! What cryptography costs, without a network or a store around it.
//!
//! `cargo bench --bench crypto`; `cargo bench --bench crypto -- AES` for a part.

use std::hint::black_box;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{KeyPair, OpenKey, Provider, SealedKey, Symmetric, VersionName};
use kmsgate::domain::frame::{Head, Suite};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};

criterion_group!(benches, frame, aes, rsa, sm2, open);
criterion_main!(benches);

fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    group.bench_function("write", |b| b.iter(|| black_box(head()).to_bytes()));
    let frame = encrypted(&*symmetric(), 4096);
    group.bench_function("parse", |b| b.iter(|| Head::parse(black_box(&frame))));
    group.finish();
}

fn aes(c: &mut Criterion) {
    let key = symmetric();
    for (direction, encrypts) in [("encrypt", true), ("decrypt", false)] {
        let mut group = c.benchmark_group(format!("AES_256/{direction}"));
        for (name, length) in [("32 B", 32), ("1 KiB", 1024), ("4 KiB", 4096)] {
            group.throughput(Throughput::Bytes(length as u64));
            let plaintext = Plaintext::new(vec![7; length]);
            let frame = encrypted(&*key, length);
            let (head, body) = frame.split_first_chunk().unwrap();
            group.bench_function(name, |b| {
                if encrypts {
                    let new = || head.to_vec();
                    let work = |mut frame: Vec<u8>| {
                        key.encrypt(&mut frame, &plaintext, b"tenant=7").unwrap();
                        frame
                    };
                    b.iter_batched(new, work, BatchSize::SmallInput);
                } else {
                    b.iter(|| key.decrypt(head, black_box(body), b"tenant=7").unwrap());
                }
            });
        }
        group.finish();
    }
}

fn rsa(c: &mut Criterion) {
    for spec in [KeySpec::Rsa2048, KeySpec::Rsa3072, KeySpec::Rsa4096] {
        both_ways(c, spec, &[("32 B", 32)]);
    }
}

fn sm2(c: &mut Criterion) {
    both_ways(c, KeySpec::Sm2, &[("32 B", 32), ("4 KiB", 4096)]);
}

/// What a key costs that is not in memory yet.
fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    let provider = provider();
    for &spec in KeySpec::ALL {
        let name = name(spec);
        let sealed = sealed(&provider, spec);
        group.bench_function(spec.name(), |b| {
            b.iter(|| provider.open(&name, black_box(&sealed)).unwrap());
        });
    }
    group.finish();
}

fn both_ways(c: &mut Criterion, spec: KeySpec, lengths: &[(&str, usize)]) {
    let pair = pair(spec);
    for &(name, length) in lengths {
        let plaintext = Plaintext::new(vec![7; length]);
        let ciphertext = pair.encrypt(&plaintext).unwrap();
        c.bench_function(&format!("{}/encrypt/{name}", spec.name()), |b| {
            b.iter(|| pair.encrypt(black_box(&plaintext)).unwrap());
        });
        c.bench_function(&format!("{}/decrypt/{name}", spec.name()), |b| {
            b.iter(|| pair.decrypt(black_box(&ciphertext)).unwrap());
        });
    }
}

fn head() -> Head {
    Head {
        suite: Suite::Xaes256Gcm,
        has_aad: true,
        version: KeyVersion::FIRST,
        key_id: name(KeySpec::Aes256).key_id,
    }
}

fn encrypted(key: &dyn Symmetric, length: usize) -> Vec<u8> {
    let mut frame = head().to_bytes().to_vec();
    let plaintext = Plaintext::new(vec![7; length]);
    key.encrypt(&mut frame, &plaintext, b"tenant=7").unwrap();
    frame
}

fn symmetric() -> Box<dyn Symmetric> {
    let provider = provider();
    let sealed = sealed(&provider, KeySpec::Aes256);
    match provider.open(&name(KeySpec::Aes256), &sealed).unwrap() {
        OpenKey::Symmetric(key) => key,
        OpenKey::Pair(_) => panic!("a pair"),
    }
}

fn pair(spec: KeySpec) -> Box<dyn KeyPair> {
    let provider = provider();
    let sealed = sealed(&provider, spec);
    match provider.open(&name(spec), &sealed).unwrap() {
        OpenKey::Pair(pair) => pair,
        OpenKey::Symmetric(_) => panic!("not a pair"),
    }
}

/// A fixed key: making a large one takes seconds.
fn sealed(provider: &RustCrypto, spec: KeySpec) -> SealedKey {
    let pem = match spec {
        KeySpec::Aes256 => return provider.generate(&name(spec)).unwrap(),
        KeySpec::Rsa2048 => include_str!("../tests/vectors/rsa_2048.pem"),
        KeySpec::Rsa3072 => include_str!("../tests/vectors/rsa_3072.pem"),
        KeySpec::Rsa4096 => include_str!("../tests/vectors/rsa_4096.pem"),
        KeySpec::Sm2 => include_str!("../tests/vectors/sm2.pem"),
    };
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let material = Material::new(BASE64_STANDARD.decode(base64).unwrap());
    provider.seal(&name(spec), &material).unwrap()
}

fn provider() -> RustCrypto {
    RustCrypto::new(Arc::new(RootKey::generate().unwrap()))
}

fn name(spec: KeySpec) -> VersionName {
    VersionName {
        project: "project".parse().unwrap(),
        key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse().unwrap(),
        version: KeyVersion::FIRST,
        spec,
    }
}
