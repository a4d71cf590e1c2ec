//! JSON Web Tokens of issuers that are trusted, such as a Kubernetes cluster or an OIDC provider.
//!
//! A token comes where any [token] does. What begins as a JSON Web Token is one
//! and nothing else, and is decided on here; everything else is left to the other kinds.
//!
//! In this order, and a token that fails says no more of why than whether it has expired:
//!
//! 1. It is three parts of base64url, the first two JSON objects in which no name stands twice, with
//!    nothing in the header that asks for more than there is here.
//! 2. Its `iss` is an issuer, exactly, and its `alg` one that this issuer may use. Only signatures by
//!    a private key are ever among them.
//! 3. The issuer's own keys have the one that its `kid` names. If they lack it and are fetched from an
//!    address, they are fetched anew, [within limits](Fetched).
//! 4. The signature is by that key.
//! 5. Its `aud` has one of the audiences; `nbf` and `iat`, if it has them, are not in the future; its
//!    `sub` is 1 to 255 printable ASCII characters.
//! 6. A rule fits its claims. The first that does says who the caller is.
//! 7. It has an `exp`, which is not over.
//!
//! Times may be off by the configured skew. A token that was let in is remembered by its SHA-256 for a
//! minute, or until it expires or its issuer's keys change, so that a caller's signature is not
//! verified at every call. How many are remembered is bounded, and those that are refused are not.

mod compact;
mod fetched;
mod keys;
mod rule;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use quick_cache::sync::Cache;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::auth::file::Watched;
use crate::auth::jwt::compact::Compact;
use crate::auth::token;
use crate::auth::{AuthError, Authenticator, Evidence};
use crate::domain::caller::Caller;
use crate::domain::jwt::Algorithm;
use crate::domain::time::{Clock, Timestamp};

pub use crate::auth::jwt::fetched::Fetched;
pub use crate::auth::jwt::keys::KeySet;
pub use crate::auth::jwt::rule::{Claim, Rule};

/// The most tokens that are remembered.
const REMEMBERED: usize = 10_000;

/// How long a token is remembered, in milliseconds.
const MEMORY: i64 = 60_000;

/// The most characters of a subject (OpenID Connect Core 1.0, section 2).
const MAX_SUBJECT: usize = 255;

/// The tokens of some issuers.
pub struct Jwt {
    issuers: Vec<Issuer>,
    remembered: Cache<[u8; 32], Remembered>,
    clock: Arc<dyn Clock>,
}

/// Somebody whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Its name, as `iss` has it.
    pub name: String,
    /// Its keys.
    pub keys: Keys,
    /// Who its tokens may be for: one of these.
    pub audiences: Vec<String>,
    /// How its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// How far its clock may be from ours.
    pub clock_skew: Duration,
    /// Who its callers are, in the order in which they are asked.
    pub rules: Vec<Rule>,
}

/// Where the keys of an issuer come from.
#[derive(Clone, Debug)]
pub enum Keys {
    /// A file.
    File(Arc<Watched<KeySet>>),
    /// An address.
    Url(Arc<Fetched>),
}

/// A token that was let in.
#[derive(Clone)]
struct Remembered {
    caller: Arc<Caller>,
    /// The place of its issuer, and the id of the keys that its signature was verified with.
    issuer: usize,
    keys: [u8; 32],
    /// When, and how long it is good for.
    since: Timestamp,
    until: Timestamp,
}

impl Jwt {
    /// Accepts the tokens of `issuers`.
    pub fn new(issuers: Vec<Issuer>, clock: Arc<dyn Clock>) -> Self {
        Self {
            issuers,
            remembered: Cache::new(REMEMBERED),
            clock,
        }
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Option<Arc<Caller>>, AuthError> {
        let token = token::find(headers)?.filter(|token| compact::is_jwt(token));
        let Some(token) = token else {
            return Ok(None);
        };
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(caller) = self.remember(&hash) {
            return Ok(Some(caller));
        }
        let token = Compact::parse(token).ok_or(AuthError::InvalidToken)?;
        let named = token.text("iss").ok_or(AuthError::InvalidToken)?;
        let mut issuers = self.issuers.iter().enumerate();
        let issuer = issuers.find(|(_, issuer)| issuer.name == named);
        let (place, issuer) = issuer.ok_or(AuthError::InvalidToken)?;
        let keys = issuer.verify(&token).await?;
        let now = self.clock.now();
        let (caller, expires) = issuer.accept(&token, now)?;
        let caller = Arc::new(caller);
        let remembered = Remembered {
            caller: Arc::clone(&caller),
            issuer: place,
            keys,
            since: now,
            until: expires.min(now.plus_millis(MEMORY)),
        };
        self.remembered.insert(hash, remembered);
        Ok(Some(caller))
    }

    /// The caller of a token that was let in and would be again.
    fn remember(&self, hash: &[u8; 32]) -> Option<Arc<Caller>> {
        let found = self.remembered.get(hash)?;
        let now = self.clock.now();
        let keys = self.issuers.get(found.issuer)?.keys.current()?;
        // Before `since` the clock was set back, and nothing is known of that time.
        let good = found.since <= now && now < found.until && found.keys == keys.id;
        good.then_some(found.caller)
    }
}

#[async_trait]
impl Authenticator for Jwt {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        self.caller(request.headers).await
    }

