//! Whether what callers saw of a key could be true of one key: a checker of linearizability.
//!
//! A history is a set of [`Entry`]s, each with the time in which it took effect, if it did. It is
//! linearizable if there is one order of them, in which each lies within its time, and which a single
//! key on a single machine could have gone through (Herlihy and Wing, 1990). The search is Wing and
//! Gong's (1993) in the form of Lowe (2017), just in time: a configuration is a state of the key and
//! those open entries that it accounts for; an entry is put into the order when one returns that is
//! not in it yet, and configurations that are equal are looked at once.
//!
//! ```text
//! time ─────────────────────────────────────────────►
//! disable   ├──────────────┤
//! describe      ├────┤ ENABLED                         before the disable
//! encrypt          ├───────────┤ done                  before it too, or seen by a cache
//! enable                            ├─────── ? ──────  nobody knows
//! describe                                    ├──┤ ENABLED    so it was done
//! ```
//!
//! Two things are more than the textbook has. What only looks at a key is accounted for as soon as it
//! fits: that never costs an order. And the store may be set back to an earlier state: [`Act::Save`]
//! remembers the state, and [`Act::Restore`] returns to it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

/// A time since the run began, in microseconds of a clock that never jumps.
pub(crate) type Moment = u64;

/// How far through its life a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Absent,
    Enabled,
    Disabled,
    Pending,
}

/// What a store holds of a key, as far as callers can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) life: Life,
    /// The version that encrypts, from 1; 0 while there is no key.
    pub(crate) version: u32,
    /// The number of its name. No name is given twice.
    pub(crate) alias: u64,
    /// The number of its description; 0 while it has none.
    pub(crate) description: u64,
}

impl Key {
    /// No key.
    pub(crate) const NONE: Self = Self {
        life: Life::Absent,
        version: 0,
        alias: 0,
        description: 0,
    };
}

/// What was done, or seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Act {
    /// With this name.
    Create(u64),
    Enable,
    Disable,
    /// Deletion was scheduled.
    Schedule,
    /// Deletion was cancelled.
    Cancel,
    /// To this version, if the caller was told.
    Rotate(Option<u32>),
    /// It got this name.
    Rename(u64),
    /// It got this description.
    Redescribe(u64),
    /// The store was copied.
    Save,
    /// The copy was put in the place of the store.
    Restore,
    /// An answer told something of the key, and changed nothing.
    Saw(Seen),
}

/// What an answer tells of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    /// All of it.
    Exactly(Key),
    /// It is at this point of its life.
    Is(Life),
    /// It is there, and at another point of its life.
    IsNot(Life),
    /// It is enabled, and this is its version.
    EncryptsWith(u32),
    /// It is enabled, and has this version.
    Has(u32),
    /// It is not there, or has no such version.
    Lacks(u32),
}

/// One thing that was done or seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Not before.
    pub(crate) from: Moment,
    /// Not after; without it, nobody knows whether it was done, and it may yet be.
    pub(crate) to: Option<Moment>,
    pub(crate) act: Act,
}

/// A state of the store: the key as it is, and as it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    now: Key,
    saved: Key,
}

impl Act {
    /// The state after this, if it can happen in `state`.
    fn apply(self, state: State) -> Option<State> {
        let Key { life, version, .. } = state.now;
        let moved = |life| Some(Key { life, ..state.now });
        let now = match (self, life) {
            (Self::Create(alias), Life::Absent) => Some(Key {
                life: Life::Enabled,
                version: 1,
                alias,
                description: 0,
            }),
            (Self::Enable, Life::Disabled) => moved(Life::Enabled),
            (Self::Disable, Life::Enabled) => moved(Life::Disabled),
            (Self::Schedule, Life::Enabled | Life::Disabled) => moved(Life::Pending),
            (Self::Cancel, Life::Pending) => moved(Life::Disabled),
            (Self::Rotate(told), Life::Enabled) => {
                let next = version + 1;
                told.is_none_or(|told| told == next).then_some(Key {
                    version: next,
                    ..state.now
                })
            }
            (Self::Rename(alias), Life::Enabled | Life::Disabled) => {
                Some(Key { alias, ..state.now })
            }
            (Self::Redescribe(description), Life::Enabled | Life::Disabled) => Some(Key {
                description,
                ..state.now
            }),
            (Self::Save, _) => {
                return Some(State {
                    saved: state.now,
                    ..state
                });
            }
            (Self::Restore, _) => Some(state.saved),
            (Self::Saw(seen), _) => seen.fits(state.now).then_some(state.now),
            (Self::Create(_) | Self::Enable | Self::Disable, _)
            | (Self::Schedule | Self::Cancel | Self::Rotate(_), _)
            | (Self::Rename(_) | Self::Redescribe(_), _) => None,
        };
        now.map(|now| State { now, ..state })
    }
}

