//! EncryptData over gRPC: `h2`, one framed message made beforehand.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use axum::http::{Method, Request, StatusCode, Uri, Version};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;
use kmsgate::grpc::pb::{EncryptDataRequest, EncryptDataResponse};
use prost::Message;
use tokio::net::TcpStream;

use crate::Outcome;
use crate::load::{Lane, ciphertext_length};
use crate::server::Server;

/// How many requests share a connection: 16 in flight use one, 128 use four.
const STREAMS: usize = 32;

/// Wide enough that a window never closes: it is the server's speed that is asked for.
const WINDOW: u32 = 1 << 24;

/// The length of what precedes a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A request and what its answer must look like.
pub(crate) struct Call {
    address: SocketAddr,
    template: Arc<Template>,
}

#[derive(Clone)]
struct Template {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    /// How the answer begins: everything up to the ciphertext. Without the prefix if `length` is `None`.
    opening: Bytes,
    /// How long it is; `None` if that changes from one to the next.
    length: Option<usize>,
}

impl Call {
    /// Makes an EncryptData request, and tries it.
    pub(crate) async fn prepare(server: &Server, plaintext: usize) -> Outcome<Self> {
        let request = EncryptDataRequest {
            project_id: server.project.clone(),
            key_id: server.key_id.clone(),
            plaintext: Some(Plaintext::PlainBytes(vec![b'a'; plaintext])),
            ..EncryptDataRequest::default()
        };
        let cipher_text = vec![0; ciphertext_length(plaintext)];
        let answer = framed(&EncryptDataResponse {
            key_id: server.key_id.clone(),
            cipher_text: cipher_text.clone(),
        })?;
        let length = answer.len();
        let opening = answer.slice(..length - cipher_text.len());
        Self::new(server, "EncryptData", &request, opening, Some(length)).await
    }

    /// Makes any request, and tries it. Its answers begin with the fields of `answer`.
    pub(crate) async fn unary(
        server: &Server,
        method: &str,
        request: &impl Message,
        answer: &impl Message,
    ) -> Outcome<Self> {
        // The prefix tells a length, and an answer may go on after these fields.
        let fields = answer.encode_to_vec().into();
        Self::new(server, method, request, fields, None).await
    }

    async fn new(
        server: &Server,
        method: &str,
        request: &impl Message,
        opening: Bytes,
        length: Option<usize>,
    ) -> Outcome<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(
            HeaderName::from_static("x-auth-token"),
            HeaderValue::from_str(&server.token)?,
        );
        let call = Self {
            address: server.grpc,
            template: Arc::new(Template {
                uri: format!("http://{}/kmsgate.v1.CryptoService/{method}", server.grpc).parse()?,
                headers,
                body: framed(request)?,
                opening,
                length,
            }),
        };
        for mut lane in call.connect(1).await? {
            lane.call().await?;
        }
        Ok(call)
    }

    /// The same call by another caller, not tried.
    pub(crate) fn with_token(&self, token: &str) -> Outcome<Self> {
        let mut template = (*self.template).clone();
        let token = HeaderValue::from_str(token)?;
        template.headers.insert("x-auth-token", token);
        Ok(Self {
            address: self.address,
            template: Arc::new(template),
        })
    }

    /// Opens as many connections as `lanes` need.
    pub(crate) async fn connect(&self, lanes: usize) -> Outcome<Vec<Exchange>> {
        let connections = lanes.div_ceil(STREAMS);
        let mut senders = Vec::with_capacity(connections);
        for _ in 0..connections {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = h2::client::Builder::new()
                .initial_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .handshake(stream)
                .await?;
            // It ends when the last lane drops its sender; if it fails, so do the lanes.
            tokio::spawn(connection);
            senders.push(sender);
        }
        Ok(senders
            .into_iter()
            .cycle()
            .take(lanes)
            .map(|sender| Exchange {
                sender,
                template: Arc::clone(&self.template),
            })
            .collect())
    }
}

/// How a call ended that may be refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With the answer that was expected.
    Served,
    /// By a limit, or by a full queue.
    Refused,
    /// Too late.
    Late,
}

/// A share of a connection.
#[derive(Clone)]
pub(crate) struct Exchange {
    sender: SendRequest<Bytes>,
    template: Arc<Template>,
}

impl Lane for Exchange {
    async fn call(&mut self) -> Outcome<()> {
        match self.attempt().await? {
            Ended::Served => Ok(()),
            Ended::Refused => Err("gRPC: a refusal".into()),
            Ended::Late => Err("gRPC: an answer that came too late".into()),
        }
    }
}

impl Exchange {
    /// Sends the request, and checks the answer if it is none of those that a server under load may give.
    pub(crate) async fn attempt(&mut self) -> Outcome<Ended> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        request.uri_mut().clone_from(&self.template.uri);
        request.headers_mut().clone_from(&self.template.headers);

        poll_fn(|context| self.sender.poll_ready(context)).await?;
        let (response, mut stream) = self.sender.send_request(request, false)?;
        stream.send_data(self.template.body.clone(), true)?;

        let (head, mut body) = response.await?.into_parts();
        // A refusal has its status where others have their headers.
        match head.headers.get("grpc-status").map(HeaderValue::as_bytes) {
            // RESOURCE_EXHAUSTED and UNAVAILABLE.
            Some(b"8" | b"14") => return Ok(Ended::Refused),
            // DEADLINE_EXCEEDED.
            Some(b"4") => return Ok(Ended::Late),
            _ => {}
        }
        let mut length = 0;
        let mut opening = self.template.opening.as_ref();
        let mut skipped = if self.template.length.is_none() {
            PREFIX
        } else {
            0
        };
        while let Some(chunk) = body.data().await {
            let received = chunk?;
            let chunk = &received[skipped.min(received.len())..];
            skipped -= received.len() - chunk.len();
            let compared = opening.len().min(chunk.len());
            let (expected, rest) = opening.split_at(compared);
            if expected != &chunk[..compared] {
                return Err("gRPC: an answer other than expected".into());
            }
            opening = rest;
            length += received.len();
            body.flow_control().release_capacity(received.len())?;
        }
        let trailers = body.trailers().await?;
        let status = trailers.as_ref().and_then(|map| map.get("grpc-status"));
        if head.status != StatusCode::OK || status.is_none_or(|status| status != "0") {
            return Err(format!("gRPC: {head:?}, trailers {trailers:?}").into());
        }
        let expected = self.template.length.unwrap_or(length);
        if length != expected || !opening.is_empty() {
            return Err(format!("gRPC: {length} bytes of answer, not {expected}").into());
        }
        Ok(Ended::Served)
    }
}

/// A message as it stands in the body of a request or an answer.
fn framed(message: &impl Message) -> Outcome<Bytes> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length)?);
    message.encode(&mut frame)?;
    Ok(frame.freeze())
}
