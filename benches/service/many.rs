//! Very many keys in etcd: made, listed whole and page by page, and used, more of them than are held opened.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kmsgate::grpc::pb;
use kmsgate::grpc::pb::crypto_service_client::CryptoServiceClient;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;
use kmsgate::grpc::pb::key_service_client::KeyServiceClient;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::machine::resident;
use crate::server::{self, Launch, Server, Site};
use crate::{Outcome, keys};

/// How many keys a page has.
const PAGE: i32 = 1000;

/// How many ask at once.
const CALLERS: usize = 16;

/// How many more keys than are held opened are used.
const TIMES: usize = 2;

/// How many keys are held opened: a tenth of the usual number, so that there are soon more.
const OPENED: usize = 10_000;

/// What was found.
pub(crate) struct Found {
    pub(crate) keys: u32,
    /// How long it took to make them.
    pub(crate) creation: Duration,
    /// The size of etcd's files, in bytes.
    pub(crate) stored: u64,
    pub(crate) ready_after: Duration,
    /// The memory of a server that has done nothing, after it has listed, and after it has opened more keys than it
    /// holds, in KiB.
    pub(crate) resident: [u64; 3],
    /// How long the first page took, and how long the others, in microseconds.
    pub(crate) first_page: Duration,
    pub(crate) pages: Histogram<u64>,
    /// How many keys were opened from the store, over how long, and how long each first encryption took, in
    /// microseconds.
    pub(crate) opened: usize,
    pub(crate) opening: Duration,
    pub(crate) first_uses: Histogram<u64>,
}

/// Makes `count` keys in an etcd of one member, and measures a server on it.
pub(crate) async fn measure(binary: &Path, launch: &Launch<'_>, count: u32) -> Outcome<Found> {
    let etcd = Etcd::start()?;
    let store = format!(
        "{{ kind = \"etcd\", endpoints = [\"http://{}\"] }}",
        etcd.client
    );
    let site = Site::new(0)?.with_store(store);
    let limits = format!("opened_keys = {OPENED}");
    let server = Server::serve(binary, &site, &limits, launch)?;
    let creation = keys::create(&server, count, 256).await?;
    server.stop()?;

    let server = Server::serve(binary, &site, &limits, launch)?;
    let ready_after = server.ready_after;
    thread::sleep(keys::IDLE);
    let idle = resident(server.pid())?;
    let channel = Endpoint::from_shared(format!("http://{}", server.grpc))?
        .connect()
        .await?;
    let caller = Caller {
        channel,
        token: server.token.parse()?,
    };
    let (mut ids, first_page, pages) = caller.list().await?;
    let listed = resident(server.pid())?;
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != count as usize {
        return Err(format!("{} keys of {count} were listed", ids.len()).into());
    }
    // They are in the order of their ids, which are random.
    ids.truncate(TIMES * OPENED);
    let opened = ids.len();
    let began = Instant::now();
    let first_uses = caller.use_each(ids).await?;
    let opening = began.elapsed();
    let used = resident(server.pid())?;
    server.stop()?;
    Ok(Found {
        keys: count,
        creation,
        stored: etcd.size()?,
        ready_after,
        resident: [idle, listed, used],
        first_page,
        pages,
        opened,
        opening,
        first_uses,
    })
}

#[derive(Clone)]
struct Caller {
    channel: Channel,
    token: MetadataValue<Ascii>,
}

impl Caller {
    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let token = self.token.clone();
        request.metadata_mut().insert("x-auth-token", token);
        request
    }

    /// Lists all keys, page by page.
    async fn list(&self) -> Outcome<(Vec<String>, Duration, Histogram<u64>)> {
        let mut client = KeyServiceClient::new(self.channel.clone());
        let mut ids = Vec::new();
        let mut first = None;
        let mut pages = Histogram::new(3)?;
        let mut marker = Some(0);
        while let Some(at) = marker {
            let message = pb::ListKeysRequest {
                limit: Some(PAGE),
                marker: at,
                ..pb::ListKeysRequest::default()
            };
            let began = Instant::now();
            let page = client.list_keys(self.request(message)).await?.into_inner();
            match first {
                None => first = Some(began.elapsed()),
                Some(_) => pages.record(micros(began.elapsed())?)?,
            }
            ids.extend(page.keys);
            marker = page.next_marker;
        }
        Ok((ids, first.unwrap_or_default(), pages))
    }

    /// Encrypts once under each of the keys, some at a time.
    async fn use_each(&self, ids: Vec<String>) -> Outcome<Histogram<u64>> {
        let ids = Arc::new(ids);
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (this, ids) = (self.clone(), Arc::clone(&ids));
            callers.spawn(async move {
                let mut client = CryptoServiceClient::new(this.channel.clone());
                let mut times = Vec::new();
                for key_id in ids.iter().skip(caller).step_by(CALLERS) {
                    let message = pb::EncryptDataRequest {
                        key_id: key_id.clone(),
                        plaintext: Some(Plaintext::PlainBytes(vec![b'a'; 32])),
                        ..pb::EncryptDataRequest::default()
                    };
                    let began = Instant::now();
                    client.encrypt_data(this.request(message)).await?;
                    times.push(micros(began.elapsed())?);
                }
                Outcome::Ok(times)
            });
        }
        let mut all = Histogram::new(3)?;
        while let Some(times) = callers.join_next().await {
            for time in times?? {
                all.record(time)?;
            }
        }
        Ok(all)
    }
}

fn micros(time: Duration) -> Outcome<u64> {
    Ok(u64::try_from(time.as_micros())?)
}

/// An etcd of one member, which ends with its value.
struct Etcd {
    process: Child,
    client: SocketAddr,
    data: TempDir,
}

impl Etcd {
    fn start() -> Outcome<Self> {
        let data = server::directory()?;
        let port = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (client, peer) = (port()?, port()?);
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
            .arg(format!("--initial-cluster=default=http://{peer}"))
            .arg("--quota-backend-bytes=8589934592")
            .args([
                "--auto-compaction-mode=revision",
                "--auto-compaction-retention=10000",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = process.map_err(|error| format!("etcd: {error}"))?;
        let etcd = Self {
            process,
            client,
            data,
        };
        let began = Instant::now();
        while TcpStream::connect(client).is_err() {
            if began.elapsed() > Duration::from_secs(30) {
                return Err("etcd does not answer".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }

    /// The size of the database.
    fn size(&self) -> Outcome<u64> {
        Ok(fs::metadata(self.data.path().join("member/snap/db"))?.len())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended already, and nobody is left to tell if it cannot be ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
