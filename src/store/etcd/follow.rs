//! Hearing of every change by anybody, and proving that none is missing.
//!
//! A watch tells of changes. That it is silent proves nothing: the member that serves it may be cut
//! off from the others and know of no change. So every transaction of ours also writes one record,
//! the *epoch*, with a value that no other transaction writes. Twice a second it is read, which
//! needs a majority of the members; once the watch has told of the epoch that was read, everything
//! that was acknowledged before the read was sent is known, and what is held in memory is fresh as of
//! that moment.
//!
//! That the values are unlike each other also shows that the history is still the same one. A cluster
//! that was put back to a backup may count the same revisions anew, with other records.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::store::etcd::client::Failure;
use crate::store::etcd::rpc;
use crate::store::etcd::rpc::watch_request::RequestUnion;
use crate::store::etcd::{Epoch, Shared};
use crate::store::freshness::Watcher;

/// How often the epoch is read.
const EVERY: Duration = Duration::from_millis(500);

/// How many readings of the epoch may be under way: a member that does not answer must not keep the
/// next from being asked.
const READINGS: usize = 6;

/// How long a watch may take at most to tell of an epoch that was read, before another member is watched.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long a watch may take to be made.
const OPENING: Duration = Duration::from_secs(1);

/// How many epochs are remembered that the watch told of: more than are written while one is read.
const REMEMBERED: usize = 16_384;

/// How long to wait before a broken watch is made anew.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a watch ended.
#[derive(Debug)]
enum End {
    /// The member or the way to it failed. Another may go on where it stopped.
    Broken(Failure),
    /// It told of nothing, though there was something to tell.
    Stuck,
    /// What happened since is not to be had, or the store is not what it was. What is held in memory
    /// must be forgotten.
    Lost(&'static str),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::OtherCluster => Self::Lost("another cluster answered"),
            failure if failure.is_out_of_history() => Self::Lost("the history is not there"),
            failure => Self::Broken(failure),
        }
    }
}

/// How far a watcher has been told.
#[derive(Debug)]
struct Told {
    /// The latest epoch.
    epoch: Epoch,
    /// The revision that the next watch begins at: everything before it is told.
    next: i64,
    /// The epochs that the watch has told of, the oldest first.
    past: VecDeque<Epoch>,
}

/// A reading of the epoch.
#[derive(Debug)]
struct Reading {
    /// When it was sent.
    sent: Duration,
    /// What the watcher had been told of then.
    told: Epoch,
    /// When the answer came.
    came: Duration,
    /// The epoch, and the revision of the answer.
    found: Result<(Epoch, i64), Failure>,
}

/// Tells `watcher` of every change, until the store may be another.
pub(super) async fn follow(shared: &Shared, watcher: &dyn Watcher) {
    let mut told = None;
    let mut member = 0;
    let mut failing = false;
    loop {
        let began = shared.freshness.now();
        let Err(end) = session(shared, watcher, member, &mut told).await;
        let lasted = shared.freshness.now().saturating_sub(began) > PATIENCE;
        match end {
            End::Lost(why) => {
                shared.freshness.lose();
                watcher.all_changed();
                tracing::warn!(
                    why,
                    "forgot all keys in memory: the key store must be read anew"
                );
                sleep(PAUSE).await;
                return;
            }
            End::Broken(error) => {
                if matches!(error, Failure::Cancelled(_)) {
                    // The token may have died there: it lives where it is used.
                    shared.client.log_in_again();
                }
                // An outage is told once, not at every try.
                if lasted || !failing {
                    tracing::warn!(%error, "lost the watch of the key store");
                }
            }
            End::Stuck => {
                tracing::warn!("the watch of the key store is late: watching another member");
            }
        }
        failing = !lasted;
        member += 1;
        sleep(PAUSE).await;
    }
}

/// One watch, from its beginning to its end.
async fn session(
    shared: &Shared,
    watcher: &dyn Watcher,
    member: usize,
    told: &mut Option<Told>,
) -> Result<std::convert::Infallible, End> {
    let sent = shared.freshness.now();
    let (now, revision) = shared.epoch(0).await?;
    let came = shared.freshness.now();
    if let Some(told) = told {
        resume(shared, told, &now, revision).await?;
    } else {
        // What a reader got before may be older than the read.
        watcher.all_changed();
    }
    let told = told.get_or_insert_with(|| Told {
        past: VecDeque::from([now.clone()]),
        epoch: now.clone(),
        next: revision.saturating_add(1),
    });

    let (questions, asked) = mpsc::channel(1);
    let (key, range_end) = shared.everything();
    let create = rpc::WatchCreateRequest {
        key,
        range_end,
        start_revision: told.next,
        fragment: true,
    };
    let create = rpc::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    // The channel has room for it.
    let _ = questions.send(create).await;
    let opening = shared.client.watch(member, ReceiverStream::new(asked));
    let mut watch = opening.await?;

    let mut waiting = VecDeque::from([Reading {
        sent,
        told: told.epoch.clone(),
        came,
        found: Ok((now, revision)),
    }]);
    let mut readings = JoinSet::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let created = timeout(OPENING, watch.message()).await;
    let created = created.map_err(|_| Failure::Late)?.map_err(Failure::from)?;
    take(shared, watcher, told, created)?;
    loop {
        settle(shared, told, &mut waiting)?;
        tokio::select! {
            answer = watch.message() => {
                take(shared, watcher, told, answer.map_err(Failure::from)?)?;
            }
            Some(read) = readings.join_next() => {
                // A reading that panicked proves nothing.
                if let Ok(read) = read {
                    waiting.push_back(read);
                }
            }
            _ = ticks.tick() => {
                if readings.len() < READINGS {
                    // Each of those that wait has another member asked.
                    let after = readings.len();
                    readings.spawn(read(shared.clone(), told.epoch.clone(), after));
                }
            }
        }
    }
}

