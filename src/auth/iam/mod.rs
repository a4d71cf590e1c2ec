//! IAM tokens: what `X-Auth-Token` is by the contract (section 6.1), validated at the IAM service
//! that issued them.
//!
//! A token that is no JSON Web Token of a configured issuer and is not in the file of tokens is asked
//! about. What the service says is remembered by the token's SHA-256: that it is good until it
//! expires and for at most the configured time, that it is not for five seconds. So a token
//! that was taken back works for at most that time longer, and a caller goes on as long while the
//! service is not there.
//!
//! Whoever connects can send tokens that have to be asked about. Requests with the same token ask
//! once, also when they are given up; few questions are under way, and few requests wait for them, at a
//! time; and a peer pays for each
//! beforehand, and gets that back if its token is good, so that one whose tokens are bad is refused
//! for a while before the service is asked. One that has spent its questions on a service that does
//! not answer hears that, and not that it asks too often.

mod keystone;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use quick_cache::sync::Cache;
use quick_cache::unsync;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::auth::entry;
use crate::auth::iam::keystone::{Fault, Subject};
use crate::auth::token;
use crate::auth::{AuthError, Authenticator, Evidence, Peer};
use crate::domain::address::Source;
use crate::domain::caller::{Actions, Caller};
use crate::domain::key::ProjectId;
use crate::domain::places::Places;
use crate::domain::rate::Rate;
use crate::domain::time::{Clock, Timestamp};

pub use crate::auth::iam::keystone::Keystone;

/// The most tokens that are remembered as good, and as bad.
const REMEMBERED: usize = 10_000;

/// How long a bad token is remembered, in milliseconds.
const MEMORY_OF_BAD: i64 = 5_000;

/// The most questions that are under way at a time.
const ASKING: usize = 32;

/// The most questions at a time, with those that wait to be asked.
const QUESTIONS: usize = 256;

/// The most requests that wait for answers, in all and from one source.
const WAITING: usize = 8192;
const WAITING_EACH: usize = 4096;

/// How long a request waits for an answer: less than it may take itself by the usual limits, so that its
/// caller hears what is missing. The question goes on, and may serve the next.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many tokens that are not good a peer may send at once, how many more a second, and what it owes
/// at most, in nanoseconds.
const BAD_TOKENS: NonZeroU32 = NonZeroU32::new(50).unwrap();
const BAD_TOKENS_A_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();
const MOST_OWED: u64 = 5_000_000_000;

/// The most roles of a token.
const MAX_ROLES: usize = 64;

/// The most sources of which that is known.
const SOURCES: usize = 4096;

/// What a role of an IAM token may do.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The role's name; `*` stands for every one.
    pub role: String,
    /// The project that the rule is for; all if absent.
    pub project: Option<ProjectId>,
    /// The actions.
    pub actions: Actions,
}

impl Rule {
    fn fits(&self, role: &str, project: &ProjectId) -> bool {
        let project = self.project.as_ref().is_none_or(|ours| ours == project);
        project && (self.role == "*" || self.role == role)
    }
}

/// Lets in whom an IAM service knows.
pub struct Iam(Arc<Shared>);

/// What an authenticator and the questions that it asks have in common. A question is a task of its
/// own: whoever gives a request up must not make its question one that costs nothing.
struct Shared {
    keystone: Arc<Keystone>,
    rules: Vec<Rule>,
    /// How long a good token is remembered at most, in milliseconds.
    memory: i64,
    good: Cache<Hash, Good>,
    /// Until when each is remembered.
    bad: Cache<Hash, Timestamp>,
    /// Places for requests that wait for an answer.
    waiting: Places<Source>,
    /// The questions that are under way, and where their answers will be told.
    questions: Mutex<HashMap<Hash, watch::Receiver<Option<Told>>>>,
    /// Places for questions, and for those among them that the service is being asked.
    places: Arc<Semaphore>,
    asking: Semaphore,
    /// For each source of questions, from when on it owes nothing, in nanoseconds since 1970.
    sources: Mutex<unsync::Cache<Source, u64>>,
    rate: Rate,
    clock: Arc<dyn Clock>,
}

type Hash = [u8; 32];

