//! RotateRootKey: puts a whole store under the first root key, while it is served.
//!
//! Every record is authenticated anew, and every key version sealed anew, where it is under another
//! root key; what is under the first already is left alone, so a rotation that was cut short goes on
//! where it was. Each record is replaced at the revision that was read, so a change that a caller makes
//! meanwhile is never undone. Keys stay the same. Opened ones stay opened, but in a store that tells of changes, such
//! as etcd, each is read and opened anew when it is next used. When nothing is left, the
//! [root keys of the store](RootKeys) say so, and the others can be taken out of the configuration.

use std::sync::Arc;

use crate::crypto::pool::briefly;
use crate::crypto::{ProviderError, Providers, SealedKey, VersionName};
use crate::error::{Error, Kind};
use crate::service::{Call, Kms, Tries};
use crate::store::root_keys::RootKeysError;
use crate::store::{Address, CHUNK, Change, MAX_SEALED, Prefix, Record, StoreError, Versioned};

/// How far a rotation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records that are under the first root key now.
    pub done: u64,
    /// Records in all.
    pub total: u64,
    /// Those of the done ones that this rotation had to change.
    pub changed: u64,
}

impl Kms {
    /// Puts everything under the first root key, and tells of it as it goes.
    pub async fn rotate_root_key(
        &self,
        call: &Call<'_>,
        tell: impl Fn(Progress),
    ) -> Result<Progress, Error> {
        call.allowed()?;
        let store = &*self.store;
        let rotation = self.root_keys.begin_rotation(store).await?;
        let mut progress = Progress {
            total: self.count().await?,
            ..Progress::default()
        };
        tell(progress);
        let (mut after, mut failed) = (None, 0);
        loop {
            let chunk = store
                .list(&Prefix::Everything, after.as_ref(), CHUNK)
                .await?;
            let Some(last) = chunk.last() else {
                break;
            };
            after = Some(last.record.address());
            let read = chunk.len() as u64;
            let (changed, bad) = self.renew(chunk).await?;
            progress.changed += changed;
            progress.done += read - bad;
            failed += bad;
            // Keys may have been made since they were counted.
            progress.total = progress.total.max(progress.done + failed);
            tell(progress);
        }
        if failed > 0 {
            return Err(Error::from(Kind::Internal).detail(format!(
                "{failed} keys cannot be sealed again, and the server's log names them. The old root \
                 keys are still needed."
            )));
        }
        self.root_keys.end_rotation(store, rotation).await?;
        // Keys may have been destroyed since they were counted.
        progress.total = progress.done;
        tracing::info!(
            root_key = %self.root_keys.sealing(),
            records = progress.done,
            changed = progress.changed,
            "every record is under one root key"
        );
        Ok(progress)
    }

    async fn count(&self) -> Result<u64, Error> {
        let mut total = 0;
        self.each(&Prefix::Everything, |_| {
            total += 1;
            Ok(())
        })
        .await?;
        Ok(total)
    }

    /// Puts records under the first root key. Says how many had to be changed, and how many cannot
    /// be.
    async fn renew(&self, found: Vec<Versioned>) -> Result<(u64, u64), Error> {
        let providers = Arc::clone(&self.providers);
        let renew = move || -> Vec<_> {
            let renewed = found.into_iter().map(|found| {
                let address = found.record.address();
                (address, renewed(&providers, found))
            });
            renewed.collect()
        };
        let (mut changed, mut bad) = (0, 0);
        let mut batch = Vec::new();
        let mut size = 0;
        for (address, renewed) in briefly(renew).await? {
            match renewed {
                Ok(None) => {}
                Ok(Some(change)) => {
                    let more = change.record().map_or(0, Record::sealed_bytes);
                    if size + more > MAX_SEALED && !batch.is_empty() {
                        self.put_renewed(std::mem::take(&mut batch)).await?;
                        size = 0;
                    }
                    changed += 1;
                    size += more;
                    batch.push(change);
                }
                // A token that is away comes back; a key that is damaged does not.
                Err(error @ ProviderError::Unavailable(_)) => return Err(error.into()),
                Err(error) => {
                    bad += 1;
                    tracing::error!(%address, %error, "cannot seal a key again");
                }
            }
        }
        self.put_renewed(batch).await?;
        Ok((changed, bad))
    }

    /// Puts renewed records in place of those that were read.
    async fn put_renewed(&self, batch: Vec<Change>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let addresses: Vec<Address> = batch.iter().map(|it| it.address.clone()).collect();
        match self.root_keys.put(&*self.store, batch).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
        // Somebody changed one of them: each by itself, as it is now.
        for address in addresses {
            self.renew_again(&address).await?;
        }
        Ok(())
    }

    async fn renew_again(&self, address: &Address) -> Result<(), Error> {
        let mut tries = Tries::default();
        loop {
            // It may have been destroyed.
            let Some(found) = self.store.get(address).await? else {
                return Ok(());
            };
            let providers = Arc::clone(&self.providers);
            let renew = move || renewed(&providers, found);
            let Some(change) = briefly(renew).await?? else {
                return Ok(());
            };
            match self.root_keys.put(&*self.store, vec![change]).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict) => tries.again()?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The change that puts a record under the first root key; none if it is.
fn renewed(providers: &Providers, found: Versioned) -> Result<Option<Change>, ProviderError> {
    let mut needed = !found.current;
    let mut record = found.record;
    match &mut record {
        // It is written anew at the end.
        Record::RootKeys(_) => return Ok(None),
        Record::Key(key) => {
            for version in &mut key.versions {
                let name = VersionName {
                    project: key.project.clone(),
                    key_id: key.key_id,
                    version: version.version,
                    spec: key.spec,
                };
                let sealed = SealedKey(version.sealed.clone());
                let provider = providers.opener(key.spec, &sealed)?;
                if let Some(again) = provider.reseal(&name, &sealed)? {
                    version.sealed = again.0;
                    needed = true;
                }
            }
        }
        Record::Alias(_) | Record::Deletion(_) | Record::Clock(_) | Record::Copy => {}
    }
    Ok(needed.then(|| Change::replace(record, found.revision)))
}

impl From<RootKeysError> for Error {
    fn from(error: RootKeysError) -> Self {
        match error {
            RootKeysError::Store(error) => error.into(),
            RootKeysError::Interfered => Self::from(Kind::Unavailable)
                .detail(
                    "Another server seals under another root key: give all servers the same first \
                     root key, and rotate again.",
                )
                .caused_by(RootKeysError::Interfered),
            error @ (RootKeysError::Missing(_)
            | RootKeysError::Emptied
            | RootKeysError::UnfinishedCopy) => Self::from(Kind::Unavailable).caused_by(error),
        }
    }
}
