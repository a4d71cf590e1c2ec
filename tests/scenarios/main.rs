//! What the service does, as its callers see it: a real server on real sockets, over REST and over
//! gRPC.
//!
//! A scenario is a test whose name is a true sentence. What it calls and what it expects are
//! described once, without naming a face, and [`world::on_both_faces`] runs it over both and holds
//! them to the same refusals in the same words. What only one face can be told (JSON's syntax,
//! protobuf's) is in the modules named after the faces.
//!
//! "Decision" and "section" in a comment name the rows of the contract that a scenario is for.

mod admission;
mod alike;
mod audit;
mod ciphertexts;
mod concurrency;
mod credentials;
mod decrypting;
mod encrypting;
mod face;
mod grpc;
#[path = "../jws/mod.rs"]
mod jws;
mod jwt;
mod lifecycle;
mod limits;
mod oaep;
mod order;
mod policy;
mod rest;
mod schema;
mod seeds;
mod signature;
mod world;
mod wycheproof;

use serde_json::Value;

use crate::face::Face;
use crate::schema::Call;

/// The sequence of the documented examples.
const SEQUENCE: &str = "919c82d4-8046-4722-9094-35c3c6524cff";

/// A call to encrypt a text under a key.
fn encrypt(key_id: &str, plain_text: &str) -> Call {
    Call::new("encrypt-data")
        .with("key_id", key_id)
        .with("plain_text", plain_text)
}

/// A call to decrypt.
fn decrypt(cipher_text: &[u8]) -> Call {
    Call::new("decrypt-data").with("cipher_text", cipher_text)
}

/// A call about a key.
fn on(operation: &'static str, key_id: &str) -> Call {
    Call::new(operation).with("key_id", key_id)
}

/// A call to make a key.
fn create(key_alias: &str) -> Call {
    Call::new("create-key").with("key_alias", key_alias)
}

/// Makes a key and returns its id.
async fn made(face: &Face, call: &Call) -> String {
    text(&face.done(call).await["key_info"]["key_id"])
}

/// Makes an AES_256 key and returns its id.
async fn aes_key(face: &Face) -> String {
    made(face, &create(&fresh_alias())).await
}

/// An alias that no key has.
fn fresh_alias() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("key/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Encrypts a text and returns the ciphertext.
async fn sealed(face: &Face, key_id: &str, plain_text: &str) -> Vec<u8> {
    face::bytes(&face.done(&encrypt(key_id, plain_text)).await["cipher_text"])
}

fn text(member: &Value) -> String {
    member.as_str().unwrap().to_owned()
}
