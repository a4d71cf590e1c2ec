//! A whole server on loopback: its files in a directory of its own, its three sockets, and who may
//! call it.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kmsgate::auth::token::Entry;
use kmsgate::config::Config;
use kmsgate::crypto::root::RootKey;
use kmsgate::server::{Listeners, Server};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::face::{Face, Over};
use crate::schema::Call;
use crate::seeds;
use crate::seeds::{NOBODY, Seed};

/// The project whose callers come over REST. Each face has one of its own, so that what a scenario
/// does over one is not seen over the other.
pub(crate) const REST_PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";

/// The project whose callers come over gRPC.
pub(crate) const GRPC_PROJECT: &str = "7f0c1d6be6f24d3f9a7a8f0e2b1c4d5e";

/// A project without keys.
pub(crate) const BARE_PROJECT: &str = "bare";

/// An access key of [`REST_PROJECT`], and its secret key.
pub(crate) const ACCESS_KEY: (&str, &str) = (
    "AKEXAMPLE0000000000",
    "SKEXAMPLEsecretsecretsecretsecretsecret",
);

/// What a token of a project is good for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right {
    /// Every action.
    Everything,
    /// Listing keys, and nothing else.
    Listing,
    /// Nothing any more.
    Expired,
    /// Nothing but what rules give it, by its name or by its role `ruled`.
    Ruled,
}

/// The token of a project with a right.
pub(crate) fn token(project: &str, right: Right) -> String {
    format!("{right:?}-of-{project}")
}

/// A running server.
pub(crate) struct World {
    dir: TempDir,
    grpc: SocketAddr,
    rest: SocketAddr,
    seen: Arc<Mutex<HashSet<String>>>,
    /// The server stops when this is dropped.
    _stop: oneshot::Sender<()>,
}

impl World {
    /// Starts a server with the [seeded](seeds) keys.
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a server whose configuration has these lines too.
    pub(crate) async fn with(lines: &str) -> Self {
        Self::holding(&[], lines).await
    }

    /// Starts a server that has these keys in each project too, and these lines in its
    /// configuration.
    pub(crate) async fn holding(keys: &[Seed], lines: &str) -> Self {
        Self::build(keys, None, lines).await
    }

    /// Starts a server with these rules in its policy file.
    pub(crate) async fn ruled(rules: &str) -> Self {
        Self::build(&[], Some(rules), "").await
    }

