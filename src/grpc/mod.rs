//! The gRPC face: messages in, use case, messages out.
//!
//! Every method reads the same way: begin a call, take the message apart, call one use case, put
//! the answer together, end the call. A message is taken apart field by field, so that a new field
//! cannot be forgotten. The project is checked first, then the fields in the order in which they
//! stand in the schema. A method that changes something goes on when its caller goes away.

mod crypto;
mod keys;
mod operator;
pub mod status;
pub mod unary;

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::caller::Action;
use crate::error::{Error, Kind};
use crate::service::{Call, Context, Kms};

/// Messages, service traits and clients generated from `proto/kmsgate/v1`.
#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod pb {
    tonic::include_proto!("kmsgate.v1");
}

/// The compiled schema, for reflection and for tests.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/kmsgate.v1.descriptors.bin"));

/// Serves [`Kms`] as `kmsgate.v1.CryptoService`, `kmsgate.v1.KeyService` and
/// `kmsgate.v1.OperatorService`.
#[derive(Clone, Debug)]
pub struct Server {
    kms: Arc<Kms>,
    place: Place,
}

/// What the operator says of where the server stands; told with every key.
#[derive(Clone, Debug)]
pub struct Place {
    /// The account that owns the projects; a project's own id if absent.
    pub domain_id: Option<String>,
    /// The region.
    pub realm: String,
}

impl Server {
    /// Serves `kms`.
    pub fn new(kms: Arc<Kms>, place: Place) -> Self {
        Self { kms, place }
    }

    /// Begins a call of one use case; returns it and the message to take apart.
    fn begin<M>(&self, request: Request<M>, action: Action) -> Result<(Call<'_>, M), Status> {
        let (_, extensions, message) = request.into_parts();
        let call = self.kms.begin(extensions.get::<Arc<Context>>(), action)?;
        Ok((call, message))
    }
}

/// Ends a call with its answer.
fn end<A>(call: Call<'_>, answer: Result<A, Error>) -> Result<Response<A>, Status> {
    Ok(Response::new(call.end(answer)?))
}

/// Does `work` to its end, also if the caller goes away meanwhile, so that a change that was begun is
/// made or refused, and the audit is told which.
async fn finished<A: Send + 'static>(
    work: impl Future<Output = Result<Response<A>, Status>> + Send + 'static,
) -> Result<Response<A>, Status> {
    let lost = |error| Error::from(Kind::Internal).caused_by(error);
    tokio::spawn(work).await.map_err(lost)?
}

/// A required text, which may not be empty.
fn required(text: String, field: &'static str) -> Result<String, Error> {
    if text.is_empty() {
        return Err(Error::from(Kind::MissingParameter)
            .detail(format!("{field} is required."))
            .of(field));
    }
    Ok(text)
}

/// Refuses a number that names no value of an enum.
fn unknown(field: &'static str) -> Error {
    Error::from(Kind::InvalidParameter)
        .detail(format!("{field} has no such value."))
        .of(field)
}
