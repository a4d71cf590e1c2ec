//! The services of a remote kmsgate, for a gateway in a process of its own.
//!
//! A call is forwarded once, with the credentials and the trace context, and nothing else of what the
//! caller sent. How long it may take is the gateway's to say: over REST no caller does. Whoever sends
//! several credentials is refused by the upstream, which therefore gets all of them. Failures come back
//! as they are: those of the remote service carry their row, and `refusal` tells any other as 504 or
//! 502.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::MapFrame;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Extensions, Request, Response, Status};
use tower::ServiceExt;
use tower::util::MapResponse;

use crate::error::{Error, Kind};
use crate::gateway::{CREATE_TIME, LIST_TIME};
use crate::grpc::pb;
use crate::grpc::pb::crypto_service_client::CryptoServiceClient;
use crate::grpc::pb::crypto_service_server::CryptoService;
use crate::grpc::pb::key_service_client::KeyServiceClient;
use crate::grpc::pb::key_service_server::KeyService;

/// What is forwarded as it is.
const FORWARDED: [&str; 4] = ["x-auth-token", "authorization", "traceparent", "tracestate"];

/// The most bytes of an answer about data. A request needs no bound here: the body that it was made
/// of had one, and a message that is nevertheless too long is the upstream's to refuse.
const MAX_DATA: usize = 64 * 1024;

/// The most bytes of an answer about keys: a page of 1000, each with an alias and a description of
/// 255 characters.
const MAX_PAGE: usize = 4 * 1024 * 1024;

/// A remote kmsgate.
#[derive(Clone)]
pub struct Upstream {
    channel: Arc<dyn Fn() -> Channel + Send + Sync>,
    timeout: Duration,
}

impl Upstream {
    /// The services behind `channel`, each call bounded by `timeout` from before the connection is
    /// made, save those that may take [longer](CREATE_TIME).
    ///
    /// A lazy channel lets a gateway start before its upstream. Give the endpoint a connect timeout
    /// too: it bounds how long a dead address is tried before the next attempt.
    pub fn new(channel: Channel, timeout: Duration) -> Self {
        Self::behind(move || channel.clone(), timeout)
    }

    /// The services behind what is the channel at the time of a call, because what it was made of may
    /// change.
    pub fn behind(
        channel: impl Fn() -> Channel + Send + Sync + 'static,
        timeout: Duration,
    ) -> Self {
        Self {
            channel: Arc::new(channel),
            timeout,
        }
    }

    /// How long a call may take, save those that may take longer.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    fn checked(&self) -> Checked {
        (self.channel)().map_response(checked as fn(_) -> _)
    }

    fn crypto(&self) -> CryptoServiceClient<Checked> {
        CryptoServiceClient::new(self.checked()).max_decoding_message_size(MAX_DATA)
    }

    fn keys(&self) -> KeyServiceClient<Checked> {
        KeyServiceClient::new(self.checked()).max_decoding_message_size(MAX_PAGE)
    }

    /// The request as the upstream gets it, which knows from it how long it may take.
    fn outgoing<T>(request: Request<T>, limit: Duration) -> Result<Request<T>, Error> {
        let (theirs, _, message) = request.into_parts();
        let mut ours = MetadataMap::new();
        for name in FORWARDED {
            for value in theirs.get_all(name) {
                ours.append(name, value.clone());
            }
        }
        let named = ours.contains_key("x-auth-token") || ours.contains_key("authorization");
        // What else the upstream could go by, a certificate or a sidecar's word, is the gateway's and stands for no caller.
        if !named {
            return Err(Error::from(Kind::Unauthenticated).detail("x-auth-token not found"));
        }
        if is_signed(&ours) {
            return Err(Error::from(Kind::Unauthenticated).detail(
                "AK/SK signatures cannot be verified behind this gateway, use x-auth-token",
            ));
        }
        let mut request = Request::from_parts(ours, Extensions::default(), message);
        request.set_timeout(limit);
        Ok(request)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upstream")
    }
}

/// Implements a service by its client. A method may have a time that it gets at least.
macro_rules! forward {
    ($Service:ident by $client:ident: $(
        $method:ident($request:ident) -> $response:ident $(, $least:ident)?;
    )+) => {
        #[tonic::async_trait]
        impl $Service for Upstream {
            $( async fn $method(
                &self,
                request: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                let limit = self.timeout $( .max($least) )?;
                let request = Self::outgoing(request, limit)?;
                match timeout(limit, self.$client().$method(request)).await {
                    Ok(answer) => answer,
                    Err(elapsed) => {
                        let late = Error::from(Kind::DeadlineExceeded).caused_by(elapsed);
                        Err(late.into())
                    }
                }
            } )+
        }
    };
}

forward! { CryptoService by crypto:
    encrypt_data(EncryptDataRequest) -> EncryptDataResponse;
    decrypt_data(DecryptDataRequest) -> DecryptDataResponse;
}

forward! { KeyService by keys:
    create_key(CreateKeyRequest) -> CreateKeyResponse, CREATE_TIME;
    describe_key(DescribeKeyRequest) -> DescribeKeyResponse;
    list_keys(ListKeysRequest) -> ListKeysResponse, LIST_TIME;
    enable_key(EnableKeyRequest) -> EnableKeyResponse;
    disable_key(DisableKeyRequest) -> DisableKeyResponse;
    schedule_key_deletion(ScheduleKeyDeletionRequest) -> ScheduleKeyDeletionResponse;
    cancel_key_deletion(CancelKeyDeletionRequest) -> CancelKeyDeletionResponse;
    get_public_key(GetPublicKeyRequest) -> GetPublicKeyResponse;
    update_key_alias(UpdateKeyAliasRequest) -> UpdateKeyAliasResponse;
    update_key_description(UpdateKeyDescriptionRequest) -> UpdateKeyDescriptionResponse;
    rotate_on_demand(RotateOnDemandRequest) -> RotateOnDemandResponse;
    confirm_clock(ConfirmClockRequest) -> ConfirmClockResponse;
}

/// Whether the one credential is a signature: the algorithms of Huawei's all begin with `SDK-` or
/// `V11-`. It covers an HTTP request that the upstream never sees.
fn is_signed(metadata: &MetadataMap) -> bool {
    let mut values = metadata.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let scheme = value.as_encoded_bytes().get(..4).unwrap_or_default();
    let signed = scheme.eq_ignore_ascii_case(b"SDK-") || scheme.eq_ignore_ascii_case(b"V11-");
    signed && !metadata.contains_key("x-auth-token")
}

/// A channel whose answers tonic can read without a panic.
type Checked = MapResponse<Channel, fn(http::Response<Plain>) -> http::Response<Safe>>;
type Plain = tonic::body::Body;
type Safe = MapFrame<Plain, fn(Frame<Bytes>) -> Frame<Bytes>>;

/// Drops details that are not Base64, in headers and in trailers: tonic 0.14 panics on them, and
/// the upstream sends them.
fn checked(mut response: http::Response<Plain>) -> http::Response<Safe> {
    check(response.headers_mut());
    let frames = |frame: Frame<Bytes>| match frame.into_trailers() {
        Ok(mut trailers) => {
            check(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(data) => data,
    };
    response.map(|body| body.map_frame(frames as fn(_) -> _))
}

fn check(headers: &mut HeaderMap) {
    /// As tonic reads details, with or without padding.
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    const DETAILS: &str = "grpc-status-details-bin";

    let details = headers.get(DETAILS);
    if details.is_some_and(|details| BASE64.decode(details).is_err()) {
        headers.remove(DETAILS);
    }
}
