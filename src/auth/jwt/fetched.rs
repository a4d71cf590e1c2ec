//! An issuer's keys, fetched from where the issuer publishes them.
//!
//! One task fetches them: at the start, every five minutes, and when a token names a key that is not
//! there, but then at most once in ten seconds, whoever asks and however often. A fetch that fails
//! leaves the keys in use. Who asks waits for the fetch that is under way, and only some may wait at a
//! time, because anybody can name a key that is not there.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Semaphore, watch};

use crate::auth::AuthError;
use crate::auth::file::Refresh;
use crate::auth::https::{Endpoint, FetchError};
use crate::auth::jwt::keys::KeySet;
use crate::domain::time::{Clock, Timestamp};

/// How often keys are fetched.
const PERIOD: Duration = Duration::from_secs(300);

/// How long after a fetch began the next may be asked for, and how long after one that failed it is
/// made anyway.
const PAUSE: Duration = Duration::from_secs(10);

/// [`PAUSE`], as the clock counts.
const PAUSE_MILLIS: u64 = 10_000;

/// The most requests that wait for a fetch at a time.
const WAITING: usize = 64;

/// The most bytes of a set of keys.
const MAX: usize = 1024 * 1024;

/// The keys of an issuer, at an address.
#[derive(Debug)]
pub struct Fetched {
    from: Endpoint,
    /// The file with the token that the address asks for.
    bearer_token_file: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    keys: ArcSwapOption<KeySet>,
    progress: Mutex<Progress>,
    asked: watch::Sender<()>,
    ended: watch::Sender<()>,
    waiting: Semaphore,
    failed: AtomicU64,
    /// How long after a fetch, and after one that failed, the next is made.
    pauses: (Duration, Duration),
}

#[derive(Debug)]
struct Progress {
    /// Whether a fetch has been asked for or is under way.
    under_way: bool,
    /// When the last one began, or was asked for.
    began: Option<Timestamp>,
    /// When the last one that succeeded ended; at first, when the server was built.
    renewed: Timestamp,
}

impl Fetched {
    /// The keys at `from`, which sees the token in `bearer_token_file`. There are none before
    /// [`follow`](Self::follow) has fetched them.
    pub fn new(from: Endpoint, bearer_token_file: Option<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        let progress = Progress {
            under_way: true,
            began: None,
            renewed: clock.now(),
        };
        Self {
            from,
            bearer_token_file,
            clock,
            keys: ArcSwapOption::empty(),
            progress: Mutex::new(progress),
            asked: watch::Sender::default(),
            ended: watch::Sender::default(),
            waiting: Semaphore::new(WAITING),
            failed: AtomicU64::new(0),
            pauses: (PERIOD, PAUSE),
        }
    }

    /// Fetches the keys, for ever.
    pub async fn follow(&self) {
        let mut asked = self.asked.subscribe();
        let mut told = None;
        loop {
            self.begin(&mut asked);
            let fetched = self.fetch().await;
            let failure = fetched.as_ref().err().map(ToString::to_string);
            let from = &self.from;
            // A failure that stays the same is told once, not at every fetch.
            match &failure {
                Some(error) if failure != told => {
                    tracing::error!(%from, error, "cannot fetch an issuer's keys: the last ones stay");
                }
                None if told.is_some() => tracing::info!(%from, "fetched an issuer's keys again"),
                _ => {}
            }
            told = failure;
            let (period, pause) = self.pauses;
            let pause = if fetched.is_ok() { period } else { pause };
            self.end(fetched.ok());
            // Fails only when the sender is gone, and that is ours.
            let _ = tokio::time::timeout(pause, asked.changed()).await;
        }
    }

    /// The file by which the address is trusted, which must be read again when it changes; none in plain
    /// text.
    pub fn ca_file(&self) -> Option<Arc<dyn Refresh>> {
        self.from.file()
    }

    /// How many fetches failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How long ago the keys were fetched, or the server was built if they never were.
    pub fn age(&self) -> Duration {
        let age = self.clock.now().millis_since(self.progress().renewed);
        Duration::from_millis(u64::try_from(age).unwrap_or(0))
    }

