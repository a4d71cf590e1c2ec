//! What callers were told, and what of it may not be.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::checker::{Act, Entry, Life, Moment, Refutation, Seen, linearizable};

/// How old the knowledge of a key may be by which a replica encrypts and decrypts: `max_staleness`.
pub(crate) const MAX_STALENESS: Moment = 3_000_000;

/// The moment at which the run begins: late enough that nothing reaches back before the first moment.
const BEGIN: Moment = 10 * MAX_STALENESS;

/// What happened in a run.
#[derive(Debug)]
pub(crate) struct Book {
    began: Instant,
    keys: Mutex<Vec<Arc<Track>>>,
    by_id: Mutex<HashMap<String, Arc<Track>>>,
    restorations: Mutex<Vec<Restoration>>,
    wrong: Mutex<Vec<String>>,
    calls: Mutex<BTreeMap<&'static str, Calls>>,
}

/// How calls of one operation ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) done: u64,
    /// With a row of the catalogue that says why.
    pub(crate) refused: u64,
    /// With `KMS.0104`.
    pub(crate) unavailable: u64,
    /// With no answer, or with one of the transport's.
    pub(crate) lost: u64,
}

/// The store was copied, and later set back to the copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restoration {
    pub(crate) save: (Moment, Moment),
    pub(crate) restore: (Moment, Moment),
}

/// What happened to one key.
#[derive(Debug)]
pub(crate) struct Track {
    pub(crate) id: String,
    pub(crate) made_of: Spec,
    entries: Mutex<Vec<Entry>>,
    sealed: Mutex<Vec<Sealed>>,
    public_key: Mutex<Option<String>>,
}

/// The specs that the load uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    Aes256,
    Rsa2048,
    Sm2,
}

/// A ciphertext that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) plain: Vec<u8>,
    pub(crate) cipher_text: Vec<u8>,
    /// The version of the key that made it; 1 for keys that have one.
    pub(crate) version: u32,
    /// When it was asked for, and answered.
    pub(crate) made: (Moment, Moment),
}

impl Book {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            keys: Mutex::default(),
            by_id: Mutex::default(),
            restorations: Mutex::default(),
            wrong: Mutex::default(),
            calls: Mutex::default(),
        }
    }

    /// The time. All of the load is one process, so it has one clock.
    pub(crate) fn now(&self) -> Moment {
        BEGIN + micros(self.began.elapsed())
    }

    /// When the run began.
    pub(crate) const fn begin(&self) -> Moment {
        BEGIN
    }

    /// Adds a key that was made with this name.
    pub(crate) fn add(
        &self,
        id: &str,
        made_of: Spec,
        alias: u64,
        made: (Moment, Moment),
    ) -> Arc<Track> {
        let track = Arc::new(Track {
            id: id.to_owned(),
            made_of,
            entries: Mutex::default(),
            sealed: Mutex::default(),
            public_key: Mutex::default(),
        });
        track.did(made, Act::Create(alias));
        self.keys.lock().unwrap().push(Arc::clone(&track));
        let known = Arc::clone(&track);
        let before = self.by_id.lock().unwrap().insert(id.to_owned(), known);
        if before.is_some() {
            self.wrong(&format!("key {id} was made twice"));
        }
        track
    }

    pub(crate) fn keys(&self) -> Vec<Arc<Track>> {
        self.keys.lock().unwrap().clone()
    }

    pub(crate) fn key(&self, id: &str) -> Option<Arc<Track>> {
        self.by_id.lock().unwrap().get(id).cloned()
    }

    /// Notes how a call ended.
    pub(crate) fn count(&self, operation: &'static str, how: impl FnOnce(&mut Calls) -> &mut u64) {
        let mut calls = self.calls.lock().unwrap();
        *how(calls.entry(operation).or_default()) += 1;
    }

    pub(crate) fn calls(&self) -> BTreeMap<&'static str, Calls> {
        self.calls.lock().unwrap().clone()
    }

    /// Notes an answer that may not be.
    pub(crate) fn wrong(&self, what: &str) {
        let at = Duration::from_micros(self.now() - BEGIN);
        println!("WRONG at {at:.3?}: {what}");
        self.wrong.lock().unwrap().push(format!("{at:.3?}: {what}"));
    }

    pub(crate) fn all_wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// The store is about to be set back to a copy that was made in this time.
    pub(crate) fn restoring(&self, save: (Moment, Moment)) {
        let restore = (self.now(), Moment::MAX);
        let mut restorations = self.restorations.lock().unwrap();
        restorations.push(Restoration { save, restore });
    }

    /// The store has been set back.
    pub(crate) fn restored(&self) {
        let now = self.now();
        if let Some(last) = self.restorations.lock().unwrap().last_mut() {
            last.restore.1 = now;
        }
    }

    pub(crate) fn restorations(&self) -> Vec<Restoration> {
        self.restorations.lock().unwrap().clone()
    }

    /// A time of the run, as its own log would tell it.
    pub(crate) fn told(moment: Moment) -> String {
        let seconds = Duration::from_micros(moment.saturating_sub(BEGIN)).as_secs_f64();
        format!("{seconds:.6}")
    }
}

