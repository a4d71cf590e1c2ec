//! Destroying keys that are past their deletion date, unless the clock cannot be believed.
//!
//! A clock that jumps forward would make every scheduled deletion due at once, and one that was set
//! back would make deletions that are scheduled meanwhile due as soon as it is put right. So the
//! latest time that was trusted is a record of the store. A deletion is never due before its wait
//! has passed from that time on, and a clock that is more than a day away from it destroys nothing
//! until an operator has [confirmed](Kms::confirm_clock) it, or it has come back. A server that was
//! off for more than a day, with keys in the queue, is in the same position, and asks too.

use crate::audit::{Event, Outcome};
use crate::domain::caller::Action;
use crate::domain::key::PendingDays;
use crate::domain::time::Timestamp;
use crate::error::{Error, Kind};
use crate::service::{Call, Kms, Tries};
use crate::store::{
    Address, Change, ClockRecord, DeletionRecord, Prefix, Record, Revision, StoreError,
};

/// How far the clock may move between two sweeps without being doubted: a day.
const TRUSTED_STEP: i64 = 86_400_000;

/// How far the clock moves before the trusted time is written anew: ten minutes, so that sweeps
/// write seldom.
const NOTED_STEP: i64 = 600_000;

/// What a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// It destroyed this many keys.
    Destroyed(usize),
    /// It destroyed nothing, because the clock is this many milliseconds after the latest time that
    /// was trusted, or before it if negative.
    Held(i64),
}

impl Kms {
    /// Destroys the keys that are past their deletion date.
    pub async fn sweep(&self) -> Result<Sweep, Error> {
        let now = self.clock.now();
        let queue = self.queue().await?;
        let step = match self.trusted_time().await? {
            Some((seen, _)) => now.millis_since(seen),
            None => NOTED_STEP,
        };
        // Forward, an empty queue has nothing to lose: what is scheduled later waits from the later
        // time on. Backward, the later time must not be forgotten.
        if step < -TRUSTED_STEP || step > TRUSTED_STEP && !queue.is_empty() {
            return Ok(Sweep::Held(step));
        }
        if step >= NOTED_STEP {
            self.trust(now).await?;
        }
        let mut destroyed = 0;
        for (deletion, revision) in queue {
            if deletion.due > now {
                continue;
            }
            match self.destroy(&deletion, revision, now).await {
                Ok(done) => destroyed += usize::from(done),
                // One key that cannot be destroyed must not keep the others.
                Err(error) => {
                    let cause = error.cause();
                    let cause = cause.as_ref().map(tracing::field::display);
                    tracing::error!(key_id = %deletion.key_id, cause, "cannot destroy a key");
                }
            }
        }
        Ok(Sweep::Destroyed(destroyed))
    }

    /// When a deletion is due that is scheduled now: after its wait, counted from the latest time
    /// that was trusted if the clock is behind it.
    pub(super) async fn due(&self, wait: PendingDays) -> Result<Timestamp, Error> {
        let seen = self.trusted_time().await?.map(|(seen, _)| seen);
        let now = self.clock.now();
        Ok(seen
            .map_or(now, |seen| seen.max(now))
            .plus_millis(wait.as_millis()))
    }

    /// Trusts the clock as it is now.
    pub async fn confirm_clock(&self, call: &Call<'_>) -> Result<Timestamp, Error> {
        call.allowed()?;
        let now = self.clock.now();
        self.trust(now).await?;
        Ok(now)
    }

    /// The whole deletion queue.
    async fn queue(&self) -> Result<Vec<(DeletionRecord, Revision)>, Error> {
        let mut queue = Vec::new();
        self.each(&Prefix::Deletions, |found| {
            let Record::Deletion(deletion) = found.record else {
                return Err(Kind::Internal.into());
            };
            queue.push((deletion, found.revision));
            Ok(())
        })
        .await?;
        Ok(queue)
    }

    /// Destroys one key: its record, its alias and its place in the queue go together. Says whether
    /// it did; a key whose deletion was cancelled meanwhile stays.
    async fn destroy(
        &self,
        deletion: &DeletionRecord,
        queued: Revision,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let place = Address::Deletion(deletion.project.clone(), deletion.key_id);
        let address = Address::Key(deletion.project.clone(), deletion.key_id);
        let found = self.store.get(&address).await?;
        let Some((Record::Key(key), revision)) = found.map(|key| (key.record, key.revision)) else {
            return self.destroyed_meanwhile(&place).await;
        };
        if key.deletion != Some(deletion.due) {
            return self.still_wanted(&place, queued).await;
        }
        let named = Address::Alias(key.project.clone(), key.alias.clone());
        let Some(owned) = self.store.get(&named).await? else {
            return self.destroyed_meanwhile(&place).await;
        };
        let changes = vec![
            Change::erase(place, queued),
            Change::erase(address.clone(), revision),
            Change::erase(named, owned.revision),
        ];
        match self.commit(key.project.clone(), key.key_id, changes).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(false),
            // The change may have been made and its answer be lost, or its erasing not be finished: then
            // this is the only place that can tell of it. If another server made it, both tell.
            Err(error) => match self.store.get(&address).await {
                Ok(None) => {
                    tracing::warn!(%error, "a key is destroyed, and not known to be overwritten")
                }
                _ => return Err(error.into()),
            },
        }
        tracing::info!(key_id = %key.key_id, project = %key.project, "destroyed a key");
        self.audit.record(&Event {
            time: now,
            request_id: None,
            sequence: None,
            caller: None,
            project: Some(&key.project),
            action: Some(Action::ScheduleKeyDeletion),
            key_id: Some(key.key_id),
            outcome: Outcome::Destroyed,
        });
        Ok(true)
    }

    /// Somebody cancelled the deletion of a key, or scheduled it anew, since the queue was read; or somebody who can
    /// write the store has put back a place in the queue that is not the key's any more. Nothing is destroyed.
    async fn still_wanted(&self, place: &Address, queued: Revision) -> Result<bool, Error> {
        match self.store.get(place).await? {
            Some(found) if found.revision == queued => {
                let why = "it stands in the deletion queue, and its record says otherwise";
                Err(Error::from(Kind::Internal).caused_by(why))
            }
            _ => Ok(false),
        }
    }

    /// Another server that sweeps the same store was faster, if the key's place in the queue is gone
    /// too.
    async fn destroyed_meanwhile(&self, place: &Address) -> Result<bool, Error> {
        match self.store.get(place).await? {
            None => Ok(false),
            Some(_) => Err(Kind::Internal.into()),
        }
    }

    /// The latest time that was trusted, and the write that noted it.
    async fn trusted_time(&self) -> Result<Option<(Timestamp, Revision)>, Error> {
        match self.store.get(&Address::Clock).await? {
            None => Ok(None),
            Some(found) => match found.record {
                Record::Clock(ClockRecord { seen }) => Ok(Some((seen, found.revision))),
                _ => Err(Kind::Internal.into()),
            },
        }
    }

    async fn trust(&self, now: Timestamp) -> Result<(), Error> {
        let mut tries = Tries::default();
        loop {
            let record = Record::Clock(ClockRecord { seen: now });
            let change = match self.trusted_time().await? {
                None => Change::create(record),
                Some((_, revision)) => Change::replace(record, revision),
            };
            match self.root_keys.put(&*self.store, vec![change]).await {
                Ok(_) => return Ok(()),
                // Another writer noted a time, or the same one under another root key.
                Err(StoreError::Conflict) => tries.again()?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
