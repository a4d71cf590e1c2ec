//! What every provider takes for an RSA key, so that a key that one seals opens in every other.

use rsa::pkcs8::{EncodePrivateKey, PrivateKeyInfoRef};
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, PrivateKey};
use subtle::ConstantTimeEq;

use crate::domain::secret::Material;

/// Reads material that is a PKCS#8 `PrivateKeyInfo` of a sound key with a modulus of `bits` bits and
/// the public exponent 65537.
///
/// The crate checks n, e, d, p and q, and computes the rest anew instead of reading it: dP, dQ, qInv.
/// Other libraries use what they are given. So the material has to be what the crate would write,
/// byte for byte, which leaves no room for a wrong number, and none for attributes or a second
/// encoding either.
pub(super) fn read(bits: u32, material: &Material) -> Option<PrivateKey> {
    let info = PrivateKeyInfoRef::try_from(material.expose()).ok()?;
    let key = PrivateKey::try_from(info).ok()?;
    if key.n().bit_width() != bits || *key.e() != BoxedUint::from(65537u32) {
        return None;
    }
    let written = key.to_pkcs8_der().ok()?;
    bool::from(written.as_bytes().ct_eq(material.expose())).then_some(key)
}
