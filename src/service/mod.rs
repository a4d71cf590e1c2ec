//! Use cases: what the service does, without knowing who asks over what.
//!
//! One file holds one operation. A face begins a [`Call`], takes its message apart, calls the use
//! case and [ends](Call::end) the call, which logs and audits what happened, also when the caller
//! went away meanwhile.
//!
//! Every use case asks [`Policy`] before it looks for a key, and where the key's alias decides once
//! more when it has found it. A key that is not there is then denied like one that the caller may
//! not use, so that nobody is told which keys exist. Data calls find opened keys in the [`keyring`];
//! lifecycle calls read the store, change the record they read, and are told if another writer was
//! faster.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::audit::{Event, Outcome, Sink};
use crate::auth::policy::{Denied, Key, Operation, Policy, Verdict};
use crate::crypto::Providers;
use crate::crypto::pool::{Pool, PoolError, Share};
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::caller::{Action, Caller};
use crate::domain::cost::Work;
use crate::domain::key::{KeyAlias, KeyId, KeyVersion, ProjectId};
use crate::domain::request::{RequestId, Sequence};
use crate::domain::time::Clock;
use crate::error::{Error, Kind};
use crate::service::keyring::{Held, Keyring};
use crate::service::limits::Limits;
use crate::store::freshness::{Stale, Watcher};
use crate::store::root_keys::RootKeys;
use crate::store::{BackUp, Change, KeyRecord, KeyStore, Record, Revision, StoreError};

mod backup;
mod create;
mod decrypt;
mod describe;
mod destroy;
mod encrypt;
pub mod keyring;
pub mod limits;
mod list;
mod opening;
mod public_key;
mod root_key;
mod rotate;
mod state;
mod update;

pub use create::NewKey;
pub use decrypt::{Decrypt, Decrypted};
pub use destroy::Sweep;
pub use encrypt::{Encrypt, Encrypted};
pub use list::{ListKeys, Listings, Page};
pub use root_key::Progress;

/// The key management service.
#[derive(Debug)]
pub struct Kms {
    /// Where keys are kept.
    pub store: Arc<dyn KeyStore>,
    /// What makes and opens them.
    pub providers: Arc<Providers>,
    /// The root keys that the store needs. Every write goes by them.
    pub root_keys: Arc<RootKeys>,
    /// The same store, if it can copy itself.
    pub backup: Option<Arc<dyn BackUp>>,
    /// Opened keys.
    pub keyring: Arc<Keyring>,
    /// Which keys large projects have.
    pub listings: Listings,
    /// Where long computations are done.
    pub pool: Arc<Pool>,
    /// Who may do what.
    pub policy: Policy,
    /// How much callers may ask for.
    pub limits: Limits,
    /// Who is told what happened.
    pub audit: Arc<dyn Sink>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Makes the ids of new keys.
    pub new_key_id: fn() -> Result<KeyId, Error>,
}

impl Watcher for Kms {
    fn changed(&self, project: &ProjectId, key_id: KeyId) {
        self.keyring.forget(project, key_id);
    }

    fn all_changed(&self) {
        self.root_keys.forget();
        self.keyring.forget_all();
    }
}

/// What the layers in front of the faces know of a request. They put it into the request's
/// extensions.
#[derive(Debug)]
pub struct Context {
    /// The server's name for the request.
    pub request_id: RequestId,
    /// Who is asking.
    pub caller: Arc<Caller>,
    /// Whether the audit has been told how the request ended.
    pub told: AtomicBool,
}

/// One call of one use case, from the face's first look at it until its answer.
#[derive(Debug)]
pub struct Call<'a> {
    kms: &'a Kms,
    context: Arc<Context>,
    action: Action,
    sequence: Option<Sequence>,
    key_id: Option<KeyId>,
    ended: bool,
}

