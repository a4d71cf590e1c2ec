//! The published frames open.
//!
//! `vectors/frame.json` is made by `vectors/make_frame_vectors.py` from `docs/ciphertext.md`, with
//! none of our code.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{OpenKey, Provider, ProviderError, Symmetric, VersionName};
use kmsgate::domain::frame::Head;
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};
use serde::Deserialize;

#[test]
fn every_published_frame_opens() {
    for vector in vectors() {
        for key in keys(&vector) {
            let opened = open(&*key, &vector.frame(), vector.aad.as_bytes());
            assert_eq!(
                hex(opened.unwrap().expose()),
                vector.plaintext,
                "{}",
                vector.name
            );
        }
    }
}

#[test]
fn every_published_frame_says_what_it_is() {
    for vector in vectors() {
        let frame = vector.frame();
        let (head, _) = Head::parse(&frame).unwrap();
        assert_eq!(head.key_id.as_str(), vector.key_id, "{}", vector.name);
        assert_eq!(head.version.get(), vector.version, "{}", vector.name);
        assert_eq!(head.has_aad, !vector.aad.is_empty(), "{}", vector.name);
        assert_eq!(hex(&frame[52..84]), vector.commitment, "{}", vector.name);
        assert_eq!(hex(&frame[84..108]), vector.nonce, "{}", vector.name);
    }
}

#[test]
fn no_published_frame_opens_with_a_bit_flipped() {
    for (vector, key) in vectors().iter().flat_map(each_key) {
        let frame = vector.frame();
        // Every bit of a short frame, a sample of a long one.
        for bit in (0..frame.len() * 8).step_by(1 + frame.len() / 400) {
            let mut altered = frame.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let answer = open(&*key, &altered, vector.aad.as_bytes());
            let refused = matches!(answer, Err(ProviderError::Rejected));
            assert!(refused, "{}: bit {bit}", vector.name);
        }
    }
}

#[test]
fn no_published_frame_opens_for_other_data() {
    for (vector, key) in vectors().iter().flat_map(each_key) {
        for aad in ["", "tenant=8", "tenant=", &"a".repeat(127)] {
            if aad != vector.aad {
                let answer = open(&*key, &vector.frame(), aad.as_bytes());
                let refused = matches!(answer, Err(ProviderError::Rejected));
                assert!(refused, "{}: {aad}", vector.name);
            }
        }
    }
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    material: String,
    key_id: String,
    version: u32,
    aad: String,
    plaintext: String,
    nonce: String,
    commitment: String,
    frame: String,
}

impl Vector {
    fn frame(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.frame).unwrap()
    }
}

fn vectors() -> Vec<Vector> {
    #[derive(Deserialize)]
    struct File {
        vectors: Vec<Vector>,
    }
    let file: File = serde_json::from_str(include_str!("vectors/frame.json")).unwrap();
    assert_eq!(file.vectors.len(), 11);
    file.vectors
}

fn each_key(vector: &Vector) -> impl Iterator<Item = (&Vector, Box<dyn Symmetric>)> {
    keys(vector).map(move |key| (vector, key)).into_iter()
}

/// The vector's key, sealed and opened by each software provider.
fn keys(vector: &Vector) -> [Box<dyn Symmetric>; 2] {
    let name = VersionName {
        project: "project".parse().unwrap(),
        key_id: vector.key_id.parse().unwrap(),
        version: KeyVersion::new(vector.version).unwrap(),
        spec: KeySpec::Aes256,
    };
    let material: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&vector.material[at..at + 2], 16).unwrap())
        .collect();
    let root = Arc::new(RootKey::generate().unwrap());
    let (aws_lc, rustcrypto) = (AwsLc::new(root.clone()), RustCrypto::new(root));
    [&aws_lc as &dyn Provider, &rustcrypto].map(|provider| {
        let material = Material::new(material.clone());
        let sealed = provider.seal(&name, &material).unwrap();
        match provider.open(&name, &sealed).unwrap() {
            OpenKey::Symmetric(key) => key,
            OpenKey::Pair(_) => panic!("a pair"),
        }
    })
}

fn open(key: &dyn Symmetric, frame: &[u8], aad: &[u8]) -> Result<Plaintext, ProviderError> {
    let (head, body) = frame.split_first_chunk().unwrap();
    key.decrypt(head, body, aad)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
