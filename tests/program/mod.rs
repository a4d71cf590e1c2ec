//! The program as a process: started, listened to, asked and stopped, as an operator and a caller
//! would.

#![allow(dead_code, reason = "each test uses its own part of this module")]

pub(crate) mod keys;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;

use kmsgate::auth::token::Entry;
use kmsgate::crypto::root::RootKey;
use kmsgate::grpc::pb::crypto_service_client::CryptoServiceClient;
use kmsgate::grpc::pb::key_service_client::KeyServiceClient;
use kmsgate::grpc::pb::operator_service_client::OperatorServiceClient;

/// The project of every credential here.
pub(crate) const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";

/// Longer than anything here takes, also on a machine that has much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running program. It is killed when it is dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) grpc: SocketAddr,
    pub(crate) rest: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Program {
    /// Starts the program with these arguments.
    pub(crate) fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let mut child = command(arguments).stdin(Stdio::null()).spawn().unwrap();
        let stdout = Captured::of(child.stdout.take().unwrap());
        let stderr = Captured::of(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Starts a server on a free port of each kind, and waits until its log says that it serves and
    /// where.
    pub(crate) fn serve<A: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = A>,
    ) -> (Self, Addresses) {
        let program = Self::start(arguments);
        let log = program.stderr.wait_for(|log| serving(log).is_some());
        let line = serving(&log).unwrap();
        let address = |name: &str| {
            let address = line[name].as_str();
            // A gateway has no gRPC address, and a Unix socket no port.
            let port = address.filter(|address| !address.starts_with("unix:"));
            port.unwrap_or("0.0.0.0:0").parse().unwrap()
        };
        let addresses = Addresses {
            grpc: address("grpc"),
            rest: address("rest"),
            admin: address("admin"),
        };
        (program, addresses)
    }

    /// What the kernel tells of the process (proc(5)).
    pub(crate) fn proc(&self) -> PathBuf {
        format!("/proc/{}", self.child.id()).into()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the program has ended by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }

    /// Ends the program as a lost machine would, with no chance to tidy up.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the program as an operator would, and gives all that it has written: on standard
    /// output, and on standard error.
    pub(crate) fn stop(mut self) -> (String, String) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.stderr.text());
        (self.stdout.whole(), self.stderr.whole())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program to its end, with `input` on its standard input.
pub(crate) fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>, input: &[u8]) -> Output {
    let mut child = command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let stdout = Captured::of(child.stdout.take().unwrap());
    let stderr = Captured::of(child.stderr.take().unwrap());
    // A program that fails early does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    let status = ended(&mut child);
    Output {
        status,
        stdout: stdout.whole().into_bytes(),
        stderr: stderr.whole().into_bytes(),
    }
}

/// Runs the program to its end and gives its standard output, if it succeeds.
pub(crate) fn done<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
    input: &[u8],
) -> String {
    let output = run(arguments, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program to its end and gives its standard error, if it fails as a command does.
pub(crate) fn refused<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
    input: &[u8],
) -> String {
    let output = run(arguments, input);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    stderr
}

/// What a program writes, as it writes it.
#[derive(Clone)]
pub(crate) struct Captured(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let captured = Self(Arc::default());
        let to = Arc::clone(&captured.0);
        std::thread::spawn(move || {
            let (written, changed) = &*to;
            let mut buffer = [0; 16 * 1024];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                let mut written = written.lock().unwrap();
                written.bytes.extend_from_slice(&buffer[..read]);
                written.ended = read == 0;
                changed.notify_all();
                if written.ended {
                    return;
                }
            }
        });
        captured
    }

    /// What has been written so far.
    pub(crate) fn text(&self) -> String {
        let written = self.0.0.lock().unwrap();
        String::from_utf8_lossy(&written.bytes).into_owned()
    }

    /// Waits until what has been written satisfies `enough`, and gives it.
    pub(crate) fn wait_for(&self, enough: impl Fn(&str) -> bool) -> String {
        let text = self.wait(&|written| enough(&String::from_utf8_lossy(&written.bytes)));
        assert!(enough(&text), "still not written: {text}");
        text
    }

    /// All of it, once the program has ended.
    pub(crate) fn whole(&self) -> String {
        self.wait(&|written| written.ended)
    }

    fn wait(&self, enough: &dyn Fn(&Written) -> bool) -> String {
        let (written, changed) = &*self.0;
        let deadline = Instant::now() + PATIENCE;
        let mut written = written.lock().unwrap();
        while !enough(&written) && !written.ended && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            written = changed.wait_timeout(written, left).unwrap().0;
        }
        String::from_utf8_lossy(&written.bytes).into_owned()
    }
}

/// A running `kmsgate dev`.
pub(crate) struct Dev {
    pub(crate) program: Program,
    pub(crate) at: Addresses,
    /// What `dev.env` says.
    pub(crate) env: HashMap<String, String>,
    /// What was printed at the start.
    pub(crate) greeting: String,
}

