//! RSA keys: RSAES-OAEP (RFC 8017, section 7.1) with SHA-256, MGF1-SHA-256 and the empty label.
//!
//! Material is a PKCS#8 `PrivateKeyInfo` (RFC 5208) of a two-prime `rsaEncryption` key with the
//! public exponent 65537.
//!
//! The crate blinds every private operation with fresh randomness: the base, the exponents and the
//! primes. On decryption it does not look at the first octet of the padded message, which RFC 8017
//! wants zero, so that it cannot betray it; a ciphertext that differs there alone can only be made
//! by somebody who knows the plaintext.

use getrandom::SysRng;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey};
use rsa::sha2::Sha256;
use rsa::{Error, PrivateKey};

use crate::crypto::rsa::read;
use crate::crypto::{KeyPair, Place, ProviderError};
use crate::domain::secret::{Material, Plaintext};

/// Fresh material for a modulus of `bits` bits. Computes for seconds.
pub(super) fn generate(bits: usize) -> Result<Material, ProviderError> {
    let key = PrivateKey::new(&mut SysRng, bits).map_err(unavailable)?;
    let material = key
        .to_pkcs8_der()
        .map_err(|error| unavailable(error.into()))?;
    Ok(Material::new(material.as_bytes().to_vec()))
}

/// An RSA key ready for use.
///
/// The crate wipes the private exponent, the primes and the exponents of its Chinese remaindering
/// when the key is dropped. It does not wipe the coefficient `qInv`, beside which it keeps p, nor
/// the numbers that it meets on the way to a result.
pub(super) struct Rsa {
    key: PrivateKey,
    public_key: Vec<u8>,
}

impl Rsa {
    /// Reads and checks the material, if it is a key with a modulus of `bits` bits.
    pub(super) fn new(bits: u32, material: &Material) -> Option<Self> {
        let key = read(bits, material)?;
        let public_key = key.as_public_key().to_public_key_der().ok()?.into_vec();
        Some(Self { key, public_key })
    }
}

impl KeyPair for Rsa {
    fn encrypt(&self, plaintext: &Plaintext) -> Result<Vec<u8>, ProviderError> {
        let key = self.key.as_public_key();
        key.oaep_encrypt_with_rng::<Sha256, _>(&mut SysRng, plaintext.expose())
            .map_err(|error| match error {
                Error::MessageTooLong => ProviderError::TooLong,
                other => unavailable(other),
            })
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Result<Plaintext, ProviderError> {
        self.key
            .oaep_decrypt_with_rng::<Sha256, _>(&mut SysRng, ciphertext)
            .map(Plaintext::new)
            .map_err(|error| match error {
                // Neither depends on the ciphertext: no randomness, or a result that does not
                // encrypt back to the ciphertext, which a fault of the machine brings about.
                Error::Rng | Error::Internal => unavailable(error),
                _ => ProviderError::Rejected,
            })
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn encrypts(&self) -> Place {
        Place::Inline
    }

    fn decrypts(&self) -> Place {
        Place::Pool
    }
}

fn unavailable(error: Error) -> ProviderError {
    ProviderError::Unavailable(error.into())
}
