//! Asking an IAM service what a token is good for, over the Keystone v3 API (OpenStack Identity API
//! v3, "Validate and show information for token"), which Huawei Cloud's IAM speaks too.
//!
//! Who asks needs a token of its own. It is fetched with the service's credential when it is first
//! needed, and renewed when four fifths of its time are over; while that fails, the old one is used
//! as long as it is good.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderName, Request, Response};
use http_body_util::{Full, LengthLimitError};
use serde::Deserialize;
use serde_json::json;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::auth::entry;
use crate::auth::file::{FileError, Malformed, Refresh, Secrecy, Watched};
use crate::auth::https::{Endpoint, FetchError, secret};
use crate::auth::seldom::Seldom;
use crate::domain::time::{Clock, Timestamp};

const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");

/// The most bytes of an answer: what a token is good for, without the catalogue of services.
const MAX: usize = 256 * 1024;

/// How often a question is asked that was not answered, and how long after that it is asked again
/// for the first time; each further pause is twice as long.
const ATTEMPTS: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(100);

/// After how many failures in a row nothing more is asked for a while, and for how long, in
/// milliseconds.
const FAILURES: u32 = 5;
const PAUSE: i64 = 5_000;

/// How long after a failed renewal the next is tried while the old token is good, in milliseconds.
const RENEWAL_PAUSE: i64 = 10_000;

/// How long after a failed login no other is tried, in milliseconds: shorter than the first pause
/// before a question is asked again.
const LOGIN_PAUSE: i64 = 50;

/// How long an own token is fresh, in milliseconds: so soon nobody takes it back.
const FRESH: i64 = 5_000;

/// An IAM service, and the credential with which it is asked.
pub struct Keystone {
    endpoint: Endpoint,
    credential: Watched<Credential>,
    own: ArcSwapOption<Own>,
    renewing: tokio::sync::Mutex<()>,
    /// When it was last tried in vain to fetch an own token, in milliseconds.
    login_failed: AtomicI64,
    breaker: Mutex<Breaker>,
    failed: AtomicU64,
    /// Whether the last question was not answered.
    silent: AtomicBool,
    refused: Seldom,
    clock: Arc<dyn Clock>,
}

/// What the service is told to let this one ask, as its file has it.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Credential {
    user: String,
    #[serde(default = "default_domain")]
    user_domain: String,
    password: String,
    project: String,
    #[serde(default = "default_domain")]
    project_domain: String,
}

fn default_domain() -> String {
    "Default".to_owned()
}

/// This service's own token.
struct Own {
    token: http::HeaderValue,
    /// The credential that it was fetched with.
    credential: Arc<Credential>,
    fetched: Timestamp,
    renew: Timestamp,
    expires: Timestamp,
}

/// What a token is good for.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Subject {
    pub(super) expires_at: String,
    pub(super) user: Named,
    #[serde(default)]
    pub(super) project: Option<Named>,
    #[serde(default)]
    pub(super) roles: Vec<Role>,
}

/// Something with an id.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Named {
    pub(super) id: String,
}

/// A role, which is known by its name.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Role {
    pub(super) name: String,
}

#[derive(Deserialize)]
struct Answer {
    token: Subject,
}

#[derive(Deserialize)]
struct OwnAnswer {
    token: Lifetime,
}

#[derive(Deserialize)]
struct Lifetime {
    expires_at: String,
}

/// Why the service did not say what a token is good for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It is not there, or not well. The next time may be better.
    #[error("{0}")]
    Transient(String),
    /// It is there, and does not let this service ask, or does not answer what was asked. To ask again at once
    /// is of no use, and others may be answered.
    #[error("{0}")]
    Refused(&'static str),
    /// It does not know our own token, or refuses the one that it is asked about with the same words.
    #[error("our own token was refused")]
    OwnToken,
    /// It has failed too often to be asked just now.
    #[error("it failed before, and is not asked just now")]
    Resting,
}

