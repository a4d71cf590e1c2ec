//! The public keys of an issuer: a JWK Set (RFC 7517, section 5).
//!
//! Keys that are of no use here are passed over, as the RFC asks: other key types and curves, keys
//! for encryption, secrets, and keys whose numbers are out of range.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::auth::file::Malformed;
use crate::auth::jwt::compact::{Compact, Strict};
use crate::domain::jwt::Algorithm;

/// The most keys that a set may have.
const MAX: usize = 100;

/// The keys of an issuer.
pub struct KeySet {
    /// The SHA-256 of the set's text: two sets are the same if they say the same.
    pub(super) id: [u8; 32],
    keys: Vec<Key>,
}

impl KeySet {
    /// Reads a JWK Set.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let parsed = serde_json::from_str(text).map_err(|error: serde_json::Error| Malformed {
            line: Some(error.line()),
            reason: "not JSON, or a name stands there twice",
        });
        let Strict(set) = parsed?;
        let malformed = |reason| Malformed { line: None, reason };
        let listed = set.get("keys").and_then(Value::as_array);
        let listed = listed.ok_or_else(|| malformed("not a JWK Set: there is no list of keys"))?;
        if listed.len() > MAX {
            return Err(malformed("there are more than 100 keys"));
        }
        let keys: Vec<Key> = listed.iter().filter_map(Key::of).collect();
        // An empty list is how an issuer takes all its keys back.
        if keys.is_empty() && !listed.is_empty() {
            return Err(malformed("none of the keys can be used here"));
        }
        Ok(Self {
            id: Sha256::digest(text).into(),
            keys,
        })
    }

    /// Whether the token names a key that the set does not have.
    pub(super) fn lacks(&self, token: &Compact<'_>) -> bool {
        let named = |key: &Key| key.kid == token.kid;
        token.kid.is_some() && !self.keys.iter().any(named)
    }

    /// Whether the token's signature is by the one key of the set that it may be by: the one that it
    /// names, or the only one that fits its algorithm if it names none.
    pub(super) fn verify(&self, token: &Compact<'_>) -> bool {
        let named = |key: &&Key| token.kid.is_none() || key.kid == token.kid;
        let mut fitting = self.keys.iter().filter(named);
        let mut fitting = fitting
            .by_ref()
            .filter_map(|key| key.verifier(token.algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(verifier), None) => {
                let verified = verifier.verify_sig(token.signed, &token.signature);
                verified.is_ok()
            }
            _ => false,
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.keys.len())
    }
}

/// A key, ready to verify by each algorithm that it may be used with.
struct Key {
    kid: Option<String>,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
}

impl Key {
    /// The key that a JWK describes; none if it is of no use here.
    fn of(jwk: &Value) -> Option<Self> {
        let text = |name| match jwk.get(name) {
            None => Some(None),
            Some(Value::String(text)) => Some(Some(text.as_str())),
            Some(_) => None,
        };
        // RFC 7517, sections 4.2 and 4.3.
        if text("use")?.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops")
            && !operations.as_array()?.iter().any(|one| one == "verify")
        {
            return None;
        }
        let only = match text("alg")? {
            Some(name) => Some(name.parse::<Algorithm>().ok()?),
            None => None,
        };
        let bytes = |name| URL_SAFE_NO_PAD.decode(text(name)??).ok();
        let (algorithms, public) = match (text("kty")??, text("crv")?) {
            ("RSA", _) => (RSA, rsa(&bytes("n")?, &bytes("e")?)?),
            ("EC", Some("P-256")) => (P256, point(&bytes("x")?, &bytes("y")?, 32)?),
            ("EC", Some("P-384")) => (P384, point(&bytes("x")?, &bytes("y")?, 48)?),
            ("OKP", Some("Ed25519")) => (ED25519, ed25519(bytes("x")?)?),
            _ => return None,
        };
        let allowed = algorithms.iter().copied();
        let allowed = allowed.filter(|algorithm| only.is_none_or(|only| only == *algorithm));
        let verifiers = allowed.map(|algorithm| {
            let parsed = ParsedPublicKey::new(verification(algorithm), &public);
            Some((algorithm, parsed.ok()?))
        });
        let verifiers: Vec<_> = verifiers.collect::<Option<_>>()?;
        (!verifiers.is_empty()).then_some(Self {
            kid: text("kid")?.map(str::to_owned),
            verifiers,
        })
    }

    fn verifier(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        let mut verifiers = self.verifiers.iter();
        let (_, verifier) = verifiers.find(|(one, _)| *one == algorithm)?;
        Some(verifier)
    }
}

