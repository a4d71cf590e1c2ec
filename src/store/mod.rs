//! Where keys are kept.
//!
//! A [`KeyStore`] keeps [records](Record) at [addresses](Address), each with the
//! [revision](Revision) that wrote it. Every record is authenticated by the [codec]: whoever can
//! write the store's files cannot change a key's state, widen its usage or swap one record for
//! another without every later read failing.
//!
//! A write names the revision that it read, and several records change together or not at all. So
//! an alias is unique (its record must not exist when a key takes it) and the deletion queue is a
//! record beside the key.
//!
//! # Adding a store
//!
//! Implement [`KeyStore`] in one file, then add one line to `tests/stores.rs`. The battery there
//! decides whether it is correct.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::key::{
    KeyAlias, KeyDescription, KeyId, KeySpec, KeyState, KeyUsage, KeyVersion, ProjectId, RootKeyId,
};
use crate::domain::time::Timestamp;
use crate::store::freshness::{Freshness, Watcher};

pub mod codec;
pub mod copy;
pub mod etcd;
pub mod freshness;
pub mod memory;
pub mod root_keys;
pub mod sqlite;

/// How many records those who walk over a whole store read at a time, and at most write in one
/// transaction: a cluster bounds the parts of one (etcd: 128).
pub const CHUNK: usize = 50;

/// The most bytes of sealed keys that they write in one: a cluster bounds these too (etcd: 1.5 MiB).
pub const MAX_SEALED: usize = 512 * 1024;

/// Keeps records.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// Reads one record; none if there is none.
    ///
    /// Fails with [`StoreError::Corrupt`] if what is stored is not what was written at this
    /// address.
    async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError>;

    /// Makes all of the changes, or none.
    ///
    /// Once it has answered, the changes survive a crash of the process and of the machine; erased
    /// bytes are overwritten, if the store can do that. Fails with [`StoreError::Conflict`] if a record is no longer at its
    /// expected revision.
    async fn put(&self, changes: Vec<Change>) -> Result<Revision, StoreError>;

    /// Reads up to `limit` records under `prefix`, in the order of their addresses, from the first
    /// one after `after`.
    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Address>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError>;

    /// A mark that is another one after every change of a record under `prefix` from now on, by whomever;
    /// none if the store has no such mark.
    async fn mark(&self, prefix: &Prefix) -> Result<Option<Mark>, StoreError> {
        let _ = prefix;
        Ok(None)
    }

    /// How fresh what was read is, in a store that others write to; none in a store that only this
    /// process writes to.
    fn freshness(&self) -> Option<&Arc<Freshness>> {
        None
    }

    /// Takes the store for another one, if another answers: whoever [follows](Self::follow) it looks whether it
    /// may be served.
    fn may_be_another(&self) {}

    /// Tells `watcher` of every change by anybody, and makes the proofs of
    /// [`freshness`](Self::freshness).
    ///
    /// Returns when the store may be another than before, and has no proof then. Whether it may be served is
    /// to be looked at before it is followed again.
    async fn follow(&self, watcher: &dyn Watcher) {
        let _ = watcher;
        std::future::pending().await
    }
}

/// Copies itself as a whole, if it is a file.
#[async_trait]
pub trait BackUp: fmt::Debug + Send + Sync {
    /// A copy of the store as it is when the copy is complete, in a file that has no name any more.
    ///
    /// Reads and writes go on meanwhile. Of material that was erased before the end nothing is in the
    /// copy. Fails with [`StoreError::Unavailable`] if another copy is being made.
    async fn back_up(&self) -> Result<File, StoreError>;
}

/// Where a record is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A key.
    Key(ProjectId, KeyId),
    /// The owner of an alias.
    Alias(ProjectId, KeyAlias),
    /// A place in the deletion queue.
    Deletion(ProjectId, KeyId),
    /// The latest time that the server trusted.
    Clock,
    /// The root keys that the store needs.
    RootKeys,
    /// There while a [copy] into this store is not complete.
    Copy,
}

