//! A server under load: an echo or a `kmsgate dev`, as a child process that ends with its value.

use std::collections::HashMap;
use std::convert::Infallible;
use std::env;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use kmsgate::auth::token::Entry;
use kmsgate::crypto::root::RootKey;
use tempfile::TempDir;

use crate::Outcome;
use crate::echo::{self, Placement};
use crate::machine::Cores;

/// How often to look whether a server is ready.
const POLL: Duration = Duration::from_millis(1);

/// When to stop looking.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The floor.
    Echo(Placement),
    /// The kmsgate of this path.
    Kmsgate(PathBuf),
}

impl FromStr for Kind {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match Placement::from_str(text, false) {
            Ok(placement) => Self::Echo(placement),
            Err(_) => Self::Kmsgate(text.into()),
        })
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo(placement) => f.write_str(&placement.name()),
            Self::Kmsgate(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// How servers are started.
pub(crate) struct Launch<'a> {
    /// Where they run.
    pub(crate) cores: &'a Cores,
    /// Worker threads, if not as many as there are cores.
    pub(crate) workers: Option<NonZeroUsize>,
    /// The sizes of plaintext that an echo knows answers for.
    pub(crate) sizes: &'a [u16],
}

impl Launch<'_> {
    fn command(&self, program: &Path) -> Outcome<Command> {
        let program = program.to_str().ok_or("a path that is not UTF-8")?;
        let mut command = self.cores.command(program);
        if let Some(workers) = self.workers {
            // Tokio's multi-thread runtime reads it.
            command.env("TOKIO_WORKER_THREADS", workers.to_string());
        }
        Ok(command)
    }
}

/// A running server and what a caller needs to know of it.
pub(crate) struct Server {
    pub(crate) grpc: SocketAddr,
    pub(crate) rest: SocketAddr,
    pub(crate) token: String,
    pub(crate) project: String,
    /// An AES-256 key.
    pub(crate) key_id: String,
    /// From the start of the process to the first answer that it is ready.
    pub(crate) ready_after: Duration,
    process: Process,
    /// Where its data is, if that is to vanish with it.
    _directory: Option<TempDir>,
}

impl Server {
    /// Starts a server, a kmsgate on a store of its own.
    pub(crate) fn start(kind: &Kind, launch: &Launch<'_>) -> Outcome<Self> {
        match kind {
            Kind::Echo(placement) => Self::echo(*placement, launch),
            Kind::Kmsgate(binary) => {
                let directory = directory()?;
                let mut server = Self::kmsgate(binary, directory.path(), launch)?;
                server._directory = Some(directory);
                Ok(server)
            }
        }
    }

    /// Starts `kmsgate dev` with its data and its log in `directory`, and waits until it is ready.
    pub(crate) fn kmsgate(binary: &Path, directory: &Path, launch: &Launch<'_>) -> Outcome<Self> {
        let data = directory.join("data");
        let env_file = data.join("dev.env");
        // It is replaced, not written over, and the new file is made before the old one goes: so they differ in number.
        let number = || fs::metadata(&env_file).map(|file| file.ino()).ok();
        let old = number();
        let log_file = directory.join("log");
        let log = File::create(&log_file)?;
        let mut command = launch.command(binary)?;
        command
            .arg("dev")
            .args(["--data".as_ref(), data.as_os_str()])
            .args(["--grpc", "127.0.0.1:0"])
            .args(["--rest", "127.0.0.1:0"])
            .args(["--admin", "127.0.0.1:0"])
            .args(["--log", "info"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);

        let began = Instant::now();
        let mut process = Process(command.spawn()?);
        let dev = loop {
            if number() != old
                && let Some(dev) = Dev::read(&env_file)
                && is_ready(dev.admin)
            {
                break dev;
            }
            if let Some(status) = process.0.try_wait()? {
                let log = fs::read_to_string(&log_file).unwrap_or_default();
                return Err(
                    format!("kmsgate dev ended before it was ready: {status}\n{log}").into(),
                );
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("kmsgate dev was not ready after {PATIENCE:?}").into());
            }
            thread::sleep(POLL);
        };
        Ok(Self {
            grpc: dev.grpc,
            rest: dev.rest,
            token: dev.token,
            project: dev.project,
            key_id: dev.key_id,
            ready_after: began.elapsed(),
            process,
            _directory: None,
        })
    }

