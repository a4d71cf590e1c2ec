//! Does the time of a refusal tell what was wrong?
//!
//! A test in the manner of dudect (Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?", DATE 2017): two
//! classes of input, drawn at random and interleaved, and Welch's t between their times. |t| over 4.5 says that the
//! classes take different times; under it, that so many samples do not show it. `benches/README.md` tells how to read the
//! table.
//!
//! A control that leaks on purpose must be found out, else the run fails: a test that finds nothing anywhere shows nothing.

#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

mod measure;
#[path = "../../tests/scenarios/oaep.rs"]
mod oaep;
mod subjects;
mod welch;

use std::fs;
use std::process::ExitCode;

use clap::Parser;

use crate::subjects::{Cost, Subject};
use crate::welch::Verdict;

/// Compares how long refusals take that must look alike; prints Markdown, and fails if two do not.
#[derive(Parser)]
#[command(name = "dudect", bin_name = "cargo bench --bench dudect --")]
struct Args {
    /// Only what has this in its name; something beside the controls must. The controls are always run. "all" is
    /// everything, which takes hours; without a name nothing is measured.
    name: Option<String>,

    /// How many samples to take of what is fast, 20,000 or more.
    #[arg(long, default_value = "1000000", value_parser = enough)]
    samples: usize,

    /// How many samples to take of a private RSA operation, 20,000 or more.
    #[arg(long, default_value = "100000", value_parser = enough)]
    rsa_samples: usize,

    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The fewest samples whose faster half is enough for a cropped test, so that interruptions do not hide a difference.
const FEWEST: usize = 20_000;

/// A number of samples that shows something.
fn enough(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(samples) if samples >= FEWEST => Ok(samples),
        _ => Err(format!("a number from {FEWEST} on")),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Some(name) = &args.name else {
        println!("dudect: cargo bench --bench dudect -- NAME, or all");
        return ExitCode::SUCCESS;
    };
    let mut subjects = subjects::all();
    subjects.retain(|subject| {
        name == "all" || subject.control || subject.title().contains(name.as_str())
    });
    if subjects.iter().all(|subject| subject.control) {
        println!("dudect: nothing but the controls has \"{name}\" in its name");
        return ExitCode::FAILURE;
    }
    println!("{}\n", machine());
    println!(
        "| what | provider | one class | the other | samples | median | max \\|t\\| | where | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut failed = false;
    for subject in subjects {
        failed |= !run(subject, &args);
    }
    if failed {
        println!("\n**Not as expected.**");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Measures and prints a row; whether it is as expected.
fn run(subject: Subject, args: &Args) -> bool {
    let Subject {
        what,
        provider,
        classes: [one, other],
        cost,
        leaks,
        measure,
        ..
    } = subject;
    let samples = match cost {
        Cost::Light => args.samples,
        Cost::Rsa => args.rsa_samples,
    };
    let verdict: Verdict = welch::verdict(measure(samples));
    let expected = verdict.leaks() == leaks;
    let word = match (expected, leaks) {
        (true, false) => "alike",
        (true, true) => "found, as it must be",
        (false, false) => "**differ**",
        (false, true) => "**not found**",
    };
    println!(
        "| {what} | {provider} | {one} | {other} | {} | {} ns | {:.2} | {} | {word} |",
        verdict.samples, verdict.median, verdict.t, verdict.place
    );
    expected
}

/// What the figures were measured on.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    format!("Machine: {model}.")
}
