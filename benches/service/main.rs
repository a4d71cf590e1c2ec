//! The service benchmark: EncryptData over both faces, beside an echo that does no work, in interleaved pairs.
//!
//! ```text
//!            ┌ taskset -c 0 ─────────────────────┐
//! load ─────►│ baseline: echo.rs, another process│  answers of the same size, nothing done for them
//! (core 1)   └───────────────────────────────────┘
//!   │        ┌ taskset -c 0 ─────────────────────┐
//!   └───────►│ subject: kmsgate dev              │  tokens, policy, key, cipher, audit
//!            └───────────────────────────────────┘
//! ```
//!
//! Both run from start to end and one of them is loaded at a time; which goes first changes from pair to pair. What is
//! printed are ratios with their spread, because absolute figures of a shared machine mean little from one hour to the
//! next. Nothing here asserts a speed: the run fails only if an answer was wrong. `benches/README.md` tells how to read
//! the tables.

#![allow(
    clippy::print_stdout,
    reason = "the tables are what this program is for"
)]

mod asymmetric;
mod echo;
mod keys;
mod load;
mod machine;
mod many;
mod overload;
mod report;
mod server;

use std::env;
use std::error::Error;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};

use crate::echo::Placement;
use crate::load::{Face, Figures, Prepared, Window};
use crate::machine::Cores;
use crate::report::{Case, Pair};
use crate::server::{Kind, Launch, Server};

/// What every fallible step answers. A person reads the error; no code tells one from another.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Measures EncryptData beside an echo, start to ready, and idle memory; prints Markdown.
#[derive(Parser)]
#[command(name = "service", bin_name = "cargo bench --bench service --")]
struct Args {
    /// A smoke run of less than a minute, whose figures mean little.
    #[arg(long)]
    quick: bool,

    /// How many pairs (baseline, subject) to measure for each row.
    #[arg(
        long,
        value_parser = value_parser!(u16).range(1..),
        default_value = "5",
        default_value_if("quick", "true", "2")
    )]
    pairs: u16,

    /// How long one measurement lasts.
    #[arg(
        long,
        value_parser = seconds,
        default_value = "3",
        default_value_if("quick", "true", "0.5")
    )]
    seconds: Duration,

    /// How long the load runs before each measurement, in seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds,
        default_value = "0.3",
        default_value_if("quick", "true", "0.1")
    )]
    warm_up: Duration,

    /// The sizes of the plaintext, in bytes.
    #[arg(
        long,
        value_parser = value_parser!(u16).range(1..=4096),
        value_delimiter = ',',
        default_value = "32,4096"
    )]
    plaintext: Vec<u16>,

    /// How many requests are kept in flight in the closed loop.
    #[arg(
        long,
        value_parser = value_parser!(u16).range(1..),
        value_delimiter = ',',
        default_value = "16,128"
    )]
    in_flight: Vec<u16>,

    /// The faces to load.
    #[arg(long, value_delimiter = ',', default_value = "grpc,rest")]
    face: Vec<Face>,

    /// What to measure: EncryptData under AES-256, RSA and SM2 beside their primitives, AES-256 while RSA_4096 has the
    /// processor busy, start to ready. Besides, `overload`: more asked for than can be done, or than a limit allows;
    /// `flat`: memory over very many operations, which takes minutes; and `many`: very many keys in etcd, which takes
    /// minutes and needs the program `etcd`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "symmetric,asymmetric,mixed,start"
    )]
    part: Vec<Part>,

    /// How many keys lie in the store when its start is timed; 0 leaves that part out.
    #[arg(
        long,
        default_value = "10000",
        default_value_if("quick", "true", "1000")
    )]
    keys: u32,

    /// How often each start is timed.
    #[arg(
        long,
        value_parser = value_parser!(u16).range(1..),
        default_value = "9",
        default_value_if("quick", "true", "3")
    )]
    starts: u16,

    /// How many keys `many` makes.
    #[arg(long, default_value = "1000000")]
    many_keys: u32,

    /// How many operations `flat` makes.
    #[arg(long, default_value = "10000000")]
    operations: u32,

    /// What to divide by: `echo`, `echo-single` or `echo-per-core`, by how its runtimes stand on the cores, or the path of
    /// a kmsgate binary (an older build, to see what a change did).
    #[arg(long, default_value = "echo")]
    baseline: Kind,

    /// What to measure: the path of a kmsgate binary, or `echo` (beside `echo`: how much the machine's noise is).
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kmsgate"))]
    subject: Kind,

    /// Worker threads of the servers' runtimes; by default as many as they have cores, which is one if pinned.
    #[arg(long)]
    workers: Option<NonZeroUsize>,

    /// The core that the servers are pinned to.
    #[arg(long, default_value = "0")]
    server_core: usize,

    /// The core that the load generator is pinned to.
    #[arg(long, default_value = "1")]
    load_core: usize,

    /// Pin nothing.
    #[arg(long)]
    no_pin: bool,

    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Symmetric,
    Asymmetric,
    Mixed,
    Start,
    Overload,
    Flat,
    Many,
}

