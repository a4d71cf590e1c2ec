//! Two ways to do the same, measured in pairs: one right after the other, the order changing from
//! pair to pair, so that the ratio does not depend on what else the machine does.

#![allow(clippy::print_stdout, reason = "a benchmark's output")]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How many pairs a row is the median of.
pub(crate) const PAIRS: usize = 15;

const TURN: Duration = Duration::from_millis(100);

/// Prints the head of a table whose rows compare `subject` with `baseline`.
pub(crate) fn table(baseline: &str, subject: &str) {
    println!("\nmedian of {PAIRS} pairs        {baseline:>12} {subject:>12}   ratio (least, most)");
}

/// Measures a row and prints it.
pub(crate) fn row<T, U>(
    name: &str,
    mut baseline: impl FnMut() -> T,
    mut subject: impl FnMut() -> U,
) {
    let mut pairs: Vec<(f64, f64)> = (0..PAIRS)
        .map(|pair| {
            if pair % 2 == 0 {
                let baseline = rate(&mut baseline);
                (baseline, rate(&mut subject))
            } else {
                let subject = rate(&mut subject);
                (rate(&mut baseline), subject)
            }
        })
        .collect();
    let median = |of: fn(&(f64, f64)) -> f64, pairs: &mut Vec<(f64, f64)>| {
        pairs.sort_by(|a, b| of(a).total_cmp(&of(b)));
        of(&pairs[PAIRS / 2])
    };
    let baseline = median(|pair| pair.0, &mut pairs);
    let subject = median(|pair| pair.1, &mut pairs);
    let of = |pair: &(f64, f64)| pair.1 / pair.0;
    let ratio = median(of, &mut pairs);
    let (least, most) = (of(&pairs[0]), of(&pairs[PAIRS - 1]));
    println!(
        "{name:<22} {baseline:>10.0}/s {subject:>10.0}/s   {ratio:.2} ({least:.2}, {most:.2})"
    );
}

/// Calls a second, over one turn. The clock is not read after every call, because a short one takes
/// less time than that.
fn rate<T>(call: &mut impl FnMut() -> T) -> f64 {
    let began = Instant::now();
    let mut calls = 0;
    while began.elapsed() < TURN {
        // At most an eighth more than there were.
        let more = 1 + calls / 8;
        for _ in 0..more.min(64) {
            black_box(call());
        }
        calls += more.min(64);
    }
    f64::from(calls) / began.elapsed().as_secs_f64()
}