impl Track {
    pub(crate) fn did(&self, (from, to): (Moment, Moment), act: Act) {
        let to = Some(to);
        self.entries.lock().unwrap().push(Entry { from, to, act });
    }

    /// Nobody knows whether it was done.
    pub(crate) fn may_have(&self, from: Moment, act: Act) {
        let to = None;
        self.entries.lock().unwrap().push(Entry { from, to, act });
    }

    /// An answer that the store stands behind: it tells what was so while it was asked for.
    pub(crate) fn saw(&self, when: (Moment, Moment), seen: Seen) {
        self.did(when, Act::Saw(seen));
    }

    /// An encryption or decryption succeeded, by what was so while it was asked for, or up to
    /// `max_staleness` before.
    pub(crate) fn worked(&self, (from, to): (Moment, Moment), seen: Seen) {
        self.did((from - MAX_STALENESS, to), Act::Saw(seen));
    }

    /// Keeps a ciphertext, so that it can be decrypted later: of each version two, and 24 in all. Of more, those in the
    /// middle go.
    pub(crate) fn keep(&self, new: Sealed) {
        const MOST: usize = 24;
        let mut sealed = self.sealed.lock().unwrap();
        let kept = sealed.iter().filter(|old| old.version == new.version);
        if kept.count() < 2 {
            sealed.push(new);
        } else if let Some(last) = sealed.last_mut()
            && last.version == new.version
        {
            *last = new;
        }
        if sealed.len() > MOST {
            sealed.remove(MOST / 2);
        }
    }

    /// The ciphertexts that must decrypt.
    pub(crate) fn sealed(&self, restorations: &[Restoration]) -> Vec<Sealed> {
        let mut sealed = self.sealed.lock().unwrap();
        sealed.retain(|sealed| !self.gone(sealed, restorations));
        sealed.clone()
    }

    /// Whether a ciphertext may be of a version that is gone, because the store was set back to a
    /// copy without it. A replica may have made it by what it knew before.
    pub(crate) fn gone(&self, sealed: &Sealed, restorations: &[Restoration]) -> bool {
        restorations.iter().any(|Restoration { save, restore }| {
            let (from, to) = sealed.made;
            let made_between = to >= save.0 && from <= restore.1.saturating_add(MAX_STALENESS);
            made_between && sealed.version > self.version_before(save.0, restorations)
        })
    }

    /// The newest version that was certainly there at this moment. What was told before the store was set
    /// back counts as far as the copy had it: the same numbers are given anew.
    fn version_before(&self, moment: Moment, restorations: &[Restoration]) -> u32 {
        let set_back = restorations.iter();
        let set_back = set_back.filter(|restoration| restoration.restore.1 < moment);
        let last = set_back.max_by_key(|restoration| restoration.restore.1);
        let since = last.map_or(0, |last| last.restore.1);
        let told = {
            let entries = self.entries.lock().unwrap();
            let told = entries
                .iter()
                .filter(|entry| entry.from >= since && entry.to.is_some_and(|to| to < moment));
            let told = told.filter_map(|entry| version(entry.act)).max();
            told.unwrap_or_default()
        };
        // The copy was made before it was set back to, so this ends.
        let copied = last.map_or(0, |last| self.version_before(last.save.0, restorations));
        told.max(copied)
    }

    /// The newest version that was acknowledged since the store was last set back.
    pub(crate) fn acknowledged(&self, restorations: &[Restoration]) -> u32 {
        let since = restorations.last().map_or(0, |last| last.restore.1);
        let entries = self.entries.lock().unwrap();
        let since = entries.iter().filter(|entry| entry.from >= since);
        let rotated = since
            .filter(|entry| entry.to.is_some())
            .map(|entry| match entry.act {
                Act::Create(_) => 1,
                Act::Rotate(version) => version.unwrap_or_default(),
                _ => 0,
            });
        rotated.max().unwrap_or_default()
    }