/// How many calls in flight find the rate whose half is offered beside RSA.
const PEAK: u16 = 128;

/// RSA and SM2 need no long measurement: nothing but the processor decides.
const ASYMMETRIC: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut words = env::args().skip(1).peekable();
    let outcome = if words.next_if(|word| word == echo::ROLE).is_some() {
        echo::serve(words)
    } else if words.next_if(|word| word == asymmetric::ROLE).is_some() {
        asymmetric::repeat(words)
    } else if is_test(words) {
        return ExitCode::SUCCESS;
    } else {
        measure(&Args::parse())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("service: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `cargo test --benches` runs this program without `--bench` or with `--test`, and whatever other words libtest takes.
fn is_test(words: impl Iterator<Item = String>) -> bool {
    let words: Vec<_> = words.collect();
    let has = |word| words.iter().any(|given| given == word);
    has("--test") || !(has("--bench") || has("--help") || has("-h"))
}

/// Parses a duration that is not zero.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| "not a number")?;
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a time".into()),
    }
}

fn measure(args: &Args) -> Outcome<()> {
    let cores = if args.no_pin {
        Cores::Unpinned
    } else {
        Cores::pin(args.server_core, args.load_core)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        println!("{}\n", machine::line(&cores)?);
        println!(
            "Baseline: {}. Subject: {}. {} pairs, {:?} each after {:?} of warm-up.",
            args.baseline, args.subject, args.pairs, args.seconds, args.warm_up
        );
        if args.part.contains(&Part::Symmetric) {
            symmetric(args, &cores).await?;
        }
        if args.part.contains(&Part::Asymmetric) {
            asymmetric(args, &cores).await?;
        }
        if args.part.contains(&Part::Mixed) {
            mixed(args, &cores).await?;
        }
        if args.part.contains(&Part::Start) && args.keys > 0 {
            starts(args, &cores).await?;
        }
        if args.part.contains(&Part::Overload) {
            overload(args, &cores).await?;
        }
        if args.part.contains(&Part::Flat) {
            flat(args, &cores).await?;
        }
        if args.part.contains(&Part::Many) {
            many(args, &cores).await?;
        }
        Ok(())
    })
}

/// The closed loop over each face, size and number in flight; then the open loop at half the rate that the slower
/// side had.
async fn symmetric(args: &Args, cores: &Cores) -> Outcome<()> {
    let launch = launch(args, cores);
    let baseline = Server::start(&args.baseline, &launch)?;
    let subject = Server::start(&args.subject, &launch)?;
    let window = Window {
        warm_up: args.warm_up,
        length: args.seconds,
    };

    let mut closed = Vec::new();
    let mut open = Vec::new();
    for &face in &args.face {
        for &plaintext in &args.plaintext {
            let left = Prepared::new(&baseline, face, plaintext).await?;
            let right = Prepared::new(&subject, face, plaintext).await?;
            let mut peaks = [0.0_f64; 2];
            for &in_flight in &args.in_flight {
                let mut case = Case::new(face, plaintext, format!("{in_flight}"));
                for turn in 0..args.pairs {
                    let pair = pair(turn, &left, &right, async |side| {
                        load::closed(side, in_flight, window).await
                    });
                    case.add(pair.await?);
                }
                for (peak, rate) in peaks.iter_mut().zip(case.rates()) {
                    *peak = peak.max(rate);
                }
                closed.push(case);
            }
            let rate = peaks[0].min(peaks[1]) / 2.0;
            let mut case = Case::new(face, plaintext, format!("{rate:.0}/s"));
            for turn in 0..args.pairs {
                let pair = pair(turn, &left, &right, async |side| {
                    load::open(side, rate, window).await
                });
                case.add(pair.await?);
            }
            open.push(case);
        }
    }
    print!("{}", report::closed(&closed));
    print!("{}", report::open(&open));
    Ok(())
}

/// RSA and SM2 beside what an echo and the primitive allow.
async fn asymmetric(args: &Args, cores: &Cores) -> Outcome<()> {
    let Kind::Kmsgate(_) = args.subject else {
        return Ok(());
    };
    let launch = launch(args, cores);
    let echo = Server::start(&Kind::Echo(Placement::Shared), &launch)?;
    let subject = Server::start(&args.subject, &launch)?;
    let window = Window {
        warm_up: args.warm_up,
        length: args.seconds.min(ASYMMETRIC),
    };
    let rows = asymmetric::rows(&echo, &subject, cores, args.pairs, window).await?;
    print!("{}", report::asymmetric(&rows));
    Ok(())
}

