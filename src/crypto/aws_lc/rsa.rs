//! RSA keys: RSAES-OAEP (RFC 8017, section 7.1) with SHA-256, MGF1-SHA-256 and the empty label.
//!
//! Material is a PKCS#8 `PrivateKeyInfo` (RFC 5208) of a two-prime `rsaEncryption` key with the
//! public exponent 65537.
//!
//! AWS-LC blinds the base of every private operation, exponentiates in constant time, and checks the
//! padding in constant time up to the one bit that the answer gives away, the first octet included.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};
use rsa::pkcs1;
use rsa::pkcs8::PrivateKeyInfoRef;
use zeroize::Zeroizing;

use crate::crypto::aws_lc::unavailable;
use crate::crypto::{KeyPair, Place, ProviderError};
use crate::domain::secret::{Material, Plaintext};

/// Fresh material. Computes for tenths of a second.
pub(super) fn generate(size: KeySize) -> Result<Material, ProviderError> {
    let key = PrivateDecryptingKey::generate(size).map_err(unavailable)?;
    let der: Pkcs8V1Der<'_> = key.as_der().map_err(unavailable)?;
    Ok(Material::new(der.as_ref().to_vec()))
}

/// An RSA key ready for use. AWS-LC wipes all memory that it frees.
pub(super) struct Rsa {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
    public_key: Vec<u8>,
}

impl Rsa {
    /// Reads and checks the material, if it is a key with a modulus of `bits` bits.
    pub(super) fn new(bits: usize, material: &Material) -> Option<Self> {
        // AWS-LC would not look at what follows the key.
        let info = PrivateKeyInfoRef::try_from(material.expose()).ok()?;
        if info.algorithm.oid != pkcs1::ALGORITHM_OID {
            return None;
        }
        let private = PrivateDecryptingKey::from_pkcs8(material.expose()).ok()?;
        let public = private.public_key();
        let der: PublicKeyX509Der<'_> = public.as_der().ok()?;
        let public_key = der.as_ref().to_vec();
        if private.key_size_bits() != bits || !ends_with_f4(&public_key, bits) {
            return None;
        }
        Some(Self {
            private: OaepPrivateDecryptingKey::new(private).ok()?,
            public: OaepPublicEncryptingKey::new(public).ok()?,
            public_key,
        })
    }
}

impl KeyPair for Rsa {
    fn encrypt(&self, plaintext: &Plaintext) -> Result<Vec<u8>, ProviderError> {
        let plaintext = plaintext.expose();
        if plaintext.len() > self.public.max_plaintext_size(&OAEP_SHA256_MGF1SHA256) {
            return Err(ProviderError::TooLong);
        }
        let mut ciphertext = vec![0; self.public.ciphertext_size()];
        self.public
            .encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut ciphertext, None)
            .map_err(unavailable)?;
        Ok(ciphertext)
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Result<Plaintext, ProviderError> {
        let mut plaintext = Zeroizing::new(vec![0; self.private.min_output_size()]);
        // The library does not say why it failed. That it had no memory or no randomness is told as
        // the caller's fault too, because nothing may be told apart here.
        let length = self
            .private
            .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plaintext, None)
            .map_err(|_| ProviderError::Rejected)?
            .len();
        plaintext.truncate(length);
        Ok(Plaintext::new(std::mem::take(&mut *plaintext)))
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

/// Whether the exponent of a SubjectPublicKeyInfo with a modulus of `bits` bits is 65537: it stands
/// at the end, and takes three bytes only if the whole is as long as that.
fn ends_with_f4(public_key: &[u8], bits: usize) -> bool {
    // The rest is headers, the algorithm, and the zero before a modulus that has its first bit set.
    public_key.len() == bits / 8 + 38 && public_key.ends_with(&[2, 3, 1, 0, 1])
}