/// What the service said of a token.
#[derive(Clone)]
enum Told {
    Good(Arc<Caller>),
    Bad,
    Expired,
    Nothing,
}

#[derive(Clone)]
struct Good {
    caller: Arc<Caller>,
    since: Timestamp,
    /// Until when it is remembered, and until when it is good.
    until: Timestamp,
    expires: Timestamp,
}

impl Iam {
    /// Asks `keystone`, remembers a good token for at most `memory`, and gives callers what `rules`
    /// say of their roles.
    pub fn new(
        keystone: Arc<Keystone>,
        rules: Vec<Rule>,
        memory: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self(Arc::new(Shared {
            keystone,
            rules,
            memory: i64::try_from(memory.as_millis()).unwrap_or(i64::MAX),
            good: Cache::new(REMEMBERED),
            bad: Cache::new(REMEMBERED),
            waiting: Places::new(WAITING, WAITING_EACH),
            questions: Mutex::default(),
            places: Arc::new(Semaphore::new(QUESTIONS)),
            asking: Semaphore::new(ASKING),
            sources: Mutex::new(unsync::Cache::new(SOURCES)),
            rate: Rate::requests(BAD_TOKENS_A_SECOND, BAD_TOKENS),
            clock,
        }))
    }

    async fn caller(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        let Some(token) = token::find(request.headers)? else {
            return Ok(None);
        };
        let hash: Hash = Sha256::digest(token).into();
        let told = match self.0.remembered(&hash) {
            Some(told) => told,
            None => self.told(token, hash, request.peer).await?,
        };
        match told {
            Told::Good(caller) => Ok(Some(caller)),
            Told::Bad => Err(AuthError::InvalidToken),
            Told::Expired => Err(AuthError::ExpiredToken),
            Told::Nothing => Err(AuthError::IamUnavailable),
        }
    }

    /// What the service says of a token. Requests with the same token ask once.
    async fn told(&self, token: &[u8], hash: Hash, peer: &Peer) -> Result<Told, AuthError> {
        // What is no text of printable ASCII is no token of any IAM service.
        let printable = token.iter().all(u8::is_ascii_graphic);
        let token = str::from_utf8(token).ok().filter(|_| printable);
        let token = token.ok_or(AuthError::InvalidToken)?;
        let place = self.0.waiting.take(peer.origin.source());
        let _place = place.ok_or(AuthError::Throttled)?;
        let mut answer = self.answer(token, hash, peer)?;
        let told = timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
        // Late, or the question came to no end, which is a bug that was logged.
        let Ok(Ok(told)) = told else {
            return Err(AuthError::IamUnavailable);
        };
        told.clone().ok_or(AuthError::IamUnavailable)
    }

    /// Where the answer will be told: to the question that is under way, or to a new one.
    fn answer(
        &self,
        token: &str,
        hash: Hash,
        peer: &Peer,
    ) -> Result<watch::Receiver<Option<Told>>, AuthError> {
        let mut questions = self.0.questions();
        if let Some(answer) = questions.get(&hash) {
            return Ok(answer.clone());
        }
        let source = peer.origin.source();
        if !self.0.charge(source) {
            // What was not answered is not given back: a token may be what the service fails over, and one that
            // says that it is asked too often must not be asked more for it. But its tokens may be good.
            return Err(if self.0.keystone.is_silent() {
                AuthError::IamUnavailable
            } else {
                AuthError::Throttled
            });
        }
        let Ok(place) = Arc::clone(&self.0.places).try_acquire_owned() else {
            self.0.refund(source);
            return Err(AuthError::Throttled);
        };
        let (tell, answer) = watch::channel(None);
        questions.insert(hash, answer.clone());
        let question = Question {
            shared: Arc::clone(&self.0),
            hash,
            _place: place,
        };
        let token = Zeroizing::new(token.to_owned());
        tokio::spawn(async move {
            let told = question.shared.ask(&token, hash, source).await;
            // First what is remembered, then that nothing is under way: nobody asks in between.
            drop(question);
            tell.send_replace(Some(told));
        });
        Ok(answer)
    }
}

/// A question that is under way. It is so until this is dropped, whatever becomes of it.
struct Question {
    shared: Arc<Shared>,
    hash: Hash,
    _place: OwnedSemaphorePermit,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.shared.questions().remove(&self.hash);
    }
}

