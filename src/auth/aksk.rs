//! AK/SK signatures: a caller proves that it holds a secret key without sending it.
//!
//! The signature is an HMAC over the canonical form of the request, so whoever
//! changes a signed part of it on the way is noticed. Two layouts of the `Authorization` header are
//! in use (contract, sections 6.3 and 6.4), and nothing else is accepted:
//!
//! ```text
//! A  SDK-HMAC-SHA256 Access=AK, SignedHeaders=a;b, Signature=hex
//! B  SDK-HMAC-SHA256 Credential=AK/date/region/service/sdk_request, SignedHeaders=a;b, Signature=hex
//! ```
//!
//! A server cannot check an HMAC with a hash of the key, so the file holds the secret keys
//! themselves. Nobody but its owner and its group may read it:
//!
//! ```toml
//! [[access_key]]
//! access_key = "AKEXAMPLE0000000000"
//! secret_key = "…"
//! security_token = "…"                # of a temporary access key; may be left out
//! name = "billing"                    # in logs and in the audit; unique; if left out, the access key
//! project = "53d1aefc533f4ce9a59c26b01667cbcf"
//! expires = 2027-01-01T00:00:00Z      # may be left out
//! roles = ["billing-jobs"]            # for rules of a policy file; may be left out
//! actions = ["kms:cmk:encryptData", "kms:cmk:get"]    # may be left out beside roles
//! ```
//!
//! What is checked beyond the signature:
//!
//! * `x-sdk-date` is signed and within 15 minutes of our clock. Within them the same request may
//!   come again; TLS keeps others from sending it. `host` need not be signed, although every SDK
//!   does.
//! * The hash that is compared is that of the body that came. `X-Sdk-Content-Sha256` is never
//!   believed: if it is there, it is signed and agrees, so `UNSIGNED-PAYLOAD` is refused.
//! * The project is the access key's own. No header chooses one; layout B does not even sign
//!   `X-Project-Id`.
//! * A temporary access key comes with its security token in `X-Security-Token` (contract, section
//!   6.3), and one without a security token comes without. The header need not be signed: layout B
//!   adds it afterwards, and any other value is refused.
//! * A request carries one credential: a token beside the signature is refused.
//!
//! REST alone has such signatures: over gRPC the body is a stream that no one can sign beforehand.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use toml::Spanned;
use toml::value::Datetime;
use zeroize::Zeroizing;

use crate::auth::AuthError::BadSignature;
use crate::auth::canonical;
use crate::auth::canonical::{SignedHeaders, Spaces};
use crate::auth::date::Utc;
use crate::auth::entry;
use crate::auth::entry::{Grant, Terms};
use crate::auth::file::{FileError, Malformed, Refresh, Secrecy, Watched};
use crate::auth::hex;
use crate::auth::{AuthError, Authenticator, Evidence};
use crate::domain::caller::Caller;
use crate::domain::time::{Clock, Timestamp};

/// The one algorithm that is accepted.
const ALGORITHM: &str = "SDK-HMAC-SHA256";

/// The most bytes an `Authorization` header with a signature may have.
const MAX_HEADER: usize = 4096;

/// How far a request's date may be from our clock, in milliseconds.
const MAX_SKEW: u64 = 15 * 60 * 1000;

const DATE: &str = "x-sdk-date";
const CONTENT_HASH: &str = "x-sdk-content-sha256";
const SECURITY_TOKEN: &str = "x-security-token";

/// The access keys of a file.
#[derive(Debug)]
pub struct AccessKeys {
    file: Watched<Known>,
    clock: Arc<dyn Clock>,
}

