//! The configured store.

use std::sync::Arc;

use crate::auth::file::Refresh;
use crate::config::Store;
use crate::server::etcd;
use crate::server::{BootClock, StartError, shown};
use crate::store::codec::Codec;
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
