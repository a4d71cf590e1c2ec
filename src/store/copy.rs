//! Copying one store into another, of whatever kind.
//!
//! Every record is read, which verifies it, and written anew under the root key that seals; sealed keys
//! stay as they are. When all are there, both stores are read once more and compared. While the copy is not
//! complete the target has a record that says so, and no server starts on it. A copy that was cut short is
//! begun again: what is there already is compared, what differs is replaced, and what the source has
//! no more is erased.
//!
//! Nobody may write either store meanwhile. A file is held by its lock. A store that servers share has a
//! mark, which must be the same before and after. Each write of the
//! target depends on its copy being this one: one that was believed to be dead writes no more once
//! another has begun, or servers have.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use crate::domain::key::RootKeyId;
use crate::store::root_keys::{RootKeys, RootKeysError};
use crate::store::{
    Address, CHUNK, Change, KeyStore, MAX_SEALED, Prefix, Record, Revision, RootKeysRecord,
    StoreError, Versioned,
};

/// How far a copy is, in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Those that are in the target.
    pub copied: u64,
    /// Those that were read again from both and are the same.
    pub verified: u64,
    /// Those of the source.
    pub total: u64,
}

/// Copies everything of `from` into `to`, which must be empty, or have what an earlier copy left.
pub async fn copy(
    from: &dyn KeyStore,
    to: &dyn KeyStore,
    root_keys: &RootKeys,
    tell: impl Fn(Progress),
) -> Result<Progress, CopyError> {
    if from.get(&Address::Copy).await?.is_some() {
        return Err(CopyError::Unfinished);
    }
    let mark = from.mark(&Prefix::Everything).await?;
    let begun = begin(to, root_keys.needed(from).await?, root_keys).await?;
    let mut progress = Progress {
        total: count(from).await?,
        ..Progress::default()
    };
    write(from, to, begun, &mut progress, &tell).await?;
    verify(from, to, &mut progress, &tell).await?;
    if from.mark(&Prefix::Everything).await? != mark {
        return Err(CopyError::Written);
    }
    to.put(vec![Change::erase(Address::Copy, begun)]).await?;
    Ok(progress)
}

/// Notes in the target that a copy has begun, and which root keys it will need. Gives the revision of
/// the note.
async fn begin(
    to: &dyn KeyStore,
    mut needed: BTreeMap<RootKeyId, bool>,
    root_keys: &RootKeys,
) -> Result<Revision, CopyError> {
    let first = to.list(&Prefix::Everything, None, 1).await?;
    if first.is_empty() {
        needed.insert(root_keys.sealing(), true);
        let needed = Record::RootKeys(RootKeysRecord { root_keys: needed });
        let changes = vec![Change::create(Record::Copy), Change::create(needed)];
        return Ok(to.put(changes).await?);
    }
    let Some(earlier) = to.get(&Address::Copy).await? else {
        return Err(CopyError::NotEmpty);
    };
    // What an earlier attempt wrote may be under a root key that seals no more.
    needed.extend(root_keys.needed(to).await?);
    needed.insert(root_keys.sealing(), true);
    let needed = Record::RootKeys(RootKeysRecord { root_keys: needed });
    let change = match to.get(&Address::RootKeys).await? {
        Some(found) => Change::replace(needed, found.revision),
        None => Change::create(needed),
    };
    let ours = Change::replace(Record::Copy, earlier.revision);
    Ok(to.put(vec![ours, change]).await?)
}

async fn count(store: &dyn KeyStore) -> Result<u64, StoreError> {
    let mut records = Walk::over(store);
    let mut total = 0;
    while records.next().await?.is_some() {
        total += 1;
    }
    Ok(total)
}

