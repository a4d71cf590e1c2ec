//! The primitives that we link give the answers that their specifications publish.
//!
//! What the providers make of them is tested in `providers.rs`, against OpenSSL and Wycheproof, and
//! in `frame_vectors.rs`; the example of GM/T 0003.5 is tested where SM2 is written.

use hkdf::Hkdf;
use sha2::Sha256;
use shake::Shake128;
use shake::digest::{ExtendableOutput, Update, XofReader};
use xaes_256_gcm::aead::{AeadInOut, KeyInit};
use xaes_256_gcm::{Key, Nonce, Xaes256Gcm};

/// <https://c2sp.org/XAES-256-GCM>, test vectors: the most significant bit of L is 0, then 1.
#[test]
fn xaes_gives_the_published_ciphertexts() {
    for (key, aad, expected) in [
        (
            1,
            &b""[..],
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271",
        ),
        (
            3,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ] {
        let sealed = seal(
            &[key; 32],
            b"ABCDEFGHIJKLMNOPQRSTUVWX",
            b"XAES-256-GCM",
            aad,
        );
        assert_eq!(hex(&sealed), expected);
    }
}

/// <https://c2sp.org/XAES-256-GCM>, accumulated randomized tests: keys, nonces, plaintexts and
/// associated data are drawn from SHAKE128 of nothing, and the hash is over all ciphertexts.
#[test]
fn xaes_gives_the_published_hash_of_ten_thousand_ciphertexts() {
    let mut drawn = Shake128::default().finalize_xof();
    let mut all = Shake128::default();
    for _ in 0..10_000 {
        let key: [u8; 32] = draw(&mut drawn);
        let nonce: [u8; 24] = draw(&mut drawn);
        let plaintext = draw_some(&mut drawn);
        let aad = draw_some(&mut drawn);
        all.update(&seal(&key, &nonce, &plaintext, &aad));
    }
    let hash: [u8; 32] = draw(&mut all.finalize_xof());
    assert_eq!(
        hex(&hash),
        "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
    );
}

/// RFC 5869, appendix A.3: SHA-256, with neither salt nor info.
#[test]
fn hkdf_gives_the_published_key() {
    let mut key = [0; 42];
    let hkdf = Hkdf::<Sha256>::new(None, &[0x0b; 22]);
    hkdf.expand(b"", &mut key).unwrap();
    assert_eq!(
        hex(&key),
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    );
}

fn seal(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    let cipher = Xaes256Gcm::new(<&Key>::from(key));
    let nonce = Nonce::from(*nonce);
    let mut text = plaintext.to_vec();
    let tag = cipher.encrypt_inout_detached(&nonce, aad, text.as_mut_slice().into());
    let tag = tag.unwrap();
    let sealed = [&text[..], &tag].concat();

    let opened = cipher.decrypt_inout_detached(&nonce, aad, text.as_mut_slice().into(), &tag);
    opened.unwrap();
    assert_eq!(text, plaintext);
    sealed
}

fn draw<const N: usize>(from: &mut impl XofReader) -> [u8; N] {
    let mut bytes = [0; N];
    from.read(&mut bytes);
    bytes
}

/// As many bytes as the next one says.
fn draw_some(from: &mut impl XofReader) -> Vec<u8> {
    let [length] = draw(from);
    let mut bytes = vec![0; length.into()];
    from.read(&mut bytes);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
