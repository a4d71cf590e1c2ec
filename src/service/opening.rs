//! Opening a version of a key, once for all who need it.
//!
//! Opening an RSA or SM2 key waits for a turn of the CPU pool, and whose turn comes first depends on who
//! asks. So each caller who needs the version has the opening in a line of its own, once however
//! many of its requests need it; whoever's turn comes first opens it for all, and the others' places are
//! given up. Were it in the line of the first alone, one with a thousand decryptions before it would hold
//! up everybody's first use of the key.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::domain::key::ProjectId;
use crate::error::Error;

/// A version, opened or not.
#[derive(Debug)]
pub(super) struct Opening<T> {
    opened: OnceLock<Arc<T>>,
    /// In whose lines it is.
    lines: Mutex<Vec<Line>>,
    /// Somebody has opened it, or given up.
    news: Notify,
}

/// A line that an opening may wait in: that of a caller, or the one for what is opened without a turn.
pub(super) type Line = Option<(Arc<str>, ProjectId)>;

impl<T> Opening<T> {
    /// The version, if it is open.
    pub(super) fn get(&self) -> Option<&Arc<T>> {
        self.opened.get()
    }

    /// The opened version: by `open`, which waits in `line`, or by whoever is faster.
    pub(super) async fn open<F>(&self, line: Line, open: impl Fn() -> F) -> Result<&Arc<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            let mut news = pin!(self.news.notified());
            // Before the look, so that nothing between the two is missed.
            news.as_mut().enable();
            if let Some(opened) = self.get() {
                return Ok(opened);
            }
            let Some(_turn) = self.enter(&line) else {
                news.await;
                continue;
            };
            let mut opened = pin!(open());
            let opened = loop {
                tokio::select! {
                    biased;
                    opened = &mut opened => break opened?,
                    () = news.as_mut() => {}
                }
                news.set(self.news.notified());
                news.as_mut().enable();
                if let Some(opened) = self.get() {
                    return Ok(opened);
                }
            };
            // If somebody was as fast, theirs is as good.
            return Ok(self.opened.get_or_init(|| Arc::new(opened)));
        }
    }

    /// Enters a line, unless the opening is in it already.
    fn enter<'a>(&'a self, line: &Line) -> Option<Turn<'a>> {
        let mut lines = self.lines();
        if lines.contains(line) {
            return None;
        }
        lines.push(line.clone());
        Some(Turn {
            lines: &self.lines,
            news: &self.news,
            line: line.clone(),
        })
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Opening<T> {
    fn default() -> Self {
        Self {
            opened: OnceLock::new(),
            lines: Mutex::default(),
            news: Notify::const_new(),
        }
    }
}

