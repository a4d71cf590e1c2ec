//! Logs and metrics, set up once.
//!
//! A request costs two atomic additions and looks up no label: counts and durations stand in
//! arrays, by numbers that are fixed when the server starts, and get their names when they are
//! scraped.

use std::fmt;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use tracing::Level;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Log, LogFormat};

/// Sends log lines to standard error from now on, also those of panics. Fails if the filter is
/// malformed, or if it was called before.
///
/// Whatever the filter says, other crates are heard from `info` upwards: below it the HTTP
/// libraries quote requests.
pub fn log(log: &Log) -> Result<(), Failure> {
    let filter = filter(log)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let harmless = FilterFn::new(|line| *line.level() <= Level::INFO || is_ours(line.target()));
    tracing_subscriber::registry()
        .with(filter)
        .with(harmless.with_max_level_hint(Level::TRACE))
        .with(lines)
        .try_init()?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Says where a panic was and not what it says, which may quote a request.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(tracing::field::display);
    tracing::error!(location, "panicked");
}

/// Says whether [`log`] would accept the filter.
pub fn check(log: &Log) -> Result<(), Failure> {
    filter(log).map(|_| ())
}

/// Why there is no log.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn filter(log: &Log) -> Result<EnvFilter, Failure> {
    let filter = log.filter.parse();
    filter.map_err(|error| format!("log filter: {error}").into())
}

/// Whether a log line or a span is of this crate.
fn is_ours(target: &str) -> bool {
    let rest = target.strip_prefix("kmsgate");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The upper bounds of the histogram's buckets, in microseconds: 50 µs to 10 s.
const BOUNDS: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000,
];

/// How many requests ended how, and how long they took, by face and method.
#[derive(Debug)]
pub struct Requests {
    names: Names,
    /// One count for each code, method and face, in this order of significance from the last to the
    /// first.
    counts: Vec<AtomicU64>,
    /// One histogram for each method and face.
    durations: Vec<Histogram>,
    in_flight: AtomicI64,
}

/// The values of the labels, by number.
#[derive(Clone, Debug)]
pub struct Names {
    /// The faces.
    pub faces: &'static [&'static str],
    /// The methods.
    pub methods: &'static [&'static str],
    /// The codes.
    pub codes: Vec<&'static str>,
}

/// One request, by the numbers of its names.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Over which face.
    pub face: usize,
    /// Which method.
    pub method: usize,
    /// With which code.
    pub code: usize,
}

impl Requests {
    fn new(names: Names) -> Self {
        let methods = names.faces.len() * names.methods.len();
        Self {
            counts: (0..methods * names.codes.len())
                .map(|_| AtomicU64::new(0))
                .collect(),
            durations: (0..methods).map(|_| Histogram::default()).collect(),
            in_flight: AtomicI64::new(0),
            names,
        }
    }

