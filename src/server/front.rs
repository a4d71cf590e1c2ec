//! What happens to every request before and after a face sees it, the same for both faces.
//!
//! In this order: a request id, the count of requests in work, the deadline, over gRPC the content type, the size of the headers,
//! the declared length of the body, the caller, the limit on the caller's requests, the limit on
//! requests in work, and over REST the whole body. What is refused here is told through the face's own
//! [`refuse`](crate::error::Face::refuse), to the metrics and to the audit.
//! What the RPC library refuses by itself (an unknown method, a message that is too long, bytes
//! that are no message) is rewritten to rows of the catalogue.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Code, Status};
use tower::Service;

use crate::audit::{Event, Outcome};
use crate::auth::{Chain, Evidence, Peer};
use crate::config::Limits;
use crate::domain::address::Source;
use crate::domain::caller::{Action, Caller};
use crate::domain::places::Places;
use crate::domain::request::RequestId;
use crate::error::{self, Error, Kind};
use crate::gateway::{CREATE_TIME, Direct, LIST_TIME, Plain, REQUEST_ID, Rest, project};
use crate::grpc;
use crate::grpc::status::{self, Grpc};
use crate::grpc::unary::{self, Unary};
use crate::server::MAX_MESSAGE;
use crate::server::body::{Body, LONG};
use crate::server::listen::Answer;
use crate::service::{Context, Kms};
use crate::telemetry::{Ended, Names, Requests};

/// How many requests may be in reading whose signature covers their body, in all and from one source,
/// and how long one may take. Nothing is known of their callers, so they have places of their own.
const UNVERIFIED_PLACES: usize = 256;
const UNVERIFIED_PLACES_EACH: usize = 64;
const UNVERIFIED_TIME: Duration = Duration::from_secs(2);

/// How much is read of a body that nobody wants.
const UNWANTED: usize = 16 * 1024 * 1024;

/// How many KiB of long answers may wait to be read, of all clients together.
const ROOM: usize = 64 * 1024;

/// A deadline that may have passed when a request has only just been read.
const SHORT: Duration = Duration::from_millis(1);

/// Which face a front stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Face {
    /// gRPC over HTTP/2.
    Grpc,
    /// JSON over HTTP/1.1 or HTTP/2.
    Rest,
}

impl Face {
    fn refuse(self, error: &Error) -> Response<Body> {
        let refused = match self {
            Self::Grpc => error::Face::refuse(&Grpc, error),
            Self::Rest => error::Face::refuse(&Rest, error),
        };
        refused.map(Body::from)
    }
}

/// The methods by which requests are counted, by their names in the schema and in the order of
/// their actions. What is none of them counts as `other`.
const METHODS: [&str; 17] = [
    "EncryptData",
    "DecryptData",
    "CreateKey",
    "DescribeKey",
    "ListKeys",
    "EnableKey",
    "DisableKey",
    "ScheduleKeyDeletion",
    "CancelKeyDeletion",
    "GetPublicKey",
    "UpdateKeyAlias",
    "UpdateKeyDescription",
    "RotateOnDemand",
    "ConfirmClock",
    "RotateRootKey",
    "BackUpStore",
    "other",
];

/// The numbers of CreateKey and ListKeys, which may take [longer](CREATE_TIME) than others.
const CREATE_KEY: usize = 2;
const LIST_KEYS: usize = 4;

/// The numbers of RotateRootKey and BackUpStore, which answer with a stream, and how long they may take at
/// least until it begins: both read the whole store before.
const ROTATE_ROOT_KEY: usize = 14;
const BACK_UP_STORE: usize = 15;
const STORE_TIME: Duration = Duration::from_secs(3600);

/// The service in the schema that has a method.
const fn service_of(method: usize) -> &'static str {
    match method {
        0 | 1 => "CryptoService",
        ROTATE_ROOT_KEY | BACK_UP_STORE => "OperatorService",
        _ => "KeyService",
    }
}

/// The number of `other`.
const OTHER: usize = METHODS.len() - 1;

/// The same methods, as far as REST has them, by their names in a path.
const PATHS: [&str; 13] = [
    "encrypt-data",
    "decrypt-data",
    "create-key",
    "describe-key",
    "list-keys",
    "enable-key",
    "disable-key",
    "schedule-key-deletion",
    "cancel-key-deletion",
    "get-publickey",
    "update-key-alias",
    "update-key-description",
    "rotate-on-demand",
];

