//! The body of an answer, and what it holds until it has been handed on.
//!
//! A client says how much it will read, and may say nothing: over HTTP/2 for each answer. What it does
//! not read waits in memory. So an answer is counted for as long as it waits: in the work of its connection, by which
//! a server that stops knows what is still to be sent; and, if it is a long one, in the [room](Room) that
//! there is for all of them. It is handed on in pieces, so that what waits is here and not in the
//! HTTP library, which would say that it was sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::grpc::unary;
use crate::server::front::Streaming;
use crate::server::listen::Place;

/// From how many bytes on an answer is a long one, and in how many bytes at a time it is handed on.
pub(super) const LONG: usize = 16 * 1024;

/// A part of the room that there is for long answers, in KiB.
pub(super) type Room = OwnedSemaphorePermit;

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Body {
    content: Content,
    /// What is left of a long piece of it.
    rest: Bytes,
    streaming: Option<Streaming>,
    room: Option<Room>,
    place: Option<Place>,
}

#[derive(Debug)]
enum Content {
    /// Of a call that was answered without the RPC library.
    Unary(unary::Answer),
    /// Of any other.
    Other(axum::body::Body),
}

impl From<unary::Answer> for Body {
    fn from(answer: unary::Answer) -> Self {
        Self::new(Content::Unary(answer))
    }
}

impl From<axum::body::Body> for Body {
    fn from(body: axum::body::Body) -> Self {
        Self::new(Content::Other(body))
    }
}

impl Body {
    const fn new(content: Content) -> Self {
        Self {
            content,
            rest: Bytes::new(),
            streaming: None,
            room: None,
            place: None,
        }
    }

    /// How many bytes are known to be left of it.
    pub(super) fn length(&self) -> usize {
        let content = match &self.content {
            Content::Unary(body) => body.length(),
            Content::Other(body) => usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX),
        };
        content.saturating_add(self.rest.len())
    }

    /// The same body, of an answer for which work goes on while it is sent.
    pub(super) fn streamed(mut self, streaming: Streaming) -> Self {
        self.streaming = Some(streaming);
        self
    }

    /// Whether work for the answer goes on while it is sent.
    pub(super) const fn is_streamed(&self) -> bool {
        self.streaming.is_some()
    }

    /// The same body, which takes this of the room for long ones.
    pub(super) fn within(mut self, room: Room) -> Self {
        self.room = Some(room);
        self
    }

    /// The same body, which is work of its connection until it has been handed on or given up.
    pub(super) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let mut piece = std::mem::take(&mut this.rest);
        if piece.is_empty() {
            let next = match &mut this.content {
                Content::Unary(body) => {
                    let next = Pin::new(body).poll_frame(context);
                    next.map_err(|never| match never {})
                }
                Content::Other(body) => Pin::new(body).poll_frame(context),
            };
            if let (Poll::Pending, Some(place)) = (&next, &mut this.place) {
                place.stands_open();
            }
            match ready!(next).map(|next| next.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => piece = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        if piece.len() > LONG {
            this.rest = piece.split_off(LONG);
        }
        if let Some(place) = &mut this.place {
            place.handed_on();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
            && match &self.content {
                Content::Unary(body) => body.is_end_stream(),
                Content::Other(body) => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = match &self.content {
            Content::Unary(body) => body.size_hint(),
            Content::Other(body) => body.size_hint(),
        };
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_long_body_is_handed_on_in_pieces_and_says_how_much_is_left() {
        let whole: Vec<u8> = [1, 2, 3].repeat(LONG);
        let mut body = Body::from(axum::body::Body::from(whole.clone()));
        let mut read = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(
                body.size_hint().exact(),
                Some((whole.len() - read.len()) as u64)
            );
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(!piece.is_empty() && piece.len() <= LONG, "{}", piece.len());
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, whole);
        assert!(body.frame().await.is_none());
    }
}
