//! What a run has shown, as the tables of `docs/reliability.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::faults::Fault;
use crate::history::{Book, MAX_STALENESS, Stop};
use crate::rolling::Rolled;

/// How many faults a run has in whose time each operation is asked for many times, and done. In a shorter one the rarest, two
/// steps of a hundred in the life of a key, may have no turn.
const LONG: usize = 30;

/// What is known when the run ends.
#[derive(Debug, Default)]
pub(crate) struct Report {
    faults: BTreeMap<Fault, Made>,
    /// Keys that were looked at in the end.
    pub(crate) looked_at: usize,
    /// Keys that were made after a snapshot to which the store was set back.
    pub(crate) gone: usize,
    /// Ciphertexts that opened in the end, at every replica.
    pub(crate) opened: usize,
    histories: usize,
    entries: usize,
    stops: Vec<Stop>,
    /// How long after a stop a request succeeded elsewhere when nothing was wrong, in ascending order.
    pub(crate) calm: Vec<Duration>,
    /// How long changes waited after elections.
    pub(crate) elections: Vec<Duration>,
    /// The restarts one by one.
    pub(crate) rolled: Rolled,
}

#[derive(Clone, Debug, Default)]
struct Made {
    times: usize,
    /// How long a replica did not encrypt, and did not describe, while it was there.
    silent: [Vec<Duration>; 2],
    recovered: Vec<Duration>,
}

impl Report {
    /// Adds a round: its faults without those that could not be made, how long a replica was silent,
    /// and how long each took after all was mended.
    pub(crate) fn add(
        &mut self,
        faults: &[Fault],
        failed: &[Fault],
        silent: [Duration; 2],
        recovered: &[Duration],
    ) {
        for fault in faults {
            let made = self.faults.entry(*fault).or_default();
            if failed.contains(fault) {
                continue;
            }
            made.times += 1;
            // Of faults together nobody knows whose the time is: it counts for each.
            made.recovered.extend(recovered);
            for (all, one) in made.silent.iter_mut().zip(silent) {
                all.push(one);
            }
        }
    }

    /// Checks every history, and that there was something of everything: of these operations too.
    pub(crate) fn check(&mut self, book: &Book, operations: impl Iterator<Item = &'static str>) {
        let restorations = book.restorations();
        for key in book.keys() {
            match key.check(&restorations) {
                Ok(entries) => self.entries += entries,
                Err(wrong) => book.wrong(&wrong),
            }
            self.histories += 1;
            for stop in key.stops(&restorations) {
                if stop.latest > MAX_STALENESS {
                    let after = Duration::from_micros(stop.latest);
                    book.wrong(&format!(
                        "a request of {} succeeded that was sent {after:.3?} after a stop",
                        key.id
                    ));
                }
                self.stops.push(stop);
            }
        }
        for (fault, made) in &self.faults {
            if made.times == 0 {
                book.wrong(&format!("never made: {}", fault.name()));
            }
        }
        let calls = book.calls();
        for (operation, calls) in &calls {
            if calls.done == 0 {
                book.wrong(&format!("nothing was seen of {operation}: {calls:?}"));
            }
        }
        if self.made() >= LONG {
            for operation in operations.filter(|operation| !calls.contains_key(operation)) {
                book.wrong(&format!("never asked for: {operation}"));
            }
        }
        if !self.faults.is_empty() && self.probes() == 0 {
            book.wrong("no request was sent past the bound");
        }
        if self.rolled.restarts > 0 && self.rolled.answered == 0 {
            book.wrong("no call was answered while replicas were stopped and started");
        }
    }

    /// How many faults were made.
    fn made(&self) -> usize {
        self.faults.values().map(|made| made.times).sum()
    }

    /// How many requests were refused that were sent so long after a stop that none may succeed.
    fn probes(&self) -> usize {
        self.stops.iter().map(|stop| stop.probes).sum()
    }

    pub(crate) fn passed(&self, book: &Book) -> bool {
        book.all_wrong().is_empty()
    }

