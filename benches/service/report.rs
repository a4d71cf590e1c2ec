//! The tables: medians of the pairs, and of each pair's ratio, with the smallest and the largest ratio as the spread.

use std::time::Duration;

use crate::Outcome;
use crate::asymmetric::{Rates, Row};
use crate::keys::Start;
use crate::load::crowd::{Answers, latency};
use crate::load::{Face, Figures};
use crate::many::Found as Many;
use crate::overload::{Found, Rsa};

/// Two measurements, one right after the other.
pub(crate) struct Pair {
    pub(crate) baseline: Figures,
    pub(crate) subject: Figures,
}

/// What one row is about, and its pairs.
pub(crate) struct Case {
    face: Face,
    plaintext: u16,
    /// How it was loaded.
    load: String,
    pairs: Vec<Pair>,
}

impl Case {
    pub(crate) const fn new(face: Face, plaintext: u16, load: String) -> Self {
        Self {
            face,
            plaintext,
            load,
            pairs: Vec::new(),
        }
    }

    /// Adds a pair, and tells whoever waits at the terminal.
    pub(crate) fn add(&mut self, pair: Pair) {
        eprintln!(
            "{} {} B, {}: {:.0}/s p99 {} beside {:.0}/s p99 {}",
            self.face.name(),
            self.plaintext,
            self.load,
            pair.subject.rate,
            short(pair.subject.p99),
            pair.baseline.rate,
            short(pair.baseline.p99),
        );
        self.pairs.push(pair);
    }

    /// The median rates of the baseline and of the subject.
    pub(crate) fn rates(&self) -> [f64; 2] {
        [self.baseline(|figures| figures.rate), self.subject_rate()]
    }

    /// The median rate of the subject.
    pub(crate) fn subject_rate(&self) -> f64 {
        self.subject(|figures| figures.rate)
    }

    fn baseline(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        median(self.pairs.iter().map(|pair| of(&pair.baseline)))
    }

    fn subject(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        median(self.pairs.iter().map(|pair| of(&pair.subject)))
    }

    /// Subject by baseline, pair by pair: the median, and the extremes.
    fn ratio(&self, of: impl Fn(&Figures) -> f64) -> String {
        let ratios: Vec<f64> = self
            .pairs
            .iter()
            .map(|pair| of(&pair.subject) / of(&pair.baseline))
            .collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let middle = median(ratios.into_iter());
        format!("**{middle:.2}** ({least:.2}–{most:.2})")
    }

    /// Whether there was processor time that nobody here used, though a closed loop leaves none.
    fn is_disturbed(&self) -> bool {
        let busiest = |figures: &Figures| figures.server_busy.max(figures.load_busy);
        self.baseline(busiest) < 0.8 || self.subject(busiest) < 0.8
    }

    fn name(&self) -> String {
        format!("{} | {} | {}", self.face.name(), self.plaintext, self.load)
    }
}

/// The closed loop: rates, latencies, and what a request costs.
pub(crate) fn closed(cases: &[Case]) -> String {
    let mut text = String::from(
        "\n## Peak rate (closed loop), requests per second\n\n\
         | face | plaintext | in flight | baseline | subject | ratio (spread) | server busy | load busy |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for case in cases {
        let rate = |figures: &Figures| figures.rate;
        let server = |figures: &Figures| figures.server_busy * 100.0;
        let load = |figures: &Figures| figures.load_busy * 100.0;
        text += &format!(
            "| {} | {:.0} | {:.0} | {} | {:.0} / {:.0} % | {:.0} / {:.0} % |\n",
            case.name(),
            case.baseline(rate),
            case.subject(rate),
            case.ratio(rate),
            case.baseline(server),
            case.subject(server),
            case.baseline(load),
            case.subject(load),
        );
    }
    if cases.iter().any(Case::is_disturbed) {
        text += "\n**Something else used the machine**: in some rows neither the server nor the load generator had more \
                 than 80 % of its core. Rates and latencies are then the neighbours'; of this run, trust the processor time.\n";
    }
    text += "\n## Latency at the peak rate (closed loop), baseline / subject, microseconds\n\n\
         | face | plaintext | in flight | p50 | p99 | p99.9 | ratio of p99 (spread) |\n\
         |---|--:|--:|--:|--:|--:|--:|\n";
    text += &latencies(cases);
    text += "\n## Processor time of the server for a request, microseconds\n\n\
         | face | plaintext | in flight | baseline | subject | ratio (spread) |\n\
         |---|--:|--:|--:|--:|--:|\n";
    for case in cases {
        let cpu = |figures: &Figures| micros(figures.server_cpu);
        text += &format!(
            "| {} | {:.1} | {:.1} | {} |\n",
            case.name(),
            case.baseline(cpu),
            case.subject(cpu),
            case.ratio(cpu),
        );
    }
    text
}

