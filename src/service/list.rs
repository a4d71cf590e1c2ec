//! ListKeys.
//!
//! A page tells how many keys match on all pages, so each needs all keys of the project. A small
//! project's are read for each page. Of a large one the [`Listings`] keep what orders and filters its
//! keys for as long as nothing in the store changes, and then the records of the page alone are read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::domain::cost::READ;
use crate::domain::key::{KeyId, KeySpec, KeyState, ProjectId};
use crate::domain::places::Places;
use crate::domain::time::Timestamp;
use crate::error::{Error, Kind};
use crate::service::{Access, Call, Kms};
use crate::store::{Address, KeyRecord, Mark, Prefix, Record, VersionRecord, Versioned};

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

impl ListKeys {
    fn matches(&self, key: &Listed) -> bool {
        self.state.is_none_or(|state| key.state == state)
            && self.spec.is_none_or(|spec| key.spec == spec)
    }
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

/// How many keys a project has whose records are read for each page: as many as a page may have.
const SMALL: usize = 1000;

/// How many keys are listed in memory, of all projects together: 64 MiB, which is a million and some.
const MOST: usize = 64 * 1024 * 1024 / size_of::<Listed>();

/// How many records of a page are read at once.
const AT_ONCE: usize = 16;

/// How many walks over large projects there are at a time, and over each: every one lists all keys anew.
const WALKS: usize = 8;
const WALKS_EACH: usize = 2;

/// How many records are read at a time to be told of, and how many chunks of them: one with as many versions as
/// a key may have takes half a megabyte, and a chunk of such 64 MiB, however many ask.
const RECORDS: usize = 32;
const CHUNKS: usize = 4;

/// How many keys that are listed in memory are looked at in a microsecond.
const A_MICROSECOND: usize = 1000;

/// What is known of the keys of large projects, and places for those who read what is to be told of keys.
#[derive(Debug)]
pub struct Listings {
    kept: Mutex<VecDeque<Arc<Listing>>>,
    walks: Places<ProjectId>,
    records: Arc<Semaphore>,
    chunks: Semaphore,
}

impl Default for Listings {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            walks: Places::new(WALKS, WALKS_EACH),
            records: Arc::new(Semaphore::new(RECORDS)),
            chunks: Semaphore::new(CHUNKS),
        }
    }
}

/// The keys of a project while the store has this mark.
#[derive(Debug)]
struct Listing {
    project: ProjectId,
    mark: Mark,
    /// Oldest first.
    keys: Arc<[Listed]>,
}

/// What orders and filters a key. Ordered by what orders it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    created: Timestamp,
    key_id: KeyId,
    state: KeyState,
    spec: KeySpec,
}

impl From<&KeyRecord> for Listed {
    fn from(key: &KeyRecord) -> Self {
        Self {
            created: key.created,
            key_id: key.key_id,
            state: key.state,
            spec: key.spec,
        }
    }
}

impl Listings {
    fn get(&self, project: &ProjectId, mark: &Mark) -> Option<Arc<[Listed]>> {
        let all = self.all();
        let mut same = all.iter().filter(|listing| listing.project == *project);
        let found = same.find(|listing| listing.mark == *mark)?;
        Some(Arc::clone(&found.keys))
    }