/// The names under which requests are counted. Rows that share a code are counted together.
pub(super) fn names() -> Names {
    let mut codes = vec!["OK"];
    for kind in Kind::ALL {
        let code = kind.row().code;
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    Names {
        faces: &["grpc", "rest"],
        methods: &METHODS,
        codes,
    }
}

/// What the fronts of both faces share.
#[derive(Debug)]
pub(super) struct Common {
    /// Who is let in; none in a gateway, whose upstream decides.
    guard: Option<Guard>,
    requests: Arc<Requests>,
    /// For each row of the catalogue, the number of its code among the names.
    codes: Vec<usize>,
    in_flight: Semaphore,
    /// Room for long answers that wait to be read, in KiB.
    room: Arc<Semaphore>,
    /// Places for requests whose body must be read before their caller is known.
    unverified: Places<Source>,
    timeout: Duration,
    /// The first half of every request id: random, so that the ids of several servers do not meet.
    prefix: u64,
    next: AtomicU64,
}

/// Who is let in, and who is told of those who are not.
#[derive(Debug)]
pub(super) struct Guard {
    /// Checks credentials.
    pub(super) chain: Chain,
    /// Knows the audit and the time.
    pub(super) kms: Arc<Kms>,
}

impl Common {
    /// Lets in whom `guard` lets in, within `limits`.
    pub(super) fn new(guard: Option<Guard>, requests: Arc<Requests>, limits: &Limits) -> Self {
        let names = names().codes;
        let number = |kind: &Kind| {
            let code = kind.row().code;
            names.iter().position(|name| *name == code)
        };
        let in_flight = limits.requests_in_flight.get();
        let (unverified, each) = match guard {
            Some(_) => (UNVERIFIED_PLACES, UNVERIFIED_PLACES_EACH),
            // Nobody is known here.
            None => (in_flight, in_flight.div_ceil(4)),
        };
        Self {
            guard,
            requests,
            codes: Kind::ALL.iter().filter_map(number).collect(),
            in_flight: Semaphore::new(in_flight),
            room: Arc::new(Semaphore::new(ROOM)),
            unverified: Places::new(unverified, each),
            timeout: limits.request_timeout,
            prefix: getrandom::u64().unwrap_or_default(),
            next: AtomicU64::new(1),
        }
    }

    /// Gives a long answer its part of the room that there is for those that wait to be read.
    fn keep(&self, answer: Response<Body>) -> Result<Response<Body>, Error> {
        let length = answer.body().length();
        if length <= LONG {
            return Ok(answer);
        }
        let kib = u32::try_from(length / 1024).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib);
        let room = room.map_err(|_| Kind::Throttled)?;
        Ok(answer.map(|body| body.within(room)))
    }

    fn request_id(&self) -> RequestId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        RequestId::new(u128::from(self.prefix) << 64 | u128::from(number))
    }

    /// Tells the audit of a refusal that no use case has told it of.
    fn tell(&self, id: RequestId, context: Option<&Arc<Context>>, method: usize, kind: Kind) {
        let Some(Guard { kms, .. }) = &self.guard else {
            return;
        };
        if context.is_some_and(|context| context.told.load(Ordering::Relaxed)) {
            return;
        }
        kms.audit.record(&Event {
            time: kms.clock.now(),
            request_id: Some(id),
            sequence: None,
            caller: context.map(|context| &*context.caller),
            project: context.map(|context| &context.caller.project),
            action: Action::ALL.get(method).copied(),
            key_id: None,
            outcome: Outcome::Refused(kind.row().code),
        });
    }
}

/// What stands before one face, and the face.
#[derive(Debug)]
pub(super) struct Front {
    face: Face,
    common: Arc<Common>,
    inner: Router,
    /// What answers the requests that do not go through `inner`.
    shortcut: Shortcut,
}

/// The way of the two operations that nearly all requests are.
#[derive(Debug)]
enum Shortcut {
    Grpc(Arc<grpc::Server>),
    Rest(Direct),
}

impl Front {
    /// Stands before gRPC, which `inner` serves, save for what `server` answers by itself.
    pub(super) const fn grpc(
        common: Arc<Common>,
        inner: Router,
        server: Arc<grpc::Server>,
    ) -> Self {
        Self {
            face: Face::Grpc,
            common,
            inner,
            shortcut: Shortcut::Grpc(server),
        }
    }

