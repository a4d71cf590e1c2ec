//! The command line: what can be asked of the program, and which file does it.

mod client;
mod data;
mod dev;
mod dumps;
mod key;
mod operate;
mod policy;
mod root_key;
mod store;

use std::error::Error as StdError;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::cli::client::{Connection, TlsFiles};
use crate::cli::data::{Decrypt, Encrypt};
use crate::cli::key::KeyCommand;
use crate::cli::policy::Explain;
use crate::cli::store::Place;
use crate::domain::address::Address;

/// Why a command failed, for a person to read.
type Failure = Box<dyn StdError + Send + Sync>;

/// How long the program's end waits for what still runs on other threads.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Encrypts data under managed keys, over gRPC and over Huawei Cloud KMS's REST contract.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a server to try things out with: no configuration, first keys, and lines to paste
    Dev(Dev),
    /// Starts a server
    Serve(Serve),
    /// Starts a REST gateway in front of a remote kmsgate
    Gateway(Gateway),
    /// Checks a configuration file and the files that it names
    CheckConfig(Serve),
    /// Looks after the store
    #[command(subcommand)]
    Store(StoreCommand),
    /// Makes root keys, and replaces them
    #[command(subcommand)]
    RootKey(RootKeyCommand),
    /// Helps with token files
    #[command(subcommand)]
    Token(TokenCommand),
    /// Tells of the policy file
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Asks a running server to make, show and change keys
    Key {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Asks a running server to encrypt standard input, and prints the ciphertext in Base64
    Encrypt(Encrypt),
    /// Asks a running server to decrypt Base64 on standard input, and writes the plaintext
    Decrypt(Decrypt),
    /// Asks a running server whether it serves; exit code 0 if it does
    Health(Health),
}

/// Where `kmsgate dev` keeps and serves things.
#[derive(Debug, Args)]
struct Dev {
    /// Where everything is kept; delete it to start anew
    #[arg(long, value_name = "DIR", default_value = "./kmsgate-dev")]
    data: PathBuf,
    /// Where gRPC is served; port 0 for any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    grpc: SocketAddr,
    /// Where REST is served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    rest: SocketAddr,
    /// Where liveness, readiness and metrics are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9100")]
    admin: SocketAddr,
    /// Which log lines are written to standard error: a level, or levels per module
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Gateway {
    /// The gRPC address of the remote kmsgate, such as https://kmsgate:9090 or unix:/run/kmsgate/grpc.sock
    #[arg(long, value_name = "URL")]
    upstream: String,
    #[command(flatten)]
    upstream_tls: TlsFiles,
    /// Where REST is served: an address and a port, or unix: and a path
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    rest: Address,
    /// The certificate under which REST is served, in PEM; it is read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_certificate_file: Option<PathBuf>,
    /// That certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Serve REST in plain text also where other machines reach it
    #[arg(long, conflicts_with = "tls_certificate_file")]
    allow_plaintext: bool,
    /// Where liveness, readiness and metrics are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9100")]
    admin: Address,
    /// How long a request may take, create-key and list-keys 60 s if that is more: a number and ms, s or m
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: String,

    /// How long to go on after saying "not ready", so that whoever sends requests here hears of it
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    shutdown_lag: String,
    /// Which log lines are written to standard error
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Reads every record and says which are not as they were written; no server may run on it
    Check(Serve),
    /// Copies one store into another that is empty, and compares the two; no server may run on either.
    /// Run again, it goes on
    Copy {
        /// The configuration that names the root keys, in TOML; its store has a part in this if it is named
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The store to copy: sqlite:PATH, etcd:ENDPOINT with http on this machine, or `config` for
        /// that of the configuration
        #[arg(long, value_name = "STORE")]
        from: Place,
        /// The store to copy it into, named alike
        #[arg(long, value_name = "STORE")]
        to: Place,
    },
    /// Writes a copy of a running server's store to a new file, which a server can be started on
    Backup {
        /// The file; it must not exist
        file: PathBuf,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Subcommand)]
enum RootKeyCommand {
    /// Makes a root key in a new file, readable by its owner alone
    New {
        /// The file; it must not exist
        file: PathBuf,
    },
    /// Makes the root key that a configuration wants in a hardware module, which never lets it out
    NewInToken(Serve),
    /// Asks a running server to put every key and record under its first root key while it serves, so
    /// that previous ones can be taken out of the configuration; run again, it goes on
    Rotate {
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Reads a token on standard input and prints its SHA-256 for a token file
    Hash,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Says whether a caller may do something with a key, and which rule decides and why; exit code
    /// 0 if it may, 1 if it may not or the answer depends on what was not named, 2 if it cannot be told
    Explain(Explain),
}

#[derive(Debug, Args)]
struct Health {
    /// The gRPC address of the server, or unix: and a path; a health check needs no credential
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090")]
    server: String,
    #[command(flatten)]
    tls: TlsFiles,
}

impl Cli {
    /// Does what was asked, and says with which code the program ends.
    pub fn run(self) -> Result<ExitCode, Failure> {
        // Before anything is read: each command has a key, a token or a plaintext in its memory.
        dumps::forbid()?;
        match self.command {
            Command::Policy(PolicyCommand::Explain(explain)) => return Ok(explain.run()),
            Command::RootKey(RootKeyCommand::New { file }) => operate::new_root_key(&file),
            Command::RootKey(RootKeyCommand::NewInToken(Serve { config })) => {
                operate::new_root_key_in_token(&config)
            }
            Command::RootKey(RootKeyCommand::Rotate { connection }) => {
                block_on(root_key::rotate(&connection))
            }
            Command::Token(TokenCommand::Hash) => operate::hash_token(),
            Command::CheckConfig(Serve { config }) => operate::check_config(&config),
            Command::Store(StoreCommand::Check(Serve { config })) => store::check(&config),
            Command::Store(StoreCommand::Copy { config, from, to }) => {
                block_on(store::copy(&config, &from, &to))
            }
            Command::Store(StoreCommand::Backup { file, connection }) => {
                block_on(store::back_up(&connection, &file))
            }
            Command::Dev(dev) => block_on(dev.run()),
            Command::Serve(Serve { config }) => block_on(operate::serve(&config)),
            Command::Gateway(gateway) => block_on(operate::gateway(&gateway)),
            Command::Key {
                connection,
                command,
            } => block_on(command.run(&connection)),
            Command::Encrypt(encrypt) => block_on(encrypt.run()),
            Command::Decrypt(decrypt) => block_on(decrypt.run()),
            Command::Health(Health { server, tls }) => block_on(client::health(&server, &tls)),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// Does `work` on a runtime. What it has left behind on other threads is waited for a moment and no longer:
/// a hardware module that hangs must not keep the program from its end.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_MOMENT);
    done
}

/// Writes a line to standard output.
fn say(line: impl std::fmt::Display) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Tells on standard error how far something is, a line for each percent.
#[derive(Debug, Default)]
struct Steps {
    told: Option<u64>,
}

impl Steps {
    fn tell(&mut self, what: &str, done: u64, total: u64) {
        let percent = done.saturating_mul(100) / total.max(1);
        if self.told != Some(percent) {
            self.told = Some(percent);
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "{what} {done}/{total}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_hangs_on_another_thread_does_not_keep_the_program_from_its_end() {
        let (hold, held) = mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let done = block_on(async move {
            tokio::task::spawn_blocking(move || {
                begin.send(()).unwrap();
                held.recv().is_ok()
            });
            Ok(begun.await?)
        });
        assert!(done.is_ok());
        drop(hold);
    }
}
