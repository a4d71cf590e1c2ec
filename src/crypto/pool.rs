//! The CPU pool: where work that takes long is done, off the async threads, bounded, and shared
//! fairly.
//!
//! A private RSA operation takes milliseconds and making an RSA key takes seconds. On an async
//! thread either would hold up every request behind it, so they queue here, and a symmetric call
//! never waits for them.
//!
//! Nor does it share its core with them as with an equal: the threads have a low priority, so what is
//! woken to answer a symmetric call runs soon, and they have the time that it leaves.
//!
//! **Whose turn it is.** Each caller has a line of its own. The next job is the first of the line
//! that has had the least processor time, where a line that was empty has had as much as the one that
//! is served (start-time fair queueing: Goyal, Vin and Cheng 1996). So who asks for much waits behind
//! itself, and who asks for little hardly waits. When all places are taken, the newest job of the
//! longest line loses its place.
//!
//! **How answers leave.** Waking an async thread for an answer costs two changes of the thread on its
//! core, which is a fifth of an SM2 decryption. So a thread that has more to do keeps its answers for
//! up to 600 µs and wakes once for all.
//!
//! **What waits for a device** takes no core but a thread, for as long as the device likes: a hardware module
//! may be slow, far away, or hang. It has [threads and lines of its own](Pool::with_devices), so that what
//! computes here goes on.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::crypto::Place;
use crate::domain::caller::Caller;
use crate::domain::key::ProjectId;

/// For how long what computes may keep an answer while others come, in microseconds of [cost](Pool::run).
const TOGETHER: u32 = 600;

/// Threads that compute, and bounded lines in front of them. The threads end with it.
pub struct Pool {
    cores: Arc<Shared>,
    devices: Option<Arc<Shared>>,
}

impl Pool {
    /// Starts `threads` threads, in front of which at most `places` jobs wait.
    pub fn new(threads: usize, places: usize) -> Result<Self, PoolError> {
        let cores = Shared::start("cpu", threads, places, TOGETHER)?;
        Ok(Self {
            cores,
            devices: None,
        })
    }

    /// Has `threads` more for work that waits for a device, in front of which as many jobs may wait as
    /// in front of the others.
    pub fn with_devices(mut self, threads: usize) -> Result<Self, PoolError> {
        let places = self.cores.lock().places;
        // What comes next may take seconds, so no answer is kept.
        self.devices = Some(Shared::start("device", threads, places, 0)?);
        Ok(self)
    }

    /// Does `job`, which takes about `cost` microseconds, at its `place` when it is the turn of
    /// `caller`. Without threads for devices, the others wait for them.
    ///
    /// A job that nobody waits for any longer, because its request was cancelled, is not begun.
    pub async fn run<T, F>(
        &self,
        caller: &Caller,
        place: Place,
        cost: u32,
        job: F,
    ) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let shared = match (place, &self.devices) {
            (Place::Device, Some(devices)) => devices,
            _ => &self.cores,
        };
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            job,
            answer,
            runtime: Handle::try_current().ok(),
        };
        let lost = shared.lock().add(name(caller), cost, Box::new(asked))?;
        shared.news.notify_one();
        if let Some(lost) = lost {
            lost.refuse();
        }
        answered.await.map_err(|_| PoolError::Stopped)?
    }

    /// What `caller` has of the pool.
    pub const fn share<'a>(&'a self, caller: &'a Caller) -> Share<'a> {
        Share { pool: self, caller }
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.all().map(|shared| shared.lock().waiting).sum()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Shared>> {
        [&self.cores].into_iter().chain(&self.devices)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for shared in self.all() {
            shared.lock().stopped = true;
            shared.news.notify_all();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} waiting)", self.waiting())
    }
}

/// The pool, for one caller.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    pool: &'a Pool,
    caller: &'a Caller,
}

impl Share<'_> {
    /// By what the caller's line is known.
    pub fn line(&self) -> (Arc<str>, ProjectId) {
        name(self.caller)
    }

    /// Does `job` as [`Pool::run`] does.
    pub async fn run<T, F>(&self, place: Place, cost: u32, job: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.pool.run(self.caller, place, cost, job).await
    }
}

/// What the threads share.
struct Shared {
    lines: Mutex<Lines>,
    /// A job was added, or the pool stopped.
    news: Condvar,
    /// For how long an answer may be kept while others come, in microseconds of cost. No job is begun
    /// that would keep it longer.
    together: u32,
}

