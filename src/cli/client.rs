//! A client of a running server, for the commands that talk to one.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use zeroize::Zeroizing;

use crate::auth::file::{Malformed, Secrecy, Watched};
use crate::cli::{Failure, say};
use crate::error::Causes;
use crate::grpc::pb::crypto_service_client::CryptoServiceClient;
use crate::grpc::pb::key_service_client::KeyServiceClient;
use crate::grpc::pb::operator_service_client::OperatorServiceClient;

/// Which server to ask, and as whom.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The gRPC address of the server, such as http://127.0.0.1:9090 or unix:/run/kmsgate/grpc.sock
    #[arg(long, value_name = "URL", global = true)]
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
    #[command(flatten)]
    tls: TlsFiles,
}

/// How an https server is known, and what certificate it is shown.
#[derive(Debug, Args)]
pub(super) struct TlsFiles {
    /// The CAs by which an https server is known, in PEM
    #[arg(long, value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
    /// The client certificate to show, in PEM, and after it those between it and its CA
    #[arg(
        long,
        value_name = "FILE",
        requires = "private_key_file",
        global = true
    )]
    certificate_file: Option<PathBuf>,
    /// The client certificate's private key, in PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "certificate_file",
        global = true
    )]
    private_key_file: Option<PathBuf>,
}

