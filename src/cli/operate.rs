//! What an operator runs: `serve`, `gateway`, `check-config`, `root-key new` and `token hash`.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;

use crate::auth::file::{Refresh, Watched};
use crate::auth::token;
use crate::cli::{Failure, Gateway, say};
use crate::config::{
    ClientCertificates, Config, LEAST_TIMEOUT, Log, LogFormat, Tls, parse_duration,
};
use crate::crypto::root::RootKey;
use crate::gateway::Upstream;
use crate::server::{self, Listeners, Server};
use crate::telemetry;

/// Serves as `path` says until the process is told to stop.
pub(super) async fn serve(path: &Path) -> Result<(), Failure> {
    let config = read(path)?;
    telemetry::log(&config.log)?;
    // Signals are heard from here on, so that one that comes during the start is not lost.
    let stop = stop_signal()?;
    let server = Server::build(&config)?;
    let listeners = Listeners::bind(&config).await?;
    server.serve(listeners, stop).await?;
    Ok(())
}

/// Serves REST in front of a remote kmsgate until the process is told to stop.
pub(super) async fn gateway(asked: &Gateway) -> Result<(), Failure> {
    telemetry::log(&Log {
        filter: asked.log.clone(),
        format: LogFormat::Json,
    })?;
    let timeout = parse_duration(&asked.timeout)
        .filter(|timeout| *timeout >= LEAST_TIMEOUT)
        .ok_or(
            "--timeout: expected a whole number and ms, s or m, such as 10s, of 10ms at least",
        )?;
    let lag = parse_duration(&asked.shutdown_lag)
        .ok_or("--shutdown-lag: expected a whole number and ms, s or m, such as 5s")?;
    let stop = stop_signal()?;
    let files = (&asked.tls_certificate_file, &asked.tls_private_key_file);
    let tls = match files {
        (Some(certificate), Some(key)) => Some(Tls {
            certificate_file: certificate.clone(),
            private_key_file: key.clone(),
            client_ca_file: None,
            client_certificates: ClientCertificates::Optional,
        }),
        _ => None,
    };
    if tls.is_none() && !asked.allow_plaintext && !asked.rest.is_local() {
        let rest = &asked.rest;
        return Err(format!(
            "{rest} is not on loopback: name a --tls-certificate-file, or say --allow-plaintext if \
             something in front of it encrypts"
        )
        .into());
    }
    let mut files: Vec<Arc<dyn Refresh>> = Vec::new();
    let upstream = match asked.upstream_tls.follow(&asked.upstream, timeout)? {
        Some(channel) => {
            files.push(Arc::<Watched<Channel>>::clone(&channel));
            Upstream::behind(move || Channel::clone(&channel.current()), timeout)
        }
        None => {
            let endpoint = asked.upstream_tls.endpoint(&asked.upstream)?;
            Upstream::new(endpoint.connect_timeout(timeout).connect_lazy(), timeout)
        }
    };
    let rest = server::bind(&asked.rest).await?;
    let admin = server::bind(&asked.admin).await?;
    server::serve_gateway(rest, tls.as_ref(), admin, upstream, files, lag, stop).await?;
    Ok(())
}

/// Says whether a server would start with the configuration at `path`, without opening its store.
pub(super) fn check_config(path: &Path) -> Result<(), Failure> {
    let config = read(path)?;
    telemetry::check(&config.log)?;
    server::check(&config)?;
    say(format!("{} is good", path.display()))
}

/// Makes a root key in a new file.
pub(super) fn new_root_key(path: &Path) -> Result<(), Failure> {
    RootKey::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
    say(format!(
        "made {}\nKeep a copy where a fire or a thief of this machine does not reach it: without it no key opens.",
        path.display()
    ))
}

/// Makes a root key in the token that the configuration at `path` names.
pub(super) fn new_root_key_in_token(path: &Path) -> Result<(), Failure> {
    let config = read(path)?;
    server::new_root_key_in_token(&config)?;
    say(
        "made a root key in the token\nHave the token backed up by its own means: without this key no other opens.",
    )
}

/// Prints the hash of the token on standard input.
pub(super) fn hash_token() -> Result<(), Failure> {
    let mut token = zeroize::Zeroizing::new(Vec::new());
    std::io::stdin()
        .lock()
        .take(64 * 1024)
        .read_to_end(&mut token)?;
    let token = token.strip_suffix(b"\n").unwrap_or(&token);
    if token.is_empty() {
        return Err("expected a token on standard input".into());
    }
    say(token::hash(token))
}

/// Completes when the process is told to stop, by SIGTERM or from the keyboard.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

pub(super) fn read(path: &Path) -> Result<Config, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config = Config::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(config)
}