/// The algorithms of each type of key.
const RSA: &[Algorithm] = &[
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
];
const P256: &[Algorithm] = &[Algorithm::Es256];
const P384: &[Algorithm] = &[Algorithm::Es384];
const ED25519: &[Algorithm] = &[Algorithm::EdDsa];

/// How the library verifies an algorithm's signatures. ECDSA's are two numbers of fixed length (RFC
/// 7518, section 3.4), and no DER. RSA keys have 2048 to 8192 bits.
fn verification(algorithm: Algorithm) -> &'static dyn VerificationAlgorithm {
    match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
        Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
        Algorithm::EdDsa => &signature::ED25519,
    }
}

/// An RSA public key as the library reads it.
fn rsa(n: &[u8], e: &[u8]) -> Option<Vec<u8>> {
    // An exponent beyond 32 bits is refused by most libraries, and makes verifying slow.
    if !(256..=1024).contains(&n.len()) || !(1..=4).contains(&e.len()) {
        return None;
    }
    let der: PublicKeyX509Der<'_> = RsaPublicKeyComponents { n, e }.as_der().ok()?;
    Some(der.as_ref().to_vec())
}

/// A point as the library reads it. Both coordinates have their whole length (RFC 7518, section
/// 6.2.1.2).
fn point(x: &[u8], y: &[u8], length: usize) -> Option<Vec<u8>> {
    let fits = x.len() == length && y.len() == length;
    fits.then(|| [&[4], x, y].concat())
}