impl AccessKeys {
    /// Reads the access keys that `path` lists.
    pub fn load(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, FileError> {
        let file = Watched::load(path, Secrecy::Secret, Known::parse)?;
        Ok(Self { file, clock })
    }

    /// The caller that an access key of this name stands for, whether or not it has expired.
    pub fn named(&self, name: &str) -> Option<Arc<Caller>> {
        let known = self.file.current();
        let mut callers = known.keys.values().map(|held| held.grant.caller());
        callers.find(|caller| *caller.name == *name).cloned()
    }

    fn caller(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        let now = self.clock.now();
        let Some(claim) = Claim::of(request.headers, now)? else {
            return Ok(None);
        };
        let known = self.file.current();
        let held = known.keys.get(claim.said.access_key);
        let held = held.ok_or(BadSignature("Get secretKey failed, ak not exist"))?;
        let body = request.body;
        let body = body.ok_or(BadSignature("AK/SK signatures are for REST only"))?;
        let signed = claim.signed_text(request, body)?;
        let signature = held.secret.sign(signed.as_bytes(), claim.said.scope);
        if !bool::from(signature.ct_eq(&claim.said.signature)) {
            return Err(BadSignature("verify aksk signature fail"));
        }
        if !held.comes_with(request.headers) {
            return Err(BadSignature("x-security-token is not the access key's"));
        }
        let caller = held.grant.at(now);
        let caller = caller.ok_or(BadSignature("the access key has expired"))?;
        Ok(Some(Arc::clone(caller)))
    }
}

#[async_trait]
impl Authenticator for AccessKeys {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        self.caller(request)
    }

    fn signs_body(&self, headers: &HeaderMap) -> bool {
        let claim = Claim::of(headers, self.clock.now()).ok().flatten();
        claim.is_some_and(|claim| self.file.current().keys.contains_key(claim.said.access_key))
    }
}

impl Refresh for AccessKeys {
    fn refresh(&self) -> Result<bool, FileError> {
        self.file.refresh()
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}

/// The signature that the headers carry, after its algorithm's name; none if they carry none.
fn find(headers: &HeaderMap) -> Result<Option<&[u8]>, AuthError> {
    let values = headers.get_all(AUTHORIZATION);
    // Huawei's other algorithms are SDK-HMAC-SM3, SDK-ECDSA-P256-SHA256, SDK-SM2-SM3 and
    // V11-HMAC-SHA256.
    let is_signature = |value: &[u8]| {
        let scheme = value.get(..4).unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"SDK-") || scheme.eq_ignore_ascii_case(b"V11-")
    };
    let mut signatures = values.iter().filter(|value| is_signature(value.as_bytes()));
    let Some(value) = signatures.next() else {
        return Ok(None);
    };
    if values.iter().nth(1).is_some() || headers.contains_key("x-auth-token") {
        return Err(BadSignature("there is more than one credential"));
    }
    let value = value.as_bytes();
    if value.len() > MAX_HEADER {
        return Err(BadSignature("the signature is too long"));
    }
    let rest = value.strip_prefix(ALGORITHM.as_bytes());
    match rest.and_then(|rest| rest.strip_prefix(b" ")) {
        Some(rest) => Ok(Some(rest)),
        None => Err(BadSignature(
            "the signature algorithm is not SDK-HMAC-SHA256",
        )),
    }
}

/// What the headers say of a signature. Nothing of it is true before the signature has been compared.
struct Claim<'a> {
    said: Parameters<'a>,
    /// When the request was signed.
    date: &'a str,
}

impl<'a> Claim<'a> {
    /// What the headers say, if it may be so at this time, whatever the rest of the request is; none if they say nothing.
    fn of(headers: &'a HeaderMap, now: Timestamp) -> Result<Option<Self>, AuthError> {
        let Some(parameters) = find(headers)? else {
            return Ok(None);
        };
        let said = Parameters::read(parameters);
        let said = said.ok_or(BadSignature("the signature is malformed"))?;
        let date = said.date(headers, now)?;
        Ok(Some(Self { said, date }))
    }

    /// The text that the signature must be over, if it may be over this request.
    fn signed_text(&self, request: &Evidence<'_>, body: &[u8]) -> Result<String, AuthError> {
        let payload = self.payload(request.headers, body)?;
        let (scope, spaces) = match self.said.scope {
            Some(scope) => (format!("{}\n", scope.text), Spaces::Collapsed),
            None => (String::new(), Spaces::Trimmed),
        };
        let form = canonical::request(request, self.said.signed_headers, &payload, spaces);
        let form = form.ok_or(BadSignature("a signed header is missing or repeated"))?;
        let form = hex::encode(&Sha256::digest(form).into());
        Ok(format!("{ALGORITHM}\n{}\n{scope}{form}", self.date))
    }

