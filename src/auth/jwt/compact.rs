//! The text of a token, taken apart: three parts in base64url, the first two of them JSON objects
//! (RFC 7515, section 7.1).
//!
//! All of it comes from the network, and up to its signature from anybody. It is read so that no two
//! readers can see two tokens in it: base64url has one spelling for each value, without padding, and
//! no member of an object stands there twice, however deep.

use std::fmt;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::domain::jwt::Algorithm;

/// A token, taken apart and not yet believed.
pub(super) struct Compact<'a> {
    /// How it says that it is signed.
    pub(super) algorithm: Algorithm,
    /// The key that it says it is signed with.
    pub(super) kid: Option<String>,
    /// What it claims: a JSON object.
    pub(super) claims: Value,
    /// The bytes that the signature is over.
    pub(super) signed: &'a [u8],
    /// The signature.
    pub(super) signature: Vec<u8>,
}

impl<'a> Compact<'a> {
    /// Takes a token apart; none if it is malformed, or of a kind that is not accepted.
    pub(super) fn parse(token: &'a [u8]) -> Option<Self> {
        let mut parts = token.split(|byte| *byte == b'.');
        let (header, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let signed = token.get(..header.len() + 1 + claims.len())?;
        let (algorithm, kid) = accepted(&object(header)?)?;
        Some(Self {
            algorithm,
            kid,
            claims: Value::Object(object(claims)?),
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// A claim that is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name)?.as_str()
    }
}

/// Whether a token begins as a JSON Web Token does, sound or not: with a JSON object that names an
/// algorithm, then a dot. Such a token is never anything else.
pub(super) fn is_jwt(token: &[u8]) -> bool {
    let Some(dot) = token.iter().position(|byte| *byte == b'.') else {
        return false;
    };
    // More is taken for a token here than is accepted as one, so that a header that is spelt oddly
    // does not make another kind of credential of it.
    let mut header = token.get(..dot).unwrap_or_default();
    while let Some(rest) = header.strip_suffix(b"=") {
        header = rest;
    }
    let Ok(header) = LENIENT.decode(header) else {
        return false;
    };
    let header: Result<Value, _> = serde_json::from_slice(&header);
    header.is_ok_and(|header| header.get("alg").is_some())
}

/// Reads what [`URL_SAFE_NO_PAD`] reads, and other spellings of it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The algorithm and the key id of a header, if this service does all that it asks for.
fn accepted(header: &Map<String, Value>) -> Option<(Algorithm, Option<String>)> {
    // `crit` asks for extensions, and there are none here (RFC 7515, section 4.1.11). `enc` makes it
    // an encrypted token (RFC 7516, section 4.1.2), `cty` one token in another (RFC 7519, section
    // 5.2). Keys and their addresses (`jwk`, `jku`, `x5c`, `x5u`) are nothing that a token may say of
    // itself, and are not looked at.
    if ["crit", "enc", "cty"]
        .iter()
        .any(|name| header.contains_key(*name))
    {
        return None;
    }
    // A token for another purpose says so (RFC 8725, section 3.11), such as `logout+jwt`.
    match header.get("typ") {
        None => {}
        Some(kind) => {
            let kind = kind.as_str()?.to_ascii_lowercase();
            let kind = kind.strip_prefix("application/").unwrap_or(&kind);
            if !["jwt", "at+jwt", "jose"].contains(&kind) {
                return None;
            }
        }
    }
    let algorithm = header.get("alg")?.as_str()?.parse().ok()?;
    let kid = match header.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str()?.to_owned()),
    };
    Some((algorithm, kid))
}

/// The JSON object that a part holds.
fn object(part: &[u8]) -> Option<Map<String, Value>> {
    let text = URL_SAFE_NO_PAD.decode(part).ok()?;
    match serde_json::from_slice(&text) {
        Ok(Strict(Value::Object(object))) => Some(object),
        _ => None,
    }
}

/// Any JSON, in whose objects no name stands twice.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON without repeated names")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Strict, E> {
                Ok(Strict(Value::Null))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Strict, E> {
                Ok(Strict(text.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Strict, A::Error> {
                let mut values = Vec::new();
                while let Some(Strict(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(Strict(Value::Array(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut object = Map::new();
                while let Some((name, Strict(value))) = map.next_entry::<String, _>()? {
                    if object.insert(name, value).is_some() {
                        return Err(de::Error::custom("a repeated name"));
                    }
                }
                Ok(Strict(Value::Object(object)))
            }
        }

        input.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"alg":"ES256","kid":"k"}"#;

    #[test]
    fn a_token_is_taken_apart() {
        let token = token(HEADER, r#"{"iss":"i","n":{"a":[1,-2,0.5,null,true]}}"#);
        let parts = Compact::parse(token.as_bytes()).unwrap();
        assert_eq!(parts.algorithm, Algorithm::Es256);
        assert_eq!(parts.kid.as_deref(), Some("k"));
        assert_eq!(parts.text("iss"), Some("i"));
        assert_eq!(parts.claims["n"]["a"].as_array().unwrap().len(), 5);
        assert_eq!(parts.signature, b"signature");
        let (signed, _) = token.rsplit_once('.').unwrap();
        assert_eq!(parts.signed, signed.as_bytes());
    }

    #[test]
    fn a_header_that_asks_for_more_than_there_is_makes_no_token() {
        let kinds = [
            r#""typ":"JWT""#,
            r#""typ":"jwt""#,
            r#""typ":"JOSE""#,
            r#""typ":"application/at+jwt""#,
        ];
        for more in kinds
            .into_iter()
            .chain([r#""jku":"https://x""#, r#""jwk":{}"#])
        {
            let header = format!(r#"{{"alg":"ES256",{more}}}"#);
            assert!(
                Compact::parse(token(&header, "{}").as_bytes()).is_some(),
                "{more}"
            );
        }
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"es256"}"#,
            r#"{"alg":["ES256"]}"#,
            r#"{"alg":null}"#,
            r#"{"kid":"k"}"#,
            r#"{"alg":"ES256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"ES256","crit":[]}"#,
            r#"{"alg":"ES256","b64":false,"crit":["b64"]}"#,
            r#"{"alg":"ES256","enc":"A128GCM"}"#,
            r#"{"alg":"ES256","cty":"JWT"}"#,
            r#"{"alg":"ES256","typ":"logout+jwt"}"#,
            r#"{"alg":"ES256","typ":7}"#,
            r#"{"alg":"ES256","kid":7}"#,
            r#"{"alg":"ES256","kid":null}"#,
            r#"{"alg":"ES256","alg":"none"}"#,
            r#"{"alg":"ES256","kid":"a","kid":"b"}"#,
            r#"{"alg":"ES256","jwk":{"a":1,"a":1}}"#,
            r#"{"alg":"ES256","\u0061lg":"ES256"}"#,
            r#"["alg"]"#,
            r#"{"alg":"ES256"}{}"#,
        ] {
            let token = token(header, "{}");
            assert!(Compact::parse(token.as_bytes()).is_none(), "{header}");
        }
    }

    #[test]
    fn claims_are_one_object_without_repeated_names() {
        for claims in [
            "",
            "7",
            "[]",
            "null",
            r#"{"a":1,"a":1}"#,
            r#"{"k":{"a":1,"a":2}}"#,
            r#"{"k":[{"a":1,"a":2}]}"#,
            r#"{"a":1"#,
            r#"{"a":"\ud800"}"#,
            &format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200)),
        ] {
            let token = token(HEADER, claims);
            assert!(Compact::parse(token.as_bytes()).is_none(), "{claims}");
        }
        let token = token_of(
            &encode(HEADER),
            &URL_SAFE_NO_PAD.encode(b"{\"a\":\"\xff\"}"),
        );
        assert!(Compact::parse(token.as_bytes()).is_none(), "not UTF-8");
    }

    #[test]
    fn each_value_has_one_spelling() {
        let good = token_of(&encode(HEADER), &encode(r#"{"a":12}"#));
        assert!(Compact::parse(good.as_bytes()).is_some());
        let (header, claims) = (encode(HEADER), encode(r#"{"a":12}"#));
        let bad = [
            format!("{header}.{claims}"),
            format!("{header}.{claims}.c2ln.c2ln"),
            format!("{header}..c2ln"),
            format!(".{claims}.c2ln"),
            format!("{header}.{claims}=.c2ln"),
            format!("{header}.{claims}.c2lnbg=="),
            format!("{header}.{claims}.c2lnb"),
            format!("{header}.{claims}.c2ln bg"),
            format!("{header}.{claims}.c2ln\nbg"),
            format!(" {header}.{claims}.c2ln"),
            format!("{header}.{claims}.c2ln "),
            format!("{header}.{claims}.c2l+"),
            format!("{header}.{claims}.c2l/"),
            // The last character has bits that mean nothing: `Q` and `R` both end a single zero byte.
            format!("{header}.{claims}.AR"),
        ];
        for token in bad {
            assert!(Compact::parse(token.as_bytes()).is_none(), "{token}");
        }
    }

    #[test]
    fn what_begins_as_a_token_is_one_however_it_goes_on() {
        for header in [
            HEADER,
            r#"{"alg":"none"}"#,
            r#" {"typ":"JWT","alg":7}"#,
            r#"{"alg":"a","alg":"b"}"#,
        ] {
            let header = encode(header);
            for rest in ["", "x", "x.y", "x.y.z.w", "\u{e9}"] {
                assert!(
                    is_jwt(format!("{header}.{rest}").as_bytes()),
                    "{header}.{rest}"
                );
            }
            assert!(is_jwt(format!("{header}=.x.y").as_bytes()), "{header}");
            assert!(!is_jwt(header.as_bytes()), "{header}");
        }
        for other in [
            "",
            ".",
            "a.b.c",
            "Everything-of-x",
            "e30.e30.",
            "bnVsbA.x.y",
            "Ny4.x",
        ] {
            assert!(!is_jwt(other.as_bytes()), "{other}");
        }
    }

    fn token(header: &str, claims: &str) -> String {
        token_of(&encode(header), &encode(claims))
    }

    fn token_of(header: &str, claims: &str) -> String {
        format!("{header}.{claims}.{}", encode("signature"))
    }

    fn encode(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }
}