    /// Stands before REST, which `inner` serves, save for what `direct` answers.
    pub(super) const fn rest(common: Arc<Common>, inner: Router, direct: Direct) -> Self {
        Self {
            face: Face::Rest,
            common,
            inner,
            shortcut: Shortcut::Rest(direct),
        }
    }

    /// Lets a request through to the face. Notes its context as soon as its caller is known.
    async fn pass(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
        method: usize,
        id: RequestId,
        context: &OnceLock<Arc<Context>>,
    ) -> Result<Response<Body>, Error> {
        let (mut parts, mut body) = request.into_parts();
        match self.face {
            Face::Grpc if !is_grpc(&parts.headers) => {
                Err(Error::from(Kind::InvalidFormat).detail("This port speaks gRPC."))
            }
            Face::Grpc => {
                let admitted = self.admit(peer, &mut parts, None, method, id, context);
                let place = admitted.await?;
                if let (Shortcut::Grpc(server), Some(call)) =
                    (&self.shortcut, Unary::of(parts.uri.path()))
                    && !is_compressed(&parts.headers)
                {
                    let answer = call.answer(server, context.get(), body, MAX_MESSAGE);
                    return Ok(answer.await?.map(Body::from));
                }
                let request = Request::from_parts(parts, body);
                // Nearly no request takes this way, and each would have the room for it.
                Box::pin(self.call(request, method, place)).await
            }
            Face::Rest => {
                let heard = self.hear(peer, parts, &mut body, method, id, context);
                let heard = heard.await;
                if heard.is_err() && !body.is_end_stream() {
                    tokio::spawn(discard(body));
                }
                heard
            }
        }
    }

    /// Answers a gRPC call by the RPC library.
    async fn call(
        &self,
        request: Request<Incoming>,
        method: usize,
        place: Option<SemaphorePermit<'_>>,
    ) -> Result<Response<Body>, Error> {
        let compressed = is_compressed(request.headers());
        let open = self.is_open(request.uri().path());
        let request = request.map(axum::body::Body::new);
        let response = self.route(request).await;
        match failure(&response) {
            // What the health service says of a service that it does not know is its own protocol.
            Some(theirs) if open && theirs.code() != Code::Unimplemented => Ok(response),
            Some(theirs) if status::kind(&theirs).is_none() => Err(rewritten(&theirs, compressed)),
            None if matches!(method, ROTATE_ROOT_KEY | BACK_UP_STORE) => {
                if let Some(place) = place {
                    place.forget();
                }
                let streaming = Streaming::begin(Arc::clone(&self.common));
                Ok(response.map(|body| body.streamed(streaming)))
            }
            None if method != OTHER => whole(response).await,
            _ => Ok(response),
        }
    }

    /// Answers a REST request, once its body is there.
    async fn hear(
        &self,
        peer: &Peer,
        mut parts: Parts,
        body: &mut Incoming,
        method: usize,
        id: RequestId,
        context: &OnceLock<Arc<Context>>,
    ) -> Result<Response<Body>, Error> {
        let known = self.look_at(peer, &parts, body).await?;
        let admitted = self.admit(peer, &mut parts, known.as_deref(), method, id, context);
        let _place = admitted.await?;
        let whole = match known {
            Some(whole) => whole,
            None => read(body).await?,
        };
        Ok(self.hand_on(parts, whole).await)
    }

    /// Answers a REST request whose body was read.
    async fn hand_on(&self, parts: Parts, whole: Bytes) -> Response<Body> {
        match (&self.shortcut, Plain::of(&parts)) {
            (Shortcut::Rest(direct), Some(plain)) => {
                direct.answer(plain, parts, whole).await.map(Body::from)
            }
            _ => {
                let request = Request::from_parts(parts, whole.into());
                Box::pin(self.route(request)).await
            }
        }
    }

    async fn route(&self, request: Request<axum::body::Body>) -> Response<Body> {
        match self.inner.clone().call(request).await {
            Ok(response) => response.map(Body::from),
            Err(never) => match never {},
        }
    }