    /// The hash of the body that came, in the letter case in which the client signed it.
    fn payload(&self, headers: &HeaderMap, body: &[u8]) -> Result<String, AuthError> {
        let hash = hex::encode(&Sha256::digest(body).into());
        let Some(said) = headers.get(CONTENT_HASH) else {
            return Ok(hash);
        };
        if !self.said.signed_headers.contains(CONTENT_HASH) {
            return Err(BadSignature("x-sdk-content-sha256 is not signed"));
        }
        match said.to_str() {
            Ok(said) if said.eq_ignore_ascii_case(&hash) => Ok(said.to_owned()),
            _ => Err(BadSignature(
                "x-sdk-content-sha256 is not the hash of the body",
            )),
        }
    }
}

/// The parameters in a signature's header.
struct Parameters<'a> {
    access_key: &'a str,
    /// What the signing key is derived for; none in layout A, which signs with the secret key
    /// itself.
    scope: Option<Scope<'a>>,
    signed_headers: SignedHeaders<'a>,
    signature: [u8; 32],
}

impl<'a> Parameters<'a> {
    fn read(parameters: &'a [u8]) -> Option<Self> {
        let (mut who, mut signed_headers, mut signature) = (None, None, None);
        for parameter in str::from_utf8(parameters).ok()?.split(',') {
            let (name, value) = parameter.trim_ascii().split_once('=')?;
            let repeated = match name {
                "Access" => who.replace((value, None)).is_some(),
                "Credential" => {
                    let (access_key, scope) = value.split_once('/')?;
                    who.replace((access_key, Some(Scope::parse(scope)?)))
                        .is_some()
                }
                "SignedHeaders" => signed_headers
                    .replace(SignedHeaders::parse(value)?)
                    .is_some(),
                "Signature" => signature.replace(hex::decode(value.as_bytes())?).is_some(),
                _ => return None,
            };
            if repeated {
                return None;
            }
        }
        let (access_key, scope) = who?;
        Some(Self {
            access_key,
            scope,
            signed_headers: signed_headers?,
            signature: signature?,
        })
    }

    /// When the request was signed, as its headers say, if that is now.
    fn date<'h>(&self, headers: &'h HeaderMap, now: Timestamp) -> Result<&'h str, AuthError> {
        if !self.signed_headers.contains(DATE) {
            return Err(BadSignature("x-sdk-date is not signed"));
        }
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| Some((date, timestamp(date.as_bytes())?)));
        let Some((date, time)) = date else {
            return Err(BadSignature(
                "x-sdk-date is not a date like 20191115T033655Z",
            ));
        };
        if now.millis_since(time).unsigned_abs() > MAX_SKEW {
            return Err(BadSignature(
                "x-sdk-date is more than 15 minutes from the server's time",
            ));
        }
        if self.scope.is_some_and(|scope| !date.starts_with(scope.day)) {
            return Err(BadSignature(
                "the credential's date is not that of x-sdk-date",
            ));
        }
        Ok(date)
    }
}

/// What a signing key of layout B is derived for. Region and service are empty in practice.
#[derive(Clone, Copy)]
struct Scope<'a> {
    text: &'a str,
    day: &'a str,
    region: &'a str,
    service: &'a str,
}

impl<'a> Scope<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let scope = Self {
            text,
            day: parts.next()?,
            region: parts.next()?,
            service: parts.next()?,
        };
        let ends = parts.next() == Some(TERMINATOR) && parts.next().is_none();
        (ends && scope.day.len() == 8).then_some(scope)
    }
}

/// How a scope ends.
const TERMINATOR: &str = "sdk_request";

/// The moment that a text such as `20191115T033655Z` names.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let text: &[u8; 16] = text.try_into().ok()?;
    let &[
        c1,
        c2,
        y1,
        y2,
        m1,
        m2,
        d1,
        d2,
        b'T',
        h1,
        h2,
        n1,
        n2,
        s1,
        s2,
        b'Z',
    ] = text
    else {
        return None;
    };
    let two = |tens: u8, ones: u8| {
        let digits = tens.is_ascii_digit() && ones.is_ascii_digit();
        digits.then(|| (tens - b'0') * 10 + (ones - b'0'))
    };
    let utc = Utc {
        year: u16::from(two(c1, c2)?) * 100 + u16::from(two(y1, y2)?),
        month: two(m1, m2)?,
        day: two(d1, d2)?,
        hour: two(h1, h2)?,
        minute: two(n1, n2)?,
        second: two(s1, s2)?,
    };
    utc.timestamp()
}

