//! IAM tokens: what `X-Auth-Token` is by the contract (section 6.1), validated at the IAM service
//! that issued them.
//!
//! A token that is no JSON Web Token of a configured issuer and is not in the file of tokens is asked
//! about. What the service says is remembered by the token's SHA-256: that it is good until it
//! expires and for at most the configured time, that it is not for [`MEMORY_OF_BAD`]. So a token
//! that was taken back works for at most that time longer, and a caller goes on as long while the
//! service is not there.
//!
//! Whoever connects can send tokens that have to be asked about. Requests with the same token ask
//! once; few questions are under way at a time and few requests wait for one; and a peer whose
//! tokens turn out bad is refused for a while before the service is asked.

mod keystone;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use crate::auth::entry;
use crate::auth::iam::keystone::Subject;
use crate::auth::token;
use crate::auth::{AuthError, Authenticator, Evidence, Peer};
use crate::domain::caller::{Actions, Caller};
use crate::domain::key::ProjectId;
use crate::domain::time::{Clock, Timestamp};

pub use crate::auth::iam::keystone::Keystone;

/// The most tokens that are remembered as good, and as bad.
const REMEMBERED: usize = 10_000;

/// How long a bad token is remembered, in milliseconds.
const MEMORY_OF_BAD: i64 = 5_000;

/// The most questions that are under way at a time.
const ASKING: usize = 32;

/// The most requests that wait for an answer at a time.
const WAITING: usize = 256;

/// How many bad tokens a peer may send at once, and how long it takes until it may send one more, in
/// milliseconds.
const BAD_TOKENS: i64 = 50;
const BAD_TOKEN_EVERY: i64 = 100;

/// The most roles of a token.
const MAX_ROLES: usize = 64;

/// The most peers of which that is known.
const PEERS: usize = 4096;

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
pub struct Iam {
    keystone: Arc<Keystone>,
    rules: Vec<Rule>,
    /// How long a good token is remembered at most, in milliseconds.
    memory: i64,
    good: Cache<Hash, Good>,
    /// Until when each is remembered.
    bad: Cache<Hash, Timestamp>,
    flights: Mutex<HashMap<Hash, Arc<Flight>>>,
    asking: Semaphore,
    waiting: Semaphore,
    /// For each peer, the time at which all its bad tokens are paid for.
    peers: Cache<IpAddr, Timestamp>,
    clock: Arc<dyn Clock>,
}

type Hash = [u8; 32];

/// An answer that is being waited for.
type Flight = OnceCell<Told>;

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
        Self {
            keystone,
            rules,
            memory: i64::try_from(memory.as_millis()).unwrap_or(i64::MAX),
            good: Cache::new(REMEMBERED),
            bad: Cache::new(REMEMBERED),
            flights: Mutex::default(),
            asking: Semaphore::new(ASKING),
            waiting: Semaphore::new(WAITING),
            peers: Cache::new(PEERS),
            clock,
        }
    }

    async fn caller(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        let Some(token) = token::find(request.headers)? else {
            return Ok(None);
        };
        let hash: Hash = Sha256::digest(token).into();
        let told = match self.remembered(&hash) {
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

    /// What the service says of a token. Requests with the same token ask once.
    async fn told(&self, token: &[u8], hash: Hash, peer: &Peer) -> Result<Told, AuthError> {
        // What is no text of printable ASCII is no token of any IAM service.
        let printable = token.iter().all(u8::is_ascii_graphic);
        let token = str::from_utf8(token).ok().filter(|_| printable);
        let token = token.ok_or(AuthError::InvalidToken)?;
        if !self.may_ask(peer) {
            return Err(AuthError::Throttled);
        }
        let place = self.waiting.try_acquire();
        let _place = place.map_err(|_| AuthError::Throttled)?;
        let flight = Passenger::board(self, hash);
        let asked = flight.flight.get_or_init(|| self.ask(token, hash));
        let told = asked.await.clone();
        if matches!(told, Told::Bad) {
            self.charge(peer);
        }
        Ok(told)
    }

    async fn ask(&self, token: &str, hash: Hash) -> Told {
        let Ok(_place) = self.asking.acquire().await else {
            return Told::Nothing;
        };
        let Ok(answer) = self.keystone.validate(token).await else {
            return Told::Nothing;
        };
        let now = self.clock.now();
        let good = answer.and_then(|subject| self.good(&subject, now));
        match good {
            Some(good) if good.expires > now => {
                let caller = Arc::clone(&good.caller);
                self.good.insert(hash, good);
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

    fn may_ask(&self, peer: &Peer) -> bool {
        let Some(address) = network(peer) else {
            return true;
        };
        self.debt(&address, self.clock.now()) < BAD_TOKENS * BAD_TOKEN_EVERY
    }

    /// How long it takes until all bad tokens of a peer are paid for, in milliseconds.
    fn debt(&self, address: &IpAddr, now: Timestamp) -> i64 {
        let paid = self.peers.get(address).unwrap_or(now);
        let debt = paid.millis_since(now);
        // More than a peer can have is from before the clock was set back.
        if (0..=2 * BAD_TOKENS * BAD_TOKEN_EVERY).contains(&debt) {
            debt
        } else {
            0
        }
    }

    /// Notes a bad token of `peer`. Two at the same moment may count as one, which costs the service
    /// little.
    fn charge(&self, peer: &Peer) {
        let Some(address) = network(peer) else {
            return;
        };
        let now = self.clock.now();
        let debt = self.debt(&address, now) + BAD_TOKEN_EVERY;
        self.peers.insert(address, now.plus_millis(debt));
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Hash, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a peer is known by: its address, or the half of it that names a network (RFC 4291, section
/// 2.5.4), whose holder has all the rest. None on a Unix socket.
fn network(peer: &Peer) -> Option<IpAddr> {
    match peer.address?.ip().to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Some(Ipv6Addr::from(network).into())
        }
        address @ IpAddr::V4(_) => Some(address),
    }
}

/// A request that waits for an answer. The last one to leave forgets the flight, also when it is
/// given up.
struct Passenger<'a> {
    iam: &'a Iam,
    hash: Hash,
    flight: Arc<Flight>,
}

impl<'a> Passenger<'a> {
    fn board(iam: &'a Iam, hash: Hash) -> Self {
        let flight = Arc::clone(iam.flights().entry(hash).or_default());
        Self { iam, hash, flight }
    }
}

impl Drop for Passenger<'_> {
    fn drop(&mut self) {
        let mut flights = self.iam.flights();
        // Flights are boarded under the same lock: ours and the map's are the last two.
        if Arc::strong_count(&self.flight) <= 2 {
            flights.remove(&self.hash);
        }
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
        f.debug_tuple("Iam").field(&self.keystone).finish()
    }
}
