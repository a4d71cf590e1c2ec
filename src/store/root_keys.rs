//! Which root keys a store needs, as a record of it, so that none is taken away too early.
//!
//! The record lists every root key that may have sealed or authenticated something in the store, and
//! for each whether it may do so still. Servers keep to this:
//!
//! 1. A server seals and authenticates under the first of its root keys. Before its first write it sees
//!    to it that the record lists that key as one that seals, and it does not start without every key
//!    that the record lists.
//! 2. Each of its writes is one transaction with a look at the record, which must be as the server
//!    read it last. If it is not, the server reads it again, and does as before its first write.
//! 3. A rotation first notes that its server's first key alone seals. From then on no write under
//!    another one succeeds, so a walk over all records, which puts each under the first key, meets the
//!    last of them. Then the others are struck off the record, if it has not changed since.
//!
//! So several servers may work on one store with different first root keys: one that has not heard of a
//! rotation adds its own key to the record again with its next write, and the rotation is told that it
//! was not complete. A root key that is not on the record is needed by nothing.
//!
//! A store that was made before there was such a record gets one that lists every configured key.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::domain::key::RootKeyId;
use crate::store::{
    Address, Change, KeyStore, Prefix, Record, Revision, RootKeysRecord, StoreError,
};

/// The root keys of a server, before its writes.
#[derive(Debug)]
pub struct RootKeys {
    sealing: RootKeyId,
    previous: Vec<RootKeyId>,
    /// The revision of the record when it was read last; 0 before that.
    seen: AtomicU64,
    /// How many root keys it listed then.
    listed: AtomicU64,
    /// Whether it was ever read or written.
    served: AtomicBool,
}

/// What a [rotation](RootKeys::begin_rotation) goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rotation(Revision);

impl RootKeys {
    /// Those of a server that seals under `sealing`, and opens what `previous` ones sealed.
    pub fn new(sealing: RootKeyId, previous: Vec<RootKeyId>) -> Self {
        Self {
            sealing,
            previous,
            seen: AtomicU64::new(0),
            listed: AtomicU64::new(0),
            served: AtomicBool::new(false),
        }
    }

    /// The root key that seals.
    pub const fn sealing(&self) -> RootKeyId {
        self.sealing
    }

    /// How many root keys the store needed when the record was read last.
    pub fn listed(&self) -> u64 {
        self.listed.load(Ordering::Relaxed)
    }

    /// Sees to it that what this server writes can be opened by who has the keys on the record.
    ///
    /// Fails if the store needs a root key that the server does not have.
    pub async fn enter(&self, store: &dyn KeyStore) -> Result<(), RootKeysError> {
        self.note(store, |root_keys| {
            root_keys.insert(self.sealing, true);
        })
        .await?;
        Ok(())
    }

    /// Looks at a store that may be another than before: whether it was written by servers such as this, and is
    /// whole. Until the first [`enter`](Self::enter) there was no other.
    ///
    /// Fails with what keeps the store from being served. An empty one is none that goes on.
    pub async fn accept(&self, store: &dyn KeyStore) -> Result<(), RootKeysError> {
        if !self.served.load(Ordering::Acquire) {
            return Ok(());
        }
        let (record, _) = self.read(store).await?.ok_or(RootKeysError::Emptied)?;
        self.has_all(&record.root_keys)?;
        match store.get(&Address::Copy).await? {
            Some(_) => Err(RootKeysError::UnfinishedCopy),
            None => Ok(()),
        }
    }

    /// Has the record read again before the next write: the store may have been set back, and count its revisions
    /// anew.
    pub fn forget(&self) {
        self.seen.store(0, Ordering::Release);
    }

