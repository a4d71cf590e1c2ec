//! DescribeKey, and what the other lifecycle calls share: reading a key from the store.

use crate::domain::key::{KeyAlias, KeyId, ProjectId};
use crate::error::{Error, Kind};
use crate::service::{Call, Kms};
use crate::store::{Address, KeyRecord, Record, Revision};

impl Kms {
    /// Tells what a key is.
    pub async fn describe(&self, call: &Call<'_>, key_id: KeyId) -> Result<KeyRecord, Error> {
        call.allowed()?;
        let (key, _) = self.read(call, key_id).await?;
        Ok(key)
    }

    /// The key that has an alias; none if none has. For the server itself: no face asks.
    pub async fn find_alias(
        &self,
        project: &ProjectId,
        alias: &KeyAlias,
    ) -> Result<Option<KeyId>, Error> {
        let address = Address::Alias(project.clone(), alias.clone());
        match self.store.get(&address).await?.map(|found| found.record) {
            None => Ok(None),
            Some(Record::Alias(alias)) => Ok(Some(alias.key_id)),
            Some(_) => Err(Kind::Internal.into()),
        }
    }

    /// The key as the store has it now, and the write that made it so.
    pub(super) async fn read(
        &self,
        call: &Call<'_>,
        key_id: KeyId,
    ) -> Result<(KeyRecord, Revision), Error> {
        let address = Address::Key(call.caller_project().clone(), key_id);
        let found = self.store.get(&address).await?.ok_or(Kind::KeyNotFound)?;
        match found.record {
            Record::Key(key) => Ok((key, found.revision)),
            _ => Err(Kind::Internal.into()),
        }
    }
}
