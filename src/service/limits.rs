//! What a caller may ask for over time, and what may be asked of a key.
//!
//! Each of three limits may be set or not: requests of a caller, charged by the layers in front;
//! processor time for a caller's work, and for the work with a key, charged here once the key is known
//! and before anything is done with it. Work is charged by what it costs ([`domain::cost`]), so a
//! thousand RSA decryptions weigh more than as many under AES.
//!
//! [`domain::cost`]: crate::domain::cost

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::caller::Caller;
use crate::domain::key::KeyId;
use crate::domain::rate::Rate;
use crate::domain::time::Stopwatch;
use crate::error::{Error, Kind};

/// The limits. Without any, which is the default, everything is admitted at no cost.
#[derive(Debug, Default)]
pub struct Limits {
    /// On each caller's requests.
    pub requests: Option<Limit>,
    /// On the processor time for each caller, in microseconds.
    pub caller: Option<Limit>,
    /// On the processor time for the work with each key, in microseconds.
    pub key: Option<Limit>,
}

impl Limits {
    /// Charges a caller for a request.
    pub fn request(&self, caller: &Caller) -> Result<(), Error> {
        let Some(limit) = &self.requests else {
            return Ok(());
        };
        let charged = limit.charge(limit.name(&caller.key()), 1);
        charged.map_err(|wait| throttled("The caller sends too many requests.", wait))
    }

    /// Charges a caller for work, and the key that it is done with if it is one.
    pub(super) fn work(
        &self,
        caller: &Caller,
        key_id: Option<KeyId>,
        micros: u32,
    ) -> Result<(), Error> {
        let charged = self.caller.as_ref().map(|limit| {
            let name = limit.name(&caller.key());
            let refused = |wait| throttled("The caller's processor time is used up.", wait);
            limit.charge(name, micros).map_err(refused)?;
            Ok::<_, Error>((limit, name))
        });
        let charged = charged.transpose()?;
        if let (Some(limit), Some(key_id)) = (&self.key, key_id) {
            let name = limit.name(&(key_id, &caller.project));
            limit.charge(name, micros).map_err(|wait| {
                if let Some((limit, name)) = charged {
                    limit.give_back(name, micros);
                }
                throttled("The key's processor time is used up.", wait)
            })?;
        }
        Ok(())
    }

    /// Notes work that was done for a caller and whose extent was not known before.
    pub(super) fn owe(&self, caller: &Caller, micros: u32) {
        if let Some(limit) = &self.caller {
            limit.owe(limit.name(&caller.key()), micros);
        }
    }
}

/// The refusal by a limit. The sentence says by which.
fn throttled(sentence: &'static str, wait: Duration) -> Error {
    Error::from(Kind::Throttled).detail(sentence).after(wait)
}

/// How many slots share a lock. Two cache lines.
const SLOTS: usize = 8;

/// How many locks there are: for 65,536 slots, in 1.1 MB.
const SETS: u64 = 8192;

/// One rate for each of any number of callers or keys, in bounded memory.
///
/// A slot has what a caller or a key owes. Who owes nothing needs none, so at any time no more slots are
/// needed than those whose debts are not paid: in the long run as many as the rate goes into what the
/// machine can do. If all slots where a newcomer belongs are needed nevertheless, the one who owes least
/// is let off.
///
/// A lock is held for some nanoseconds, and nothing is allocated.
pub struct Limit {
    rate: Rate,
    stopwatch: Arc<dyn Stopwatch>,
    /// Keyed at random, so that nobody can choose with whom to share a set.
    hasher: RandomState,
    sets: Box<[Mutex<[Slot; SLOTS]>]>,
    refused: AtomicU64,
}

/// What somebody owes.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Who. Two of a million share a name, and then a debt, with a probability of 2^-25.
    name: u64,
    /// From when on nothing is owed, in nanoseconds.
    clear: u64,
}

impl Limit {
    /// Grants `rate` to everybody.
    pub fn new(rate: Rate, stopwatch: Arc<dyn Stopwatch>) -> Self {
        Self {
            rate,
            stopwatch,
            hasher: RandomState::new(),
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
            refused: AtomicU64::new(0),
        }
    }

