//! Opened keys in memory, bounded, so that a data call touches neither the store nor a seal.
//!
//! The bound is one of memory, whatever the keys are: each counts for what it takes once all its versions are
//! open.
//!
//! A key is read once however many calls ask for it at the same time. A writer
//! [forgets](Keyring::forget) the key after its write is durable and before it is acknowledged; a
//! read that began earlier is then not kept. So a call that begins after a change was acknowledged
//! sees the change. That there is no such key is true for those who asked before the read began, and for
//! nobody else: others read it again.
//!
//! In a store that others write to, the keyring also forgets what they change: [`Kms`](crate::service::Kms) is told.
//!
//! The map is in shards, each under a lock. A call whose key is held reads one shard; what can keep
//! it waiting is that a key is put into that shard or taken out at this moment, which is a change of
//! a few words. No lock is held while a key is read, opened or used.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};
use tokio::sync::Semaphore;

use crate::crypto::pool::{PoolError, Share, briefly};
use crate::crypto::{OpenKey, Place, Providers, SealedKey, VersionName};
use crate::domain::cost::Work;
use crate::domain::key::{Family, KeyId, KeyVersion, ProjectId};
use crate::domain::time::micros;
use crate::error::{Error, Kind};
use crate::service::opening::Opening;
use crate::store::freshness::Freshness;
use crate::store::{Address, KeyRecord, KeyStore, Record, Revision};

/// How often one key is read at most because what is held of it was refused.
const REREAD: Duration = Duration::from_millis(20);

/// How much memory an AES-256 key with one version takes while it is held, in bytes.
const KEY: u64 = 1300;

/// What a key takes besides its versions, and a version besides what is sealed and what is open of it.
const BESIDES_VERSIONS: usize = 480;
const BESIDES_VERSION: usize = 90;

/// No shard is smaller, if there are several: a key with as many versions as there may be takes 3 MiB, and must find
/// room in its own.
const SHARD: u64 = 16 << 20;

/// How much of a shard what is used often may fill. The rest has room for the largest key, which else would have to leave
/// as soon as it comes.
const HOT: f64 = 0.75;

/// Of how many keys that are not there it is known when that was last read.
const ABSENT: usize = 1024;

/// Opened keys.
pub struct Keyring {
    keys: Cache<(KeyId, ProjectId), Arc<Held>, Weigher>,
    /// When reading a key last began that was not there, in microseconds by the clock of the store's
    /// [`Freshness`].
    absent: Cache<(KeyId, ProjectId), u64>,
    era: ArcSwap<Era>,
}

/// The time between two moments at which everything was forgotten.
#[derive(Debug, Default)]
struct Era {
    over: AtomicBool,
}

