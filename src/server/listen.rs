//! Accepting connections, and letting them end.
//!
//! One loop serves every listener: HTTP/1.1 and HTTP/2, over TLS or in plain text, each connection
//! in a task of its own, its handshake too. A connection that never speaks, speaks too slowly, or has
//! silently gone is closed; none holds up another.
//!
//! Most requests are answered in a few microseconds, which is less than it costs to hand them to
//! another task and to write each answer by itself. So the requests that one reading brought are
//! answered [one after another](InTurn) by the connection's own task, until one of them has to wait,
//! and their answers leave [together](Corked).

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::server::TlsStream;

use crate::auth::Peer;
use crate::domain::address::Origin;
use crate::server::bind::{Accepted, Listener};
use crate::server::body::{Body, LONG};
use crate::server::tls::Acceptor;

/// How long a client may take to send its first bytes.
pub(super) const FIRST_WORDS: Duration = Duration::from_secs(10);

/// How long an HTTP/1.1 connection may stay idle, and how long the head of its next request may
/// take: the HTTP library has one limit for both, and clients keep connections in pools.
const IDLE: Duration = Duration::from_secs(60);

/// How long a client may stay that was told to go: longer than any request takes.
const LEAVING: Duration = Duration::from_secs(90);

/// What came before a client is told to go is read first. The runtime may know of it only so much later.
const HEARD: Duration = Duration::from_millis(10);

/// How often a connection of a stopping server is looked at.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long a client that comes as the server stops may take for its part of the handshake.
const SOON: Duration = Duration::from_secs(1);

/// How long answers may wait of which the client takes nothing: this long at least, and twice as long at
/// most.
const UNREAD: Duration = Duration::from_secs(30);

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

/// How long it is not told again that it has none.
const TOLD: Duration = Duration::from_secs(1);

/// Answers requests.
pub(super) trait Answer: Send + Sync + 'static {
    /// Answers one request of `peer`.
    fn answer(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// How long connections last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lives {
    /// How old a connection gets, give or take a tenth, before its client is told to go.
    pub(super) age: Duration,
    /// How long requests in work may take to end when the server stops.
    pub(super) drain: Duration,
}

/// Serves `listener`, behind `tls` if there is any and it is a TCP port, until `stop` turns true, then
/// lets open requests end.
pub(super) async fn serve(
    listener: Listener,
    tls: Option<Acceptor>,
    answer: impl Answer,
    mut stop: watch::Receiver<bool>,
    lives: Lives,
) {
    let answer = Arc::new(answer);
    // Closed when the last connection drops its end.
    let (open, mut last) = mpsc::channel::<Infallible>(1);
    let (leave, leaving) = watch::channel(false);
    let begin = |(stream, origin)| {
        let (answer, tls) = (Arc::clone(&answer), tls.clone());
        let (open, leaving) = (open.clone(), leaving.clone());
        tokio::spawn(async move {
            let _open = open;
            let Some((stream, peer)) = greet(stream, origin, tls, leaving.clone()).await else {
                return;
            };
            if let Err(error) = converse(stream, peer, answer, leaving, lives.age).await {
                tracing::debug!(error, "a connection ended badly");
            }
        });
    };
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok(accepted) => begin(accepted),
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= TOLD) {
                    tracing::warn!(%error, "cannot accept a connection");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    // Who is told to go comes back at once: by then nobody listens, and is known not to.
    match listener.close() {
        Ok(waiting) => waiting.into_iter().for_each(&begin),
        Err(error) => tracing::warn!(%error, "cannot accept the connections that wait"),
    }
    leave.send_replace(true);
    drop(open);
    if tokio::time::timeout(lives.drain, last.recv())
        .await
        .is_err()
    {
        tracing::warn!("requests were still in work when the drain time was over");
    }
}

/// Does the handshake if there is one to do, and says who the client is. A client that has not finished
/// its part [soon](SOON) after the server stopped is left.
async fn greet(
    stream: Accepted,
    origin: Origin,
    tls: Option<Acceptor>,
    leaving: watch::Receiver<bool>,
) -> Option<(Stream, Peer)> {
    let mut peer = Peer {
        origin,
        certificate: None,
    };
    let stream = match (stream, tls) {
        // No other machine reads along.
        (Accepted::Unix(stream), _) => Stream::Unix(stream),
        (Accepted::Tcp(stream), None) => Stream::Tcp(stream),
        (Accepted::Tcp(stream), Some(tls)) => {
            let too_late = async {
                stopped(leaving).await;
                tokio::time::sleep(SOON).await;
            };
            let accepted = tokio::select! {
                accepted = tls.accept(stream) => accepted,
                () = too_late => return None,
            };
            match accepted {
                Ok((stream, certificate)) => {
                    peer.certificate = certificate;
                    Stream::Tls(Box::new(stream))
                }
                Err(error) => {
                    tracing::debug!(%error, peer = %origin, "a TLS handshake failed");
                    return None;
                }
            }
        }
    };
    Some((stream, peer))
}

