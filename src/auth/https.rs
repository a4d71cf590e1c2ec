//! Asking an issuer of credentials for something, over HTTPS.
//!
//! One connection for each question, which is a few an hour. No proxy, no redirect, no cookie; how
//! long it may take and how much it may answer are bounded. The authorities that it is trusted by are
//! in a [watched](Watched) file: the next question is asked by what it says then.

use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::auth::file::{FileError, Malformed, Refresh, Secrecy, Watched};
use crate::domain::address::is_this_machine;

/// How long a question may take, from looking up the name to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where systems keep the certificates that they trust: Debian, Fedora, openSUSE, RHEL and Alpine.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// An address that can be asked.
#[derive(Clone)]
pub struct Endpoint {
    uri: Uri,
    host: String,
    port: u16,
    /// How to speak TLS, and to whom; none in plain text.
    tls: Option<(Arc<Watched<TlsConnector>>, ServerName<'static>)>,
}

impl Endpoint {
    /// An address whose server proves who it is by a certificate of one of the authorities in
    /// `ca_file`, or of those that the system trusts. Plain text is for this machine alone.
    pub fn new(uri: Uri, ca_file: Option<&Path>) -> Result<Self, EndpointError> {
        let host = uri.host().ok_or(EndpointError::Address)?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP && is_this_machine(&host) => false,
            _ => return Err(EndpointError::Address),
        };
        let tls = if is_tls {
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|_| EndpointError::Address)?;
            Some((Arc::new(trusted(ca_file)?), name))
        } else {
            None
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self {
            uri,
            host,
            port,
            tls,
        })
    }

    /// The file with the authorities, which must be read again when it changes; none in plain text.
    pub fn file(&self) -> Option<Arc<dyn Refresh>> {
        let (trusted, _) = self.tls.as_ref()?;
        Some(Arc::<Watched<TlsConnector>>::clone(trusted))
    }

    /// What the server answers to a GET, which is at most `limit` bytes. It sees the token `bearer`.
    pub async fn get(&self, bearer: Option<&str>, limit: usize) -> Result<Bytes, FetchError> {
        let path = self.uri.path_and_query();
        let path = path.map_or("/", |path| path.as_str());
        let mut request =
            Request::get(path).header(ACCEPT, "application/json, application/jwk-set+json");
        if let Some(bearer) = bearer {
            request = request.header(AUTHORIZATION, secret(&format!("Bearer {bearer}"))?);
        }
        let request = request.body(Full::default());
        let answer = self.ask(request.map_err(|_| FetchError::Token)?, limit);
        let answer = answer.await?;
        // A redirect is no answer: who may answer is configured.
        match answer.status().as_u16() {
            200 => Ok(answer.into_body()),
            status => Err(FetchError::Status(status)),
        }
    }

    /// What the server answers to `request`, whose target is a path and whose answer has at most
    /// `limit` bytes, whatever its status.
    pub(super) async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        limit: usize,
    ) -> Result<Response<Bytes>, FetchError> {
        let asked = tokio::time::timeout(PATIENCE, self.connect_and_ask(request, limit));
        asked.await.map_err(|_| FetchError::Late)?
    }

    async fn connect_and_ask(
        &self,
        request: Request<Full<Bytes>>,
        limit: usize,
    ) -> Result<Response<Bytes>, FetchError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => self.exchange(stream, request, limit).await,
            Some((trusted, name)) => {
                let connector = TlsConnector::clone(&trusted.current());
                let stream = connector.connect(name.clone(), stream).await?;
                self.exchange(stream, request, limit).await
            }
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        mut request: Request<Full<Bytes>>,
        limit: usize,
    ) -> Result<Response<Bytes>, FetchError> {
        let authority = self.uri.authority();
        let authority = authority.map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(authority).map_err(|_| FetchError::Token)?;
        request.headers_mut().insert(HOST, host);
        let agent = HeaderValue::from_static("kmsgate");
        request.headers_mut().insert(USER_AGENT, agent);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Dropped with this function, and the connection with it.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let response = sender.send_request(request).await?;
        read(response, limit).await
    }

    /// The path of the address, without a final slash.
    pub(super) fn base(&self) -> &str {
        self.uri.path().trim_end_matches('/')
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

/// A header's value that no log shows.
pub(super) fn secret(text: &str) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| FetchError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(response: Response<Incoming>, limit: usize) -> Result<Response<Bytes>, FetchError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, limit);
    let whole = body.collect().await.map_err(FetchError::Body)?;
    Ok(Response::from_parts(head, whole.to_bytes()))
}

