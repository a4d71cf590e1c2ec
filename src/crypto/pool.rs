//! The CPU pool: where work that takes long is done, off the async threads and bounded.
//!
//! A private RSA operation takes milliseconds and making an RSA key takes seconds. On an async
//! thread either would hold up every request behind it, so they queue here, and a symmetric call
//! never waits for them.
//!
//! Nor does it share its core with them as with an equal: the threads have a low priority, so what is
//! woken to answer a symmetric call runs soon, and they have the time that it leaves.

use std::sync::Arc;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::{Semaphore, oneshot};

/// Threads that compute, and a bounded queue in front of them.
#[derive(Debug)]
pub struct Pool {
    threads: rayon::ThreadPool,
    /// A permit for each job that runs or waits.
    places: Arc<Semaphore>,
}

impl Pool {
    /// Starts `threads` threads, in front of which at most `waiting` jobs wait.
    pub fn new(threads: usize, waiting: usize) -> Result<Self, PoolError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("cpu-{number}"))
            .start_handler(|_| step_back())
            // A job that panics drops its answer's sender, and `run` tells its caller so.
            .panic_handler(|_| tracing::error!("a job of the cpu pool panicked"))
            .build()
            .map_err(|_| PoolError::Stopped)?;
        Ok(Self {
            threads: pool,
            places: Arc::new(Semaphore::new(threads + waiting)),
        })
    }

    /// Does `job` on a thread of the pool.
    ///
    /// A job that nobody waits for any longer, because its request was cancelled, is not begun.
    pub async fn run<T, F>(&self, job: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let place = Arc::clone(&self.places);
        let place = place.try_acquire_owned().map_err(|_| PoolError::Full)?;
        let (answer, answered) = oneshot::channel();
        self.threads.spawn(move || {
            if !answer.is_closed() {
                // The caller may have gone meanwhile; then the answer is dropped, and wiped where
                // it is secret.
                let _ = answer.send(job());
            }
            drop(place);
        });
        answered.await.map_err(|_| PoolError::Stopped)
    }
}

/// A low priority, as setpriority(2) counts. A thread that has it and competes for a core with one of
/// ordinary priority has a tenth of it. The lowest, 19, would leave it a seventieth: where symmetric
/// calls keep a core busy, no RSA decryption would be done within its deadline.
const LOW: i32 = 10;

/// Gives the calling thread a low priority.
fn step_back() {
    // Priorities are of threads on Linux, and none means the calling one. It may have a lower one
    // already; asking for less is always allowed.
    let lower = getpriority_process(None).and_then(|own| setpriority_process(None, own.max(LOW)));
    if let Err(error) = lower {
        tracing::warn!(%error, "a thread of the cpu pool keeps its priority");
    }
}

/// Does a job of microseconds off the async threads, without waiting behind the long ones: a key
/// that is opened for a symmetric call must not queue for a private RSA operation.
pub async fn briefly<T, F>(job: F) -> Result<T, PoolError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|_| PoolError::Stopped)
}

/// Why a job was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Too many jobs wait already.
    #[error("the cpu pool is full")]
    Full,
    /// The job panicked, or the pool could not be started.
    #[error("the cpu pool did not do the job")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_full_pool_refuses_at_once_and_then_recovers() {
        let pool = Pool::new(1, 1).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let first = pool.run(move || held.recv().is_ok());
        let second = pool.run(|| 2);
        let mut both = Box::pin(async { tokio::join!(first, second) });
        // One poll starts the first job and queues the second.
        assert!(futures_poll(&mut both).await.is_none());
        assert_eq!(pool.run(|| 3).await, Err(PoolError::Full));
        hold.send(()).unwrap();
        assert_eq!(both.await, (Ok(true), Ok(2)));
        assert_eq!(pool.run(|| 3).await, Ok(3));
    }

    #[tokio::test]
    async fn a_job_that_panics_fails_alone() {
        let pool = Pool::new(1, 1).unwrap();
        let answer: Result<(), _> = pool.run(|| panic!("a bug")).await;
        assert_eq!(answer, Err(PoolError::Stopped));
        assert_eq!(pool.run(|| 1).await, Ok(1));
    }

    #[tokio::test]
    async fn the_pool_steps_back_and_its_callers_do_not() {
        let priority = || getpriority_process(None).unwrap();
        let own = priority();
        let pool = Pool::new(2, 2).unwrap();
        for _ in 0..4 {
            assert_eq!(pool.run(priority).await, Ok(own.max(LOW)));
        }
        assert_eq!(priority(), own);
        assert_eq!(briefly(priority).await, Ok(own));
    }

    /// The future's output if it is ready at its next poll.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            let poll = std::pin::Pin::new(&mut *future).poll(context);
            std::task::Poll::Ready(match poll {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