/// Completes when clients are told to go because the server stops, and never if it ends otherwise.
async fn stopped(mut leaving: watch::Receiver<bool>) {
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Answers the requests of one connection until it ends, or has nothing more to say.
async fn converse(
    stream: Stream,
    peer: Peer,
    answer: Arc<impl Answer>,
    leaving: watch::Receiver<bool>,
    age: Duration,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let work = Arc::new(Work::default());
    let counted = Arc::clone(&work);
    let shared = Arc::new((answer, peer));
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        let place = Place::take(&counted);
        async move {
            let (answer, peer) = &*shared;
            let answered = answer.answer(peer, request).await;
            Ok::<_, Infallible>(answered.map(|body| {
                let place = place.answered(&body);
                body.at(place)
            }))
        }
    });
    let turn = InTurn::new();
    let io = Corked::new(stream, turn.clone());
    let (read, wire) = (Arc::clone(&io.read), Arc::clone(&io.wire));
    // Each has its own waker and is looked at only when that was woken, and not with every request.
    let mut ends = FuturesUnordered::<Pin<Box<dyn Future<Output = End> + Send>>>::new();
    ends.push(Box::pin(end_of_life(leaving.clone(), age)));
    ends.push(Box::pin(silence(Arc::clone(&read))));
    ends.push(Box::pin(idle_after(leaving, Arc::clone(&work))));
    ends.push(Box::pin(unread(Arc::clone(&work))));
    ends.push(Box::pin(gone_by(age, work)));
    let builder = builder(turn.clone());
    let connection = builder.serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection.into_owned());
    let mut to_tell = false;
    poll_fn(move |context| {
        turn.begin();
        while let Poll::Ready(Some(end)) = ends.poll_next_unpin(context) {
            match end {
                End::Told => to_tell = true,
                End::Cut => return Poll::Ready(Ok(())),
            }
        }
        let mut polled = connection.as_mut().poll(context);
        // What has come is read first, and who has only just come is heard: otherwise the HTTP library
        // closes the connection under it, and the client cannot know that nobody looked at it.
        if to_tell && polled.is_pending() && read.load(Ordering::Relaxed) >= PREFACE {
            to_tell = false;
            connection.as_mut().graceful_shutdown();
            polled = connection.as_mut().poll(context);
        }
        let mut wire = lock(&wire);
        wire.next = Wire::TOGETHER;
        match wire.send(context) {
            Poll::Ready(Err(error)) if polled.is_pending() => Poll::Ready(Err(error.into())),
            _ => polled,
        }
    })
    .await
}

/// How a connection comes to its end, if its client does not end it.
enum End {
    /// The client is told to go, and what is in work is answered.
    Told,
    /// It is closed as it is.
    Cut,
}

/// Completes when a client is to be told to go: when the server stops, or the connection is old. A
/// tenth more or less keeps connections that were made together from being made anew together.
async fn end_of_life(mut leaving: watch::Receiver<bool>, age: Duration) -> End {
    let jitter = getrandom::u32().unwrap_or_default() % 200;
    let age = age / 1000 * (900 + jitter);
    tokio::select! {
        _ = leaving.wait_for(|leaving| *leaving) => {}
        () = tokio::time::sleep(age) => {}
    }
    tokio::time::sleep(HEARD).await;
    End::Told
}

/// Completes when a client that was told to go has not, and no answer is streamed to it.
async fn gone_by(age: Duration, work: Arc<Work>) -> End {
    tokio::time::sleep(age.saturating_add(age / 10).saturating_add(LEAVING)).await;
    // A whole store that is sent, or sealed anew, takes as long as it takes; and then its end is still
    // to be sent.
    while work.streams.load(Ordering::Relaxed) > 0 {
        while work.streams.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(LAST_WORDS).await;
        }
        tokio::time::sleep(LEAVING).await;
    }
    End::Cut
}