impl Dev {
    /// Starts `kmsgate dev` in `dir` on free ports, and waits for its greeting.
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Self {
        let dir_name = dir.to_str().unwrap();
        let free = "127.0.0.1:0";
        let mut arguments = vec!["dev", "--data", dir_name, "--grpc", free, "--rest", free];
        arguments.extend(["--admin", free]);
        arguments.extend(more);
        let program = Program::start(arguments);
        let greeting = program.stdout.wait_for(|text| text.ends_with(GREETING_END));
        let env = read_env(&dir.join("dev.env"));
        let address = |name: &str| env[name].parse().unwrap();
        let at = Addresses {
            grpc: address("KMSGATE_GRPC"),
            rest: address("KMSGATE_REST"),
            admin: address("KMSGATE_ADMIN"),
        };
        Self {
            program,
            at,
            env,
            greeting,
        }
    }

    pub(crate) fn token(&self) -> &str {
        &self.env["KMSGATE_TOKEN"]
    }

    pub(crate) fn key(&self) -> &str {
        &self.env["KMSGATE_AES_KEY"]
    }
}

/// The last words of the greeting: those of the line that asks over gRPC.
const GREETING_END: &str = " kmsgate.v1.CryptoService/EncryptData\n\n";

/// The assignments of a `dev.env`.
pub(crate) fn read_env(path: &Path) -> HashMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    let pairs = text.lines().map(|line| line.split_once('=').unwrap());
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// A directory with what `kmsgate serve` needs: a root key, a store to be, one token, and a
/// configuration with free ports.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
}

/// The token of a [`Site`], which may do anything.
pub(crate) const TOKEN: &str = "8f0c4a1de57b4f0d9c9f83a6f2a1b7c4d5e60718293a4b5c";

impl Site {
    /// A site whose configuration ends with `more`.
    pub(crate) fn new(more: &str) -> Self {
        let site = Self {
            dir: TempDir::new().unwrap(),
        };
        RootKey::create(&site.path("root.key")).unwrap();
        site.write("tokens.toml", &entry(ENTRY, TOKEN));
        site.write(
            "kmsgate.toml",
            &format!("{}\n{more}", site.config("root.key")),
        );
        site
    }

    /// A configuration with the root key in the file `root`.
    pub(crate) fn config(&self, root: &str) -> String {
        let dir = self.dir.path().display();
        format!(
            "grpc = \"127.0.0.1:0\"\nrest = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
             root_key_file = \"{dir}/{root}\"\n\
             store = {{ kind = \"sqlite\", path = \"{dir}/keys.db\" }}\n\
             shutdown = {{ lag = \"0ms\" }}\n\
             [auth]\ntoken_file = \"{dir}/tokens.toml\"\n"
        )
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The name of a file as an argument.
    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Puts a file that its owner alone may read in place of the one that is there, in one step.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Starts `kmsgate serve`.
    pub(crate) fn serve(&self) -> (Program, Addresses) {
        Program::serve(["serve", "--config", &self.name("kmsgate.toml")])
    }
}

/// The entry of a token that may do anything.
pub(crate) const ENTRY: Entry<'static> = Entry {
    name: "operator",
    project: PROJECT,
    expires: None,
    actions: &["kms:*"],
};

/// The text of an entry of a token file.
pub(crate) fn entry(entry: Entry<'_>, token: &str) -> String {
    entry.render(token.as_bytes()).unwrap()
}

/// A REST answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body, which is JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The documented code of a refusal.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["error_code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(request: Request<Full<Bytes>>) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let asked = format!("{} {}", request.method(), request.uri());
    let answer = tokio::time::timeout(PATIENCE, client.request(request)).await;
    let answer = answer.expect(&asked).expect(&asked);
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// Fetches `http://ADDRESS/PATH`.
pub(crate) async fn fetch(address: SocketAddr, path: &str) -> Answer {
    let request = Request::get(format!("http://{address}{path}"));
    send(request.body(Full::default()).unwrap()).await
}

/// Calls a documented operation over REST with a token.
pub(crate) async fn call(rest: SocketAddr, token: &str, operation: &str, body: &Value) -> Answer {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{rest}/v1.0/{PROJECT}/kms/{operation}"))
        .header("x-auth-token", token)
        .body(Full::from(body.to_string()));
    send(request.unwrap()).await
}

/// The services of a server, asked over gRPC with a token.
#[derive(Clone)]
pub(crate) struct Grpc {
    pub(crate) crypto: CryptoServiceClient<Channel>,
    pub(crate) keys: KeyServiceClient<Channel>,
    pub(crate) operator: OperatorServiceClient<Channel>,
    token: AsciiMetadataValue,
}

impl Grpc {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr, token: &str) -> Self {
        Self::try_connect(address, token).await.unwrap()
    }

    /// Connects, if someone is there.
    pub(crate) async fn try_connect(address: SocketAddr, token: &str) -> Option<Self> {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.connect().await.ok()?;
        Some(Self {
            crypto: CryptoServiceClient::new(channel.clone()),
            keys: KeyServiceClient::new(channel.clone()),
            operator: OperatorServiceClient::new(channel),
            token: token.parse().unwrap(),
        })
    }

    /// A request with the token.
    pub(crate) fn ask<M>(&self, message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("x-auth-token", self.token.clone());
        request
    }
}

fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmsgate"));
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the program does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The line of a JSON log that says that a server serves.
fn serving(log: &str) -> Option<Value> {
    let whole = log.lines().filter(|line| line.contains("\"serving\""));
    let mut lines = whole.filter_map(|line| serde_json::from_str(line).ok());
    lines.find(|line: &Value| line["message"] == "serving")
}
