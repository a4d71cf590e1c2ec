//! TLS for the listeners.
//!
//! The certificate, its key and the CAs of clients are one set of [files](Watched): when one of them
//! changes they are read together, and what they say is used for connections from then on. A set
//! that does not fit together changes nothing. Connections that stand are not touched.
//!
//! TLS 1.3 and 1.2, by rustls over AWS-LC, with the hybrid key exchange X25519MLKEM768 first. No
//! early data, which could be replayed. A session can be resumed as long as the files do not change:
//! a client whose CA was taken away is not let in by an old session.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use crate::auth::file::{FileError, Malformed, Refresh, Secrecy, Watched};
use crate::auth::mtls::Certificate;
use crate::config;
use crate::config::ClientCertificates;
use crate::domain::time::Timestamp;
use crate::server::front::Face;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The protocols that a face offers by ALPN (RFC 7301), the best first.
const H2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// TLS, as the files say at the time.
#[derive(Debug)]
pub(super) struct Tls {
    files: Watched<Current>,
    failed: AtomicU64,
}

/// What one reading of the files made.
struct Current {
    grpc: TlsAcceptor,
    rest: TlsAcceptor,
    not_after: Timestamp,
}

impl Tls {
    /// Reads the configured files.
    pub(super) fn load(config: &config::Tls) -> Result<Self, FileError> {
        let mut others = vec![(config.private_key_file.clone(), Secrecy::Secret)];
        if let Some(path) = &config.client_ca_file {
            others.push((path.clone(), Secrecy::Public));
        }
        let clients = config.client_certificates;
        let parse = move |texts: &[Zeroizing<String>]| Current::parse(texts, clients);
        let path = &config.certificate_file;
        Ok(Self {
            files: Watched::load_all(path, Secrecy::Public, others, parse)?,
            failed: AtomicU64::new(0),
        })
    }

    /// When the certificate ends.
    pub(super) fn not_after(&self) -> Timestamp {
        self.files.current().not_after
    }

    /// How many handshakes have failed.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Refresh for Tls {
    fn refresh(&self) -> Result<bool, FileError> {
        self.files.refresh()
    }

    fn path(&self) -> &Path {
        self.files.path()
    }
}

impl Current {
    /// `texts` are the certificate's, the key's, and that of the CAs of clients if there are any.
    fn parse(texts: &[Zeroizing<String>], clients: ClientCertificates) -> Result<Self, Malformed> {
        let (chain, key, cas) = match texts {
            [chain, key] => (chain, key, None),
            [chain, key, cas] => (chain, key, Some(cas)),
            _ => return Err(malformed("a certificate and its key are needed")),
        };
        let chain = certificates(chain).ok_or(malformed("the certificate is not PEM"))?;
        let leaf = chain
            .first()
            .ok_or(malformed("there is no certificate in the file"))?;
        let not_after = Certificate::parse(leaf)
            .map_err(|_| malformed("the certificate cannot be read"))?
            .not_after();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| malformed("the private key is not PEM"))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = match cas {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(cas) => verifier(cas, clients, &provider)?,
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| malformed("there is no version of TLS"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|_| {
                malformed("the private key cannot be used, or is another certificate's")
            })?;
        let acceptor = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            TlsAcceptor::from(Arc::new(config))
        };
        Ok(Self {
            grpc: acceptor(&[H2]),
            rest: acceptor(&[H2, HTTP_1]),
            not_after,
        })
    }
}

fn verifier(
    cas: &str,
    clients: ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Malformed> {
    let cas = certificates(cas).ok_or(malformed("client_ca_file is not PEM"))?;
    let mut roots = RootCertStore::empty();
    for ca in cas {
        let added = roots.add(ca);
        added.map_err(|_| malformed("a certificate in client_ca_file cannot be read"))?;
    }
    let roots = Arc::new(roots);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = match clients {
        ClientCertificates::Optional => builder.allow_unauthenticated(),
        ClientCertificates::Required => builder,
    };
    let built = builder.build();
    built.map_err(|_| malformed("there is no certificate in client_ca_file"))
}

fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .ok()
}

const fn malformed(reason: &'static str) -> Malformed {
    Malformed { line: None, reason }
}

/// What makes the connections of one face TLS.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    tls: Arc<Tls>,
    face: Face,
}

impl Acceptor {
    /// For connections to `face`.
    pub(super) const fn new(tls: Arc<Tls>, face: Face) -> Self {
        Self { tls, face }
    }

    /// Does the handshake, within [`HANDSHAKE`], and says what certificate the client has.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Certificate>)> {
        let accepted = self.handshake(stream).await;
        if accepted.is_err() {
            self.tls.failed.fetch_add(1, Ordering::Relaxed);
        }
        accepted
    }

    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Certificate>)> {
        let acceptor = {
            let current = self.tls.files.current();
            match self.face {
                Face::Grpc => current.grpc.clone(),
                Face::Rest => current.rest.clone(),
            }
        };
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
        let (_, session) = stream.get_ref();
        let presented = session.peer_certificates().and_then(<[_]>::first);
        let certificate = presented.map(|der| Certificate::parse(der));
        let certificate = certificate
            .transpose()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((stream, certificate))
    }
}
