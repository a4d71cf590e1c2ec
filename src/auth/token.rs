//! Tokens, checked against a file of hashes.
//!
//! A token comes in `X-Auth-Token`, as the contract has it (section 6.1), or in `Authorization:
//! Bearer`. The file says of each token only its SHA-256, so reading it makes nobody a caller:
//!
//! ```toml
//! [[token]]
//! name = "billing"                    # in logs and in the audit; unique
//! sha256 = "…"                        # 64 hexadecimal digits
//! project = "53d1aefc533f4ce9a59c26b01667cbcf"
//! expires = 2027-01-01T00:00:00Z      # may be left out
//! roles = ["billing-jobs"]            # for rules of a policy file; may be left out
//! actions = ["kms:cmk:encryptData", "kms:cmk:get"]    # may be left out beside roles
//! ```
//!
//! A plain hash is enough only because a token is random: make it of 32 random bytes, never of a
//! password.
//!
//! A request carries one credential. Both headers at once, or one of them twice, is an invalid
//! token whatever they say: two programs on the way could otherwise believe in two different
//! callers.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use toml::value::Datetime;
use toml::{Spanned, Value};

use crate::auth::entry;
use crate::auth::entry::{Grant, Terms};
use crate::auth::file::{FileError, Malformed, Refresh, Secrecy, Watched};
use crate::auth::hex;
use crate::auth::{AuthError, Authenticator, Evidence};
use crate::domain::caller::Caller;
use crate::domain::time::Clock;

/// The most bytes a token may have.
const MAX: usize = 32 * 1024;

/// The tokens of a file.
#[derive(Debug)]
pub struct Tokens {
    file: Watched<Known>,
    clock: Arc<dyn Clock>,
    /// Whether a token that is not in the file may be one of another kind.
    leaves_unknown: bool,
}

impl Tokens {
    /// Reads the tokens that `path` lists.
    pub fn load(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, FileError> {
        let file = Watched::load(path, Secrecy::Public, Known::parse)?;
        Ok(Self {
            file,
            clock,
            leaves_unknown: false,
        })
    }

    /// Leaves a token that is not in the file to whoever is asked next.
    #[must_use]
    pub fn leaving_unknown(self) -> Self {
        Self {
            leaves_unknown: true,
            ..self
        }
    }

    /// The caller that a token of this name stands for, whether or not the token has expired.
    pub fn named(&self, name: &str) -> Option<Arc<Caller>> {
        let known = self.file.current();
        let mut callers = known.0.values().map(|(_, grant)| grant.caller());
        callers.find(|caller| *caller.name == *name).cloned()
    }

    fn caller(&self, headers: &HeaderMap) -> Result<Option<Arc<Caller>>, AuthError> {
        let Some(token) = find(headers)? else {
            return Ok(None);
        };
        let known = self.file.current();
        let Some(grant) = known.find(token) else {
            return if self.leaves_unknown {
                Ok(None)
            } else {
                Err(AuthError::InvalidToken)
            };
        };
        let caller = grant.at(self.clock.now()).ok_or(AuthError::ExpiredToken)?;
        Ok(Some(Arc::clone(caller)))
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        self.caller(request.headers)
    }

    fn signs_body(&self, _: &HeaderMap) -> bool {
        false
    }
}

impl Refresh for Tokens {
    fn refresh(&self) -> Result<bool, FileError> {
        self.file.refresh()
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}

/// The SHA-256 of a token, as the file has it.
pub fn hash(token: &[u8]) -> String {
    hex::encode(&Sha256::digest(token).into())
}

/// An entry to put into the file.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The name in logs and in the audit.
    pub name: &'a str,
    /// The project.
    pub project: &'a str,
    /// The end, as TOML writes an offset date-time.
    pub expires: Option<&'a str>,
    /// The actions, or patterns of actions.
    pub actions: &'a [&'a str],
}