/// An Ed25519 public key as the library reads it.
fn ed25519(x: Vec<u8>) -> Option<Vec<u8>> {
    (x.len() == 32).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7515, appendix A.2.
    const RS256: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
        cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Q\
        c_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb\
        1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgG\
        Y9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    const RSA_KEY: &str = r#""kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ""#;

    // RFC 7515, appendix A.3.
    const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
        cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqP\
        P3-Kg6NU1Q";
    const P256_KEY: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;

    // RFC 8037, appendices A.2 and A.4.
    const ED_SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    const ED_SIGNATURE: &str =
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    const ED_KEY: &str =
        r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    #[test]
    fn the_signatures_of_the_rfcs_verify_and_changed_ones_do_not() {
        for (token, key) in [(RS256, RSA_KEY), (ES256, P256_KEY)] {
            let mut token = Compact::parse(token.as_bytes()).unwrap();
            assert!(set(&[key]).verify(&token), "{key}");
            for byte in 0..token.signature.len() {
                token.signature[byte] ^= 1;
                assert!(!set(&[key]).verify(&token), "{key}: byte {byte}");
                token.signature[byte] ^= 1;
            }
            token.signed = &token.signed[1..];
            assert!(!set(&[key]).verify(&token), "{key}");
        }
        // The payload of this example is no JSON.
        let mut token = Compact {
            algorithm: Algorithm::EdDsa,
            kid: None,
            claims: Value::Null,
            signed: ED_SIGNED.as_bytes(),
            signature: URL_SAFE_NO_PAD.decode(ED_SIGNATURE).unwrap(),
        };
        assert!(set(&[ED_KEY]).verify(&token));
        token.signature[0] ^= 1;
        assert!(!set(&[ED_KEY]).verify(&token));
    }

    #[test]
    fn a_signature_of_zeros_or_in_der_is_none() {
        let mut token = Compact::parse(ES256.as_bytes()).unwrap();
        let (r, s) = token.signature.split_at(32);
        let number = |number: &[u8]| {
            let sign = if number[0] < 128 { &[][..] } else { &[0] };
            let content = [sign, number].concat();
            [&[2, u8::try_from(content.len()).unwrap()], &*content].concat()
        };
        let content = [number(r), number(s)].concat();
        let der = [&[0x30, u8::try_from(content.len()).unwrap()], &*content].concat();
        for forged in [vec![0; 64], vec![], vec![0; 63], vec![0; 65], der] {
            token.signature = forged;
            assert!(!set(&[P256_KEY]).verify(&token), "{:?}", token.signature);
        }
    }

    #[test]
    fn a_key_is_found_by_its_id_or_by_being_the_only_one_that_fits() {
        let mut token = Compact::parse(ES256.as_bytes()).unwrap();
        let (a, b) = (
            format!(r#"{P256_KEY},"kid":"a""#),
            format!(r#"{P256_KEY},"kid":"b""#),
        );
        let good: [(Option<&str>, &[&str]); 4] = [
            (None, &[P256_KEY]),
            (None, &[&a, RSA_KEY, ED_KEY]),
            (Some("a"), &[&a, &b]),
            (Some("b"), &[&a, &b, P256_KEY]),
        ];
        for (kid, keys) in good {
            token.kid = kid.map(str::to_owned);
            assert!(set(keys).verify(&token), "{kid:?}");
            assert!(!set(keys).lacks(&token), "{kid:?}");
        }
        let bad: [(Option<&str>, &[&str], bool); 7] = [
            (None, &[&a, &b], false),
            (None, &[P256_KEY, P256_KEY], false),
            (None, &[RSA_KEY], false),
            (Some("c"), &[&a, &b], true),
            (Some("a"), &[P256_KEY], true),
            (Some("../a"), &[&a], true),
            (Some("a"), &[&a, &a], false),
        ];
        for (kid, keys, lacks) in bad {
            token.kid = kid.map(str::to_owned);
            assert!(!set(keys).verify(&token), "{kid:?}");
            assert_eq!(set(keys).lacks(&token), lacks, "{kid:?}");
        }
    }

    #[test]
    fn a_key_that_is_for_something_else_is_not_used() {
        let token = Compact::parse(ES256.as_bytes()).unwrap();
        for more in [
            r#""use":"sig""#,
            r#""alg":"ES256""#,
            r#""key_ops":["sign","verify"]"#,
            r#""x5c":["MII"],"n":7"#,
        ] {
            let key = format!("{P256_KEY},{more}");
            assert!(set(&[&key, ED_KEY]).verify(&token), "{more}");
        }
        for more in [
            r#""use":"enc""#,
            r#""use":7"#,
            r#""alg":"ES384""#,
            r#""alg":"HS256""#,
            r#""alg":"RS256""#,
            r#""key_ops":["sign"]"#,
            r#""key_ops":"verify""#,
            r#""kid":7"#,
        ] {
            let key = format!("{P256_KEY},{more}");
            assert!(!set(&[&key, ED_KEY]).verify(&token), "{more}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_passed_over() {
        let (x, _) = P256_KEY.split_once(r#","y""#).unwrap();
        for bad in [
            r#""kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ""#,
            r#""kty":"EC","crv":"secp256k1","x":"AA","y":"AA""#,
            r#""kty":"RSA","e":"AQAB""#,
            r#""kty":"RSA","e":"AQAB","n":"AQAB""#,
            &RSA_KEY.replace(r#""e":"AQAB""#, r#""e":"""#),
            &RSA_KEY.replace(r#""e":"AQAB""#, r#""e":"AQABAQAB""#),
            &RSA_KEY.replace(r#""n":"o"#, r#""n":"AAAA"#),
            &RSA_KEY.replace("AQAB", "AQAB="),
            x,
            &P256_KEY.replace("5a0", "5a1"),
            &P256_KEY.replace("5a0", "5aw"),
            &format!(r#"{x},"y":"x_FE""#),
            &ED_KEY.replace("11qY", ""),
            r#""kty":7"#,
            "",
        ] {
            let text = format!(r#"{{"keys":[{{{bad}}},{{{P256_KEY}}}]}}"#);
            assert_eq!(KeySet::parse(&text).unwrap().keys.len(), 1, "{bad}");
            let text = format!(r#"{{"keys":[{{{bad}}}]}}"#);
            let malformed = KeySet::parse(&text).unwrap_err();
            assert_eq!(
                malformed.reason, "none of the keys can be used here",
                "{bad}"
            );
        }
    }

    #[test]
    fn a_set_is_a_list_of_at_most_100_keys() {
        let many = |count| {
            format!(
                r#"{{"keys":[{}]}}"#,
                vec![format!("{{{ED_KEY}}}"); count].join(",")
            )
        };
        assert_eq!(KeySet::parse(&many(100)).unwrap().keys.len(), 100);
        assert_eq!(KeySet::parse(&many(0)).unwrap().keys.len(), 0);
        let repeated = format!(r#"{{"keys":[{{{ED_KEY},"x":"AA"}}]}}"#);
        for bad in [
            many(101).as_str(),
            "",
            "[]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":[]}x"#,
            r#"{"keys":[],"keys":[]}"#,
            &repeated,
        ] {
            assert!(KeySet::parse(bad).is_err(), "{bad}");
        }
    }

    fn set(keys: &[&str]) -> KeySet {
        let keys: Vec<String> = keys.iter().map(|key| format!("{{{key}}}")).collect();
        KeySet::parse(&format!(r#"{{"keys":[{}]}}"#, keys.join(","))).unwrap()
    }
}