    /// The keys; none before the first fetch that succeeded.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// Waits until a fetch has ended that was asked for here or before, and succeeded or not. Says
    /// that there was none if the last one is too new.
    pub(super) async fn renewed(&self) -> Result<bool, AuthError> {
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(AuthError::Unavailable);
        };
        let mut ended = {
            let mut progress = self.progress();
            if !progress.under_way {
                let now = self.clock.now();
                let since = progress.began.map(|began| now.millis_since(began));
                // A clock that was set back must not hold up the next fetch.
                if since.is_some_and(|millis| millis.unsigned_abs() < PAUSE_MILLIS) {
                    return Ok(false);
                }
                progress.under_way = true;
                progress.began = Some(now);
                self.asked.send_replace(());
            }
            self.ended.subscribe()
        };
        let changed = ended.changed().await;
        changed.map_err(|_| AuthError::Unavailable)?;
        Ok(true)
    }

    fn begin(&self, asked: &mut watch::Receiver<()>) {
        let mut progress = self.progress();
        progress.under_way = true;
        progress.began = Some(self.clock.now());
        // Who asked until now gets this fetch.
        asked.mark_unchanged();
    }

    fn end(&self, fetched: Option<KeySet>) {
        let mut progress = self.progress();
        progress.under_way = false;
        match fetched {
            Some(keys) => {
                progress.renewed = self.clock.now();
                self.keys.store(Some(Arc::new(keys)));
            }
            None => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.ended.send_replace(());
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let bearer = match &self.bearer_token_file {
            None => None,
            Some(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path));
                Some(read.await.map_err(std::io::Error::from)??)
            }
        };
        let text = self.from.get(bearer.as_deref().map(str::trim), MAX).await?;
        let text = str::from_utf8(&text).map_err(|_| FetchError::Answer("not text"))?;
        KeySet::parse(text).map_err(|malformed| FetchError::Answer(malformed.reason))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn keys_are_fetched_again_and_again_and_sooner_after_a_failure() {
        for (failing, pauses) in [
            (false, (Duration::from_millis(5), Duration::from_secs(3600))),
            (true, (Duration::from_secs(3600), Duration::from_millis(5))),
        ] {
            let (keys, asked) = fetched(failing, None, pauses).await;
            let following = Arc::clone(&keys);
            let task = tokio::spawn(async move { following.follow().await });
            while asked.load(Ordering::Relaxed) < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            task.abort();
            assert_eq!(keys.current().is_some(), !failing);
            assert_eq!(keys.failed() > 0, failing);
        }
    }

    #[tokio::test]
    async fn the_address_sees_the_token_that_its_file_has_at_that_moment() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("token");
        let never = (Duration::ZERO, Duration::ZERO);
        let (keys, _) = fetched(false, Some(path.clone()), never).await;
        assert!(matches!(keys.fetch().await, Err(FetchError::Io(_))));
        for (token, good) in [("wrong", false), ("secret\n", true), ("sec\nret", false)] {
            std::fs::write(&path, token).unwrap();
            assert_eq!(keys.fetch().await.is_ok(), good, "{token:?}");
        }
    }

    /// Keys at a server that wants the token `secret` if there is a file, and counts how often it is
    /// asked.
    async fn fetched(
        failing: bool,
        bearer_token_file: Option<PathBuf>,
        pauses: (Duration, Duration),
    ) -> (Arc<Fetched>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let wanted = bearer_token_file
            .as_ref()
            .map_or("", |_| "Bearer secret\r\n");
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = if failing || !head.contains(wanted) {
                    "HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n"
                } else {
                    "HTTP/1.1 200 ok\r\ncontent-length: 11\r\n\r\n{\"keys\":[]}"
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let from = Endpoint::new(uri.parse().unwrap(), None).unwrap();
        let mut fetched = Fetched::new(from, bearer_token_file, Arc::new(Still));
        fetched.pauses = pauses;
        (Arc::new(fetched), asked)
    }

    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }
    }
}