/// Checks that the history is still the one that the watcher was told of, before it is told on.
async fn resume(shared: &Shared, told: &mut Told, now: &Epoch, revision: i64) -> Result<(), End> {
    // A history that ends before this revision, or no longer goes back to it, is an error.
    if shared.epoch_at(told.next.saturating_sub(1)).await? != told.epoch {
        return Err(End::Lost("the history is another"));
    }
    if *now == told.epoch {
        // Nothing of ours was written up to this revision.
        told.next = told.next.max(revision.saturating_add(1));
    }
    Ok(())
}

/// Reads the epoch.
async fn read(shared: Shared, told: Epoch, after: usize) -> Reading {
    let sent = shared.freshness.now();
    let found = shared.epoch(after).await;
    let came = shared.freshness.now();
    Reading {
        sent,
        told,
        came,
        found,
    }
}

/// Tells the watcher of what one answer says.
fn take(
    shared: &Shared,
    watcher: &dyn Watcher,
    told: &mut Told,
    answer: Option<rpc::WatchResponse>,
) -> Result<(), End> {
    let answer = answer.ok_or(Failure::Nonsense)?;
    shared.client.same_cluster(answer.header.as_ref())?;
    if answer.compact_revision > 0 {
        return Err(End::Lost("the history was compacted"));
    }
    if answer.canceled {
        return Err(Failure::Cancelled(answer.cancel_reason).into());
    }
    for event in answer.events {
        let Some(change) = event.kv else {
            return Err(Failure::Nonsense.into());
        };
        match shared.address(&change.key) {
            Some(Ok((project, key_id))) => watcher.changed(&project, key_id),
            Some(Err(())) => watcher.all_changed(),
            None => {}
        }
        // The last of its transaction, which is told when this is. Some versions of etcd tell of one
        // again.
        if !shared.is_epoch(&change.key) || change.mod_revision <= told.epoch.revision {
            continue;
        }
        let epoch = Epoch::from(change);
        // So the watch left none out, which etcd has been known to do. One that was removed counts from
        // nothing.
        if epoch.count != told.epoch.count.saturating_add(1) {
            return Err(End::Lost("the watch left something out"));
        }
        told.next = epoch.revision.saturating_add(1);
        told.past.push_back(epoch.clone());
        if told.past.len() > REMEMBERED {
            told.past.pop_front();
        }
        told.epoch = epoch;
    }
    Ok(())
}

/// Makes proofs of the readings whose epoch the watcher has been told of.
fn settle(shared: &Shared, told: &mut Told, waiting: &mut VecDeque<Reading>) -> Result<(), End> {
    let patience = PATIENCE.min(shared.freshness.bound() / 3);
    let mut late = false;
    let mut outcome = Ok(());
    waiting.retain(|reading| {
        let (found, revision) = match &reading.found {
            Ok(found) => found,
            Err(Failure::OtherCluster) => {
                outcome = Err(End::Lost("another cluster answered"));
                return false;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the epoch of the key store");
                return false;
            }
        };
        if found.revision > told.epoch.revision {
            let waited = shared.freshness.now().saturating_sub(reading.came);
            late |= waited > patience;
            return true;
        }
        // A read sees what had been told before it was sent.
        if found.revision < reading.told.revision {
            outcome = Err(End::Lost("the history was put back"));
            return false;
        }
        if *found == told.epoch {
            // Nothing of ours was written up to this revision.
            told.next = told.next.max(revision.saturating_add(1));
        }
        match told
            .past
            .iter()
            .rev()
            .find(|past| past.revision <= found.revision)
        {
            Some(past) if past == found => shared.freshness.prove(reading.sent),
            // It is older than what is remembered, which proves nothing either way.
            None => {}
            Some(_) => outcome = Err(End::Lost("the history is another")),
        }
        false
    });
    outcome?;
    if late { Err(End::Stuck) } else { Ok(()) }
}