    /// Makes the changes, as [`KeyStore::put`] does, if the record is as it was.
    pub async fn put(
        &self,
        store: &dyn KeyStore,
        changes: Vec<Change>,
    ) -> Result<Revision, StoreError> {
        for _ in 0..TRIES {
            if self.seen.load(Ordering::Acquire) == 0 {
                self.accept(store).await.map_err(unavailable)?;
                self.enter(store).await.map_err(unavailable)?;
            }
            let seen = Revision(self.seen.load(Ordering::Acquire));
            let mut all = changes.clone();
            all.push(Change::keep(Address::RootKeys, seen));
            match store.put(all).await {
                Err(StoreError::Conflict) => {}
                done => return done,
            }
            let now = store.get(&Address::RootKeys).await?;
            if now.is_some_and(|now| now.revision == seen) {
                return Err(StoreError::Conflict);
            }
            self.enter(store).await.map_err(unavailable)?;
        }
        // Not a conflict: nothing is known of the records that the changes are of.
        Err(StoreError::Unavailable(
            "the record of root keys changes all the time".into(),
        ))
    }

    /// The root keys that a store needs, none of which seals.
    ///
    /// Fails if the server does not have one of them.
    pub async fn needed(
        &self,
        store: &dyn KeyStore,
    ) -> Result<BTreeMap<RootKeyId, bool>, RootKeysError> {
        let listed = match self.read(store).await? {
            Some((record, _)) => record.root_keys,
            None => self.unlisted(store).await?,
        };
        self.has_all(&listed)?;
        Ok(listed.into_keys().map(|id| (id, false)).collect())
    }

    /// Begins to put everything under the first root key: no other seals from now on.
    ///
    /// Fails as [`enter`](Self::enter) does.
    pub async fn begin_rotation(&self, store: &dyn KeyStore) -> Result<Rotation, RootKeysError> {
        let noted = self.note(store, |root_keys| {
            for (id, seals) in root_keys.iter_mut() {
                *seals = *id == self.sealing;
            }
            root_keys.insert(self.sealing, true);
        });
        Ok(Rotation(noted.await?))
    }