    /// Looks at the head and the body of a REST request as far as that must be before the caller is known: at the declared
    /// length of the body, and at all of it if the credential signs it, or if another is to say who the caller is.
    async fn look_at(
        &self,
        peer: &Peer,
        parts: &Parts,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, Error> {
        if size(&parts.headers) > MAX_MESSAGE {
            return Err(Kind::HeadersTooLong.into());
        }
        let declared = parts.headers.get(CONTENT_LENGTH);
        let declared = declared.and_then(|text| text.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > MAX_MESSAGE as u64) {
            return Err(Kind::MessageTooLong.into());
        }
        let guard = self.common.guard.as_ref();
        if guard.is_some_and(|guard| !guard.chain.signs_body(&parts.headers)) {
            return Ok(None);
        }
        let place = self.common.unverified.take(peer.origin.source());
        let _place = place.ok_or(Kind::Throttled)?;
        match tokio::time::timeout(UNVERIFIED_TIME, read(body)).await {
            Ok(whole) => whole.map(Some),
            Err(_) => Err(Kind::DeadlineExceeded.into()),
        }
    }

    /// Lets in a request whose credential is good, and notes its caller; then gives it its place among those in work.
    ///
    /// After the credentials: nobody unknown can take the places of callers, and what needs no credential takes none.
    async fn admit(
        &self,
        peer: &Peer,
        parts: &mut Parts,
        body: Option<&[u8]>,
        method: usize,
        id: RequestId,
        context: &OnceLock<Arc<Context>>,
    ) -> Result<Option<SemaphorePermit<'_>>, Error> {
        if self.face == Face::Grpc && size(&parts.headers) > MAX_MESSAGE {
            return Err(Kind::HeadersTooLong.into());
        }
        if self.is_open(parts.uri.path()) {
            return Ok(None);
        }
        if let Some(guard) = &self.common.guard {
            let evidence = Evidence {
                method: &parts.method,
                uri: &parts.uri,
                headers: &parts.headers,
                body,
                peer,
            };
            let caller = guard.chain.authenticate(&evidence).await?;
            let known = Arc::new(Context {
                request_id: id,
                caller,
                told: AtomicBool::new(false),
            });
            let known = context.get_or_init(|| known);
            guard.kms.limits.request(&known.caller)?;
            self.check_project(method, parts.uri.path(), &known.caller)?;
            parts.extensions.insert(Arc::clone(known));
        }
        // Where there is none, the upstream decides.
        let place = self.common.in_flight.try_acquire();
        Ok(Some(place.map_err(|_| Kind::Throttled)?))
    }

    /// Whether a path needs no credential.
    fn is_open(&self, path: &str) -> bool {
        self.face == Face::Grpc
            && (path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection."))
    }

    /// Refuses a REST path of another project, before its body is read as JSON. Over gRPC the
    /// project is in the message.
    fn check_project(&self, method: usize, path: &str, caller: &Caller) -> Result<(), Error> {
        if self.face != Face::Rest {
            return Ok(());
        }
        let written = PATHS.get(method).and_then(|name| project(path, name));
        match written {
            // One that is percent-encoded is compared by the use case, which sees it decoded.
            Some(id) if id != caller.project.as_str() && !id.contains('%') => {
                Err(Kind::ProjectMismatch.into())
            }
            _ => Ok(()),
        }
    }

    /// How long a request may take: what the server allows, or less if the caller says so.
    fn time_limit(&self, method: usize, headers: &HeaderMap) -> Result<Duration, Error> {
        let least = match (method, self.face) {
            (CREATE_KEY, _) => CREATE_TIME,
            (LIST_KEYS, _) => LIST_TIME,
            (ROTATE_ROOT_KEY | BACK_UP_STORE, Face::Grpc) => STORE_TIME,
            _ => Duration::ZERO,
        };
        let allowed = self.common.timeout.max(least);
        match headers.get("grpc-timeout") {
            Some(text) if self.face == Face::Grpc => {
                let malformed =
                    || Error::from(Kind::InvalidFormat).detail("grpc-timeout is malformed.");
                let asked = timeout(text).ok_or_else(malformed)?;
                Ok(asked.min(allowed))
            }
            _ => Ok(allowed),
        }
    }

    /// The number of the method that a path names.
    fn method(&self, path: &str) -> usize {
        let found = match self.face {
            Face::Grpc => path.strip_prefix("/kmsgate.v1.").and_then(|path| {
                let (service, name) = path.split_once('/')?;
                let number = METHODS.iter().position(|method| *method == name)?;
                (service == service_of(number)).then_some(number)
            }),
            Face::Rest => PATHS.iter().position(|name| project(path, name).is_some()),
        };
        found.unwrap_or(OTHER)
    }
}

/// A gRPC answer that is encoded, so that its length is known.
async fn whole(response: Response<Body>) -> Result<Response<Body>, Error> {
    let (parts, body) = response.into_parts();
    let read = body.collect().await;
    let read = read.map_err(|error| Error::from(Kind::Internal).caused_by(error))?;
    let told = read.trailers().and_then(Status::from_header_map);
    if told.is_none_or(|status| status.code() != Code::Ok) {
        return Err(Kind::Internal.into());
    }
    let answer = unary::Answer::new(read.to_bytes());
    Ok(Response::from_parts(parts, answer.into()))
}

/// Reads a body that nobody wants, for a while. Were it dropped, the client could be cut off while it
/// sends, and some clients then do not read why.
async fn discard(body: Incoming) {
    let mut body = Limited::new(body, UNWANTED);
    let read = async { while let Some(Ok(_)) = body.frame().await {} };
    // Whoever sends longer is cut off.
    let _ = tokio::time::timeout(UNVERIFIED_TIME, read).await;
}

/// Counts an answer as a request in work, in the place that its request had, until it is dropped.
#[derive(Debug)]
pub(super) struct Streaming(Arc<Common>);

impl Streaming {
    /// Begins in a place that was taken and not given back.
    fn begin(common: Arc<Common>) -> Self {
        common.requests.begun();
        Self(common)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.in_flight.add_permits(1);
        self.0.requests.over();
    }
}

impl Answer for Front {
    async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let common = &*self.common;
        let begun = Instant::now();
        let id = common.request_id();
        let method = self.method(request.uri().path());
        let leaves_http = leaves_http(&request);
        let foreign = self.face == Face::Grpc && !is_grpc(request.headers());
        let _in_work = InWork::begin(&common.requests);
        let context = OnceLock::new();

