//! Start to ready and idle memory, on a store that is full of keys.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kmsgate::grpc::pb::CreateKeyRequest;
use kmsgate::grpc::pb::key_service_client::KeyServiceClient;
use tokio::task::JoinSet;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::Outcome;
use crate::load::{Face, Prepared};
use crate::machine::resident;
use crate::server::{self, Launch, Server};

/// How many keys are asked for at once, so that the store can write many in one transaction.
const CALLERS: usize = 64;

/// How often it is tried to make a key, and after which pause again.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// How long a server is left alone before its memory is read.
pub(crate) const IDLE: Duration = Duration::from_secs(1);

/// One line of the table.
pub(crate) struct Start {
    /// Baseline or subject.
    pub(crate) side: &'static str,
    /// How many keys were made in the store, beside those that a fresh one has.
    pub(crate) keys: u32,
    /// From the start of the process to the first 200 of `/readyz`.
    pub(crate) ready_after: Vec<Duration>,
    /// Resident memory when nothing was done but start, in KiB.
    pub(crate) resident: Vec<u64>,
    /// How long it took to make the keys, all together.
    pub(crate) creation: Option<Duration>,
}

/// Starts `binary` `starts` times on an empty store and as often on one with `keys` keys.
pub(crate) async fn starts(
    side: &'static str,
    binary: &Path,
    launch: &Launch<'_>,
    keys: u32,
    starts: u16,
) -> Outcome<[Start; 2]> {
    let directory = server::directory()?;
    // The first start makes the root key and the first keys of a fresh store, so it is not counted.
    Server::kmsgate(binary, directory.path(), launch)?.stop()?;
    let (ready_after, empty) = restarts(binary, directory.path(), launch, starts)?;
    let few = Start {
        side,
        keys: 0,
        ready_after,
        resident: empty,
        creation: None,
    };

    let server = Server::kmsgate(binary, directory.path(), launch)?;
    let creation = create(&server, keys, CALLERS).await?;
    server.stop()?;
    let (ready_after, full) = restarts(binary, directory.path(), launch, starts)?;
    let many = Start {
        side,
        keys,
        ready_after,
        resident: full,
        creation: Some(creation),
    };

    // Ready must mean that it works.
    let server = Server::kmsgate(binary, directory.path(), launch)?;
    Prepared::new(&server, Face::Grpc, 32).await?;
    server.stop()?;
    Ok([few, many])
}

/// Starts a server again and again; tells how long each took to be ready, and how much memory it then had.
fn restarts(
    binary: &Path,
    directory: &Path,
    launch: &Launch<'_>,
    starts: u16,
) -> Outcome<(Vec<Duration>, Vec<u64>)> {
    let mut ready_after = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..starts {
        let server = Server::kmsgate(binary, directory, launch)?;
        thread::sleep(IDLE);
        memory.push(resident(server.pid())?);
        ready_after.push(server.ready_after);
        server.stop()?;
    }
    Ok((ready_after, memory))
}

/// Makes `count` keys, `at_once` at a time; returns how long that took.
pub(crate) async fn create(server: &Server, count: u32, at_once: usize) -> Outcome<Duration> {
    let channel = Endpoint::from_shared(format!("http://{}", server.grpc))?
        .connect()
        .await?;
    let token: MetadataValue<Ascii> = server.token.parse()?;
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..at_once {
        let mut client = KeyServiceClient::new(channel.clone());
        let token = token.clone();
        let project_id = server.project.clone();
        callers.spawn(async move {
            for number in (0..count).skip(caller).step_by(at_once) {
                let message = CreateKeyRequest {
                    project_id: project_id.clone(),
                    key_alias: format!("bench-{number}"),
                    ..CreateKeyRequest::default()
                };
                for turn in 1.. {
                    let mut request = Request::new(message.clone());
                    request.metadata_mut().insert("x-auth-token", token.clone());
                    match client.create_key(request).await {
                        Ok(_) => break,
                        // A store that stood still for a moment may have made it.
                        Err(status) if turn > 1 && status.code() == Code::AlreadyExists => break,
                        Err(status) if turn < TRIES && status.code() == Code::Unavailable => {
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(status) => return Err(status.into()),
                    }
                }
            }
            Outcome::Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(began.elapsed())
}
