//! Reaching an etcd cluster as the configuration says, with files that may change.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

use crate::auth::file::{FileError, Malformed, Refresh, Secrecy, Watched};
use crate::config;
use crate::domain::time::Stopwatch;
use crate::server::StartError;
use crate::server::{random, shown};
use crate::store::codec::Codec;
use crate::store::etcd::{Cluster, Etcd, User};

/// How long a handshake with a member may take.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// The files that say how the cluster is reached. Those that changed are read together, and a new
/// connection is made; what is under way on the old one ends there.
pub(super) struct Files {
    watched: Watched<Way>,
    store: Arc<Etcd>,
}

/// What one reading of the files made.
#[derive(Clone)]
struct Way {
    endpoints: Vec<Endpoint>,
    user: Option<User>,
}

/// A store in the configured cluster, and its files if it has any.
pub(super) fn open(
    config: &config::Etcd,
    clock: Arc<dyn Stopwatch>,
    codec: Codec,
) -> Result<(Arc<Etcd>, Option<Arc<Files>>), StartError> {
    let watched = load(config)?;
    let way = match &watched {
        Some(watched) => Way::clone(&watched.current()),
        None => Way::new(config, None, None, None)
            .map_err(|error| StartError::File("store".to_owned(), error.into()))?,
    };
    let writer = random().map_err(StartError::Random)?;
    let (prefix, bound) = (&config.prefix, config.max_staleness);
    let store = Etcd::new(way.cluster(), prefix, bound, writer, clock, codec);
    let store = Arc::new(store);
    let files = watched.map(|watched| {
        Arc::new(Files {
            watched,
            store: Arc::clone(&store),
        })
    });
    Ok((store, files))
}

/// Reads the files and makes no connection.
pub(super) fn check(config: &config::Etcd) -> Result<(), StartError> {
    load(config).map(|_| ())
}

fn load(config: &config::Etcd) -> Result<Option<Watched<Way>>, StartError> {
    let files = [
        (&config.ca_file, Secrecy::Public),
        (&config.certificate_file, Secrecy::Public),
        (&config.private_key_file, Secrecy::Secret),
        (&config.password_file, Secrecy::Secret),
    ];
    let there = files.map(|(path, _)| path.is_some());
    let mut named = files
        .into_iter()
        .filter_map(|(path, secrecy)| Some((path.clone()?, secrecy)));
    let Some((first, secrecy)) = named.next() else {
        return Ok(None);
    };
    let settings = config.clone();
    let parse = move |texts: &[Zeroizing<String>]| {
        // The texts are those of the files that are named, in their order.
        let mut texts = texts.iter();
        let [ca, certificate, key, password] =
            there.map(|is_there| if is_there { texts.next() } else { None });
        Way::new(&settings, ca, certificate.zip(key), password)
    };
    let watched = Watched::load_all(&first, secrecy, named.collect(), parse);
    let watched = watched.map_err(|error| StartError::File(shown(&first), error))?;
    Ok(Some(watched))
}

impl Way {
    fn new(
        config: &config::Etcd,
        ca: Option<&Zeroizing<String>>,
        identity: Option<(&Zeroizing<String>, &Zeroizing<String>)>,
        password: Option<&Zeroizing<String>>,
    ) -> Result<Self, Malformed> {
        let tls = ca.map(|ca| {
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(ca.as_bytes()))
                .timeout(HANDSHAKE);
            match identity {
                None => tls,
                Some((certificate, key)) => {
                    tls.identity(Identity::from_pem(certificate.as_bytes(), key.as_bytes()))
                }
            }
        });
        let endpoints = config.endpoints.iter().map(|uri| {
            let endpoint = Endpoint::from(uri.clone());
            match &tls {
                Some(tls) if uri.scheme_str() == Some("https") => {
                    let endpoint = endpoint.tls_config(tls.clone());
                    endpoint.map_err(|_| Malformed {
                        line: None,
                        reason: "the CA, the certificate or its private key cannot be used",
                    })
                }
                _ => Ok(endpoint),
            }
        });
        let user = config.user.as_ref().zip(password);
        let user = user.map(|(name, password)| {
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            User {
                name: name.clone(),
                password: Zeroizing::new(password),
            }
        });
        Ok(Self {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            user,
        })
    }

    fn cluster(self) -> Cluster {
        Cluster::new(self.endpoints, self.user)
    }
}

impl Refresh for Files {
    fn refresh(&self) -> Result<bool, FileError> {
        let read = self.watched.refresh()?;
        if read {
            let way = Way::clone(&self.watched.current());
            self.store.reach(way.cluster());
        }
        Ok(read)
    }

    fn path(&self) -> &Path {
        self.watched.path()
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.watched.fmt(f)
    }
}
