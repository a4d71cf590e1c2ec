//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

use kmsgate::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kmsgate: {error}");
            ExitCode::FAILURE
        }
    }
}
