//! What the seam costs: AES-256 and RSA through each software provider, beside aws-lc-rs itself.
//!
//! `cargo bench --bench providers`; `-- AES` or `-- RSA` for a part.

use std::env;
use std::hint::black_box;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{OpenKey, Provider, VersionName};
use kmsgate::domain::frame::{HEAD, Head, Suite};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};

mod pairs;

fn main() {
    let root = Arc::new(RootKey::generate().unwrap());
    let aws_lc = AwsLc::new(root.clone());
    let rustcrypto = RustCrypto::new(root);
    let wants = |part| !env::args().any(|other| ["AES", "RSA"].contains(&&*other) && other != part);
    if wants("AES") {
        pairs::table("aws-lc-rs", "rustcrypto");
        random();
        for length in [32, 256, 1024, 4096] {
            aes(&aws_lc, &rustcrypto, length);
        }
        pairs::table("bare GCM", "aws-lc-rs");
        for length in [32, 256, 1024, 4096] {
            aes_beside_gcm(&aws_lc, length);
        }
    }
    if wants("RSA") {
        pairs::table("bare", "aws-lc-rs");
        for spec in [KeySpec::Rsa2048, KeySpec::Rsa3072, KeySpec::Rsa4096] {
            rsa_beside_itself(&aws_lc, spec);
        }
        pairs::table("aws-lc-rs", "rustcrypto");
        for spec in [KeySpec::Rsa2048, KeySpec::Rsa3072, KeySpec::Rsa4096] {
            rsa(&aws_lc, &rustcrypto, spec);
        }
    }
}

/// The random bytes of a nonce, from each provider's source.
fn random() {
    let (mut theirs, mut ours) = ([0; 24], [0; 24]);
    pairs::row(
        "24 random bytes",
        || rand::fill(black_box(&mut theirs)).unwrap(),
        || getrandom::fill(black_box(&mut ours)).unwrap(),
    );
}

fn aes(aws_lc: &dyn Provider, rustcrypto: &dyn Provider, length: usize) {
    let [aws_lc, rustcrypto] = [aws_lc, rustcrypto].map(symmetric);
    let plaintext = Plaintext::new(vec![7; length]);
    pairs::row(
        &format!("encrypt {length} B"),
        || aws_lc.encrypt(&plaintext),
        || rustcrypto.encrypt(&plaintext),
    );
    let frame = aws_lc.encrypt(&plaintext);
    pairs::row(
        &format!("decrypt {length} B"),
        || aws_lc.decrypt(&frame),
        || rustcrypto.decrypt(&frame),
    );
}

/// AES-256-GCM with a key that is ready and a nonce that counts: what a frame cannot do without.
fn aes_beside_gcm(provider: &dyn Provider, length: usize) {
    let gcm = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
    let key = symmetric(provider);
    let plaintext = Plaintext::new(vec![7; length]);
    let mut count = 0u64;
    pairs::row(
        &format!("encrypt {length} B"),
        || {
            count += 1;
            let mut nonce = [0; NONCE_LEN];
            nonce[..8].copy_from_slice(&count.to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let mut body = plaintext.expose().to_vec();
            let aad = Aad::from(b"tenant=7");
            gcm.seal_in_place_append_tag(nonce, aad, &mut body).unwrap();
            body
        },
        || key.encrypt(&plaintext),
    );
}

fn rsa_beside_itself(provider: &dyn Provider, spec: KeySpec) {
    let private = PrivateDecryptingKey::from_pkcs8(material(spec).expose()).unwrap();
    let public = OaepPublicEncryptingKey::new(private.public_key()).unwrap();
    let private = OaepPrivateDecryptingKey::new(private).unwrap();
    let OpenKey::Pair(pair) = open(provider, spec) else {
        panic!("not a pair");
    };
    let plaintext = Plaintext::new(vec![7; 32]);
    let mut room = vec![0; public.ciphertext_size()];
    pairs::row(
        &format!("{} encrypt", spec.name()),
        || {
            let text = plaintext.expose();
            let made = public.encrypt(&OAEP_SHA256_MGF1SHA256, text, &mut room, None);
            made.unwrap().len()
        },
        || pair.encrypt(&plaintext).unwrap(),
    );
    let ciphertext = pair.encrypt(&plaintext).unwrap();
    pairs::row(
        &format!("{} decrypt", spec.name()),
        || {
            let made = private.decrypt(&OAEP_SHA256_MGF1SHA256, &ciphertext, &mut room, None);
            made.unwrap().len()
        },
        || pair.decrypt(&ciphertext).unwrap(),
    );
}

fn rsa(aws_lc: &dyn Provider, rustcrypto: &dyn Provider, spec: KeySpec) {
    let [aws_lc, rustcrypto] = [aws_lc, rustcrypto].map(|provider| match open(provider, spec) {
        OpenKey::Pair(pair) => pair,
        OpenKey::Symmetric(_) => panic!("not a pair"),
    });
    let plaintext = Plaintext::new(vec![7; 32]);
    pairs::row(
        &format!("{} encrypt", spec.name()),
        || aws_lc.encrypt(&plaintext).unwrap(),
        || rustcrypto.encrypt(&plaintext).unwrap(),
    );
    let ciphertext = aws_lc.encrypt(&plaintext).unwrap();
    pairs::row(
        &format!("{} decrypt", spec.name()),
        || aws_lc.decrypt(&ciphertext).unwrap(),
        || rustcrypto.decrypt(&ciphertext).unwrap(),
    );
}

/// A key, and the head of its frames.
struct Symmetric {
    key: Box<dyn kmsgate::crypto::Symmetric>,
    head: [u8; HEAD],
}

impl Symmetric {
    fn encrypt(&self, plaintext: &Plaintext) -> Vec<u8> {
        let mut frame = self.head.to_vec();
        let aad = b"tenant=7";
        self.key.encrypt(&mut frame, plaintext, aad).unwrap();
        frame
    }

    fn decrypt(&self, frame: &[u8]) -> Plaintext {
        let (head, body) = frame.split_first_chunk().unwrap();
        self.key.decrypt(head, body, b"tenant=7").unwrap()
    }
}

fn symmetric(provider: &dyn Provider) -> Symmetric {
    let OpenKey::Symmetric(key) = open(provider, KeySpec::Aes256) else {
        panic!("a pair");
    };
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: true,
        version: KeyVersion::FIRST,
        key_id: name(KeySpec::Aes256).key_id,
    };
    let head = head.to_bytes();
    Symmetric { key, head }
}

fn open(provider: &dyn Provider, spec: KeySpec) -> OpenKey {
    let sealed = provider.seal(&name(spec), &material(spec)).unwrap();
    provider.open(&name(spec), &sealed).unwrap()
}

/// A fixed key: making a large one takes seconds.
fn material(spec: KeySpec) -> Material {
    let pem = match spec {
        KeySpec::Aes256 => return Material::new(vec![7; 32]),
        KeySpec::Rsa2048 => include_str!("../tests/vectors/rsa_2048.pem"),
        KeySpec::Rsa3072 => include_str!("../tests/vectors/rsa_3072.pem"),
        KeySpec::Rsa4096 => include_str!("../tests/vectors/rsa_4096.pem"),
        KeySpec::Sm2 => include_str!("../tests/vectors/sm2.pem"),
    };
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    Material::new(BASE64_STANDARD.decode(base64).unwrap())
}

fn name(spec: KeySpec) -> VersionName {
    VersionName {
        project: "project".parse().unwrap(),
        key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse().unwrap(),
        version: KeyVersion::FIRST,
        spec,
    }
}