    async fn build(keys: &[Seed], rules: Option<&str>, lines: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let config = write_files(dir.path(), keys, rules).await + lines;
        let config = Config::parse(&config).unwrap();
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (grpc_port, rest_port) = (listen().await.unwrap(), listen().await.unwrap());
        let grpc = grpc_port.local_addr().unwrap();
        let rest = rest_port.local_addr().unwrap();
        let listeners = Listeners {
            grpc: grpc_port.into(),
            rest: rest_port.into(),
            admin: listen().await.unwrap().into(),
        };
        let server = Server::build(&config).unwrap();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.serve(listeners, stopped).await.unwrap();
        });
        Self {
            dir,
            grpc,
            rest,
            seen: Arc::default(),
            _stop: stop,
        }
    }

    /// REST, as a caller with every right to its project.
    pub(crate) fn rest(&self) -> Face {
        self.face(Over::Rest, REST_PROJECT)
    }

    /// gRPC, as a caller with every right to its project.
    pub(crate) fn grpc(&self) -> Face {
        self.face(Over::Grpc, GRPC_PROJECT)
    }

    /// A face, as a caller with every right to `project`.
    pub(crate) fn face(&self, over: Over, project: &str) -> Face {
        let address = match over {
            Over::Rest => self.rest,
            Over::Grpc => self.grpc,
        };
        Face::new(over, address, project, Arc::clone(&self.seen))
    }

    /// What the audit has kept up to now, and last a refusal that is made for this: lines are
    /// written in order and not at once.
    pub(crate) async fn audited(&self, face: &Face) -> Vec<Value> {
        let call = Call::new("describe-key").with("key_id", NOBODY);
        let answer = face.call(&call).await;
        let made = |line: &Value| line["request_id"] == *answer.request_id;
        let mut lines = self.audited_until(|lines| lines.iter().any(made)).await;
        // What others do meanwhile, such as going away, may be told after it.
        let end = lines.iter().position(made).unwrap() + 1;
        lines.truncate(end);
        lines
    }

    /// What the audit has kept, once that is enough.
    pub(crate) async fn audited_until(&self, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let waited = async {
            loop {
                let text = fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap();
                let lines = text
                    .split_inclusive('\n')
                    .filter(|line| line.ends_with('\n'));
                let lines: Vec<_> = lines
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
                if enough(&lines) {
                    return lines;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waited).await;
        waited.expect("the audit keeps what happened")
    }
}

/// Runs a story over both faces of one server, each in its own project, and holds them to the same
/// refusals in the same words.
pub(crate) async fn on_both_faces(story: impl AsyncFn(&Face)) {
    on_both_faces_of(&World::start().await, story).await;
}

/// The same with this server.
pub(crate) async fn on_both_faces_of(world: &World, story: impl AsyncFn(&Face)) {
    let (rest, grpc) = (world.rest(), world.grpc());
    for face in [&rest, &grpc] {
        story(face).await;
    }
    let (rest, grpc) = (rest.refusals(), grpc.refusals());
    for (rest, grpc) in rest.iter().zip(&grpc) {
        assert_eq!(rest, grpc, "REST and gRPC disagree");
    }
    assert_eq!(rest.len(), grpc.len(), "REST and gRPC disagree");
}

/// Writes what the configuration names, and returns the configuration.
async fn write_files(dir: &Path, keys: &[Seed], rules: Option<&str>) -> String {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let root = RootKey::create(&dir.join("root.key")).unwrap();
    let projects = [REST_PROJECT, GRPC_PROJECT];
    seeds::sow(&dir.join("keys.db"), root, &projects, keys).await;
    write_secret(&dir.join("tokens.toml"), &tokens());
    let (access_key, secret_key) = ACCESS_KEY;
    let access_keys = format!(
        "[[access_key]]\naccess_key = \"{access_key}\"\nsecret_key = \"{secret_key}\"\n\
         project = \"{REST_PROJECT}\"\nactions = [\"kms:cmk:*\"]\n"
    );
    write_secret(&dir.join("access-keys.toml"), &access_keys);
    let policy = rules.map(|rules| {
        write_secret(&dir.join("policy.toml"), rules);
        format!("auth.policy_file = {:?}\n", at("policy.toml"))
    });
    format!(
        "root_key_file = {:?}\nstore = {{ kind = \"sqlite\", path = {:?} }}\n\
         auth.token_file = {:?}\nauth.access_key_file = {:?}\n{}\
         audit = {{ kind = \"file\", path = {:?} }}\n\
         shutdown = {{ lag = \"0ms\", drain = \"5s\" }}\n",
        at("root.key"),
        at("keys.db"),
        at("tokens.toml"),
        at("access-keys.toml"),
        policy.unwrap_or_default(),
        at("audit.jsonl"),
    )
}

fn tokens() -> String {
    let mut file = String::new();
    for project in [REST_PROJECT, GRPC_PROJECT, BARE_PROJECT] {
        for (right, actions) in [
            (Right::Everything, &["kms:cmk:*", "kms:system:*"][..]),
            (Right::Listing, &["kms:cmk:list"]),
            (Right::Expired, &["kms:cmk:*"]),
            (Right::Ruled, &[]),
        ] {
            let token = token(project, right);
            let entry = Entry {
                name: &token,
                project,
                expires: matches!(right, Right::Expired).then_some("2020-01-01T00:00:00Z"),
                actions,
            };
            file += &entry.render(token.as_bytes()).unwrap();
            if matches!(right, Right::Ruled) {
                file += "roles = [\"ruled\"]\n";
            }
        }
    }
    file
}

fn write_secret(path: &PathBuf, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}