/// The services of a server, and the credential for them.
pub(super) struct Client {
    pub(super) crypto: CryptoServiceClient<Channel>,
    pub(super) keys: KeyServiceClient<Channel>,
    pub(super) operator: OperatorServiceClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl Connection {
    /// Connects to the server.
    pub(super) async fn open(&self) -> Result<Client, Failure> {
        let (server, token) = match (&self.server, &self.token_file) {
            (Some(server), Some(file)) => (server.clone(), Some(read(file)?)),
            (Some(server), None) if self.tls.certificate_file.is_some() => (server.clone(), None),
            (Some(_), None) => {
                return Err("--server needs a --token-file, or a --certificate-file".into());
            }
            (None, _) => {
                let (server, token) = self.dev()?;
                (server, Some(token))
            }
        };
        let token = token.map(|token| {
            let mut token: MetadataValue<Ascii> = token.trim().parse()?;
            token.set_sensitive(true);
            Ok::<_, Failure>(token)
        });
        let token = token.transpose()?;
        let channel = self.tls.connect(&server).await?;
        Ok(Client {
            crypto: CryptoServiceClient::new(channel.clone()),
            keys: KeyServiceClient::new(channel.clone()),
            operator: OperatorServiceClient::new(channel),
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
        if let Some(token) = &self.token {
            let headers = request.metadata_mut();
            headers.insert("x-auth-token", token.clone());
        }
        request
    }
}

impl TlsFiles {
    /// A server that can be connected to.
    pub(super) fn endpoint(&self, server: &str) -> Result<Endpoint, Failure> {
        let endpoint = Endpoint::from_shared(server.to_owned())?;
        let Some(ca_file) = self.ca_file(&endpoint, server)? else {
            return Ok(endpoint);
        };
        let own = match (&self.certificate_file, &self.private_key_file) {
            (Some(chain), Some(key)) => Some((read(chain)?, read(key)?)),
            _ => None,
        };
        let own = own.as_ref().map(|(chain, key)| (&***chain, &***key));
        let endpoint = endpoint.tls_config(tls(&read(ca_file)?, own));
        endpoint
            .map_err(|error| format!("a file that was named for TLS: {}", Causes(&error)).into())
    }

    /// A channel to an https server, made anew when one of the files changes; none to any other.
    pub(super) fn follow(
        &self,
        server: &str,
        patience: Duration,
    ) -> Result<Option<Arc<Watched<Channel>>>, Failure> {
        let endpoint = Endpoint::from_shared(server.to_owned())?.connect_timeout(patience);
        let Some(ca_file) = self.ca_file(&endpoint, server)? else {
            return Ok(None);
        };
        let mut others = Vec::new();
        if let (Some(chain), Some(key)) = (&self.certificate_file, &self.private_key_file) {
            others.push((chain.clone(), Secrecy::Public));
            others.push((key.clone(), Secrecy::Secret));
        }
        let parse = move |texts: &[Zeroizing<String>]| {
            let (ca, own) = match texts {
                [ca] => (ca, None),
                [ca, chain, key] => (ca, Some((chain.as_str(), key.as_str()))),
                _ => return Err(malformed("an authority is needed")),
            };
            let mut authorities = CertificateDer::pem_slice_iter(ca.as_bytes());
            if !matches!(authorities.next(), Some(Ok(_))) {
                return Err(malformed("there is no certificate in the file"));
            }
            // A handshake that never ended would hold up every later request.
            let tls = tls(ca, own).timeout(patience);
            let endpoint = endpoint.clone().tls_config(tls);
            let endpoint = endpoint.map_err(|_| {
                malformed("a certificate cannot be used, or the private key is another's")
            })?;
            Ok(endpoint.connect_lazy())
        };
        let loaded = Watched::load_all(ca_file, Secrecy::Public, others, parse);
        let loaded = loaded.map_err(|error| format!("{}: {error}", ca_file.display()))?;
        Ok(Some(Arc::new(loaded)))
    }

    /// The CAs by which a server is known; none if it is not known by a certificate.
    fn ca_file(&self, endpoint: &Endpoint, server: &str) -> Result<Option<&Path>, Failure> {
        let is_https = endpoint.uri().scheme_str() == Some("https");
        match (is_https, &self.ca_file, &self.certificate_file) {
            (true, Some(file), _) => Ok(Some(file)),
            (true, None, _) => Err(format!("{server} is https: name its CA with --ca-file").into()),
            (false, None, None) => Ok(None),
            (false, ..) => {
                Err(format!("{server} is not https, so no certificate has a use").into())
            }
        }
    }

    async fn connect(&self, server: &str) -> Result<Channel, Failure> {
        // The endpoint's own timeout is for TCP alone, and shared among the addresses of a name.
        let endpoint = self.endpoint(server)?.connect_timeout(PATIENCE);
        let connected = tokio::time::timeout(PATIENCE, endpoint.connect()).await;
        let connected = connected.map_err(|_| silent(server))?;
        connected.map_err(|error| format!("cannot reach {server}: {}", Causes(&error)).into())
    }
}

/// How long a server may take to let a command in, and to say whether it serves.
const PATIENCE: Duration = Duration::from_secs(5);

/// The failure of a server that took longer.
fn silent(server: &str) -> Failure {
    format!("{server} said nothing in {PATIENCE:?}").into()
}

/// Knows a server by the authorities in `ca`, and shows it the certificate of `own` with its private key,
/// all in PEM.
fn tls(ca: &str, own: Option<(&str, &str)>) -> ClientTlsConfig {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    match own {
        Some((chain, key)) => tls.identity(Identity::from_pem(chain, key)),
        None => tls,
    }
}

const fn malformed(reason: &'static str) -> Malformed {
    Malformed { line: None, reason }
}

fn read(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Zeroizing::new(text))
}

/// Says whether a server serves.
pub(super) async fn health(server: &str, tls: &TlsFiles) -> Result<(), Failure> {
    let mut client = HealthClient::new(tls.connect(server).await?);
    let answer = client.check(HealthCheckRequest::default());
    // A server that cannot begin has connections wait, and one that hangs says nothing.
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let answer = answer.map_err(|_| silent(server))?.map_err(told)?;
    if answer.into_inner().status() != ServingStatus::Serving {
        return Err("the server does not serve".into());
    }
    say("serving")
}

/// A failure of a call as a person reads it: the documented code and sentence.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
pub(super) fn told(status: Status) -> Failure {
    let code = crate::grpc::status::code(&status);
    match (code, status.source()) {
        (Some(code), _) => format!("{code}: {}", status.message()).into(),
        // A connection that failed, as a refused certificate is with TLS 1.3.
        (None, Some(cause)) => format!("{:?}: {}", status.code(), Causes(cause)).into(),
        (None, None) => format!("{:?}: {}", status.code(), status.message()).into(),
    }
}
