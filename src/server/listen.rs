//! Accepting connections, and letting them end.
//!
//! One loop serves every listener: HTTP/1.1 and HTTP/2 in plain text, each connection in a task of
//! its own. A connection that never speaks, speaks too slowly, or has silently gone is closed; none
//! holds up another.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long a client may take to send its first bytes.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// How long an HTTP/1.1 connection may stay idle, and how long the head of its next request may
/// take: the HTTP library has one limit for both, and clients keep connections in pools.
const IDLE: Duration = Duration::from_secs(60);

/// The length of the HTTP/2 connection preface (RFC 9113, section 3.4). No HTTP/1.1 request is
/// shorter.
const PREFACE: usize = 24;

/// How often a silent HTTP/2 connection is asked whether it is still there, and how long it may
/// take to say so.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(10);

/// The most that one HTTP/2 connection may have in work.
const STREAMS: u32 = 1024;

/// The most bytes of headers that are read at all. The front refuses less, with a sentence.
const HEADERS: u32 = 256 * 1024;

/// How long accepting pauses when the machine has no more sockets to give.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Answers requests.
pub(super) trait Answer: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// Serves `listener` until `stop` turns true, then lets open requests end within `drain`.
pub(super) async fn serve(
    listener: TcpListener,
    answer: impl Answer,
    mut stop: watch::Receiver<bool>,
    drain: Duration,
) {
    let answer = Arc::new(answer);
    let builder = Arc::new(builder());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        let (answer, builder) = (Arc::clone(&answer), Arc::clone(&builder));
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            // Small answers must not wait for more.
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |request| {
                let answer = Arc::clone(&answer);
                async move { Ok::<_, Infallible>(answer.answer(request).await) }
            });
            let io = Counted::new(stream);
            let read = Arc::clone(&io.read);
            let connection = builder
                .serve_connection(TokioIo::new(io), service)
                .into_owned();
            let mut connection = pin!(watcher.watch(connection));
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = tokio::time::sleep(FIRST_WORDS) => {
                    // The HTTP library waits without limit until it can tell HTTP/1 from HTTP/2.
                    if read.load(Ordering::Relaxed) < PREFACE {
                        return;
                    }
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended badly");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests were still in work when the drain time was over");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEADERS as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS);
    builder
}

/// A socket that counts the bytes that were read from it.
struct Counted {
    stream: TcpStream,
    read: Arc<AtomicUsize>,
}

impl Counted {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            read: Arc::default(),
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read
            .fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        poll
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
