//! Encrypts random plaintexts under a given private key, for another implementation to decrypt.
//!
//! ```text
//! encrypt_cases SPEC KEY COUNT
//! ```
//!
//! `SPEC` is a key spec such as `RSA_3072` or `SM2`, and `KEY` a file with such a key in PKCS#8
//! DER. The key goes through the same seam as the service's own: it is sealed, opened, and only
//! then used. Each line written is a plaintext and its ciphertext in hexadecimal. The first two
//! plaintexts have the least and the greatest length that the key takes, the others any between.

use std::env;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::sync::Arc;

use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{OpenKey, Provider, VersionName};
use kmsgate::domain::key::{KeyId, KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [spec, key, count] = arguments.as_slice() else {
        return Err("usage: encrypt_cases SPEC KEY COUNT".into());
    };
    let name = VersionName {
        project: "53d1aefc533f4ce9a59c26b01667cbcf".parse()?,
        key_id: KeyId::from_random(random()?),
        version: KeyVersion::FIRST,
        spec: spec.parse()?,
    };
    let provider = RustCrypto::new(Arc::new(RootKey::generate()?));
    let sealed = provider.seal(&name, &Material::new(fs::read(key)?))?;
    let OpenKey::Pair(pair) = provider.open(&name, &sealed)? else {
        return Err("a symmetric key has no other implementation to decrypt it".into());
    };

    let mut out = std::io::stdout().lock();
    for case in 0..count.parse()? {
        let mut plaintext = vec![0; length(case, name.spec)?];
        getrandom::fill(&mut plaintext)?;
        let line = hex(&plaintext);
        let ciphertext = pair.encrypt(&Plaintext::new(plaintext))?;
        writeln!(out, "{line} {}", hex(&ciphertext))?;
    }
    Ok(())
}

/// How long the plaintext of a case is.
fn length(case: usize, spec: KeySpec) -> Result<usize, getrandom::Error> {
    Ok(match case {
        0 => 1,
        1 => spec.max_plaintext(),
        _ => usize::from_le_bytes(random()?) % spec.max_plaintext() + 1,
    })
}

fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
