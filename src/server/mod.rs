//! The one place that builds things: it turns a configuration into a running server, and stops it
//! well.
//!
//! ```text
//! gRPC listener ─► Front(gRPC) ─► Routes ─┐
//!                                         ├─► grpc::Server ─► Kms
//! REST listener ─► Front(REST) ─► gateway ┘
//! admin listener ─► /livez /readyz /metrics
//! ```
//!
//! Both faces have the same front: request id, metrics, deadline, limits, credentials. The caller
//! binds the listeners and decides when to stop, so a test may use port 0 and a channel where the
//! program uses the configuration and SIGTERM.

mod admin;
mod bind;
mod body;
mod etcd;
mod front;
mod listen;
mod root;
mod store;
mod tls;
mod token;

use std::fmt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::audit::Sink;
use crate::audit::json_lines::JsonLines;
use crate::auth::aksk::AccessKeys;
use crate::auth::file::{FileError, Refresh, Secrecy, Watched};
use crate::auth::https::{Endpoint, EndpointError};
use crate::auth::iam::{self, Iam, Keystone};
use crate::auth::jwt::{self, Jwt, KeySet};
use crate::auth::mtls::{ClientCertificates, Forwarded, Neighbour, Rule, Rules, Strangers};
use crate::auth::policy::Policy;
use crate::auth::token::Tokens;
use crate::auth::{Authenticator, Chain};
use crate::config::{self, Config};
use crate::crypto::aws_lc::AwsLc;
use crate::crypto::pool::{Pool, PoolError};
use crate::crypto::root::{Root, RootKeyError};
use crate::crypto::rustcrypto::RustCrypto;
use crate::crypto::{Choice, InvalidProviders, Provider, ProviderError, Providers};
use crate::domain::address::Address;
use crate::domain::caller::{Action, Actions, Caller};
use crate::domain::key::{
    KeyAlias, KeyDescription, KeyId, KeySpec, KeyUsage, ProjectId, RootKeyId,
};
use crate::domain::rate::Rate;
use crate::domain::request::RequestId;
use crate::domain::time::{Clock, Stopwatch, Timestamp};
use crate::error::{Causes, Error, Kind};
use crate::gateway;
use crate::grpc;
use crate::grpc::pb::crypto_service_server::CryptoServiceServer;
use crate::grpc::pb::key_service_server::KeyServiceServer;
use crate::grpc::pb::operator_service_server::OperatorServiceServer;
use crate::server::admin::Readiness;
use crate::server::front::{Common, Face, Front, Guard};
use crate::server::listen::Lives;
use crate::server::store::Opened;
use crate::server::tls::{Acceptor, Tls};
use crate::server::token::Token;
use crate::service::keyring::Keyring;
use crate::service::limits::{Limit, Limits};
use crate::service::{Context, Kms, Listings, NewKey, Sweep};
use crate::store::StoreError;
use crate::store::copy::CopyError;
use crate::store::freshness::Freshness;
use crate::store::root_keys::RootKeysError;
use crate::store::sqlite::{Findings, Sqlite};
use crate::telemetry::{Metrics, Read};

pub use crate::server::bind::Listener;
pub use crate::store::copy::Progress as Copied;

/// The most bytes of a request's message, body, and headers each.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// How often credential and policy files are looked at.
const REFRESH: Duration = Duration::from_secs(1);

/// How often a store is looked at that may not be served as it is.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The processor time that may be used at once where a limit does not say it.
const BURST: Duration = Duration::from_secs(1);

/// How often keys past their deletion date are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// The bound sockets of a server.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC.
    pub grpc: Listener,
    /// For REST.
    pub rest: Listener,
    /// For probes and metrics.
    pub admin: Listener,
}

impl Listeners {
    /// Binds the configured addresses.
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        Ok(Self {
            grpc: bind(&config.grpc).await?,
            rest: bind(&config.rest).await?,
            admin: bind(&config.admin).await?,
        })
    }
}

/// Binds one address.
pub async fn bind(address: &Address) -> Result<Listener, StartError> {
    let bound = Listener::bind(address).await;
    bound.map_err(|error| StartError::Bind(address.clone(), error))
}