/// Completes if a client has not said its first words when it should have: the HTTP library waits
/// without limit until it can tell HTTP/1 from HTTP/2.
async fn silence(read: Arc<AtomicUsize>) -> End {
    tokio::time::sleep(FIRST_WORDS).await;
    if read.load(Ordering::Relaxed) >= PREFACE {
        std::future::pending::<()>().await;
    }
    End::Cut
}

/// Completes when the server is stopping and nothing is in work on the connection: the HTTP library
/// would wait for the rest of half a request.
async fn idle_after(leaving: watch::Receiver<bool>, work: Arc<Work>) -> End {
    stopped(leaving).await;
    let mut idle = 0;
    // Twice in a row, so that an answer that was just made is also sent.
    while idle < 2 {
        tokio::time::sleep(LAST_WORDS).await;
        idle = if work.requests.load(Ordering::Relaxed) == 0 {
            idle + 1
        } else {
            0
        };
    }
    // The end of a long answer may still be on its way. When it is there the connection ends by itself.
    if work.long.load(Ordering::Relaxed) {
        tokio::time::sleep(LEAVING).await;
    }
    End::Cut
}

/// Completes when answers have waited for their client and it has taken nothing of any: it may be gone, though it
/// answers pings.
async fn unread(work: Arc<Work>) -> End {
    let mut before = None;
    loop {
        tokio::time::sleep(UNREAD).await;
        let wait = work.answers.load(Ordering::Relaxed) > 0;
        let taken = wait.then(|| work.taken.load(Ordering::Relaxed));
        if wait && taken == before {
            return End::Cut;
        }
        before = taken;
    }
}

/// What is in work on a connection. A request is until its answer has been handed on.
#[derive(Debug, Default)]
struct Work {
    requests: AtomicUsize,
    /// Those among them whose answers wait for the client.
    answers: AtomicUsize,
    /// Those among them whose answers are streamed.
    streams: AtomicUsize,
    /// Whether there was one of these, or another long one: when it has been handed on, the end of it may still be
    /// on its way.
    long: AtomicBool,
    /// How many pieces of answers were handed on, and how many answers.
    taken: AtomicUsize,
}

/// Counts a request as in work on its connection until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    work: Arc<Work>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked,
    Answered,
    /// Answered, and what there was to say is said so far.
    Open,
    Streamed,
}

impl Place {
    fn take(work: &Arc<Work>) -> Self {
        work.requests.fetch_add(1, Ordering::Relaxed);
        Self {
            work: Arc::clone(work),
            state: State::Asked,
        }
    }

    /// Notes that this answers the request.
    fn answered(mut self, body: &Body) -> Self {
        let streamed = body.is_streamed();
        if streamed || body.length() > LONG {
            self.work.long.store(true, Ordering::Relaxed);
        }
        self.state = if streamed {
            self.work.streams.fetch_add(1, Ordering::Relaxed);
            State::Streamed
        } else {
            self.work.answers.fetch_add(1, Ordering::Relaxed);
            State::Answered
        };
        self
    }

    /// Notes that a piece of the answer was handed on.
    pub(super) fn handed_on(&mut self) {
        self.work.taken.fetch_add(1, Ordering::Relaxed);
        if self.state == State::Open {
            self.work.requests.fetch_add(1, Ordering::Relaxed);
            self.work.answers.fetch_add(1, Ordering::Relaxed);
            self.state = State::Answered;
        }
    }

    /// Notes that the client waits for the answer, and not the answer for the client: a watch, which may never say
    /// more.
    pub(super) fn stands_open(&mut self) {
        if self.state == State::Answered {
            self.leave();
            self.state = State::Open;
        }
    }

