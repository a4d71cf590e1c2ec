//! `kmsgate root-key rotate`: replacing the root key of a running server.

use crate::cli::client::{Connection, told};
use crate::cli::{Failure, Steps, say};
use crate::grpc::pb;

/// Has a server put everything under its first root key, and tells how far it is.
pub(super) async fn rotate(connection: &Connection) -> Result<(), Failure> {
    let client = connection.open().await?;
    let request = client.ask(pb::RotateRootKeyRequest {});
    let mut operator = client.operator;
    let answer = operator.rotate_root_key(request).await.map_err(told)?;
    let mut messages = answer.into_inner();
    let mut steps = Steps::default();
    let mut last = pb::RotateRootKeyResponse::default();
    while let Some(progress) = messages.message().await.map_err(told)? {
        steps.tell("records", progress.done, progress.total);
        last = progress;
    }
    say(format!(
        "every record is under the first root key: records {}, changed {}\nTake previous root keys out of the configuration of every server, and keep them as long as backups from before.",
        last.done, last.changed
    ))
}
