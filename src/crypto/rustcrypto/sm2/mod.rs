//! SM2 keys: public-key encryption after GM/T 0003.4 (GB/T 32918.4), in the DER of GM/T 0009.
//!
//! With the recipient's key pair `P = [d]G` and a fresh `k`:
//!
//! ```text
//! C1 = [k]G        (x2, y2) = [k]P = [d]C1        t = KDF(x2 ‖ y2, length of M)
//! C2 = M ⊕ t       C3 = SM3(x2 ‖ M ‖ y2)
//! ```
//!
//! The crate `sm2` reads and writes keys and does the arithmetic of scalars. The scheme is here,
//! because the crate's own prints its secret scalar, does not wipe it, and compares C3 in variable
//! time; the multiplication of points is [here](curve) too, because a key that encrypts many times
//! is worth a table, for which the crate has no place. So is the [key derivation](kdf), whose hashes
//! can be computed together.
//!
//! Material is a PKCS#8 `PrivateKeyInfo` (RFC 5208) of an `id-ecPublicKey` on the curve
//! 1.2.156.10197.1.301.

use std::sync::OnceLock;

use getrandom::SysRng;
use sm2::elliptic_curve::Generate;
use sm2::elliptic_curve::point::AffineCoordinates;
use sm2::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use sm2::{NonZeroScalar, Scalar, SecretKey};
use sm3::{Digest, Sm3};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::rustcrypto::der::{self, Parts};
use crate::crypto::rustcrypto::no_randomness;
use crate::crypto::rustcrypto::sm2::curve::{Affine, Multiples};
use crate::crypto::{KeyPair, Place, ProviderError};
use crate::domain::algorithm::MAX_PLAINTEXT;
use crate::domain::secret::{Material, Plaintext};

mod curve;
mod field;
mod kdf;

/// Fresh material.
pub(super) fn generate() -> Result<Material, ProviderError> {
    loop {
        let key = SecretKey::try_generate_from_rng(&mut SysRng).map_err(no_randomness)?;
        let der = key
            .to_pkcs8_der()
            .map_err(|error| ProviderError::Unavailable(error.into()))?;
        let material = Material::new(der.as_bytes().to_vec());
        // One key in 2^256 is out of the standard's range.
        if Sm2::new(&material).is_some() {
            return Ok(material);
        }
    }
}

/// An SM2 key ready for use.
pub(super) struct Sm2 {
    d: Zeroizing<NonZeroScalar>,
    p: Affine,
    /// Computed at the first encryption: most keys that are opened may never do one.
    multiples: OnceLock<Multiples>,
    public_key: Vec<u8>,
}

impl Sm2 {
    /// Reads and checks the material.
    pub(super) fn new(material: &Material) -> Option<Self> {
        // The crate checks that 1 <= d < n, and the public key if there is one in the material.
        let key = SecretKey::from_pkcs8_der(material.expose()).ok()?;
        let d = Zeroizing::new(key.to_nonzero_scalar());
        // GM/T 0003.1, section 6.1, wants d < n - 1.
        if **d == -Scalar::ONE {
            return None;
        }
        let public_key = key.public_key();
        let p = public_key.as_affine();
        Some(Self {
            d,
            p: Affine::from_coordinates(&p.x().into(), &p.y().into())?,
            multiples: OnceLock::new(),
            public_key: public_key.to_public_key_der().ok()?.into_vec(),
        })
    }
}

