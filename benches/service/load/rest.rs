//! EncryptData over REST: a socket, one HTTP/1.1 request made beforehand.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Outcome;
use crate::load::{Lane, ciphertext_length};
use crate::server::Server;

/// A request and what its answer must look like.
pub(crate) struct Call {
    address: SocketAddr,
    template: Arc<Template>,
}

struct Template {
    /// Head and body.
    request: Vec<u8>,
    /// How the answer's body begins: everything up to the ciphertext. Empty until the first answer was looked into.
    opening: Vec<u8>,
    /// How long it is; `None` until then.
    length: Option<usize>,
}

impl Call {
    /// Makes the request, tries it, and takes the answer apart.
    pub(crate) async fn prepare(server: &Server, plaintext: usize) -> Outcome<Self> {
        let body = body(&server.key_id, plaintext);
        let head = format!(
            "POST /v1.0/{}/kms/encrypt-data HTTP/1.1\r\n\
             host: {}\r\n\
             x-auth-token: {}\r\n\
             content-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            server.project,
            server.rest,
            server.token,
            body.len()
        );
        let request = [head, body].concat().into_bytes();
        let mut exchange = Exchange::connect(
            server.rest,
            Arc::new(Template {
                request: request.clone(),
                opening: Vec::new(),
                length: None,
            }),
        )
        .await?;
        exchange.call().await?;
        let answer = exchange.body();
        let opening = check(answer, &server.key_id, plaintext)?;
        Ok(Self {
            address: server.rest,
            template: Arc::new(Template {
                request,
                opening: opening.to_vec(),
                length: Some(answer.len()),
            }),
        })
    }

    /// Opens a connection for each lane.
    pub(crate) async fn connect(&self, lanes: usize) -> Outcome<Vec<Exchange>> {
        let mut exchanges = Vec::with_capacity(lanes);
        for _ in 0..lanes {
            exchanges.push(Exchange::connect(self.address, Arc::clone(&self.template)).await?);
        }
        Ok(exchanges)
    }
}

/// A connection.
pub(crate) struct Exchange {
    stream: TcpStream,
    template: Arc<Template>,
    /// The answer so far.
    answer: Vec<u8>,
    /// Where its body begins.
    body: usize,
}

impl Exchange {
    async fn connect(address: SocketAddr, template: Arc<Template>) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            template,
            answer: Vec::with_capacity(1 << 14),
            body: 0,
        })
    }

    fn body(&self) -> &[u8] {
        &self.answer[self.body..]
    }
}

impl Lane for Exchange {
    async fn call(&mut self) -> Outcome<()> {
        self.stream.write_all(&self.template.request).await?;
        self.answer.clear();
        let mut end = None;
        while end.is_none_or(|end| self.answer.len() < end) {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("REST: the server closed the connection".into());
            }
            if end.is_none()
                && let Some((body, length)) = head(&self.answer)?
            {
                self.body = body;
                end = Some(body + length);
            }
        }
        let ok = self.answer.starts_with(b"HTTP/1.1 200 ")
            && self.body().starts_with(&self.template.opening)
            && self
                .template
                .length
                .is_none_or(|length| self.body().len() == length);
        if !ok {
            let answer = String::from_utf8_lossy(&self.answer);
            return Err(format!("REST: {answer}").into());
        }
        Ok(())
    }
}

/// The request's JSON.
pub(crate) fn body(key_id: &str, plaintext: usize) -> String {
    let plain_text = "a".repeat(plaintext);
    format!(r#"{{"key_id":"{key_id}","plain_text":"{plain_text}"}}"#)
}

/// The answer's JSON, as the echo gives it, for a ciphertext of `length` bytes.
pub(crate) fn answer(key_id: &str, length: usize) -> String {
    let cipher_text = STANDARD.encode(vec![0; length]);
    format!(r#"{{"key_id":"{key_id}","cipher_text":"{cipher_text}"}}"#)
}

/// Looks into an answer; returns what precedes the ciphertext.
fn check<'a>(answer: &'a [u8], key_id: &str, plaintext: usize) -> Outcome<&'a [u8]> {
    let json: Value = serde_json::from_slice(answer)?;
    let cipher_text = json["cipher_text"].as_str().ok_or("REST: no cipher_text")?;
    let length = STANDARD.decode(cipher_text)?.len();
    if json["key_id"] != key_id || length != ciphertext_length(plaintext) {
        return Err(format!("REST: {json}").into());
    }
    let at = std::str::from_utf8(answer)?
        .find(cipher_text)
        .ok_or("REST: an escaped cipher_text")?;
    Ok(&answer[..at])
}

/// Where the body of an answer begins and how long it is, once the head is complete.
fn head(answer: &[u8]) -> Outcome<Option<(usize, usize)>> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|window| window == END) else {
        return Ok(None);
    };
    let length = std::str::from_utf8(&answer[..end])?
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse())
        })
        .ok_or("REST: an answer without content-length")??;
    Ok(Some((end + END.len(), length)))
}
