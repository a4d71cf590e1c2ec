//! The load generator: closed loop and open loop, over gRPC and REST, every answer checked.
//!
//! It must cost less than the server that it measures, so it speaks to `h2` and to the socket directly, with requests that
//! are encoded once. It runs on one thread; the server has another core.
//!
//! In the *closed loop* a fixed number of callers each send as soon as they are answered: it finds the peak rate. In the
//! *open loop* requests are due at fixed times whether or not earlier ones were answered, and the latency counts from the
//! time at which a request was due, so that a stall of the server is felt by every request that it delays.

pub(crate) mod crowd;
mod grpc;
mod rest;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use prost::Message;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::Outcome;
use crate::machine::cpu_time;
use crate::server::Server;

pub(crate) use crate::load::rest::{answer as rest_answer, body as rest_body};

/// How many callers the open loop may keep waiting at once. At half the peak rate a few would do; the others are for stalls.
const OPEN_LANES: usize = 128;

/// The bytes of a ciphertext for `plaintext` bytes under an AES key, as Huawei documents them: 124 + 16 for each begun or
/// full block.
pub(crate) const fn ciphertext_length(plaintext: usize) -> usize {
    124 + (plaintext / 16 + 1) * 16
}

/// How a server is called.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Face {
    /// HTTP/2 without TLS, 32 requests in flight on a connection.
    Grpc,
    /// HTTP/1.1 without TLS, one request in flight on a connection, kept alive.
    Rest,
}

impl Face {
    /// As a table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "gRPC",
            Self::Rest => "REST",
        }
    }
}

/// How long to load, and how long beforehand without counting.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}

/// What one measurement found.
pub(crate) struct Figures {
    /// Requests per second.
    pub(crate) rate: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    /// Processor time of the server for a request.
    pub(crate) server_cpu: Duration,
    /// How much of the time the server was on a processor: 1.0 is a full core.
    pub(crate) server_busy: f64,
    /// The same of the load generator. If this is 1.0 and the other is less, the figures are the generator's.
    pub(crate) load_busy: f64,
}

/// A server, a face and a size of plaintext, with one answer already checked in full.
pub(crate) struct Prepared {
    pid: u32,
    call: Call,
}

enum Call {
    Grpc(grpc::Call),
    Rest(rest::Call),
}

impl Prepared {
    /// Sends one request, takes its answer apart, and remembers what every other answer must look like.
    pub(crate) async fn new(server: &Server, face: Face, plaintext: u16) -> Outcome<Self> {
        let plaintext = usize::from(plaintext);
        let call = match face {
            Face::Grpc => Call::Grpc(grpc::Call::prepare(server, plaintext).await?),
            Face::Rest => Call::Rest(rest::Call::prepare(server, plaintext).await?),
        };
        Ok(Self {
            pid: server.pid(),
            call,
        })
    }

    /// The same for any method of the CryptoService, over gRPC. An answer is right if it begins with `answer`.
    pub(crate) async fn unary(
        server: &Server,
        method: &str,
        request: &impl Message,
        answer: &impl Message,
    ) -> Outcome<Self> {
        let call = grpc::Call::unary(server, method, request, answer).await?;
        Ok(Self {
            pid: server.pid(),
            call: Call::Grpc(call),
        })
    }
}

/// Keeps `in_flight` requests in flight.
pub(crate) async fn closed(at: &Prepared, in_flight: u16, window: Window) -> Outcome<Figures> {
    let lanes = usize::from(in_flight);
    match &at.call {
        Call::Grpc(call) => closed_loop(call.connect(lanes).await?, at.pid, window).await,
        Call::Rest(call) => closed_loop(call.connect(lanes).await?, at.pid, window).await,
    }
}

/// Sends `rate` requests a second, evenly spaced.
pub(crate) async fn open(at: &Prepared, rate: f64, window: Window) -> Outcome<Figures> {
    match &at.call {
        Call::Grpc(call) => open_loop(call.connect(OPEN_LANES).await?, at.pid, rate, window).await,
        Call::Rest(call) => open_loop(call.connect(OPEN_LANES).await?, at.pid, rate, window).await,
    }
}

