//! Accepting connections, and letting them end.
//!
//! One loop serves every listener: HTTP/1.1 and HTTP/2 in plain text, each connection in a task of
//! its own. A connection that never speaks, speaks too slowly, or has silently gone is closed; none
//! holds up another.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
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

/// How often a connection of a stopping server is looked at.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
        let stop = stop.clone();
        tokio::spawn(async move {
            // Small answers must not wait for more.
            let _ = stream.set_nodelay(true);
            let in_work = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&in_work);
            let service = service_fn(move |request| {
                let answer = Arc::clone(&answer);
                let place = Place::take(&counted);
                async move {
                    let answered = answer.answer(request).await;
                    drop(place);
                    Ok::<_, Infallible>(answered)
                }
            });
            let io = Counted::new(stream);
            let read = Arc::clone(&io.read);
            let connection = builder
                .serve_connection(TokioIo::new(io), service)
                .into_owned();
            let connection = watcher.watch(connection);
            let ended = tokio::select! {
                ended = connection => ended,
                () = silence(&read) => return,
                () = idle_after(stop, &in_work) => return,
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

/// Completes if a client has not said its first words when it should have: the HTTP library waits
/// without limit until it can tell HTTP/1 from HTTP/2.
async fn silence(read: &AtomicUsize) {
    tokio::time::sleep(FIRST_WORDS).await;
    if read.load(Ordering::Relaxed) >= PREFACE {
        std::future::pending::<()>().await;
    }
}

/// Completes when the server is stopping and nothing is in work on the connection: the HTTP library
/// would wait for the rest of half a request.
async fn idle_after(mut stop: watch::Receiver<bool>, in_work: &AtomicUsize) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
    let mut idle = 0;
    // Twice in a row, so that an answer that was just made is also sent.
    while idle < 2 {
        tokio::time::sleep(LAST_WORDS).await;
        idle = if in_work.load(Ordering::Relaxed) == 0 {
            idle + 1
        } else {
            0
        };
    }
}

/// Counts a request as in work on its connection until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    // The clock is paused and jumps to the next timer when nothing else is to do, so the limits below
    // take no time.

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_its_first_words_is_left() {
        for words in ["", "PRI * HTTP/2.0", "P"] {
            let (mut client, _stop) = connected().await;
            client.write_all(words.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A connection that was closed under unread bytes may end with a reset.
            let _ = client.read_to_end(&mut answer).await;
            assert!(answer.is_empty(), "{words:?}: {answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_the_head_of_its_request_is_left() {
        let (mut client, _stop) = connected().await;
        let head = b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
        client.write_all(head).await.unwrap();
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer).await;
        assert!(!answer.contains("200 OK"), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_is_gone_is_left() {
        let (mut client, _stop) = connected().await;
        // The preface and empty settings, and then not one word: no answer to any ping.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        client.write_all(preface).await.unwrap();
        let mut frames = Vec::new();
        let _ = client.read_to_end(&mut frames).await;
        assert!(!frames.is_empty(), "the server said its settings first");
    }

    #[tokio::test]
    async fn a_silent_client_holds_up_nobody_and_stopping_waits_for_nobody_who_is_idle() {
        let (_silent, stop) = connected().await;
        let mut client = TcpStream::connect(stop.address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");

        stop.sender.send_replace(true);
        stop.served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_does_not_hold_up_a_stop() {
        let (mut client, stop) = connected().await;
        let head = b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
        client.write_all(head).await.unwrap();
        tokio::task::yield_now().await;
        let begun = tokio::time::Instant::now();
        stop.sender.send_replace(true);
        stop.served.await.unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}",
            begun.elapsed()
        );
    }

    #[derive(Debug)]
    struct Fine;

    impl Answer for Fine {
        async fn answer(&self, _: Request<Incoming>) -> Response<Body> {
            Response::default()
        }
    }

    struct Stop {
        address: std::net::SocketAddr,
        sender: watch::Sender<bool>,
        served: tokio::task::JoinHandle<()>,
    }

    async fn connected() -> (TcpStream, Stop) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, stop) = watch::channel(false);
        let served = tokio::spawn(serve(listener, Fine, stop, Duration::from_secs(5)));
        let client = TcpStream::connect(address).await.unwrap();
        let stop = Stop {
            address,
            sender,
            served,
        };
        (client, stop)
    }
}