impl Seen {
    fn fits(self, key: Key) -> bool {
        match self {
            Self::Exactly(seen) => key == seen,
            Self::Is(life) => key.life == life,
            Self::IsNot(life) => key.life != life && key.life != Life::Absent,
            Self::EncryptsWith(version) => key.life == Life::Enabled && key.version == version,
            Self::Has(version) => key.life == Life::Enabled && key.version >= version,
            Self::Lacks(version) => key.version < version,
        }
    }
}

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refutation {
    /// The entry that fits into no order.
    pub(crate) entry: Entry,
    /// What the key can have been before it.
    pub(crate) states: Vec<Key>,
    /// The search was given up, because it had too many configurations to look at.
    pub(crate) given_up: bool,
}

impl fmt::Display for Refutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.given_up {
            write!(f, "given up at {:?}", self.entry)
        } else {
            write!(f, "{:?}, but it was {:?}", self.entry, self.states)
        }
    }
}

/// How many configurations are looked at before the search is given up. Histories of the harness need
/// some dozens.
const MOST: usize = 200_000;

/// A state that the key can be in, and the open entries that it accounts for, in ascending order.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Configuration {
    state: State,
    done: Vec<usize>,
}

impl Configuration {
    fn accounts_for(&self, entry: usize) -> bool {
        self.done.binary_search(&entry).is_ok()
    }

    fn add(&mut self, entry: usize) {
        if let Err(place) = self.done.binary_search(&entry) {
            self.done.insert(place, entry);
        }
    }

    fn remove(&mut self, entry: usize) {
        if let Ok(place) = self.done.binary_search(&entry) {
            self.done.remove(place);
        }
    }
}

/// Configurations that were looked at, by their states and the entries with an end that they account for; of each the
/// changes without an end.
#[derive(Default)]
struct Looked {
    changes: HashMap<(State, Vec<usize>), Vec<Vec<usize>>>,
    count: usize,
}

impl Looked {
    /// Says whether a configuration is worth a look. It is not if one that is otherwise equal accounts for some of its
    /// changes without an end and no others: that one can do all that it can, for the rest need never happen.
    fn add(&mut self, entries: &[Entry], configuration: &Configuration) -> bool {
        let ends = |index: &usize| entries[*index].to.is_some();
        let (ended, endless): (Vec<_>, Vec<_>) = configuration.done.iter().copied().partition(ends);
        let others = self
            .changes
            .entry((configuration.state, ended))
            .or_default();
        let is_part = |other: &Vec<usize>| other.iter().all(|one| endless.contains(one));
        if others.iter().any(is_part) {
            return false;
        }
        others.push(endless);
        self.count += 1;
        true
    }
}

/// Checks the history of a key that is not there at its beginning.
pub(crate) fn linearizable(entries: &[Entry]) -> Result<(), Refutation> {
    Search::new(entries).run()
}

struct Search<'a> {
    entries: &'a [Entry],
    /// Entries that have begun and are not accounted for by every configuration.
    open: Vec<usize>,
    configurations: HashSet<Configuration>,
}