    /// Takes it out of the counts.
    fn leave(&self) {
        let counts: &[&AtomicUsize] = match self.state {
            State::Asked => &[&self.work.requests],
            State::Answered => &[&self.work.requests, &self.work.answers],
            State::Streamed => &[&self.work.requests, &self.work.streams],
            State::Open => &[],
        };
        for count in counts {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        self.work.taken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

fn builder(turn: InTurn) -> Builder<InTurn> {
    let mut builder = Builder::new(turn);
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

/// Runs a request where it came in, and only one that has to wait in a task of its own.
///
/// A connection that sends without end would hold its thread: after [`Self::TURN`] requests or
/// [`Self::TIME`] in one turn of the connection the others get tasks.
#[derive(Clone)]
struct InTurn(Arc<Turn>);

struct Turn {
    requests: AtomicUsize,
    /// When the turn's first request came, in microseconds after `since`.
    began: AtomicU64,
    since: Instant,
}

impl InTurn {
    /// How many requests are answered in one turn of a connection.
    const TURN: usize = 64;

    /// For how long requests are answered in one turn, in microseconds: twenty SM2 encryptions.
    const TIME: u64 = 1000;

    fn new() -> Self {
        Self(Arc::new(Turn {
            requests: AtomicUsize::new(0),
            began: AtomicU64::new(0),
            since: Instant::now(),
        }))
    }

    /// Begins another turn.
    fn begin(&self) {
        self.0.requests.store(0, Ordering::Relaxed);
    }

    /// How many requests this turn has brought.
    fn requests(&self) -> usize {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Counts a request, and says whether it is still answered in this turn. Its time begins with the
    /// first.
    fn takes_another(&self) -> bool {
        match self.0.requests.fetch_add(1, Ordering::Relaxed) {
            0 => {
                self.0.began.store(self.now(), Ordering::Relaxed);
                true
            }
            before => {
                before < Self::TURN
                    && self.now() - self.0.began.load(Ordering::Relaxed) < Self::TIME
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "584,000 years fit")]
    fn now(&self) -> u64 {
        self.0.since.elapsed().as_micros() as u64
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for InTurn {
    fn execute(&self, work: F) {
        let mut work = Box::pin(work);
        if self.takes_another() {
            // Nobody needs to be woken: what is not done now is looked at again as a task.
            let mut context = Context::from_waker(Waker::noop());
            if work.as_mut().poll(&mut context).is_ready() {
                return;
            }
        }
        tokio::spawn(work);
    }
}

/// A socket that keeps what is written to it until there are several answers or the connection's
/// turn is over, and counts the bytes that were read from it.
///
/// The HTTP library flushes after each answer, which would ask the system once for each. So flushing
/// seldom does anything here, and whoever polls the connection [sends](Wire::send) afterwards what is
/// left.
struct Corked {
    read: Arc<AtomicUsize>,
    wire: Arc<Mutex<Wire>>,
    turn: InTurn,
}

/// A stream, and what is to be sent on it.
struct Wire {
    stream: Stream,
    out: BytesMut,
    /// After how many requests of this turn something is sent before its end.
    next: usize,
}

/// What a connection is made of.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// How many answers leave together. Were it all that a turn brings, a client would have nothing
    /// to do while its requests are answered, and the server nothing while the client reads.
    const TOGETHER: usize = 4;

    /// How many bytes may wait. A client that does not read is not written for.
    const MOST: usize = 64 * 1024;

    /// How many bytes of memory are kept while nothing is to be sent.
    const KEPT: usize = 16 * 1024;

    /// Sends what has come together.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let sent = match &mut self.stream {
                Stream::Tcp(stream) => Pin::new(stream).poll_write(context, &self.out),
                Stream::Unix(stream) => Pin::new(stream).poll_write(context, &self.out),
                Stream::Tls(stream) => Pin::new(stream).poll_write(context, &self.out),
            };
            let sent = ready!(sent)?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(sent);
        }
        if self.out.capacity() > Self::KEPT {
            self.out = BytesMut::new();
        }
        match &mut self.stream {
            Stream::Tcp(_) | Stream::Unix(_) => Poll::Ready(Ok(())),
            // TLS keeps what it has encrypted and the system has not taken.
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    /// Makes room, if the most that may wait is waiting.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() < Self::MOST {
            return Poll::Ready(Ok(()));
        }
        self.send(context)
    }
}

impl Corked {
    fn new(stream: Stream, turn: InTurn) -> Self {
        let wire = Wire {
            stream,
            out: BytesMut::new(),
            next: Wire::TOGETHER,
        };
        Self {
            read: Arc::default(),
            wire: Arc::new(Mutex::new(wire)),
            turn,
        }
    }
}

/// The connection's task alone takes the lock, so nobody waits for it.
fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Corked {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = match &mut lock(&self.wire).stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        self.read
            .fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        poll
    }
}

impl AsyncWrite for Corked {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.wire);
        ready!(wire.poll_room(context))?;
        wire.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.wire);
        ready!(wire.poll_room(context))?;
        let before = wire.out.len();
        for slice in slices {
            wire.out.extend_from_slice(slice);
        }
        Poll::Ready(Ok(wire.out.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Sends the answers to some of many requests, and otherwise nothing: the turn is not over.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let requests = self.turn.requests();
        let mut wire = lock(&self.wire);
        if requests < wire.next {
            return Poll::Ready(Ok(()));
        }
        wire.next = requests + Wire::TOGETHER;
        wire.send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.wire);
        ready!(wire.send(context))?;
        match &mut wire.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    // The clock is paused and jumps to the next timer when nothing else is to do, so the limits below
    // take no time.

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_its_first_words_is_left() {
        for words in ["", "PRI * HTTP/2.0", "P"] {
            let (mut client, _stop) = connected().await;
            let begun = tokio::time::Instant::now();
            client.write_all(words.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A connection that was closed under unread bytes may end with a reset.
            let _ = client.read_to_end(&mut answer).await;
            assert!(answer.is_empty(), "{words:?}: {answer:?}");
            assert_lasted(begun, FIRST_WORDS);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_finish_the_head_of_its_request_is_left() {
        let (client, _stop) = connected().await;
        let begun = tokio::time::Instant::now();
        let (mut reading, mut writing) = client.into_split();
        let head = b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
        writing.write_all(head).await.unwrap();
        // One more byte now and then gives it no more time.
        tokio::spawn(async move {
            while writing.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
        let mut answer = String::new();
        let _ = reading.read_to_string(&mut answer).await;
        assert!(!answer.contains("200 OK"), "{answer:?}");
        assert_lasted(begun, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_is_gone_is_left() {
        let (mut client, _stop) = connected().await;
        // The preface and empty settings, and then not one word: no answer to any ping.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let begun = tokio::time::Instant::now();
        client.write_all(preface).await.unwrap();
        let mut frames = Vec::new();
        let _ = client.read_to_end(&mut frames).await;
        assert!(!frames.is_empty(), "the server said its settings first");
        assert_lasted(begun, PING + PONG);
    }

    #[tokio::test]
    async fn a_silent_client_holds_up_nobody_and_stopping_waits_for_nobody_who_is_idle() {
        let (_silent, stop) = connected().await;
        let mut client = TcpStream::connect(stop.address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
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

    #[tokio::test]
    async fn a_request_that_waits_holds_up_no_other_of_its_connection() {
        let (stream, _stop) = connected().await;
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let (waits, _) = client.send_request(get("/waits"), true).unwrap();
        let mut client = client.ready().await.unwrap();
        let (fine, _) = client.send_request(get("/fine"), true).unwrap();
        tokio::select! {
            biased;
            answer = waits => panic!("{answer:?}"),
            answer = fine => assert_eq!(answer.unwrap().status(), 200),
        }
    }

    #[tokio::test]
    async fn more_requests_than_one_turn_has_are_all_answered() {
        let (stream, _stop) = connected().await;
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let mut asked = Vec::new();
        // None is sent before the connection runs, and then all are.
        for _ in 0..3 * InTurn::TURN {
            let (answer, _) = client.send_request(get("/fine"), true).unwrap();
            asked.push(answer);
            client = client.ready().await.unwrap();
        }
        tokio::spawn(connection);
        for answer in asked {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    }

    #[tokio::test]
    async fn requests_that_took_their_turn_s_time_leave_the_others_to_tasks() {
        let turn = InTurn::new();
        let done = Arc::new(AtomicUsize::new(0));
        let work = || {
            let done = Arc::clone(&done);
            async move {
                std::thread::sleep(Duration::from_micros(InTurn::TIME / 2));
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        turn.begin();
        for _ in 0..10 {
            turn.execute(work());
        }
        assert!(done.load(Ordering::Relaxed) <= 2, "{done:?}");
        tokio::task::yield_now().await;
        assert_eq!(done.load(Ordering::Relaxed), 10);
    }

    #[tokio::test]
    async fn a_long_answer_reaches_a_client_that_reads_slowly_and_whole() {
        let (mut client, _stop) = connected().await;
        let request = b"GET /long HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        client.write_all(request).await.unwrap();
        // The sockets' own buffers are full before anything is read.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(LONG_ANSWER), "{} bytes", answer.len());
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_is_told_to_go_when_it_is_about_as_old_as_it_may_be() {
        let (stream, _stop) = connected().await;
        let begun = tokio::time::Instant::now();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let (waits, _) = client.send_request(get("/slow"), true).unwrap();
        let driver = tokio::spawn(connection);
        // What is in work is answered.
        assert_eq!(waits.await.unwrap().status(), 200);
        driver.await.unwrap().unwrap();
        let age = begun.elapsed();
        assert!(age >= AGE * 9 / 10 && age <= AGE * 12 / 10, "{age:?}");

        let (mut client, _stop) = connected().await;
        let begun = tokio::time::Instant::now();
        while client.write_all(REQUEST).await.is_ok() {
            let mut answer = [0; 4096];
            if client.read(&mut answer).await.unwrap_or(0) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let age = begun.elapsed();
        assert!(age >= AGE * 9 / 10 && age <= AGE * 12 / 10, "{age:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_were_made_together_do_not_end_together() {
        let mut ages = BTreeSet::new();
        for _ in 0..8 {
            let (stream, _stop) = connected().await;
            let begun = tokio::time::Instant::now();
            let (_client, connection) = h2::client::handshake(stream).await.unwrap();
            connection.await.unwrap();
            ages.insert(begun.elapsed().as_secs());
        }
        assert!(ages.len() > 1, "{ages:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_go_when_it_is_told_is_cut_off() {
        let (stream, _stop) = connected().await;
        let begun = tokio::time::Instant::now();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let (waits, _) = client.send_request(get("/waits"), true).unwrap();
        // It answers pings, and its request is never over.
        let ended = tokio::time::timeout(AGE * 2, connection).await;
        assert!(ended.is_ok() && waits.await.is_err(), "{ended:?}");
        assert_lasted(begun, AGE + AGE / 10 + LEAVING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_of_its_answers_is_cut_off() {
        let (stream, _stop) = connected().await;
        let begun = tokio::time::Instant::now();
        let mut never_reads = h2::client::Builder::new();
        never_reads.initial_window_size(0);
        let handshake = never_reads.handshake::<_, bytes::Bytes>(stream);
        let (mut client, connection) = handshake.await.unwrap();
        let (answer, _) = client.send_request(get("/word"), true).unwrap();
        // It answers pings.
        let ended = tokio::time::timeout(AGE / 2, connection).await;
        assert!(ended.is_ok(), "it is still there");
        assert_eq!(answer.await.unwrap().status(), 200);
        let lasted = begun.elapsed();
        assert!((UNREAD..=UNREAD * 2).contains(&lasted), "{lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not_cut_off() {
        let (stream, _stop) = connected().await;
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let (answer, _) = client.send_request(get("/long"), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let mut read = 0;
        for _ in 0..16 {
            tokio::time::sleep(UNREAD / 3).await;
            let some = body.data().await.unwrap().unwrap();
            read += some.len();
            body.flow_control().release_capacity(some.len()).unwrap();
        }
        assert!(read > 0 && !body.is_end_stream(), "{read}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stands_open_ends_no_connection_and_holds_up_no_stop() {
        let (stream, stop) = connected().await;
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let (answer, _) = client.send_request(get("/watch"), true).unwrap();
        let mut watch = answer.await.unwrap().into_body();
        let silent = tokio::time::timeout(UNREAD * 4, watch.data()).await;
        assert!(silent.is_err(), "{silent:?}");
        assert!(!connection.is_finished());
        stop.sender.send_replace(true);
        let begun = tokio::time::Instant::now();
        stop.served.await.unwrap();
        assert!(begun.elapsed() < LAST_WORDS * 4, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn short_answers_that_wait_for_their_reader_outlast_a_stop() {
        let (stream, stop) = connected().await;
        let mut reads_late = h2::client::Builder::new();
        reads_late.initial_window_size(0);
        let handshake = reads_late.handshake::<_, bytes::Bytes>(stream);
        let (mut client, mut connection) = handshake.await.unwrap();
        let mut bodies = Vec::new();
        let answered = async {
            for _ in 0..20 {
                let (answer, _) = client.send_request(get("/word"), true).unwrap();
                bodies.push(answer.await.unwrap().into_body());
            }
        };
        tokio::select! {
            ended = &mut connection => panic!("{ended:?}"),
            () = answered => {}
        }
        stop.sender.send_replace(true);
        // Longer than a connection that has nothing to say is left.
        tokio::select! {
            ended = &mut connection => panic!("{ended:?}"),
            () = tokio::time::sleep(LAST_WORDS * 5) => {}
        }
        connection.set_initial_window_size(1024).unwrap();
        tokio::spawn(connection);
        for body in &mut bodies {
            assert_eq!(body.data().await.unwrap().unwrap(), "fine");
        }
        drop(client);
        stop.served.await.unwrap();
    }

    #[tokio::test]
    async fn a_long_answer_outlasts_a_stop() {
        let (mut client, stop) = connected().await;
        let request = b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut first = [0; 1024];
        client.read_exact(&mut first).await.unwrap();
        stop.sender.send_replace(true);
        // Longer than a connection that has nothing to say is left.
        tokio::time::sleep(LAST_WORDS * 5).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(
            answer.len() > LONG_ANSWER.len() - first.len(),
            "{}",
            answer.len()
        );
        stop.served.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_to_be_accepted_when_the_server_stops_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..32 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(REQUEST).await.unwrap();
            clients.push(client);
        }
        let stop = serving(listener);
        stop.sender.send_replace(true);
        for mut client in clients {
            assert_answered_and_closed(&mut client).await;
        }
        stop.served.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn who_was_accepted_when_the_server_stops_is_heard_once() {
        let (mut client, stop) = connected().await;
        let (stream, also) = connected().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        stop.sender.send_replace(true);
        also.sender.send_replace(true);
        tokio::time::sleep(Duration::from_millis(20)).await;

        client.write_all(REQUEST).await.unwrap();
        assert_answered_and_closed(&mut client).await;

        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let (fine, _) = client.send_request(get("/fine"), true).unwrap();
        let connection = tokio::spawn(connection);
        assert_eq!(fine.await.unwrap().status(), 200);
        // It was told to go.
        connection.await.unwrap().unwrap();
        stop.served.await.unwrap();
        also.served.await.unwrap();
    }

    #[tokio::test]
    async fn a_request_that_comes_as_the_server_stops_is_answered() {
        let (mut client, stop) = connected().await;
        client.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 4096];
        assert!(client.read(&mut answer).await.unwrap() > 0);
        // It has arrived, and nobody has had time to look at it.
        assert_eq!(client.try_write(REQUEST).unwrap(), REQUEST.len());
        stop.sender.send_replace(true);
        assert_answered_and_closed(&mut client).await;
        stop.served.await.unwrap();
    }

    async fn assert_answered_and_closed(client: &mut TcpStream) {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:?}");
    }

    /// No connection ends before its time by the clock of a test, and none a second after it.
    fn assert_lasted(begun: tokio::time::Instant, expected: Duration) {
        let lasted = begun.elapsed();
        let bounds = expected..expected + Duration::from_secs(1);
        assert!(bounds.contains(&lasted), "{lasted:?}");
    }

    const AGE: Duration = Duration::from_secs(600);

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    const LONG_ANSWER: &[u8] = &[7; 32 * 1024 * 1024];

    fn get(path: &str) -> Request<()> {
        let uri = format!("http://localhost{path}");
        Request::get(uri).body(()).unwrap()
    }

    #[derive(Debug)]
    struct Fine;

    impl Answer for Fine {
        async fn answer(&self, _: &Peer, request: Request<Incoming>) -> Response<Body> {
            let body = match request.uri().path() {
                "/waits" => std::future::pending().await,
                "/slow" => {
                    tokio::time::sleep(AGE).await;
                    axum::body::Body::empty()
                }
                "/long" => LONG_ANSWER.into(),
                "/word" => "fine".into(),
                "/watch" => axum::body::Body::from_stream(futures_util::stream::pending::<
                    Result<bytes::Bytes, io::Error>,
                >()),
                _ => axum::body::Body::empty(),
            };
            Response::new(Body::from(body))
        }
    }

    struct Stop {
        address: std::net::SocketAddr,
        sender: watch::Sender<bool>,
        served: tokio::task::JoinHandle<()>,
    }

    async fn connected() -> (TcpStream, Stop) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = serving(listener);
        let client = TcpStream::connect(stop.address).await.unwrap();
        (client, stop)
    }

    fn serving(listener: TcpListener) -> Stop {
        let address = listener.local_addr().unwrap();
        let (sender, stop) = watch::channel(false);
        let lives = Lives {
            age: AGE,
            drain: Duration::from_secs(5),
        };
        let served = tokio::spawn(serve(listener.into(), None, Fine, stop, lives));
        Stop {
            address,
            sender,
            served,
        }
    }
}