impl fmt::Display for Address {
    /// The address as stores write it: `key/PROJECT/ID`, `alias/PROJECT/ALIAS`,
    /// `deletion/PROJECT/ID`, `clock`, `root-keys` or `copy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(project, id) => write!(f, "key/{project}/{id}"),
            Self::Alias(project, alias) => write!(f, "alias/{project}/{}", alias.as_str()),
            Self::Deletion(project, id) => write!(f, "deletion/{project}/{id}"),
            Self::Clock => f.write_str("clock"),
            Self::RootKeys => f.write_str("root-keys"),
            Self::Copy => f.write_str("copy"),
        }
    }
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// The keys of one project.
    Keys(ProjectId),
    /// The deletion queue of all projects.
    Deletions,
    /// Every record of the store.
    Everything,
}

impl fmt::Display for Prefix {
    /// What the written addresses in the range begin with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys(project) => write!(f, "key/{project}/"),
            Self::Deletions => f.write_str("deletion/"),
            Self::Everything => Ok(()),
        }
    }
}

impl Prefix {
    /// The written addresses that a listing after `after` is between, itself without either.
    ///
    /// The order that counts is that of the written addresses. An address's own order is another:
    /// it puts project `a` before `a-b`, and `key/a-b/` comes before `key/a/`.
    fn bounds(&self, after: Option<&Address>) -> (String, String) {
        let prefix = self.to_string();
        // Addresses are printable ASCII, so none that begins with the prefix reaches this end.
        let end = format!("{prefix}\x7f");
        let start = after.map_or_else(String::new, Address::to_string);
        (start.max(prefix), end)
    }
}

/// What is kept at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A key.
    Key(KeyRecord),
    /// The owner of an alias.
    Alias(AliasRecord),
    /// A place in the deletion queue.
    Deletion(DeletionRecord),
    /// The latest time that the server trusted.
    Clock(ClockRecord),
    /// The root keys that the store needs.
    RootKeys(RootKeysRecord),
    /// There while a [copy] into this store is not complete.
    Copy,
}

impl Record {
    /// The bytes of sealed keys in this record.
    pub fn sealed_bytes(&self) -> usize {
        match self {
            Self::Key(key) => key.versions.iter().map(|it| it.sealed.len()).sum(),
            _ => 0,
        }
    }

    /// Where this record belongs. A record at any other address is corrupt.
    pub fn address(&self) -> Address {
        match self {
            Self::Key(key) => Address::Key(key.project.clone(), key.key_id),
            Self::Alias(alias) => Address::Alias(alias.project.clone(), alias.alias.clone()),
            Self::Deletion(deletion) => {
                Address::Deletion(deletion.project.clone(), deletion.key_id)
            }
            Self::Clock(_) => Address::Clock,
            Self::RootKeys(_) => Address::RootKeys,
            Self::Copy => Address::Copy,
        }
    }
}

/// A key: its attributes and its sealed versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The project that owns the key.
    pub project: ProjectId,
    /// The key's id.
    pub key_id: KeyId,
    /// The key's name.
    pub alias: KeyAlias,
    /// Free text.
    pub description: KeyDescription,
    /// What the key is made of.
    pub spec: KeySpec,
    /// What the key is for.
    pub usage: KeyUsage,
    /// How far through its life the key is.
    pub state: KeyState,
    /// When the key was made.
    pub created: Timestamp,
    /// When the key is destroyed; set exactly while it is pending deletion.
    pub deletion: Option<Timestamp>,
    /// The versions, oldest first, never empty. The last one encrypts.
    pub versions: Vec<VersionRecord>,
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRecord {
    /// Which version.
    pub version: KeyVersion,
    /// When it was made.
    pub created: Timestamp,
    /// The sealed material.
    pub sealed: Vec<u8>,
}

/// The owner of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasRecord {
    /// The project.
    pub project: ProjectId,
    /// The alias.
    pub alias: KeyAlias,
    /// The key that has it.
    pub key_id: KeyId,
}