        let passed = match self.time_limit(method, request.headers()) {
            // A timer looks at its work first, and fast work would be done after its deadline.
            Ok(limit) if limit < SHORT && begun.elapsed() >= limit => {
                Err(Kind::DeadlineExceeded.into())
            }
            Ok(limit) => {
                let in_time = {
                    let work = pin!(self.pass(peer, request, method, id, &context));
                    tokio::time::timeout(limit, caught(id, work)).await
                };
                in_time.unwrap_or_else(|_| {
                    // A use case that ended with the block could tell that it was cancelled, and
                    // not why.
                    if let Some(context) = context.get() {
                        context.told.store(false, Ordering::Relaxed);
                    }
                    Err(Kind::DeadlineExceeded.into())
                })
            }
            Err(error) => Err(error),
        };
        let (mut response, kind) = match passed.and_then(|response| common.keep(response)) {
            Ok(response) => {
                let kind = kind(&response);
                (response, kind)
            }
            Err(error) => {
                tracing::debug!(request_id = %id, code = error.kind().row().code, "refused");
                (self.face.refuse(&error), Some(error.kind()))
            }
        };
        if let Some(kind) = kind {
            common.tell(id, context.get(), method, kind);
        }
        let code = kind.and_then(|kind| common.codes.get(kind as usize).copied());
        let ended = Ended {
            face: usize::from(self.face == Face::Rest),
            method,
            code: code.unwrap_or_default(),
        };
        common.requests.ended(ended, begun.elapsed());
        // The id of a gateway's upstream stays: what is logged and audited is so under that one.
        let headers = response.headers_mut();
        headers.entry(REQUEST_ID).or_insert_with(|| header(id));
        if foreign {
            // Who does not speak gRPC looks at nothing else.
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        }
        if leaves_http {
            // Nothing that comes after is read.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }
}

/// Whether a request asks that something else than HTTP/1.1 comes after it (RFC 9110, sections 7.8 and 9.3.6). That is
/// never done. But a proxy may take it for done, and hand on from then on what its client sends, unread: requests
/// with headers that it would have removed.
fn leaves_http(request: &Request<Incoming>) -> bool {
    request.version() < Version::HTTP_2
        && (*request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE))
}

/// The row of an answer; none if it is a success.
fn kind(response: &Response<Body>) -> Option<Kind> {
    let extensions = response.extensions();
    let told = extensions.get::<Kind>().copied();
    told.or_else(|| extensions.get::<Status>().and_then(status::kind))
}

/// The failure that a gRPC answer tells before its body; none if it tells none.
fn failure(response: &Response<Body>) -> Option<Status> {
    let told = response.extensions().get::<Status>().cloned();
    // The generated code tells of an unknown method in the headers alone.
    told.or_else(|| Status::from_header_map(response.headers()))
        .filter(|status| status.code() != Code::Ok)
}

/// What the RPC library refused by itself, as a row of the catalogue.
fn rewritten(status: &Status, compressed: bool) -> Error {
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Kind::MessageTooLong.into(),
        Code::Unimplemented if compressed => {
            Error::from(Kind::InvalidFormat).detail("Compressed messages are not accepted.")
        }
        Code::Unimplemented => Kind::UnknownPath.into(),
        _ => Kind::InvalidFormat.into(),
    }
}

