//! UpdateKeyAlias and UpdateKeyDescription.

use crate::domain::key::{KeyAlias, KeyDescription, KeyId, KeyState};
use crate::error::{Error, Kind};
use crate::service::{Call, Kms, Tries};
use crate::store::{Address, AliasRecord, Change, KeyRecord, Record};

impl Kms {
    /// Renames a key.
    pub async fn update_alias(
        &self,
        call: &Call<'_>,
        key_id: KeyId,
        alias: &KeyAlias,
    ) -> Result<(), Error> {
        let access = call.access(key_id)?;
        // A caller who may change keys of some names moves none to another.
        access.under(alias)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            describable(&key)?;
            if key.alias == *alias {
                return Ok(());
            }
            let taken = Address::Alias(key.project.clone(), alias.clone());
            if self.store.get(&taken).await?.is_some() {
                return Err(Kind::DuplicateAlias.into());
            }
            let old = Address::Alias(key.project.clone(), key.alias.clone());
            let Some(owned) = self.store.get(&old).await? else {
                // The key was read before another writer renamed or destroyed it.
                tries.again()?;
                continue;
            };
            let new = AliasRecord {
                project: key.project.clone(),
                alias: alias.clone(),
                key_id,
            };
            key.alias = alias.clone();
            let others = vec![
                Change::erase(old, owned.revision),
                Change::create(Record::Alias(new)),
            ];
            if self.replace(key, revision, others, &mut tries).await? {
                return Ok(());
            }
        }
    }

    /// Describes a key anew.
    pub async fn update_description(
        &self,
        call: &Call<'_>,
        key_id: KeyId,
        description: &KeyDescription,
    ) -> Result<(), Error> {
        let access = call.access(key_id)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            describable(&key)?;
            key.description = description.clone();
            if self.replace(key, revision, Vec::new(), &mut tries).await? {
                return Ok(());
            }
        }
    }
}

/// Refuses a key that waits for its destruction.
fn describable(key: &KeyRecord) -> Result<(), Error> {
    if key.state == KeyState::PendingDeletion {
        return Err(Kind::KeyPendingDeletion.into());
    }
    Ok(())
}