/// A place in the deletion queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletionRecord {
    /// The project.
    pub project: ProjectId,
    /// The key to destroy.
    pub key_id: KeyId,
    /// When.
    pub due: Timestamp,
}

/// The latest time that the server trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockRecord {
    /// That time.
    pub seen: Timestamp,
}

/// The root keys that the store needs: what one that is not among them sealed or authenticated is
/// nowhere in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootKeysRecord {
    /// Whether new records may be sealed and authenticated under each.
    pub root_keys: BTreeMap<RootKeyId, bool>,
}

/// A record and the write that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The record.
    pub record: Record,
    /// The write.
    pub revision: Revision,
    /// Whether it is authenticated under the key that authenticates new records, and not under one of
    /// a previous root key.
    pub current: bool,
}

/// Counts the writes of a store; grows with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// The state that the records under a prefix are in, without saying what it is: two that are equal, of one
/// opened store, are of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(Vec<u8>);

/// The project whose key is at an address, as it is written; none if something else is there.
fn owner(address: &str) -> Option<&str> {
    address.strip_prefix("key/")?.split('/').next()
}

/// The marks of a store that only this process writes to.
#[derive(Debug, Default)]
struct Marks {
    /// How many changes there have been, those that failed in the end among them: nobody knows then what
    /// was changed.
    changes: u64,
    /// Which was the last one of a key of each project.
    last: HashMap<String, u64>,
}

impl Marks {
    fn changed(&mut self, address: &str) {
        self.changes += 1;
        let Some(project) = owner(address) else {
            return;
        };
        match self.last.get_mut(project) {
            Some(last) => *last = self.changes,
            None => drop(self.last.insert(project.to_owned(), self.changes)),
        }
    }

    fn get(&self, prefix: &Prefix) -> Mark {
        let last = match prefix {
            Prefix::Keys(project) => self.last.get(project.as_str()).copied().unwrap_or_default(),
            Prefix::Deletions | Prefix::Everything => self.changes,
        };
        Mark(last.to_be_bytes().to_vec())
    }
}

/// A change of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub address: Address,
    /// The revision that the writer read; none if there must be no record yet.
    pub expected: Option<Revision>,
    /// What shall become of it.
    pub effect: Effect,
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// This shall be there.
    Put(Record),
    /// Nothing shall be there.
    Erase,
    /// What is there stays, with its revision. The other changes happen only if it is as expected.
    Keep,
}

impl Change {
    /// Puts `record` where there is none.
    pub fn create(record: Record) -> Self {
        Self {
            address: record.address(),
            expected: None,
            effect: Effect::Put(record),
        }
    }

    /// Puts `record` in place of the one read at `revision`.
    pub fn replace(record: Record, revision: Revision) -> Self {
        Self {
            address: record.address(),
            expected: Some(revision),
            effect: Effect::Put(record),
        }
    }

    /// Erases the record read at `revision`.
    pub fn erase(address: Address, revision: Revision) -> Self {
        Self {
            address,
            expected: Some(revision),
            effect: Effect::Erase,
        }
    }

    /// Keeps the record read at `revision`, on which the other changes depend.
    pub fn keep(address: Address, revision: Revision) -> Self {
        Self {
            address,
            expected: Some(revision),
            effect: Effect::Keep,
        }
    }

    /// The record that shall be there, if the change puts one.
    pub fn record(&self) -> Option<&Record> {
        match &self.effect {
            Effect::Put(record) => Some(record),
            Effect::Erase | Effect::Keep => None,
        }
    }
}

/// Why a store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A record changed since it was read. The writer must read again and decide again.
    #[error("the record changed meanwhile")]
    Conflict,
    /// What is stored is not what was written there. Our fault, or an intruder's. Says where.
    #[error("the record at {0} is corrupt")]
    Corrupt(String),
    /// The store cannot serve now; a retry may work.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
}
