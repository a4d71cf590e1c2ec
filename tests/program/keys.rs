//! Keys of a running program, and ciphertexts that must decrypt for as long as there are keys.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use kmsgate::grpc::pb;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;

use crate::program::{Addresses, Grpc, TOKEN, call};

/// The keys that were made, and a ciphertext under each version of those that encrypt without a public key.
pub(crate) type Made = BTreeMap<String, Vec<Vec<u8>>>;

/// Makes keys of several kinds, some with two versions.
pub(crate) async fn make(at: Addresses, count: usize) -> Made {
    let mut made = Made::new();
    for number in 0..count {
        let spec = match number {
            0 => "RSA_2048",
            1 => "SM2",
            _ => "AES_256",
        };
        let new = json!({
            "key_alias": format!("k-{number}"),
            "key_spec": spec,
            "key_usage": "ENCRYPT_DECRYPT"
        });
        let key = create(at, &new).await;
        let mut ciphertexts = Vec::new();
        if number >= 2 {
            ciphertexts.push(encrypt(at, &key).await);
        }
        if number % 10 == 2 {
            let rotate = json!({ "key_id": key });
            call(at.rest, TOKEN, "rotate-on-demand", &rotate).await;
            ciphertexts.push(encrypt(at, &key).await);
        }
        made.insert(key, ciphertexts);
    }
    made
}

/// Makes a key, and returns its id.
pub(crate) async fn create(at: Addresses, new: &Value) -> String {
    let key = call(at.rest, TOKEN, "create-key", new).await.json();
    key["key_info"]["key_id"].as_str().unwrap().to_owned()
}

/// Encrypts a key's id under the key.
pub(crate) async fn encrypt(at: Addresses, key: &str) -> Vec<u8> {
    let mut grpc = Grpc::connect(at.grpc, TOKEN).await;
    let request = grpc.ask(pb::EncryptDataRequest {
        key_id: key.to_owned(),
        plaintext: Some(Plaintext::PlainText(key.to_owned())),
        ..pb::EncryptDataRequest::default()
    });
    let encrypted = grpc.crypto.encrypt_data(request).await.unwrap();
    encrypted.into_inner().cipher_text
}

/// Every key is there, and every ciphertext decrypts.
pub(crate) async fn check(at: Addresses, made: &Made) {
    let mut grpc = Grpc::connect(at.grpc, TOKEN).await;
    for (key, ciphertexts) in made {
        let described = call(at.rest, TOKEN, "describe-key", &json!({ "key_id": key })).await;
        assert!(described.status.is_success(), "{described:?}");
        for cipher_text in ciphertexts {
            let request = grpc.ask(pb::DecryptDataRequest {
                cipher_text: cipher_text.clone(),
                ..pb::DecryptDataRequest::default()
            });
            let opened = grpc.crypto.decrypt_data(request).await.unwrap();
            assert_eq!(opened.into_inner().plain_text, *key);
        }
    }
}
