//! How soon a stop is heard everywhere when nothing is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::history::{Spec, Track};
use crate::load::{Callers, Change, Told};

/// How often a key is stopped.
const STOPS: usize = 50;

/// How long each replica is asked after a stop: longer than anything takes.
const WATCHED: Duration = Duration::from_millis(400);

/// By when 99 of 100 must have been heard.
const HEARD: Duration = Duration::from_millis(300);

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