/// Reads the whole body of a REST request, up to the limit.
async fn read(body: &mut Incoming) -> Result<Bytes, Error> {
    match Limited::new(body, MAX_MESSAGE).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Kind::MessageTooLong.into()),
        Err(error) => Err(Error::from(Kind::InvalidJson).caused_by(error)),
    }
}

/// The bytes of a list of headers.
fn size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

/// Whether the messages of a call are compressed.
fn is_compressed(headers: &HeaderMap) -> bool {
    let encoding = headers.get("grpc-encoding");
    encoding.is_some_and(|encoding| encoding != "identity")
}

/// Whether a request has gRPC's content type, whatever its messages are encoded in.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The duration of a `grpc-timeout` header: up to eight digits and a unit.
fn timeout(text: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = text.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A request id as a header.
fn header(id: RequestId) -> HeaderValue {
    // 32 hexadecimal digits are always a header value.
    let value = HeaderValue::from_bytes(&id.digits());
    let mut value = value.unwrap_or(HeaderValue::from_static(""));
    // No two are the same, so HTTP/2 need not remember it for compression (RFC 7541, section 7.1).
    value.set_sensitive(true);
    value
}

/// Does `work`, and makes a failure of the one request out of a panic, so that the others on its
/// connection go on.
async fn caught(
    id: RequestId,
    mut work: Pin<&mut impl Future<Output = Result<Response<Body>, Error>>>,
) -> Result<Response<Body>, Error> {
    std::future::poll_fn(move |context| {
        let poll = || work.as_mut().poll(context);
        match std::panic::catch_unwind(AssertUnwindSafe(poll)) {
            Ok(poll) => poll,
            Err(_) => {
                tracing::error!(request_id = %id, "a request panicked");
                Poll::Ready(Err(Kind::Internal.into()))
            }
        }
    })
    .await
}

/// Counts a request as in work until it is dropped, answered or not.
struct InWork<'a>(&'a Requests);

impl<'a> InWork<'a> {
    fn begin(requests: &'a Requests) -> Self {
        requests.begun();
        Self(requests)
    }
}

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        self.0.over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::logged;

    #[test]
    fn a_grpc_timeout_has_up_to_eight_digits_and_a_unit() {
        let read = |text| timeout(&HeaderValue::from_static(text));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "1", "1s", "-1S", "999999999S", "1 S", "+1S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn methods_that_may_take_longer_have_their_numbers() {
        assert_eq!(METHODS[CREATE_KEY], "CreateKey");
        assert_eq!(METHODS[LIST_KEYS], "ListKeys");
        assert_eq!(METHODS[ROTATE_ROOT_KEY], "RotateRootKey");
        assert_eq!(METHODS[BACK_UP_STORE], "BackUpStore");
        assert_eq!(PATHS[CREATE_KEY], "create-key");
        assert_eq!(PATHS[LIST_KEYS], "list-keys");
    }

    #[test]
    fn a_request_that_panics_fails_by_itself_and_is_logged_with_its_id() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let work = pin!(async { panic!("hunter2") });
        let work = caught(RequestId::new(7), work);
        let mut ended = None;
        let lines = logged(|| ended = Some(runtime.unwrap().block_on(work)));
        assert_eq!(ended.unwrap().unwrap_err().kind(), Kind::Internal);
        assert!(lines.contains("ERROR"), "{lines}");
        let request_id = format!("request_id={}", RequestId::new(7));
        assert!(lines.contains(&request_id), "{lines}");
        assert!(!lines.contains("hunter2"), "{lines}");
    }

    #[test]
    fn every_method_but_other_has_the_number_of_its_action() {
        let actions = Action::ALL.iter().map(|action| format!("{action:?}"));
        assert!(actions.eq(METHODS[..OTHER].iter().copied()));
    }

    #[test]
    fn every_row_is_counted_under_its_code() {
        let requests = Arc::clone(&crate::telemetry::Metrics::new(names()).requests);
        let common = Common::new(None, requests, &Limits::default());
        for &kind in Kind::ALL {
            let counted = names().codes[common.codes[kind as usize]];
            assert_eq!(counted, kind.row().code);
        }
    }
}
