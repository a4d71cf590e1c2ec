//! REST: Huawei Cloud KMS's JSON in front of the generated gRPC services.
//!
//! ```text
//! POST /v1.0/{project_id}/kms/NAME ─► JSON ─► message ─► service ─┬─► message ─► JSON
//!                                                                 └─► status ─► {"error":…}
//! ```
//!
//! The gateway knows no use case. It calls the service traits that gRPC serves, so the two faces
//! cannot drift apart: in one process it is handed the server value and no message is encoded, and
//! in a process of its own it is handed an [`Upstream`]. What a field may hold is the service's to
//! judge. Only what JSON adds is judged here: the syntax, Base64, and numbers in text.
//!
//! | module | what it is |
//! |---|---|
//! | `direct` | encrypt-data and decrypt-data without the router |
//! | `json` | reading a body strictly |
//! | `request` | the members of a body to the fields of a message |
//! | `response` | the fields of a message to the members of a body |
//! | `refusal` | a failure to the documented error body |
//! | `upstream` | the services of a remote kmsgate |
//!
//! A new operation is a row in [`router`], a reader in `request` and a writer in `response`.

mod base64;
mod direct;
mod json;
mod refusal;
mod request;
mod response;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::routing::post;
use http::header::HeaderName;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::error::{Error, Kind};
use crate::gateway::request::FromJson;
use crate::gateway::response::IntoJson;
use crate::grpc::pb::crypto_service_server::CryptoService;
use crate::grpc::pb::key_service_server::KeyService;

pub use crate::gateway::direct::{Direct, Plain, project};
pub use crate::gateway::refusal::Rest;
pub use crate::gateway::upstream::Upstream;

/// How long create-key may take at least, whatever is the limit for others: the primes of a long RSA key
/// may be far to seek.
pub const CREATE_TIME: Duration = Duration::from_secs(60);

/// How long list-keys may take at least: it may read a million keys.
pub const LIST_TIME: Duration = Duration::from_secs(60);

/// The header that names a request, in every answer. The gateway sets it to what a remote kmsgate said, and
/// the layers in front where nobody did.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The most bytes of a body.
const MAX_BODY: usize = 64 * 1024;

/// Routes each documented name to the method that does it.
///
/// The layers in front have bounded the body and left in the request's extensions what they know of
/// the caller; headers and extensions reach the service as they came. For the same layers, the
/// extensions of a refusal hold its [`Kind`], and the [`Status`] if the service refused.
///
/// A path that is not exactly one of these is unknown: nothing is normalised, and only the project
/// id is percent-decoded.
pub fn router<C, K>(crypto: Arc<C>, keys: Arc<K>) -> Router
where
    C: CryptoService,
    K: KeyService,
{
    macro_rules! routes {
        ($service:ident: $Service:ident; $( $name:literal => $method:ident, )+) => {
            Router::new()
                $( .route(
                    concat!("/v1.0/{project_id}/kms/", $name),
                    post(|State(service): State<Arc<$Service>>, Call(request): Call<_>| async move {
                        answer(service.$method(request).await)
                    }),
                ) )+
                .with_state($service)
        };
    }

    let crypto = routes! { crypto: C;
        "encrypt-data" => encrypt_data,
        "decrypt-data" => decrypt_data,
    };
    let keys = routes! { keys: K;
        "create-key" => create_key,
        "describe-key" => describe_key,
        "list-keys" => list_keys,
        "enable-key" => enable_key,
        "disable-key" => disable_key,
        "schedule-key-deletion" => schedule_key_deletion,
        "cancel-key-deletion" => cancel_key_deletion,
        "get-publickey" => get_public_key,
        "update-key-alias" => update_key_alias,
        "update-key-description" => update_key_description,
        "rotate-on-demand" => rotate_on_demand,
    };
    crypto
        .merge(keys)
        .fallback(async || refusal::told(&Kind::UnknownPath.into()))
        .method_not_allowed_fallback(async || refusal::told(&Kind::MethodNotSupported.into()))
}

/// A request for the method whose message is `M`.
struct Call<M>(tonic::Request<M>);

impl<M: FromJson, S: Send + Sync> FromRequest<S> for Call<M> {
    type Rejection = Response<Body>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response<Body>> {
        let read = async {
            let (mut parts, body) = request.into_parts();
            let project_id = project_id(&mut parts, state).await;
            let project_id = project_id.ok_or_else(|| Error::from(Kind::UnknownPath))?;
            let body = Limited::new(body, MAX_BODY).collect().await;
            let body = body.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Error::from(Kind::MessageTooLong)
                } else {
                    Error::from(Kind::InvalidJson)
                }
            })?;
            call(project_id, parts, &body.to_bytes()).map(Self)
        };
        read.await.map_err(|error| refusal::told(&error))
    }
}

/// The call that a request asks for.
fn call<M: FromJson>(
    project_id: String,
    parts: Parts,
    body: &[u8],
) -> Result<tonic::Request<M>, Error> {
    let message = M::from_json(project_id, body)?;
    let metadata = MetadataMap::from_headers(parts.headers);
    Ok(tonic::Request::from_parts(
        metadata,
        parts.extensions,
        message,
    ))
}

/// The project id of a path that matched; none if its bytes are not text, or if there are none:
/// over gRPC an absent project is the caller's own, and a path without one must not mean that.
async fn project_id<S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<String> {
    let Path(id) = Path::<String>::from_request_parts(parts, state)
        .await
        .ok()?;
    (!id.is_empty()).then_some(id)
}

/// What the service answered, as the caller reads it.
fn answer<M: IntoJson>(answer: Result<tonic::Response<M>, Status>) -> Response<Body> {
    let id = request_id(match &answer {
        Ok(response) => response.metadata(),
        Err(status) => status.metadata(),
    });
    let mut told = match answer.map(|response| response.into_inner().into_json()) {
        Ok(Some(body)) => response::found(body),
        // A success that cannot be told is none.
        Ok(None) => refusal::told(&Kind::BadUpstream.into()),
        Err(status) => refusal::retold(status),
    };
    if let Some(id) = id {
        told.headers_mut().insert(REQUEST_ID, id);
    }
    told
}

/// The id that a remote kmsgate gave the request, by which it is in that server's log and audit. One of
/// another form is a proxy's, and in neither.
fn request_id(metadata: &MetadataMap) -> Option<HeaderValue> {
    let headers: &HeaderMap = metadata.as_ref();
    let mut id = headers.get(REQUEST_ID)?.clone();
    // No two are the same, so HTTP/2 need not remember it for compression (RFC 7541, section 7.1).
    id.set_sensitive(true);
    let digits = id.as_bytes();
    let is_one = digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit);
    is_one.then_some(id)
}
