//! Many replicas under faults: real processes, a load of every operation, and what may never happen.
//!
//! ```text
//! tests/cluster/run                the short form, 38 faults
//! tests/cluster/run 2000           as many
//! tests/cluster/run 2000 SEED      the same plan again
//! tests/cluster/run --sqlite 100   one replica over SQLite, and the faults that there are then
//! ```
//!
//! SIGTERM or SIGINT ends the plan early, and then there is a report too.
//!
//! With MAX_STALENESS=30s in the environment replicas believe what they know for longer than is
//! checked. Then the run must fail; otherwise it sees nothing.
//!
//! In the end each replica is stopped by SIGTERM and started again while others call, as an upgrade and
//! a downgrade do it: OTHER_KMSGATE in the environment is the other version, the same one without it, and
//! ROLLS how often they are all stopped, 2 without it.
//!
//! `docs/reliability.md` says what is checked, and what came of it. This is an example and not a test
//! so that `cargo test`, which needs a toolchain and nothing else, builds it and runs the tests of its
//! parts, and not the whole.

#![allow(clippy::print_stdout, reason = "the report")]

mod calm;
mod checker;
mod faults;
mod history;
mod load;
mod processes;
mod proxy;
mod random;
mod report;
mod rolling;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};

use crate::checker::Life;
use crate::faults::{Fault, Round, plan};
use crate::history::{Spec, Track};
use crate::load::{Callers, Load, Pulse};
use crate::processes::{Cluster, Programs};
use crate::random::Random;
use crate::report::Report;

/// How long a replica may take to serve again once everything is mended.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many keys are looked at again in the end.
const SAMPLE: usize = 300;

#[derive(Debug)]
struct Arguments {
    faults: usize,
    seed: u64,
    sqlite: bool,
    /// How often all replicas are stopped and started again at the end.
    rolls: usize,
    programs: Programs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::read();
    let run = PathBuf::from(format!("target/cluster/{}", arguments.seed));
    let _ = fs::remove_dir_all(&run);
    fs::create_dir_all(&run).unwrap();
    let run = run.canonicalize().unwrap();
    let stop = AtomicBool::new(false);
    // Processes end with their cluster, which is dropped when this is told to stop at once.
    let passed = tokio::select! {
        passed = whole(&arguments, &run, &stop) => passed,
        () = told_twice(&stop) => false,
    };
    if passed {
        fs::remove_dir_all(&run).unwrap();
        ExitCode::SUCCESS
    } else {
        println!("FAILED; logs and files: {}", run.display());
        println!(
            "again: tests/cluster/run {} {}",
            arguments.faults, arguments.seed
        );
        ExitCode::FAILURE
    }
}

/// The first SIGTERM or SIGINT ends the plan early, with its report; the second ends everything.
async fn told_twice(stop: &AtomicBool) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    for _ in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    }
}

/// Runs the plan, and tells whether nothing happened that may not.
async fn whole(arguments: &Arguments, run: &Path, stop: &AtomicBool) -> bool {
    let mut random = Random::new(arguments.seed);
    let (members, replicas) = if arguments.sqlite { (0, 1) } else { (3, 3) };
    let mounts = arguments.programs.mounts;
    let rounds = plan(arguments.faults, !arguments.sqlite, mounts, &mut random);
    println!("seed {}, {} faults", arguments.seed, arguments.faults);
    let cluster = Cluster::start(&arguments.programs, run, members, replicas).await;
    let callers = Callers::new(&cluster.replicas);
    let probe = first_key(&callers).await;
    let mut report = Report::default();
    let _ = recovery(&callers, &probe).await;
    clocks_jump(&cluster, &callers).await;
    let load = Load::start(&callers, arguments.sqlite, &mut random);
    let pulse = Pulse::start(&callers, &probe);

    let number = rounds.len();
    for (at, round) in rounds.into_iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Round { faults, hold, .. } = round.clone();
        let names = round.names();
        pulse.begin();
        let failed = round.run(&cluster, &callers.book).await;
        let recovered = recovery(&callers, &probe).await;
        if recovered.iter().all(|time| *time < PATIENCE) {
            pulse.heard(callers.book.now()).await;
        }
        let silent = pulse.longest();
        println!(
            "{}/{number} {names}, {hold:.1?}: silent {silent:.2?}, again after {recovered:.2?}",
            at + 1
        );
        report.add(&faults, &failed, silent, &recovered);
        for process in cluster.processes() {
            let Some(status) = process.ended_by_itself() else {
                continue;
            };
            process.kill();
            process.start();
            // A member that could not write may still be about to end when there is room again.
            if faults.contains(&Fault::FillDisk) && process.name.starts_with("member") {
                continue;
            }
            callers
                .book
                .wrong(&format!("{} ended: {status}", process.name));
        }
        if recovered.iter().any(|time| *time >= PATIENCE) {
            callers
                .book
                .wrong(&format!("no replica may be away so long: {recovered:?}"));
            break;
        }
    }

    drop(pulse);
    let keys = load.stop().await;
    if !arguments.sqlite {
        report.calm = calm::stops(&callers).await;
        println!("killing and stopping the leading member in turn");
        report.elections = calm::elections(&cluster, &callers).await;
        let Programs { kmsgate, other, .. } = &arguments.programs;
        println!("stopping and starting one replica after the other");
        let rolled = rolling::roll(&cluster, &probe.id, [other, kmsgate], arguments.rolls).await;
        for wrong in &rolled.wrong {
            callers.book.wrong(wrong);
        }
        report.rolled = rolled;
    }
    println!("{keys} keys have lived; looking at everything once more");
    finish(&callers, &mut random, &mut report).await;
    report.check(&callers.book, load::operations(arguments.sqlite));
    let text = report.text(&callers.book, arguments.seed);
    println!("\n{text}");
    report.passed(&callers.book)
}

