//! One face of a server as one caller of it: sends calls, and holds every answer to what all
//! answers promise.
//!
//! A refusal is read back into its row of the catalogue, and everything that the face tells of the
//! row is checked on the way: over REST the status, the code and the exact envelope, over gRPC the
//! status, `ErrorDetail` and `ErrorInfo`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kmsgate::error::{Kind, Retry};
use kmsgate::grpc::pb;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic_types::StatusExt;

use crate::schema::{Call, method, read_answer};
use crate::world::{Right, token};

/// Which face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// JSON over HTTP/1.1.
    Rest,
    /// gRPC over HTTP/2.
    Grpc,
}

/// A face of a server, as one caller of it.
#[derive(Clone)]
pub(crate) struct Face {
    /// Which.
    pub(crate) over: Over,
    /// Where it is served.
    pub(crate) address: SocketAddr,
    /// The project that calls name.
    pub(crate) project: String,
    /// What is sent with every call.
    pub(crate) headers: HeaderMap,
    client: Client<HttpConnector, Sending>,
    /// The request ids that the server's answers have had.
    seen: Arc<Mutex<HashSet<String>>>,
    refusals: Arc<Mutex<Vec<String>>>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The server's name for the request.
    pub(crate) request_id: String,
    /// A success in REST's form, or a refusal.
    pub(crate) outcome: Result<Value, Refusal>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The row of the catalogue.
    pub(crate) kind: Kind,
    /// What the caller reads.
    pub(crate) message: String,
    /// After how long a repeat may succeed, where one may.
    pub(crate) pause: Option<Duration>,
}

/// An HTTP answer, before anything is made of it.
#[derive(Debug)]
pub(crate) struct Raw {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
    /// What came after the body.
    pub(crate) trailers: HeaderMap,
}

impl Face {
    /// Calls as somebody with every right to `project`.
    pub(crate) fn new(
        over: Over,
        address: SocketAddr,
        project: &str,
        seen: Arc<Mutex<HashSet<String>>>,
    ) -> Self {
        let face = Self {
            over,
            address,
            project: project.to_owned(),
            headers: HeaderMap::new(),
            client: client(over == Over::Grpc),
            seen,
            refusals: Arc::default(),
        };
        face.with_token(&token(project, Right::Everything))
    }

    /// The same face over HTTP/2, whichever it is.
    pub(crate) fn over_http2(&self) -> Self {
        Self {
            client: client(true),
            ..self.clone()
        }
    }

    /// The same face without a credential.
    pub(crate) fn with_nothing(&self) -> Self {
        let mut face = self.clone();
        face.headers.clear();
        face
    }