impl Entry<'_> {
    /// The entry for `token` as text that [`Tokens::load`] reads. Refuses what `load` would refuse.
    pub fn render(&self, token: &[u8]) -> Result<String, Malformed> {
        let quote = |text: &str| Value::from(text).to_string();
        let expires = self.expires.map(|expires| {
            let datetime: Datetime = expires.parse().map_err(|_| Malformed {
                line: None,
                reason: "expires is not a date and time with an offset from UTC",
            })?;
            Ok(format!("expires = {datetime}\n"))
        });
        let text = format!(
            "[[token]]\nname = {}\nsha256 = {}\nproject = {}\n{}actions = {}\n",
            quote(self.name),
            quote(&hash(token)),
            quote(self.project),
            expires.transpose()?.unwrap_or_default(),
            Value::from(self.actions.to_vec()),
        );
        Known::parse(&text)?;
        Ok(text)
    }
}

/// The token that the headers carry; none if they carry none.
pub(super) fn find(headers: &HeaderMap) -> Result<Option<&[u8]>, AuthError> {
    let mut own = headers.get_all("x-auth-token").iter();
    let mut general = headers.get_all(AUTHORIZATION).iter();
    let token = match (own.next(), general.next()) {
        (None, None) => return Ok(None),
        (Some(token), None) if own.next().is_none() => token.as_bytes(),
        (None, Some(value)) => {
            let repeated = general.next().is_some();
            match (bearer(value.as_bytes()), repeated) {
                (Some(token), false) => token,
                // Another scheme is for another authenticator.
                (None, false) => return Ok(None),
                (_, true) => return Err(AuthError::InvalidToken),
            }
        }
        (Some(_), _) => return Err(AuthError::InvalidToken),
    };
    if token.is_empty() || token.len() > MAX {
        return Err(AuthError::InvalidToken);
    }
    Ok(Some(token))
}

/// What follows the scheme `Bearer` (RFC 6750, section 2.1; the scheme's case is free by RFC 9110,
/// section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(b"Bearer".len())?;
    if !scheme.eq_ignore_ascii_case(b"Bearer") {
        return None;
    }
    match rest {
        [] => Some(rest),
        [b' ', ..] => Some(rest.trim_ascii_start()),
        _ => None,
    }
}

/// The tokens that are known, by the first half of their hashes.
struct Known(HashMap<[u8; 16], (Hash, Grant)>);

type Hash = [u8; 32];

impl Known {
    fn parse(text: &str) -> Result<Self, Malformed> {
        let file: File = entry::parse(text)?;
        let mut names = HashSet::new();
        let mut known = HashMap::new();
        for listed in &file.token {
            let name = entry::name(text, &listed.name)?;
            if !names.insert(name) {
                return Err(entry::refuse(text, &listed.name, "the name is not unique"));
            }
            let hash = hex::decode(listed.sha256.get_ref().as_bytes()).ok_or_else(|| {
                entry::refuse(text, &listed.sha256, "sha256 is not 64 hexadecimal digits")
            })?;
            let terms = Terms {
                name,
                project: &listed.project,
                expires: listed.expires.as_ref(),
                roles: listed.roles.as_ref(),
                actions: listed.actions.as_ref(),
            };
            let grant = Grant::new(text, &terms)?;
            if known.insert(half(&hash), (hash, grant)).is_some() {
                return Err(entry::refuse(
                    text,
                    &listed.sha256,
                    "the sha256 is not unique",
                ));
            }
        }
        Ok(Self(known))
    }

    /// What the token grants. The map's own comparison tells a guesser how far one half of the
    /// guess's hash agrees, and nothing of the other.
    fn find(&self, token: &[u8]) -> Option<&Grant> {
        let hash: Hash = Sha256::digest(token).into();
        let (whole, grant) = self.0.get(&half(&hash))?;
        bool::from(whole.ct_eq(&hash)).then_some(grant)
    }
}

fn half(hash: &Hash) -> [u8; 16] {
    let mut half = [0; 16];
    for (to, byte) in half.iter_mut().zip(hash) {
        *to = *byte;
    }
    half
}

/// The file as its TOML says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: Spanned<String>,
    sha256: Spanned<String>,
    project: Spanned<String>,
    expires: Option<Spanned<Datetime>>,
    roles: Option<Spanned<Vec<Spanned<String>>>>,
    actions: Option<Spanned<Vec<Spanned<String>>>>,
}

#[cfg(test)]
mod tests {
    use crate::domain::time::Timestamp;

    use super::*;