/// AES-256 at half its peak rate, alone and while RSA_4096 decryption has all the processor time that is left.
async fn mixed(args: &Args, cores: &Cores) -> Outcome<()> {
    let Kind::Kmsgate(_) = args.subject else {
        return Ok(());
    };
    let subject = Server::start(&args.subject, &launch(args, cores))?;
    let window = Window {
        warm_up: args.warm_up,
        length: args.seconds,
    };
    let long = asymmetric::longest(&subject).await?;
    let mut cases = Vec::new();
    let mut decryptions = Vec::new();
    for &plaintext in &args.plaintext {
        let short = Prepared::new(&subject, Face::Grpc, plaintext).await?;
        let mut rates = Vec::new();
        for _ in 0..args.pairs {
            rates.push(load::closed(&short, PEAK, window).await?.rate);
        }
        let rate = report::median(rates.into_iter()) / 2.0;
        let mut case = Case::new(Face::Grpc, plaintext, format!("{rate:.0}/s"));
        for turn in 0..args.pairs {
            let disturbed = async || {
                let (long, short) = tokio::try_join!(
                    load::closed(&long, asymmetric::IN_FLIGHT, window),
                    load::open(&short, rate, window)
                )?;
                Outcome::Ok((long.rate, short))
            };
            let (decrypted, baseline, subject);
            if turn.is_multiple_of(2) {
                baseline = load::open(&short, rate, window).await?;
                (decrypted, subject) = disturbed().await?;
            } else {
                (decrypted, subject) = disturbed().await?;
                baseline = load::open(&short, rate, window).await?;
            }
            decryptions.push(decrypted);
            case.add(Pair { baseline, subject });
        }
        cases.push(case);
    }
    print!("{}", report::mixed(&cases, decryptions.into_iter()));
    Ok(())
}

/// Three times as much as can be done, and as a limit allows.
async fn overload(args: &Args, cores: &Cores) -> Outcome<()> {
    let Kind::Kmsgate(binary) = &args.subject else {
        return Ok(());
    };
    let window = Window {
        warm_up: args.warm_up,
        length: args.seconds,
    };
    let launch = launch(args, cores);
    let found = overload::measure(binary, &launch, args.pairs, window).await?;
    print!("{}", report::overload(&found)?);
    Ok(())
}

/// The memory of a server after each tenth of the operations.
async fn flat(args: &Args, cores: &Cores) -> Outcome<()> {
    let subject = Server::start(&args.subject, &launch(args, cores))?;
    let plaintext = args.plaintext.first().copied().unwrap_or(32);
    let call = Prepared::new(&subject, Face::Grpc, plaintext).await?;
    let window = Window {
        warm_up: Duration::ZERO,
        length: args.seconds,
    };
    let mut rows = Vec::new();
    let mut done = 0.0;
    for tenth in 1..=10 {
        while done < f64::from(args.operations) * f64::from(tenth) / 10.0 {
            let figures = load::closed(&call, PEAK, window).await?;
            done += figures.rate * window.length.as_secs_f64();
        }
        rows.push((done, machine::resident(subject.pid())?));
    }
    print!("{}", report::flat(&rows));
    Ok(())
}

/// A store with very many keys.
async fn many(args: &Args, cores: &Cores) -> Outcome<()> {
    let Kind::Kmsgate(binary) = &args.subject else {
        return Ok(());
    };
    let found = many::measure(binary, &launch(args, cores), args.many_keys).await?;
    print!("{}", report::many(&found));
    Ok(())
}

const fn launch<'a>(args: &'a Args, cores: &'a Cores) -> Launch<'a> {
    Launch {
        cores,
        workers: args.workers,
        sizes: args.plaintext.as_slice(),
    }
}

/// Measures both sides, the baseline first in every other turn, so that a drift of the machine favours neither.
async fn pair(
    turn: u16,
    baseline: &Prepared,
    subject: &Prepared,
    measure: impl AsyncFn(&Prepared) -> Outcome<Figures>,
) -> Outcome<Pair> {
    if turn.is_multiple_of(2) {
        let baseline = measure(baseline).await?;
        let subject = measure(subject).await?;
        Ok(Pair { baseline, subject })
    } else {
        let subject = measure(subject).await?;
        let baseline = measure(baseline).await?;
        Ok(Pair { baseline, subject })
    }
}

/// Fills a store with keys, then times how long a server takes to be ready on it, and how much memory it then has.
async fn starts(args: &Args, cores: &Cores) -> Outcome<()> {
    let launch = launch(args, cores);
    let mut rows = Vec::new();
    for (side, kind) in [("baseline", &args.baseline), ("subject", &args.subject)] {
        if let Kind::Kmsgate(binary) = kind {
            rows.extend(keys::starts(side, binary, &launch, args.keys, args.starts).await?);
        }
    }
    print!("{}", report::starts(&rows));
    Ok(())
}
