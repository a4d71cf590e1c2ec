//! Many callers at once, some of whom are refused.

use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::{JoinSet, yield_now};
use tokio::time::Instant;

use crate::Outcome;
use crate::load::grpc::{self, Ended, Exchange};
use crate::load::{Call, Prepared, Span, Window, cpu_times};

/// How many requests in flight a caller has connections for; HTTP/2 lets more of them share these.
const LANES: usize = 128;

/// Callers of one server, each with connections of its own.
pub(crate) struct Crowd {
    pid: u32,
    callers: Vec<grpc::Call>,
}

/// What came of the requests of all callers.
pub(crate) struct Answers {
    /// Of each caller.
    pub(crate) callers: Vec<Tally>,
    /// Processor time of the server for an answer, of whatever kind.
    pub(crate) server_cpu: Duration,
    /// How much of the time the server was on a processor.
    pub(crate) server_busy: f64,
}

/// What came of the requests of one caller, per second.
pub(crate) struct Tally {
    pub(crate) served: f64,
    pub(crate) refused: f64,
    pub(crate) late: f64,
    latencies: Histogram<u64>,
}

impl Crowd {
    /// Has callers with these tokens make the same call over gRPC.
    pub(crate) fn new(call: &Prepared, tokens: &[String]) -> Outcome<Self> {
        let Call::Grpc(grpc) = &call.call else {
            return Err("a crowd calls over gRPC".into());
        };
        let callers = tokens.iter().map(|token| grpc.with_token(token));
        Ok(Self {
            pid: call.pid,
            callers: callers.collect::<Outcome<_>>()?,
        })
    }

    async fn connect(&self) -> Outcome<Vec<Vec<Exchange>>> {
        let mut callers = Vec::new();
        for caller in &self.callers {
            callers.push(caller.connect(LANES).await?);
        }
        Ok(callers)
    }

    /// Has each caller keep `in_flight` requests in flight.
    pub(crate) async fn closed(&self, in_flight: usize, window: Window) -> Outcome<Answers> {
        let callers = self.connect().await?;
        let span = Span::from_now(window);
        let meter = tokio::spawn(cpu_times(self.pid, span));
        let mut running = JoinSet::new();
        for (caller, exchanges) in callers.iter().enumerate() {
            for exchange in exchanges.iter().cycle().take(in_flight) {
                let mut exchange = exchange.clone();
                running.spawn(async move {
                    let mut seen = Vec::new();
                    loop {
                        let sent = Instant::now();
                        if sent >= span.end {
                            return Outcome::Ok((caller, seen));
                        }
                        let ended = exchange.attempt().await?;
                        let answered = Instant::now();
                        if span.contains(answered) {
                            seen.push((ended, answered - sent));
                        }
                    }
                });
            }
        }
        let mut counts = self.counts()?;
        while let Some(lane) = running.join_next().await {
            let (caller, seen) = lane??;
            for (ended, latency) in seen {
                counts[caller].add(ended, latency)?;
            }
        }
        answers(counts, meter.await??.0, span)
    }

    /// Has each caller send as many requests a second as `rates` says, evenly spaced, however many are not answered
    /// yet. The latency counts from the time at which a request was due.
    pub(crate) async fn open(&self, rates: &[f64], window: Window) -> Outcome<Answers> {
        let connections = self.connect().await?;
        let span = Span::from_now(window);
        let meter = tokio::spawn(cpu_times(self.pid, span));
        let start = Instant::now();
        let mut given = vec![0_u32; rates.len()];
        // Not all at the same time.
        let due = |caller: usize, given: u32| {
            let before = caller as f64 / rates.len() as f64;
            start + Duration::from_secs_f64((f64::from(given) + before) / rates[caller])
        };
        let mut counts = self.counts()?;
        let mut running = JoinSet::new();
        loop {
            let callers = 0..rates.len();
            let next = callers.map(|caller| (due(caller, given[caller]), caller));
            let (due, caller) = next.min().ok_or("no callers")?;
            if due >= span.end {
                break;
            }
            // As the pace of the other open loop: timers are too coarse.
            while Instant::now() < due {
                yield_now().await;
            }
            let exchanges = &connections[caller];
            let mut exchange = exchanges[given[caller] as usize % exchanges.len()].clone();
            given[caller] += 1;
            running.spawn(async move {
                let ended = exchange.attempt().await?;
                Outcome::Ok((caller, ended, due, Instant::now()))
            });
            while let Some(answer) = running.try_join_next() {
                let (caller, ended, due, answered) = answer??;
                if span.contains(answered) {
                    counts[caller].add(ended, answered - due)?;
                }
            }
        }
        // What is not answered by now is answered too late to count.
        running.shutdown().await;
        answers(counts, meter.await??.0, span)
    }

    fn counts(&self) -> Outcome<Vec<Count>> {
        let counts = self.callers.iter().map(|_| Count::new());
        counts.collect()
    }
}

/// The answers of one caller so far.
struct Count {
    served: u32,
    refused: u32,
    late: u32,
    latencies: Histogram<u64>,
}

impl Count {
    fn new() -> Outcome<Self> {
        Ok(Self {
            served: 0,
            refused: 0,
            late: 0,
            latencies: Histogram::new(3)?,
        })
    }

    fn add(&mut self, ended: Ended, latency: Duration) -> Outcome<()> {
        match ended {
            Ended::Served => {
                self.served += 1;
                let nanos = u64::try_from(latency.as_nanos())?;
                self.latencies.record(nanos)?;
            }
            Ended::Refused => self.refused += 1,
            Ended::Late => self.late += 1,
        }
        Ok(())
    }
}

fn answers(counts: Vec<Count>, server: Duration, span: Span) -> Outcome<Answers> {
    let all = counts
        .iter()
        .map(|count| count.served + count.refused + count.late);
    let all: u32 = all.sum();
    if all == 0 {
        return Err("no request was answered in the time that counts".into());
    }
    let per_second = |count: u32| f64::from(count) / span.seconds();
    let callers = counts.into_iter().map(|count| Tally {
        served: per_second(count.served),
        refused: per_second(count.refused),
        late: per_second(count.late),
        latencies: count.latencies,
    });
    Ok(Answers {
        callers: callers.collect(),
        server_cpu: server / all,
        server_busy: server.as_secs_f64() / span.seconds(),
    })
}

impl Answers {
    /// How many requests were served in a second.
    pub(crate) fn goodput(&self) -> f64 {
        self.callers.iter().map(|caller| caller.served).sum()
    }

    /// How many were refused.
    pub(crate) fn refused(&self) -> f64 {
        self.callers.iter().map(|caller| caller.refused).sum()
    }

    /// Jain's index of what the callers got: 1 if all got the same, 1/n if one of n got everything.
    pub(crate) fn jain(&self) -> f64 {
        let squares = self.callers.iter().map(|caller| caller.served.powi(2));
        self.goodput().powi(2) / (self.callers.len() as f64 * squares.sum::<f64>())
    }
}

/// The latency of served requests of some callers at a quantile; none if there is no such request.
pub(crate) fn latency(of: &[Tally], quantile: f64) -> Outcome<Option<Duration>> {
    let mut all = Histogram::<u64>::new(3)?;
    for caller in of {
        all.add(&caller.latencies)?;
    }
    let at = Duration::from_nanos(all.value_at_quantile(quantile));
    Ok((!all.is_empty()).then_some(at))
}