    /// Starts `kmsgate serve` with the configuration of `site` and these lines of its section `[limits]`, and waits
    /// until it is ready.
    pub(crate) fn serve(
        binary: &Path,
        site: &Site,
        limits: &str,
        launch: &Launch<'_>,
    ) -> Outcome<Self> {
        let config_file = site.path("kmsgate.toml");
        fs::write(&config_file, site.config(limits))?;
        let log_file = site.path("log");
        let log = File::create(&log_file)?;
        let began = Instant::now();
        let mut process = Process(
            launch
                .command(binary)?
                .args(["serve", "--config"])
                .arg(config_file)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?,
        );
        let at = loop {
            let log = fs::read_to_string(&log_file)?;
            if let Some(at) = Serving::read(&log).filter(|at| is_ready(at.admin)) {
                break at;
            }
            if let Some(status) = process.0.try_wait()? {
                return Err(
                    format!("kmsgate serve ended before it was ready: {status}\n{log}").into(),
                );
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("kmsgate serve was not ready after {PATIENCE:?}").into());
            }
            thread::sleep(POLL);
        };
        Ok(Self {
            grpc: at.grpc,
            rest: at.rest,
            token: site.operator().to_owned(),
            project: PROJECT.to_owned(),
            key_id: site.key_id.clone(),
            ready_after: began.elapsed(),
            process,
            _directory: None,
        })
    }

    fn echo(placement: Placement, launch: &Launch<'_>) -> Outcome<Self> {
        let began = Instant::now();
        let mut command = launch.command(&env::current_exe()?)?;
        command
            .arg(echo::ROLE)
            .arg(placement.name())
            .args(launch.sizes.iter().map(u16::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let stdout = process.0.stdout.take().ok_or("no standard output")?;
        let mut ports = String::new();
        BufReader::new(stdout).read_line(&mut ports)?;
        let (grpc, rest) = ports
            .trim_end()
            .split_once(' ')
            .ok_or("the echo said no ports")?;
        Ok(Self {
            grpc: (Ipv4Addr::LOCALHOST, grpc.parse()?).into(),
            rest: (Ipv4Addr::LOCALHOST, rest.parse()?).into(),
            token: echo::TOKEN.into(),
            project: echo::PROJECT.into(),
            key_id: echo::KEY_ID.into(),
            ready_after: began.elapsed(),
            process,
            _directory: None,
        })
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Asks the server to stop, and waits until it has, so that the next one finds its data in good order.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status()?;
        let began = Instant::now();
        while self.process.0.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                return Err(format!("a server still ran {PATIENCE:?} after SIGTERM").into());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// The project of a [`Site`].
const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";

/// A directory with what `kmsgate serve` needs: a root key, a store, and a token for each of some callers.
pub(crate) struct Site {
    directory: TempDir,
    tokens: Vec<String>,
    /// Where keys are, in the words of the configuration; in a file of the directory if that is not said.
    store: Option<String>,
    /// An AES-256 key, once one was made.
    pub(crate) key_id: String,
}

impl Site {
    /// A site for so many callers, and an operator besides.
    pub(crate) fn new(callers: usize) -> Outcome<Self> {
        let site = Self {
            directory: directory()?,
            tokens: (0..=callers)
                .map(|number| format!("token-{number}"))
                .collect(),
            store: None,
            key_id: String::new(),
        };
        RootKey::create(&site.path("root.key"))?;
        let mut file = String::new();
        for token in &site.tokens {
            let entry = Entry {
                name: token,
                project: PROJECT,
                expires: None,
                actions: &["kms:*"],
            };
            file += &entry.render(token.as_bytes())?;
        }
        fs::write(site.path("tokens.toml"), file)?;
        Ok(site)
    }

    /// The same with its keys elsewhere.
    pub(crate) fn with_store(self, store: String) -> Self {
        let store = Some(store);
        Self { store, ..self }
    }

    /// Another one with the same keys. No server may run on this one.
    pub(crate) fn copy(&self) -> Outcome<Self> {
        let copy = Self {
            directory: directory()?,
            tokens: self.tokens.clone(),
            store: self.store.clone(),
            key_id: self.key_id.clone(),
        };
        for name in ["root.key", "tokens.toml", "keys.db"] {
            fs::copy(self.path(name), copy.path(name))?;
        }
        Ok(copy)
    }

    /// The tokens of the callers.
    pub(crate) fn callers(&self) -> &[String] {
        &self.tokens[1..]
    }

    fn operator(&self) -> &str {
        &self.tokens[0]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, limits: &str) -> String {
        let path = |name| toml::Value::from(self.path(name).display().to_string());
        let in_file = || format!("{{ kind = \"sqlite\", path = {} }}", path("keys.db"));
        let store = self.store.clone().unwrap_or_else(in_file);
        format!(
            "grpc = \"127.0.0.1:0\"\nrest = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
             root_key_file = {}\nstore = {store}\nauth = {{ token_file = {} }}\n\
             audit = {{ kind = \"file\", path = {} }}\nshutdown = {{ lag = \"0ms\" }}\n[limits]\n{limits}\n",
            path("root.key"),
            path("tokens.toml"),
            path("audit.jsonl"),
        )
    }
}

/// Where a `kmsgate serve` says in its log that it serves.
struct Serving {
    grpc: SocketAddr,
    rest: SocketAddr,
    admin: SocketAddr,
}

impl Serving {
    fn read(log: &str) -> Option<Self> {
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let line = lines.find(|line| line["message"] == "serving")?;
        let address = |name| line[name].as_str()?.parse().ok();
        Some(Self {
            grpc: address("grpc")?,
            rest: address("rest")?,
            admin: address("admin")?,
        })
    }
}

/// A directory for a kmsgate, beside what cargo builds, since `/tmp` may be in memory, where a sync costs nothing.
pub(crate) fn directory() -> Outcome<TempDir> {
    Ok(TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// A child process that ends with its value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, and nobody is left to tell if it cannot be ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `kmsgate dev` writes for its callers.
struct Dev {
    grpc: SocketAddr,
    rest: SocketAddr,
    admin: SocketAddr,
    token: String,
    project: String,
    key_id: String,
}

impl Dev {
    /// Reads `NAME=value` lines; `None` while the file is not there or lacks one.
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let values: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let value = |name| values.get(name).copied();
        Some(Self {
            grpc: value("KMSGATE_GRPC")?.parse().ok()?,
            rest: value("KMSGATE_REST")?.parse().ok()?,
            admin: value("KMSGATE_ADMIN")?.parse().ok()?,
            token: value("KMSGATE_TOKEN")?.into(),
            project: value("KMSGATE_PROJECT")?.into(),
            key_id: value("KMSGATE_AES_KEY")?.into(),
        })
    }
}

/// Whether `GET /readyz` answers 200.
fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect(admin)?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