/// The access keys that are known.
struct Known {
    keys: HashMap<String, Held>,
}

struct Held {
    secret: SecretKey,
    /// The SHA-256 of its security token, if it has one.
    security_token: Option<[u8; 32]>,
    grant: Grant,
}

impl Held {
    /// Whether the headers carry the security token, if there is one, and none else.
    fn comes_with(&self, headers: &HeaderMap) -> bool {
        let mut presented = headers.get_all(SECURITY_TOKEN).iter();
        match (&self.security_token, presented.next()) {
            (None, None) => true,
            (Some(token), Some(value)) if presented.next().is_none() => {
                let hash: [u8; 32] = Sha256::digest(value.as_bytes()).into();
                bool::from(token.ct_eq(&hash))
            }
            _ => false,
        }
    }
}

impl Known {
    fn parse(text: &str) -> Result<Self, Malformed> {
        let file: File = entry::parse(text)?;
        let mut names = HashSet::new();
        let mut keys = HashMap::new();
        for listed in &file.access_key {
            let access_key = listed.access_key.get_ref();
            let fits = access_key.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !(1..=128).contains(&access_key.len()) || !fits {
                let reason = "access_key is not 1 to 128 letters and digits";
                return Err(entry::refuse(text, &listed.access_key, reason));
            }
            let Wiped(secret) = listed.secret_key.get_ref();
            if secret.is_empty() {
                return Err(entry::refuse(
                    text,
                    &listed.secret_key,
                    "secret_key is empty",
                ));
            }
            let security_token = match &listed.security_token {
                None => None,
                Some(token) if token.get_ref().0.is_empty() => {
                    return Err(entry::refuse(text, token, "security_token is empty"));
                }
                Some(token) => Some(Sha256::digest(token.get_ref().0.as_bytes()).into()),
            };
            let name = match &listed.name {
                Some(name) => entry::name(text, name)?,
                None => access_key,
            };
            let terms = Terms {
                name,
                project: &listed.project,
                expires: listed.expires.as_ref(),
                roles: listed.roles.as_ref(),
                actions: listed.actions.as_ref(),
            };
            let held = Held {
                secret: SecretKey::new(secret),
                security_token,
                grant: Grant::new(text, &terms)?,
            };
            if keys.insert(access_key.clone(), held).is_some() {
                let reason = "the access_key is not unique";
                return Err(entry::refuse(text, &listed.access_key, reason));
            }
            if !names.insert(name) {
                let place = listed.name.as_ref().unwrap_or(&listed.access_key);
                return Err(entry::refuse(text, place, "the name is not unique"));
            }
        }
        Ok(Self { keys })
    }
}

/// The secret half of an access key, ready for both layouts. Wiped when dropped, never printed.
struct SecretKey {
    /// Signs in layout A.
    own: HmacKey,
    /// Derives the signing keys of layout B.
    root: HmacKey,
}

impl SecretKey {
    fn new(secret: &str) -> Self {
        let rooted = Zeroizing::new(["SDK", secret].concat());
        Self {
            own: HmacKey::new(secret.as_bytes()),
            root: HmacKey::new(rooted.as_bytes()),
        }
    }

    fn sign(&self, text: &[u8], scope: Option<Scope<'_>>) -> [u8; 32] {
        let Some(scope) = scope else {
            return self.own.sign(text);
        };
        let derive = |key: &HmacKey, part: &str| {
            let derived = Zeroizing::new(key.sign(part.as_bytes()));
            HmacKey::new(&*derived)
        };
        let day = derive(&self.root, scope.day);
        let region = derive(&day, scope.region);
        let service = derive(&region, scope.service);
        derive(&service, TERMINATOR).sign(text)
    }
}

/// A key of HMAC-SHA-256, brought to the length of a block as RFC 2104, section 2, says.
struct HmacKey(Zeroizing<[u8; 64]>);

