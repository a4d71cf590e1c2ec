//! SM2 by lines, for another implementation to compare itself with.
//!
//! Reads from standard input and answers each line with one, everything in hexadecimal, or with `-`
//! if it was refused:
//!
//! ```text
//! key PKCS8          uses this key from now on
//! encrypt PLAINTEXT  the ciphertext in DER
//! decrypt DER        the plaintext
//! crate-encrypt …    the same by the crate `sm2` itself
//! crate-decrypt …
//! rate-encrypt …     and so on: how often a second it can be done, in decimal
//! ```
//!
//! The key goes through the same seam as the service's own: it is sealed, opened, and only then
//! used.

use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use getrandom::SysRng;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{KeyPair, OpenKey, Provider, VersionName};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};
use sm2::SecretKey;
use sm2::pkcs8::DecodePrivateKey;
use sm2::pke::DecryptingKey;

fn main() -> Result<(), Box<dyn Error>> {
    let mut key = None;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (verb, input) = line.split_once(' ').ok_or("no argument")?;
        let input = bytes(input)?;
        let answer = match verb.strip_prefix("rate-") {
            Some(verb) => rate(|| work(&key, verb, &input))?,
            None if verb == "key" => {
                key = Some(open(&input)?);
                String::new()
            }
            None => work(&key, verb, &input)?.map_or_else(|| "-".to_owned(), |it| hex(&it)),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// Does what the verb says; none if it was refused.
fn work(key: &Option<Key>, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>, Box<dyn Error>> {
    let (ours, theirs) = key.as_ref().ok_or("no key")?;
    Ok(match verb {
        "encrypt" => ours.encrypt(&Plaintext::new(input.to_vec())).ok(),
        "decrypt" => ours.decrypt(input).ok().map(|it| it.expose().to_vec()),
        "crate-encrypt" => {
            let key = theirs.encrypting_key();
            key.encrypt_der(&mut SysRng, input).ok()
        }
        "crate-decrypt" => theirs.decrypt_der(input).ok(),
        _ => return Err("an unknown verb".into()),
    })
}

/// How often a second it can be done.
fn rate<T>(mut work: impl FnMut() -> Result<T, Box<dyn Error>>) -> Result<String, Box<dyn Error>> {
    let (began, mut calls) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(200) {
        black_box(work()?);
        calls += 1;
    }
    let rate = f64::from(calls) / began.elapsed().as_secs_f64();
    Ok(format!("{rate:.0}"))
}

/// A key in our hands, and in the crate's.
type Key = (Box<dyn KeyPair>, DecryptingKey);

fn open(pkcs8: &[u8]) -> Result<Key, Box<dyn Error>> {
    let name = VersionName {
        project: "53d1aefc533f4ce9a59c26b01667cbcf".parse()?,
        key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse()?,
        version: KeyVersion::FIRST,
        spec: KeySpec::Sm2,
    };
    let provider = RustCrypto::new(Arc::new(RootKey::generate()?));
    let sealed = provider.seal(&name, &Material::new(pkcs8.to_vec()))?;
    let OpenKey::Pair(ours) = provider.open(&name, &sealed)? else {
        return Err("a symmetric key".into());
    };
    let theirs = DecryptingKey::new(SecretKey::from_pkcs8_der(pkcs8)?);
    Ok((ours, theirs))
}

fn bytes(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| {
        [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ]
    });
    digits.map(char::from).collect()
}