impl Shared {
    /// Starts threads that are called `kind`.
    fn start(
        kind: &str,
        threads: usize,
        places: usize,
        together: u32,
    ) -> Result<Arc<Self>, PoolError> {
        let shared = Arc::new(Self {
            lines: Mutex::new(Lines::new(places)),
            news: Condvar::new(),
            together,
        });
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("{kind}-{number}"))
                .spawn(move || shared.work())
                .map_err(|_| PoolError::Stopped)?;
        }
        Ok(shared)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // No job runs and nothing panics under the lock.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does job after job until the pool stops.
    fn work(&self) {
        step_back();
        let mut kept = Kept::default();
        let mut lines = self.lock();
        loop {
            if lines.stopped {
                return;
            }
            let Some(job) = lines.next() else {
                if kept.answers.is_empty() {
                    let woken = self.news.wait(lines);
                    lines = woken.unwrap_or_else(PoisonError::into_inner);
                } else {
                    drop(lines);
                    kept.hand_over();
                    lines = self.lock();
                }
                continue;
            };
            drop(lines);
            if kept.cost.saturating_add(job.cost) > self.together {
                kept.hand_over();
            }
            kept.cost = kept.cost.saturating_add(job.cost);
            kept.answers.extend(job.work.run());
            // A low priority makes a thread's turns rarer and not shorter: without this, what a tick of
            // the kernel lasts (4 ms) is what a request may wait behind private keys.
            thread::yield_now();
            if kept.cost >= self.together {
                kept.hand_over();
            }
            lines = self.lock();
            lines.running -= 1;
        }
    }
}

/// The answers that a thread has not handed over yet, and about how long their jobs took.
#[derive(Default)]
struct Kept {
    answers: Vec<Answer>,
    cost: u32,
}

impl Kept {
    /// Hands the answers over to those who wait for them.
    fn hand_over(&mut self) {
        self.cost = 0;
        let first = self
            .answers
            .first()
            .and_then(|answer| answer.runtime.clone());
        match first.filter(|_| self.answers.len() > 1) {
            // Told by a task, they wake no other thread than the one that runs it.
            Some(runtime) => {
                let answers = std::mem::take(&mut self.answers);
                runtime.spawn(async move { answers.into_iter().for_each(Answer::tell) });
            }
            None => self.answers.drain(..).for_each(Answer::tell),
        }
    }
}

/// An answer on its way.
struct Answer {
    tell: Box<dyn FnOnce() + Send>,
    runtime: Option<Handle>,
}

impl Answer {
    fn tell(self) {
        (self.tell)();
    }
}

/// By what a caller's line is known, as its limits are.
type Name = (Arc<str>, ProjectId);

fn name(caller: &Caller) -> Name {
    let (name, project) = caller.key();
    (Arc::clone(name), project.clone())
}

/// What waits, by caller.
struct Lines {
    of: HashMap<Name, Line>,
    /// How many jobs wait, and how many may.
    waiting: usize,
    places: usize,
    /// How many jobs are being done.
    running: usize,
    /// How much the line that was served last had had.
    served: u64,
    /// Counts jobs, so that the older of two is known.
    added: u64,
    stopped: bool,
}

/// The jobs of one caller, the oldest first.
#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    /// How much processor time the line has had, as far as it still counts.
    had: u64,
}

struct Job {
    work: Box<dyn Work>,
    cost: u32,
    number: u64,
}

impl Lines {
    fn new(places: usize) -> Self {
        Self {
            of: HashMap::new(),
            waiting: 0,
            places,
            running: 0,
            served: 0,
            added: 0,
            stopped: false,
        }
    }

    /// Puts a job at the end of its caller's line. If that took the place of another, returns it.
    fn add(
        &mut self,
        caller: Name,
        cost: u32,
        work: Box<dyn Work>,
    ) -> Result<Option<Box<dyn Work>>, PoolError> {
        let lost = if self.waiting < self.places {
            None
        } else {
            let own = self.of.get(&caller).map_or(0, |line| line.jobs.len());
            let longest = self.of.values_mut().max_by_key(|line| line.jobs.len());
            let longest = longest.filter(|line| line.jobs.len() > own + 1);
            let lost = longest.and_then(|line| line.jobs.pop_back());
            self.waiting -= 1;
            match lost {
                Some(lost) => Some(lost.work),
                None => {
                    self.waiting += 1;
                    return Err(PoolError::Full);
                }
            }
        };
        // Lines that are empty remember only what their callers have had; that may be forgotten.
        if self.of.len() > 2 * self.places {
            self.of.retain(|_, line| !line.jobs.is_empty());
        }
        let line = self.of.entry(caller).or_default();
        if line.jobs.is_empty() {
            line.had = line.had.max(self.served);
        }
        self.added += 1;
        line.jobs.push_back(Job {
            work,
            cost,
            number: self.added,
        });
        self.waiting += 1;
        Ok(lost)
    }