impl Kms {
    /// Begins a call. A request that no layer has found a caller for is refused.
    pub fn begin(&self, context: Option<&Arc<Context>>, action: Action) -> Result<Call<'_>, Error> {
        let context = context.ok_or(Kind::Unauthenticated)?;
        Ok(Call {
            kms: self,
            context: Arc::clone(context),
            action,
            sequence: None,
            key_id: None,
            ended: false,
        })
    }

    /// The key that a data call is about, held or read; none if there is none. It `suits` unless the
    /// caller is refused for what it is.
    ///
    /// What is held of a store that others write to may be a little old. So before a caller is
    /// refused for a key's state, for its alias or for a version that it does not have, it is read:
    /// another server may have changed just that, and acknowledged it.
    async fn find(
        &self,
        access: &Access<'_>,
        suits: impl Fn(&KeyRecord) -> bool,
    ) -> Result<Option<Arc<Held>>, Error> {
        self.fresh()?;
        let (store, project) = (&*self.store, access.call.caller_project());
        let found = self.keyring.find(store, project, access.key_id).await?;
        let (Some(held), Some(freshness)) = (&found, store.freshness()) else {
            return Ok(found);
        };
        let record = held.record();
        if suits(record) && access.to(Some(record)).is_ok() {
            return Ok(found);
        }
        let reread = self
            .keyring
            .reread(store, freshness, project, access.key_id);
        reread.await
    }

    /// Whether the key is still as it was when it was found, so that what was done with it may be
    /// told.
    fn is_as_it_was(&self, held: &Held) -> Result<bool, Error> {
        // In this order: had the key changed before the moment that it is fresh as of, it would be
        // marked by now.
        self.fresh()?;
        Ok(!held.has_changed())
    }

    /// Refuses while what is held in memory may be older than the bound.
    fn fresh(&self) -> Result<(), Error> {
        let Some(freshness) = self.store.freshness() else {
            return Ok(());
        };
        let fresh = freshness.check();
        fresh.map_err(|stale| Error::from(Kind::Unavailable).caused_by(stale))
    }

    /// Puts a changed key in place of the one read at `revision`, together with other changes.
    ///
    /// Says whether it did. If another writer was faster, the caller must read again and decide
    /// again.
    async fn replace(
        &self,
        key: KeyRecord,
        revision: Revision,
        others: Vec<Change>,
        tries: &mut Tries,
    ) -> Result<bool, Error> {
        let (project, key_id) = (key.project.clone(), key.key_id);
        let mut changes = vec![Change::replace(Record::Key(key), revision)];
        changes.extend(others);
        match self.commit(project, key_id, changes).await {
            Ok(()) => Ok(true),
            Err(StoreError::Conflict) => tries.again().map(|()| false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes changes of a key in the store, and forgets the opened key.
    ///
    /// The two are one: a task of its own goes on with them when the caller goes away meanwhile, lest
    /// a change be made and the key go on as it was.
    async fn commit(
        &self,
        project: ProjectId,
        key_id: KeyId,
        changes: Vec<Change>,
    ) -> Result<(), StoreError> {
        let (store, keyring) = (Arc::clone(&self.store), Arc::clone(&self.keyring));
        let root_keys = Arc::clone(&self.root_keys);
        let committed = tokio::spawn(async move {
            let put = root_keys.put(&*store, changes).await;
            // Also after a failure: the change may have been made and its acknowledgement lost.
            keyring.forget(&project, key_id);
            put.map(|_| ())
        });
        let lost = |error| StoreError::Unavailable(Box::new(error));
        committed.await.map_err(lost)?
    }
}

/// Counts how often a change was decided again because another writer was faster.
#[derive(Debug, Default)]
struct Tries(u8);

impl Tries {
    const MAX: u8 = 8;

    /// Allows one more try, or gives up.
    fn again(&mut self) -> Result<(), Error> {
        self.0 += 1;
        if self.0 < Self::MAX {
            return Ok(());
        }
        Err(Error::from(Kind::Unavailable).caused_by(StoreError::Conflict))
    }
}

impl Call<'_> {
    /// Checks the project that the request names: empty, or the caller's own.
    pub fn project(&self, named: &str) -> Result<(), Error> {
        if named.is_empty() || named == self.context.caller.project.as_str() {
            return Ok(());
        }
        Err(Kind::ProjectMismatch.into())
    }

    /// Notes the caller's name for the request: empty, or a [`Sequence`].
    pub fn sequence(&mut self, text: &str) -> Result<(), Error> {
        if !text.is_empty() {
            self.sequence = Some(text.parse()?);
        }
        Ok(())
    }

    /// Notes the key that the request names.
    pub fn key_id(&mut self, text: &str) -> Result<KeyId, Error> {
        if text.is_empty() {
            return Err(Error::from(Kind::MissingParameter).detail("key_id is required."));
        }
        let key_id = text.parse()?;
        self.key_id = Some(key_id);
        Ok(key_id)
    }

    /// The caller's share of the CPU pool.
    fn pool(&self) -> Share<'_> {
        self.kms.pool.share(&self.context.caller)
    }

    /// The caller's project.
    fn caller_project(&self) -> &ProjectId {
        &self.context.caller.project
    }

    /// Refuses a caller without the right to an action that is about no key, or whose processor time
    /// does not allow it.
    fn allowed(&self) -> Result<(), Error> {
        self.allowed_with(self.action.into(), Key::default())?;
        self.charge(self.action.micros())
    }

    /// Refuses a caller who may not make a key of this name, or whose processor time does not allow it.
    fn allowed_to_make(&self, alias: &KeyAlias) -> Result<(), Error> {
        let key = Key {
            id: None,
            alias: Some(alias),
        };
        self.allowed_with(self.action.into(), key)?;
        self.charge(self.action.micros())
    }

    /// Refuses a caller who may not do this with any key, be it which it will.
    fn allowed_with_some_key(&self, algorithm: EncryptionAlgorithm) -> Result<(), Error> {
        match self.decide(self.by(algorithm), Key::default()) {
            Verdict::Denied => Err(Denied.into()),
            Verdict::Allowed | Verdict::Depends => Ok(()),
        }
    }

    /// Refuses a caller who may not do this with the key, whatever its alias is. What the alias
    /// decides is left to the [`Access`], for when the key has been looked for. Refuses a caller whose
    /// processor time does not allow looking for it, too.
    fn access(&self, key_id: KeyId) -> Result<Access<'_>, Error> {
        self.access_with(key_id, self.action.into())
    }

    /// The same for a data call by this algorithm.
    fn access_by(
        &self,
        key_id: KeyId,
        algorithm: EncryptionAlgorithm,
    ) -> Result<Access<'_>, Error> {
        self.access_with(key_id, self.by(algorithm))
    }

    fn access_with(&self, key_id: KeyId, operation: Operation) -> Result<Access<'_>, Error> {
        let key = Key {
            id: Some(key_id),
            alias: None,
        };
        let by_alias = match self.decide(operation, key) {
            Verdict::Denied => return Err(Denied.into()),
            Verdict::Allowed => false,
            Verdict::Depends => true,
        };
        self.charge(self.action.micros())?;
        Ok(Access {
            call: self,
            operation,
            key_id,
            by_alias,
        })
    }

    fn allowed_with(&self, operation: Operation, key: Key<'_>) -> Result<(), Error> {
        match self.decide(operation, key) {
            Verdict::Allowed => Ok(()),
            Verdict::Denied | Verdict::Depends => Err(Denied.into()),
        }
    }

    fn decide(&self, operation: Operation, key: Key<'_>) -> Verdict {
        self.kms.policy.decide(&self.context.caller, operation, key)
    }

    const fn by(&self, algorithm: EncryptionAlgorithm) -> Operation {
        Operation {
            action: self.action,
            algorithm,
        }
    }

    /// Charges the caller for `micros` of processor time, if it is any.
    fn charge(&self, micros: u32) -> Result<(), Error> {
        if micros == 0 {
            return Ok(());
        }
        self.kms.limits.work(&self.context.caller, None, micros)
    }

    /// Charges the caller and the key for work with a version of it, which is about to be done.
    fn charge_for(&self, key: &Held, version: KeyVersion, work: Work) -> Result<(), Error> {
        let record = key.record();
        let micros = record.spec.micros(work) + key.opening(version);
        let caller = &self.context.caller;
        self.kms.limits.work(caller, Some(record.key_id), micros)
    }

    /// Ends the call: logs and audits how.
    pub fn end<T>(mut self, answer: Result<T, Error>) -> Result<T, Error> {
        self.ended = true;
        match &answer {
            // Data calls that succeed are counted by metrics, and by nothing that costs each of
            // them.
            Ok(_) if matches!(self.action, Action::EncryptData | Action::DecryptData) => {
                tracing::debug!(
                    request_id = %self.context.request_id,
                    sequence = self.sequence.as_ref().map(Sequence::as_str),
                    key_id = self.key_id.as_ref().map(KeyId::as_str),
                    action = self.action.name(),
                    "done"
                );
            }
            Ok(_) => self.tell(Outcome::Done),
            Err(error) => {
                self.log(error);
                self.tell(Outcome::Refused(error.kind().row().code));
            }
        }
        answer
    }

    /// Logs a failure with its cause: as ours if it is ours, and quietly if it is the caller's.
    fn log(&self, error: &Error) {
        let cause = error.cause();
        let cause = cause.as_ref().map(tracing::field::display);
        let request_id = self.context.request_id;
        let sequence = self.sequence.as_ref().map(Sequence::as_str);
        let key_id = self.key_id.as_ref().map(KeyId::as_str);
        let (action, code) = (self.action.name(), error.kind().row().code);
        // A line for each caller whom a full queue or a store that is away turns away would cost more
        // than that, when there is least time for it. Metrics tell how many they are.
        let cause_is_told = error.source().is_some_and(|cause| {
            cause.downcast_ref() == Some(&PoolError::Full) || cause.is::<Stale>()
        });
        match error.kind() {
            Kind::Internal => {
                tracing::error!(%request_id, sequence, key_id, action, code, cause, "failed");
            }
            Kind::Unavailable if !cause_is_told => {
                tracing::warn!(%request_id, sequence, key_id, action, code, cause, "cannot serve");
            }
            _ => tracing::debug!(%request_id, sequence, key_id, action, code, cause, "refused"),
        }
    }

    fn tell(&self, outcome: Outcome) {
        self.context.told.store(true, Ordering::Relaxed);
        self.kms.audit.record(&Event {
            time: self.kms.clock.now(),
            request_id: Some(self.context.request_id),
            sequence: self.sequence,
            caller: Some(&self.context.caller),
            project: Some(&self.context.caller.project),
            action: Some(self.action),
            key_id: self.key_id,
            outcome,
        });
    }
}

/// A caller's right to a key that has not been looked for yet.
struct Access<'a> {
    call: &'a Call<'a>,
    operation: Operation,
    key_id: KeyId,
    /// Whether it is the key's alias that decides.
    by_alias: bool,
}

impl Access<'_> {
    /// Refuses if the caller may not do this with the key that was found, or if none was and some key
    /// with this id could have been denied: the two must be told alike.
    fn to(&self, found: Option<&KeyRecord>) -> Result<(), Error> {
        match found {
            Some(key) => self.under(&key.alias),
            None if self.by_alias => Err(Denied.into()),
            None => Ok(()),
        }
    }

    /// Refuses if the caller may not do this with the key under this alias. Asked also where the id
    /// has decided: the rules, and the alias, may have changed while the call waited.
    fn under(&self, alias: &KeyAlias) -> Result<(), Error> {
        let key = Key {
            id: Some(self.key_id),
            alias: Some(alias),
        };
        self.call.allowed_with(self.operation, key)
    }
}

impl Drop for Call<'_> {
    /// A call that is dropped before its end was cancelled, and that is told too.
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Outcome::Cancelled);
        }
    }
}
