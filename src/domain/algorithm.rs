//! Algorithms: which key spec offers which, and how much each takes.

use std::str::FromStr;

use crate::domain::key::{Family, KeySpec, UnknownName};

/// How data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EncryptionAlgorithm {
    /// Authenticated encryption; the ciphertext is a [frame](crate::domain::frame).
    SymmetricDefault,
    /// RSAES-OAEP (RFC 8017, section 7.1) with SHA-256, MGF1-SHA-256 and the empty label.
    RsaesOaepSha256,
    /// SM2 public-key encryption (GM/T 0003.4), DER (GM/T 0009), order C1 C3 C2.
    Sm2Encrypt,
}

impl EncryptionAlgorithm {
    /// Every algorithm.
    pub const ALL: &[Self] = &[
        Self::SymmetricDefault,
        Self::RsaesOaepSha256,
        Self::Sm2Encrypt,
    ];

    /// The documented name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SymmetricDefault => "SYMMETRIC_DEFAULT",
            Self::RsaesOaepSha256 => "RSAES_OAEP_SHA_256",
            Self::Sm2Encrypt => "SM2_ENCRYPT",
        }
    }

    /// Whether one secret serves both directions, so that the ciphertext can name its key and bind
    /// the caller's data.
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::SymmetricDefault)
    }
}

impl FromStr for EncryptionAlgorithm {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.iter().copied();
        all.find(|algorithm| algorithm.name() == name)
            .ok_or(UnknownName)
    }
}

/// The most plaintext that any request may carry, in bytes.
pub const MAX_PLAINTEXT: usize = 4096;

impl KeySpec {
    /// The one algorithm that a key of this spec offers.
    pub const fn algorithm(self) -> EncryptionAlgorithm {
        match self.family() {
            Family::Symmetric => EncryptionAlgorithm::SymmetricDefault,
            Family::Rsa => EncryptionAlgorithm::RsaesOaepSha256,
            Family::Sm2 => EncryptionAlgorithm::Sm2Encrypt,
        }
    }

    /// The most plaintext that a key of this spec takes, in bytes.
    ///
    /// For OAEP with a k-byte modulus and a 32-byte hash that is k - 2 * 32 - 2 (RFC 8017, section
    /// 7.1.1).
    pub const fn max_plaintext(self) -> usize {
        match self.rsa_bits() {
            Some(bits) => bits / 8 - 2 * 32 - 2,
            None => MAX_PLAINTEXT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_have_the_documented_names_and_one_is_symmetric() {
        let documented = [
            ("SYMMETRIC_DEFAULT", true),
            ("RSAES_OAEP_SHA_256", false),
            ("SM2_ENCRYPT", false),
        ];
        let all = EncryptionAlgorithm::ALL.iter();
        let ours = all.map(|algorithm| (algorithm.name(), algorithm.is_symmetric()));
        assert!(ours.eq(documented));
        for &algorithm in EncryptionAlgorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
        }
        assert_eq!(
            "RSAES_OAEP_SHA_1".parse::<EncryptionAlgorithm>(),
            Err(UnknownName)
        );
    }

    #[test]
    fn rsa_keys_take_what_the_contract_says() {
        let limits = [
            (KeySpec::Rsa2048, 190),
            (KeySpec::Rsa3072, 318),
            (KeySpec::Rsa4096, 446),
            (KeySpec::Aes256, 4096),
            (KeySpec::Sm2, 4096),
        ];
        for (spec, limit) in limits {
            assert_eq!(spec.max_plaintext(), limit, "{spec:?}");
        }
    }
}