/// A place in a line. When it is given up, for whatever reason, others look what they need to do.
struct Turn<'a> {
    lines: &'a Mutex<Vec<Line>>,
    news: &'a Notify,
    line: Line,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.retain(|line| *line != self.line);
            if lines.is_empty() {
                // Most versions are opened once.
                *lines = Vec::new();
            }
        }
        self.news.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::task::{JoinSet, yield_now};

    use super::*;
    use crate::crypto::Place;
    use crate::crypto::pool::Pool;
    use crate::domain::caller::{Actions, Caller};
    use crate::error::Kind;

    #[tokio::test]
    async fn one_caller_s_long_line_does_not_hold_up_another_s_first_use() {
        let pool = Arc::new(Pool::new(1, 1000).unwrap());
        let (greedy, polite) = (caller("greedy"), caller("polite"));
        let hold = busy(&pool).await;
        let done = Arc::new(AtomicUsize::new(0));
        let mut jobs = JoinSet::new();
        for _ in 0..100 {
            let (pool, greedy) = (Arc::clone(&pool), greedy.clone());
            let done = Arc::clone(&done);
            let job = move || done.fetch_add(1, Ordering::SeqCst);
            jobs.spawn(async move { pool.run(&greedy, Place::Pool, 1000, job).await });
        }
        until_waiting(&pool, 100).await;
        let opening = Arc::new(Opening::default());
        // What is opened is how many of the jobs came before.
        let before = || {
            let done = Arc::clone(&done);
            move || done.load(Ordering::SeqCst)
        };
        let first = ask(&pool, &opening, &greedy, before());
        until_waiting(&pool, 101).await;
        let second = ask(&pool, &opening, &polite, before());
        until_waiting(&pool, 102).await;
        drop(hold);
        let came_first = *second.await.unwrap().unwrap();
        assert_eq!(*first.await.unwrap().unwrap(), came_first);
        assert!(
            came_first < 50,
            "{came_first} of the other's jobs came first"
        );
    }

    #[tokio::test]
    async fn an_opening_is_once_in_each_line() {
        let pool = Arc::new(Pool::new(1, 1000).unwrap());
        let hold = busy(&pool).await;
        let opening = Arc::new(Opening::default());
        let callers = [caller("one"), caller("other")];
        let asked: Vec<_> = (0..100)
            .map(|number| ask(&pool, &opening, &callers[number % 2], || 7))
            .collect();
        until_waiting(&pool, 2).await;
        for _ in 0..1000 {
            yield_now().await;
        }
        assert_eq!(pool.waiting(), 2);
        drop(hold);
        for asked in asked {
            assert_eq!(*asked.await.unwrap().unwrap(), 7);
        }
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_opening_to_another_of_the_line() {
        let opening = Arc::new(Opening::<u8>::default());
        let stuck = {
            let opening = Arc::clone(&opening);
            tokio::spawn(async move { opening.open(None, std::future::pending).await.is_ok() })
        };
        while opening.lines().is_empty() {
            yield_now().await;
        }
        let next = {
            let opening = Arc::clone(&opening);
            tokio::spawn(async move { opening.open(None, async || Ok(7)).await.map(Arc::clone) })
        };
        yield_now().await;
        assert!(!next.is_finished());
        stuck.abort();
        assert_eq!(*next.await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_who_had_it_and_the_next_tries_again() {
        let opening = Opening::<u8>::default();
        let failed = opening
            .open(None, async || Err(Kind::Unavailable.into()))
            .await;
        assert_eq!(failed.unwrap_err().kind(), Kind::Unavailable);
        assert!(opening.get().is_none() && opening.lines().is_empty());
        assert_eq!(**opening.open(None, async || Ok(7)).await.unwrap(), 7);
        let again = opening.open(None, async || panic!("it is open"));
        assert_eq!(**again.await.unwrap(), 7);
    }

    /// Asks for the version as this caller.
    fn ask(
        pool: &Arc<Pool>,
        opening: &Arc<Opening<usize>>,
        caller: &Caller,
        job: impl Fn() -> usize + Clone + Send + Sync + 'static,
    ) -> tokio::task::JoinHandle<Result<Arc<usize>, Error>> {
        let (pool, opening, caller) = (Arc::clone(pool), Arc::clone(opening), caller.clone());
        tokio::spawn(async move {
            let share = pool.share(&caller);
            let open = || async {
                share
                    .run(Place::Pool, 10, job.clone())
                    .await
                    .map_err(Error::from)
            };
            opening.open(Some(share.line()), open).await.map(Arc::clone)
        })
    }

    /// Keeps the pool's one thread busy until what is returned is dropped.
    async fn busy(pool: &Arc<Pool>) -> mpsc::Sender<()> {
        let (hold, held) = mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let pool = Arc::clone(pool);
        tokio::spawn(async move {
            let job = move || {
                let _ = begin.send(());
                let _ = held.recv();
            };
            pool.run(&caller("busy"), Place::Pool, 1, job).await
        });
        begun.await.unwrap();
        hold
    }

    async fn until_waiting(pool: &Pool, jobs: usize) {
        let waited = async {
            while pool.waiting() < jobs {
                yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waited).await;
        waited.unwrap_or_else(|_| panic!("{} wait and not {jobs}", pool.waiting()));
    }

    fn caller(name: &str) -> Caller {
        Caller {
            name: name.into(),
            project: "p".parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::default(),
        }
    }
}
