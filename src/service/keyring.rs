//! Opened keys in memory, bounded, so that a data call touches neither the store nor a seal.
//!
//! A key is read once however many calls ask for it at the same time. A writer
//! [forgets](Keyring::forget) the key after its write is durable and before it is acknowledged; a
//! read that began earlier is then not kept. So a call that begins after a change was acknowledged
//! sees the change.
//!
//! In a store that others write to, the keyring is its [`Watcher`] and forgets what they change.
//!
//! The map is in shards, each under a lock. A call whose key is held reads one shard; what can keep
//! it waiting is that a key is put into that shard or taken out at this moment, which is a change of
//! a few words. No lock is held while a key is read, opened or used.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use quick_cache::Equivalent;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::crypto::pool::{PoolError, Share, briefly};
use crate::crypto::{OpenKey, Providers, SealedKey, VersionName};
use crate::domain::cost::Work;
use crate::domain::key::{Family, KeyId, KeyVersion, ProjectId};
use crate::domain::time::micros;
use crate::error::{Error, Kind};
use crate::service::opening::Opening;
use crate::store::freshness::{Freshness, Watcher};
use crate::store::{Address, KeyRecord, KeyStore, Record, Revision};

/// How often one key is read at most because what is held of it was refused.
const REREAD: Duration = Duration::from_millis(20);

/// Opened keys.
pub struct Keyring {
    keys: Cache<(KeyId, ProjectId), Arc<Held>>,
    era: ArcSwap<Era>,
}

/// The time between two moments at which everything was forgotten.
#[derive(Debug, Default)]
struct Era {
    over: AtomicBool,
}

impl Keyring {
    /// A keyring that holds at most `capacity` keys.
    pub fn new(capacity: usize) -> Self {
        Self {
            keys: Cache::new(capacity),
            era: ArcSwap::default(),
        }
    }

    /// The key, read from `store` unless it is held; none if there is none.
    pub async fn find(
        &self,
        store: &dyn KeyStore,
        project: &ProjectId,
        key_id: KeyId,
    ) -> Result<Option<Arc<Held>>, Error> {
        let place = loop {
            let held = match self.keys.get(&Name(key_id, project)) {
                Some(held) => held,
                None => {
                    let name = (key_id, project.clone());
                    match self.keys.get_value_or_guard_async(&name).await {
                        Ok(held) => held,
                        Err(place) => break place,
                    }
                }
            };
            if !held.has_changed() {
                return Ok(Some(held));
            }
            self.discard(&held);
        };
        // What is read from here on is of this era, and as new as this moment.
        let era = self.era.load_full();
        let read = store.freshness().map(|freshness| freshness.now());
        let address = Address::Key(project.clone(), key_id);
        let Some(found) = store.get(&address).await? else {
            return Ok(None);
        };
        let Record::Key(mut record) = found.record else {
            return Err(Kind::Internal.into());
        };
        // The same one, but shared: a caller's keys need not have a copy each.
        record.project = project.clone();
        let read = read.unwrap_or_default();
        let held = Arc::new(Held::new(record, found.revision, era, read));
        if place.insert(Arc::clone(&held)).is_err() {
            // A writer was here since the read began.
            held.changed.store(true, Ordering::Release);
        }
        Ok(Some(held))
    }

    /// The key as it is in a store that others write to: read after this call began, which is not
    /// more often than each 20 ms however many call. If it is as it was, what is opened of it
    /// stays.
    pub async fn reread(
        &self,
        store: &dyn KeyStore,
        freshness: &Freshness,
        project: &ProjectId,
        key_id: KeyId,
    ) -> Result<Option<Arc<Held>>, Error> {
        let asked = micros(freshness.now());
        loop {
            // What is found may have been read by another call, before this one began.
            let Some(held) = self.find(store, project, key_id).await? else {
                return Ok(None);
            };
            let read = || held.read.load(Ordering::Acquire);
            if read() >= asked {
                return Ok(Some(held));
            }
            let turn = held.turn.acquire().await;
            let _turn = turn.map_err(|_| Kind::Internal)?;
            if read() >= asked {
                continue;
            }
            let since = Duration::from_micros(micros(freshness.now()).saturating_sub(read()));
            tokio::time::sleep(REREAD.saturating_sub(since)).await;
            let began = micros(freshness.now());
            let found = store.get(&Address::Key(project.clone(), key_id)).await?;
            if found.is_some_and(|found| found.revision == held.revision) {
                held.read.fetch_max(began, Ordering::AcqRel);
            } else {
                held.changed.store(true, Ordering::Release);
                self.discard(&held);
            }
        }
    }

    /// Holds a key no longer, if it is still this one that is held.
    fn discard(&self, held: &Arc<Held>) {
        let name = Name(held.record.key_id, &held.record.project);
        self.keys.remove_if(&name, |other| Arc::ptr_eq(other, held));
    }

