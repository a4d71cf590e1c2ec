//! Wall-clock time, as the contract counts it, and time that only passes.

use std::fmt;
use std::time::Duration;

/// Milliseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time and `millis` more.
    #[must_use]
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// How many milliseconds this time is after `earlier`; negative if it is before.
    pub const fn millis_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Tells the time. The server owns the real one; a test owns its own.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// Tells how long it has run. Unlike a [`Clock`] it never jumps, whatever is done to the machine's time.
pub trait Stopwatch: fmt::Debug + Send + Sync {
    /// The time since it was started.
    fn elapsed(&self) -> Duration;
}

/// A time in whole microseconds, the most that there are if it has more.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_apart_by_milliseconds_and_stop_at_the_ends() {
        let (early, late) = (Timestamp(-5), Timestamp(7));
        assert_eq!(early.plus_millis(12), late);
        assert_eq!(
            (late.millis_since(early), early.millis_since(late)),
            (12, -12)
        );
        assert_eq!(Timestamp(i64::MAX).plus_millis(1), Timestamp(i64::MAX));
        assert_eq!(Timestamp(i64::MAX).millis_since(early), i64::MAX);
    }
}