impl HmacKey {
    fn new(key: &[u8]) -> Self {
        let mut block = Zeroizing::new([0; 64]);
        let hashed;
        let key = if key.len() > block.len() {
            hashed = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(key)));
            hashed.as_slice()
        } else {
            key
        };
        for (to, byte) in block.iter_mut().zip(key) {
            *to = *byte;
        }
        Self(block)
    }

    fn sign(&self, text: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new((&*self.0).into());
        mac.update(text);
        mac.finalize().into_bytes().into()
    }
}

/// The file as its TOML says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    access_key: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    access_key: Spanned<String>,
    secret_key: Spanned<Wiped>,
    security_token: Option<Spanned<Wiped>>,
    name: Option<Spanned<String>>,
    project: Spanned<String>,
    expires: Option<Spanned<Datetime>>,
    roles: Option<Spanned<Vec<Spanned<String>>>>,
    actions: Option<Spanned<Vec<Spanned<String>>>>,
}

/// Text that is wiped when the file has been parsed.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Wiped(Zeroizing<String>);

impl From<String> for Wiped {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Uri};
    use proptest::prelude::*;

    use super::*;
    use crate::auth::Peer;

    #[test]
    fn the_signature_is_the_one_of_the_published_example() {
        // Contract, section 6.3, vector 1, from the hash of its canonical request on.
        let text = "SDK-HMAC-SHA256\n20191115T033655Z\n\
            b25362e603ee30f4f25e7858e8a7160fd36e803bb2dfe206278659d71a9bcd7a";
        let secret = SecretKey::new("MFyfvK41ba2giqM7Uio6PznpdUKGpownRZlmVmHc");
        let signature = secret.sign(text.as_bytes(), None);
        assert_eq!(
            hex::encode(&signature),
            "7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe"
        );
    }

    #[test]
    fn keys_longer_than_a_block_are_hashed_first() {
        // RFC 4231, test cases 2 and 6: a key of 4 bytes and one of 131.
        let cases: [(&[u8], &[u8], &str); 2] = [
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, text, mac) in cases {
            assert_eq!(hex::encode(&HmacKey::new(key).sign(text)), mac);
        }
    }

    #[test]
    fn a_date_has_one_spelling() {
        assert_eq!(
            timestamp(b"20191115T033655Z"),
            Some(Timestamp(1_573_789_015_000))
        );
        for bad in [
            "",
            "20191115T033655",
            "20191115T033655Z ",
            "20191115t033655z",
            "20191115 033655Z",
            "2019-11-15T03:36:55Z",
            "20191315T033655Z",
            "2019111:T033655Z",
            "+0191115T033655Z",
        ] {
            assert_eq!(timestamp(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_request_is_signed_within_15_minutes_of_our_clock_to_the_millisecond() {
        let parameters = format!("Access=A, SignedHeaders=x-sdk-date, Signature={:064}", 0);
        let said = Parameters::read(parameters.as_bytes()).unwrap();
        let headers = headers(&[(DATE, "20191115T033655Z")]);
        let (signed, window) = (1_573_789_015_000, 900_000);
        for (now, taken) in [
            (signed - window - 1, false),
            (signed - window, true),
            (signed, true),
            (signed + window, true),
            (signed + window + 1, false),
        ] {
            assert_eq!(said.date(&headers, Timestamp(now)).is_ok(), taken, "{now}");
        }
    }

    #[test]
    fn a_signature_header_has_at_most_4096_bytes() {
        let longest = format!("SDK-HMAC-SHA256 {}", "a".repeat(4096 - 16));
        let found = |value: &str| find(&headers(&[("authorization", value)])).is_ok();
        assert!(found(&longest));
        assert!(!found(&(longest + "a")));
    }

    #[test]
    fn a_body_is_read_for_a_signature_that_may_be_good_and_for_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let entry = "[[access_key]]\naccess_key = \"A\"\nsecret_key = \"s\"\nproject = \"p\"\n\
            actions = [\"kms:*\"]\n";
        std::fs::write(file.path(), entry).unwrap();
        let keys = AccessKeys::load(file.path(), Arc::new(Standing)).unwrap();
        let signs = |list: &[(&'static str, &str)]| keys.signs_body(&headers(list));
        let good = format!(
            "{ALGORITHM} Access=A, SignedHeaders=x-sdk-date, Signature={:064}",
            0
        );
        let signature = ("authorization", &*good);
        let date = (DATE, "20191115T033655Z");
        assert!(signs(&[signature, date]));
        let of = |from, to| good.replace(from, to);
        for other in [
            &[date][..],
            &[date, ("x-auth-token", "t")],
            &[date, ("authorization", "Bearer t")],
            // These are refused whatever the body is.
            &[date, ("authorization", &of("HMAC-SHA256", "SM2-SM3"))],
            &[date, ("authorization", &of("=A", "=B"))],
            &[date, ("authorization", &of("Signature=0", "Signature="))],
            &[date, ("authorization", &of("x-sdk-date", "host"))],
            &[date, signature, ("x-auth-token", "t")],
            &[signature],
            &[signature, (DATE, "20191115T035156Z")],
        ] {
            assert!(!signs(other), "{other:?}");
        }
    }

    #[test]
    fn a_claim_has_three_parameters_once_each() {
        let signature = format!("Signature={}", "0".repeat(64));
        let claim = |text: &str| Parameters::read(text.as_bytes()).map(|read| read.scope.is_some());
        let layout_a = format!("Access=A, SignedHeaders=a;b, {signature}");
        assert_eq!(claim(&layout_a), Some(false));
        let layout_b = format!("Credential=A/20261123///sdk_request,SignedHeaders=a,{signature}");
        assert_eq!(claim(&layout_b), Some(true));
        for bad in [
            "",
            "Access=A",
            &layout_a.replace("Access", "access"),
            &layout_a.replace("Access=A, ", ""),
            &layout_a.replace(", Signature", " Signature"),
            &layout_a.replace("a;b", "b;a"),
            &format!("{layout_a},"),
            &format!("{layout_a}0"),
            &format!("{layout_a}, Access=A"),
            &format!("{layout_a}, Credential=A/20261123///sdk_request"),
            &format!("{layout_a}, Region=x"),
            &format!("{layout_b}, {signature}"),
            &layout_b.replace("/sdk_request", ""),
            &layout_b.replace("///", "/"),
            &layout_b.replace("///", "////"),
            &layout_b.replace("20261123", "2026112"),
        ] {
            assert_eq!(claim(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let bad = [
            "[[access_key]]\nsecret_key = \"hunter2",
            "[[access_key]]\nsecret_key = hunter2",
            "[[access_key]]\nsecret_key = [\"hunter2\"]",
            "[[access_key]]\naccess_key = \"hunter2!\"\nsecret_key = \"s\"\nproject = \"p\"\nactions = []",
            "[[access_key]]\nhunter2 = 1",
            "[[hunter2]]",
            "hunter2",
        ];
        for text in bad {
            let error = FileError::from(Known::parse(text).err().unwrap());
            let printed = format!("{error} {error:?}");
            assert!(!printed.contains("hunter2"), "{printed}");
            assert!(printed.starts_with("line "), "{printed}");
        }
    }

    /// It is 2019-11-15T03:36:55Z.
    #[derive(Debug)]
    struct Standing;

    impl Clock for Standing {
        fn now(&self) -> Timestamp {
            Timestamp(1_573_789_015_000)
        }
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    proptest! {
        #[test]
        fn no_header_stops_the_process(
            scheme in "(SDK-HMAC-SHA256 |SDK-|V11-|)",
            parameters in "((Access|Credential|SignedHeaders|Signature)[=/,; ]|[ -~]|[0-9a-f]{64}){0,12}",
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            for value in [[scheme.as_bytes(), parameters.as_bytes()].concat(), [scheme.as_bytes(), &bytes].concat()] {
                let Ok(value) = http::HeaderValue::from_bytes(&value) else { continue };
                let date = http::HeaderValue::from_static("20191115T033655Z");
                let date = (http::HeaderName::from_static(DATE), date);
                let headers = HeaderMap::from_iter([(AUTHORIZATION, value), date]);
                let request = Evidence {
                    method: &Method::POST,
                    uri: &Uri::from_static("/"),
                    headers: &headers,
                    body: Some(b""),
                    peer: &Peer::unix(0),
                };
                if let Ok(Some(claim)) = Claim::of(&headers, Timestamp(1_573_789_015_000)) {
                    let _ = claim.signed_text(&request, b"");
                }
            }
        }
    }
}
