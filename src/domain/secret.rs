//! Secrets: wiped when dropped, never printed, never copied by accident.
//!
//! The only way to a secret's bytes is `expose`, so a search for `.expose()` finds every place that
//! touches one.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Defines a secret type over bytes.
macro_rules! secret {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
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

        impl Drop for $name {
            fn drop(&mut self) {
                wipe(&mut self.0);
            }
        }

        impl ZeroizeOnDrop for $name {}

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
    /// The material of one key version in its provider-neutral encoding: 32 raw bytes for AES_256,
    /// PKCS#8 DER (RFC 5208) for RSA and SM2.
    Material
}

secret! {
    /// The key under which stored records are authenticated: 32 bytes, derived from the root key.
    MacKey
}

/// Wipes bytes and the spare room behind them.
///
/// A slice is wiped in one go. `Vec` goes byte by byte, which for 4096 bytes takes half as long as
/// their encryption.
fn wipe(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.capacity(), 0);
    bytes.as_mut_slice().zeroize();
    bytes.clear();
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

    #[test]
    fn a_plaintext_is_handed_over_as_it_is() {
        let secret = Plaintext::new(b"attack at dawn".to_vec());
        assert_eq!(secret.expose(), b"attack at dawn");
        assert_eq!(secret.into_exposed(), b"attack at dawn");
    }

    #[test]
    fn wiping_moves_no_bytes() {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend([7; 64]);
        bytes.truncate(10);
        let place = bytes.as_ptr();
        wipe(&mut bytes);
        assert_eq!((bytes.len(), bytes.as_ptr()), (0, place));
        assert_eq!(bytes.capacity(), 64);
    }
}
