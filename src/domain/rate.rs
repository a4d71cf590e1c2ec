//! A rate that holds over time and lets bursts through: the generic cell rate algorithm.
//!
//! All that is kept of a caller is one number, the time at which nothing will be owed any more (the
//! "theoretical arrival time" of ITU-T I.371, appendix I). What costs more moves it farther. While it is
//! farther ahead than the burst allows, nothing is admitted. It is a token bucket that is empty so
//! far ahead and full once that time has come, and nothing has to refill it.

use std::num::NonZeroU32;
use std::time::Duration;

/// How much is admitted, over time and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In how many nanoseconds `per` units of cost are earned.
    nanos: u64,
    per: NonZeroU32,
    /// In how many nanoseconds that is earned which may be used at once.
    burst: u64,
}

/// Processor time per time, in millionths of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores(NonZeroU32);

impl Cores {
    /// So many cores: at least a millionth, at most 4000.
    pub fn new(cores: f64) -> Option<Self> {
        let millionths = (cores * 1e6).round();
        if !(1.0..=4e9).contains(&millionths) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a whole number of that range"
        )]
        NonZeroU32::new(millionths as u32).map(Self)
    }
}

impl Rate {
    /// Processor time, whose cost is in microseconds: so many cores over time, and `burst` of it at
    /// once.
    pub fn cores(cores: Cores, burst: Duration) -> Self {
        let Cores(millionths) = cores;
        let burst = burst.as_nanos() * 1_000_000 / u128::from(millionths.get());
        Self {
            // One microsecond of a millionth of a core takes a second.
            nanos: 1_000_000_000,
            per: millionths,
            burst: u64::try_from(burst).unwrap_or(u64::MAX),
        }
    }

    /// Requests, each of which costs 1: so many a second over time, and `burst` of them at once.
    pub fn requests(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let mut rate = Self {
            nanos: 1_000_000_000,
            per: per_second,
            burst: 0,
        };
        rate.burst = rate.earning(1).saturating_mul(burst.get().into());
        rate
    }

    /// In how many nanoseconds `cost` is earned.
    fn earning(self, cost: u32) -> u64 {
        // At most 2^32 times 2^30.
        (u64::from(cost) * self.nanos).div_ceil(self.per.get().into())
    }