impl From<FetchError> for Fault {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Answer(what) => Self::Refused(what),
            FetchError::Body(cause) if cause.is::<LengthLimitError>() => {
                Self::Refused("an answer is too long")
            }
            error => Self::Transient(error.to_string()),
        }
    }
}

impl Keystone {
    /// The service at `endpoint`, asked with the credential in `credential_file`.
    pub fn new(
        endpoint: Endpoint,
        credential_file: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, FileError> {
        Ok(Self {
            endpoint,
            credential: Watched::load(credential_file, Secrecy::Secret, Credential::parse)?,
            own: ArcSwapOption::empty(),
            renewing: tokio::sync::Mutex::default(),
            login_failed: AtomicI64::new(i64::MIN / 2),
            breaker: Mutex::default(),
            failed: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            refused: Seldom::new(Arc::clone(&clock)),
            clock,
        })
    }

    /// The file by which the service is trusted, which must be read again when it changes; none in plain
    /// text.
    pub fn ca_file(&self) -> Option<Arc<dyn Refresh>> {
        self.endpoint.file()
    }

    /// How many questions were not answered.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether the service did not answer when it was last asked.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Whether the service has failed too often to be asked just now.
    pub fn rests(&self) -> bool {
        self.breaker().rests(self.clock.now())
    }

    /// What `token` is good for; none if it is not good.
    pub(super) async fn validate(&self, token: &str) -> Result<Option<Subject>, Fault> {
        if !self.breaker().admits(self.clock.now()) {
            return Err(Fault::Resting);
        }
        let mut answered = self.ask_again_and_again(token).await;
        let would_rest = matches!(answered, Err(Fault::Transient(_))) && self.breaker().is_last();
        if would_rest && self.answers().await {
            // A token that is too long for what stands before the service, perhaps. Whoever sends such ones must not
            // close it to the others.
            answered = Err(Fault::Refused(
                "it fails over one token and not over others",
            ));
        }
        self.note(answered.as_ref().err());
        answered
    }

    /// Whether the service answers what it is asked about our own token, be it good or not.
    async fn answers(&self) -> bool {
        let Ok(own) = self.own_token().await else {
            return false;
        };
        let Ok(token) = own.token.to_str() else {
            return false;
        };
        !matches!(self.ask(token).await, Err(Fault::Transient(_)))
    }

    async fn ask_again_and_again(&self, token: &str) -> Result<Option<Subject>, Fault> {
        let mut pause = BACKOFF;
        let mut attempt = 1;
        let mut anew = false;
        loop {
            match self.ask(token).await {
                // Taken back before its time, perhaps: once more with another. If that is refused too,
                // the token that was asked about is meant.
                Err(Fault::OwnToken) if anew => return Ok(None),
                Err(Fault::OwnToken) => anew = true,
                Err(Fault::Transient(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                    pause *= 2;
                }
                answered => return answered,
            }
        }
    }

    async fn ask(&self, token: &str) -> Result<Option<Subject>, Fault> {
        let own = self.own_token().await?;
        let age = self.clock.now().millis_since(own.fetched);
        let request = Request::get(self.path("?nocatalog"))
            .header(ACCEPT, "application/json")
            .header(AUTH_TOKEN, &own.token)
            .header(SUBJECT_TOKEN, secret(token)?)
            .body(Full::default())
            .map_err(|_| FetchError::Token)?;
        let answer = self.endpoint.ask(request, MAX).await?;
        match answer.status().as_u16() {
            200 => {
                let answer: Result<Answer, _> = serde_json::from_slice(answer.body());
                let answer = answer.map_err(|_| FetchError::Answer("not of the documented shape"));
                Ok(Some(answer?.token))
            }
            // The last three are what a server says of a header that is too long for it.
            400 | 404 | 413 | 414 | 431 => Ok(None),
            // Not our own token, then. To fetch another would let every bad token cost a login.
            401 if (0..FRESH).contains(&age) => Ok(None),
            401 => {
                self.forget(&own);
                Err(Fault::OwnToken)
            }
            _ => Err(fault(&answer)),
        }
    }

    /// This service's own token, fetched anew if it is time.
    async fn own_token(&self) -> Result<Arc<Own>, Fault> {
        if let Some(own) = self.current() {
            return Ok(own);
        }
        let _turn = self.renewing.lock().await;
        // Somebody else may have renewed it meanwhile.
        if let Some(own) = self.current() {
            return Ok(own);
        }
        // Those who waited meanwhile need not fail one after another.
        let since = self.clock.now().0 - self.login_failed.load(Ordering::Relaxed);
        if (0..LOGIN_PAUSE).contains(&since) {
            return Err(Fault::Transient(
                "our own token cannot be fetched".to_owned(),
            ));
        }
        let credential = Arc::clone(&self.credential.current());
        match self.authenticate(&credential).await {
            Ok(own) => {
                let own = Arc::new(own);
                self.own.store(Some(Arc::clone(&own)));
                Ok(own)
            }
            Err(fault) => {
                let now = self.clock.now();
                self.login_failed.store(now.0, Ordering::Relaxed);
                let old = self.own.load_full();
                let old = old.filter(|own| own.expires > now).ok_or(fault)?;
                let old = Arc::new(Own {
                    token: old.token.clone(),
                    credential,
                    fetched: old.fetched,
                    renew: now.plus_millis(RENEWAL_PAUSE),
                    expires: old.expires,
                });
                self.own.store(Some(Arc::clone(&old)));
                Ok(old)
            }
        }
    }

    /// The own token, if it is not time to fetch another.
    fn current(&self) -> Option<Arc<Own>> {
        let now = self.clock.now();
        let own = self.own.load_full()?;
        let same = Arc::ptr_eq(&own.credential, &self.credential.current());
        (same && now < own.renew).then_some(own)
    }

    fn forget(&self, refused: &Arc<Own>) {
        let current = self.own.load_full();
        if current.is_some_and(|own| Arc::ptr_eq(&own, refused)) {
            self.own.store(None);
        }
    }

    async fn authenticate(&self, credential: &Arc<Credential>) -> Result<Own, Fault> {
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": credential.user,
                "domain": { "name": credential.user_domain },
                "password": credential.password,
            } } },
            "scope": { "project": {
                "name": credential.project,
                "domain": { "name": credential.project_domain },
            } },
        } });
        let request = Request::post(self.path("?nocatalog"))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .map_err(|_| FetchError::Token)?;
        let answer = self.endpoint.ask(request, MAX).await?;
        match answer.status().as_u16() {
            201 => {}
            401 => return Err(Fault::Refused("our own credential was refused")),
            _ => return Err(fault(&answer)),
        }
        let missing = || FetchError::Answer("without a token");
        let token = answer.headers().get(SUBJECT_TOKEN).ok_or_else(missing)?;
        let mut token = token.clone();
        token.set_sensitive(true);
        let told: Result<OwnAnswer, _> = serde_json::from_slice(answer.body());
        let told = told.map_err(|_| FetchError::Answer("not of the documented shape"))?;
        let expires = entry::moment(&told.token.expires_at);
        let expires = expires.ok_or(FetchError::Answer("without an end"))?;
        let now = self.clock.now();
        let lifetime = expires.millis_since(now);
        Ok(Own {
            token,
            credential: Arc::clone(credential),
            fetched: now,
            renew: now.plus_millis(lifetime / 5 * 4),
            expires,
        })
    }

    fn path(&self, query: &str) -> String {
        let base = self.endpoint.base();
        let version = if base.ends_with("/v3") { "" } else { "/v3" };
        format!("{base}{version}/auth/tokens{query}")
    }

    fn note(&self, fault: Option<&Fault>) {
        self.silent.store(fault.is_some(), Ordering::Relaxed);
        if fault.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let endpoint = &self.endpoint;
        match fault {
            Some(Fault::Transient(error)) => {
                if self.breaker().failed(self.clock.now()) {
                    tracing::error!(%endpoint, error, "the IAM service is not there: callers that it let in go on for a while");
                }
            }
            Some(Fault::Refused(error)) => {
                // It is there, so others may ask it.
                self.breaker().succeeded();
                if let Some(questions) = self.refused.admit() {
                    tracing::error!(%endpoint, error, questions, "the IAM service does not answer this one");
                }
            }
            Some(Fault::OwnToken | Fault::Resting) => {}
            None => {
                if self.breaker().succeeded() {
                    tracing::info!(%endpoint, "the IAM service is there again");
                }
            }
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an answer is none.
fn fault(answer: &Response<Bytes>) -> Fault {
    match answer.status().as_u16() {
        403 => Fault::Refused("this service may not ask about tokens"),
        // Whoever floods it with tokens must not close it to the others.
        429 => Fault::Refused("it is asked too often"),
        status @ 500.. => Fault::Transient(format!("answered {status}")),
        _ => Fault::Refused("it is not an IAM service, or at another path"),
    }
}

impl Refresh for Keystone {
    fn refresh(&self) -> Result<bool, FileError> {
        self.credential.refresh()
    }

    fn path(&self) -> &Path {
        self.credential.path()
    }
}

impl fmt::Debug for Keystone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keystone").field(&self.endpoint).finish()
    }
}