/// The key by which recovery is seen: there from the beginning, and never changed.
async fn first_key(callers: &Callers) -> Arc<Track> {
    let began = Instant::now();
    loop {
        if let Some(key) = callers.create(0, Spec::Aes256).await {
            return key;
        }
        assert!(began.elapsed() < PATIENCE, "no replica serves");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sees that the wall clock of each replica can be made to jump: a fault that does nothing would show
/// nothing.
async fn clocks_jump(cluster: &Cluster, callers: &Callers) {
    for (number, replica) in cluster.replicas.iter().enumerate() {
        for (offset, hours) in [("+1h", 1), ("-1h", -1), ("+0", 0)] {
            replica.set_clock(offset);
            let began = Instant::now();
            loop {
                let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
                let expected = i64::try_from(now).unwrap() + hours * 3_600_000;
                let read = callers.wall_clock(number).await;
                if read.is_some_and(|read| (read - expected).abs() < 60_000) {
                    break;
                }
                assert!(
                    began.elapsed() < PATIENCE,
                    "the clock of {} does not jump by {offset}: {read:?}",
                    replica.process.name
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// How long each replica takes until it reads the store and encrypts.
async fn recovery(callers: &Callers, probe: &Arc<Track>) -> Vec<Duration> {
    let began = Instant::now();
    let replicas = (0..callers.replicas()).map(|replica| {
        let (callers, probe) = (callers.impatient(), Arc::clone(probe));
        tokio::spawn(async move {
            loop {
                let reads = callers.describe(replica, &probe).await.is_some();
                let took = began.elapsed();
                if (reads && callers.encrypt(replica, &probe, vec![1]).await.is_some())
                    || took > PATIENCE
                {
                    return began.elapsed();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    });
    let mut times = Vec::new();
    for replica in replicas.collect::<Vec<_>>() {
        times.push(replica.await.unwrap());
    }
    times
}

/// Looks at a sample of all keys once more: each has the versions that were acknowledged, and each of
/// its ciphertexts that were kept opens at every replica.
async fn finish(callers: &Callers, random: &mut Random, report: &mut Report) {
    let book = &callers.book;
    let mut keys = book.keys();
    random.shuffle(&mut keys);
    keys.truncate(SAMPLE);
    let restorations = book.restorations();
    for key in &keys {
        if !load::enable(callers, key, random, PATIENCE).await {
            let last = callers.describe(0, key).await.map(|key| key.life);
            let gone = !restorations.is_empty() && last == Some(Life::Absent);
            if gone {
                report.gone += 1;
            } else {
                book.wrong(&format!("key {} does not become enabled: {last:?}", key.id));
            }
            continue;
        }
        let acknowledged = key.acknowledged(&restorations);
        for replica in 0..callers.replicas() {
            let described = again(async || callers.describe(replica, key).await).await;
            let version = described.map_or(0, |key| key.version);
            if version < acknowledged {
                book.wrong(&format!(
                    "version {acknowledged} of {} is lost: {version}",
                    key.id
                ));
            }
            for sealed in key.sealed(&restorations) {
                let opened = again(async || {
                    let opened = callers.decrypt(replica, key, &sealed).await;
                    opened.then_some(())
                });
                if opened.await.is_some() {
                    report.opened += 1;
                } else {
                    book.wrong(&format!(
                        "replica {replica} does not open a ciphertext of {}",
                        key.id
                    ));
                }
            }
        }
        report.looked_at += 1;
    }
}

/// Asks up to three times: an answer may be lost also when nothing is wrong.
async fn again<A>(ask: impl AsyncFn() -> Option<A>) -> Option<A> {
    for _ in 0..2 {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ask().await
}

impl Arguments {
    /// Reads `[--sqlite] [FAULTS [SEED]]`, and from the environment which programs to run.
    fn read() -> Self {
        let mut sqlite = false;
        let mut numbers = Vec::new();
        for argument in std::env::args().skip(1) {
            match argument.parse::<u64>() {
                Ok(number) => numbers.push(number),
                Err(_) if argument == "--sqlite" => sqlite = true,
                Err(_) => panic!("usage: cluster [--sqlite] [FAULTS [SEED]], not {argument}"),
            }
        }
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let program = |name: &str, usual: &str| {
            PathBuf::from(std::env::var_os(name).unwrap_or_else(|| usual.into()))
        };
        Self {
            faults: numbers
                .first()
                .map_or(38, |&faults| usize::try_from(faults).unwrap()),
            seed: numbers.get(1).copied().unwrap_or(since.as_secs()),
            sqlite,
            rolls: std::env::var("ROLLS").map_or(2, |rolls| rolls.parse().unwrap()),
            programs: Programs {
                max_staleness: std::env::var("MAX_STALENESS").ok(),
                kmsgate: program("KMSGATE", "target/release/kmsgate"),
                other: std::env::var_os("OTHER_KMSGATE").map_or_else(
                    || program("KMSGATE", "target/release/kmsgate"),
                    PathBuf::from,
                ),
                mounts: std::env::var_os("MOUNTS").is_none_or(|said| said != "no"),
                etcd: program("ETCD", "etcd"),
                etcdctl: program("ETCDCTL", "etcdctl"),
                faketime: program(
                    "LIBFAKETIME",
                    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
                ),
            },
        }
    }
}
