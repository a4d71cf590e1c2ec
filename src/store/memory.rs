//! A store that is gone when the process ends.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::store::codec::{Codec, Write};
use crate::store::{
    Address, Change, KeyStore, Mark, Marks, Prefix, Revision, StoreError, Versioned,
};

/// Keeps records in memory, in the same bytes as the other stores do.
pub struct Memory {
    codec: Codec,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    revision: u64,
    /// By written address, because that is the order in which records are listed.
    records: BTreeMap<String, Stored>,
    marks: Marks,
}

struct Stored {
    revision: u64,
    value: Zeroizing<Vec<u8>>,
}

impl Memory {
    /// An empty store.
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            table: Mutex::default(),
        }
    }

    /// Changes the stored bytes at `address`, as an intruder in a store's files would, so that a
    /// test can show that every later read fails. Does nothing if there is no record.
    pub fn tamper(&self, address: &Address, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(stored) = self.table().records.get_mut(&address.to_string()) {
            change(&mut stored.value);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A put changes nothing before it has checked everything, so there is no half-made state
        // for a panic to leave.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, address: &str, stored: &Stored) -> Result<Versioned, StoreError> {
        let revision = Revision(stored.revision);
        self.codec.read(address, &stored.value, revision)
    }
}

#[async_trait]
impl KeyStore for Memory {
    async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError> {
        let address = address.to_string();
        let table = self.table();
        let stored = table.records.get(&address);
        stored.map(|stored| self.read(&address, stored)).transpose()
    }

    async fn put(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        let changes = self.codec.encode_changes(&changes)?;
        let mut table = self.table();
        let current = |address| table.records.get(address).map(|stored| stored.revision);
        if changes
            .iter()
            .any(|change| current(&change.address) != change.expected())
        {
            return Err(StoreError::Conflict);
        }
        table.revision += 1;
        let revision = table.revision;
        for change in changes {
            if !matches!(change.write, Write::Nothing) {
                table.marks.changed(&change.address);
            }
            match change.write {
                Write::Put(value) => {
                    let value = Zeroizing::new(value);
                    let stored = Stored { revision, value };
                    table.records.insert(change.address, stored);
                }
                Write::Erase => {
                    table.records.remove(&change.address);
                }
                Write::Nothing => {}
            }
        }
        Ok(Revision(revision))
    }

    async fn mark(&self, prefix: &Prefix) -> Result<Option<Mark>, StoreError> {
        Ok(Some(self.table().marks.get(prefix)))
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Address>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let (start, end) = prefix.bounds(after);
        let table = self.table();
        let range = (Bound::Excluded(start), Bound::Unbounded);
        let records = table.records.range(range);
        let records = records.take_while(|(address, _)| **address < end);
        records
            .take(limit)
            .map(|(address, stored)| self.read(address, stored))
            .collect()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}
