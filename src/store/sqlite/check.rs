//! Reading a whole store, to see whether it is what was written.
//!
//! A start does not do this, because it takes as long as the store is large.

use std::path::Path;

use rusqlite::Row;

use crate::store::codec::Codec;
use crate::store::root_keys::RootKeys;
use crate::store::sqlite::{Database, OpenError, Refusal, Sqlite, resolve};
use crate::store::{Address, Record, StoreError, Versioned};

/// What was found in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Keys that verify.
    pub keys: u64,
    /// Sealed versions in them.
    pub versions: u64,
    /// Keys that are to be destroyed.
    pub deletions: u64,
    /// What is wrong, a sentence each, beginning with where; empty if all is well.
    pub wrong: Vec<String>,
}

impl Sqlite {
    /// Reads the whole of the store at `path`: the structure of the file, every record, and whether
    /// each has those that belong to it.
    ///
    /// A store that needs another root key than `root_keys` is not sound with them: what is sealed under
    /// that one does not open.
    ///
    /// Fails as [`open`](Self::open) does, and also if there is no file. Like that, it brings into
    /// the file what the log holds, and changes nothing else.
    pub fn check(path: &Path, codec: Codec, root_keys: &RootKeys) -> Result<Findings, StoreError> {
        let open = || {
            let path = resolve(path)?;
            if path.try_exists()? {
                Database::open(&path, codec)
            } else {
                Err(Refusal::Missing)
            }
        };
        let refuse = |why: Refusal| {
            let path = path.to_owned();
            StoreError::Unavailable(Box::new(OpenError { path, why }))
        };
        Ok(open().map_err(refuse)?.check(root_keys))
    }
}

impl Database {
    fn check(&self, root_keys: &RootKeys) -> Findings {
        let mut findings = Findings::default();
        let read = self
            .check_file(&mut findings)
            .and_then(|()| self.check_records(root_keys, &mut findings));
        // Of a file that is damaged, SQLite may not be able to read all.
        if let Err(error) = read {
            findings.wrong.push(format!("the file: {error}"));
        }
        findings
    }

    /// Looks at the pages, the tables and the index of addresses.
    fn check_file(&self, findings: &mut Findings) -> rusqlite::Result<()> {
        let mut check = self.connection.prepare("PRAGMA integrity_check")?;
        let said = check.query_map([], |row| row.get::<_, String>(0))?;
        for line in said {
            let line = line?;
            if line != "ok" {
                findings.wrong.push(format!("the file: {line}"));
            }
        }
        Ok(())
    }

    fn check_records(&self, root_keys: &RootKeys, findings: &mut Findings) -> rusqlite::Result<()> {
        let latest = self.connection.query_row(
            "SELECT value FROM meta WHERE name = 'revision'",
            [],
            |row| row.get::<_, u64>(0),
        )?;
        let mut select = self
            .connection
            .prepare("SELECT address, revision, value FROM records ORDER BY address")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (address, record) = match self.read(row, latest)? {
                Ok(read) => read,
                Err(wrong) => {
                    findings.wrong.push(wrong);
                    continue;
                }
            };
            if let Some(lacks) = self.lacks(&record) {
                findings.wrong.push(format!("{address}: {lacks}"));
            }
            match record {
                Record::Key(key) => {
                    findings.keys += 1;
                    findings.versions += key.versions.len() as u64;
                }
                Record::Deletion(_) => findings.deletions += 1,
                Record::RootKeys(needed) => {
                    if let Err(error) = root_keys.open(&needed) {
                        findings.wrong.push(format!("{address}: {error}"));
                    }
                }
                Record::Alias(_) | Record::Clock(_) | Record::Copy => {}
            }
        }
        Ok(())
    }

    /// A row's address and record, or what is wrong with it.
    fn read(
        &self,
        row: &Row<'_>,
        latest: u64,
    ) -> rusqlite::Result<Result<(String, Record), String>> {
        let (address, revision, value): (String, u64, Vec<u8>) = row.try_into()?;
        Ok(match self.versioned(&address, revision, &value) {
            Ok(_) if revision > latest => {
                Err(format!("{address}: revision {revision} is yet to come"))
            }
            Ok(Versioned { record, .. }) => Ok((address, record)),
            Err(_) => Err(format!(
                "{address}: not what was written there, or under another root key"
            )),
        })
    }

    /// What should stand beside `record` and does not. Every record verifies by itself; this finds
    /// those that were erased.
    fn lacks(&self, record: &Record) -> Option<&'static str> {
        match record {
            Record::Key(key) => {
                let alias = Address::Alias(key.project.clone(), key.alias.clone());
                let named = |found: &Record| matches!(found, Record::Alias(alias) if alias.key_id == key.key_id);
                let due = Address::Deletion(key.project.clone(), key.key_id);
                let queued = |found: &Record| matches!(found, Record::Deletion(deletion) if Some(deletion.due) == key.deletion);
                if !self.has(&alias, named) {
                    Some("its alias is not its own")
                } else if key.deletion.is_some() && !self.has(&due, queued) {
                    Some("it is to be destroyed and not in the queue")
                } else {
                    None
                }
            }
            Record::Alias(alias) => {
                let key = Address::Key(alias.project.clone(), alias.key_id);
                let named =
                    |found: &Record| matches!(found, Record::Key(key) if key.alias == alias.alias);
                (!self.has(&key, named)).then_some("its key is gone or has another alias")
            }
            Record::Deletion(deletion) => {
                let key = Address::Key(deletion.project.clone(), deletion.key_id);
                let due = |found: &Record| matches!(found, Record::Key(key) if key.deletion == Some(deletion.due));
                (!self.has(&key, due)).then_some("its key is gone or has another date")
            }
            Record::Copy => Some("a copy into this store is not complete"),
            Record::Clock(_) | Record::RootKeys(_) => None,
        }
    }

    fn has(&self, address: &Address, fits: impl Fn(&Record) -> bool) -> bool {
        let found = self.get(&address.to_string());
        found.is_ok_and(|found| found.is_some_and(|found| fits(&found.record)))
    }
}