impl<'a> Search<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        let nothing = State {
            now: Key::NONE,
            saved: Key::NONE,
        };
        let start = Configuration {
            state: nothing,
            done: Vec::new(),
        };
        Self {
            entries,
            open: Vec::new(),
            configurations: HashSet::from([start]),
        }
    }

    fn run(mut self) -> Result<(), Refutation> {
        // Beginnings come before ends of the same microsecond: then the two overlap, which allows
        // more.
        let mut events = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let looks = matches!(entry.act, Act::Saw(_));
            // An answer that was not received tells nothing.
            if !looks || entry.to.is_some() {
                events.push((entry.from, false, index));
            }
            if let Some(to) = entry.to {
                events.push((to, true, index));
            }
        }
        events.sort_unstable();
        for (_, ends, index) in events {
            if ends {
                self.end(index)?;
            } else {
                self.begin(index);
            }
        }
        Ok(())
    }

    fn looks(&self, index: usize) -> Option<Seen> {
        match self.entries[index].act {
            Act::Saw(seen) => Some(seen),
            _ => None,
        }
    }

    fn begin(&mut self, index: usize) {
        self.open.push(index);
        let Some(seen) = self.looks(index) else {
            return;
        };
        let mark = |mut configuration: Configuration| {
            if seen.fits(configuration.state.now) {
                configuration.add(index);
            }
            configuration
        };
        self.configurations = self.configurations.drain().map(mark).collect();
        self.settle();
    }

    /// Keeps the configurations that account for an entry that has returned.
    fn end(&mut self, index: usize) -> Result<(), Refutation> {
        if !self.open.contains(&index) {
            return Ok(());
        }
        let mut kept = HashSet::new();
        let mut seen = Looked::default();
        let mut left: Vec<_> = self.configurations.iter().cloned().collect();
        left.sort_by_key(|configuration| configuration.done.len());
        left.retain(|configuration| seen.add(self.entries, configuration));
        let mut left = VecDeque::from(left);
        while let Some(mut configuration) = left.pop_front() {
            if configuration.accounts_for(index) {
                configuration.remove(index);
                kept.insert(configuration);
                continue;
            }
            let next = self.next(&configuration).into_iter();
            left.extend(next.filter(|next| seen.add(self.entries, next)));
            if seen.count > MOST {
                return Err(self.refute(index, true));
            }
        }
        if kept.is_empty() {
            return Err(self.refute(index, false));
        }
        self.configurations = kept;
        self.open.retain(|&open| open != index);
        self.settle();
        Ok(())
    }

    /// Every configuration that one more open change leads to.
    fn next(&self, from: &Configuration) -> Vec<Configuration> {
        let mut all = Vec::new();
        let mut tried = Vec::new();
        for &change in &self.open {
            if self.looks(change).is_some() || from.accounts_for(change) {
                continue;
            }
            let Entry { to, act, .. } = self.entries[change];
            // Equal changes that never return are as good as each other.
            if to.is_none() {
                if tried.contains(&act) {
                    continue;
                }
                tried.push(act);
            }
            let Some(state) = act.apply(from.state) else {
                continue;
            };
            let mut next = Configuration {
                state,
                done: from.done.clone(),
            };
            next.add(change);
            for &open in &self.open {
                if self.looks(open).is_some_and(|seen| seen.fits(state.now)) {
                    next.add(open);
                }
            }
            all.push(next);
        }
        all
    }

    /// Forgets the entries that every configuration accounts for.
    fn settle(&mut self) {
        let everywhere = |index: usize| {
            let mut all = self.configurations.iter();
            all.all(|configuration| configuration.accounts_for(index))
        };
        let settled: Vec<usize> = self
            .open
            .iter()
            .copied()
            .filter(|&i| everywhere(i))
            .collect();
        if settled.is_empty() {
            return;
        }
        self.open.retain(|open| !settled.contains(open));
        let strip = |mut configuration: Configuration| {
            for &index in &settled {
                configuration.remove(index);
            }
            configuration
        };
        self.configurations = self.configurations.drain().map(strip).collect();
    }

    fn refute(&self, index: usize, given_up: bool) -> Refutation {
        let mut states = Vec::new();
        for configuration in &self.configurations {
            if !states.contains(&configuration.state.now) {
                states.push(configuration.state.now);
            }
        }
        Refutation {
            entry: self.entries[index],
            states,
            given_up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Key = Key {
        life: Life::Enabled,
        version: 1,
        alias: 7,
        description: 0,
    };

    const ENABLED_1: Seen = Seen::Exactly(NEW);

    #[test]
    fn calls_one_after_another_are_as_a_key_moves() {
        good(&[
            did(0, 1, Act::Create(7)),
            saw(2, 3, ENABLED_1),
            did(4, 5, Act::Rotate(Some(2))),
            saw(6, 7, Seen::EncryptsWith(2)),
            saw(6, 7, Seen::Has(1)),
            did(8, 9, Act::Disable),
            saw(10, 11, Seen::Is(Life::Disabled)),
            did(12, 13, Act::Enable),
            did(14, 15, Act::Schedule),
            saw(16, 17, Seen::IsNot(Life::Enabled)),
            did(18, 19, Act::Cancel),
            saw(20, 21, Seen::Is(Life::Disabled)),
        ]);
    }

    #[test]
    fn what_was_acknowledged_is_seen_afterwards() {
        let disabled = [did(0, 1, Act::Create(7)), did(2, 3, Act::Disable)];
        bad(&disabled, saw(4, 5, ENABLED_1));
        bad(&disabled, did(4, 5, Act::Disable));
        bad(&disabled, saw(4, 5, Seen::EncryptsWith(1)));
        bad(&disabled, did(4, 5, Act::Rotate(Some(2))));
        let rotated = [did(0, 1, Act::Create(7)), did(2, 3, Act::Rotate(Some(2)))];
        bad(&rotated, saw(4, 5, Seen::EncryptsWith(1)));
        bad(&rotated, saw(4, 5, Seen::Lacks(2)));
        bad(&rotated, did(4, 5, Act::Rotate(Some(2))));
        bad(&rotated, saw(4, 5, Seen::Is(Life::Absent)));
    }

    #[test]
    fn a_key_has_the_name_and_the_description_that_it_got_last() {
        let key = |alias, description| {
            Seen::Exactly(Key {
                alias,
                description,
                ..NEW
            })
        };
        let renamed = [
            did(0, 1, Act::Create(7)),
            saw(2, 3, key(7, 0)),
            did(4, 5, Act::Rename(8)),
            did(6, 7, Act::Redescribe(9)),
        ];
        good(&[&renamed[..], &[saw(8, 9, key(8, 9))]].concat());
        bad(&renamed, saw(8, 9, key(7, 9)));
        bad(&renamed, saw(8, 9, key(8, 0)));
        let scheduled = [did(0, 1, Act::Create(7)), did(2, 3, Act::Schedule)];
        bad(&scheduled, did(4, 5, Act::Rename(8)));
        bad(&scheduled, did(4, 5, Act::Redescribe(9)));
    }

    #[test]
    fn calls_at_the_same_time_may_come_in_either_order() {
        let both = [did(0, 1, Act::Create(7)), did(2, 6, Act::Disable)];
        good(&[both[0], both[1], saw(3, 4, ENABLED_1)]);
        good(&[both[0], both[1], saw(3, 4, Seen::Is(Life::Disabled))]);
        // Who has seen the later state does not see the earlier one again.
        bad(
            &[both[0], both[1], saw(3, 3, Seen::Is(Life::Disabled))],
            saw(4, 5, ENABLED_1),
        );
    }

    #[test]
    fn one_of_two_equal_changes_succeeds() {
        let create = did(0, 1, Act::Create(7));
        let refused = saw(2, 5, Seen::IsNot(Life::Enabled));
        good(&[create, did(2, 5, Act::Disable), refused]);
        bad(&[create, did(2, 5, Act::Disable)], did(2, 6, Act::Disable));
        bad(&[create], refused);
    }

    #[test]
    fn a_call_of_unknown_outcome_was_done_or_not_or_is_done_later() {
        let begun = [did(0, 1, Act::Create(7)), unknown(2, Act::Disable)];
        good(&[begun[0], begun[1], saw(10, 11, ENABLED_1)]);
        let disabled = saw(10, 11, Seen::Is(Life::Disabled));
        good(&[begun[0], begun[1], saw(5, 6, ENABLED_1), disabled]);
        // But not twice, …
        bad(
            &[begun[0], begun[1], disabled, did(12, 13, Act::Enable)],
            saw(14, 15, Seen::Is(Life::Disabled)),
        );
        // … and not before it was asked for.
        bad(
            &[begun[0], unknown(9, Act::Disable)],
            saw(5, 6, Seen::Is(Life::Disabled)),
        );
    }

    #[test]
    fn a_rotation_of_unknown_outcome_may_have_made_a_version() {
        let begun = [did(0, 1, Act::Create(7)), unknown(2, Act::Rotate(None))];
        good(&[begun[0], begun[1], did(3, 4, Act::Rotate(Some(2)))]);
        good(&[begun[0], begun[1], did(3, 4, Act::Rotate(Some(3)))]);
        bad(&begun, did(3, 4, Act::Rotate(Some(4))));
    }

    #[test]
    fn a_look_that_may_be_old_reaches_back_as_far_as_its_time_does() {
        let disabled = [did(0, 10, Act::Create(7)), did(20, 30, Act::Disable)];
        good(&[disabled[0], disabled[1], saw(30, 90, Seen::EncryptsWith(1))]);
        bad(&disabled, saw(31, 90, Seen::EncryptsWith(1)));
    }

    #[test]
    fn a_store_that_is_set_back_is_as_it_was_saved() {
        let history = [
            did(0, 1, Act::Create(7)),
            did(2, 3, Act::Rotate(Some(2))),
            did(4, 5, Act::Save),
            did(6, 7, Act::Rotate(Some(3))),
            did(8, 9, Act::Disable),
            did(10, 12, Act::Restore),
        ];
        let with = |entry| [&history[..], &[entry]].concat();
        good(&with(saw(13, 14, Seen::EncryptsWith(2))));
        good(&with(did(13, 14, Act::Rotate(Some(3)))));
        bad(&history, saw(13, 14, Seen::Is(Life::Disabled)));
        bad(&history, saw(13, 14, Seen::EncryptsWith(3)));
        // Until the restoration has begun nothing is gone.
        bad(&history[..5], saw(9, 9, Seen::EncryptsWith(2)));
    }

    #[test]
    fn a_key_that_was_made_after_the_copy_is_gone_with_it() {
        let history = [
            did(0, 1, Act::Save),
            did(2, 3, Act::Create(7)),
            did(4, 5, Act::Restore),
        ];
        let gone = saw(6, 7, Seen::Is(Life::Absent));
        good(&[history[0], history[1], history[2], gone]);
        bad(&history, saw(6, 7, Seen::Has(1)));
    }

    #[test]
    fn many_calls_of_unknown_outcome_are_searched_in_a_moment() {
        let mut history = vec![did(0, 1, Act::Create(7))];
        for round in 1..40 {
            let start = round * 100;
            history.push(unknown(start, Act::Disable));
            history.push(unknown(start + 1, Act::Enable));
            for look in 0..50 {
                history.push(saw(start + 2 + look, start + 60 + look, ENABLED_1));
            }
        }
        good(&history);
        bad(&history, saw(5000, 5001, Seen::EncryptsWith(2)));
    }

    #[test]
    fn many_changes_that_may_have_happened_are_looked_at_by_what_they_come_to() {
        let mut entries = vec![did(0, 1, Act::Create(7))];
        entries.extend([
            unknown(10, Act::Rotate(None)),
            unknown(11, Act::Rotate(None)),
            unknown(12, Act::Rotate(None)),
            unknown(13, Act::Redescribe(1)),
            unknown(14, Act::Disable),
            unknown(15, Act::Disable),
            unknown(16, Act::Rename(8)),
            unknown(17, Act::Disable),
            unknown(18, Act::Rotate(None)),
            unknown(19, Act::Schedule),
            unknown(20, Act::Redescribe(2)),
            unknown(21, Act::Schedule),
            unknown(22, Act::Redescribe(3)),
            unknown(23, Act::Rename(9)),
        ]);
        entries.extend([
            did(30, 31, Act::Save),
            did(40, 41, Act::Restore),
            did(50, 51, Act::Save),
            did(60, 61, Act::Restore),
        ]);
        let at = |version, alias, description| {
            Seen::Exactly(Key {
                life: Life::Enabled,
                version,
                alias,
                description,
            })
        };
        for possible in [at(1, 7, 0), at(5, 8, 3), at(5, 7, 1), at(3, 8, 2)] {
            good(&[&entries[..], &[saw(70, 71, possible)]].concat());
        }
        for impossible in [at(6, 7, 0), at(1, 10, 0)] {
            bad(&entries, saw(70, 71, impossible));
        }
    }

    fn did(from: Moment, to: Moment, act: Act) -> Entry {
        let to = Some(to);
        Entry { from, to, act }
    }

    fn saw(from: Moment, to: Moment, seen: Seen) -> Entry {
        did(from, to, Act::Saw(seen))
    }

    fn unknown(from: Moment, act: Act) -> Entry {
        let to = None;
        Entry { from, to, act }
    }

    fn good(entries: &[Entry]) {
        let found = linearizable(entries);
        assert_eq!(found, Ok(()), "{entries:?}");
    }

    /// The first entries are linearizable, and with one more they are not.
    fn bad(first: &[Entry], more: Entry) {
        good(first);
        let all = [first, &[more]].concat();
        let refutation = linearizable(&all).unwrap_err();
        assert!(!refutation.given_up, "{all:?}");
    }
}
