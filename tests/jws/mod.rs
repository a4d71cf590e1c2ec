//! Keys that sign JSON Web Tokens, as an issuer has them.

#![allow(dead_code, reason = "each test uses its own part of this module")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair, RsaEncoding,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A private key of an issuer.
pub(crate) struct Signer {
    kid: &'static str,
    key: Key,
}

enum Key {
    Rsa(rsa::KeyPair),
    Ec(&'static str, EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    /// An RSA key of 2048 bits, the same in every run.
    pub(crate) fn rsa(kid: &'static str) -> Self {
        let pem = include_str!("../vectors/rsa_2048.pem").lines();
        let base64: String = pem.filter(|line| !line.starts_with('-')).collect();
        let key = rsa::KeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap());
        let key = Key::Rsa(key.unwrap());
        Self { kid, key }
    }

    /// A new key on P-256.
    pub(crate) fn p256(kid: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let key = Key::Ec("P-256", key);
        Self { kid, key }
    }

    /// A new key on P-384.
    pub(crate) fn p384(kid: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let key = Key::Ec("P-384", key);
        Self { kid, key }
    }

    /// A new Ed25519 key.
    pub(crate) fn ed25519(kid: &'static str) -> Self {
        let key = Key::Ed(Ed25519KeyPair::generate().unwrap());
        Self { kid, key }
    }

    /// The modulus and the exponent of an RSA key of 2048 bits.
    pub(crate) fn rsa_numbers(&self) -> (Vec<u8>, Vec<u8>) {
        // RFC 8017, appendix A.1.1: a sequence of two integers, which begin at these places.
        let der = self.rsa_der();
        (der[9..265].to_vec(), der[267..].to_vec())
    }

    /// The public key of an RSA key in DER (RFC 8017, appendix A.1.1).
    pub(crate) fn rsa_der(&self) -> Vec<u8> {
        let Key::Rsa(key) = &self.key else {
            panic!("{} is no RSA key", self.kid)
        };
        key.public_key().as_ref().to_vec()
    }

    /// The public key as a JWK.
    pub(crate) fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.key {
            Key::Rsa(_) => {
                let (n, e) = self.rsa_numbers();
                json!({ "kty": "RSA", "use": "sig", "kid": self.kid, "n": encode(&n), "e": encode(&e) })
            }
            Key::Ec(curve, key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({ "kty": "EC", "crv": curve, "kid": self.kid, "x": encode(x), "y": encode(y) })
            }
            Key::Ed(key) => {
                let x = encode(key.public_key().as_ref());
                json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x })
            }
        }
    }

    /// A token that the key signs, by the algorithm that it is most used with.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let algorithm = match &self.key {
            Key::Rsa(_) => "RS256",
            Key::Ec("P-256", _) => "ES256",
            Key::Ec(..) => "ES384",
            Key::Ed(_) => "EdDSA",
        };
        self.sign_by(algorithm, claims)
    }

    /// A token that the key signs by this algorithm.
    pub(crate) fn sign_by(&self, algorithm: &str, claims: &Value) -> String {
        let header = json!({ "alg": algorithm, "kid": self.kid, "typ": "JWT" });
        self.sign_texts(&header.to_string(), &claims.to_string(), algorithm)
    }

    /// A token with this header.
    pub(crate) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let algorithm = header["alg"].as_str().unwrap_or_default();
        self.sign_texts(&header.to_string(), &claims.to_string(), algorithm)
    }

    /// A token of these texts, signed by this algorithm.
    pub(crate) fn sign_texts(&self, header: &str, claims: &str, algorithm: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(header);
        let claims = URL_SAFE_NO_PAD.encode(claims);
        self.finish(&format!("{header}.{claims}"), algorithm)
    }

    /// A token of two encoded parts, signed by this algorithm.
    pub(crate) fn finish(&self, signed: &str, algorithm: &str) -> String {
        let random = SystemRandom::new();
        let message = signed.as_bytes();
        let signature = match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let made = key.sign(padding(algorithm), &random, message, &mut signature);
                made.unwrap();
                signature
            }
            Key::Ec(_, key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The public keys of some, as an issuer publishes them.
pub(crate) fn jwks(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

fn padding(algorithm: &str) -> &'static dyn RsaEncoding {
    match algorithm {
        "RS384" => &signature::RSA_PKCS1_SHA384,
        "RS512" => &signature::RSA_PKCS1_SHA512,
        "PS256" => &signature::RSA_PSS_SHA256,
        "PS384" => &signature::RSA_PSS_SHA384,
        "PS512" => &signature::RSA_PSS_SHA512,
        _ => &signature::RSA_PKCS1_SHA256,
    }
}