    /// Notes that the store needs no other root key than the first, after everything was put under it.
    ///
    /// Fails with [`RootKeysError::Interfered`] if another one may have sealed meanwhile.
    pub async fn end_rotation(
        &self,
        store: &dyn KeyStore,
        rotation: Rotation,
    ) -> Result<(), RootKeysError> {
        let alone = RootKeysRecord {
            root_keys: BTreeMap::from([(self.sealing, true)]),
        };
        // There was nothing to do, or another server has ended its own.
        if let Some((now, revision)) = self.read(store).await?
            && now == alone
        {
            self.saw(&now, revision);
            return Ok(());
        }
        let change = Change::replace(Record::RootKeys(alone.clone()), rotation.0);
        match store.put(vec![change]).await {
            Ok(revision) => {
                self.saw(&alone, revision);
                Ok(())
            }
            Err(StoreError::Conflict) => Err(RootKeysError::Interfered),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the record say what `change` makes of it, and gives its revision.
    async fn note(
        &self,
        store: &dyn KeyStore,
        change: impl Fn(&mut BTreeMap<RootKeyId, bool>),
    ) -> Result<Revision, RootKeysError> {
        for _ in 0..TRIES {
            let read = self.read(store).await?;
            let mut root_keys = match &read {
                Some((record, _)) => record.root_keys.clone(),
                None if self.served.load(Ordering::Acquire) => {
                    return Err(RootKeysError::Emptied);
                }
                None => self.unlisted(store).await?,
            };
            self.has_all(&root_keys)?;
            change(&mut root_keys);
            let new = RootKeysRecord { root_keys };
            let record = Record::RootKeys(new.clone());
            let change = match read {
                Some((record, revision)) if record == new => {
                    self.saw(&new, revision);
                    return Ok(revision);
                }
                Some((_, revision)) => Change::replace(record, revision),
                None => Change::create(record),
            };
            match store.put(vec![change]).await {
                Ok(revision) => {
                    self.saw(&new, revision);
                    return Ok(revision);
                }
                // Another server was faster.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict.into())
    }

    /// The root keys of a store without a record: none if it is empty, else any of the configured ones.
    async fn unlisted(
        &self,
        store: &dyn KeyStore,
    ) -> Result<BTreeMap<RootKeyId, bool>, RootKeysError> {
        let first = store.list(&Prefix::Everything, None, 1).await?;
        let all = [&self.sealing].into_iter().chain(&self.previous);
        Ok(all
            .filter(|_| !first.is_empty())
            .map(|id| (*id, false))
            .collect())
    }

    /// Reads how many root keys the store needs now, which another server may have changed. Fails if one
    /// is missing here.
    pub async fn look(&self, store: &dyn KeyStore) -> Result<(), RootKeysError> {
        if let Some((record, _)) = self.read(store).await? {
            self.count(&record);
            self.has_all(&record.root_keys)?;
        }
        Ok(())
    }

    /// Whether everything opens in a store that has this record.
    pub fn open(&self, record: &RootKeysRecord) -> Result<(), RootKeysError> {
        self.has_all(&record.root_keys)
    }

    async fn read(
        &self,
        store: &dyn KeyStore,
    ) -> Result<Option<(RootKeysRecord, Revision)>, StoreError> {
        let found = store.get(&Address::RootKeys).await?;
        Ok(match found.map(|found| (found.record, found.revision)) {
            Some((Record::RootKeys(record), revision)) => Some((record, revision)),
            _ => None,
        })
    }

    fn has_all(&self, needed: &BTreeMap<RootKeyId, bool>) -> Result<(), RootKeysError> {
        let has = |id: &RootKeyId| *id == self.sealing || self.previous.contains(id);
        match needed.keys().find(|id| !has(id)) {
            Some(missing) => Err(RootKeysError::Missing(*missing)),
            None => Ok(()),
        }
    }

    fn count(&self, record: &RootKeysRecord) {
        let listed = u64::try_from(record.root_keys.len()).unwrap_or(u64::MAX);
        self.listed.store(listed, Ordering::Relaxed);
    }

    fn saw(&self, record: &RootKeysRecord, revision: Revision) {
        self.count(record);
        self.seen.store(revision.0, Ordering::Release);
        self.served.store(true, Ordering::Release);
    }
}

/// How often something is decided again because another server was faster.
const TRIES: usize = 8;

fn unavailable(error: RootKeysError) -> StoreError {
    match error {
        // A conflict about the record of root keys says nothing of the records to be changed.
        RootKeysError::Store(error) if !matches!(error, StoreError::Conflict) => error,
        error => StoreError::Unavailable(Box::new(error)),
    }
}

/// Why a server may not write, or a rotation is not complete.
#[derive(Debug, thiserror::Error)]
pub enum RootKeysError {
    /// The store needs a root key that the server does not have.
    #[error(
        "the store still has records under root key {0}, which is not configured: name it among the \
         previous root keys, and take it away after a complete `kmsgate root-key rotate`"
    )]
    Missing(RootKeyId),
    /// Another server sealed under its own first root key.
    #[error(
        "another server seals under another root key: give all servers the same first root key, and \
         rotate again"
    )]
    Interfered,
    /// The store had a record of root keys, and has none.
    #[error(
        "the store was emptied, or is another: put it back from a backup, or restart the servers to begin with \
         it as it is"
    )]
    Emptied,
    /// A copy into the store was begun, and is not complete.
    #[error("a copy into the store is not complete: go on with `kmsgate store copy`")]
    UnfinishedCopy,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::domain::secret::MacKey;
    use crate::domain::time::Timestamp;
    use crate::store::ClockRecord;
    use crate::store::codec::Codec;
    use crate::store::memory::Memory;

    const OLD: RootKeyId = RootKeyId([1; 8]);
    const NEW: RootKeyId = RootKeyId([2; 8]);

    #[tokio::test]
    async fn a_new_store_needs_the_first_root_key_alone() {
        let store = store();
        let keys = RootKeys::new(NEW, vec![OLD]);
        keys.enter(&store).await.unwrap();
        assert_eq!(listed(&store).await, [(NEW, true)]);
        assert_eq!(keys.listed(), 1);
    }

    #[tokio::test]
    async fn a_store_without_a_record_may_need_every_configured_root_key() {
        let store = store();
        let clock = Change::create(clock(1));
        store.put(vec![clock]).await.unwrap();
        RootKeys::new(NEW, vec![OLD]).enter(&store).await.unwrap();
        assert_eq!(listed(&store).await, [(OLD, false), (NEW, true)]);
    }

    #[tokio::test]
    async fn a_store_that_was_exchanged_is_neither_accepted_nor_written_to() {
        let keys = RootKeys::new(OLD, vec![]);
        // Before the first there was no other.
        keys.accept(&store()).await.unwrap();
        let first = store();
        keys.enter(&first).await.unwrap();
        keys.accept(&first).await.unwrap();

        let (other, begun) = (store(), store());
        RootKeys::new(NEW, vec![]).enter(&other).await.unwrap();
        RootKeys::new(OLD, vec![]).enter(&begun).await.unwrap();
        let copy = vec![Change::create(Record::Copy)];
        begun.put(copy).await.unwrap();
        let emptied = store();
        for (now, why) in [
            (&emptied, "was emptied"),
            (&other, "0202020202020202"),
            (&begun, "is not complete"),
        ] {
            keys.forget();
            let refused = keys.accept(now).await.unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            let put = keys.put(now, vec![Change::create(clock(1))]).await;
            assert!(matches!(put, Err(StoreError::Unavailable(_))), "{why}");
            assert!(now.get(&Address::Clock).await.unwrap().is_none(), "{why}");
        }
        assert!(emptied.get(&Address::RootKeys).await.unwrap().is_none());
        // Nor does who has seen it already write to it.
        assert!(matches!(
            keys.enter(&emptied).await,
            Err(RootKeysError::Emptied)
        ));
        keys.accept(&first).await.unwrap();
    }

    #[tokio::test]
    async fn a_root_key_is_listed_before_the_first_write_under_it() {
        let store = store();
        let keys = RootKeys::new(OLD, vec![]);
        keys.put(&store, vec![Change::create(clock(1))])
            .await
            .unwrap();
        assert_eq!(listed(&store).await, [(OLD, true)]);
    }

    #[tokio::test]
    async fn a_server_without_a_root_key_that_the_store_needs_is_refused_and_writes_nothing() {
        let store = store();
        RootKeys::new(OLD, vec![]).enter(&store).await.unwrap();
        let keys = RootKeys::new(NEW, vec![]);
        let refused = keys.enter(&store).await.unwrap_err();
        assert!(matches!(refused, RootKeysError::Missing(OLD)));
        assert!(refused.to_string().contains("0101010101010101"));
        let put = keys.put(&store, vec![Change::create(clock(1))]).await;
        assert!(matches!(put, Err(StoreError::Unavailable(_))));
        assert_eq!(listed(&store).await, [(OLD, true)]);
        assert_eq!(store.get(&Address::Clock).await.unwrap(), None);
    }

    #[tokio::test]
    async fn after_a_rotation_the_first_root_key_is_enough() {
        let store = store();
        RootKeys::new(OLD, vec![]).enter(&store).await.unwrap();
        let keys = RootKeys::new(NEW, vec![OLD]);
        keys.enter(&store).await.unwrap();
        assert_eq!(listed(&store).await, [(OLD, true), (NEW, true)]);
        let rotation = keys.begin_rotation(&store).await.unwrap();
        assert_eq!(listed(&store).await, [(OLD, false), (NEW, true)]);
        keys.end_rotation(&store, rotation).await.unwrap();
        assert_eq!(listed(&store).await, [(NEW, true)]);
        RootKeys::new(NEW, vec![]).enter(&store).await.unwrap();
        // A second one has nothing to do.
        let rotation = keys.begin_rotation(&store).await.unwrap();
        keys.end_rotation(&store, rotation).await.unwrap();
    }

    #[tokio::test]
    async fn a_rotation_that_did_not_end_can_be_begun_again() {
        let store = store();
        RootKeys::new(OLD, vec![]).enter(&store).await.unwrap();
        let keys = RootKeys::new(NEW, vec![OLD]);
        keys.begin_rotation(&store).await.unwrap();
        let again = RootKeys::new(NEW, vec![OLD]);
        again.enter(&store).await.unwrap();
        let rotation = again.begin_rotation(&store).await.unwrap();
        again.end_rotation(&store, rotation).await.unwrap();
        assert_eq!(listed(&store).await, [(NEW, true)]);
    }

    #[tokio::test]
    async fn a_server_that_still_seals_under_another_root_key_loses_nothing_by_a_rotation() {
        let store = store();
        let slow = RootKeys::new(OLD, vec![NEW]);
        let write = |seen| vec![Change::create(clock(seen))];
        slow.enter(&store).await.unwrap();
        let keys = RootKeys::new(NEW, vec![OLD]);
        let rotation = keys.begin_rotation(&store).await.unwrap();

        // Its write is made, and the rotation told.
        slow.put(&store, write(1)).await.unwrap();
        let ended = keys.end_rotation(&store, rotation).await;
        assert!(matches!(ended, Err(RootKeysError::Interfered)));
        assert_eq!(listed(&store).await, [(OLD, true), (NEW, true)]);

        // One that comes after the end has its root key listed again.
        let rotation = keys.begin_rotation(&store).await.unwrap();
        keys.end_rotation(&store, rotation).await.unwrap();
        let read = store.get(&Address::Clock).await.unwrap().unwrap();
        let erase = vec![Change::erase(Address::Clock, read.revision)];
        slow.put(&store, erase).await.unwrap();
        assert_eq!(listed(&store).await, [(OLD, true), (NEW, true)]);
        let refused = RootKeys::new(NEW, vec![]).enter(&store).await;
        assert!(matches!(refused, Err(RootKeysError::Missing(OLD))));
    }

    #[tokio::test]
    async fn in_a_store_that_was_set_back_a_root_key_is_listed_anew() {
        let (before, restored) = (store(), store());
        let keys = RootKeys::new(NEW, vec![OLD]);
        keys.enter(&before).await.unwrap();
        // At the same revision.
        RootKeys::new(OLD, vec![]).enter(&restored).await.unwrap();
        keys.forget();
        let write = vec![Change::create(clock(1))];
        keys.put(&restored, write).await.unwrap();
        assert_eq!(listed(&restored).await, [(OLD, true), (NEW, true)]);
    }

    #[tokio::test]
    async fn a_conflict_of_the_changes_themselves_is_told() {
        let store = store();
        let keys = RootKeys::new(NEW, vec![]);
        let create = || keys.put(&store, vec![Change::create(clock(1))]);
        create().await.unwrap();
        assert!(matches!(create().await, Err(StoreError::Conflict)));
    }

    fn store() -> Memory {
        Memory::new(Codec::new(MacKey::new(vec![7; 32])))
    }

    fn clock(seen: i64) -> Record {
        let seen = Timestamp(seen);
        Record::Clock(ClockRecord { seen })
    }

    async fn listed(store: &Memory) -> Vec<(RootKeyId, bool)> {
        let read = store.get(&Address::RootKeys).await.unwrap();
        match read.unwrap().record {
            Record::RootKeys(record) => record.root_keys.into_iter().collect(),
            other => panic!("{other:?}"),
        }
    }
}