    /// How often it has refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// By what somebody is known here.
    fn name(&self, of: &impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Charges somebody, or says how long to wait.
    fn charge(&self, name: u64, cost: u32) -> Result<(), Duration> {
        let now = self.now();
        let charged = self.at(name, |slot| {
            slot.clear = self.rate.admit(slot.clear, now, cost)?;
            Ok(())
        });
        if charged.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        charged
    }

    /// Charges somebody for what was done unasked.
    fn owe(&self, name: u64, cost: u32) {
        let now = self.now();
        self.at(name, |slot| {
            slot.clear = self.rate.owe(slot.clear, now, cost);
        });
    }

    /// Takes a charge back.
    fn give_back(&self, name: u64, cost: u32) {
        self.at(name, |slot| {
            slot.clear = self.rate.give_back(slot.clear, cost);
        });
    }

    /// Does something with somebody's slot.
    fn at<T>(&self, name: u64, act: impl FnOnce(&mut Slot) -> T) -> T {
        let set = usize::try_from(name % SETS).unwrap_or_default();
        let set = self.sets.get(set);
        // No one panics under the lock.
        let set = set.map(|set| set.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(mut slots) = set else {
            // There are as many sets as there are remainders.
            return act(&mut Slot::default());
        };
        let [first, others @ ..] = &mut *slots;
        let mut slot = first;
        for other in others {
            if slot.name != name && (other.name == name || other.clear < slot.clear) {
                slot = other;
            }
        }
        if slot.name != name {
            *slot = Slot { name, clear: 0 };
        }
        act(slot)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.stopwatch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limit({:?})", self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::thread;
    use std::time::Instant;

    use crate::domain::caller::Actions;
    use crate::domain::rate::Cores;

    #[test]
    fn a_caller_waits_as_long_as_told_and_no_other_waits() {
        let (time, limit) = requests(2, 1);
        let limits = Limits {
            requests: Some(limit),
            ..Limits::default()
        };
        let (one, other) = (caller("one", "p"), caller("other", "p"));
        limits.request(&one).unwrap();
        let refused = limits.request(&one).unwrap_err();
        assert_eq!(refused.kind(), Kind::Throttled);
        assert_eq!(refused.pause(), Some(Duration::from_millis(500)));
        limits.request(&other).unwrap();
        limits.request(&caller("one", "q")).unwrap();
        time.pass(Duration::from_nanos(499_999_999));
        let refused = limits.request(&one).unwrap_err();
        assert_eq!(refused.pause(), Some(Duration::from_nanos(1)));
        time.pass(Duration::from_nanos(1));
        limits.request(&one).unwrap();
        assert_eq!(limits.requests.unwrap().refused(), 2);
    }

    #[test]
    fn work_is_charged_to_the_caller_and_to_the_key_or_to_neither() {
        let (time, caller_limit) = cores(1.0, Duration::from_millis(3));
        let key_limit = Limit::new(rate(1.0, Duration::from_millis(1)), time.clone());
        let limits = Limits {
            requests: None,
            caller: Some(caller_limit),
            key: Some(key_limit),
        };
        let (one, other) = (caller("one", "p"), caller("other", "p"));
        let (key, another) = (Some(key(1)), Some(key(2)));
        limits.work(&one, key, 1000).unwrap();
        // The key's time is used up, for every caller, and costs them nothing.
        for caller in [&one, &other] {
            for _ in 0..10 {
                let refused = limits.work(caller, key, 1000).unwrap_err();
                assert_eq!(refused.pause(), Some(Duration::from_millis(1)));
            }
        }
        // A key of the same id in another project is another key.
        limits.work(&caller("one", "q"), key, 1000).unwrap();
        limits.work(&one, another, 1000).unwrap();
        limits.work(&one, None, 1000).unwrap();
        // The caller's time is used up, and that costs no key anything.
        time.pass(Duration::from_micros(500));
        let refused = limits.work(&one, another, 900).unwrap_err();
        assert_eq!(refused.pause(), Some(Duration::from_micros(400)));
        limits.work(&other, another, 500).unwrap();
    }

    #[test]
    fn work_that_was_done_already_is_paid_off() {
        let (time, limit) = cores(0.5, Duration::from_millis(1));
        let limits = Limits {
            caller: Some(limit),
            ..Limits::default()
        };
        let one = caller("one", "p");
        limits.owe(&one, 10_000);
        let refused = limits.work(&one, None, 1).unwrap_err();
        // 9 ms and a microsecond, at half a core.
        assert_eq!(refused.pause(), Some(Duration::from_micros(18_002)));
        time.pass(Duration::from_micros(18_002));
        limits.work(&one, None, 1).unwrap();
    }

    #[test]
    fn without_limits_everything_is_admitted() {
        let limits = Limits::default();
        for _ in 0..1000 {
            limits.request(&caller("one", "p")).unwrap();
            limits
                .work(&caller("one", "p"), Some(key(1)), u32::MAX)
                .unwrap();
        }
    }

    #[test]
    fn a_million_callers_take_no_more_memory_than_one() {
        let (time, limit) = requests(1, 1);
        let taken = allocation_counter::measure(|| {
            for number in 0..1_000_000_u32 {
                time.pass(Duration::from_micros(1));
                let _ = limit.charge(limit.name(&number), 1);
            }
        });
        assert_eq!(taken.count_total, 0);
    }

    #[test]
    fn callers_who_owe_nothing_make_room_for_those_who_do() {
        let (time, limit) = requests(1, 1);
        let mut names = (1..).map(|turn| turn * SETS + 5);
        // All of one set, and none of them forgotten.
        let owing: Vec<u64> = names.by_ref().take(SLOTS).collect();
        for name in &owing {
            limit.charge(*name, 1).unwrap();
        }
        for name in &owing {
            assert!(limit.charge(*name, 1).is_err());
        }
        // A second later nothing is owed, and eight others take their place.
        time.pass(Duration::from_secs(1));
        let others: Vec<u64> = names.by_ref().take(SLOTS).collect();
        for name in &others {
            limit.charge(*name, 1).unwrap();
        }
        for name in &others {
            assert!(limit.charge(*name, 1).is_err());
        }
    }

    #[test]
    fn where_all_owe_the_one_who_owes_least_is_let_off() {
        let (time, limit) = requests(1, 1);
        let mut names = (1..).map(|turn| turn * SETS);
        let owing: Vec<u64> = names.by_ref().take(SLOTS).collect();
        for name in &owing {
            limit.charge(*name, 1).unwrap();
            time.pass(Duration::from_millis(10));
        }
        limit.charge(names.next().unwrap(), 1).unwrap();
        for name in &owing[1..] {
            assert!(limit.charge(*name, 1).is_err());
        }
        limit.charge(owing[0], 1).unwrap();
    }

    #[test]
    fn many_at_once_are_admitted_no_more_than_the_burst_and_the_rate() {
        let stopwatch = Arc::new(Real(Instant::now()));
        let limit = Limit::new(per_second(20_000, 500), stopwatch.clone());
        let admitted = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while stopwatch.elapsed() < Duration::from_millis(200) {
                        if limit.charge(7, 1).is_ok() {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let most = 500.0 + 20_000.0 * stopwatch.elapsed().as_secs_f64();
        let admitted = admitted.into_inner();
        assert!(admitted as f64 <= most, "{admitted} of {most}");
        // And not much less: they ask all the time.
        assert!(admitted >= 2_000, "{admitted}");
    }

    fn caller(name: &str, project: &str) -> Caller {
        Caller {
            roles: Arc::default(),
            name: name.into(),
            project: project.parse().unwrap(),
            actions: Actions::ALL,
        }
    }

    fn key(number: u8) -> KeyId {
        KeyId::from_random([number; 16])
    }

    fn requests(number: u32, burst: u32) -> (Arc<Still>, Limit) {
        let time = Arc::new(Still::default());
        (time.clone(), Limit::new(per_second(number, burst), time))
    }

    fn cores(number: f64, burst: Duration) -> (Arc<Still>, Limit) {
        let time = Arc::new(Still::default());
        (time.clone(), Limit::new(rate(number, burst), time))
    }

    fn per_second(number: u32, burst: u32) -> Rate {
        let some = |number| NonZeroU32::new(number).unwrap();
        Rate::requests(some(number), some(burst))
    }

    fn rate(number: f64, burst: Duration) -> Rate {
        Rate::cores(Cores::new(number).unwrap(), burst)
    }

    /// Time that passes when a test says so.
    #[derive(Debug, Default)]
    struct Still(AtomicU64);

    impl Still {
        fn pass(&self, time: Duration) {
            let nanos = u64::try_from(time.as_nanos()).unwrap();
            self.0.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    impl Stopwatch for Still {
        fn elapsed(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }
    }

    /// Time as it passes.
    #[derive(Debug)]
    struct Real(Instant);

    impl Stopwatch for Real {
        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }
    }
}
