//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

use kmsgate::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kmsgate: {error}");
            ExitCode::FAILURE
        }
    }
}