/// Makes the target's records those of the source.
async fn write(
    from: &dyn KeyStore,
    to: &dyn KeyStore,
    begun: Revision,
    progress: &mut Progress,
    tell: &impl Fn(Progress),
) -> Result<(), StoreError> {
    let (mut source, mut target) = (Walk::over(from), Walk::over(to));
    let ours = || Change::keep(Address::Copy, begun);
    let (mut batch, mut size) = (Vec::new(), 0);
    loop {
        let change = match meet(&mut source, &mut target).await? {
            None => break,
            Some(Met::Source(read)) => Some(Change::create(read.record)),
            Some(Met::Target(stale)) => Some(Change::erase(stale.record.address(), stale.revision)),
            Some(Met::Both(read, there)) => {
                (read.record != there.record).then(|| Change::replace(read.record, there.revision))
            }
        };
        let is_record = change
            .as_ref()
            .is_none_or(|change| change.record().is_some());
        progress.copied += u64::from(is_record);
        let Some(change) = change else {
            continue;
        };
        let more = change.record().map_or(0, Record::sealed_bytes);
        if batch.len() >= CHUNK || size + more > MAX_SEALED && !batch.is_empty() {
            batch.push(ours());
            to.put(std::mem::take(&mut batch)).await?;
            size = 0;
            tell(*progress);
        }
        size += more;
        batch.push(change);
    }
    if !batch.is_empty() {
        batch.push(ours());
        to.put(batch).await?;
    }
    tell(*progress);
    Ok(())
}

/// Reads both stores and compares them.
async fn verify(
    from: &dyn KeyStore,
    to: &dyn KeyStore,
    progress: &mut Progress,
    tell: &impl Fn(Progress),
) -> Result<(), CopyError> {
    let (mut source, mut target) = (Walk::over(from), Walk::over(to));
    while let Some(met) = meet(&mut source, &mut target).await? {
        match met {
            Met::Both(read, there) if read.record == there.record => {}
            Met::Both(read, _) | Met::Source(read) | Met::Target(read) => {
                return Err(CopyError::Differs(read.record.address().to_string()));
            }
        }
        progress.verified += 1;
        if progress.verified.is_multiple_of(CHUNK as u64) {
            tell(*progress);
        }
    }
    tell(*progress);
    Ok(())
}

/// What two walks have at the next address.
enum Met {
    Source(Versioned),
    Target(Versioned),
    Both(Versioned, Versioned),
}

async fn meet(source: &mut Walk<'_>, target: &mut Walk<'_>) -> Result<Option<Met>, StoreError> {
    let order = match (source.peek().await?, target.peek().await?) {
        (None, None) => return Ok(None),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(read), Some(there)) => read.cmp(&there),
    };
    let read = match order {
        Ordering::Less | Ordering::Equal => source.next().await?,
        Ordering::Greater => None,
    };
    let there = match order {
        Ordering::Greater | Ordering::Equal => target.next().await?,
        Ordering::Less => None,
    };
    Ok(match (read, there) {
        (Some(read), Some(there)) => Some(Met::Both(read, there)),
        (Some(read), None) => Some(Met::Source(read)),
        (None, Some(there)) => Some(Met::Target(there)),
        (None, None) => None,
    })
}

/// The records of a store in their order, save those that are about the store itself.
struct Walk<'a> {
    store: &'a dyn KeyStore,
    read: VecDeque<Versioned>,
    after: Option<Address>,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn over(store: &'a dyn KeyStore) -> Self {
        Self {
            store,
            read: VecDeque::new(),
            after: None,
            ended: false,
        }
    }

    /// The written address of the next record.
    async fn peek(&mut self) -> Result<Option<String>, StoreError> {
        while self.read.is_empty() && !self.ended {
            let chunk = self
                .store
                .list(&Prefix::Everything, self.after.as_ref(), CHUNK)
                .await?;
            self.ended = chunk.len() < CHUNK;
            self.after = chunk.last().map(|read| read.record.address());
            let records = chunk.into_iter();
            self.read.extend(
                records.filter(|read| !matches!(read.record, Record::Copy | Record::RootKeys(_))),
            );
        }
        let next = self.read.front();
        Ok(next.map(|read| read.record.address().to_string()))
    }

    async fn next(&mut self) -> Result<Option<Versioned>, StoreError> {
        self.peek().await?;
        Ok(self.read.pop_front())
    }
}

