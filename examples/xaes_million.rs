//! Seals the million messages of <https://c2sp.org/XAES-256-GCM> and compares their hash with the
//! published one.
//!
//! `cargo run --release --example xaes_million`: unoptimised, as tests are built, it would take
//! minutes. `tests/known_answers.rs` has the first ten thousand.

use std::process::ExitCode;

use xaes_256_gcm::aead::{AeadInOut, KeyInit};
use xaes_256_gcm::{Key, Nonce, Xaes256Gcm};

#[path = "../tests/xaes/mod.rs"]
mod xaes;

fn main() -> ExitCode {
    let mut right = true;
    for (count, published) in xaes::PUBLISHED {
        let hash = xaes::accumulate(count, |key, nonce, plaintext, aad| {
            let cipher = Xaes256Gcm::new(<&Key>::from(key));
            let mut sealed = plaintext.to_vec();
            let text = sealed.as_mut_slice().into();
            let tag = cipher.encrypt_inout_detached(&Nonce::from(*nonce), aad, text);
            sealed.extend_from_slice(&tag.expect("fewer than 256 bytes"));
            sealed
        });
        right &= hash == published;
        eprintln!("XAES-256-GCM, {count} ciphertexts: {hash}, published: {published}");
    }
    if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
