//! The floor: servers that answer an EncryptData call with as many bytes as kmsgate does, and do no work for it.
//!
//! They are what tonic and axum cost by themselves, with the schema's own messages and on the runtime that kmsgate uses.
//! What kmsgate takes beyond them is what it can be blamed for. They run in a process of their own, as kmsgate does.

use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::process;
use std::thread;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::serve::ListenerExt;
use clap::ValueEnum;
use kmsgate::grpc::pb::crypto_service_server::CryptoService;
use kmsgate::grpc::pb::crypto_service_server::CryptoServiceServer;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;
use kmsgate::grpc::pb::{
    DecryptDataRequest, DecryptDataResponse, EncryptDataRequest, EncryptDataResponse,
};
use tokio::net::TcpSocket;
use tokio::runtime::Builder;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::Outcome;
use crate::load::{ciphertext_length, rest_answer, rest_body};

/// The first argument that makes this program an echo instead of a benchmark.
pub(crate) const ROLE: &str = "echo-server";

/// A key id, a project and a token of the usual lengths, for requests that nobody looks into.
pub(crate) const KEY_ID: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";
pub(crate) const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";
pub(crate) const TOKEN: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How an echo's runtimes stand on the cores.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placement {
    /// One runtime, with a thread for each core; a thread that has nothing to do takes from others. As kmsgate's.
    #[value(name = "echo")]
    Shared,
    /// One runtime of one thread.
    #[value(name = "echo-single")]
    Single,
    /// A runtime of one thread for each core. Each listens on the same ports, and the kernel deals out connections
    /// (`SO_REUSEPORT`).
    #[value(name = "echo-per-core")]
    PerCore,
}

impl Placement {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Serves until standard input closes, which it does when the benchmark ends, however it ends. Prints where it listens:
/// `GRPC-PORT REST-PORT`. The arguments are the placement, and the sizes of plaintext to know answers for.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let placement = arguments.next().unwrap_or_default();
    let placement = Placement::from_str(&placement, false)?;
    let sizes = arguments
        .map(|size| size.parse())
        .collect::<Result<Vec<usize>, _>>()?;
    thread::spawn(|| {
        let ended = io::stdin().read_to_end(&mut Vec::new()).is_ok();
        process::exit(if ended { 0 } else { 1 });
    });
    let sockets = [socket(0)?, socket(0)?];
    let [grpc, rest] = &sockets;
    let [grpc, rest] = [grpc.local_addr()?.port(), rest.local_addr()?.port()];
    println!("{grpc} {rest}");
    let single = Builder::new_current_thread;
    match placement {
        Placement::Shared => run(Builder::new_multi_thread(), sockets, &sizes),
        Placement::Single => run(single(), sockets, &sizes),
        Placement::PerCore => {
            for _ in 1..thread::available_parallelism()?.get() {
                let (sockets, sizes) = ([socket(grpc)?, socket(rest)?], sizes.clone());
                thread::spawn(move || run(single(), sockets, &sizes));
            }
            run(single(), sockets, &sizes)
        }
    }
}

/// A socket on this port, which others may listen on too.
fn socket(port: u16) -> Outcome<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

/// Serves gRPC and REST on these two.
fn run(mut runtime: Builder, [grpc, rest]: [TcpSocket; 2], sizes: &[usize]) -> Outcome<()> {
    runtime.enable_all().build()?.block_on(async {
        let (grpc, rest) = (grpc.listen(BACKLOG)?, rest.listen(BACKLOG)?);
        let grpc = tonic::transport::Server::builder()
            .add_service(CryptoServiceServer::new(Echo))
            .serve_with_incoming(TcpIncoming::from(grpc).with_nodelay(Some(true)));
        let rest = rest.tap_io(|stream| {
            // Without it the answers are only slower, which the figures would show.
            let _ = stream.set_nodelay(true);
        });
        let rest = axum::serve(rest, routes(sizes)).into_future();
        tokio::select! {
            ended = grpc => ended?,
            ended = rest => ended?,
        }
        Ok(())
    })
}

/// The path of kmsgate. The answer is found by the length of the request, and is ready beforehand.
fn routes(sizes: &[usize]) -> Router {
    let answers: Vec<(usize, Bytes)> = sizes
        .iter()
        .map(|&size| {
            let answer = rest_answer(KEY_ID, ciphertext_length(size));
            (rest_body(KEY_ID, size).len(), answer.into())
        })
        .collect();
    let encrypt = async move |body: Bytes| {
        let answer = answers.iter().find(|(length, _)| *length == body.len());
        match answer {
            Some((_, answer)) => {
                ([(CONTENT_TYPE, "application/json")], answer.clone()).into_response()
            }
            None => StatusCode::BAD_REQUEST.into_response(),
        }
    };
    Router::new().route("/v1.0/{project_id}/kms/encrypt-data", post(encrypt))
}

struct Echo;

#[tonic::async_trait]
impl CryptoService for Echo {
    async fn encrypt_data(
        &self,
        request: Request<EncryptDataRequest>,
    ) -> Result<Response<EncryptDataResponse>, Status> {
        let request = request.into_inner();
        let length = match &request.plaintext {
            Some(Plaintext::PlainText(text)) => text.len(),
            Some(Plaintext::PlainBytes(bytes)) => bytes.len(),
            None => return Err(Status::invalid_argument("no plaintext")),
        };
        Ok(Response::new(EncryptDataResponse {
            key_id: request.key_id,
            cipher_text: vec![0; ciphertext_length(length)],
        }))
    }

    async fn decrypt_data(
        &self,
        _: Request<DecryptDataRequest>,
    ) -> Result<Response<DecryptDataResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}