/// What has one request in flight at a time.
trait Lane: Send + 'static {
    /// Sends the request, and checks the answer.
    fn call(&mut self) -> impl Future<Output = Outcome<()>> + Send;
}

async fn closed_loop<L: Lane>(lanes: Vec<L>, pid: u32, window: Window) -> Outcome<Figures> {
    let span = Span::from_now(window);
    let mut running = JoinSet::new();
    for mut lane in lanes {
        running.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let sent = Instant::now();
                if sent >= span.end {
                    return Ok(latencies);
                }
                lane.call().await?;
                let answered = Instant::now();
                if span.contains(answered) {
                    latencies.push(answered - sent);
                }
            }
        });
    }
    figures(running, pid, span).await
}

async fn open_loop<L: Lane>(
    lanes: Vec<L>,
    pid: u32,
    rate: f64,
    window: Window,
) -> Outcome<Figures> {
    let span = Span::from_now(window);
    let pace = Arc::new(Mutex::new(Pace {
        start: Instant::now(),
        interval: 1.0 / rate,
        given: 0.0,
    }));
    let mut running = JoinSet::new();
    for mut lane in lanes {
        let pace = Arc::clone(&pace);
        running.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let due = pace.lock().await.next().await;
                if due >= span.end {
                    return Ok(latencies);
                }
                lane.call().await?;
                if span.contains(due) {
                    latencies.push(due.elapsed());
                }
            }
        });
    }
    figures(running, pid, span).await
}

/// When requests of the open loop are due. The lanes without a request queue for it, so one of them waits for the clock
/// and the others cost nothing.
struct Pace {
    start: Instant,
    interval: f64,
    given: f64,
}

impl Pace {
    /// Waits until the next request is due and says when that was. It does not sleep: timers are a millisecond coarse, and
    /// the core is the generator's own. A request that is late already is due at once.
    async fn next(&mut self) -> Instant {
        let due = self.start + Duration::from_secs_f64(self.given * self.interval);
        self.given += 1.0;
        while Instant::now() < due {
            yield_now().await;
        }
        due
    }
}

/// The time that counts.
#[derive(Clone, Copy)]
struct Span {
    begin: Instant,
    end: Instant,
}

impl Span {
    fn from_now(window: Window) -> Self {
        let begin = Instant::now() + window.warm_up;
        let end = begin + window.length;
        Self { begin, end }
    }

    fn contains(self, instant: Instant) -> bool {
        (self.begin..self.end).contains(&instant)
    }

    fn seconds(self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }
}

/// Waits for the lanes, and makes figures of their latencies. The first wrong answer ends it all.
async fn figures(
    mut running: JoinSet<Outcome<Vec<Duration>>>,
    pid: u32,
    span: Span,
) -> Outcome<Figures> {
    let meter = tokio::spawn(cpu_times(pid, span));
    let mut histogram = Histogram::<u64>::new(3)?;
    while let Some(lane) = running.join_next().await {
        for latency in lane?? {
            histogram.record(u64::try_from(latency.as_nanos())?)?;
        }
    }
    if histogram.is_empty() {
        return Err("no request was answered in the time that counts".into());
    }
    let (server, load) = meter.await??;
    let quantile = |at| Duration::from_nanos(histogram.value_at_quantile(at));
    Ok(Figures {
        rate: histogram.len() as f64 / span.seconds(),
        p50: quantile(0.5),
        p99: quantile(0.99),
        p999: quantile(0.999),
        server_cpu: server.div_f64(histogram.len() as f64),
        server_busy: server.as_secs_f64() / span.seconds(),
        load_busy: load.as_secs_f64() / span.seconds(),
    })
}

/// The processor time that the server and this process use during the time that counts.
async fn cpu_times(pid: u32, span: Span) -> Outcome<(Duration, Duration)> {
    let own = std::process::id();
    sleep_until(span.begin).await;
    let before = (cpu_time(pid)?, cpu_time(own)?);
    sleep_until(span.end).await;
    Ok((cpu_time(pid)? - before.0, cpu_time(own)? - before.1))
}
