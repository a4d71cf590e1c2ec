//! `kmsgate store`: looking after stores.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cli::client::{Client, Connection, told};
use crate::cli::operate::read;
use crate::cli::{Failure, Steps, say};
use crate::config::{Config, InvalidStore, Store};
use crate::grpc::pb;
use crate::server;

/// Says whether every record of the store is as it was written.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let found = server::check_records(&read(path)?)?;
    let (keys, versions, deletions) = (found.keys, found.versions, found.deletions);
    if found.wrong.is_empty() {
        return say(format!(
            "the store is good: keys {keys}, versions of them {versions}, to be destroyed {deletions}"
        ));
    }
    let mut told = format!("the store is damaged: {} places", found.wrong.len());
    for wrong in found.wrong.iter().take(TOLD) {
        told += "\n  ";
        told += wrong;
    }
    if found.wrong.len() > TOLD {
        told += "\n  …";
    }
    Err(format!("{told}\n{keys} keys verify").into())
}

/// How many damaged places are told one by one.
const TOLD: usize = 100;

/// A store as a command names it.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// That of the configuration.
    Configured,
    /// Another.
    Named(Box<Store>),
}

impl FromStr for Place {
    type Err = InvalidStore;

    fn from_str(text: &str) -> Result<Self, InvalidStore> {
        match text {
            "config" => Ok(Self::Configured),
            _ => Ok(Self::Named(Box::new(text.parse()?))),
        }
    }
}

impl Place {
    const fn store<'a>(&'a self, config: &'a Config) -> &'a Store {
        match self {
            Self::Configured => &config.store,
            Self::Named(store) => store,
        }
    }
}

/// Copies one store into another, and tells how far it is.
pub(super) async fn copy(config: &Path, from: &Place, to: &Place) -> Result<(), Failure> {
    let config = read(config)?;
    let (from, to) = (from.store(&config), to.store(&config));
    let steps = Cell::new(Steps::default());
    let comparing = Cell::new(Steps::default());
    let tell = |progress: server::Copied| {
        let (steps, done, what) = match progress.verified {
            0 => (&steps, progress.copied, "copied"),
            verified => (&comparing, verified, "compared"),
        };
        let mut told = steps.take();
        told.tell(what, done, progress.total);
        steps.set(told);
    };
    let copied = server::copy_store(&config, from, to, tell).await?;
    say(format!(
        "every record was copied and compared: records {}",
        copied.verified
    ))
}

/// Writes a copy of a running server's store to a new file, complete or not at all.
pub(super) async fn back_up(connection: &Connection, path: &Path) -> Result<(), Failure> {
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    if path.try_exists().map_err(at)? {
        return Err(format!("{} exists already, and is never replaced", path.display()).into());
    }
    let client = connection.open().await?;
    let mut new = path.as_os_str().to_owned();
    new.push("-new");
    let new = PathBuf::from(new);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => format!(
                "{} exists: another backup is being written, or was cut short; then remove it",
                new.display()
            ),
            _ => at(error),
        })?;
    let written = receive(client, &mut file).await;
    let written = written.and_then(|()| Ok(keep(&file, &new, path).map_err(at)?));
    if written.is_err() {
        // Half a store is of no use.
        let _ = fs::remove_file(&new);
    }
    written?;
    say(format!("{} is a copy of the store", path.display()))
}

async fn receive(client: Client, file: &mut File) -> Result<(), Failure> {
    let request = client.ask(pb::BackUpStoreRequest {});
    let mut operator = client.operator;
    let answer = operator.back_up_store(request).await.map_err(told)?;
    let mut messages = answer.into_inner();
    let mut steps = Steps::default();
    let (mut received, mut size) = (0, 0);
    while let Some(part) = messages.message().await.map_err(told)? {
        file.write_all(&part.data)?;
        received += part.data.len() as u64;
        size = part.size;
        steps.tell("bytes", received, size);
    }
    if received != size || size == 0 {
        return Err(format!("the server sent {received} bytes of {size}").into());
    }
    Ok(())
}

/// Gives a complete file its name, so that both survive a crash.
fn keep(file: &File, new: &Path, path: &Path) -> std::io::Result<()> {
    file.sync_all()?;
    fs::rename(new, path)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}