    /// Counts a request that has begun.
    pub fn begun(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that is over, whether or not it was answered.
    pub fn over(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a request that was answered.
    pub fn ended(&self, ended: Ended, took: Duration) {
        let method = ended.face * self.names.methods.len() + ended.method;
        if let Some(count) = self
            .counts
            .get(method * self.names.codes.len() + ended.code)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(histogram) = self.durations.get(method) {
            histogram.observe(took);
        }
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let methods = || {
            let faces = self.names.faces.iter();
            faces.flat_map(|face| {
                self.names
                    .methods
                    .iter()
                    .map(move |method| (*face, *method))
            })
        };
        let help = "Requests that were answered, by face, method and documented code.";
        let mut family =
            encoder.encode_descriptor("kmsgate_requests", help, None, MetricType::Counter)?;
        let per_method = self.counts.chunks(self.names.codes.len());
        for ((face, method), counts) in methods().zip(per_method) {
            for (code, count) in self.names.codes.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let labels = [("face", face), ("method", method), ("code", code)];
                    ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "How long answered requests took.";
        let mut family = encoder.encode_descriptor(
            "kmsgate_request_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for ((face, method), histogram) in methods().zip(&self.durations) {
            let labels = [("face", face), ("method", method)];
            histogram.encode_into(family.encode_family(&labels)?)?;
        }
        let help = "Requests in work.";
        encoder
            .encode_descriptor("kmsgate_requests_in_flight", help, None, MetricType::Gauge)?
            .encode_gauge(&self.in_flight.load(Ordering::Relaxed))
    }
}

/// A histogram without a lock.
#[derive(Debug, Default)]
struct Histogram {
    /// One count per bound, and one for what is over the last.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn encode_into(
        &self,
        mut encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> fmt::Result {
        let counts = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let bounds = BOUNDS
            .iter()
            .map(|bound| seconds(*bound))
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return Ok(());
        }
        let sum = seconds(self.micros.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Microseconds as seconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of durations needs no more than 53 bits"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A number that is read when it is scraped.
struct Reading {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    read: Read,
}

/// How a number is read.
pub type Read = Box<dyn Fn() -> u64 + Send + Sync>;

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let value = (self.read)();
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, self.kind)?;
        match self.kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => metric.encode_gauge(&value),
        }
    }
}

/// Numbers of one kind that only grow, which a label tells apart.
struct Counters {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: Vec<(&'static str, Read)>,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
        for (value, read) in &self.read {
            let labels = [(self.label, *value)];
            ConstCounter::new(read()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    /// Requests.
    pub requests: Arc<Requests>,
    registry: Registry,
}

impl Metrics {
    /// Measures requests under these names.
    pub fn new(names: Names) -> Self {
        let mut registry = Registry::default();
        let requests = Arc::new(Requests::new(names));
        registry.register_collector(Box::new(Arc::clone(&requests)));
        Self { requests, registry }
    }

    /// Adds a number that goes up and down.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.register(name, help, MetricType::Gauge, Box::new(read));
    }

    /// Adds a number that only grows; `_total` is put behind its name.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.register(name, help, MetricType::Counter, Box::new(read));
    }

    /// Adds numbers that only grow, each with its value of a label.
    pub fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: Vec<(&'static str, Read)>,
    ) {
        self.registry.register_collector(Box::new(Counters {
            name,
            help,
            label,
            read,
        }));
    }

    fn register(&mut self, name: &'static str, help: &'static str, kind: MetricType, read: Read) {
        let reading = Reading {
            name,
            help,
            kind,
            read,
        };
        self.registry.register_collector(Box::new(reading));
    }

    /// All numbers in the OpenMetrics text format.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_panic_is_logged_by_its_place_and_not_by_its_words() {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        let lines = logged(|| {
            let _ = std::panic::catch_unwind(|| panic!("hunter2"));
        });
        std::panic::set_hook(before);
        assert!(lines.contains("ERROR"), "{lines}");
        assert!(
            lines.contains(concat!("location=", file!(), ":")),
            "{lines}"
        );
        assert!(!lines.contains("hunter2"), "{lines}");
    }

    #[test]
    fn a_request_is_counted_under_its_names_and_in_its_bucket() {
        let metrics = metrics();
        let ended = Ended {
            face: 1,
            method: 0,
            code: 1,
        };
        metrics.requests.ended(ended, Duration::from_micros(120));
        let text = metrics.text().unwrap();
        let labels = r#"face="rest",method="EncryptData""#;
        for line in [
            format!(r#"kmsgate_requests_total{{{labels},code="KMS.0207"}} 1"#),
            format!(r#"kmsgate_request_duration_seconds_bucket{{le="0.0001",{labels}}} 0"#),
            format!(r#"kmsgate_request_duration_seconds_bucket{{le="0.00025",{labels}}} 1"#),
            format!(r#"kmsgate_request_duration_seconds_bucket{{le="+Inf",{labels}}} 1"#),
            format!("kmsgate_request_duration_seconds_sum{{{labels}}} 0.00012"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(
            !text.contains("grpc"),
            "what never happened is not listed\n{text}"
        );
    }

    #[test]
    fn a_request_in_work_is_counted_until_it_is_over() {
        let metrics = metrics();
        metrics.requests.begun();
        assert!(
            metrics
                .text()
                .unwrap()
                .contains("kmsgate_requests_in_flight 1")
        );
        metrics.requests.over();
        assert!(
            metrics
                .text()
                .unwrap()
                .contains("kmsgate_requests_in_flight 0")
        );
    }

    #[test]
    fn a_reading_is_taken_when_it_is_scraped() {
        let mut metrics = metrics();
        metrics.gauge("kmsgate_opened_keys", "Keys held in memory.", || 7);
        metrics.counter("kmsgate_audit_lost", "Lost events.", || 3);
        let read: Vec<(_, Read)> = vec![("one", Box::new(|| 1)), ("two", Box::new(|| 2))];
        metrics.counters("kmsgate_throttled", "Refusals.", "limit", read);
        let text = metrics.text().unwrap();
        assert!(text.contains("kmsgate_opened_keys 7\n"), "{text}");
        assert!(text.contains("kmsgate_audit_lost_total 3\n"), "{text}");
        for line in [
            "kmsgate_throttled_total{limit=\"one\"} 1\n",
            "kmsgate_throttled_total{limit=\"two\"} 2\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    /// The log lines of some work.
    pub(crate) fn logged(work: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || to.clone());
        tracing::subscriber::with_default(subscriber.finish(), work);
        let lines = lines.0.lock().unwrap().clone();
        String::from_utf8(lines).unwrap()
    }

    fn metrics() -> Metrics {
        Metrics::new(Names {
            faces: &["grpc", "rest"],
            methods: &["EncryptData"],
            codes: vec!["OK", "KMS.0207"],
        })
    }
}
