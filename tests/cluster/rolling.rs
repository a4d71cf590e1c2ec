//! Replicas that are stopped and started again one after the other under load, as an upgrade and a
//! downgrade do it: nobody's request may be lost.
//!
//! The callers behave as gRPC clients do. A call that no replica has accepted, because it could not
//! connect or was told that its connection ends, goes to another replica. A call that was accepted
//! must be answered.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use kmsgate::grpc::pb;
use kmsgate::grpc::pb::crypto_service_client::CryptoServiceClient;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;

use crate::processes::{Cluster, TOKEN};

/// Callers at a time.
const CALLERS: usize = 12;

/// How long a replica may take to end, and to serve again.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a call may go to another replica.
const TRIES: usize = 100;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Rolled {
    /// Replicas that were stopped and started again.
    pub(crate) restarts: usize,
    /// Calls that were answered meanwhile.
    pub(crate) answered: usize,
    /// How often a call that was not accepted went to another replica.
    pub(crate) elsewhere: usize,
    /// What is wrong.
    pub(crate) wrong: Vec<String>,
}

/// Stops each replica in turn and starts it as the other program, then all back, and so on.
pub(crate) async fn roll(
    cluster: &Cluster,
    key_id: &str,
    programs: [&Path; 2],
    rolls: usize,
) -> Rolled {
    let addresses: Vec<SocketAddr> = cluster.replicas.iter().map(|it| it.grpc).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let callers = (0..CALLERS).map(|first| {
        let clients = addresses.iter().map(|address| client(*address)).collect();
        let (key_id, stop) = (key_id.to_owned(), Arc::clone(&stop));
        tokio::spawn(async move { call(clients, first, &key_id, &stop).await })
    });
    let callers: Vec<_> = callers.collect();
    let mut rolled = Rolled::default();
    for program in programs.iter().cycle().take(rolls) {
        for replica in &cluster.replicas {
            let name = &replica.process.name;
            match replica.process.end(PATIENCE) {
                Some(status) if status.success() => {}
                Some(status) => rolled.wrong.push(format!("{name} ended with {status}")),
                None => rolled.wrong.push(format!("{name} did not end")),
            }
            replica.process.start_as(program);
            let began = Instant::now();
            while encrypt(&mut client(replica.grpc), key_id).await.is_err() {
                if began.elapsed() > PATIENCE {
                    rolled.wrong.push(format!("{name} does not serve again"));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            rolled.restarts += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        let (answered, elsewhere, wrong) = caller.await.unwrap();
        rolled.answered += answered;
        rolled.elsewhere += elsewhere;
        rolled.wrong.extend(wrong);
    }
    rolled
}

fn client(address: SocketAddr) -> CryptoServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1));
    CryptoServiceClient::new(endpoint.connect_lazy())
}

/// Calls one replica after the other until it is to stop: how many calls were answered, how many went
/// elsewhere, and those that were lost.
async fn call(
    mut clients: Vec<CryptoServiceClient<Channel>>,
    first: usize,
    key_id: &str,
    stop: &AtomicBool,
) -> (usize, usize, Vec<String>) {
    let (mut answered, mut elsewhere, mut lost) = (0, 0, Vec::new());
    let mut at = first;
    while !stop.load(Ordering::Relaxed) {
        for tried in 0..=TRIES {
            at = (at + 1) % clients.len();
            match encrypt(&mut clients[at], key_id).await {
                Ok(()) => {
                    answered += 1;
                    break;
                }
                Err(status) if tried < TRIES && was_not_accepted(&status) => {
                    elsewhere += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(status) => {
                    lost.push(format!("a call was lost: {status:?}"));
                    break;
                }
            }
        }
    }
    (answered, elsewhere, lost)
}

async fn encrypt(client: &mut CryptoServiceClient<Channel>, key_id: &str) -> Result<(), Status> {
    let mut request = Request::new(pb::EncryptDataRequest {
        key_id: key_id.to_owned(),
        plaintext: Some(Plaintext::PlainText("on the way".to_owned())),
        ..pb::EncryptDataRequest::default()
    });
    let token: AsciiMetadataValue = TOKEN.parse().unwrap();
    request.metadata_mut().insert("x-auth-token", token);
    request.set_timeout(Duration::from_secs(20));
    client.encrypt_data(request).await.map(drop)
}

/// Whether no replica has begun with the call: there was no connection, or HTTP/2 said that the stream
/// was not looked at (RFC 9113, sections 6.8 and 8.7).
fn was_not_accepted(status: &Status) -> bool {
    // An answer of the replica's own has details.
    if !status.details().is_empty() || status.code() == Code::DeadlineExceeded {
        return false;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_canceled()
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<h2::Error>()
            && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || error.is_go_away() && error.is_remote())
        {
            return true;
        }
        cause = error.source();
    }
    false
}
