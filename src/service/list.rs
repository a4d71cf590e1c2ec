//! ListKeys.

use crate::domain::cost::READ;
use crate::domain::key::{KeySpec, KeyState};
use crate::error::{Error, Kind};
use crate::service::{Call, Kms};
use crate::store::{KeyRecord, Prefix, Record, Versioned};

/// Which keys to list.
#[derive(Clone, Copy, Debug)]
pub struct ListKeys {
    /// How many at most.
    pub limit: usize,
    /// How many to pass over.
    pub marker: usize,
    /// Only those in this state.
    pub state: Option<KeyState>,
    /// Only those of this spec.
    pub spec: Option<KeySpec>,
}

/// A page of keys.
#[derive(Debug)]
pub struct Page {
    /// The keys, oldest first.
    pub keys: Vec<KeyRecord>,
    /// How many match on all pages.
    pub total: usize,
    /// Where the next page begins; none after the last key.
    pub next: Option<usize>,
}

/// How many records are read from the store at a time.
const CHUNK: usize = 500;

impl Kms {
    /// Lists the caller's keys.
    pub async fn list(&self, call: &Call<'_>, ask: ListKeys) -> Result<Page, Error> {
        call.allowed()?;
        let prefix = Prefix::Keys(call.caller_project().clone());
        let mut matching = Vec::new();
        self.each(&prefix, |found| {
            // How many there are shows when they are read.
            self.limits.owe(&call.context.caller, READ);
            let Record::Key(mut key) = found.record else {
                return Err(Kind::Internal.into());
            };
            if ask.state.is_none_or(|state| key.state == state)
                && ask.spec.is_none_or(|spec| key.spec == spec)
            {
                // A page tells how many versions there are and nothing of their material.
                key.versions
                    .iter_mut()
                    .for_each(|version| version.sealed = Vec::new());
                matching.push(key);
            }
            Ok(())
        })
        .await?;
        matching.sort_by_key(|key| (key.created, key.key_id));
        let total = matching.len();
        let end = ask.marker.saturating_add(ask.limit);
        Ok(Page {
            keys: matching
                .into_iter()
                .skip(ask.marker)
                .take(ask.limit)
                .collect(),
            total,
            next: (end < total).then_some(end),
        })
    }

    /// Hands every record under `prefix` to `take`, in the order of their addresses.
    pub(super) async fn each(
        &self,
        prefix: &Prefix,
        mut take: impl FnMut(Versioned) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut after = None;
        loop {
            let chunk = self.store.list(prefix, after.as_ref(), CHUNK).await?;
            let full = chunk.len() == CHUNK;
            after = chunk.last().map(|found| found.record.address());
            chunk.into_iter().try_for_each(&mut take)?;
            if !full {
                return Ok(());
            }
        }
    }
}
