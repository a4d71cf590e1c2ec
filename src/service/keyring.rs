//! Opened keys in memory, bounded, so that a data call touches neither the store nor a seal.
//!
//! A key is read once however many calls ask for it at the same time. A writer
//! [forgets](Keyring::forget) the key after its write is durable and before it is acknowledged; a
//! read that began earlier is then not kept. So a call that begins after a change was acknowledged
//! sees the change.
//!
//! The map is in shards, each under a lock. A call whose key is held reads one shard; what can keep
//! it waiting is that a key is put into that shard or taken out at this moment, which is a change of
//! a few words. No lock is held while a key is read, opened or used.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::Equivalent;
use quick_cache::sync::Cache;
use tokio::sync::OnceCell;

use crate::crypto::pool::{PoolError, Share, briefly};
use crate::crypto::{OpenKey, Providers, SealedKey, VersionName};
use crate::domain::cost::Work;
use crate::domain::key::{Family, KeyId, KeyVersion, ProjectId};
use crate::error::{Error, Kind};
use crate::store::{Address, KeyRecord, KeyStore, Record};

/// Opened keys.
pub struct Keyring {
    keys: Cache<(KeyId, ProjectId), Arc<Held>>,
}

impl Keyring {
    /// A keyring that holds at most `capacity` keys.
    pub fn new(capacity: usize) -> Self {
        Self {
            keys: Cache::new(capacity),
        }
    }

    /// The key, read from `store` unless it is held; none if there is none.
    pub async fn find(
        &self,
        store: &dyn KeyStore,
        project: &ProjectId,
        key_id: KeyId,
    ) -> Result<Option<Arc<Held>>, Error> {
        if let Some(held) = self.keys.get(&Name(key_id, project)) {
            return Ok(Some(held));
        }
        let place = match self
            .keys
            .get_value_or_guard_async(&(key_id, project.clone()))
            .await
        {
            Ok(held) => return Ok(Some(held)),
            Err(place) => place,
        };
        let address = Address::Key(project.clone(), key_id);
        let Some(found) = store.get(&address).await? else {
            return Ok(None);
        };
        let Record::Key(mut record) = found.record else {
            return Err(Kind::Internal.into());
        };
        // The same one, but shared: a caller's keys need not have a copy each.
        record.project = project.clone();
        let held = Arc::new(Held::new(record));
        if place.insert(Arc::clone(&held)).is_err() {
            // A writer was here since the read began.
            held.changed.store(true, Ordering::Release);
        }
        Ok(Some(held))
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
    opened: Vec<OnceCell<Arc<OpenKey>>>,
    changed: AtomicBool,
}

impl Held {
    fn new(record: KeyRecord) -> Self {
        let opened = record.versions.iter().map(|_| OnceCell::new()).collect();
        Self {
            record,
            opened,
            changed: AtomicBool::new(false),
        }
    }

    /// The key's attributes.
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }

    /// Whether the key has changed in the store since it was read.
    pub fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// About how long opening one version has one core, in microseconds; 0 if it is open, or is none.
    pub fn opening(&self, version: KeyVersion) -> u32 {
        let cell = self.opened.get(place(version));
        if cell.is_none_or(OnceCell::initialized) {
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
        let (Some(record), Some(cell)) = (self.record.versions.get(place), self.opened.get(place))
        else {
            return Ok(None);
        };
        let open = || async {
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
            let opened = match spec.family() {
                Family::Symmetric => briefly(open).await?,
                Family::Rsa | Family::Sm2 => pool.run(spec.micros(Work::Open), open).await?,
            };
            opened.map(Arc::new).map_err(Error::from)
        };
        Ok(Some(cell.get_or_try_init(open).await?))
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
