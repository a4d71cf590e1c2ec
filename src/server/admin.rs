//! The admin listener: liveness, readiness and metrics, for probes and scrapers. No credential, no
//! secret, no key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::watch;
use tower::Service;

use crate::auth::Peer;
use crate::server::bind::Listener;
use crate::server::body::Body;
use crate::server::listen::{self, Answer, Lives};
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

/// Serves what [`router`] routes, until it is dropped: a server that stops is asked how it is until its end.
pub(super) async fn serve(listener: Listener, router: Router, lives: Lives) {
    let (_never, stop) = watch::channel(false);
    listen::serve(listener, None, Probes(router), stop, lives).await;
}

/// Answers whoever asks.
struct Probes(Router);

impl Answer for Probes {
    async fn answer(&self, _: &Peer, request: Request<Incoming>) -> Response<Body> {
        match self.0.clone().call(request).await {
            Ok(response) => response.map(Body::from),
            Err(never) => match never {},
        }
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;
    use crate::server::front;
    use crate::server::listen::FIRST_WORDS;

    // The clock is paused and jumps to the next timer when nothing else is to do.

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_left_as_soon_as_on_the_other_listeners() {
        let mut silent = connected().await;
        let begun = Instant::now();
        let mut answer = Vec::new();
        silent.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty(), "{answer:?}");
        let bounds = FIRST_WORDS..FIRST_WORDS + Duration::from_secs(1);
        assert!(bounds.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_scraper_keeps_its_connection_and_an_idle_one_ends() {
        let mut scraper = connected().await;
        for _ in 0..3 {
            let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
            scraper.write_all(request).await.unwrap();
            let mut answer = [0; 1024];
            let read = scraper.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..read]);
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:?}");
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        let mut rest = Vec::new();
        let end = scraper.read_to_end(&mut rest);
        let end = tokio::time::timeout(Duration::from_secs(60), end).await;
        assert!(end.unwrap().is_ok() && rest.is_empty(), "{rest:?}");
    }

    /// A connection to a listener that serves on.
    async fn connected() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(front::names()));
        let router = router(metrics, Readiness::stateless());
        let lives = Lives {
            age: Duration::from_secs(3600),
            drain: Duration::from_secs(5),
        };
        tokio::spawn(serve(listener.into(), router, lives));
        TcpStream::connect(address).await.unwrap()
    }
}
