//! How far behind a store that others write to a server may be, and how far it is.
//!
//! What is held in memory was right when it was read. A store with other writers tells of their
//! changes, and now and then proves that it has told of all that were made before some moment:
//! then what is held is *fresh as of* that moment. Once no proof is younger than the bound, nothing
//! held may be used until there is one. So a change that was acknowledged holds everywhere after the
//! bound, whatever the network does; without that a server that is cut off would go on with a key
//! that was disabled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::key::{KeyId, ProjectId};
use crate::domain::time::{Stopwatch, micros};

/// Is told what others changed.
pub trait Watcher: Send + Sync {
    /// A key changed.
    fn changed(&self, project: &ProjectId, key_id: KeyId);

    /// Anything may have changed.
    fn all_changed(&self);
}

/// How fresh what was read from a store is.
#[derive(Debug)]
pub struct Freshness {
    clock: Arc<dyn Stopwatch>,
    bound: Duration,
    /// The moment of the latest proof in microseconds of the clock, and one more; 0 while there is
    /// none.
    as_of: AtomicU64,
}

impl Freshness {
    /// Nothing is proven yet. The clock must go on while the machine sleeps.
    pub fn new(clock: Arc<dyn Stopwatch>, bound: Duration) -> Self {
        Self {
            clock,
            bound,
            as_of: AtomicU64::new(0),
        }
    }

    /// How old the latest proof may be.
    pub const fn bound(&self) -> Duration {
        self.bound
    }

    /// Now, for a proof that may come of what begins now.
    pub fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Notes that the watcher has been told of everything that was acknowledged before `moment`.
    pub fn prove(&self, moment: Duration) {
        self.as_of
            .fetch_max(micros(moment).saturating_add(1), Ordering::AcqRel);
    }

    /// Notes that earlier proofs count no more: the store is not what it was.
    pub fn lose(&self) {
        self.as_of.store(0, Ordering::Release);
    }

    /// How long ago the latest proof's moment was; none if there is no proof.
    pub fn age(&self) -> Option<Duration> {
        let as_of = self.as_of.load(Ordering::Acquire).checked_sub(1)?;
        Some(Duration::from_micros(
            micros(self.now()).saturating_sub(as_of),
        ))
    }

    /// Refuses while the latest proof is older than the bound.
    pub fn check(&self) -> Result<(), Stale> {
        match self.age() {
            Some(age) if age <= self.bound => Ok(()),
            _ => Err(Stale),
        }
    }
}

/// It was not proven lately that all changes by others are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key store has not lately proven that all changes by other servers are known")]
pub struct Stale;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Set(Mutex<Duration>);

    impl Set {
        fn to(&self, millis: u64) {
            *self.0.lock().unwrap() = Duration::from_millis(millis);
        }
    }

    impl Stopwatch for Set {
        fn elapsed(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn what_was_read_is_usable_until_the_bound_after_the_latest_proof() {
        let clock = Arc::new(Set::default());
        let freshness = Freshness::new(Arc::<Set>::clone(&clock), Duration::from_secs(3));
        assert_eq!((freshness.age(), freshness.check()), (None, Err(Stale)));
        freshness.prove(Duration::ZERO);
        clock.to(3000);
        assert_eq!(freshness.check(), Ok(()));
        clock.to(3001);
        assert_eq!(freshness.check(), Err(Stale));
        freshness.prove(Duration::from_millis(2500));
        assert_eq!(freshness.check(), Ok(()));
        // A proof that took longer proves less, and takes nothing back.
        freshness.prove(Duration::from_millis(1));
        assert_eq!(freshness.age(), Some(Duration::from_millis(501)));
        freshness.lose();
        assert_eq!((freshness.age(), freshness.check()), (None, Err(Stale)));
    }
}
