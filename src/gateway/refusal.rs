//! Failures as REST tells them: the row's HTTP status, and the documented body.

use std::error::Error as StdError;
use std::iter;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response};
use serde::Serialize;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::error::{DOMAIN, Error, Face, Kind, PAUSE, Retry};
use crate::gateway::response::JSON;

/// The REST face.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest;

impl Face for Rest {
    fn refuse(&self, error: &Error) -> Response<Body> {
        told(error)
    }
}

/// The answer for a failure that was met before the service was called.
pub(super) fn told(error: &Error) -> Response<Body> {
    write(error.kind(), &error.to_string(), error.pause())
}

/// The answer for a failure of the service. The status goes with it in the response's extensions,
/// as it does over gRPC, so that the layers in front can log its cause.
pub(super) fn retold(status: Status) -> Response<Body> {
    let details = status.get_error_details();
    let row = details
        .error_info()
        .filter(|info| info.domain == DOMAIN)
        .and_then(|info| Kind::from_name(&info.reason));
    let mut response = match row {
        Some(kind) => {
            let pause = details.retry_info().and_then(|info| info.retry_delay);
            write(kind, status.message(), pause)
        }
        // Not one of ours: its text is for our logs.
        None if timed_out(&status) => told(&Kind::DeadlineExceeded.into()),
        None => told(&Kind::BadUpstream.into()),
    };
    response.extensions_mut().insert(status);
    response
}

/// Whether the status says that time ran out. tonic's own timer ends in CANCELLED, which a lost
/// connection does too, so that the source decides.
fn timed_out(status: &Status) -> bool {
    let first = status.source();
    status.code() == Code::DeadlineExceeded
        || iter::successors(first, |&error| error.source())
            .any(|error| error.is::<TimeoutExpired>())
}

/// The documented error body (contract, section 4.1).
#[derive(Serialize)]
struct Envelope<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    error_code: &'a str,
    error_msg: &'a str,
}

/// Writes an answer. The kind goes with it in the response's extensions, for the layers in front to
/// count.
fn write(kind: Kind, error_msg: &str, pause: Option<Duration>) -> Response<Body> {
    let row = kind.row();
    let error = Detail {
        error_code: row.code,
        error_msg,
    };
    // Text alone always has a JSON form.
    let body = serde_json::to_vec(&Envelope { error }).unwrap_or_default();

    let mut response = Response::new(Body::from(body));
    *response.status_mut() = row.http;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    let pause = pause.or_else(|| (row.retry == Retry::Backoff).then_some(PAUSE));
    if let Some(pause) = pause {
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        let seconds = HeaderValue::from(seconds.max(1));
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response.extensions_mut().insert(kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tonics_own_timer_is_told_from_a_lost_connection() {
        let late = Status::from_error(Box::new(TimeoutExpired(())));
        let lost = Status::cancelled(late.message());
        assert_eq!(late.code(), lost.code());
        assert_eq!(retold(late).status(), Kind::DeadlineExceeded.row().http);
        assert_eq!(retold(lost).status(), Kind::BadUpstream.row().http);
    }
}