/// The authorities in `ca_file`, or those that the system trusts.
fn trusted(ca_file: Option<&Path>) -> Result<Watched<TlsConnector>, EndpointError> {
    let system = || {
        SYSTEM_ROOTS
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
    };
    let (path, parse) = match ca_file {
        Some(path) => (path, named as fn(&str) -> _),
        None => (
            system().ok_or(EndpointError::NoRoots)?,
            installed as fn(&str) -> _,
        ),
    };
    let loaded = Watched::load(path, Secrecy::Public, parse);
    loaded.map_err(|error| EndpointError::File(path.to_owned(), error))
}

/// Trusts the certificates that somebody has chosen, all of them.
fn named(pem: &str) -> Result<TlsConnector, Malformed> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| malformed("the file is not PEM"))?;
        let added = roots.add(certificate);
        added.map_err(|_| malformed("a certificate in the file cannot be read"))?;
    }
    connector(roots)
}

/// Trusts the certificates that the system has. There may be some that this library cannot read.
fn installed(pem: &str) -> Result<TlsConnector, Malformed> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    roots.add_parsable_certificates(certificates);
    connector(roots)
}

fn connector(roots: RootCertStore) -> Result<TlsConnector, Malformed> {
    if roots.is_empty() {
        return Err(malformed("there is no certificate in the file"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| malformed("there is no version of TLS"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

const fn malformed(reason: &'static str) -> Malformed {
    Malformed { line: None, reason }
}

/// Why an address cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It is not an address of HTTPS, or of HTTP on this machine.
    #[error("not an https address")]
    Address,
    /// The file of authorities cannot be used.
    #[error("{path}: {1}", path = .0.display())]
    File(PathBuf, #[source] FileError),
    /// The system has no file of authorities.
    #[error("this system has no certificates of authorities: name a ca_file")]
    NoRoots,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server cannot be reached, or does not prove who it is, or a file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The token is nothing that a header can hold.
    #[error("the bearer token is malformed")]
    Token,
    /// The server does not speak HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The server answered something else than 200.
    #[error("answered {0}")]
    Status(u16),
    /// The answer broke off, or is too long.
    #[error("the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what was asked for.
    #[error("the answer: {0}")]
    Answer(&'static str),
    /// It took too long.
    #[error("no answer within 5 seconds")]
    Late,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

    #[tokio::test]
    async fn a_server_is_believed_by_its_certificate_and_its_name() {
        let port = serve_tls().await;
        let ask = async |host: &str, authority: Option<&str>| {
            let uri = format!("https://{host}:{port}/keys").parse().unwrap();
            let file = authority.map(|name| vector(&format!("{name}.pem")));
            let endpoint = Endpoint::new(uri, file.as_deref()).unwrap();
            endpoint.get(None, 100).await
        };
        let answer = ask("localhost", Some("authority")).await;
        assert_eq!(answer.unwrap(), "hello");
        for (host, authority, why) in [
            ("localhost", Some("other"), "UnknownIssuer"),
            ("127.0.0.1", Some("authority"), "not valid for name"),
        ] {
            let error = ask(host, authority).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_the_system_trusts_is_found_or_missed_by_name() {
        let uri = Uri::from_static("https://localhost/keys");
        let has_roots = SYSTEM_ROOTS.iter().any(|path| Path::new(path).exists());
        match Endpoint::new(uri, None) {
            Ok(_) => assert!(has_roots),
            Err(error) => {
                assert!(!has_roots);
                assert!(matches!(error, EndpointError::NoRoots), "{error}");
            }
        }
    }

    #[test]
    fn a_file_of_authorities_has_certificates_and_nothing_broken() {
        let uri = Uri::from_static("https://localhost/keys");
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("ca.pem");
        let with = |text: &str| {
            fs::write(&path, text).unwrap();
            Endpoint::new(uri.clone(), Some(&path))
        };
        let good = fs::read_to_string(vector("authority.pem")).unwrap();
        assert!(with(&good).is_ok());
        let (half, _) = good.split_at(good.len() / 2);
        for (bad, why) in [
            (String::new(), "there is no certificate in the file"),
            ("x".to_owned(), "there is no certificate in the file"),
            (format!("{good}{half}"), "the file is not PEM"),
            (good.replace("MII", "AAA"), "cannot be read"),
        ] {
            let error = with(&bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        }
        fs::remove_file(&path).unwrap();
        let error = Endpoint::new(uri.clone(), Some(&path)).unwrap_err();
        assert!(matches!(error, EndpointError::File(_, FileError::Io(_))));
    }

    #[tokio::test]
    async fn authorities_are_those_that_the_file_has_when_something_is_asked() {
        let port = serve_tls().await;
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("ca.pem");
        let put = |text: &[u8]| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
        };
        put(&fs::read(vector("other.pem")).unwrap());
        let uri = format!("https://localhost:{port}/keys").parse().unwrap();
        let endpoint = Endpoint::new(uri, Some(&path)).unwrap();
        let file = endpoint.file().unwrap();
        assert_eq!(file.path(), path);
        let error = endpoint.get(None, 100).await.unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");

        put(&fs::read(vector("authority.pem")).unwrap());
        assert!(file.refresh().unwrap());
        assert_eq!(endpoint.get(None, 100).await.unwrap(), "hello");
        // One that is no file of authorities changes nothing.
        put(b"x");
        assert!(file.refresh().is_err());
        assert_eq!(endpoint.get(None, 100).await.unwrap(), "hello");
        let plain = Endpoint::new(Uri::from_static("http://localhost/"), None);
        assert!(plain.unwrap().file().is_none());
    }

    #[test]
    fn plain_text_is_for_this_machine_alone() {
        for (uri, good) in [
            ("http://127.0.0.1/", true),
            ("http://127.8.0.1:80/keys", true),
            ("http://[::1]:8200/", true),
            ("http://localhost/", true),
            ("http://issuer.example/", false),
            ("http://10.0.0.1/", false),
            ("http://localhost.example/", false),
            ("ftp://127.0.0.1/", false),
            ("/keys", false),
        ] {
            let made = Endpoint::new(uri.parse().unwrap(), None);
            assert_eq!(made.is_ok(), good, "{uri}");
        }
    }

    #[tokio::test]
    async fn what_is_asked_is_one_short_request() {
        let (endpoint, asked) = serve("/keys?a=1", ANSWER).await;
        assert_eq!(endpoint.get(Some("t"), 5).await.unwrap(), "hello");
        let head = asked.await.unwrap().to_lowercase();
        assert!(head.starts_with("get /keys?a=1 http/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: bearer t\r\n"), "{head}");
        assert!(head.contains("\r\nhost: 127.0.0.1:"), "{head}");
    }

    #[tokio::test]
    async fn an_answer_is_a_short_200_and_nothing_else() {
        for (answer, limit, why) in [
            (ANSWER, 4, "length limit exceeded"),
            (
                "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
                9,
                "answered 302",
            ),
            (
                "HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n",
                9,
                "answered 500",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
                9,
                "the answer: ",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
                9,
                "the answer: ",
            ),
            ("SSH-2.0-x\r\n", 9, ""),
            ("", 9, ""),
        ] {
            let (endpoint, _asked) = serve("/", answer).await;
            let error = endpoint.get(None, limit).await.unwrap_err().to_string();
            assert!(error.contains(why), "{answer:?}: {error}");
        }
        let (endpoint, _asked) = serve("/", ANSWER).await;
        let answer = endpoint.get(Some("a\nb"), 9).await;
        assert!(matches!(answer, Err(FetchError::Token)), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        let endpoint = Endpoint::new(uri.parse().unwrap(), None).unwrap();
        let began = tokio::time::Instant::now();
        let answer = endpoint.get(None, 9).await;
        assert!(matches!(answer, Err(FetchError::Late)), "{answer:?}");
        assert_eq!(began.elapsed().as_secs(), 5);
    }

    /// Answers one connection, and tells what was asked.
    async fn serve(
        path: &str,
        answer: &'static str,
    ) -> (Endpoint, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}{path}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            exchange(stream, answer).await
        });
        let endpoint = Endpoint::new(uri.parse().unwrap(), None).unwrap();
        (endpoint, asked)
    }

    /// Answers every connection as `localhost`.
    async fn serve_tls() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = CertificateDer::pem_file_iter(vector("server.pem")).unwrap();
        let chain = chain.map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(vector("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that does not believe the certificate goes away.
                if let Ok(stream) = acceptor.accept(stream).await {
                    exchange(stream, ANSWER).await;
                }
            }
        });
        port
    }

    /// Reads the head of a request and sends an answer.
    async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        String::from_utf8(head).unwrap()
    }

    fn vector(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/vectors/tls")
            .join(name)
    }
}