impl Keyring {
    /// A keyring that takes as much memory as `capacity` AES-256 keys with one version each.
    #[expect(clippy::expect_used, reason = "options lack nothing but capacities")]
    pub fn new(capacity: usize) -> Self {
        let bytes = KEY.saturating_mul(capacity as u64);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let shards = 1 << (bytes / SHARD).clamp(1, 4 * cores as u64).ilog2();
        // They are a power of two, and fewer if they were to hold few keys.
        let most = bytes / shards / 4;
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(bytes)
            .hot_allocation(HOT)
            .shards(usize::try_from(shards).unwrap_or(1))
            .build()
            .expect("both capacities are given");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self {
            keys: Cache::with_options(options, Weigher { most }, hasher, lifecycle),
            absent: Cache::new(ABSENT),
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
        let now = || store.freshness().map(|freshness| freshness.now());
        let mut asked = None;
        let place = loop {
            let held = match self.keys.get(&Name(key_id, project)) {
                Some(held) => held,
                None => {
                    let name = (key_id, project.clone());
                    asked = asked.or_else(now);
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
        let absent = self.absent.get(&Name(key_id, project));
        if absent > asked.map(micros) {
            // It was read while this call waited.
            return Ok(None);
        }
        // What is read from here on is of this era, and as new as this moment.
        let era = self.era.load_full();
        let read = now();
        let address = Address::Key(project.clone(), key_id);
        let Some(found) = store.get(&address).await? else {
            if let Some(read) = read {
                self.absent.insert((key_id, project.clone()), micros(read));
            }
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

    /// Forgets all keys: any may have changed.
    pub fn forget_all(&self) {
        let ended = self.era.swap(Arc::default());
        ended.over.store(true, Ordering::Release);
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

/// Tells how much memory a key takes.
#[derive(Clone)]
struct Weigher {
    /// What the largest key counts for, so that it is held at all.
    most: u64,
}

impl Weighter<(KeyId, ProjectId), Arc<Held>> for Weigher {
    fn weight(&self, _: &(KeyId, ProjectId), held: &Arc<Held>) -> u64 {
        held.bytes.min(self.most)
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
    /// About how much memory it takes once all its versions are open.
    bytes: u64,
}

impl Held {
    fn new(record: KeyRecord, revision: Revision, era: Arc<Era>, read: Duration) -> Self {
        let opened = record.versions.iter().map(|_| Opening::default()).collect();
        let open = BESIDES_VERSION + record.spec.opened_bytes();
        let versions = record.versions.iter();
        let versions: usize = versions.map(|version| open + version.sealed.len()).sum();
        let texts = record.alias.as_str().len() + record.description.as_str().len();
        let bytes = BESIDES_VERSIONS + texts + versions;
        Self {
            record,
            opened,
            changed: AtomicBool::new(false),
            era,
            revision,
            read: AtomicU64::new(micros(read)),
            turn: Semaphore::new(1),
            bytes: bytes as u64,
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
        let spec = self.record.spec;
        let sealed = SealedKey(record.sealed.clone());
        let place = providers.opener(spec, &sealed)?.place(Some(&sealed));
        let brief = place == Place::Pool && spec.family() == Family::Symmetric;
        let line = (!brief).then(|| pool.line());
        let open = || async move {
            let name = VersionName {
                project: self.record.project.clone(),
                key_id: self.record.key_id,
                version,
                spec,
            };
            let sealed = SealedKey(record.sealed.clone());
            let providers = Arc::clone(providers);
            let open = move || providers.opener(spec, &sealed)?.open(&name, &sealed);
            let opened = if brief {
                briefly(open).await?
            } else {
                pool.run(place, spec.micros(Work::Open), open).await?
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::domain::key::{KeyDescription, KeySpec, KeyState, KeyUsage};
    use crate::domain::secret::MacKey;
    use crate::domain::time::{Stopwatch, Timestamp};
    use crate::store::codec::Codec;
    use crate::store::memory::Memory;
    use crate::store::{Change, Prefix, StoreError, VersionRecord, Versioned};
    use async_trait::async_trait;
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn those_who_ask_for_a_key_that_is_not_there_wait_for_two_reads_at_most() {
        let store = Arc::new(Far::new());
        let keyring = Arc::new(Keyring::new(1000));
        let absent = key(1, KeySpec::Aes256, 1);
        let mut asking = JoinSet::new();
        for _ in 0..50 {
            let (keyring, store, key) = (keyring.clone(), store.clone(), absent.clone());
            asking.spawn(async move {
                let found = keyring.find(&*store, &key.project, key.key_id).await;
                found.unwrap().is_none()
            });
            tokio::task::yield_now().await;
        }
        while let Some(absent) = asking.join_next().await {
            assert!(absent.unwrap());
        }
        // The first had begun when the others asked.
        assert_eq!(store.reads.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_key_that_was_made_meanwhile_is_found_at_once() {
        let store = Far::new();
        let keyring = Keyring::new(1000);
        for number in 0..20 {
            let made = key(number, KeySpec::Aes256, 1);
            let found = keyring.find(&store, &made.project, made.key_id).await;
            assert!(found.unwrap().is_none());
            let change = Change::create(Record::Key(made.clone()));
            store.memory.put(vec![change]).await.unwrap();
            let found = keyring.find(&store, &made.project, made.key_id).await;
            assert!(found.unwrap().is_some(), "{number}");
        }
    }

    /// A store that others write to, some way off.
    #[derive(Debug)]
    struct Far {
        memory: Memory,
        freshness: Arc<Freshness>,
        reads: AtomicUsize,
    }

    impl Far {
        fn new() -> Self {
            let clock = Arc::new(Running(Instant::now()));
            Self {
                memory: Memory::new(Codec::new(MacKey::new(vec![7; 32]))),
                freshness: Arc::new(Freshness::new(clock, Duration::from_secs(3))),
                reads: AtomicUsize::new(0),
            }
        }
    }

    #[async_trait]
    impl KeyStore for Far {
        async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let found = self.memory.get(address).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            found
        }

        async fn put(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
            self.memory.put(changes).await
        }

        async fn list(
            &self,
            prefix: &Prefix,
            after: Option<&Address>,
            limit: usize,
        ) -> Result<Vec<Versioned>, StoreError> {
            self.memory.list(prefix, after, limit).await
        }

        fn freshness(&self) -> Option<&Arc<Freshness>> {
            Some(&self.freshness)
        }
    }

    #[derive(Debug)]
    struct Running(Instant);

    impl Stopwatch for Running {
        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }
    }

    #[tokio::test]
    async fn keys_of_any_spec_take_the_same_memory_together() {
        for (spec, versions, fewest, most) in [
            (KeySpec::Aes256, 1, 900, 1000),
            (KeySpec::Aes256, 10, 130, 180),
            (KeySpec::Rsa4096, 1, 120, 144),
            (KeySpec::Sm2, 1, 20, 25),
        ] {
            let keyring = Keyring::new(1000);
            let store = Memory::new(Codec::new(MacKey::new(vec![7; 32])));
            for number in 0..1000 {
                find(&keyring, &store, key(number, spec, versions)).await;
            }
            let held = keyring.len();
            assert!((fewest..=most).contains(&held), "{held} keys of {spec:?}");
        }
    }

    #[tokio::test]
    async fn a_key_that_is_larger_than_its_share_is_held_all_the_same() {
        for capacity in [1, 8, 100_000] {
            let keyring = Keyring::new(capacity);
            let store = Memory::new(Codec::new(MacKey::new(vec![7; 32])));
            let key = key(1, KeySpec::Sm2, 1000);
            let first = find(&keyring, &store, key.clone()).await;
            let again = keyring.find(&store, &key.project, key.key_id);
            assert!(Arc::ptr_eq(&first, &again.await.unwrap().unwrap()));
        }
    }

    #[tokio::test]
    async fn a_large_key_finds_room_among_many_that_are_in_use() {
        let keyring = Keyring::new(1000);
        let store = Memory::new(Codec::new(MacKey::new(vec![7; 32])));
        let others: Vec<_> = (0..2000)
            .map(|number| key(number, KeySpec::Aes256, 1))
            .collect();
        for other in &others {
            find(&keyring, &store, other.clone()).await;
        }
        for other in others.iter().chain(&others) {
            drop(keyring.keys.get(&Name(other.key_id, &other.project)));
        }
        let large = key(5000, KeySpec::Sm2, 1);
        let first = find(&keyring, &store, large.clone()).await;
        let again = keyring.find(&store, &large.project, large.key_id);
        assert!(Arc::ptr_eq(&first, &again.await.unwrap().unwrap()));
    }

    async fn find(keyring: &Keyring, store: &Memory, key: KeyRecord) -> Arc<Held> {
        let (project, key_id) = (key.project.clone(), key.key_id);
        let change = Change::create(Record::Key(key));
        store.put(vec![change]).await.unwrap();
        let found = keyring.find(store, &project, key_id).await;
        found.unwrap().unwrap()
    }

    fn key(number: u128, spec: KeySpec, versions: u32) -> KeyRecord {
        let versions = (1..=versions).map(|version| VersionRecord {
            version: KeyVersion::new(version).unwrap(),
            created: Timestamp(0),
            sealed: vec![0; 100],
        });
        KeyRecord {
            project: "p".parse().unwrap(),
            key_id: KeyId::from_random(number.to_be_bytes()),
            alias: "alias".parse().unwrap(),
            description: KeyDescription::default(),
            spec,
            usage: KeyUsage::EncryptDecrypt,
            state: KeyState::Enabled,
            created: Timestamp(0),
            deletion: None,
            versions: versions.collect(),
        }
    }
}