    pub(crate) fn text(&self, book: &Book, seed: u64) -> String {
        let mut text = String::new();
        let total = self.made();
        let minutes = Duration::from_micros(book.now() - book.begin()).as_secs_f64() / 60.0;
        let _ = writeln!(
            text,
            "{total} faults in {minutes:.0} minutes, seed {seed}.\n"
        );
        text += "| fault | times | no encryption | no description | serving again |\n";
        text += "|---|--:|--:|--:|--:|\n";
        let mut all = Made::default();
        for (fault, made) in &self.faults {
            all.recovered.extend(&made.recovered);
            for (all, one) in all.silent.iter_mut().zip(&made.silent) {
                all.extend(one);
            }
            let _ = writeln!(text, "| {} {}", fault.name(), made.cells());
        }
        all.times = total;
        let _ = writeln!(text, "| **all** {}", all.cells());
        text +=
            "\n| operation | done | refused | unavailable | lost |\n|---|---:|---:|---:|---:|\n";
        for (operation, calls) in book.calls() {
            let _ = writeln!(
                text,
                "| {operation} | {} | {} | {} | {} |",
                calls.done, calls.refused, calls.unavailable, calls.lost
            );
        }
        let late = self.stops.iter().filter(|stop| stop.latest > MAX_STALENESS);
        let late = late.count();
        let mut latest: Vec<_> = self.stops.iter().map(|stop| stop.latest).collect();
        latest.sort_unstable();
        let ms = |share| percentile(&latest, share).map_or(0.0, |&micros| micros as f64 / 1000.0);
        let of = |times: &[Duration], share| {
            percentile(times, share).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let calm = |share| of(&self.calm, share);
        let elections = |share| of(&self.elections, share);
        text += "\n| checked | seen |\n|---|---|\n";
        let rows = [
            (
                "histories of keys, linearizable",
                format!("{} with {} entries", self.histories, self.entries),
            ),
            (
                "keys looked at in the end, with every acknowledged version",
                format!(
                    "{}, {} more were made after a snapshot",
                    self.looked_at, self.gone
                ),
            ),
            ("ciphertexts opened in the end", self.opened.to_string()),
            (
                "acknowledged disables and deletions",
                self.stops.len().to_string(),
            ),
            (
                "requests refused that were sent 3 s after one or later",
                self.probes().to_string(),
            ),
            ("requests that succeeded though sent so", late.to_string()),
            (
                "latest request that succeeded after one, median, p99, latest",
                format!("{:.0}, {:.0}, {:.0} ms", ms(50), ms(99), ms(100)),
            ),
            (
                "the same with no fault, of other replicas, median, p99, latest",
                format!("{:.0}, {:.0}, {:.0} ms", calm(50), calm(99), calm(100)),
            ),
            (
                "last change to end of those sent before an election or not done, after it, median, latest",
                format!(
                    "{:.0}, {:.0} ms of {}",
                    elections(50),
                    elections(100),
                    self.elections.len()
                ),
            ),
            (
                "replicas stopped and started again one by one, under load",
                self.rolled.restarts.to_string(),
            ),
            (
                "calls answered meanwhile, not accepted and sent elsewhere, lost",
                format!(
                    "{}, {}, {}",
                    self.rolled.answered,
                    self.rolled.elsewhere,
                    self.rolled.wrong.len()
                ),
            ),
            ("wrong answers", book.all_wrong().len().to_string()),
        ];
        for (what, seen) in rows {
            let _ = writeln!(text, "| {what} | {seen} |");
        }
        for wrong in book.all_wrong() {
            let _ = writeln!(text, "\nWRONG: {wrong}");
        }
        text
    }
}

impl Made {
    /// The rest of its row.
    fn cells(&self) -> String {
        let [encrypt, describe] = &self.silent;
        let times = [encrypt, describe, &self.recovered].map(|times| spread(times));
        format!("| {} | {} |", self.times, times.join(" | "))
    }
}

/// Median, 99th percentile and maximum, in seconds.
fn spread(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let shares = [50, 99, 100].map(|share| {
        let time = percentile(&times, share).copied().unwrap_or_default();
        format!("{:.2}", time.as_secs_f64())
    });
    shares.join(", ")
}

/// The smallest of the ascending values that so many of a hundred do not exceed.
fn percentile<T>(ascending: &[T], share: usize) -> Option<&T> {
    let place = (ascending.len() * share).div_ceil(100);
    ascending.get(place.saturating_sub(1))
}
