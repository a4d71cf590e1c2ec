//! An [`Error`] as gRPC tells it: a `google.rpc.Status` with details that programs can read.

use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic_types::pb;

use crate::error::{DOMAIN, Error, Face, Kind};
use crate::grpc::pb::ErrorDetail;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let row = error.kind().row();
        let message = error.to_string();
        let mut details = vec![
            any(
                "kmsgate.v1.ErrorDetail",
                &ErrorDetail {
                    error_code: row.code.to_owned(),
                    error_msg: message.clone(),
                },
            ),
            any(
                "google.rpc.ErrorInfo",
                &pb::ErrorInfo {
                    reason: row.name.to_owned(),
                    domain: DOMAIN.to_owned(),
                    ..pb::ErrorInfo::default()
                },
            ),
        ];
        if let Some(pause) = error.pause() {
            let retry = pb::RetryInfo {
                retry_delay: pause.try_into().ok(),
            };
            details.push(any("google.rpc.RetryInfo", &retry));
        }
        if let Some(field) = error.field() {
            let violation = pb::bad_request::FieldViolation {
                field: field.to_owned(),
                description: message.clone(),
                ..pb::bad_request::FieldViolation::default()
            };
            let request = pb::BadRequest {
                field_violations: vec![violation],
            };
            details.push(any("google.rpc.BadRequest", &request));
        }
        let status = pb::Status {
            code: row.grpc as i32,
            message: message.clone(),
            details,
        };
        let details = status.encode_to_vec().into();
        Self::with_details_and_metadata(row.grpc, message, details, MetadataMap::new())
    }
}

/// A message with its type's name, as a status's details hold it.
fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

/// The row that a status of ours names; none if the status was made by the RPC library or by
/// somebody else.
pub fn kind(status: &Status) -> Option<Kind> {
    let status = pb::Status::decode(status.details()).ok()?;
    let mut infos = status
        .details
        .iter()
        .filter(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"));
    let info = pb::ErrorInfo::decode(&*infos.next()?.value).ok()?;
    if info.domain != DOMAIN {
        return None;
    }
    Kind::from_name(&info.reason)
}

/// The documented code that a status tells; none if it tells none.
pub fn code(status: &Status) -> Option<&'static str> {
    kind(status).map(|kind| kind.row().code)
}

/// The gRPC face, as a layer that refuses a request for it sees it.
#[derive(Clone, Copy, Debug)]
pub struct Grpc;

impl Face for Grpc {
    fn refuse(&self, error: &Error) -> http::Response<axum::body::Body> {
        let mut refusal = Status::from(error).into_http();
        let details = refusal.headers_mut().get_mut("grpc-status-details-bin");
        if let Some(details) = details.filter(|_| error.pause().is_some()) {
            // A wait is told to the nanosecond, so HTTP/2 need not remember it for compression.
            details.set_sensitive(true);
        }
        refusal
    }
}
