//! How soon a stop and a rotation are heard everywhere when nothing is wrong, and how long changes wait for an
//! election when nothing else is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::history::{Spec, Track};
use crate::load::{Callers, Change, Told};
use crate::processes::Cluster;

/// How often a key is stopped or rotated.
const STOPS: usize = 60;

/// How long each replica is asked after that: longer than anything takes.
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

/// Stops or rotates a key at one replica after the other while all are asked without a pause; of each time and each
/// other replica, how long after the acknowledgement the last request was sent that succeeded as if nothing had
/// changed.
pub(crate) async fn stops(callers: &Callers) -> Vec<Duration> {
    let Some(key) = callers.create(0, Spec::Aes256).await else {
        callers.book.wrong("no key is made when nothing is wrong");
        return Vec::new();
    };
    let mut heard = Vec::new();
    let mut newest = 1;
    for stop in 0..STOPS {
        let at = stop % callers.replicas();
        let (ended, encrypting) = (Arc::default(), Arc::default());
        let others = (0..callers.replicas()).filter(|other| *other != at);
        let asking = others.map(|other| {
            let (callers, key) = (callers.clone(), Arc::clone(&key));
            let (ended, encrypting) = (Arc::clone(&ended), Arc::clone(&encrypting));
            tokio::spawn(async move { ask(&callers, other, &key, &ended, &encrypting).await })
        });
        let asking: Vec<_> = asking.collect();
        let began = Instant::now();
        while encrypting.load(Ordering::Relaxed) < asking.len() && began.elapsed() < AFTERWARDS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // In turn by a disable, by a deletion, which is taken back, and by a rotation.
        let (change, back) = match stop / callers.replicas() % 3 {
            0 => (Change::Disable, vec![Change::Enable]),
            1 => (Change::Schedule, vec![Change::Cancel, Change::Enable]),
            _ => (Change::Rotate, vec![]),
        };
        let mut done = callers.change(at, &key, change).await == Told::Done;
        let acknowledged = Instant::now();
        newest += u32::from(change == Change::Rotate);
        tokio::time::sleep(WATCHED).await;
        ended.store(true, Ordering::Relaxed);
        for asking in asking {
            let succeeded = asking.await.unwrap();
            // It was seen to encrypt before, so its silence says that it has heard.
            done &= succeeded
                .first()
                .is_some_and(|(sent, _)| *sent < acknowledged);
            let mut old = succeeded
                .iter()
                .filter(|(_, version)| change != Change::Rotate || *version < newest);
            let last = old.next_back().map(|(sent, _)| *sent);
            let late = last.map(|last| last.saturating_duration_since(acknowledged));
            heard.push(late.unwrap_or_default());
        }
        for change in back {
            done &= callers.change(at, &key, change).await == Told::Done;
        }
        if !done {
            callers
                .book
                .wrong("a key does not encrypt, or is not changed, when nothing is wrong");
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
            .wrong("a change is heard late when nothing is wrong");
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
            let mut later = changes.iter().filter(|(sent, ..)| *sent > elected);
            if later.clone().next().is_none() {
                callers.book.wrong("no key is changed after an election");
            }
            if later.any(|(sent, answered, _)| *answered - *sent > OVER) {
                callers.book.wrong("a change takes long after an election");
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

/// Encrypts until it is to end, and counts itself once that succeeds; when each request was sent that succeeded, and
/// the version that it was encrypted with.
async fn ask(
    callers: &Callers,
    replica: usize,
    key: &Arc<Track>,
    ended: &AtomicBool,
    encrypting: &AtomicUsize,
) -> Vec<(Instant, u32)> {
    let mut succeeded = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let sent = Instant::now();
        if let Some(version) = callers.encrypt(replica, key, vec![1]).await {
            if succeeded.is_empty() {
                encrypting.fetch_add(1, Ordering::Relaxed);
            }
            succeeded.push((sent, version));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    succeeded
}
