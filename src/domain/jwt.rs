//! How JSON Web Tokens are signed.

use std::str::FromStr;

use crate::domain::key::UnknownName;

/// Generates [`Algorithm`] from its table.
macro_rules! algorithms {
    ($( $(#[doc = $doc:literal])+ $algorithm:ident = $name:literal; )+) => {
        /// A signature algorithm of JSON Web Signatures that is verified with a public key.
        ///
        /// `none` and the HMACs are not among them: the first proves nothing, and a public key taken
        /// for an HMAC's secret would let everybody sign.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Algorithm { $( $(#[doc = $doc])+ $algorithm, )+ }

        impl Algorithm {
            /// Every algorithm.
            pub const ALL: &[Self] = &[$( Self::$algorithm, )+];

            /// The registered name, such as `RS256`.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$algorithm => $name, )+ }
            }
        }
    };
}

algorithms! {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, section 3.3).
    Rs256 = "RS256";
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384 = "RS384";
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512 = "RS512";
    /// RSASSA-PSS with SHA-256 (RFC 7518, section 3.5).
    Ps256 = "PS256";
    /// RSASSA-PSS with SHA-384.
    Ps384 = "PS384";
    /// RSASSA-PSS with SHA-512.
    Ps512 = "PS512";
    /// ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
    Es256 = "ES256";
    /// ECDSA on P-384 with SHA-384.
    Es384 = "ES384";
    /// Ed25519 (RFC 8037, section 3.1).
    EdDsa = "EdDSA";
}

impl FromStr for Algorithm {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.iter().copied();
        all.find(|algorithm| algorithm.name() == name)
            .ok_or(UnknownName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_is_found_by_its_exact_name_alone() {
        for &algorithm in Algorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
        }
        for other in [
            "", "none", "None", "HS256", "rs256", "RS256 ", "ES256K", "ES512",
        ] {
            assert_eq!(other.parse::<Algorithm>(), Err(UnknownName), "{other:?}");
        }
    }
}