    /// Whether the public key is the one that was told before.
    pub(crate) fn same_public_key(&self, told: &str) -> bool {
        let mut known = self.public_key.lock().unwrap();
        known.get_or_insert_with(|| told.to_owned()) == told
    }

    /// The whole history: what callers were told, and what was done to the store.
    fn history(&self, restorations: &[Restoration]) -> Vec<Entry> {
        let mut all = self.entries.lock().unwrap().clone();
        for Restoration { save, restore } in restorations {
            for ((from, to), act) in [(*save, Act::Save), (*restore, Act::Restore)] {
                let to = Some(to);
                all.push(Entry { from, to, act });
            }
        }
        all
    }

    /// Checks that the history is one of a single key.
    pub(crate) fn check(&self, restorations: &[Restoration]) -> Result<usize, String> {
        let history = self.history(restorations);
        match linearizable(&history) {
            Ok(()) => Ok(history.len()),
            Err(refutation) => Err(self.explain(&history, &refutation)),
        }
    }

    /// What there is to read about a history that cannot be.
    fn explain(&self, history: &[Entry], refutation: &Refutation) -> String {
        /// Enough to see what came before.
        const LINES: usize = 40;
        let end = refutation.entry.to.unwrap_or(Moment::MAX);
        let mut before: Vec<_> = history.iter().filter(|entry| entry.from <= end).collect();
        before.sort_unstable_by_key(|entry| entry.to.unwrap_or(entry.from));
        before.retain(|entry| {
            !matches!(entry.act, Act::Saw(Seen::Has(_) | Seen::EncryptsWith(_)))
                || **entry == refutation.entry
        });
        let lines = before.iter().rev().take(LINES).rev().map(|entry| {
            let to = entry.to.map_or_else(|| "?".to_owned(), Book::told);
            format!("\n    {} to {to}: {:?}", Book::told(entry.from), entry.act)
        });
        format!(
            "the history of key {} is of no single key: {refutation}{}",
            self.id,
            lines.collect::<String>()
        )
    }

    /// Looks for encryptions and decryptions that succeeded though they were sent after a disable or
    /// a scheduled deletion had been acknowledged, and were answered before anything began that could
    /// enable the key. This is what `max_staleness` bounds, told again without the checker.
    pub(crate) fn stops(&self, restorations: &[Restoration]) -> Vec<Stop> {
        let history = self.history(restorations);
        let enabling = |entry: &&Entry| matches!(entry.act, Act::Enable | Act::Restore);
        let worked =
            |entry: &&Entry| matches!(entry.act, Act::Saw(Seen::Has(_) | Seen::EncryptsWith(_)));
        let refused = |entry: &&Entry| {
            let stopped = Seen::Is(Life::Disabled);
            entry.act == Act::Saw(stopped) || entry.act == Act::Saw(Seen::Is(Life::Pending))
        };
        let mut stops = Vec::new();
        for stop in &history {
            let (Act::Disable | Act::Schedule, Some(acknowledged)) = (stop.act, stop.to) else {
                continue;
            };
            let after = |entry: &&Entry| entry.to.unwrap_or(Moment::MAX) >= stop.from;
            let enabled = history.iter().filter(enabling).filter(after);
            let enabled = enabled.map(|entry| entry.from).min();
            let until = enabled.unwrap_or(Moment::MAX);
            let before = |entry: &&Entry| entry.to.is_some_and(|to| to < until);
            let sent = history.iter().filter(worked).filter(before);
            let sent = sent.map(|entry| entry.from + MAX_STALENESS);
            let latest = sent.filter(|&sent| sent > acknowledged).max();
            let late = |entry: &&Entry| entry.from > acknowledged + MAX_STALENESS;
            let probes = history.iter().filter(refused).filter(before).filter(late);
            stops.push(Stop {
                latest: latest.map_or(0, |sent| sent - acknowledged),
                probes: probes.count(),
            });
        }
        stops
    }
}

/// What came of stopping a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// How long after the acknowledgement the latest request was sent that still succeeded.
    pub(crate) latest: Moment,
    /// How many requests were refused that were sent after `max_staleness`.
    pub(crate) probes: usize,
}

/// A version that there is for certain when this has been told.
fn version(act: Act) -> Option<u32> {
    match act {
        Act::Create(_) => Some(1),
        Act::Rotate(version) => version,
        Act::Saw(Seen::Exactly(key)) => Some(key.version),
        Act::Saw(Seen::EncryptsWith(version) | Seen::Has(version)) => Some(version),
        _ => None,
    }
}

/// A time in microseconds.
pub(crate) fn micros(time: Duration) -> Moment {
    Moment::try_from(time.as_micros()).unwrap()
}