    /// Keeps a listing, and forgets the oldest ones that there is no room for.
    fn keep(&self, new: Listing) {
        let mut all = self.all();
        all.retain(|listing| listing.project != new.project);
        if new.keys.len() > MOST {
            return;
        }
        all.push_front(Arc::new(new));
        let mut total = 0;
        all.retain(|listing| {
            total += listing.keys.len();
            total <= MOST
        });
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Arc<Listing>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys of a project, as they were read.
enum All {
    /// Whole.
    Few(Vec<KeyRecord>),
    /// In order.
    Many(Arc<[Listed]>),
}

impl Kms {
    /// Lists the caller's keys.
    pub async fn list(&self, call: &Call<'_>, ask: ListKeys) -> Result<Page, Error> {
        call.allowed()?;
        let project = call.caller_project();
        let prefix = Prefix::Keys(project.clone());
        let mark = self.store.mark(&prefix).await?;
        let known = mark.as_ref();
        let known = known.and_then(|mark| self.listings.get(project, mark));
        let all = match known {
            Some(keys) => All::Many(keys),
            None => self.read_all(call, prefix, mark).await?,
        };
        match all {
            All::Few(mut keys) => {
                if keys.is_empty() {
                    // As of a single key.
                    self.fresh()?;
                }
                keys.retain(|key| ask.matches(&Listed::from(key)));
                keys.sort_by_key(|key| (key.created, key.key_id));
                let total = keys.len();
                let keys = keys.into_iter().skip(ask.marker).take(ask.limit).collect();
                Ok(page(keys, total, ask))
            }
            All::Many(listed) => {
                let micros = u32::try_from(listed.len() / A_MICROSECOND).unwrap_or(u32::MAX);
                self.limits.owe(&call.context.caller, micros);
                let mut total = 0;
                let mut ids = Vec::with_capacity(ask.limit);
                for key in listed.iter().filter(|key| ask.matches(key)) {
                    if total >= ask.marker && ids.len() < ask.limit {
                        ids.push(key.key_id);
                    }
                    total += 1;
                }
                let mut keys = self.read_each(call, ids).await?;
                // One may have changed since.
                keys.retain(|key| ask.matches(&Listed::from(key)));
                Ok(page(keys, total, ask))
            }
        }
    }

    /// Reads all keys of the caller's project, and keeps a listing of them if they are many and the
    /// store still has this mark.
    async fn read_all(
        &self,
        call: &Call<'_>,
        prefix: Prefix,
        mark: Option<Mark>,
    ) -> Result<All, Error> {
        let (mut listed, mut keys) = (Vec::new(), Vec::new());
        let (mut after, mut walk) = (None, None);
        loop {
            let place = self.listings.chunks.acquire().await;
            let _place = place.map_err(|_| Kind::Internal)?;
            let chunk = self.store.list(&prefix, after.as_ref(), CHUNK).await?;
            let full = chunk.len() == CHUNK;
            after = chunk.last().map(|found| found.record.address());
            for found in chunk {
                // How many there are shows when they are read.
                self.limits.owe(&call.context.caller, READ);
                let Record::Key(key) = found.record else {
                    return Err(Kind::Internal.into());
                };
                listed.push(Listed::from(&key));
                if walk.is_none() {
                    keys.push(without_material(key));
                }
            }
            if walk.is_none() && listed.len() > SMALL {
                keys = Vec::new();
                let place = self.listings.walks.take(call.caller_project().clone());
                walk = Some(place.ok_or(Kind::Throttled)?);
                // Another walk may have listed them meanwhile.
                if let Some(now) = self.store.mark(&prefix).await?
                    && let Some(keys) = self.listings.get(call.caller_project(), &now)
                {
                    return Ok(All::Many(keys));
                }
            }
            if !full {
                break;
            }
        }
        if listed.len() <= SMALL {
            return Ok(All::Few(keys));
        }
        // A million take too long for a thread that serves others too.
        let sorted = tokio::task::spawn_blocking(move || {
            listed.sort_unstable_by_key(|key| (key.created, key.key_id));
            Arc::<[Listed]>::from(listed)
        });
        let sorted = sorted.await;
        let keys = sorted.map_err(|error| Error::from(Kind::Internal).caused_by(error))?;
        if let Some(mark) = mark
            && self.store.mark(&prefix).await?.as_ref() == Some(&mark)
        {
            self.listings.keep(Listing {
                project: call.caller_project().clone(),
                mark,
                keys: Arc::clone(&keys),
            });
        }
        Ok(All::Many(keys))
    }

    /// Reads the keys with these ids, in this order, without those that are gone.
    async fn read_each(&self, call: &Call<'_>, ids: Vec<KeyId>) -> Result<Vec<KeyRecord>, Error> {
        let ids: Arc<[KeyId]> = ids.into();
        let mut readers = JoinSet::new();
        for first in 0..AT_ONCE.min(ids.len()) {
            let (store, ids) = (Arc::clone(&self.store), Arc::clone(&ids));
            let project = call.caller_project().clone();
            let places = Arc::clone(&self.listings.records);
            readers.spawn(async move {
                let mut read = Vec::new();
                for place in (first..ids.len()).step_by(AT_ONCE) {
                    let Some(&key_id) = ids.get(place) else {
                        break;
                    };
                    let address = Address::Key(project.clone(), key_id);
                    let turn = places.acquire().await;
                    let _turn = turn.map_err(|_| Kind::Internal)?;
                    match store.get(&address).await?.map(|found| found.record) {
                        Some(Record::Key(key)) => read.push((place, without_material(key))),
                        Some(_) => return Err(Kind::Internal.into()),
                        None => {}
                    }
                }
                Ok::<_, Error>(read)
            });
        }
        let mut found = Vec::with_capacity(ids.len());
        while let Some(read) = readers.join_next().await {
            let read = read.map_err(|error| Error::from(Kind::Internal).caused_by(error))?;
            found.extend(read?);
        }
        found.sort_unstable_by_key(|(place, _)| *place);
        let keys = found.into_iter().map(|(_, key)| {
            self.limits.owe(&call.context.caller, READ);
            key
        });
        Ok(keys.collect())
    }

    /// The key as it is to be told of.
    pub(super) async fn read_to_tell(&self, access: &Access<'_>) -> Result<KeyRecord, Error> {
        let place = self.listings.records.acquire().await;
        let _place = place.map_err(|_| Kind::Internal)?;
        let (key, _) = self.read(access).await?;
        Ok(without_material(key))
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

/// Of its versions the newest is told, and nothing of their material.
fn without_material(mut key: KeyRecord) -> KeyRecord {
    let newest = key.versions.pop().map(|newest| VersionRecord {
        sealed: Vec::new(),
        ..newest
    });
    key.versions = Vec::from_iter(newest);
    key
}

fn page(keys: Vec<KeyRecord>, total: usize, ask: ListKeys) -> Page {
    let end = ask.marker.saturating_add(ask.limit);
    Page {
        keys,
        total,
        next: (end < total).then_some(end),
    }
}
