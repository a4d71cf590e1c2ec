//! A client of a running server, for the commands that talk to one.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use zeroize::Zeroizing;

use crate::cli::{Failure, say};
use crate::grpc::pb::crypto_service_client::CryptoServiceClient;
use crate::grpc::pb::key_service_client::KeyServiceClient;

/// Which server to ask, and as whom.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The gRPC address of the server, such as http://127.0.0.1:9090
    #[arg(long, value_name = "URL", requires = "token_file", global = true)]
    server: Option<String>,
    /// The file that holds the token, and nothing else
    #[arg(long, value_name = "FILE", requires = "server", global = true)]
    token_file: Option<PathBuf>,
    /// The data directory of the `kmsgate dev` to ask, if no server is named
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./kmsgate-dev",
        global = true
    )]
    dev: PathBuf,
}

/// The services of a server, and the credential for them.
pub(super) struct Client {
    pub(super) crypto: CryptoServiceClient<Channel>,
    pub(super) keys: KeyServiceClient<Channel>,
    token: MetadataValue<Ascii>,
}

impl Connection {
    /// Connects to the server.
    pub(super) async fn open(&self) -> Result<Client, Failure> {
        let (server, token) = match (&self.server, &self.token_file) {
            (Some(server), Some(file)) => {
                let token = fs::read_to_string(file)
                    .map_err(|error| format!("{}: {error}", file.display()))?;
                (server.clone(), Zeroizing::new(token))
            }
            _ => self.dev()?,
        };
        let mut token: MetadataValue<Ascii> = token.trim().parse()?;
        token.set_sensitive(true);
        let channel = connect(&server).await?;
        Ok(Client {
            crypto: CryptoServiceClient::new(channel.clone()),
            keys: KeyServiceClient::new(channel),
            token,
        })
    }

    /// The address and the token that `kmsgate dev` wrote down.
    fn dev(&self) -> Result<(String, Zeroizing<String>), Failure> {
        let path = self.dev.join("dev.env");
        let text = fs::read_to_string(&path).map_err(|error| {
            format!(
                "{}: {error}\nName a server with --server and --token-file, or start `kmsgate dev` here.",
                path.display()
            )
        })?;
        let text = Zeroizing::new(text);
        let value = |name: &str| {
            dev_value(&text, name).ok_or_else(|| format!("{}: no {name}", path.display()))
        };
        let address = value("KMSGATE_GRPC")?;
        let token = value("KMSGATE_TOKEN")?;
        Ok((
            format!("http://{address}"),
            Zeroizing::new(token.to_owned()),
        ))
    }
}

/// The value of `name` in the text of a `dev.env`.
pub(super) fn dev_value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    Some(value)
}

impl Client {
    /// A request with the credential.
    pub(super) fn ask<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("x-auth-token", self.token.clone());
        request
    }
}

/// Says whether a server serves.
pub(super) async fn health(server: &str) -> Result<(), Failure> {
    let mut client = HealthClient::new(connect(server).await?);
    let answer = client
        .check(HealthCheckRequest::default())
        .await
        .map_err(told)?;
    if answer.into_inner().status() != ServingStatus::Serving {
        return Err("the server does not serve".into());
    }
    say("serving")
}

async fn connect(server: &str) -> Result<Channel, Failure> {
    let connected = Endpoint::from_shared(server.to_owned())?.connect().await;
    connected.map_err(|_| format!("cannot reach {server}").into())
}

/// A failure of a call as a person reads it: the documented code and sentence.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
pub(super) fn told(status: Status) -> Failure {
    let code = crate::grpc::status::code(&status);
    match code {
        Some(code) => format!("{code}: {}", status.message()).into(),
        None => format!("{:?}: {}", status.code(), status.message()).into(),
    }
}