/// The open loop: latencies at a rate that both were offered.
pub(crate) fn open(cases: &[Case]) -> String {
    String::from(
        "\n## Latency at half the slower side's peak rate (open loop), baseline / subject, microseconds\n\n\
         | face | plaintext | offered | p50 | p99 | p99.9 | ratio of p99 (spread) |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
    ) + &latencies(cases)
}

/// RSA and SM2 beside what an echo and the primitive allow.
pub(crate) fn asymmetric(rows: &[Row]) -> String {
    let mut text = String::from(
        "\n## RSA and SM2 over gRPC (closed loop), per second on one core\n\n\
         | key | direction | echo | primitive | together | call | ratio (spread) |\n\
         |---|---|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let middle = |of: fn(&Rates) -> f64| median(row.rates.iter().map(of));
        let ratios: Vec<f64> = row
            .rates
            .iter()
            .map(|rates| rates.call / rates.allowed())
            .collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        text += &format!(
            "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | **{:.2}** ({least:.2}–{most:.2}) |\n",
            row.spec.name(),
            row.direction.name(),
            middle(|rates| rates.echo),
            middle(|rates| rates.primitive),
            middle(|rates| rates.allowed()),
            middle(|rates| rates.call),
            median(ratios.into_iter()),
        );
    }
    text
}

/// The open loop alone and beside RSA; how often RSA decrypted meanwhile in a second.
pub(crate) fn mixed(cases: &[Case], decryptions: impl Iterator<Item = f64>) -> String {
    String::from(
        "\n## AES-256 at half its peak rate (open loop), alone / beside RSA_4096 decryption, microseconds\n\n\
         | face | plaintext | offered | p50 | p99 | p99.9 | ratio of p99 (spread) |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
    ) + &latencies(cases)
        + &format!(
            "\nBeside it RSA_4096 decrypted {:.0} times a second.\n",
            median(decryptions)
        )
}