    /// Forgets a key that has changed in the store.
    pub fn forget(&self, project: &ProjectId, key_id: KeyId) {
        if let Some((_, held)) = self.keys.remove(&Name(key_id, project)) {
            held.changed.store(true, Ordering::Release);
        }
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Watcher for Keyring {
    fn changed(&self, project: &ProjectId, key_id: KeyId) {
        self.forget(project, key_id);
    }

    fn all_changed(&self) {
        let ended = self.era.swap(Arc::default());
        ended.over.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.len())
    }
}

/// A key's place, to look it up without a copy.
struct Name<'a>(KeyId, &'a ProjectId);

impl Hash for Name<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As the pair that is held.
        (self.0, self.1).hash(state);
    }
}

impl Equivalent<(KeyId, ProjectId)> for Name<'_> {
    fn equivalent(&self, (key_id, project): &(KeyId, ProjectId)) -> bool {
        self.0 == *key_id && self.1 == project
    }
}

/// A key as it was read, and those of its versions that have been used, opened.
#[derive(Debug)]
pub struct Held {
    record: KeyRecord,
    opened: Vec<Opening<OpenKey>>,
    changed: AtomicBool,
    era: Arc<Era>,
    /// The write that made it so.
    revision: Revision,
    /// When reading it last began, in microseconds by the clock of the store's [`Freshness`]; 0 in a
    /// store without.
    read: AtomicU64,
    /// One call reads it again at a time.
    turn: Semaphore,
}

impl Held {
    fn new(record: KeyRecord, revision: Revision, era: Arc<Era>, read: Duration) -> Self {
        let opened = record.versions.iter().map(|_| Opening::default()).collect();
        Self {
            record,
            opened,
            changed: AtomicBool::new(false),
            era,
            revision,
            read: AtomicU64::new(micros(read)),
            turn: Semaphore::new(1),
        }
    }

    /// The key's attributes.
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }

    /// Whether the key has changed in the store since it was read.
    pub fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire) || self.era.over.load(Ordering::Acquire)
    }

    /// About how long opening one version has one core, in microseconds; 0 if it is open, or is none.
    pub fn opening(&self, version: KeyVersion) -> u32 {
        let opening = self.opened.get(place(version));
        if opening.is_none_or(|opening| opening.get().is_some()) {
            return 0;
        }
        self.record.spec.micros(Work::Open)
    }

    /// The number of the version that encrypts.
    pub fn newest_version(&self) -> Result<KeyVersion, Error> {
        let newest = self.record.versions.last().ok_or(Kind::Internal)?;
        Ok(newest.version)
    }

    /// The version that encrypts, opened.
    pub async fn newest(
        &self,
        providers: &Arc<Providers>,
        pool: Share<'_>,
    ) -> Result<(KeyVersion, &Arc<OpenKey>), Error> {
        let newest = self.newest_version()?;
        let opened = self.version(newest, providers, pool).await?;
        Ok((newest, opened.ok_or(Kind::Internal)?))
    }

    /// One version, opened; none if the key has no such version.
    pub async fn version(
        &self,
        version: KeyVersion,
        providers: &Arc<Providers>,
        pool: Share<'_>,
    ) -> Result<Option<&Arc<OpenKey>>, Error> {
        let place = place(version);
        let (Some(record), Some(opening)) =
            (self.record.versions.get(place), self.opened.get(place))
        else {
            return Ok(None);
        };
        if let Some(opened) = opening.get() {
            return Ok(Some(opened));
        }
        let family = self.record.spec.family();
        let line = match family {
            Family::Symmetric => None,
            Family::Rsa | Family::Sm2 => Some(pool.line()),
        };
        let open = || async move {
            let name = VersionName {
                project: self.record.project.clone(),
                key_id: self.record.key_id,
                version,
                spec: self.record.spec,
            };
            let sealed = SealedKey(record.sealed.clone());
            let providers = Arc::clone(providers);
            let spec = name.spec;
            let open = move || providers.opener(name.spec, &sealed)?.open(&name, &sealed);
            let opened = match family {
                Family::Symmetric => briefly(open).await?,
                Family::Rsa | Family::Sm2 => pool.run(spec.micros(Work::Open), open).await?,
            };
            opened.map_err(Error::from)
        };
        // In a box of its own, for no call whose key is open has it.
        Ok(Some(Box::pin(opening.open(line, open)).await?))
    }
}

/// Where a version stands among a key's. They are counted from 1 without a gap: the store makes sure of
/// it.
fn place(version: KeyVersion) -> usize {
    usize::try_from(version.get() - 1).unwrap_or(usize::MAX)
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        let kind = match error {
            PoolError::Full => Kind::Unavailable,
            PoolError::Stopped => Kind::Internal,
        };
        Self::from(kind).caused_by(error)
    }
}
