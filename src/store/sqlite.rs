//! A store in one SQLite file, for one server.
//!
//! All work is done by one thread, which takes its calls from a bounded queue. Whatever puts wait
//! at that moment share one transaction and one sync of the disk, and each is answered only after
//! the commit has returned. Reads are answered by the same thread between transactions, so they see
//! what was acknowledged and nothing else.
//!
//! The file is held by a lock for as long as the store is open: `PATH-lock` against a second
//! server, and SQLite's own exclusive lock against other programs. A new store is made as
//! `PATH-new` and renamed when it is complete, so a file at `PATH` is either a whole store or not
//! one of ours.
//!
//! # Erasing
//!
//! An erased record's bytes are gone from the file and its log before the erasing put is answered.
//! Three things see to it:
//!
//! * `secure_delete` overwrites what SQLite frees, and nothing is ever written to a temporary file.
//! * The log is written back into the file and cut to nothing.
//! * SQLite leaves stale copies of the rows that it moves from one b-tree page to another. But of a
//!   row longer than a page it keeps only the beginning there ([file format], section 1.6), and the
//!   rest on overflow pages, which never move. So a filler as long as a page stands before each
//!   value.
//!
//! Addresses are not secret and may linger. What the file system keeps of blocks that the log once
//! had is beyond a store's reach.
//!
//! [file format]: https://www.sqlite.org/fileformat2.html

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};
use tokio::sync::{mpsc, oneshot};

use crate::store::codec::{Codec, Encoded, Write};
use crate::store::{
    Address, Change, Effect, KeyStore, Mark, Marks, Prefix, Record, Revision, StoreError, Versioned,
};

mod backup;
mod check;

pub use crate::store::sqlite::check::Findings;

/// Keeps records in a SQLite file.
pub struct Sqlite {
    path: PathBuf,
    /// There until the store is dropped.
    calls: Option<mpsc::Sender<Call>>,
    thread: Option<JoinHandle<()>>,
}

