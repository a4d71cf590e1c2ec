//! `kmsgate.v1.OperatorService`.
//!
//! Its answers are streams. Each is fed by a task of its own, which ends when nobody reads the stream
//! any more. A call that is refused has no stream: its first message is waited for.

use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::domain::caller::Action;
use crate::error::{Error, Kind};
use crate::grpc::Server;
use crate::grpc::pb;
use crate::grpc::pb::operator_service_server::OperatorService;
use crate::service::Progress;

/// Messages that wait for a reader.
const AHEAD: usize = 8;

#[tonic::async_trait]
impl OperatorService for Server {
    type RotateRootKeyStream = Messages<pb::RotateRootKeyResponse>;

    async fn rotate_root_key(
        &self,
        request: Request<pb::RotateRootKeyRequest>,
    ) -> Result<Response<Self::RotateRootKeyStream>, Status> {
        let server = self.clone();
        Messages::of(|to| async move {
            let (call, message) = server.begin(request, Action::RotateRootKey)?;
            let pb::RotateRootKeyRequest {} = message;
            let tell = |progress| {
                // Who reads slowly misses some of them.
                let _ = to.try_send(Ok(message_of(progress)));
            };
            let rotated = server.kms.rotate_root_key(&call, tell).await;
            Ok(message_of(call.end(rotated)?))
        })
        .await
    }

    type BackUpStoreStream = Messages<pb::BackUpStoreResponse>;

    async fn back_up_store(
        &self,
        request: Request<pb::BackUpStoreRequest>,
    ) -> Result<Response<Self::BackUpStoreStream>, Status> {
        let server = self.clone();
        Messages::of(|to| async move {
            let (call, message) = server.begin(request, Action::BackUpStore)?;
            let pb::BackUpStoreRequest {} = message;
            let sent = async { send(server.kms.back_up(&call).await?, &to).await };
            let sent = sent.await;
            Ok(call.end(sent)?)
        })
        .await
    }
}

/// Sends a file in parts, save the last message.
async fn send(
    file: File,
    to: &mpsc::Sender<Result<pb::BackUpStoreResponse, Status>>,
) -> Result<pb::BackUpStoreResponse, Error> {
    let failed = |error: io::Error| Error::from(Kind::Internal).caused_by(error);
    let size = file.metadata().map_err(failed)?.len();
    let mut file = file;
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut data = vec![0; PART];
            let length = file.read(&mut data)?;
            data.truncate(length);
            Ok((file, data))
        });
        let lost = |error| Error::from(Kind::Internal).caused_by(error);
        let (rest, data) = read.await.map_err(lost)?.map_err(failed)?;
        file = rest;
        let last = data.is_empty();
        let part = pb::BackUpStoreResponse { data, size };
        if last {
            return Ok(part);
        }
        // A reader who has gone ends the task that this is done in.
        let _ = to.send(Ok(part)).await;
    }
}

/// The bytes of a part.
const PART: usize = 64 * 1024;

fn message_of(progress: Progress) -> pb::RotateRootKeyResponse {
    let Progress {
        done,
        total,
        changed,
    } = progress;
    pb::RotateRootKeyResponse {
        done,
        total,
        changed,
    }
}

/// The messages of an answer.
#[derive(Debug)]
pub struct Messages<M> {
    first: Option<Result<M, Status>>,
    rest: mpsc::Receiver<Result<M, Status>>,
}

impl<M: Send + 'static> Messages<M> {
    /// Those that `work` sends, and the one with which it ends. It is dropped when its reader goes.
    async fn of<F>(
        work: impl FnOnce(mpsc::Sender<Result<M, Status>>) -> F,
    ) -> Result<Response<Self>, Status>
    where
        F: Future<Output = Result<M, Status>> + Send + 'static,
    {
        let (to, mut rest) = mpsc::channel(AHEAD);
        let work = work(to.clone());
        tokio::spawn(async move {
            let last = tokio::select! {
                last = work => last,
                () = to.closed() => return,
            };
            let _ = to.send(last).await;
        });
        match rest.recv().await {
            Some(Ok(first)) => Ok(Response::new(Self {
                first: Some(Ok(first)),
                rest,
            })),
            Some(Err(refused)) => Err(refused),
            None => Err(Error::from(Kind::Internal).into()),
        }
    }
}

impl<M: Unpin> Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let messages = self.get_mut();
        match messages.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => messages.rest.poll_recv(context),
        }
    }
}
