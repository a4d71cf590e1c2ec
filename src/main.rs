//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

use kmsgate::cli::Cli;

/// musl's own allocator has one lock, for which the threads of a server would wait.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kmsgate: {error}");
            ExitCode::FAILURE
        }
    }
}
