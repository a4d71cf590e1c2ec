//! EncryptData and DecryptData from bytes to bytes.
//!
//! They are called thousands of times a second. What the RPC library does for every method, in
//! routing, boxed futures and bodies and a codec's buffers, costs more than an encryption, so these
//! two are read and answered here. They are refused as the library would refuse them, once the
//! front has made rows of the catalogue of that.

use std::cmp::Ordering;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use prost::Message;
use zeroize::Zeroize;

use crate::error::{Error, Kind};
use crate::grpc::Server;
use crate::service::Context;

/// What precedes a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A call that is answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// EncryptData.
    Encrypt,
    /// DecryptData.
    Decrypt,
}

impl Unary {
    /// The call that a path names; none if it is none of these.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/kmsgate.v1.CryptoService/EncryptData" => Some(Self::Encrypt),
            "/kmsgate.v1.CryptoService/DecryptData" => Some(Self::Decrypt),
            _ => None,
        }
    }

    /// Reads the call's message from `body`, of at most `limit` bytes, and answers it.
    pub async fn answer<B: Body<Data = Bytes> + Unpin>(
        self,
        server: &Server,
        context: Option<&Arc<Context>>,
        body: B,
        limit: usize,
    ) -> Result<Response<Answer>, Error> {
        let message = read(body, limit).await?;
        let answer = match self {
            Self::Encrypt => write(&server.encrypt(context, parse(message)?).await?),
            Self::Decrypt => {
                let mut answer = server.decrypt(context, parse(message)?).await?;
                let written = write(&answer);
                answer.plain_text.zeroize();
                answer.plain_bytes.zeroize();
                written
            }
        };
        let mut response = Response::new(answer);
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, grpc);
        Ok(response)
    }
}

/// The body of an answer: one message, and trailers that tell of a success.
#[derive(Debug)]
pub struct Answer {
    message: Option<Bytes>,
    told: bool,
}

impl Answer {
    /// A success, with a message behind what precedes one.
    pub const fn new(message: Bytes) -> Self {
        Self {
            message: Some(message),
            told: false,
        }
    }

    /// How many bytes are left of the message.
    pub fn length(&self) -> usize {
        self.message.as_ref().map_or(0, Bytes::len)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if std::mem::replace(&mut self.told, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        let status = HeaderName::from_static("grpc-status");
        trailers.insert(status, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.told
    }
}

/// The one message of a call, whose body is read to its end: were it left, the client would be told
/// of a reset beside its answer.
async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B, limit: usize) -> Result<Bytes, Error> {
    let mut begun = Bytes::new();
    let mut whole = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Kind::InvalidFormat)?;
        let Ok(data) = frame.into_data() else { break };
        if whole.is_some() && !data.is_empty() {
            return Err(Kind::InvalidFormat.into());
        }
        // Most messages come in one piece, which is not copied. Of others no more is kept than the
        // declared length, which is known first, and one frame.
        let data = if begun.is_empty() {
            data
        } else {
            let mut joined = BytesMut::from(begun);
            joined.extend_from_slice(&data);
            joined.freeze()
        };
        match split(data, limit)? {
            Piece::Whole(message) => (begun, whole) = (Bytes::new(), Some(message)),
            Piece::Part(data) => begun = data,
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(whole.ok_or(Kind::InvalidFormat)?)
}

/// The beginning of a body.
enum Piece {
    /// It has a whole message.
    Whole(Bytes),
    /// It has not.
    Part(Bytes),
}

/// Takes a message from the beginning of a body, if all of it is there.
fn split(mut data: Bytes, limit: usize) -> Result<Piece, Error> {
    let Some((&[compressed, ref length @ ..], _)) = data.split_first_chunk::<PREFIX>() else {
        return Ok(Piece::Part(data));
    };
    if compressed != 0 {
        return Err(Kind::InvalidFormat.into());
    }
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(Kind::MessageTooLong.into());
    }
    match (data.len() - PREFIX).cmp(&length) {
        Ordering::Less => Ok(Piece::Part(data)),
        Ordering::Equal => {
            data.advance(PREFIX);
            Ok(Piece::Whole(data))
        }
        // A unary call has one message.
        Ordering::Greater => Err(Kind::InvalidFormat.into()),
    }
}

fn parse<M: Message + Default>(message: Bytes) -> Result<M, Error> {
    Ok(M::decode(message).map_err(|_| Kind::InvalidFormat)?)
}

fn write(message: &impl Message) -> Answer {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    // An answer has some kilobytes.
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    Answer::new(framed.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    // The layout is that of the gRPC protocol over HTTP/2: one byte, four bytes big-endian, message.

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut() {
        let sent = b"\0\0\0\0\x05hello";
        for size in 1..=sent.len() {
            let read = read_all(sent.chunks(size)).await.unwrap();
            assert_eq!(read, "hello", "{size}");
        }
        assert_eq!(
            read_all([&b""[..], sent].into_iter()).await.unwrap(),
            "hello"
        );
    }

    #[tokio::test]
    async fn an_empty_message_is_one() {
        assert_eq!(read_all([&[0; 5][..]].into_iter()).await.unwrap(), "");
    }

    #[tokio::test]
    async fn what_is_not_one_message_is_refused() {
        for bad in [
            &b""[..],
            b"\0",
            b"\0\0\0\0\x05hell",
            // Compressed, and a flag that means nothing.
            b"\x01\0\0\0\x05hello",
            b"\x02\0\0\0\x05hello",
            b"\0\0\0\0\x01a\0\0\0\0\x01b",
            b"\0\0\0\0\x01aa",
        ] {
            for size in [1, 6, 100] {
                let error = read_all(bad.chunks(size)).await.unwrap_err();
                assert_eq!(error.kind(), Kind::InvalidFormat, "{bad:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_by_its_declared_length() {
        let longest = [&[0, 0, 0, 0, 10][..], &[7; 10]].concat();
        assert_eq!(read_all([&*longest].into_iter()).await.unwrap().len(), 10);
        for bad in [&[0, 0, 0, 0, 11][..], &[0, 255, 255, 255, 255]] {
            let error = read_all([bad].into_iter()).await.unwrap_err();
            assert_eq!(error.kind(), Kind::MessageTooLong, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_one_message_and_a_success() {
        // The wrapped string "a" in the protobuf wire format.
        let collected = write(&"a".to_owned()).collect().await.unwrap();
        let status = collected.trailers().unwrap().get("grpc-status").cloned();
        assert_eq!(status.unwrap(), "0");
        assert_eq!(collected.to_bytes(), &b"\0\0\0\0\x03\x0a\x01a"[..]);
    }

    /// Reads what comes in `pieces`, under a limit of ten bytes.
    async fn read_all<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Bytes, Error> {
        read(Pieces(pieces.map(Bytes::copy_from_slice).collect()), 10).await
    }

    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Task<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }
}