impl Shared {
    fn remembered(&self, hash: &Hash) -> Option<Told> {
        let now = self.clock.now();
        if let Some(good) = self.good.get(hash) {
            if good.expires <= now {
                return Some(Told::Expired);
            }
            // A clock that was set back must not make memories longer.
            if (good.since..good.until).contains(&now) {
                return Some(Told::Good(good.caller));
            }
        }
        let until = self.bad.get(hash)?;
        let left = until.millis_since(now);
        (1..=MEMORY_OF_BAD).contains(&left).then_some(Told::Bad)
    }

    async fn ask(&self, token: &str, hash: Hash, source: Source) -> Told {
        let Ok(_place) = self.asking.acquire().await else {
            return Told::Nothing;
        };
        let answer = match self.keystone.validate(token).await {
            Ok(answer) => answer,
            Err(fault) => {
                // Who comes while the service is away has not troubled it.
                if matches!(fault, Fault::Resting) {
                    self.refund(source);
                }
                return Told::Nothing;
            }
        };
        let now = self.clock.now();
        let good = answer.and_then(|subject| self.good(&subject, now));
        match good {
            Some(good) if good.expires > now => {
                let caller = Arc::clone(&good.caller);
                self.good.insert(hash, good);
                self.refund(source);
                Told::Good(caller)
            }
            Some(_) => Told::Expired,
            None => {
                self.bad.insert(hash, now.plus_millis(MEMORY_OF_BAD));
                Told::Bad
            }
        }
    }

    /// The caller of a token that is good; none if it is for no project, or nothing that could be
    /// printed.
    fn good(&self, subject: &Subject, now: Timestamp) -> Option<Good> {
        let project: ProjectId = subject.project.as_ref()?.id.parse().ok()?;
        let expires = entry::moment(&subject.expires_at)?;
        let user = &subject.user.id;
        let printable = user.bytes().all(|byte| byte.is_ascii_graphic());
        if !(1..=255).contains(&user.len()) || !printable {
            return None;
        }
        // None may be left out: a rule of the policy may deny something to it.
        let roles = subject.roles.iter();
        if roles.len() > MAX_ROLES {
            return None;
        }
        let granted = roles.clone().flat_map(|role| {
            let fitting = self.rules.iter();
            fitting.filter(|rule| rule.fits(&role.name, &project))
        });
        let actions = granted.fold(Actions::default(), |all, rule| all.union(rule.actions));
        Some(Good {
            caller: Arc::new(Caller {
                name: format!("iam:{user}").into(),
                project,
                roles: roles.map(|role| Arc::from(&*role.name)).collect(),
                actions,
            }),
            since: now,
            until: expires.min(now.plus_millis(self.memory)),
            expires,
        })
    }

    /// Charges a source for a question, if it may ask one.
    fn charge(&self, source: Source) -> bool {
        self.change(source, |clear, now| self.rate.admit(clear, now, 1).ok())
    }

    /// Takes a charge back: the token was good, or nothing was asked.
    fn refund(&self, source: Source) {
        self.change(source, |clear, _| Some(self.rate.give_back(clear, 1)));
    }

    /// Changes from when on a source owes nothing, unless `change` refuses.
    fn change(&self, source: Source, change: impl FnOnce(u64, u64) -> Option<u64>) -> bool {
        let millis = u64::try_from(self.clock.now().0).unwrap_or(0);
        let now = millis.saturating_mul(1_000_000);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        // More than anybody may owe is owed by the time from before the clock was set back.
        let most = now.saturating_add(MOST_OWED);
        let owed = sources.get(&source).filter(|clear| **clear <= most);
        let clear = owed.map_or(now, |clear| *clear);
        let changed = change(clear, now);
        if let Some(clear) = changed {
            sources.insert(source, clear);
        }
        changed.is_some()
    }

    fn questions(&self) -> MutexGuard<'_, HashMap<Hash, watch::Receiver<Option<Told>>>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Authenticator for Iam {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        self.caller(request).await
    }

    fn signs_body(&self, _: &HeaderMap) -> bool {
        false
    }
}

impl fmt::Debug for Iam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Iam").field(&self.0.keystone).finish()
    }
}