/// Why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target has records that no copy has put there.
    #[error("the target is not empty")]
    NotEmpty,
    /// The source is itself a copy that was cut short.
    #[error("the source is a copy that is not complete")]
    Unfinished,
    /// The stores differ after the copy.
    #[error("{0} is not the same in both: was a store written meanwhile? Copy again.")]
    Differs(String),
    /// The source changed during the copy.
    #[error("the source was written meanwhile: stop the servers that use it, and copy again")]
    Written,
    /// A root key is missing.
    #[error(transparent)]
    RootKeys(#[from] RootKeysError),
    /// One of the stores refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::runtime::Handle;

    use crate::domain::key::{KeyId, KeySpec, KeyState, KeyUsage, KeyVersion};
    use crate::domain::secret::MacKey;
    use crate::domain::time::Timestamp;
    use crate::store::codec::Codec;
    use crate::store::memory::Memory;
    use crate::store::{AliasRecord, ClockRecord, KeyRecord, VersionRecord};

    const OLD: RootKeyId = RootKeyId([1; 8]);
    const NEW: RootKeyId = RootKeyId([2; 8]);

    #[tokio::test]
    async fn a_copy_has_every_record_and_is_complete() {
        let (from, to) = (full().await, store());
        let done = copied(&from, &to).await.unwrap();
        let total = u64::try_from(2 * KEYS + 1).unwrap();
        let all = Progress {
            copied: total,
            verified: total,
            total,
        };
        assert_eq!(done, all);
        assert_eq!(records(&from).await, records(&to).await);
        assert_eq!(to.get(&Address::Copy).await.unwrap(), None);
        // A second one is not made.
        let again = copied(&from, &to).await;
        assert!(matches!(again, Err(CopyError::NotEmpty)));
    }

    #[tokio::test]
    async fn a_target_with_anything_in_it_is_refused_and_left_as_it_is() {
        let (from, to) = (full().await, store());
        let clock = Record::Clock(ClockRecord { seen: Timestamp(9) });
        to.put(vec![Change::create(clock.clone())]).await.unwrap();
        let refused = copied(&from, &to).await;
        assert!(matches!(refused, Err(CopyError::NotEmpty)));
        assert_eq!(records(&to).await, [clock]);
    }

    #[tokio::test]
    async fn a_copy_that_was_cut_short_goes_on() {
        let (from, to) = (full().await, store());
        // The first attempt got some way, with a record that has changed since and one that is gone.
        let keys = RootKeys::new(NEW, vec![OLD]);
        begin(&to, keys.needed(&from).await.unwrap(), &keys)
            .await
            .unwrap();
        let unfinished = copied(&to, &store()).await;
        assert!(matches!(unfinished, Err(CopyError::Unfinished)));
        let mut changed = key(3);
        changed.description = "another".parse().unwrap();
        let there = [key(1), key(2), changed, key(200)];
        let there = there.map(|key| Change::create(Record::Key(key)));
        to.put(there.into()).await.unwrap();

        let copied = copied(&from, &to).await.unwrap();
        assert_eq!(copied.verified, copied.total);
        assert_eq!(records(&from).await, records(&to).await);
        assert_eq!(to.get(&Address::Copy).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_copy_needs_the_root_keys_that_the_source_needs() {
        let (from, to) = (full().await, store());
        RootKeys::new(OLD, vec![]).enter(&from).await.unwrap();
        let without = RootKeys::new(NEW, vec![]);
        let refused = copy(&from, &to, &without, |_| {}).await;
        assert!(matches!(
            refused,
            Err(CopyError::RootKeys(RootKeysError::Missing(OLD)))
        ));
        assert_eq!(records(&to).await, []);
        copied(&from, &to).await.unwrap();
        let refused = without.enter(&to).await;
        assert!(matches!(refused, Err(RootKeysError::Missing(OLD))));
        // The source is as it was.
        RootKeys::new(OLD, vec![]).enter(&from).await.unwrap();
    }

    #[tokio::test]
    async fn a_damaged_record_is_not_copied() {
        let (from, to) = (full().await, store());
        from.tamper(&Record::Key(key(7)).address(), |bytes| bytes[20] ^= 1);
        let refused = copied(&from, &to).await;
        assert!(matches!(
            refused,
            Err(CopyError::Store(StoreError::Corrupt(_)))
        ));
    }

    #[tokio::test]
    async fn what_was_written_meanwhile_is_found() {
        let (from, to) = (full().await, store());
        let mut progress = Progress::default();
        let keys = RootKeys::new(NEW, vec![OLD]);
        let begun = begin(&to, BTreeMap::new(), &keys).await.unwrap();
        write(&from, &to, begun, &mut progress, &|_| {})
            .await
            .unwrap();
        let record = Record::Key(key(250));
        let place = record.address().to_string();
        from.put(vec![Change::create(record)]).await.unwrap();
        let differs = verify(&from, &to, &mut progress, &|_| {}).await;
        assert!(matches!(differs, Err(CopyError::Differs(at)) if at == place));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_was_written_behind_the_comparison_is_found() {
        let (from, to) = (full().await, store());
        let new = Record::Alias(AliasRecord {
            project: "p".parse().unwrap(),
            alias: "a".parse().unwrap(),
            key_id: KeyId::from_random([0; 16]),
        });
        let tell = |progress: Progress| {
            if progress.verified == CHUNK as u64 {
                let create = from.put(vec![Change::create(new.clone())]);
                let create = async { create.await.unwrap() };
                tokio::task::block_in_place(|| Handle::current().block_on(create));
            }
        };
        let keys = RootKeys::new(NEW, vec![OLD]);
        let written = copy(&from, &to, &keys, tell).await;
        assert!(matches!(written, Err(CopyError::Written)), "{written:?}");
        assert!(to.get(&Address::Copy).await.unwrap().is_some());
        copied(&from, &to).await.unwrap();
        assert_eq!(records(&from).await, records(&to).await);
    }

    #[tokio::test]
    async fn a_copy_that_another_has_overtaken_writes_no_more() {
        let (from, to) = (full().await, store());
        let keys = RootKeys::new(NEW, vec![OLD]);
        let believed_dead = begin(&to, BTreeMap::new(), &keys).await.unwrap();
        copied(&from, &to).await.unwrap();
        // Servers have started on the target, and made this.
        let made = Record::Key(key(250));
        to.put(vec![Change::create(made.clone())]).await.unwrap();
        let mut progress = Progress::default();
        let late = write(&from, &to, believed_dead, &mut progress, &|_| {}).await;
        assert!(matches!(late, Err(StoreError::Conflict)));
        assert!(to.get(&made.address()).await.unwrap().is_some());
    }

    /// More than are written at a time.
    const KEYS: usize = 120;

    async fn copied(from: &Memory, to: &Memory) -> Result<Progress, CopyError> {
        copy(from, to, &RootKeys::new(NEW, vec![OLD]), |_| {}).await
    }

    fn store() -> Memory {
        Memory::new(Codec::new(MacKey::new(vec![7; 32])))
    }

    async fn full() -> Memory {
        let store = store();
        let mut changes = vec![Change::create(Record::Clock(ClockRecord {
            seen: Timestamp(5),
        }))];
        for n in 0..KEYS {
            let key = key(n.try_into().unwrap());
            changes.push(Change::create(Record::Alias(AliasRecord {
                project: key.project.clone(),
                alias: key.alias.clone(),
                key_id: key.key_id,
            })));
            changes.push(Change::create(Record::Key(key)));
        }
        store.put(changes).await.unwrap();
        store
    }

    fn key(n: u8) -> KeyRecord {
        KeyRecord {
            project: "p".parse().unwrap(),
            key_id: KeyId::from_random([n; 16]),
            alias: format!("k-{n}").parse().unwrap(),
            description: "".parse().unwrap(),
            spec: KeySpec::Aes256,
            usage: KeyUsage::EncryptDecrypt,
            state: KeyState::Enabled,
            created: Timestamp(1),
            deletion: None,
            versions: vec![VersionRecord {
                version: KeyVersion::FIRST,
                created: Timestamp(1),
                sealed: vec![n; 60],
            }],
        }
    }

    async fn records(store: &Memory) -> Vec<Record> {
        let mut walk = Walk::over(store);
        let mut records = Vec::new();
        while let Some(read) = walk.next().await.unwrap() {
            records.push(read.record);
        }
        records
    }
}
