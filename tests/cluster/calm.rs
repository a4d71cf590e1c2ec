//! How soon a stop is heard everywhere when nothing is wrong, and how long changes wait for an election
//! when nothing else is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::history::{Spec, Track};
use crate::load::{Callers, Change, Told};
use crate::processes::Cluster;

/// How often a key is stopped.
const STOPS: usize = 50;

/// How long each replica is asked after a stop: longer than anything takes.
const WATCHED: Duration = Duration::from_millis(400);

/// By when 99 of 100 must have been heard.
const HEARD: Duration = Duration::from_millis(300);

/// How often the leading member is killed or stopped.
const ELECTIONS: usize = 4;

/// How many keys are changed at each replica meanwhile.
const CHANGED: usize = 3;

/// How long changes go on after an election.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// By when after an election all must be as before, on a machine that has much else to do.
const OVER: Duration = Duration::from_secs(2);

/// Stops a key at one replica after the other while all are asked without a pause; of each stop and each
/// other replica, how long after the acknowledgement the last request was sent that succeeded.
pub(crate) async fn stops(callers: &Callers) -> Vec<Duration> {
    let Some(key) = callers.create(0, Spec::Aes256).await else {
        callers.book.wrong("no key is made when nothing is wrong");
        return Vec::new();
    };
    let mut heard = Vec::new();
    for stop in 0..STOPS {
        let at = stop % callers.replicas();
        let ended = Arc::new(AtomicBool::new(false));
        let others = (0..callers.replicas()).filter(|other| *other != at);
        let asking = others.map(|other| {
            let (callers, key) = (callers.clone(), Arc::clone(&key));
            let ended = Arc::clone(&ended);
            tokio::spawn(async move { ask(&callers, other, &key, &ended).await })
        });
        let asking: Vec<_> = asking.collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        // In turn by a disable and by a deletion, which is taken back.
        let (change, back) = match stop % 2 {
            0 => (Change::Disable, vec![Change::Enable]),
            _ => (Change::Schedule, vec![Change::Cancel, Change::Enable]),
        };
        let told = callers.change(at, &key, change).await;
        let acknowledged = Instant::now();
        tokio::time::sleep(WATCHED).await;
        ended.store(true, Ordering::Relaxed);
        for asking in asking {
            let last = asking.await.unwrap();
            let late = last.map(|last| last.saturating_duration_since(acknowledged));
            heard.push(late.unwrap_or_default());
        }
        let mut done = told == Told::Done;
        for change in back {
            done &= callers.change(at, &key, change).await == Told::Done;
        }
        if !done {
            callers
                .book
                .wrong("a key is not stopped, or not enabled, when nothing is wrong");
            break;
        }
    }
    heard.sort_unstable();
    if heard
        .get(heard.len() * 99 / 100)
        .is_some_and(|late| *late > HEARD)
    {
        callers
            .book
            .wrong("a stop is heard late when nothing is wrong");
    }
    heard
}

/// In turn kills and stops the leading member while keys are changed at each replica without a
/// pause; of each time, how long after the election the last change ended that was sent before it, or of which
/// nothing is known.
pub(crate) async fn elections(cluster: &Cluster, callers: &Callers) -> Vec<Duration> {
    let mut waited = Vec::new();
    for election in 0..ELECTIONS {
        let Some(leader) = tokio::task::block_in_place(|| cluster.leader()) else {
            callers.book.wrong("nobody leads when nothing is wrong");
            break;
        };
        let ended = Arc::new(AtomicBool::new(false));
        let changing = (0..callers.replicas() * CHANGED).map(|number| {
            let replica = number % callers.replicas();
            let (callers, ended) = (callers.patient(), Arc::clone(&ended));
            tokio::spawn(async move { change(&callers, replica, &ended).await })
        });
        let changing: Vec<_> = changing.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let process = &cluster.members[leader].process;
        // One that is stopped ends no connection, so nobody is told that it will not answer.
        if election % 2 == 0 {
            process.kill();
        } else {
            process.pause();
        }
        tokio::task::block_in_place(|| cluster.await_another_leader(leader));
        let elected = Instant::now();
        tokio::time::sleep(AFTERWARDS).await;
        ended.store(true, Ordering::Relaxed);
        process.resume();
        process.start();
        tokio::task::block_in_place(|| cluster.await_members());
        let mut last = Duration::ZERO;
        for changing in changing {
            let changes = changing.await.unwrap();
            if !changes.iter().any(|(sent, ..)| *sent > elected) {
                callers.book.wrong("no key is changed after an election");
            }
            let waits = changes
                .iter()
                .filter(|(sent, _, told)| *sent < elected || *told == Told::Nothing)
                .map(|(_, answered, _)| answered.saturating_duration_since(elected));
            last = last.max(waits.max().unwrap_or_default());
        }
        if last > OVER {
            callers.book.wrong("a change waits long after an election");
        }
        waited.push(last);
    }
    waited.sort_unstable();
    waited
}

/// Stops and starts a key until it is to end: of each change, when it was sent and answered, and how.
async fn change(
    callers: &Callers,
    replica: usize,
    ended: &AtomicBool,
) -> Vec<(Instant, Instant, Told)> {
    let Some(key) = callers.create(replica, Spec::Aes256).await else {
        callers.book.wrong("no key is made when nothing is wrong");
        return Vec::new();
    };
    let mut changes = Vec::new();
    for change in [Change::Disable, Change::Enable].iter().cycle() {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let sent = Instant::now();
        let told = callers.change(replica, &key, *change).await;
        changes.push((sent, Instant::now(), told));
    }
    changes
}

/// Encrypts until it is to end; when the last request was sent that succeeded.
async fn ask(
    callers: &Callers,
    replica: usize,
    key: &Arc<Track>,
    ended: &AtomicBool,
) -> Option<Instant> {
    let mut last = None;
    while !ended.load(Ordering::Relaxed) {
        let sent = Instant::now();
        if callers.encrypt(replica, key, vec![1]).await {
            last = Some(sent);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    last
}
