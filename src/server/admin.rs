//! The admin listener: liveness, readiness and metrics, for probes and scrapers. No credential, no
//! secret, no key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::store::{Address, KeyStore};
use crate::telemetry::Metrics;

/// How long readiness waits for the store.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much older the latest proof of a store that others write to may be than data calls allow, so
/// that servers do not all leave a load balancer while such a store has a short break.
const GRACE: Duration = Duration::from_secs(7);

/// Whether the server can serve: the store answers, and the server is not stopping.
#[derive(Clone, Debug)]
pub(super) struct Readiness {
    store: Option<Arc<dyn KeyStore>>,
    serving: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
}

impl Readiness {
    /// Ready while `store` answers, once the server [serves](Self::start).
    pub(super) fn new(store: Arc<dyn KeyStore>) -> Self {
        Self {
            store: Some(store),
            serving: Arc::default(),
            stopping: Arc::default(),
        }
    }

    /// The same without a store to ask.
    pub(super) fn stateless() -> Self {
        Self {
            store: None,
            serving: Arc::default(),
            stopping: Arc::default(),
        }
    }

    /// Requests are taken from now on.
    pub(super) fn start(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Not ready from now on.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Refuses with a reason while the server cannot serve.
    pub(super) async fn check(&self) -> Result<(), &'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("stopping\n");
        }
        if !self.serving.load(Ordering::Relaxed) {
            return Err("starting\n");
        }
        let Some(store) = &self.store else {
            return Ok(());
        };
        if let Some(freshness) = store.freshness() {
            let most = freshness.bound() + GRACE;
            let is_fresh = freshness.age().is_some_and(|age| age <= most);
            return is_fresh
                .then_some(())
                .ok_or("the store does not prove that all changes are known\n");
        }
        match tokio::time::timeout(PATIENCE, store.get(&Address::Clock)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err("the store does not serve\n"),
            Err(_) => Err("the store does not answer\n"),
        }
    }
}

/// Routes the three paths.
pub(super) fn router(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    let livez = get(async || "ok\n");
    let readyz = get(
        async |State(readiness): State<Readiness>| match readiness.check().await {
            Ok(()) => (StatusCode::OK, "ok\n"),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
        },
    );
    let scrape = get(async move || match metrics.text() {
        Ok(text) => Ok(([(CONTENT_TYPE, OPENMETRICS)], text)),
        Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    });
    Router::new()
        .route("/livez", livez)
        .route("/readyz", readyz)
        .route("/metrics", scrape)
        .with_state(readiness)
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