    /// The job whose turn it is; none if none waits.
    fn next(&mut self) -> Option<Job> {
        loop {
            let lines = self.of.values_mut();
            let turn = lines.filter_map(|line| Some(((line.had, line.jobs.front()?.number), line)));
            let Some((_, line)) = turn.min_by_key(|(turn, _)| *turn) else {
                // Nobody is owed anything when all have what they asked for.
                if self.running == 0 {
                    self.of.clear();
                }
                return None;
            };
            let job = line.jobs.pop_front()?;
            self.waiting -= 1;
            if job.work.is_wanted() {
                self.served = line.had;
                line.had = line.had.saturating_add(job.cost.into());
                self.running += 1;
                return Some(job);
            }
        }
    }
}

/// A job and who waits for it.
trait Work: Send {
    /// Whether somebody still does.
    fn is_wanted(&self) -> bool;

    /// Does it.
    fn run(self: Box<Self>) -> Option<Answer>;

    /// Tells that it is not done, because others took its place.
    fn refuse(self: Box<Self>);

    /// What a test calls it.
    #[cfg(test)]
    fn name(&self) -> &'static str {
        ""
    }
}

struct Asked<T, F> {
    job: F,
    answer: oneshot::Sender<Result<T, PoolError>>,
    runtime: Option<Handle>,
}