impl Sqlite {
    /// Opens the store at `path`, which is made if there is no file. Its directory must exist.
    ///
    /// Fails with [`StoreError::Unavailable`], touching nothing, if another process has the store
    /// open, if the file is not a store, or if it was written by a newer version.
    pub fn open(path: &Path, codec: Codec) -> Result<Self, StoreError> {
        let refuse = |why| {
            let path = path.to_owned();
            StoreError::Unavailable(Box::new(OpenError { path, why }))
        };
        let path = resolve(path).map_err(|error| refuse(error.into()))?;
        let database = Database::open(&path, codec).map_err(refuse)?;
        let (calls, receiver) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || database.serve(receiver))
            .map_err(|error| refuse(error.into()))?;
        Ok(Self {
            path,
            calls: Some(calls),
            thread: Some(thread),
        })
    }

    /// Has the thread answer a call, waiting while the queue is full.
    async fn call<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable("the store's thread has ended".into());
        let (reply, answer) = oneshot::channel();
        let calls = self.calls.as_ref().ok_or_else(gone)?;
        calls.send(call(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl KeyStore for Sqlite {
    async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError> {
        let address = address.to_string();
        self.call(|reply| Call::Get { address, reply }).await
    }

    async fn put(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        self.call(|reply| Call::Put(Put { changes, reply })).await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Address>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let (start, end) = prefix.bounds(after);
        self.call(|reply| Call::List {
            start,
            end,
            limit,
            reply,
        })
        .await
    }

    async fn mark(&self, prefix: &Prefix) -> Result<Option<Mark>, StoreError> {
        let prefix = prefix.clone();
        self.call(|reply| Call::Mark { prefix, reply })
            .await
            .map(Some)
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sqlite").field(&self.path).finish()
    }
}

impl Drop for Sqlite {
    /// Waits until what is in the queue is done and the file is closed.
    fn drop(&mut self) {
        drop(self.calls.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has failed its calls already.
            let _ = thread.join();
        }
    }
}

/// Calls that wait for the thread. When there are more, callers wait to get in.
const QUEUE: usize = 1024;

/// Calls that the thread takes at a time, and so the most puts in a transaction.
const BATCH: usize = 256;

/// Where the thread leaves an answer. The caller may have gone.
type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Call {
    Get {
        address: String,
        reply: Reply<Option<Versioned>>,
    },
    List {
        start: String,
        end: String,
        limit: usize,
        reply: Reply<Vec<Versioned>>,
    },
    Put(Put),
    Mark {
        prefix: Prefix,
        reply: Reply<Mark>,
    },
    BackUp {
        reply: Reply<File>,
    },
}

struct Put {
    changes: Vec<Change>,
    reply: Reply<Revision>,
}

/// What one put did.
struct Done {
    revision: u64,
    /// Whether bytes must now be gone from the file.
    erases: bool,
}

/// The open file. Lives on the thread.
struct Database {
    path: PathBuf,
    connection: Connection,
    codec: Codec,
    /// Whether the log may still hold erased bytes.
    residue: Cell<bool>,
    /// Those of the projects whose keys were changed since the file was opened.
    marks: RefCell<Marks>,
    /// Held until the connection, which stands before it, is closed.
    _lock: Lock,
}

impl Database {
    fn open(path: &Path, codec: Codec) -> Result<Self, Refusal> {
        let lock = Lock::take(path)?;
        backup::remove_unfinished(path)?;
        match File::open(path) {
            Ok(file) => check_header(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(error.into()),
        }
        let connection = connect(path).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Refusal::InUse,
            _ => error.into(),
        })?;
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found != SCHEMA_VERSION {
            return Err(Refusal::Schema(found));
        }
        configure(&connection)?;
        let database = Self {
            path: path.to_owned(),
            connection,
            codec,
            residue: Cell::new(false),
            marks: RefCell::default(),
            _lock: lock,
        };
        // A crash may have come between a commit and the end of its erasing.
        database.empty_log()?;
        // The log now exists. Without this, a crash of the machine could lose its name, and every
        // commit with it.
        sync_directory(path)?;
        Ok(database)
    }

    /// Answers calls until there is nobody left to make any.
    fn serve(self, mut calls: mpsc::Receiver<Call>) {
        let mut batch = Vec::with_capacity(BATCH);
        while calls.blocking_recv_many(&mut batch, BATCH) > 0 {
            if let Some(reply) = self.answer(&mut batch) {
                self.back_up(reply, &mut calls, &mut batch);
            }
        }
    }

    /// Answers the calls that can be answered at once. Gives a caller who wants a copy of the whole,
    /// if there is one.
    fn answer(&self, batch: &mut Vec<Call>) -> Option<Reply<File>> {
        let mut puts = Vec::new();
        let mut backup = None;
        for call in batch.drain(..) {
            // An answer that nobody waits for is dropped.
            match call {
                Call::Get { address, reply } => drop(reply.send(self.get(&address))),
                Call::List {
                    start,
                    end,
                    limit,
                    reply,
                } => drop(reply.send(self.list(&start, &end, limit))),
                Call::Put(put) => puts.push(put),
                Call::Mark { prefix, reply } => {
                    drop(reply.send(Ok(self.marks.borrow().get(&prefix))));
                }
                Call::BackUp { reply } => {
                    if let Some(earlier) = backup.replace(reply) {
                        self.refuse_backup(earlier);
                    }
                }
            }
        }
        if !puts.is_empty() {
            self.put(puts);
        }
        backup
    }

    fn get(&self, address: &str) -> Result<Option<Versioned>, StoreError> {
        let stored = stored(&self.connection, address).map_err(|error| failure(error, address))?;
        stored
            .map(|(revision, value)| self.versioned(address, revision, &value))
            .transpose()
    }

    fn list(&self, start: &str, end: &str, limit: usize) -> Result<Vec<Versioned>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows: rusqlite::Result<Vec<(String, u64, Vec<u8>)>> = self
            .connection
            .prepare_cached(
                "SELECT address, revision, value FROM records
                 WHERE address > ?1 AND address < ?2 ORDER BY address LIMIT ?3",
            )
            .and_then(|mut select| {
                select
                    .query_map(params![start, end, limit], |row| row.try_into())?
                    .collect()
            });
        let rows = rows.map_err(|error| failure(error, start))?;
        rows.iter()
            .map(|(address, revision, value)| self.versioned(address, *revision, value))
            .collect()
    }

    fn versioned(
        &self,
        address: &str,
        revision: u64,
        value: &[u8],
    ) -> Result<Versioned, StoreError> {
        self.codec.read(address, value, Revision(revision))
    }

    /// Does the puts in one transaction, and answers them when it is durable.
    fn put(&self, puts: Vec<Put>) {
        let outcomes = match self.commit(&puts) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let error = Arc::new(error);
                for Put { changes, reply } in puts {
                    let first = changes.first().map(|change| change.address.to_string());
                    let at = first.unwrap_or_default();
                    drop(reply.send(Err(failure(Arc::clone(&error), &at))));
                }
                return;
            }
        };
        let mut erasing = Vec::new();
        for (Put { reply, .. }, outcome) in puts.into_iter().zip(outcomes) {
            match outcome {
                Ok(done) if done.erases => erasing.push((reply, Revision(done.revision))),
                Ok(done) => drop(reply.send(Ok(Revision(done.revision)))),
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        if erasing.is_empty() && !self.residue.get() {
            return;
        }
        // A disk that is full may refuse this; then the next put tries again.
        let emptied = self.empty_log().map_err(Arc::new);
        self.residue.set(emptied.is_err());
        for (reply, revision) in erasing {
            let answer = emptied.as_ref().map(|()| revision);
            let answer = answer.map_err(|error| StoreError::Unavailable(Box::new(error.clone())));
            drop(reply.send(answer));
        }
    }

    /// Commits those of the puts that are in order. If this fails, none has happened.
    fn commit(&self, puts: &[Put]) -> rusqlite::Result<Vec<Result<Done, StoreError>>> {
        let codec = &self.codec;
        let behavior = TransactionBehavior::Immediate;
        // Transactions are made here alone, and one ends before the next begins.
        let transaction = Transaction::new_unchecked(&self.connection, behavior)?;
        let mut revision = transaction
            .prepare_cached("SELECT value FROM meta WHERE name = 'revision'")?
            .query_row([], |row| row.get::<_, u64>(0))?;
        let mut outcomes = Vec::with_capacity(puts.len());
        for put in puts {
            let outcome = match codec.encode_changes(&put.changes) {
                Ok(changes) => apply(&transaction, codec, &changes, revision.saturating_add(1))?,
                Err(error) => Err(error),
            };
            if let Ok(done) = &outcome {
                revision = done.revision;
                let mut marks = self.marks.borrow_mut();
                let written = put
                    .changes
                    .iter()
                    .filter(|change| change.effect != Effect::Keep);
                written.for_each(|change| marks.changed(&change.address.to_string()));
            }
            outcomes.push(outcome);
        }
        transaction
            .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")?
            .execute([revision])?;
        transaction.commit()?;
        Ok(outcomes)
    }

    /// Writes the log back into the file and cuts it to nothing.
    fn empty_log(&self) -> rusqlite::Result<()> {
        let mut checkpoint = self
            .connection
            .prepare_cached("PRAGMA wal_checkpoint(TRUNCATE)")?;
        let blocked: bool = checkpoint.query_row([], |row| row.get(0))?;
        if blocked {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(busy, None));
        }
        Ok(())
    }
}

