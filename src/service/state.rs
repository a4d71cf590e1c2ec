//! EnableKey, DisableKey, ScheduleKeyDeletion and CancelKeyDeletion: the moves of a key's state.

use crate::domain::key::{KeyId, KeyState, PendingDays};
use crate::error::Error;
use crate::service::{Call, Kms, Tries};
use crate::store::{Address, Change, DeletionRecord, Record};

impl Kms {
    /// Lets a disabled key work again.
    pub async fn enable(&self, call: &Call<'_>, key_id: KeyId) -> Result<KeyState, Error> {
        let access = call.access(key_id)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            key.state = key.state.enable()?;
            let state = key.state;
            if self.replace(key, revision, Vec::new(), &mut tries).await? {
                return Ok(state);
            }
        }
    }

    /// Stops a key.
    pub async fn disable(&self, call: &Call<'_>, key_id: KeyId) -> Result<KeyState, Error> {
        let access = call.access(key_id)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            key.state = key.state.disable()?;
            let state = key.state;
            if self.replace(key, revision, Vec::new(), &mut tries).await? {
                return Ok(state);
            }
        }
    }

    /// Stops a key and puts it into the deletion queue.
    pub async fn schedule_deletion(
        &self,
        call: &Call<'_>,
        key_id: KeyId,
        wait: PendingDays,
    ) -> Result<KeyState, Error> {
        let access = call.access(key_id)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            key.state = key.state.schedule_deletion()?;
            let due = self.due(wait).await?;
            key.deletion = Some(due);
            let queued = Change::create(Record::Deletion(DeletionRecord {
                project: key.project.clone(),
                key_id,
                due,
            }));
            let state = key.state;
            if self
                .replace(key, revision, vec![queued], &mut tries)
                .await?
            {
                return Ok(state);
            }
        }
    }

    /// Takes a key out of the deletion queue; it is then disabled.
    pub async fn cancel_deletion(&self, call: &Call<'_>, key_id: KeyId) -> Result<KeyState, Error> {
        let access = call.access(key_id)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            key.state = key.state.cancel_deletion()?;
            key.deletion = None;
            let state = key.state;
            let place = Address::Deletion(key.project.clone(), key_id);
            let Some(queued) = self.store.get(&place).await? else {
                // The key was read before another writer cancelled or destroyed it.
                tries.again()?;
                continue;
            };
            let dequeue = Change::erase(place, queued.revision);
            if self
                .replace(key, revision, vec![dequeue], &mut tries)
                .await?
            {
                return Ok(state);
            }
        }
    }
}