    /// Admits what costs `cost` at the time `now`, where nothing is owed from `clear` on: says from when
    /// on nothing is owed then, or else how long to wait. Times are in nanoseconds.
    ///
    /// What costs more than the burst is admitted when nothing is owed, and is owed then: refused for
    /// ever would be worse.
    pub fn admit(self, clear: u64, now: u64, cost: u32) -> Result<u64, Duration> {
        let earning = self.earning(cost);
        let ahead = clear.saturating_sub(now);
        let allowed = self.burst.saturating_sub(earning);
        match ahead.checked_sub(allowed) {
            None | Some(0) => Ok(clear.max(now).saturating_add(earning)),
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }

    /// From when on nothing is owed, once what costs `cost` has been done unasked.
    pub fn owe(self, clear: u64, now: u64, cost: u32) -> u64 {
        clear.max(now).saturating_add(self.earning(cost))
    }

    /// From when on nothing is owed, when what was admitted for `cost` is not done.
    pub fn give_back(self, clear: u64, cost: u32) -> u64 {
        clear.saturating_sub(self.earning(cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_is_admitted_at_once_and_then_the_rate() {
        let rate = requests(10, 3);
        let mut clear = 0;
        for _ in 0..3 {
            clear = rate.admit(clear, 0, 1).unwrap();
        }
        assert_eq!(rate.admit(clear, 0, 1), Err(Duration::from_millis(100)));
        let mut admitted = 0;
        // Asked every millisecond for ten seconds, from when the burst was used up.
        for millis in 1..=10_000 {
            if let Ok(later) = rate.admit(clear, millis * 1_000_000, 1) {
                (clear, admitted) = (later, admitted + 1);
            }
        }
        assert_eq!(admitted, 100);
    }

    #[test]
    fn a_core_earns_a_microsecond_in_a_microsecond() {
        let rate = cores(1.0, Duration::from_millis(2));
        let clear = rate.admit(0, 7, 1500).unwrap();
        assert_eq!(clear, 7 + 1_500_000);
        let clear = rate.admit(clear, 7, 500).unwrap();
        assert_eq!(rate.admit(clear, 7, 1), Err(Duration::from_micros(1)));
        let half = cores(0.5, Duration::from_millis(2));
        assert_eq!(half.admit(0, 0, 1500), Ok(3_000_000));
        assert_eq!(
            half.admit(3_000_000, 0, 1500),
            Err(Duration::from_millis(2))
        );
    }

    #[test]
    fn what_costs_more_than_the_burst_is_admitted_when_nothing_is_owed_and_paid_off() {
        let rate = cores(1.0, Duration::from_millis(1));
        let clear = rate.admit(0, SECOND, 5000).unwrap();
        assert_eq!(clear, SECOND + 5_000_000);
        assert_eq!(
            rate.admit(clear, SECOND, 5000),
            Err(Duration::from_millis(5))
        );
        assert_eq!(
            rate.admit(clear, SECOND, 1000),
            Err(Duration::from_millis(5))
        );
        assert_eq!(
            rate.admit(clear, SECOND, 100),
            Err(Duration::from_micros(4100))
        );
        rate.admit(clear, SECOND + 5_000_000, 5000).unwrap();
    }

    #[test]
    fn a_burst_of_nothing_spaces_what_is_admitted() {
        let rate = cores(1.0, Duration::ZERO);
        let clear = rate.admit(0, 10, 1).unwrap();
        assert_eq!(rate.admit(clear, 10, 1), Err(Duration::from_micros(1)));
        assert!(rate.admit(clear, 1010, 1).is_ok());
    }

    #[test]
    fn an_odd_rate_admits_no_more_than_it_says_and_all_of_its_burst() {
        let rate = requests(3, 3);
        let mut clear = 0;
        for _ in 0..3 {
            clear = rate.admit(clear, 0, 1).unwrap();
        }
        assert!(rate.admit(clear, 0, 1).is_err());
        let mut admitted = 0;
        for millis in 0..1_000_000 {
            if let Ok(later) = rate.admit(clear, millis * 1_000_000, 1) {
                (clear, admitted) = (later, admitted + 1);
            }
        }
        // Less than three in a second by no more than the nanosecond that was rounded.
        assert_eq!(admitted, 2999);
    }

    #[test]
    fn numbers_that_are_too_large_stop_at_the_end_of_time() {
        let slowest = cores(0.000_001, Duration::MAX);
        let clear = slowest.admit(u64::MAX - 1, u64::MAX - 1, u32::MAX).unwrap();
        assert_eq!(clear, u64::MAX);
        assert_eq!(slowest.owe(u64::MAX, 0, u32::MAX), u64::MAX);
        assert_eq!(slowest.give_back(5, u32::MAX), 0);
        let strict = cores(0.000_001, Duration::ZERO);
        let wait = strict.admit(u64::MAX, 0, u32::MAX).unwrap_err();
        assert_eq!(wait, Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn cores_are_a_millionth_to_four_thousand() {
        for right in [0.000_001, 0.5, 1.0, 64.0, 4000.0] {
            assert!(Cores::new(right).is_some(), "{right}");
        }
        for wrong in [
            0.0,
            -1.0,
            0.000_000_4,
            4001.0,
            f64::NAN,
            f64::INFINITY,
            -f64::INFINITY,
        ] {
            assert!(Cores::new(wrong).is_none(), "{wrong}");
        }
    }

    /// A token bucket as everybody draws it, in nanoseconds of earning: a level that grows with time up
    /// to the burst, and falls by what is admitted.
    struct Bucket {
        level: i128,
        burst: i128,
        at: u64,
    }

    impl Bucket {
        fn admit(&mut self, now: u64, earning: i128) -> bool {
            self.level = self.burst.min(self.level + i128::from(now - self.at));
            self.at = now;
            let admitted = self.level >= earning.min(self.burst);
            if admitted {
                self.level -= earning;
            }
            admitted
        }
    }

    proptest! {
        #[test]
        fn it_admits_what_a_token_bucket_does(
            millionths in prop::sample::select(vec![1_000_u32, 50_000, 500_000, 1_000_000, 4_000_000]),
            burst in 0..5_000_u64,
            asked in prop::collection::vec((0..3_000_000_u64, 1..4_000_u32), 1..200),
        ) {
            let rate = cores(f64::from(millionths) / 1e6, Duration::from_micros(burst));
            // These rates earn a microsecond in a whole number of nanoseconds.
            let micro = i128::from(SECOND / u64::from(millionths));
            let burst = i128::from(burst) * micro;
            let mut bucket = Bucket { level: burst, burst, at: 0 };
            let (mut clear, mut now) = (0, 0);
            for (later, cost) in asked {
                now += later;
                let admitted = rate.admit(clear, now, cost);
                let expected = bucket.admit(now, i128::from(cost) * micro);
                prop_assert_eq!(admitted.is_ok(), expected);
                match admitted {
                    Ok(later) => clear = later,
                    Err(wait) => {
                        let wait = u64::try_from(wait.as_nanos()).unwrap();
                        prop_assert!(rate.admit(clear, now + wait - 1, cost).is_err());
                        prop_assert!(rate.admit(clear, now + wait, cost).is_ok());
                    }
                }
            }
        }

        #[test]
        fn what_is_given_back_is_as_if_it_had_not_been_admitted(
            clear in 0..10 * SECOND,
            now in 0..SECOND,
            cost in 1..1_000_000_u32,
            next in 1..1_000_000_u32,
        ) {
            let rate = cores(0.25, Duration::from_secs(2));
            if let Ok(later) = rate.admit(clear, now, cost) {
                let back = rate.give_back(later, cost);
                prop_assert_eq!(rate.admit(back, now, next), rate.admit(clear, now, next));
            }
        }
    }

    fn requests(per_second: u32, burst: u32) -> Rate {
        let number = |number| NonZeroU32::new(number).unwrap();
        Rate::requests(number(per_second), number(burst))
    }

    fn cores(cores: f64, burst: Duration) -> Rate {
        Rate::cores(Cores::new(cores).unwrap(), burst)
    }
}