/// One greedy caller and nine polite ones.
pub(crate) fn overload(found: &Found) -> Outcome<String> {
    let mut text = String::from(
        "\n## RSA_4096 decryption over gRPC (open loop), three times as much as can be done offered\n\n\
         | limit | peak /s | goodput /s | goodput / peak (spread) | Jain (spread) | a polite caller /s | the greedy one /s | \
         refused /s | late /s | p99 of the polite, ms | of the greedy, ms |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in &found.rsa {
        let each = |of: fn(&Answers) -> f64| median(row.turns.iter().map(|(_, turn)| of(turn)));
        let ratios = row.turns.iter().map(|(peak, turn)| turn.goodput() / peak);
        let jain = row.turns.iter().map(|(_, turn)| turn.jain());
        text += &format!(
            "| {} | {:.0} | {:.0} | {} | {} | {:.1} | {:.1} | {:.0} | {:.0} | {} | {} |\n",
            row.limit,
            median(row.turns.iter().map(|(peak, _)| *peak)),
            each(Answers::goodput),
            hundredths(ratios),
            hundredths(jain),
            each(|turn| {
                let polite = &turn.callers[..turn.callers.len() - 1];
                polite.iter().map(|caller| caller.served).sum::<f64>() / polite.len() as f64
            }),
            each(|turn| turn.callers.last().map_or(0.0, |greedy| greedy.served)),
            each(Answers::refused),
            each(|turn| turn.callers.iter().map(|caller| caller.late).sum()),
            p99(row, true)?,
            p99(row, false)?,
        );
    }
    text += "\n## EncryptData under AES-256 over gRPC (open loop), within the limit / three times it offered, microseconds\n\n\
         | limit | allowed /s | served /s | refused /s | p50 | p99 | ratio of p99 (spread) |\n\
         |---|--:|--:|--:|--:|--:|--:|\n";
    for row in &found.aes {
        let mut quantiles = Vec::new();
        for (within, over) in &row.turns {
            let at = |answers: &Answers, quantile| {
                let found = latency(&answers.callers, quantile)?;
                Outcome::Ok(micros(found.ok_or("nothing was served")?))
            };
            quantiles.push([
                (at(within, 0.5)?, at(over, 0.5)?),
                (at(within, 0.99)?, at(over, 0.99)?),
            ]);
        }
        let both = |of: fn(&Answers) -> f64| {
            format!(
                "{:.0} / {:.0}",
                median(row.turns.iter().map(|(within, _)| of(within))),
                median(row.turns.iter().map(|(_, over)| of(over))),
            )
        };
        let latencies = |which: usize| {
            format!(
                "{:.0} / {:.0}",
                median(quantiles.iter().map(|found| found[which].0)),
                median(quantiles.iter().map(|found| found[which].1)),
            )
        };
        text += &format!(
            "| {} | {:.0} | {} | {} | {} | {} | {} |\n",
            row.limit,
            row.allowed,
            both(Answers::goodput),
            both(Answers::refused),
            latencies(0),
            latencies(1),
            hundredths(quantiles.iter().map(|found| found[1].1 / found[1].0)),
        );
    }
    text += "\n## Processor time of the server for an answer (closed loop), EncryptData under AES-256 over gRPC\n\n\
         | answer | /s | server busy | microseconds (spread) | beside the first |\n\
         |---|--:|--:|--:|--:|\n";
    let cost = |answers: &Answers| micros(answers.server_cpu);
    let first = found.costs.first();
    let first = first.map_or(f64::NAN, |first| median(first.turns.iter().map(cost)));
    for row in &found.costs {
        let costs: Vec<f64> = row.turns.iter().map(cost).collect();
        let rate = |answers: &Answers| answers.goodput() + answers.refused();
        text += &format!(
            "| {} | {:.0} | {:.0} % | {} | {:.2} |\n",
            row.answer,
            median(row.turns.iter().map(rate)),
            median(row.turns.iter().map(|answers| answers.server_busy * 100.0)),
            spread(&costs),
            median(costs.iter().copied()) / first,
        );
    }
    Ok(text)
}

/// The p99 of the polite callers or of the greedy one, in milliseconds.
fn p99(row: &Rsa, polite: bool) -> Outcome<String> {
    let mut found = Vec::new();
    for (_, turn) in &row.turns {
        let (others, greedy) = turn.callers.split_at(turn.callers.len() - 1);
        let of = if polite { others } else { greedy };
        found.extend(latency(of, 0.99)?.map(|found| micros(found) / 1000.0));
    }
    Ok(format!("{:.0}", median(found.into_iter())))
}

/// The median and the extremes, to two places.
fn hundredths(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    let middle = median(values.into_iter());
    format!("**{middle:.2}** ({least:.2}–{most:.2})")
}

/// Memory after so many operations, beside that after the first of them.
pub(crate) fn flat(rows: &[(f64, u64)]) -> String {
    let mut text = String::from(
        "\n## Resident memory over many EncryptData\n\n\
         | operations | resident, KiB | beside the first |\n|--:|--:|--:|\n",
    );
    let first = rows.first().map_or(f64::NAN, |&(_, first)| first as f64);
    for &(done, resident) in rows {
        let beside = (resident as f64 / first - 1.0) * 100.0;
        text += &format!("| {done:.0} | {resident} | {beside:+.1} % |\n");
    }
    text
}

