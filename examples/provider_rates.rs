//! How often a second the provider on AWS-LC does its work, on one thread, for another implementation
//! to compare itself with.
//!
//! Reads lines `SPEC DIRECTION BYTES`, such as `RSA_2048 decrypt 32`, from standard input, and
//! answers each with a rate, measured for a second through the same seam as the service's own work.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::{OpenKey, Provider, VersionName};
use kmsgate::domain::frame::{HEAD, Head, Suite};
use kmsgate::domain::key::KeyVersion;
use kmsgate::domain::secret::Plaintext;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let provider = AwsLc::new(Arc::new(RootKey::generate()?));
    let mut keys = HashMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [spec, direction, length] = words[..] else {
            return Err("SPEC DIRECTION BYTES".into());
        };
        let name = VersionName {
            project: "53d1aefc533f4ce9a59c26b01667cbcf".parse()?,
            key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse()?,
            version: KeyVersion::FIRST,
            spec: spec.parse().map_err(|_| "no such spec")?,
        };
        let key = match keys.entry(name.spec) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => {
                let sealed = provider.generate(&name)?;
                place.insert(provider.open(&name, &sealed)?)
            }
        };
        let plaintext = Plaintext::new(vec![b'a'; length.parse()?]);
        let rate = match (&*key, direction) {
            (OpenKey::Pair(pair), "encrypt") => rate(|| Ok(pair.encrypt(&plaintext)?))?,
            (OpenKey::Pair(pair), "decrypt") => {
                let ciphertext = pair.encrypt(&plaintext)?;
                rate(|| Ok(pair.decrypt(&ciphertext)?))?
            }
            (OpenKey::Symmetric(key), "encrypt") => {
                let head = head(&name);
                rate(|| {
                    let mut frame = head.to_vec();
                    Ok(key.encrypt(&mut frame, &plaintext, b"").map(|()| frame)?)
                })?
            }
            (OpenKey::Symmetric(key), "decrypt") => {
                let head = head(&name);
                let mut frame = head.to_vec();
                key.encrypt(&mut frame, &plaintext, b"")?;
                rate(|| Ok(key.decrypt(&head, &frame[HEAD..], b"")?))?
            }
            _ => return Err("no such direction".into()),
        };
        writeln!(out, "{rate:.0}")?;
        out.flush()?;
    }
    Ok(())
}

fn head(name: &VersionName) -> [u8; HEAD] {
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: false,
        version: name.version,
        key_id: name.key_id,
    };
    head.to_bytes()
}

/// How often a second it can be done.
fn rate<T>(mut work: impl FnMut() -> Outcome<T>) -> Outcome<f64> {
    let (began, mut calls) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(1) {
        black_box(work()?);
        calls += 1;
    }
    Ok(f64::from(calls) / began.elapsed().as_secs_f64())
}