    fn signs_body(&self, _: &HeaderMap) -> bool {
        false
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Jwt").field(&self.issuers).finish()
    }
}

impl Keys {
    fn current(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::File(file) => Some(Arc::clone(&file.current())),
            Self::Url(fetched) => fetched.current(),
        }
    }

    /// The keys, once they are there, and fetched anew if they may be and lack the token's key.
    async fn holding(&self, token: &Compact<'_>) -> Result<Arc<KeySet>, AuthError> {
        let holds = |keys: &Arc<KeySet>| !keys.lacks(token);
        match (self, self.current()) {
            (_, Some(keys)) if holds(&keys) => Ok(keys),
            (Self::Url(fetched), keys) => match fetched.renewed().await? {
                true => fetched.current().ok_or(AuthError::Unavailable),
                false => keys.ok_or(AuthError::Unavailable),
            },
            (Self::File(_), keys) => keys.ok_or(AuthError::Unavailable),
        }
    }
}

impl Issuer {
    /// Verifies the token's signature, and says by which keys.
    async fn verify(&self, token: &Compact<'_>) -> Result<[u8; 32], AuthError> {
        // Before the keys: no token may have them fetched that is none of theirs.
        if !self.algorithms.contains(&token.algorithm) {
            return Err(AuthError::InvalidToken);
        }
        let keys = self.keys.holding(token).await?;
        if keys.verify(token) {
            Ok(keys.id)
        } else {
            Err(AuthError::InvalidToken)
        }
    }

    /// The caller of a token whose signature was verified, and when that ends.
    fn accept(
        &self,
        token: &Compact<'_>,
        now: Timestamp,
    ) -> Result<(Caller, Timestamp), AuthError> {
        let caller = self.caller(token, now).ok_or(AuthError::InvalidToken)?;
        // Last, so that only the bearer of a token that was good is told that it was.
        let expires = token.claims.get("exp").and_then(moment);
        let expires = expires.ok_or(AuthError::InvalidToken)?;
        let expires = expires.plus_millis(self.skew());
        if expires <= now {
            return Err(AuthError::ExpiredToken);
        }
        Ok((caller, expires))
    }

    fn caller(&self, token: &Compact<'_>, now: Timestamp) -> Option<Caller> {
        let claims = &token.claims;
        let ours = |audience: &str| self.audiences.iter().any(|one| one == audience);
        let for_us = match claims.get("aud")? {
            Value::String(audience) => ours(audience),
            Value::Array(list) => list.iter().filter_map(Value::as_str).any(ours),
            _ => false,
        };
        let latest = now.plus_millis(self.skew());
        let begun = ["nbf", "iat"].iter().all(|name| match claims.get(*name) {
            None => true,
            Some(time) => moment(time).is_some_and(|time| time <= latest),
        });
        if !for_us || !begun {
            return None;
        }
        let subject = token.text("sub")?;
        // It goes into logs and the audit, where letters that look alike would deceive.
        let printable = subject.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !(1..=MAX_SUBJECT).contains(&subject.len()) || !printable {
            return None;
        }
        let rule = self.rules.iter().find(|rule| rule.fits(claims))?;
        Some(Caller {
            name: format!("jwt:{}:{subject}", self.name).into(),
            project: rule.project.clone(),
            roles: Arc::clone(&rule.roles),
            actions: rule.actions,
        })
    }

    /// How far its clock may be from ours, in milliseconds.
    fn skew(&self) -> i64 {
        i64::try_from(self.clock_skew.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The moment that a claim names: seconds since 1970, which may have a fraction (RFC 7519, section 2).
fn moment(claim: &Value) -> Option<Timestamp> {
    if let Some(seconds) = claim.as_i64() {
        return Some(Timestamp(seconds.saturating_mul(1000)));
    }
    let seconds = claim.as_f64()?;
    // Beyond this a number of milliseconds is no longer exact.
    if !(0.0..=9_007_199_254_740.0).contains(&seconds) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the number is in the range of the type"
    )]
    let millis = (seconds * 1000.0) as i64;
    Some(Timestamp(millis))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_time_is_seconds_and_may_have_a_fraction() {
        for (claim, millis) in [
            (json!(0), 0),
            (json!(1_300_819_380), 1_300_819_380_000),
            (json!(1_300_819_380.5), 1_300_819_380_500),
            (json!(1.3e9), 1_300_000_000_000),
            (json!(-1), -1000),
            (json!(i64::MAX), i64::MAX),
            (json!(i64::MIN), i64::MIN),
        ] {
            assert_eq!(moment(&claim), Some(Timestamp(millis)), "{claim}");
        }
        for claim in [
            json!("1300819380"),
            json!(null),
            json!([1]),
            json!(1e300),
            json!(-0.5),
            json!(u64::MAX),
        ] {
            assert_eq!(moment(&claim), None, "{claim}");
        }
    }
}