    #[test]
    fn a_token_is_found_in_either_header() {
        let found =
            |list: &[(&'static str, &str)]| find(&headers(list)).unwrap().map(<[u8]>::to_vec);
        assert_eq!(found(&[("x-auth-token", "t")]), Some(b"t".to_vec()));
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer  "] {
            let value = format!("{scheme} t");
            assert_eq!(
                found(&[("authorization", &value)]),
                Some(b"t".to_vec()),
                "{value}"
            );
        }
    }

    #[test]
    fn a_token_that_is_not_in_the_file_is_refused_or_left_to_who_is_asked_next() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("tokens.toml");
        std::fs::write(&path, "").unwrap();
        let unknown = headers(&[("x-auth-token", "unknown")]);
        let tokens = Tokens::load(&path, Arc::new(Still)).unwrap();
        let told = tokens.caller(&unknown);
        assert!(matches!(told, Err(AuthError::InvalidToken)), "{told:?}");
        let told = tokens.leaving_unknown().caller(&unknown);
        assert!(matches!(told, Ok(None)), "{told:?}");
    }

    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }
    }

    #[test]
    fn other_credentials_are_left_to_others() {
        for list in [
            &[][..],
            &[("x-project-id", "p")],
            &[("authorization", "Basic dDp0")],
            &[(
                "authorization",
                "SDK-HMAC-SHA256 Access=a, SignedHeaders=b, Signature=c",
            )],
            &[("authorization", "Bearers t")],
            &[("authorization", "")],
        ] {
            assert!(matches!(find(&headers(list)), Ok(None)), "{list:?}");
        }
    }

    #[test]
    fn a_request_carries_one_credential() {
        let token = ("x-auth-token", "t");
        for other in [
            token,
            ("authorization", "Bearer t"),
            ("authorization", "Basic t"),
        ] {
            refused(&[token, other]);
        }
        refused(&[("authorization", "Bearer t"), ("authorization", "Bearer t")]);
        refused(&[("authorization", "Basic t"), ("authorization", "Bearer t")]);
    }

    #[test]
    fn an_empty_token_is_a_bad_token_and_not_a_missing_one() {
        refused(&[("x-auth-token", "")]);
        refused(&[("authorization", "Bearer")]);
        refused(&[("authorization", "Bearer ")]);
    }

    #[test]
    fn a_token_has_at_most_32_kibibytes() {
        let longest = "t".repeat(32 * 1024);
        assert!(find(&headers(&[("x-auth-token", &longest)])).is_ok());
        refused(&[("x-auth-token", &(longest + "t"))]);
    }

    #[test]
    fn a_hash_is_what_sha256sum_prints() {
        // FIPS 180-4, example of SHA-256 for "abc".
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash(b"abc"), known);
    }

    #[test]
    fn a_rendered_entry_is_one_that_loads() {
        let text = ENTRY.render(b"secret").unwrap();
        let known = Known::parse(&text).unwrap();
        assert!(!text.contains("secret"));
        assert!(known.find(b"other").is_none());
        let grant = known.find(b"secret").unwrap();
        let caller = grant.at(Timestamp(0)).unwrap();
        assert_eq!((&*caller.name, caller.project.as_str()), ("billing", "p"));
        assert!(grant.at(Timestamp(1_798_761_600_000)).is_none());
    }

    #[test]
    fn an_entry_that_would_not_load_is_not_rendered() {
        let bad = [
            Entry {
                name: "a\"\n",
                ..ENTRY
            },
            Entry {
                project: "",
                ..ENTRY
            },
            Entry {
                expires: Some("2027-01-01"),
                ..ENTRY
            },
            Entry {
                expires: Some("tomorrow"),
                ..ENTRY
            },
            Entry {
                actions: &["kms:cmk:encrypt"],
                ..ENTRY
            },
        ];
        for entry in bad {
            assert!(entry.render(b"secret").is_err(), "{entry:?}");
        }
    }

    const ENTRY: Entry<'_> = Entry {
        name: "billing",
        project: "p",
        expires: Some("2027-01-01T00:00:00Z"),
        actions: &["kms:cmk:encryptData", "kms:system:*"],
    };

    fn refused(list: &[(&'static str, &str)]) {
        let headers = headers(list);
        let result = find(&headers);
        assert!(matches!(result, Err(AuthError::InvalidToken)), "{list:?}");
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }
}