impl Credential {
    fn parse(text: &str) -> Result<Self, Malformed> {
        entry::parse(text)
    }
}

/// Keeps a service that fails from being asked more and more.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    /// Until when nothing is asked.
    until: Option<Timestamp>,
}

impl Breaker {
    fn rests(&self, now: Timestamp) -> bool {
        // A clock that was set back must not make a pause of hours.
        self.until
            .is_some_and(|until| (1..=PAUSE).contains(&until.millis_since(now)))
    }

    /// Whether the service may be asked. After a pause one question tries it, and others wait for
    /// what comes of that.
    fn admits(&mut self, now: Timestamp) -> bool {
        if self.rests(now) {
            return false;
        }
        if self.until.is_some() {
            self.until = Some(now.plus_millis(PAUSE));
        }
        true
    }

    /// Whether one more failure would begin or prolong a pause.
    const fn is_last(&self) -> bool {
        self.failures.saturating_add(1) >= FAILURES
    }

    /// Says whether a pause begins that was none before.
    fn failed(&mut self, now: Timestamp) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES {
            return false;
        }
        self.until.replace(now.plus_millis(PAUSE)).is_none()
    }

    /// Says whether there was a pause.
    fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.until.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_is_left_alone_and_then_tried_by_one() {
        let mut breaker = Breaker::default();
        let at = |millis| Timestamp(1_000_000 + millis);
        for millis in 0..4 {
            assert!(!breaker.failed(at(millis)));
            assert!(breaker.admits(at(millis)));
        }
        assert!(breaker.failed(at(4)), "the fifth begins a pause");
        assert!(!breaker.failed(at(4)), "which is told once");
        assert!(!breaker.admits(at(5)) && !breaker.admits(at(4 + PAUSE - 1)));
        assert!(breaker.admits(at(4 + PAUSE)), "one tries");
        assert!(!breaker.admits(at(4 + PAUSE)), "and the others wait");
        assert!(breaker.succeeded() && !breaker.succeeded());
        assert!(breaker.admits(at(5 + PAUSE)) && breaker.admits(at(5 + PAUSE)));
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_long_pause() {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES {
            breaker.failed(Timestamp(10_000_000));
        }
        assert!(breaker.rests(Timestamp(10_000_000)));
        assert!(!breaker.rests(Timestamp(1_000)));
    }

    #[test]
    fn a_credential_has_a_user_a_password_and_a_project() {
        let good = "user = 'kmsgate'\npassword = 'secret'\nproject = 'service'\n";
        let credential = Credential::parse(good).unwrap();
        assert_eq!(credential.user_domain, "Default");
        for bad in [
            "",
            &good.replace("password", "pasword"),
            &good.replace("'secret'", "5"),
            &good.replace("user =", "user_id ="),
        ] {
            let malformed = Credential::parse(bad).err().unwrap();
            assert!(!malformed.to_string().contains("secret"), "{malformed}");
        }
    }
}