/// A server, built and not yet serving.
pub struct Server {
    kms: Arc<Kms>,
    chain: Chain,
    tls: Option<Arc<Tls>>,
    files: Vec<Arc<dyn Refresh>>,
    fetched: Vec<Arc<jwt::Fetched>>,
    keystone: Option<Arc<Keystone>>,
    audit: Arc<JsonLines>,
    token: Option<Token>,
    place: grpc::Place,
    reflection: bool,
    limits: config::Limits,
    shutdown: config::Shutdown,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// Builds everything that `config` names: opens the store, reads the credentials and starts the
    /// threads.
    pub fn build(config: &Config) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let token = Token::open(config)?;
        let roots = root::load(config, token.as_ref())?;
        let codec = root::codec(&roots)?;
        let root_keys = Arc::new(root::names(&roots));
        let roots: Arc<dyn Root> = roots;
        let providers = Arc::new(providers(&config.crypto, &roots, token.as_ref())?);
        let Opened {
            store,
            backup,
            files: store_files,
        } = store::open(&config.store, codec)?;
        let Credentials {
            chain,
            mut files,
            fetched,
            keystone,
        } = load_credentials(config, &clock)?;
        let tls = load_tls(config.tls.as_ref())?;
        files.extend(tls.iter().map(|tls| Arc::<Tls>::clone(tls) as _));
        let policy = load_policy(config)?;
        files.extend(policy.file());
        files.extend(store_files);
        let audit = Arc::new(open_audit(&config.audit)?);
        let limits = config.limits.clone();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = limits.cpu_threads.map_or(cores, usize::from);
        let mut pool = Pool::new(threads, limits.cpu_queue.get())?;
        if let Some(token) = &config.pkcs11 {
            pool = pool.with_devices(token.sessions.get())?;
        }
        let sink: Arc<dyn Sink> = Arc::<JsonLines>::clone(&audit);
        let kms = Kms {
            store,
            providers,
            root_keys,
            backup,
            keyring: Arc::new(Keyring::new(limits.opened_keys.get())),
            listings: Listings::default(),
            pool: Arc::new(pool),
            policy,
            limits: limits_of(&limits),
            audit: sink,
            clock,
            new_key_id,
        };
        Ok(Self {
            kms: Arc::new(kms),
            chain,
            tls,
            files,
            fetched,
            keystone,
            audit,
            token,
            place: grpc::Place {
                domain_id: config.domain_id.clone(),
                realm: config.realm.clone(),
            },
            reflection: config.reflection,
            limits,
            shutdown: config.shutdown.clone(),
        })
    }

    /// The key that `project` names by `alias`, made if there is none. For `kmsgate dev`, which
    /// needs first keys.
    pub async fn ensure_key(
        &self,
        project: &ProjectId,
        alias: &str,
        spec: KeySpec,
        key_id: Option<KeyId>,
    ) -> Result<KeyId, StartError> {
        let alias: KeyAlias = alias.parse().map_err(|_| StartError::FirstKeys(None))?;
        let failed = |error| StartError::FirstKeys(Some(error));
        if let Some(key) = self.kms.find_alias(project, &alias).await.map_err(failed)? {
            return Ok(key);
        }
        let context = Arc::new(Context {
            request_id: RequestId::new(0),
            caller: Arc::new(Caller {
                name: "kmsgate dev".into(),
                project: project.clone(),
                roles: Arc::default(),
                actions: Actions::ALL,
            }),
            told: AtomicBool::new(false),
        });
        let new = NewKey {
            alias,
            description: KeyDescription::default(),
            spec,
            usage: Some(KeyUsage::EncryptDecrypt),
            key_id,
        };
        let begun = self.kms.begin(Some(&context), Action::CreateKey);
        let mut call = begun.map_err(failed)?;
        let made = self.kms.create(&mut call, new).await;
        let key = call.end(made).map_err(failed)?;
        Ok(key.key_id)
    }

    /// Serves until `stop` completes, then drains.
    ///
    /// The server first says that it is not ready and goes on for the configured lag; then it
    /// accepts no more connections, lets the requests in work end for at most the configured time,
    /// and returns.
    pub async fn serve(
        mut self,
        listeners: Listeners,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StartError> {
        let held_back = Arc::new(AtomicBool::new(false));
        let stale = Arc::new(AtomicU64::new(0));
        let token = self.token.take();
        let metrics = Arc::new(self.metrics(&held_back, &stale, token));
        let serving_at = ServingAt {
            grpc: Some(place(&listeners.grpc)),
            rest: place(&listeners.rest),
            admin: place(&listeners.admin),
        };
        let readiness = Readiness::new(Arc::clone(&self.kms.store));
        // Probes are answered while the store is waited for.
        let probes = admin::router(Arc::clone(&metrics), readiness.clone());
        let lives = Lives {
            age: self.limits.connection_age,
            drain: self.shutdown.drain,
        };
        let admin = AbortOnDrop(tokio::spawn(admin::serve(listeners.admin, probes, lives)));
        let following = {
            let kms = Arc::clone(&self.kms);
            tokio::spawn(follow(kms))
        };
        // What is wrong with the way to the store may be mended in a file.
        let refreshing = AbortOnDrop(tokio::spawn(refresh(
            std::mem::take(&mut self.files),
            stale,
        )));
        let following = AbortOnDrop(following);
        let mut stop = pin!(stop);
        tokio::select! {
            ready = self.wait_for_store() => ready?,
            () = &mut stop => return Ok(()),
        }
        let guard = Guard {
            chain: self.chain,
            kms: Arc::clone(&self.kms),
        };
        let requests = Arc::clone(&metrics.requests);
        let common = Arc::new(Common::new(Some(guard), requests, &self.limits));

        let service = Arc::new(grpc::Server::new(Arc::clone(&self.kms), self.place.clone()));
        let (health, health_service) = tonic_health::server::health_reporter();
        let crypto = CryptoServiceServer::from_arc(Arc::clone(&service));
        let keys = KeyServiceServer::from_arc(Arc::clone(&service));
        let operator = OperatorServiceServer::from_arc(Arc::clone(&service));
        let health_service = health_service.max_decoding_message_size(MAX_MESSAGE);
        let mut routes = Routes::new(health_service)
            .add_service(crypto.max_decoding_message_size(MAX_MESSAGE))
            .add_service(keys.max_decoding_message_size(MAX_MESSAGE))
            .add_service(operator.max_decoding_message_size(MAX_MESSAGE));
        if self.reflection {
            routes = reflect(routes)?;
        }
        let direct = gateway::Direct::new(Arc::<grpc::Server>::clone(&service));
        let rest = gateway::router(Arc::clone(&service), Arc::clone(&service));

        let (draining, drain) = watch::channel(false);
        let grpc = routes.prepare().into_axum_router();
        let grpc = Front::grpc(Arc::clone(&common), grpc, service);
        let rest = Front::rest(common, rest, direct);
        let tls = |face| {
            let tls = self.tls.as_ref().map(Arc::clone);
            tls.map(|tls| Acceptor::new(tls, face))
        };
        let (grpc_tls, rest_tls) = (tls(Face::Grpc), tls(Face::Rest));
        let (grpc_port, rest_port) = (listeners.grpc, listeners.rest);
        let serving = [
            tokio::spawn(listen::serve(
                grpc_port,
                grpc_tls,
                grpc,
                drain.clone(),
                lives,
            )),
            tokio::spawn(listen::serve(rest_port, rest_tls, rest, drain, lives)),
        ];
        let mut chores = vec![tokio::spawn(sweep(Arc::clone(&self.kms), held_back))];
        let follow = |keys: Arc<jwt::Fetched>| tokio::spawn(async move { keys.follow().await });
        chores.extend(self.fetched.into_iter().map(follow));
        readiness.start();
        tell_health(&health, ServingStatus::Serving).await;
        if let Some(freshness) = self.kms.store.freshness() {
            let told = tell_of_store(Arc::clone(freshness), readiness.clone(), health.clone());
            chores.push(tokio::spawn(told));
        }
        serving_at.log();

        stop.await;
        readiness.stop();
        tracing::info!("stopping");
        tell_health(&health, ServingStatus::NotServing).await;
        tokio::time::sleep(self.shutdown.lag).await;
        draining.send_replace(true);
        for task in serving {
            // A listener that failed has said so in the log.
            let _ = task.await;
        }
        for task in chores {
            task.abort();
        }
        drop((following, refreshing));
        admin.end().await;
        tracing::info!("stopped");
        Ok(())
    }

    /// Waits until the store answers, if it is one that others serve, and has proven that its changes
    /// are heard. Fails for a store that will not come by waiting.
    async fn wait_for_store(&self) -> Result<(), StartError> {
        let is_shared = self.kms.store.freshness().is_some();
        let mut told = false;
        loop {
            match self.claim_store().await {
                Err(error @ StartError::Store(_, StoreError::Unavailable(_))) if is_shared => {
                    if !told {
                        tracing::warn!(%error, "waiting for the key store");
                    }
                    told = true;
                    tokio::time::sleep(REFRESH).await;
                }
                checked => break checked?,
            }
        }
        let is_fresh = || {
            let freshness = self.kms.store.freshness();
            freshness.is_none_or(|freshness| freshness.check().is_ok())
        };
        while !is_fresh() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Refuses a store that was written under another root key, because every request would fail, and
    /// one that needs a root key that is not configured, because some would. A new one becomes this
    /// root key's.
    pub async fn claim_store(&self) -> Result<(), StartError> {
        let store = &*self.kms.store;
        let entered = async {
            if store.get(&crate::store::Address::Copy).await?.is_some() {
                return Ok(false);
            }
            // Before the clock, because it can say which root key is missing.
            self.kms.root_keys.enter(store).await?;
            store.get(&crate::store::Address::Clock).await?;
            // A copy begins in an empty store alone, so none can begin from here on.
            Ok(store.get(&crate::store::Address::Copy).await?.is_none())
        };
        match entered.await {
            Ok(true) => {}
            Ok(false) => return Err(StartError::UnfinishedCopy),
            Err(RootKeysError::Store(StoreError::Corrupt(_))) => {
                return Err(StartError::WrongRootKey);
            }
            Err(RootKeysError::Store(error)) => {
                return Err(StartError::Store("the key store".to_owned(), error));
            }
            Err(error) => return Err(StartError::RootKeys(error)),
        }
        if self.kms.root_keys.listed() > 1 {
            tracing::info!(
                root_key = %self.kms.root_keys.sealing(),
                "the store needs previous root keys too: `kmsgate root-key rotate` puts all under the first"
            );
        }
        Ok(())
    }

    fn metrics(
        &self,
        held_back: &Arc<AtomicBool>,
        stale: &Arc<AtomicU64>,
        token: Option<Token>,
    ) -> Metrics {
        let mut metrics = Metrics::new(front::names());
        let kms = Arc::clone(&self.kms);
        metrics.gauge(
            "kmsgate_opened_keys",
            "Keys held opened in memory.",
            move || kms.keyring.len() as u64,
        );
        let kms = Arc::clone(&self.kms);
        metrics.gauge(
            "kmsgate_cpu_queue_length",
            "Private-key operations that wait for a thread.",
            move || kms.pool.waiting() as u64,
        );
        let kms = Arc::clone(&self.kms);
        metrics.gauge(
            "kmsgate_root_keys_in_use",
            "Root keys that the store needs, as this server last saw; 1 after a complete rotation.",
            move || kms.root_keys.listed(),
        );
        let held_back = Arc::clone(held_back);
        metrics.gauge(
            "kmsgate_clock_held",
            "1 while nothing is destroyed because the clock jumped.",
            move || u64::from(held_back.load(Ordering::Relaxed)),
        );
        let audit = Arc::clone(&self.audit);
        metrics.counter(
            "kmsgate_audit_lost",
            "Events that the audit could not keep.",
            move || audit.lost(),
        );
        let refusals = |of: fn(&Limits) -> Option<&Limit>| -> Read {
            let kms = Arc::clone(&self.kms);
            Box::new(move || of(&kms.limits).map_or(0, Limit::refused))
        };
        metrics.counters(
            "kmsgate_throttled",
            "Requests that were over a limit per caller or per key.",
            "limit",
            vec![
                (
                    "per_caller.requests_per_second",
                    refusals(|limits| limits.requests.as_ref()),
                ),
                (
                    "per_caller.cores",
                    refusals(|limits| limits.caller.as_ref()),
                ),
                ("per_key.cores", refusals(|limits| limits.key.as_ref())),
            ],
        );
        if let Some(freshness) = self.kms.store.freshness() {
            let of = Arc::clone(freshness);
            metrics.gauge(
                "kmsgate_store_staleness_milliseconds",
                "How old what is held in memory of the key store may be.",
                move || {
                    let age = of.age().unwrap_or(Duration::MAX);
                    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
                },
            );
            let of = Arc::clone(freshness);
            metrics.gauge(
                "kmsgate_store_unavailable",
                "1 while data calls are refused because the key store proves nothing.",
                move || u64::from(of.check().is_err()),
            );
        }
        tell_of_files(&mut metrics, stale);
        if let Some(tls) = &self.tls {
            tell_of_tls(&mut metrics, tls);
        }
        if let Some(keystone) = &self.keystone {
            let of = Arc::clone(keystone);
            metrics.counter(
                "kmsgate_iam_failed_requests",
                "Questions that the IAM service did not answer.",
                move || of.failed(),
            );
            let of = Arc::clone(keystone);
            metrics.gauge(
                "kmsgate_iam_unavailable",
                "1 while the IAM service is not asked because it failed.",
                move || u64::from(of.rests()),
            );
        }
        if !self.fetched.is_empty() {
            let fetched = self.fetched.clone();
            metrics.counter(
                "kmsgate_jwks_failed_fetches",
                "Fetches of issuers' keys that failed; the last keys stay.",
                move || fetched.iter().map(|keys| keys.failed()).sum(),
            );
            let fetched = self.fetched.clone();
            metrics.gauge(
                "kmsgate_jwks_age_seconds",
                "How long ago issuers' keys were fetched: the oldest.",
                move || {
                    let ages = fetched.iter().map(|keys| keys.age().as_secs());
                    ages.max().unwrap_or_default()
                },
            );
        }
        if let Some(token) = token {
            metrics.gauge(
                "kmsgate_pkcs11_token_there",
                "1 while the hardware module's token answers.",
                move || u64::from(token.is_there()),
            );
        }
        metrics
    }
}

fn tell_of_files(metrics: &mut Metrics, stale: &Arc<AtomicU64>) {
    let stale = Arc::clone(stale);
    metrics.gauge(
        "kmsgate_stale_credential_files",
        "Changed credential and policy files that cannot be used; their last good content stays.",
        move || stale.load(Ordering::Relaxed),
    );
}

fn tell_of_tls(metrics: &mut Metrics, tls: &Arc<Tls>) {
    let of = Arc::clone(tls);
    metrics.counter(
        "kmsgate_tls_failed_handshakes",
        "TLS handshakes that failed, or took too long.",
        move || of.failed(),
    );
    let of = Arc::clone(tls);
    metrics.gauge(
        "kmsgate_tls_certificate_not_after_seconds",
        "When the server's certificate ends, in seconds since 1970.",
        move || u64::try_from(of.not_after().0 / 1000).unwrap_or(0),
    );
}

/// The names under which the health service answers: the server as a whole, and each service.
const SERVICES: [&str; 4] = [
    "",
    "kmsgate.v1.CryptoService",
    "kmsgate.v1.KeyService",
    "kmsgate.v1.OperatorService",
];

async fn tell_health(health: &HealthReporter, status: ServingStatus) {
    for name in SERVICES {
        health.set_service_status(name, status).await;
    }
}

/// Tells the log and the health service, for ever, whether a store that others serve is there.
async fn tell_of_store(freshness: Arc<Freshness>, readiness: Readiness, health: HealthReporter) {
    let mut ticks = tokio::time::interval(REFRESH);
    let (mut was_fresh, mut was_ready) = (true, true);
    loop {
        ticks.tick().await;
        let (fresh, ready) = (freshness.check().is_ok(), readiness.check().await.is_ok());
        if fresh != was_fresh {
            if fresh {
                tracing::info!("the key store is there again");
            } else {
                tracing::error!(
                    "the key store does not prove that all changes are known: data calls are refused"
                );
            }
        }
        if ready != was_ready {
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            tell_health(&health, status).await;
        }
        (was_fresh, was_ready) = (fresh, ready);
    }
}

/// Serves REST in front of a remote kmsgate until `stop` completes and for `lag` after that, and reads `files`
/// again when they change.
pub async fn serve_gateway(
    rest: Listener,
    tls: Option<&config::Tls>,
    admin_listener: Listener,
    upstream: gateway::Upstream,
    mut files: Vec<Arc<dyn Refresh>>,
    lag: Duration,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let tls = load_tls(tls)?;
    let stale = Arc::new(AtomicU64::new(0));
    let mut metrics = Metrics::new(front::names());
    if let Some(tls) = &tls {
        tell_of_tls(&mut metrics, tls);
        files.push(Arc::<Tls>::clone(tls));
    }
    if !files.is_empty() {
        tell_of_files(&mut metrics, &stale);
    }
    let metrics = Arc::new(metrics);
    let limits = config::Limits {
        request_timeout: upstream.timeout(),
        ..config::Limits::default()
    };
    let lives = Lives {
        age: limits.connection_age,
        drain: config::Shutdown::default().drain,
    };
    let requests = Arc::clone(&metrics.requests);
    let upstream = Arc::new(upstream);
    let direct = gateway::Direct::new(Arc::<gateway::Upstream>::clone(&upstream));
    let router = gateway::router(Arc::clone(&upstream), upstream);
    let common = Arc::new(Common::new(None, requests, &limits));
    let front = Front::rest(common, router, direct);
    let serving_at = ServingAt {
        grpc: None,
        rest: place(&rest),
        admin: place(&admin_listener),
    };
    let (draining, drain) = watch::channel(false);
    let readiness = Readiness::stateless();
    let refreshing = tokio::spawn(refresh(files, stale));
    let tls = tls.map(|tls| Acceptor::new(tls, Face::Rest));
    let serving = tokio::spawn(listen::serve(rest, tls, front, drain, lives));
    let probes = admin::router(metrics, readiness.clone());
    let admin = AbortOnDrop(tokio::spawn(admin::serve(admin_listener, probes, lives)));
    readiness.start();
    serving_at.log();
    stop.await;
    readiness.stop();
    tracing::info!("stopping");
    tokio::time::sleep(lag).await;
    draining.send_replace(true);
    let _ = serving.await;
    refreshing.abort();
    admin.end().await;
    Ok(())
}

/// A task that ends with what holds it.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> AbortOnDrop<T> {
    /// Ends the task, and what it holds with it: a socket's file.
    async fn end(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

/// Where a server can be reached: what was configured may have been port 0, for any free one.
struct ServingAt {
    grpc: Option<String>,
    rest: String,
    admin: String,
}

impl ServingAt {
    fn log(&self) {
        let Self { grpc, rest, admin } = self;
        tracing::info!(grpc, rest, admin, "serving");
    }
}

fn place(listener: &Listener) -> String {
    let bound = listener.address();
    bound.map_or_else(|error| error.to_string(), |address| address.to_string())
}

/// Reads what `config` names, as a start would, and changes nothing: the store is not opened.
pub fn check(config: &Config) -> Result<(), StartError> {
    let token = Token::open(config)?;
    let roots: Arc<dyn Root> = root::load(config, token.as_ref())?;
    providers(&config.crypto, &roots, token.as_ref())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    load_credentials(config, &clock)?;
    load_tls(config.tls.as_ref())?;
    load_policy(config)?;
    if let config::Store::Etcd(etcd) = &config.store {
        etcd::check(etcd)?;
    }
    Ok(())
}

/// Reads the whole store that `config` names, which no server may have open: that takes as long as
/// the store is large, so a start does not do it.
pub fn check_records(config: &Config) -> Result<Findings, StartError> {
    let path = match &config.store {
        config::Store::Sqlite { path } => path,
        config::Store::Etcd(_) => return Err(StartError::NotAFile),
        config::Store::Memory {} => return Err(StartError::NoStore),
    };
    let token = Token::open(config)?;
    let roots = root::load(config, token.as_ref())?;
    let codec = root::codec(&roots)?;
    let checked = Sqlite::check(path, codec, &root::names(&roots));
    checked.map_err(|error| StartError::Store(shown(path), error))
}

/// Copies one store into another, neither of which may be in use, and tells how many records are copied,
/// verified, and there in all.
pub async fn copy_store(
    config: &Config,
    from: &config::Store,
    to: &config::Store,
    tell: impl Fn(Copied),
) -> Result<Copied, StartError> {
    store::copy(config, from, to, tell).await
}

/// Makes the root key that `config` wants in its token.
pub fn new_root_key_in_token(config: &Config) -> Result<(), StartError> {
    let token = Token::open(config)?.ok_or(StartError::NoToken)?;
    token.new_root_key()
}

/// The configured providers, whose keys are sealed under `root`.
fn providers(
    crypto: &config::Crypto,
    root: &Arc<dyn Root>,
    token: Option<&Token>,
) -> Result<Providers, StartError> {
    let choices = crypto.providers.iter().map(|configured| {
        let provider: Arc<dyn Provider> = match configured {
            config::Provider::AwsLc { .. } => Arc::new(AwsLc::new(Arc::clone(root))),
            config::Provider::RustCrypto { .. } => Arc::new(RustCrypto::new(Arc::clone(root))),
            config::Provider::Pkcs11 { .. } => token.ok_or(StartError::NoToken)?.provider(root)?,
        };
        let specs = configured.key_specs().map(<[KeySpec]>::to_vec);
        Ok(Choice { provider, specs })
    });
    let choices: Result<_, StartError> = choices.collect();
    Ok(Providers::new(choices?)?)
}

/// Who is let in, and the files and addresses that say so.
struct Credentials {
    chain: Chain,
    files: Vec<Arc<dyn Refresh>>,
    fetched: Vec<Arc<jwt::Fetched>>,
    keystone: Option<Arc<Keystone>>,
}

fn load_credentials(config: &Config, clock: &Arc<dyn Clock>) -> Result<Credentials, StartError> {
    let mut authenticators: Vec<Arc<dyn Authenticator>> = Vec::new();
    let mut files: Vec<Arc<dyn Refresh>> = Vec::new();
    let mut fetched = Vec::new();
    // Before the file of tokens: what is a JSON Web Token is nothing else.
    if !config.auth.jwt.is_empty() {
        let mut issuers = Vec::new();
        for configured in &config.auth.jwt {
            let keys = issuer_keys(configured, clock)?;
            match &keys {
                jwt::Keys::File(file) => files.push(Arc::<Watched<KeySet>>::clone(file)),
                jwt::Keys::Url(keys) => {
                    files.extend(keys.ca_file());
                    fetched.push(Arc::clone(keys));
                }
            }
            issuers.push(issuer(configured, keys));
        }
        authenticators.push(Arc::new(Jwt::new(issuers, Arc::clone(clock))));
    }
    if let Some(path) = &config.auth.token_file {
        let tokens = Tokens::load(path, Arc::clone(clock));
        let tokens = tokens.map_err(|error| StartError::File(shown(path), error))?;
        let tokens = Arc::new(if config.auth.iam.is_some() {
            tokens.leaving_unknown()
        } else {
            tokens
        });
        authenticators.push(Arc::<Tokens>::clone(&tokens));
        files.push(tokens);
    }
    let keystone = match &config.auth.iam {
        None => None,
        Some(configured) => {
            let keystone = keystone(configured, clock)?;
            files.push(Arc::<Keystone>::clone(&keystone));
            files.extend(keystone.ca_file());
            authenticators.push(Arc::new(iam(configured, &keystone, clock)));
            Some(keystone)
        }
    };
    if let Some(path) = &config.auth.access_key_file {
        let keys = AccessKeys::load(path, Arc::clone(clock));
        let keys = Arc::new(keys.map_err(|error| StartError::File(shown(path), error))?);
        authenticators.push(Arc::<AccessKeys>::clone(&keys));
        files.push(keys);
    }
    // After the headers' credentials: what a caller says is more than what its connection says.
    let rules = Arc::new(identity_rules(&config.auth.mtls));
    let forwarded = config.auth.forwarded.as_ref().map(|forwarded| {
        let believed = forwarded.peers.iter().map(|peer| match peer {
            config::ForwardedPeer::Loopback => Neighbour::Loopback,
            config::ForwardedPeer::Address(address) => Neighbour::Address(*address),
            config::ForwardedPeer::Unix => Neighbour::Unix,
        });
        let (rules, clock) = (Arc::clone(&rules), Arc::clone(clock));
        Arc::new(Forwarded::new(rules, believed.collect(), clock))
    });
    if config.asks_for_certificates() {
        let certificates = ClientCertificates::new(rules, Arc::clone(clock));
        authenticators.push(Arc::new(match &forwarded {
            Some(forwarded) => certificates.beside(Arc::clone(forwarded)),
            None => certificates,
        }));
    }
    if let Some(forwarded) = forwarded {
        authenticators.insert(0, Arc::new(Strangers(Arc::clone(&forwarded))));
        authenticators.push(forwarded);
    }
    let chain = Chain::new(authenticators);
    Ok(Credentials {
        chain,
        files,
        fetched,
        keystone,
    })
}

/// The configured rules that say whom an identity stands for.
pub fn identity_rules(configured: &[config::IdentityRule]) -> Rules {
    let rules = configured.iter().map(|rule| Rule {
        identity: rule.identity.clone(),
        project: rule.project.clone(),
        roles: Arc::clone(&rule.roles),
        actions: rule.actions,
    });
    Rules::new(rules.collect())
}

fn keystone(configured: &config::Iam, clock: &Arc<dyn Clock>) -> Result<Arc<Keystone>, StartError> {
    let endpoint = Endpoint::new(configured.endpoint.clone(), configured.ca_file.as_deref());
    let endpoint = endpoint.map_err(StartError::Iam)?;
    let path = &configured.credential_file;
    let keystone = Keystone::new(endpoint, path, Arc::clone(clock));
    let keystone = keystone.map_err(|error| StartError::File(shown(path), error))?;
    Ok(Arc::new(keystone))
}

fn iam(configured: &config::Iam, keystone: &Arc<Keystone>, clock: &Arc<dyn Clock>) -> Iam {
    let rules = configured.rules.iter().map(|rule| iam::Rule {
        role: rule.role.clone(),
        project: rule.project.clone(),
        actions: rule.actions,
    });
    let (keystone, clock) = (Arc::clone(keystone), Arc::clone(clock));
    Iam::new(keystone, rules.collect(), configured.cache_time, clock)
}

fn issuer(configured: &config::Jwt, keys: jwt::Keys) -> jwt::Issuer {
    let rules = configured.rules.iter().map(|rule| {
        let claims = rule.claims.iter().map(|(path, text)| jwt::Claim {
            path: path.clone(),
            text: text.clone(),
        });
        jwt::Rule {
            claims: claims.collect(),
            project: rule.project.clone(),
            roles: Arc::clone(&rule.roles),
            actions: rule.actions,
        }
    });
    jwt::Issuer {
        name: configured.issuer.clone(),
        keys,
        audiences: configured.audiences.clone(),
        algorithms: configured.algorithms.clone(),
        clock_skew: configured.clock_skew,
        rules: rules.collect(),
    }
}

/// The keys of an issuer: those of its file, or of its address once they are fetched.
fn issuer_keys(configured: &config::Jwt, clock: &Arc<dyn Clock>) -> Result<jwt::Keys, StartError> {
    if let Some(path) = &configured.jwks_file {
        let keys = Watched::load(path, Secrecy::Public, KeySet::parse);
        let keys = keys.map_err(|error| StartError::File(shown(path), error))?;
        return Ok(jwt::Keys::File(Arc::new(keys)));
    }
    let unusable = |error| StartError::Issuer(configured.issuer.clone(), error);
    let uri = configured.jwks_url.clone().ok_or(EndpointError::Address);
    let from = uri.and_then(|uri| Endpoint::new(uri, configured.ca_file.as_deref()));
    let bearer = configured.bearer_token_file.clone();
    if let Some(path) = &bearer {
        // It is read at each fetch; one that is not there is a mistake that the start can tell.
        let there = path.metadata().map_err(FileError::from);
        there.map_err(|error| StartError::File(shown(path), error))?;
    }
    let keys = jwt::Fetched::new(from.map_err(unusable)?, bearer, Arc::clone(clock));
    Ok(jwt::Keys::Url(Arc::new(keys)))
}

fn load_tls(config: Option<&config::Tls>) -> Result<Option<Arc<Tls>>, StartError> {
    let load = |tls: &config::Tls| {
        let loaded = Tls::load(tls).map(Arc::new);
        loaded.map_err(|error| StartError::File(shown(&tls.certificate_file), error))
    };
    config.map(load).transpose()
}

/// The configured limits on callers and keys.
fn limits_of(config: &config::Limits) -> Limits {
    let config::Limits {
        per_caller,
        per_key,
        ..
    } = config;
    let stopwatch: Arc<dyn Stopwatch> = Arc::new(Running(Instant::now()));
    let limit = |rate| Limit::new(rate, Arc::clone(&stopwatch));
    let requests = per_caller.requests_per_second.map(|rate| {
        let burst = per_caller.requests_burst.unwrap_or(rate);
        limit(Rate::requests(rate, burst))
    });
    let time = |cores: Option<_>, burst: Option<_>| {
        let burst = burst.unwrap_or(BURST);
        cores.map(|cores| limit(Rate::cores(cores, burst)))
    };
    Limits {
        requests,
        caller: time(per_caller.cores, per_caller.burst),
        key: time(per_key.cores, per_key.burst),
    }
}

fn load_policy(config: &Config) -> Result<Policy, StartError> {
    let Some(path) = &config.auth.policy_file else {
        return Ok(Policy::default());
    };
    let policy = Policy::load(path);
    policy.map_err(|error| StartError::Policy(shown(path), error))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Adds reflection v1 and v1alpha over our schema, the health service and the details of errors.
fn reflect(routes: Routes) -> Result<Routes, StartError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(grpc::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = builder().build_v1()?.max_decoding_message_size(MAX_MESSAGE);
    let v1alpha = builder().build_v1alpha()?;
    let v1alpha = v1alpha.max_decoding_message_size(MAX_MESSAGE);
    Ok(routes.add_service(v1).add_service(v1alpha))
}

/// Follows the store, for ever. One that may be another than before is not served until it is known to be one
/// that may be.
async fn follow(kms: Arc<Kms>) {
    loop {
        kms.store.follow(&*kms).await;
        let mut told = None;
        loop {
            kms.store.may_be_another();
            let Err(error) = kms.root_keys.accept(&*kms.store).await else {
                break;
            };
            // What stays as it is is told once.
            let error = error.to_string();
            if told.as_ref() != Some(&error) {
                tracing::error!(error, "the key store is not served as it is now");
                told = Some(error);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Reads changed credential and policy files, for ever, and counts in `stale` those that cannot be
/// used.
async fn refresh(files: Vec<Arc<dyn Refresh>>, stale: Arc<AtomicU64>) {
    let mut ticks = tokio::time::interval(REFRESH);
    let mut failures = vec![None; files.len()];
    loop {
        ticks.tick().await;
        for (file, failure) in files.iter().zip(&mut failures) {
            let read = {
                let file = Arc::clone(file);
                tokio::task::spawn_blocking(move || file.refresh()).await
            };
            let file = file.path().display();
            let now = match read {
                Ok(Ok(read)) => {
                    if read {
                        tracing::info!(%file, "read a credential or policy file");
                    }
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            // A file that stays bad is told once, not at every look.
            if let Some(error) = now.as_ref().filter(|_| now != *failure) {
                tracing::error!(%file, error, "cannot use a credential or policy file: its last good content stays");
            }
            *failure = now;
        }
        let bad = failures.iter().filter(|failure| failure.is_some()).count();
        stale.store(bad as u64, Ordering::Relaxed);
    }
}

/// Destroys keys past their deletion date, for ever.
async fn sweep(kms: Arc<Kms>, held_back: Arc<AtomicBool>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        if let Err(error) = kms.root_keys.look(&*kms.store).await {
            tracing::error!(error = %Causes(&error), "the root keys that the store needs");
        }
        match kms.sweep().await {
            Ok(Sweep::Destroyed(_)) => held_back.store(false, Ordering::Relaxed),
            Ok(Sweep::Held(millis)) => {
                held_back.store(true, Ordering::Relaxed);
                tracing::warn!(
                    jump_hours = millis / 3_600_000,
                    "the clock is far from the latest time that was trusted: no key is destroyed \
                     until it comes back or an operator runs `kmsgate key confirm-clock`"
                );
            }
            Err(error) => {
                let cause = error.cause().map(tracing::field::display);
                tracing::error!(cause, "cannot look for keys to destroy");
            }
        }
    }
}

fn open_audit(audit: &config::Audit) -> Result<JsonLines, StartError> {
    let sink = match audit {
        config::Audit::Stdout {} => JsonLines::new(std::io::stdout()),
        config::Audit::File { path } => std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .and_then(JsonLines::new),
    };
    sink.map_err(StartError::Audit)
}

fn new_key_id() -> Result<KeyId, Error> {
    let random = random().map_err(|error| Error::from(Kind::Unavailable).caused_by(error))?;
    Ok(KeyId::from_random(random))
}

/// Bytes from the system's random source.
pub fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut random = [0; N];
    getrandom::fill(&mut random)?;
    Ok(random)
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis());
        Timestamp(i64::try_from(millis).unwrap_or(i64::MAX))
    }
}

/// The machine's time that only passes.
#[derive(Clone, Copy, Debug)]
struct Running(Instant);

impl Stopwatch for Running {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The machine's time that only passes, also while it sleeps: a proof must not look younger after
/// that.
#[derive(Clone, Copy, Debug)]
struct BootClock {
    began: Duration,
}

impl BootClock {
    fn start() -> Self {
        Self { began: boot_time() }
    }
}

impl Stopwatch for BootClock {
    fn elapsed(&self) -> Duration {
        boot_time().saturating_sub(self.began)
    }
}

fn boot_time() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// Why a server does not start, with all causes: whoever starts it must mend them.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Bind(Address, #[source] std::io::Error),
    /// The root key cannot be used.
    #[error("root key {0}: {causes}", causes = Causes(.1))]
    RootKey(String, #[source] RootKeyError),
    /// The token that has the root key does not answer.
    #[error("root key: {causes}", causes = Causes(.0))]
    NoMacKey(#[source] ProviderError),
    /// The token cannot be used.
    #[error("pkcs11: {0}")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configuration names no root key in a token.
    #[error("the configuration names no root_key under [pkcs11]")]
    NoToken,
    /// The configuration names a token, and this program knows of none.
    #[error("pkcs11: this program was built without the feature pkcs11")]
    WithoutPkcs11,
    /// The providers do not fit the key specs.
    #[error("crypto.providers: {0}")]
    Providers(#[from] InvalidProviders),
    /// A credential file cannot be used.
    #[error("credential file {0}: {1}")]
    File(String, #[source] FileError),
    /// The address of an issuer's keys cannot be used.
    #[error("auth.jwt {0:?}: {1}")]
    Issuer(String, #[source] EndpointError),
    /// The IAM service cannot be asked.
    #[error("auth.iam: {0}")]
    Iam(#[source] EndpointError),
    /// The policy file cannot be used.
    #[error("policy file {0}: {1}")]
    Policy(String, #[source] FileError),
    /// The store's records do not verify.
    #[error(
        "the key store was not written under this root key, or it was changed by something else: if \
         the root key was replaced, name those that it needs too in previous_root_key_files"
    )]
    WrongRootKey,
    /// The store needs a root key that is not configured.
    #[error(transparent)]
    RootKeys(RootKeysError),
    /// A copy into the store was begun and not finished.
    #[error("the store is a copy that is not complete: run `kmsgate store copy` again")]
    UnfinishedCopy,
    /// There is no store to copy.
    #[error("store {0}: there is no such file")]
    NoSuchStore(String),
    /// A store was not copied.
    #[error("the store was not copied: {causes}", causes = Causes(.0))]
    Copy(#[source] CopyError),
    /// A root key is configured more than once.
    #[error("root key {0} is configured twice")]
    RootKeyTwice(RootKeyId),
    /// The store cannot be opened.
    #[error("store {0}: {causes}", causes = Causes(.1))]
    Store(String, #[source] StoreError),
    /// The configured store has nothing that could be read.
    #[error("the store is in memory, and gone when its server ends")]
    NoStore,
    /// The configured store is no file.
    #[error(
        "what is checked is a file: `kmsgate store copy` verifies every record of another store"
    )]
    NotAFile,
    /// The first keys of a dev server cannot be made.
    #[error("cannot make the first keys{}", .0.as_ref().map(|error| format!(": {}", Causes(error))).unwrap_or_default())]
    FirstKeys(#[source] Option<Error>),
    /// The system has no random bytes.
    #[error("random source: {0}")]
    Random(#[source] getrandom::Error),
    /// The audit cannot be written.
    #[error("audit: {0}")]
    Audit(#[source] std::io::Error),
    /// The threads cannot be started.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The compiled schema is broken.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