impl KeyPair for Sm2 {
    fn encrypt(&self, plaintext: &Plaintext) -> Result<Vec<u8>, ProviderError> {
        let message = plaintext.expose();
        match message.len() {
            // Nothing masks nothing: the search for a mask that is not all zero would never end.
            0 => return Err(ProviderError::Unsupported),
            1..=MAX_PLAINTEXT => {}
            _ => return Err(ProviderError::TooLong),
        }
        let multiples = self.multiples.get_or_init(|| Multiples::of(&self.p));
        loop {
            let k = NonZeroScalar::try_generate_from_rng(&mut SysRng).map_err(no_randomness)?;
            let k = Zeroizing::new(k);
            if let Some(ciphertext) = encrypt(multiples, &k, message) {
                return Ok(ciphertext);
            }
        }
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Result<Plaintext, ProviderError> {
        decrypt(&self.d, ciphertext).ok_or(ProviderError::Rejected)
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// The first encryption also computes the table, which takes a millisecond. With it, one takes
    /// about as long as handing it to the pool and back would.
    fn encrypts(&self) -> Place {
        match self.multiples.get() {
            Some(_) => Place::Inline,
            None => Place::Pool,
        }
    }

    fn decrypts(&self) -> Place {
        Place::Pool
    }
}

/// Encrypts under the point whose `multiples` are given; none if `k` gives an all-zero mask, so that
/// another must be drawn. That is to be expected: for a message of one byte, every 256th time.
fn encrypt(multiples: &Multiples, k: &NonZeroScalar, message: &[u8]) -> Option<Vec<u8>> {
    // A2, A4. A3 asks that [h]P is not the point at infinity: h is 1, and P was checked
    // when the key was read.
    let points = curve::mul_both(k, multiples);
    let [c1, shared] = &*points;
    let mask = Mask::new(shared);
    // A7, then A5 and A6 where the message is put.
    let c3 = mask.hash(message);
    let mut der = der::before_c2(&c1.x(), &c1.y(), &c3, message.len());
    let start = der.len();
    der.extend_from_slice(message);
    if !mask.apply(der.get_mut(start..)?) {
        der.zeroize();
        return None;
    }
    Some(der)
}

/// Decrypts with the private scalar `d`. Whatever is wrong, the answer is none.
fn decrypt(d: &NonZeroScalar, ciphertext: &[u8]) -> Option<Plaintext> {
    let Parts { x, y, c3, c2 } = Parts::parse(ciphertext)?;
    // B1: on the curve, which has no other subgroup, and by its form not the point at infinity. So
    // B2 holds.
    let c1 = Affine::from_coordinates(&x, &y)?;
    // B3
    let mask = Mask::new(&curve::mul(d, &c1));
    // B4, B5
    let mut message = Zeroizing::new(c2.to_vec());
    let masked = mask.apply(&mut message);
    // B6
    let genuine = bool::from(mask.hash(&message).ct_eq(c3));
    (masked && genuine).then(|| Plaintext::new(std::mem::take(&mut *message)))
}

/// The secret that both sides compute: x2 and y2.
struct Mask(Zeroizing<[u8; 64]>);

impl Mask {
    fn new(shared: &Affine) -> Self {
        let mut coordinates = Zeroizing::new([0; 64]);
        let (x, y) = (Zeroizing::new(shared.x()), Zeroizing::new(shared.y()));
        let bytes = x.iter().chain(y.iter());
        for (to, byte) in coordinates.iter_mut().zip(bytes) {
            *to = *byte;
        }
        Self(coordinates)
    }

    /// Adds `t = KDF(x2 ‖ y2)` to `data`; false if `t` is all zero.
    fn apply(&self, data: &mut [u8]) -> bool {
        kdf::mask(&self.0, data)
    }

    /// `SM3(x2 ‖ message ‖ y2)`.
    fn hash(&self, message: &[u8]) -> [u8; 32] {
        let (x, y) = self.0.split_at(32);
        let hash = Sm3::new_with_prefix(x)
            .chain_update(message)
            .chain_update(y);
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sm2::elliptic_curve::{Group, PrimeField};
    use sm2::{AffinePoint, ProjectivePoint};

    /// The encryption example of GM/T 0003.5 (GB/T 32918.5, annex C): this private key,
    /// "encryption standard" and this k.
    const D: &str = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8";
    const K: &str = "59276e27d506861a16680f3ad9c02dccef3cc1fa3cdbe4ce6d54b80deac1bc21";
    const CIPHERTEXT: &str = concat!(
        "307c",
        "0220",
        "04ebfc718e8d1798620432268e77feb6415e2ede0e073c0f4f640ecd2e149a73",
        "022100",
        "e858f9d81e5430a57b36daab8f950a3c64e6ee6a63094d99283aff767e124df0",
        "0420",
        "59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766",
        "0413",
        "21886ca989ca9c7d58087307ca93092d651efa",
    );

    #[test]
    fn the_standards_example_encrypts_and_decrypts() {
        let (d, k) = (scalar(D), scalar(K));
        let ciphertext = encrypt(&multiples(&d), &k, b"encryption standard").unwrap();
        assert_eq!(ciphertext, bytes(CIPHERTEXT));
        let message = decrypt(&d, &ciphertext).unwrap();
        assert_eq!(message.expose(), b"encryption standard");
    }

    #[test]
    fn an_all_zero_mask_is_drawn_again_and_refused() {
        let d = scalar(D);
        let multiples = multiples(&d);
        // A mask of one byte is zero for one k in 256.
        let k = (1u64..)
            .map(|k| NonZeroScalar::new(Scalar::from(k)).unwrap())
            .find(|k| encrypt(&multiples, k, b"x").is_none())
            .unwrap();

        // What an implementation without the check would send for it.
        let [c1, shared] = *curve::mul_both(&k, &multiples);
        let c3 = Mask::new(&shared).hash(b"x");
        let mut ciphertext = der::before_c2(&c1.x(), &c1.y(), &c3, 1);
        ciphertext.push(b'x');
        assert!(decrypt(&d, &ciphertext).is_none());
    }

    #[test]
    fn no_other_form_is_read() {
        let d = scalar(D);
        let ciphertext = bytes(CIPHERTEXT);
        let Parts { x, y, c3, c2 } = Parts::parse(&ciphertext).unwrap();
        assert!(decrypt(&d, &ciphertext).is_some());
        let parity = 2 + (y[31] & 1);
        for (raw, why) in [
            ([&[4], &x[..], &y, c3, c2].concat(), "C1 C3 C2"),
            ([&[4], &x[..], &y, c2, c3].concat(), "C1 C2 C3"),
            (
                [&x[..], &y, c3, c2].concat(),
                "C1 C3 C2 without its first octet",
            ),
            (
                [&x[..], &y, c2, c3].concat(),
                "C1 C2 C3 without its first octet",
            ),
            ([&[parity], &x[..], c3, c2].concat(), "a compressed point"),
            (
                [&[6 + (y[31] & 1)], &x[..], &y, c3, c2].concat(),
                "a hybrid point",
            ),
        ] {
            assert!(decrypt(&d, &raw).is_none(), "{why}");
        }
    }

    #[test]
    fn no_other_point_opens() {
        let d = scalar(D);
        let ciphertext = bytes(CIPHERTEXT);
        let Parts { x, y, c3, c2 } = Parts::parse(&ciphertext).unwrap();
        let p = bytes("fffffffeffffffffffffffffffffffffffffffff00000000ffffffffffffffff");
        let p: [u8; 32] = p.try_into().unwrap();
        let opposite = sm2::U256::from_be_slice(&p).wrapping_sub(&sm2::U256::from_be_slice(&y));
        for (x, y, why) in [
            (x, opposite.to_be_bytes().into(), "the opposite"),
            (y, x, "not on the curve"),
            ([0; 32], [0; 32], "how some write infinity"),
            (p, y, "x is p"),
            (x, p, "y is p"),
            ([0xff; 32], y, "x is more than p"),
        ] {
            let mut other = der::before_c2(&x, &y, c3, c2.len());
            other.extend_from_slice(c2);
            assert!(decrypt(&d, &other).is_none(), "{why}");
        }
    }

    /// Those of the point of the private scalar, as the crate computes it.
    fn multiples(d: &NonZeroScalar) -> Multiples {
        let p = AffinePoint::from(ProjectivePoint::mul_by_generator(d));
        Multiples::of(&Affine::from_coordinates(&p.x().into(), &p.y().into()).unwrap())
    }

    fn scalar(hex: &str) -> NonZeroScalar {
        let repr: [u8; 32] = bytes(hex).try_into().unwrap();
        NonZeroScalar::new(Scalar::from_repr(repr.into()).unwrap()).unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let pairs = hex.as_bytes().chunks(2);
        pairs
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }
}
