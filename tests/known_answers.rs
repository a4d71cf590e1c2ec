//! The primitives that we link give the answers that their specifications and Wycheproof publish.
//!
//! Both AES-GCMs are here, because no published vector can pass through a frame: it derives the key
//! that encrypts. What the providers make of the primitives is tested in `providers.rs`, against
//! OpenSSL, in `frame_vectors.rs`, and in `scenarios/wycheproof.rs`; the example of GM/T 0003.5 is
//! tested where SM2 is written.

use std::collections::BTreeMap;

use aes_gcm::Aes256Gcm;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, UnboundKey};
use hkdf::Hkdf;
use sha2::Sha256;
use wycheproof::TestResult;
use wycheproof::aead::{Test, TestName, TestSet};
use xaes_256_gcm::aead::{AeadInOut, KeyInit};
use xaes_256_gcm::{Key, Nonce, Xaes256Gcm};

mod xaes;

#[test]
fn aes_gcm_of_rustcrypto_agrees_with_wycheproof() {
    agrees_with_wycheproof(
        |key, nonce, aad, text| {
            let cipher = Aes256Gcm::new_from_slice(key).unwrap();
            let nonce = nonce.try_into().unwrap();
            let mut sealed = text.to_vec();
            let tag = cipher.encrypt_inout_detached(nonce, aad, sealed.as_mut_slice().into());
            sealed.extend_from_slice(&tag.unwrap());
            sealed
        },
        |key, nonce, aad, sealed| {
            let cipher = Aes256Gcm::new_from_slice(key).unwrap();
            let nonce = nonce.try_into().unwrap();
            let (text, tag) = sealed.split_last_chunk::<16>()?;
            let mut text = text.to_vec();
            let opened =
                cipher.decrypt_inout_detached(nonce, aad, text.as_mut_slice().into(), tag.into());
            opened.ok().map(|()| text)
        },
    );
}

#[test]
fn aes_gcm_of_aws_lc_agrees_with_wycheproof() {
    let new = |key: &[u8]| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let unique = |nonce: &[u8]| aws_lc_rs::aead::Nonce::try_assume_unique_for_key(nonce).unwrap();
    agrees_with_wycheproof(
        |key, nonce, aad, text| {
            let mut sealed = text.to_vec();
            let appended =
                new(key).seal_in_place_append_tag(unique(nonce), Aad::from(aad), &mut sealed);
            appended.unwrap();
            sealed
        },
        |key, nonce, aad, sealed| {
            let mut sealed = sealed.to_vec();
            let opened = new(key).open_in_place(unique(nonce), Aad::from(aad), &mut sealed);
            opened.ok().map(|text| text.to_vec())
        },
    );
}

/// Seals and opens every case of Wycheproof's AES-GCM that has the sizes that a frame uses.
///
/// `seal` takes key, nonce, associated data and plaintext, and gives ciphertext and tag; `open` is
/// its inverse.
fn agrees_with_wycheproof(
    seal: impl Fn(&[u8], &[u8], &[u8], &[u8]) -> Vec<u8>,
    open: impl Fn(&[u8], &[u8], &[u8], &[u8]) -> Option<Vec<u8>>,
) {
    let (mut valid, mut invalid, mut skipped) = (0, 0, BTreeMap::new());
    for group in TestSet::load(TestName::AesGcm).unwrap().test_groups {
        let reason = match (group.key_size, group.nonce_size, group.tag_size) {
            (256, 96, 128) => None,
            (256, _, _) => Some("a nonce of other than 96 bits"),
            _ => Some("a key of other than 256 bits"),
        };
        for test in group.tests {
            if let Some(reason) = reason {
                *skipped.entry(reason).or_insert(0) += 1;
                continue;
            }
            let Test {
                key,
                nonce,
                aad,
                pt,
                ..
            } = &test;
            let published = [&test.ct[..], &test.tag].concat();
            let sealed = seal(key, nonce, aad, pt);
            let opened = open(key, nonce, aad, &published);
            if test.result == TestResult::Valid {
                assert_eq!(sealed, published, "{}", test.tc_id);
                assert_eq!(opened.as_deref(), Some(&pt[..]), "{}", test.tc_id);
                valid += 1;
            } else {
                assert_eq!(opened, None, "{}: {}", test.tc_id, test.comment);
                invalid += 1;
            }
        }
    }
    eprintln!("AES-GCM: {valid} valid, {invalid} invalid, skipped: {skipped:?}");
    assert_eq!((valid, invalid), (39, 27));
    let expected = [
        ("a key of other than 256 bits", 211),
        ("a nonce of other than 96 bits", 39),
    ];
    assert_eq!(skipped, BTreeMap::from(expected));
}

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

/// The hash of the first million is published too: `examples/xaes_million.rs`.
#[test]
fn xaes_gives_the_published_hash_of_ten_thousand_ciphertexts() {
    let [(count, published), _] = xaes::PUBLISHED;
    assert_eq!(xaes::accumulate(count, seal), published);
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
