//! Secrets: wiped when dropped, never printed, never copied by accident.
//!
//! The only way to a secret's bytes is `expose`, so a search for `.expose()` finds every place that touches one.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Defines a secret type over bytes.
macro_rules! secret {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Zeroize, ZeroizeOnDrop)]
        pub struct $name(Vec<u8>);

        impl $name {
            /// Takes ownership, so that no second copy is left behind.
            pub fn new(bytes: Vec<u8>) -> Self {
                Self(bytes)
            }

            /// Lends the secret bytes. Keep the borrow short and do not copy.
            pub fn expose(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.0.len())
            }
        }
    };
}

secret! {
    /// Bytes that a caller trusted us with.
    Plaintext
}

impl Plaintext {
    /// Hands the bytes over to a message on its way to the caller, who wipes or sends them.
    pub fn into_exposed(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

secret! {
    /// The material of one key version in its provider-neutral encoding: 32 raw bytes for AES_256, PKCS#8 DER (RFC 5208)
    /// for RSA and SM2.
    Material
}

secret! {
    /// The key under which stored records are authenticated: 32 bytes, derived from the root key.
    MacKey
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_its_length_alone() {
        let secret = Plaintext::new(b"attack at dawn".to_vec());
        assert_eq!(format!("{secret:?}"), "Plaintext(14 bytes)");
        let secret = Material::new(vec![7; 32]);
        assert_eq!(format!("{secret:?}"), "Material(32 bytes)");
    }
}
