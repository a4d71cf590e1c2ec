//! Stores: the configured one, and those that one is copied from and into.

use std::sync::Arc;

use crate::auth::file::Refresh;
use crate::config::Config;
use crate::config::Store;
use crate::server::etcd;
use crate::server::root;
use crate::server::token::Token;
use crate::server::{BootClock, StartError, shown};
use crate::store::codec::Codec;
use crate::store::copy;
use crate::store::memory::Memory;
use crate::store::sqlite::Sqlite;
use crate::store::{BackUp, KeyStore};

/// A store that was opened.
pub(super) struct Opened {
    pub(super) store: Arc<dyn KeyStore>,
    /// The same one, if it can copy itself.
    pub(super) backup: Option<Arc<dyn BackUp>>,
    /// What says how it is reached, if that is in files.
    pub(super) files: Option<Arc<dyn Refresh>>,
}

/// Opens a store of any kind.
pub(super) fn open(store: &Store, codec: Codec) -> Result<Opened, StartError> {
    Ok(match store {
        Store::Memory {} => Opened {
            store: Arc::new(Memory::new(codec)),
            backup: None,
            files: None,
        },
        Store::Sqlite { path } => {
            let opened = Sqlite::open(path, codec);
            let opened = opened.map_err(|error| StartError::Store(shown(path), error))?;
            let opened = Arc::new(opened);
            Opened {
                store: Arc::<Sqlite>::clone(&opened),
                backup: Some(opened),
                files: None,
            }
        }
        Store::Etcd(etcd) => {
            let (store, files) = etcd::open(etcd, Arc::new(BootClock::start()), codec)?;
            Opened {
                store,
                backup: None,
                files: files.map(|files| files as _),
            }
        }
    })
}

/// Copies one store into another, whose records are then under the root keys of `config`.
pub(super) async fn copy(
    config: &Config,
    from: &Store,
    to: &Store,
    tell: impl Fn(copy::Progress),
) -> Result<copy::Progress, StartError> {
    if let Store::Sqlite { path } = from
        && !path.is_file()
    {
        return Err(StartError::NoSuchStore(shown(path)));
    }
    let token = Token::open(config)?;
    let roots = root::load(config, token.as_ref())?;
    let from = open(from, root::codec(&roots)?)?.store;
    let to = open(to, root::codec(&roots)?)?.store;
    let copied = copy::copy(&*from, &*to, &root::names(&roots), tell).await;
    copied.map_err(StartError::Copy)
}