/// Makes one put's changes. Checks all of them before it makes the first, so a conflict leaves
/// nothing to undo.
fn apply(
    connection: &Connection,
    codec: &Codec,
    changes: &[Encoded<'_>],
    revision: u64,
) -> rusqlite::Result<Result<Done, StoreError>> {
    let mut erases = false;
    for change in changes {
        let stored = stored(connection, &change.address)?;
        if stored.as_ref().map(|(revision, _)| *revision) != change.expected() {
            return Ok(Err(StoreError::Conflict));
        }
        erases |= stored.is_some_and(|(_, value)| loses_sealed_bytes(codec, change, &value));
    }
    for change in changes {
        match &change.write {
            Write::Put(value) => connection
                .prepare_cached(
                    "INSERT INTO records (address, revision, filler, value)
                     VALUES (?1, ?2, zeroblob(1024), ?3)
                     ON CONFLICT (address)
                     DO UPDATE SET revision = excluded.revision, value = excluded.value",
                )?
                .execute(params![change.address, revision, value])?,
            Write::Erase => connection
                .prepare_cached("DELETE FROM records WHERE address = ?1")?
                .execute([&change.address])?,
            Write::Nothing => 0,
        };
    }
    Ok(Ok(Done { revision, erases }))
}

fn stored(connection: &Connection, address: &str) -> rusqlite::Result<Option<(u64, Vec<u8>)>> {
    connection
        .prepare_cached("SELECT revision, value FROM records WHERE address = ?1")?
        .query_row([address], |row| row.try_into())
        .optional()
}

/// Whether there were sealed bytes, or anything unreadable, that will not be there after `change`.
/// Erasing loses all.
fn loses_sealed_bytes(codec: &Codec, change: &Encoded<'_>, old: &[u8]) -> bool {
    let new = match &change.change.effect {
        Effect::Put(record) => record,
        Effect::Erase => return true,
        Effect::Keep => return false,
    };
    match (codec.decode_at(&change.address, old), new) {
        (Ok(Record::Key(old)), Record::Key(new)) => old.versions.iter().any(|old| {
            let mut kept = new.versions.iter();
            !kept.any(|new| new.sealed == old.sealed)
        }),
        (Ok(_), _) => false,
        (Err(_), _) => true,
    }
}

/// A failure of SQLite as the caller sees it: a file that is damaged, at `address` or anywhere, is
/// not a passing trouble.
fn failure(error: impl Into<Arc<rusqlite::Error>>, address: &str) -> StoreError {
    let error = error.into();
    match &*error {
        rusqlite::Error::SqliteFailure(cause, _)
            if !matches!(
                cause.code,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase
            ) =>
        {
            StoreError::Unavailable(Box::new(error))
        }
        // The others say that a row or a table is not what this file made.
        _ => StoreError::Corrupt(address.to_owned()),
    }
}

/// A file was not opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
struct OpenError {
    path: PathBuf,
    why: Refusal,
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is no such file")]
    Missing,
    #[error("another process has the store open")]
    InUse,
    #[error("the file is not a key store of kmsgate")]
    Foreign,
    #[error("the file has schema {0}, and this version of kmsgate knows only {SCHEMA_VERSION}")]
    Schema(i32),
    #[error("there is no store, but a log of one: {}", .0.display())]
    Orphan(PathBuf),
    #[error("the file system does not support a write-ahead log")]
    NoLog,
    #[error("a copy of it is being made already")]
    BackingUp,
    #[error("nobody waits for the copy any more")]
    Abandoned,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// `kmsg` in ASCII, at byte 68 of the file: it says whose a SQLite file is.
const APPLICATION_ID: i32 = 0x6b6d_7367;

const SCHEMA_VERSION: i32 = 1;

/// The schema of a new file. The page is small because every record takes a filler of that size.
const SCHEMA: &str = "
    PRAGMA page_size = 1024;
    PRAGMA journal_mode = MEMORY;
    BEGIN;
    CREATE TABLE meta (
        name TEXT PRIMARY KEY NOT NULL,
        value INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('revision', 0);
    CREATE TABLE records (
        address TEXT PRIMARY KEY NOT NULL,
        revision INTEGER NOT NULL,
        filler BLOB NOT NULL,
        value BLOB NOT NULL
    ) STRICT;
";

/// The path without symbolic links, because SQLite puts its other files beside the real one.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or(error)?;
            Ok(directory(path).canonicalize()?.join(name))
        }
        resolved => resolved,
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != "" => parent,
        _ => Path::new("."),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Keeps a second server out for as long as it exists.
///
/// It is a file of its own, because closing any descriptor of the database would drop the locks
/// that SQLite has on it in this process (fcntl(2)).
struct Lock(File);

impl Lock {
    fn take(path: &Path) -> Result<Self, Refusal> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(beside(path, "-lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Refusal::InUse),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that was just forked still has it. If this
        // fails, it ends with that.
        let _ = self.0.unlock();
    }
}

/// Refuses a file that is not ours before SQLite opens it and perhaps writes to it.
fn check_header(mut file: File) -> Result<(), Refusal> {
    let mut header = [0; 72];
    let read = file.read_exact(&mut header);
    let ours =
        header.starts_with(b"SQLite format 3\0") && header.ends_with(&APPLICATION_ID.to_be_bytes());
    match read {
        Ok(()) if ours => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
        _ => Err(Refusal::Foreign),
    }
}

/// Makes an empty store, complete or not at all.
fn create(path: &Path) -> Result<(), Refusal> {
    // SQLite would play such a file back into the new one.
    for suffix in ["-wal", "-journal"] {
        let log = beside(path, suffix);
        if log.try_exists()? {
            return Err(Refusal::Orphan(log));
        }
    }
    let new = beside(path, "-new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    let connection = Connection::open_with_flags(&new, FLAGS)?;
    connection.execute_batch(SCHEMA)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    connection.execute_batch("COMMIT")?;
    connection.close().map_err(|(_, error)| error)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path)?;
    Ok(())
}

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Opens the file and takes SQLite's lock of it, which is held until the connection is closed.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, FLAGS)?;
    connection.busy_timeout(Duration::ZERO)?;
    // Before the first access to the file, so that the log needs no shared memory.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
    Ok(connection)
}

fn configure(connection: &Connection) -> Result<(), Refusal> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Refusal::NoLog);
    }
    // `fullfsync` matters where fsync does not reach the disk (macOS). Temporary storage is in
    // memory because SQLite keeps the old content of pages there.
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         PRAGMA fullfsync = ON;
         PRAGMA foreign_keys = ON;
         PRAGMA secure_delete = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cell_size_check = ON;
         PRAGMA trusted_schema = OFF;",
    )?;
    // Whoever can write the file could hide code in its schema.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    Ok(())
}
