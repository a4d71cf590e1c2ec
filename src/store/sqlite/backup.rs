//! A copy of the whole file, made while the store is in use.
//!
//! SQLite copies pages in small steps, and between two of them the thread answers whoever waits. A page
//! that is written after it was copied is copied again, because all writes are this connection's
//! ([backup API]). So the copy is the store as of its last step, and what was erased before that is not
//! in it: it is the same file, page by page.
//!
//! The copy has a name, `PATH-backup`, only while it is made.
//!
//! [backup API]: https://www.sqlite.org/c3ref/backup_finish.html

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tokio::sync::mpsc;

use crate::store::sqlite::{Call, Database, FLAGS, OpenError, Refusal, Reply, Sqlite, beside};
use crate::store::{BackUp, StoreError};

/// Pages of 1 KiB that are copied before somebody else has a turn.
const STEP: i32 = 512;

#[async_trait]
impl BackUp for Sqlite {
    async fn back_up(&self) -> Result<File, StoreError> {
        self.call(|reply| Call::BackUp { reply }).await
    }
}

impl Database {
    /// Copies the file, and answers the calls that come meanwhile.
    pub(super) fn back_up(
        &self,
        reply: Reply<File>,
        calls: &mut mpsc::Receiver<Call>,
        batch: &mut Vec<Call>,
    ) {
        let copied = self.copy(&reply, calls, batch);
        // Whether it was made or not, its name shall not stay.
        let removed = remove_unfinished(&self.path);
        let copied = copied.and_then(|file| Ok(removed.map(|()| file)?));
        drop(reply.send(copied.map_err(|why| self.cannot(why))));
    }

    /// One copy is made at a time.
    pub(super) fn refuse_backup(&self, reply: Reply<File>) {
        drop(reply.send(Err(self.cannot(Refusal::BackingUp))));
    }

    fn cannot(&self, why: Refusal) -> StoreError {
        let path = self.path.clone();
        StoreError::Unavailable(Box::new(OpenError { path, why }))
    }

    fn copy(
        &self,
        reply: &Reply<File>,
        calls: &mut mpsc::Receiver<Call>,
        batch: &mut Vec<Call>,
    ) -> Result<File, Refusal> {
        remove_unfinished(&self.path)?;
        let name = unfinished(&self.path);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&name)?;
        let mut to = Connection::open_with_flags(&name, FLAGS)?;
        // A copy that is not finished is thrown away, so nothing need be written twice or in order.
        to.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = OFF;
             PRAGMA synchronous = OFF;
             PRAGMA temp_store = MEMORY;",
        )?;
        let copy = Backup::new(&self.connection, &mut to)?;
        loop {
            match copy.step(STEP)? {
                StepResult::Done => break,
                StepResult::More => {}
                _ => return Err(Refusal::InUse),
            }
            if reply.is_closed() {
                return Err(Refusal::Abandoned);
            }
            while let Ok(call) = calls.try_recv() {
                batch.push(call);
                if batch.len() == batch.capacity() {
                    break;
                }
            }
            if let Some(second) = self.answer(batch) {
                self.refuse_backup(second);
            }
        }
        drop(copy);
        to.close().map_err(|(_, error)| error)?;
        Ok(file)
    }
}

/// Removes a copy that was not finished, with material in it that may have been erased since.
pub(super) fn remove_unfinished(path: &Path) -> io::Result<()> {
    match fs::remove_file(unfinished(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unfinished(path: &Path) -> PathBuf {
    beside(path, "-backup")
}