impl<T, F> Work for Asked<T, F>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send,
{
    fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }

    fn run(self: Box<Self>) -> Option<Answer> {
        let Self {
            job,
            answer,
            runtime,
        } = *self;
        let Ok(done) = std::panic::catch_unwind(AssertUnwindSafe(job)) else {
            tracing::error!("a job of the cpu pool panicked");
            return None;
        };
        // The caller may have gone meanwhile; then the answer is dropped, and wiped where it is
        // secret.
        let tell = Box::new(move || drop(answer.send(Ok(done))));
        Some(Answer { tell, runtime })
    }

    fn refuse(self: Box<Self>) {
        drop(self.answer.send(Err(PoolError::Full)));
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
    use crate::domain::caller::Actions;
    use std::sync::mpsc;
    use tokio::task::{JoinHandle, JoinSet, yield_now};

    #[test]
    fn callers_take_turns_by_what_their_jobs_cost() {
        let mut lines = Lines::new(100);
        for _ in 0..6 {
            add(&mut lines, "long", 300).unwrap();
        }
        for _ in 0..6 {
            add(&mut lines, "short", 100).unwrap();
        }
        // After the first of each, three short ones cost as much as a long one.
        let expected = "long short short short long short short short long long long long";
        assert_eq!(served(&mut lines).join(" "), expected);
    }

    #[test]
    fn who_comes_late_is_owed_nothing_for_before() {
        let mut lines = Lines::new(100);
        for _ in 0..5 {
            add(&mut lines, "early", 100).unwrap();
        }
        for _ in 0..3 {
            lines.next().unwrap();
        }
        for _ in 0..3 {
            add(&mut lines, "late", 100).unwrap();
        }
        let expected = "late early late early late";
        assert_eq!(served(&mut lines).join(" "), expected);
    }

    #[test]
    fn who_comes_back_has_had_what_it_had() {
        let mut lines = Lines::new(100);
        for _ in 0..4 {
            add(&mut lines, "many", 100).unwrap();
        }
        add(&mut lines, "one", 300).unwrap();
        let mut order = Vec::new();
        while let Some(job) = lines.next() {
            order.push(job.name());
            if job.name() == "one" && order.len() < 6 {
                // It asks for another as soon as it has been served.
                add(&mut lines, "one", 300).unwrap();
            }
        }
        assert_eq!(order.join(" "), "many one many many many one");
    }

    #[test]
    fn a_name_has_a_line_in_each_project() {
        let mut lines = Lines::new(100);
        for _ in 0..3 {
            add(&mut lines, "many", 100).unwrap();
        }
        let theirs = Caller {
            project: "another".parse().unwrap(),
            ..caller("many")
        };
        lines
            .add(name(&theirs), 100, Box::new(Named("theirs")))
            .unwrap();
        assert_eq!(served(&mut lines).join(" "), "many theirs many many");
    }

    #[test]
    fn the_longest_line_loses_its_newest_place() {
        let mut lines = Lines::new(3);
        for _ in 0..3 {
            assert_eq!(add(&mut lines, "greedy", 1), Ok(None));
        }
        assert_eq!(add(&mut lines, "greedy", 1), Err(PoolError::Full));
        assert_eq!(add(&mut lines, "polite", 1), Ok(Some("greedy")));
        // Two of one and one of another: a place more would only turn that round.
        assert_eq!(add(&mut lines, "polite", 1), Err(PoolError::Full));
        assert_eq!(served(&mut lines).join(" "), "greedy polite greedy");
        assert_eq!(lines.waiting, 0);
    }

    #[test]
    fn callers_without_end_take_no_memory_without_end() {
        let mut lines = Lines::new(4);
        for number in 0..1000 {
            let caller = name(&caller(&number.to_string()));
            lines.add(caller, 1, Box::new(Named("any"))).unwrap();
            lines.next().unwrap();
        }
        assert!(lines.of.len() <= 2 * lines.places + 1, "{}", lines.of.len());
    }

    #[tokio::test]
    async fn a_full_pool_refuses_at_once_and_then_recovers() {
        let pool = Arc::new(Pool::new(1, 1).unwrap());
        let hold = busy(&pool).await;
        let waits = ask(&pool, "a", || 2).await;
        assert_eq!(
            pool.run(&caller("a"), Place::Pool, 1, || 3).await,
            Err(PoolError::Full)
        );
        drop(hold);
        assert_eq!(waits.await.unwrap(), Ok(2));
        assert_eq!(pool.run(&caller("a"), Place::Pool, 1, || 3).await, Ok(3));
    }

    #[tokio::test]
    async fn who_loses_a_place_is_told() {
        let pool = Arc::new(Pool::new(1, 2).unwrap());
        let hold = busy(&pool).await;
        let [first, second] = [ask(&pool, "a", || 1).await, ask(&pool, "a", || 2).await];
        let third = ask(&pool, "b", || 3).await;
        assert_eq!(second.await.unwrap(), Err(PoolError::Full));
        drop(hold);
        assert_eq!(first.await.unwrap(), Ok(1));
        assert_eq!(third.await.unwrap(), Ok(3));
    }

    #[tokio::test]
    async fn a_job_that_nobody_waits_for_is_not_begun() {
        let pool = Arc::new(Pool::new(1, 10).unwrap());
        let hold = busy(&pool).await;
        let (begin, begun) = mpsc::channel();
        let unwanted = ask(&pool, "a", move || begin.send(()).is_ok()).await;
        unwanted.abort();
        assert!(unwanted.await.unwrap_err().is_cancelled());
        drop(hold);
        assert_eq!(pool.run(&caller("a"), Place::Pool, 1, || 1).await, Ok(1));
        assert!(begun.recv().is_err());
    }

    #[tokio::test]
    async fn every_answer_comes_however_many_leave_together() {
        let pool = Arc::new(Pool::new(2, 10_000).unwrap());
        let mut jobs = JoinSet::new();
        for (number, cost) in (0..1000).zip([1, 50, TOGETHER, 2 * TOGETHER].into_iter().cycle()) {
            let pool = Arc::clone(&pool);
            let caller = caller(&(number % 7).to_string());
            jobs.spawn(async move {
                (
                    number,
                    pool.run(&caller, Place::Pool, cost, move || number).await,
                )
            });
        }
        while let Some(job) = jobs.join_next().await {
            let (number, answer) = job.unwrap();
            assert_eq!(answer, Ok(number));
        }
        assert_eq!(pool.waiting(), 0);
    }

    #[tokio::test]
    async fn a_job_that_panics_fails_alone() {
        let pool = Pool::new(1, 1).unwrap();
        let answer: Result<(), _> = pool
            .run(&caller("a"), Place::Pool, 1, || panic!("a bug"))
            .await;
        assert_eq!(answer, Err(PoolError::Stopped));
        assert_eq!(pool.run(&caller("a"), Place::Pool, 1, || 1).await, Ok(1));
    }

    #[tokio::test]
    async fn the_threads_end_with_the_pool() {
        let pool = Pool::new(2, 2).unwrap().with_devices(2).unwrap();
        let all: Vec<_> = pool.all().map(Arc::downgrade).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(pool.run(&caller("a"), Place::Pool, 1, || 1).await, Ok(1));
        drop(pool);
        while all.iter().any(|shared| shared.strong_count() > 0) {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_device_that_hangs_holds_up_nothing_else() {
        let pool = Arc::new(Pool::new(1, 10).unwrap().with_devices(2).unwrap());
        let (hold, held) = mpsc::channel::<()>();
        let asking = Arc::clone(&pool);
        let hangs = tokio::spawn(async move {
            let hang = move || held.recv().is_ok();
            asking.run(&caller("a"), Place::Device, 1, hang).await
        });
        assert_eq!(pool.run(&caller("a"), Place::Device, 1, || 1).await, Ok(1));
        assert_eq!(pool.run(&caller("a"), Place::Pool, 1, || 2).await, Ok(2));
        assert!(!hangs.is_finished());
        drop(hold);
        assert_eq!(hangs.await.unwrap(), Ok(false));
    }

    #[tokio::test]
    async fn an_answer_of_a_device_does_not_wait_for_the_next_job() {
        let pool = Arc::new(Pool::new(1, 10).unwrap().with_devices(1).unwrap());
        let (hold, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel::<()>();
        let ask = |job: Box<dyn FnOnce() -> bool + Send>| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.run(&caller("a"), Place::Device, 1, job).await })
        };
        let first = ask(Box::new(move || begun.recv().is_ok()));
        let hangs = ask(Box::new(move || held.recv().is_ok()));
        while pool.waiting() == 0 {
            yield_now().await;
        }
        begin.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert!(!hangs.is_finished());
        drop(hold);
        assert_eq!(hangs.await.unwrap(), Ok(false));
    }

    #[tokio::test]
    async fn without_threads_for_devices_the_others_wait_for_them() {
        let pool = Pool::new(1, 1).unwrap();
        assert_eq!(pool.run(&caller("a"), Place::Device, 1, || 1).await, Ok(1));
    }

    #[tokio::test]
    async fn the_pool_steps_back_and_its_callers_do_not() {
        let priority = || getpriority_process(None).unwrap();
        let own = priority();
        let pool = Pool::new(2, 2).unwrap();
        for _ in 0..4 {
            assert_eq!(
                pool.run(&caller("a"), Place::Pool, 1, priority).await,
                Ok(own.max(LOW))
            );
        }
        assert_eq!(priority(), own);
        assert_eq!(briefly(priority).await, Ok(own));
    }

    fn caller(name: &str) -> Caller {
        Caller {
            name: name.into(),
            project: "p".parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::default(),
        }
    }

    /// A job that only has a name.
    struct Named(&'static str);

    impl Work for Named {
        fn is_wanted(&self) -> bool {
            true
        }

        fn run(self: Box<Self>) -> Option<Answer> {
            None
        }

        fn refuse(self: Box<Self>) {}

        fn name(&self) -> &'static str {
            self.0
        }
    }

    impl Job {
        fn name(&self) -> &'static str {
            self.work.name()
        }
    }

    /// Adds a job of this caller; the caller whose job lost its place, if one did.
    fn add(
        lines: &mut Lines,
        who: &'static str,
        cost: u32,
    ) -> Result<Option<&'static str>, PoolError> {
        let lost = lines.add(name(&caller(who)), cost, Box::new(Named(who)))?;
        Ok(lost.map(|work| work.name()))
    }

    /// Whose jobs come, in this order, until none is left.
    fn served(lines: &mut Lines) -> Vec<&'static str> {
        std::iter::from_fn(|| Some(lines.next()?.name())).collect()
    }

    /// Keeps the pool's one thread busy until what is returned is dropped.
    async fn busy(pool: &Arc<Pool>) -> mpsc::Sender<()> {
        let (hold, held) = mpsc::channel::<()>();
        ask(pool, "busy", move || held.recv().is_ok()).await;
        while pool.waiting() > 0 {
            yield_now().await;
        }
        hold
    }

    /// Asks for a job; returns when it is in a line.
    async fn ask<T: Send + 'static>(
        pool: &Arc<Pool>,
        who: &'static str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T, PoolError>> {
        let before = pool.cores.lock().added;
        let asking = Arc::clone(pool);
        let asked =
            tokio::spawn(async move { asking.run(&caller(who), Place::Pool, 1, job).await });
        while pool.cores.lock().added == before {
            yield_now().await;
        }
        asked
    }
}
