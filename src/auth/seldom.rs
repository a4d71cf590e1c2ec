//! Lines of the log that strangers can cause, written at most once a second.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::domain::time::Clock;

/// How long after a line the next may be written, in milliseconds.
const PAUSE: i64 = 1000;

/// Says when a line may be written, and for how many it stands.
pub(super) struct Seldom {
    clock: Arc<dyn Clock>,
    /// When the last was written, in milliseconds since 1970.
    last: AtomicI64,
    /// How many could have been written since.
    waiting: AtomicU64,
}

impl Seldom {
    pub(super) const fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            last: AtomicI64::new(i64::MIN / 2),
            waiting: AtomicU64::new(0),
        }
    }

    /// For how many a line that is written now stands, itself among them; none if it is too soon.
    pub(super) fn admit(&self) -> Option<u64> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let (now, last) = (self.clock.now().0, self.last.load(Ordering::Relaxed));
        // A clock that was set back makes no pause longer.
        if (0..PAUSE).contains(&(now - last)) {
            return None;
        }
        // One of those who come at the same time writes.
        let taken = self
            .last
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
        taken.ok()?;
        Some(self.waiting.swap(0, Ordering::Relaxed).max(1))
    }
}

impl fmt::Debug for Seldom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seldom")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    #[test]
    fn a_line_a_second_stands_for_all_of_it() {
        let clock = Arc::new(Hand(AtomicI64::new(5_000_000)));
        let seldom = Seldom::new(Arc::<Hand>::clone(&clock));
        assert_eq!(seldom.admit(), Some(1));
        for _ in 0..99 {
            assert_eq!(seldom.admit(), None);
        }
        clock.0.fetch_add(PAUSE - 1, Ordering::Relaxed);
        assert_eq!(seldom.admit(), None);
        clock.0.fetch_add(1, Ordering::Relaxed);
        assert_eq!(seldom.admit(), Some(101));
        assert_eq!(seldom.admit(), None);
        // Set back by an hour.
        clock.0.fetch_sub(3_600_000, Ordering::Relaxed);
        assert_eq!(seldom.admit(), Some(2));
    }

    /// A clock that stands.
    #[derive(Debug)]
    struct Hand(AtomicI64);

    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::Relaxed))
        }
    }
}