    /// The same face with this token and no other credential.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        self.with_nothing().with_header("x-auth-token", token)
    }

    /// The same face with the project's token for this right.
    pub(crate) fn with_right(&self, right: Right) -> Self {
        self.with_token(&token(&self.project, right))
    }

    /// The same face with one more header.
    pub(crate) fn with_header(&self, name: &'static str, value: &str) -> Self {
        let mut face = self.clone();
        let value = HeaderValue::from_str(value).unwrap();
        face.headers.insert(HeaderName::from_static(name), value);
        face
    }

    /// The same caller naming another project.
    pub(crate) fn naming(&self, project: &str) -> Self {
        Self {
            project: project.to_owned(),
            ..self.clone()
        }
    }

    /// The refusals of [`refused`](Self::refused), in order; of those that are the same in a row,
    /// one.
    pub(crate) fn refusals(&self) -> Vec<String> {
        self.refusals.lock().unwrap().clone()
    }

    /// Calls.
    pub(crate) async fn call(&self, call: &Call) -> Answer {
        let body = match self.over {
            Over::Rest => call.to_json(),
            Over::Grpc => framed(&call.to_message(Some(&self.project))),
        };
        self.send(call.operation, body).await
    }

    /// Calls, and expects success.
    pub(crate) async fn done(&self, call: &Call) -> Value {
        let answer = self.call(call).await;
        answer
            .outcome
            .unwrap_or_else(|refusal| panic!("over {:?}: {call:?}: {refusal:?}", self.over))
    }

    /// Calls, and expects a refusal with this row.
    pub(crate) async fn refused(&self, kind: Kind, call: &Call) -> Refusal {
        let answer = self.call(call).await;
        let Err(refusal) = answer.outcome else {
            panic!("over {:?}: {call:?} succeeded, not {kind:?}", self.over);
        };
        assert_eq!(refusal.kind, kind, "over {:?}: {call:?}", self.over);
        let told = format!("{}: {kind:?}: {}", call.operation, refusal.message);
        let mut refusals = self.refusals.lock().unwrap();
        if refusals.last() != Some(&told) {
            refusals.push(told);
        }
        drop(refusals);
        refusal
    }

    /// Sends a body that need not be one of the operation.
    pub(crate) async fn send(&self, operation: &str, body: impl Into<Sending>) -> Answer {
        let raw = self.post(&self.path(operation), body).await;
        self.read(operation, &raw)
    }

    /// Where an operation is.
    pub(crate) fn path(&self, operation: &str) -> String {
        match self.over {
            Over::Rest => format!("/v1.0/{}/kms/{operation}", self.project),
            Over::Grpc => {
                let (service, method) = method(operation);
                format!("/kmsgate.v1.{service}/{method}")
            }
        }
    }

    /// Posts a body to a path.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Sending>) -> Raw {
        let kind = match self.over {
            Over::Rest => "application/json",
            Over::Grpc => "application/grpc",
        };
        let mut request = Request::new(body.into());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("http://{}{path}", self.address).parse().unwrap();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if self.over == Over::Grpc {
            headers.insert("te", HeaderValue::from_static("trailers"));
        }
        headers.extend(self.headers.clone());
        let response = self.client.request(request).await;
        let response =
            response.unwrap_or_else(|error| panic!("over {:?}: {path}: {error:?}", self.over));
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        Raw {
            status: parts.status,
            headers: parts.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes(),
        }
    }

    /// Writes these bytes to a connection of their own and reads one HTTP/1.1 answer.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Raw {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server that has heard enough closes, and then the rest cannot be written.
        let _ = stream.write_all(bytes).await;
        read_http1(&mut stream).await
    }

    /// The head of an HTTP/1.1 request with the caller's credential, to be ended by a connection's
    /// end.
    pub(crate) fn head(&self, method: &str, path: &str, headers: &str) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}");
        for (name, value) in &self.headers {
            head += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        (head + "connection: close\r\n\r\n").into_bytes()
    }

    /// Makes of an HTTP answer what it says, and checks what every answer promises.
    pub(crate) fn read(&self, operation: &str, raw: &Raw) -> Answer {
        let request_id = raw.headers.get("x-request-id").map(HeaderValue::to_str);
        let request_id = request_id.unwrap_or_else(|| panic!("no x-request-id: {raw:?}"));
        let request_id = request_id.unwrap().to_owned();
        assert_eq!(request_id.len(), 32, "{request_id}");
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        assert!(request_id.bytes().all(hex), "{request_id}");
        let fresh = self.seen.lock().unwrap().insert(request_id.clone());
        assert!(fresh, "two answers have the request id {request_id}");
        let outcome = match self.over {
            Over::Rest => read_rest(raw),
            Over::Grpc => read_grpc(operation, raw),
        };
        Answer {
            request_id,
            outcome,
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub(crate) struct Sending {
    bytes: Option<Bytes>,
    ends: bool,
}

impl Sending {
    /// The first half of a body whose rest never comes.
    pub(crate) fn half(whole: &[u8]) -> Self {
        Self {
            bytes: Some(whole[..whole.len() / 2].to_vec().into()),
            ends: false,
        }
    }
}

impl<B: Into<Bytes>> From<B> for Sending {
    fn from(bytes: B) -> Self {
        let bytes = bytes.into();
        Self {
            bytes: (!bytes.is_empty()).then_some(bytes),
            ends: true,
        }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ends && self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.bytes {
            _ if !self.ends => SizeHint::default(),
            Some(bytes) => SizeHint::with_exact(bytes.len() as u64),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Answer {
    /// The refusal, which there must be.
    pub(crate) fn refusal(&self) -> &Refusal {
        self.outcome.as_ref().expect_err("a refusal")
    }

    /// Checks that the answer is a refusal with this row.
    pub(crate) fn is(&self, kind: Kind, about: &str) {
        match &self.outcome {
            Ok(_) => panic!("{about}: succeeded, not {kind:?}"),
            Err(refusal) => assert_eq!(refusal.kind, kind, "{about}: {}", refusal.message),
        }
    }
}

/// A gRPC message as it stands in a body: not compressed.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// Bytes out of a Base64 member.
pub(crate) fn bytes(member: &Value) -> Vec<u8> {
    STANDARD.decode(member.as_str().unwrap()).unwrap()
}

/// Reads one HTTP/1.1 answer to the connection's end.
pub(crate) async fn read_http1(stream: &mut TcpStream) -> Raw {
    let mut answer = Vec::new();
    // A server that closes with unread bytes resets the connection; what it said before still
    // counts.
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.expect("an answer") + 4);
    let mut lines = str::from_utf8(head).unwrap().lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, value.trim().parse().unwrap());
    }
    headers.remove(CONNECTION);
    Raw {
        status: status.parse().unwrap(),
        headers,
        body: body.to_vec().into(),
        trailers: HeaderMap::new(),
    }
}

fn client(http2: bool) -> Client<HttpConnector, Sending> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let mut client = Client::builder(TokioExecutor::new());
    client.http2_only(http2);
    client.build(connector)
}

fn read_rest(raw: &Raw) -> Result<Value, Refusal> {
    assert_eq!(raw.headers[CONTENT_TYPE], "application/json");
    let body: Value = serde_json::from_slice(&raw.body).unwrap();
    if raw.status == StatusCode::OK {
        return Ok(body);
    }
    let code = body["error"]["error_code"].as_str().unwrap();
    let message = body["error"]["error_msg"].as_str().unwrap().to_owned();
    let mut rows = Kind::ALL.iter().copied();
    let row = rows.find(|kind| kind.row().code == code && kind.row().http == raw.status);
    let kind = row.unwrap_or_else(|| panic!("{} {code} is no row", raw.status));
    let envelope = format!(
        r#"{{"error":{{"error_code":{},"error_msg":{}}}}}"#,
        json!(code),
        json!(message)
    );
    assert_eq!(raw.body, envelope, "the envelope is exact");
    assert!(message.starts_with(kind.row().text), "{message}");
    let pause = raw.headers.get(RETRY_AFTER).map(|pause| {
        let seconds: u64 = pause.to_str().unwrap().parse().unwrap();
        Duration::from_secs(seconds)
    });
    assert_eq!(pause.is_some(), kind.row().retry == Retry::Backoff);
    Err(Refusal {
        kind,
        message,
        pause,
    })
}

fn read_grpc(operation: &str, raw: &Raw) -> Result<Value, Refusal> {
    // Otherwise the HTTP status says nothing.
    let understood = [StatusCode::OK, StatusCode::UNSUPPORTED_MEDIA_TYPE];
    assert!(understood.contains(&raw.status), "{raw:?}");
    let media = raw.headers[CONTENT_TYPE].to_str().unwrap();
    assert!(media.starts_with("application/grpc"), "{media}");
    let status = Status::from_header_map(&raw.trailers);
    let status = status.or_else(|| Status::from_header_map(&raw.headers));
    let status = status.expect("a grpc-status");
    if status.code() == tonic::Code::Ok {
        let (&[flag, a, b, c, d], message) = raw.body.split_first_chunk().unwrap();
        let length = u32::from_be_bytes([a, b, c, d]);
        assert_eq!((flag, length as usize), (0, message.len()));
        return Ok(read_answer(operation, message));
    }
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.domain, "kmsgate");
    let kind = Kind::from_name(&info.reason).expect("a reason of the catalogue");
    let row = kind.row();
    assert_eq!(status.code(), row.grpc, "{kind:?}");
    let details = tonic_types::pb::Status::decode(status.details()).unwrap();
    assert_eq!(details.code, row.grpc as i32);
    assert_eq!(details.message, status.message());
    let mut named = details.details.iter();
    let detail = named.find(|any| any.type_url == "type.googleapis.com/kmsgate.v1.ErrorDetail");
    let detail = pb::ErrorDetail::decode(&*detail.expect("an ErrorDetail").value).unwrap();
    assert_eq!(detail.error_code, row.code);
    assert_eq!(detail.error_msg, status.message());
    assert!(
        status.message().starts_with(row.text),
        "{}",
        status.message()
    );
    let pause = status.get_details_retry_info();
    assert_eq!(pause.is_some(), row.retry == Retry::Backoff);
    Err(Refusal {
        kind,
        message: detail.error_msg,
        pause: pause.map(|info| info.retry_delay.unwrap()),
    })
}
