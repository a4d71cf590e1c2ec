//! DescribeKey, and what the other lifecycle calls share: reading a key from the store.

use crate::domain::key::{KeyAlias, KeyId, ProjectId};
use crate::error::{Error, Kind};
use crate::service::{Access, Call, Kms};
use crate::store::{Address, KeyRecord, Record, Revision};

impl Kms {
    /// Tells what a key is.
    pub async fn describe(&self, call: &Call<'_>, key_id: KeyId) -> Result<KeyRecord, Error> {
        let access = call.access(key_id)?;
        self.read_to_tell(&access).await
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
    pub(super) async fn read(&self, access: &Access<'_>) -> Result<(KeyRecord, Revision), Error> {
        let address = Address::Key(access.call.caller_project().clone(), access.key_id);
        let Some(found) = self.store.get(&address).await? else {
            access.to(None)?;
            // A store that was emptied is not served, so nobody is told that their key is not there.
            self.fresh()?;
            return Err(Kind::KeyNotFound.into());
        };
        let Record::Key(key) = found.record else {
            return Err(Kind::Internal.into());
        };
        access.to(Some(&key))?;
        Ok((key, found.revision))
    }
}