/// Very many keys.
pub(crate) fn many(found: &Many) -> String {
    let mib = |kib: u64| format!("{:.0} MiB", kib as f64 / 1024.0);
    let [idle, listed, used] = found.resident.map(mib);
    let spread = |times: &hdrhistogram::Histogram<u64>| {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| {
            Duration::from_micros(times.value_at_quantile(share)).as_secs_f64() * 1000.0
        });
        format!("{p50:.1}, {p99:.1}, {max:.1} ms")
    };
    let per_second = |count: f64, time: Duration| count / time.as_secs_f64();
    let rows = [
        (
            "made, per second",
            format!("{:.0}", per_second(f64::from(found.keys), found.creation)),
        ),
        ("etcd's database", mib(found.stored / 1024)),
        (
            "start to ready",
            format!("{:.0} ms", found.ready_after.as_secs_f64() * 1000.0),
        ),
        (
            "first page of 1000",
            format!("{:.1} s", found.first_page.as_secs_f64()),
        ),
        (
            "each other page: median, p99, longest",
            spread(&found.pages),
        ),
        (
            "first encryptions, each under another key, per second",
            format!("{:.0}", per_second(found.opened as f64, found.opening)),
        ),
        (
            "each of them: median, p99, longest",
            spread(&found.first_uses),
        ),
        ("resident after the start", idle),
        ("after listing all", listed),
        ("after using twice as many keys as are held", used),
    ];
    let mut text = format!("\n## {} keys in etcd\n\n| | |\n|---|--:|\n", found.keys);
    for (what, value) in rows {
        text += &format!("| {what} | {value} |\n");
    }
    text
}

/// Start to ready, and idle memory.
pub(crate) fn starts(starts: &[Start]) -> String {
    if starts.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\n## Start to ready, and idle memory\n\n\
         | | keys made | start to ready, ms (spread) | resident, MiB (spread) | keys made per second |\n\
         |---|--:|--:|--:|--:|\n",
    );
    for start in starts {
        let ready: Vec<f64> = start
            .ready_after
            .iter()
            .map(|&after| micros(after) / 1000.0)
            .collect();
        let resident: Vec<f64> = start
            .resident
            .iter()
            .map(|&kib| kib as f64 / 1024.0)
            .collect();
        let creation = start.creation.map_or_else(String::new, |took| {
            format!("{:.0}", f64::from(start.keys) / took.as_secs_f64())
        });
        text += &format!(
            "| {} | {} | {} | {} | {creation} |\n",
            start.side,
            start.keys,
            spread(&ready),
            spread(&resident),
        );
    }
    text
}

fn latencies(cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases {
        let p50 = |figures: &Figures| micros(figures.p50);
        let p99 = |figures: &Figures| micros(figures.p99);
        let p999 = |figures: &Figures| micros(figures.p999);
        text += &format!(
            "| {} | {:.0} / {:.0} | {:.0} / {:.0} | {:.0} / {:.0} | {} |\n",
            case.name(),
            case.baseline(p50),
            case.subject(p50),
            case.baseline(p99),
            case.subject(p99),
            case.baseline(p999),
            case.subject(p999),
            case.ratio(p99),
        );
    }
    text
}

/// The median and the extremes.
fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    let middle = median(values.iter().copied());
    format!("**{middle:.1}** ({least:.1}–{most:.1})")
}

/// The middle value, the mean of the two middle ones if their number is even; not a number if there is none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    let lower = values.len().saturating_sub(1) / 2;
    match (values.get(lower), values.get(upper)) {
        (Some(lower), Some(upper)) => (lower + upper) / 2.0,
        _ => f64::NAN,
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn short(duration: Duration) -> String {
    format!("{:.0} µs", micros(duration))
}
