//! Configuration: one TOML file, read once.
//!
//! Every field has a default but the files that hold secrets, so a file of three lines runs a
//! server on loopback that keeps what it is given. Unknown keys are errors, because a misspelt
//! security setting must not be ignored. Values arrive in their final types, and nothing downstream
//! checks them again. Secrets are named by path and never stand here.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Deserializer};

use crate::domain::address::{Address, is_this_machine};
use crate::domain::caller::{Actions, MAX_ROLES, is_name};
use crate::domain::identity::IdentityPattern;
use crate::domain::jwt::Algorithm;
use crate::domain::key::{KeySpec, ProjectId};
use crate::domain::rate::Cores;

/// Everything the operator can choose.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served.
    #[serde(default = "default_grpc", deserialize_with = "parsed")]
    pub grpc: Address,
    /// Where REST is served.
    #[serde(default = "default_rest", deserialize_with = "parsed")]
    pub rest: Address,
    /// Where liveness, readiness and metrics are served, without credentials: no secrets, no keys.
    #[serde(default = "default_admin", deserialize_with = "parsed")]
    pub admin: Address,
    /// Whether gRPC reflection tells the schema to anyone who asks.
    #[serde(default)]
    pub reflection: bool,
    /// TLS for gRPC and REST over TCP; both are in plain text if absent. Unix sockets always are.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Whether gRPC and REST may be in plain text where other machines reach them.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// The file with the root key, made by `kmsgate root-key new`; not readable by others. Absent
    /// if the root key is in a [hardware module](Pkcs11).
    #[serde(default)]
    pub root_key_file: Option<PathBuf>,
    /// Files with root keys that sealed and authenticated before, and seal no more. They are needed
    /// until `kmsgate root-key rotate` has ended.
    #[serde(default)]
    pub previous_root_key_files: Vec<PathBuf>,
    /// A hardware module.
    #[serde(default)]
    pub pkcs11: Option<Pkcs11>,
    /// Where keys are kept.
    pub store: Store,
    /// Who makes keys and works with them.
    #[serde(default)]
    pub crypto: Crypto,
    /// Who is let in.
    pub auth: Auth,
    /// Where lifecycle events and refusals are written.
    #[serde(default)]
    pub audit: Audit,
    /// Logs.
    #[serde(default)]
    pub log: Log,
    /// What bounds the server's use of the machine.
    #[serde(default)]
    pub limits: Limits,
    /// How the server stops.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// The account that owns the projects, told as `domain_id`; a project's own id if absent.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// The region, told as `realm`.
    #[serde(default = "default_realm")]
    pub realm: String,
}

/// TLS for gRPC and REST. Its files are read again when one of them changes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate in PEM, and after it those between it and its CA.
    pub certificate_file: PathBuf,
    /// The certificate's private key in PEM; not readable by others.
    pub private_key_file: PathBuf,
    /// The CAs of clients in PEM; clients are asked for no certificate if absent.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client may be without a certificate.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
}

/// Whether a client may be without a certificate. One that it has must be good either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificates {
    /// It may, and then needs another credential.
    #[default]
    Optional,
    /// It may not, whatever other credential it has.
    Required,
}

/// A hardware module, over PKCS#11. Needs a program that was built with the feature `pkcs11`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11 {
    /// The module, a shared library.
    pub module: PathBuf,
    /// The label of the token.
    pub token: String,
    /// The file with the user's PIN on one line; not readable by others.
    pub pin_file: PathBuf,
    /// The label of the root key, made by `kmsgate root-key new-in-token`; absent if the root key
    /// is in a file.
    #[serde(default)]
    pub root_key: Option<String>,
    /// The labels of root keys in the token that sealed and authenticated before.
    #[serde(default)]
    pub previous_root_keys: Vec<String>,
    /// How many sessions work in the token at a time.
    #[serde(default = "default_sessions")]
    pub sessions: NonZeroUsize,
}

/// The key store, with just the settings that it has.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Store {
    /// Gone when the process ends.
    Memory {},
    /// One file, one server.
    Sqlite {
        /// The database file; its directory must exist.
        path: PathBuf,
    },
    /// A cluster, and any number of servers.
    Etcd(Etcd),
}

/// Where and how keys are kept in an etcd cluster.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// The addresses of its members: https, or http on this machine.
    #[serde(deserialize_with = "urls")]
    pub endpoints: Vec<Uri>,
    /// What the names of all records begin with there.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The CAs of the members in PEM; needed for https.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The certificate that the members are shown, in PEM.
    #[serde(default)]
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM; not readable by others.
    #[serde(default)]
    pub private_key_file: Option<PathBuf>,
    /// The user, where the cluster has users.
    #[serde(default)]
    pub user: Option<String>,
    /// The user's password on one line; not readable by others.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// How long a change by another server may be unknown here. Without a proof that none is, data
    /// calls are refused.
    #[serde(default = "default_max_staleness", deserialize_with = "duration")]
    pub max_staleness: Duration,
}

fn default_prefix() -> String {
    "kmsgate/".to_owned()
}

const fn default_max_staleness() -> Duration {
    Duration::from_secs(3)
}

impl Etcd {
    /// A cluster at these addresses, with the default of every other setting.
    fn at(endpoints: Vec<Uri>) -> Self {
        Self {
            endpoints,
            prefix: default_prefix(),
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            user: None,
            password_file: None,
            max_staleness: default_max_staleness(),
        }
    }

    /// What is wrong with the settings, if anything.
    fn mistake(&self) -> Option<&'static str> {
        let is_https = |uri: &Uri| uri.scheme_str() == Some("https");
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
        if self.endpoints.is_empty() {
            Some("name at least one endpoint")
        } else if self.ca_file.is_none() && self.endpoints.iter().any(is_https) {
            Some("https needs a ca_file")
        } else if self.ca_file.is_some() && !self.endpoints.iter().all(is_https) {
            Some("with a ca_file every endpoint is https")
        } else if self.certificate_file.is_some() != self.private_key_file.is_some() {
            Some("certificate_file and private_key_file belong together")
        } else if self.certificate_file.is_some() && self.ca_file.is_none() {
            Some("certificate_file needs a ca_file")
        } else if self.user.is_some() != self.password_file.is_some() {
            Some("user and password_file belong together")
        } else if self.prefix.len() > 128 || !self.prefix.bytes().all(fits) {
            Some("prefix is at most 128 of 0-9 A-Z a-z / . _ -")
        } else if !self.prefix.ends_with('/') {
            Some("prefix ends with /")
        } else if !(MIN_STALENESS..=MAX_STALENESS).contains(&self.max_staleness) {
            Some("max_staleness is 1s to 1m")
        } else {
            None
        }
    }
}

impl FromStr for Store {
    type Err = InvalidStore;

    /// A store as commands name it: its kind, a colon, and where it is.
    fn from_str(text: &str) -> Result<Self, InvalidStore> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite { path: path.into() }),
            Some(("etcd", endpoints)) => {
                let endpoints = endpoints.split(',').map(|endpoint| endpoint.parse().ok());
                let endpoints: Option<Vec<Uri>> = endpoints.collect();
                let here = endpoints.filter(|uris| {
                    let is_here = |uri: &Uri| uri.scheme_str() == Some("http") && may_be_asked(uri);
                    uris.iter().all(is_here)
                });
                Ok(Self::Etcd(Etcd::at(here.ok_or(InvalidStore)?)))
            }
            _ => Err(InvalidStore),
        }
    }
}

/// The least time that changes by others may be unknown: twice the time between two proofs.
const MIN_STALENESS: Duration = Duration::from_secs(1);

/// The most.
const MAX_STALENESS: Duration = Duration::from_secs(60);

/// The text names no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a store is named sqlite:PATH, etcd:ENDPOINT with http on this machine, or config for that of the configuration"
)]
pub struct InvalidStore;

/// Who makes keys and works with them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crypto {
    /// The providers, each at most once. For each key spec the first that has it makes its keys.
    pub providers: Vec<Provider>,
}

/// A provider, with just the settings that it has.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Provider {
    /// AWS-LC. It supports AES_256 and RSA.
    #[serde(rename = "aws-lc-rs")]
    AwsLc {
        /// What it is for; all that it supports if absent.
        #[serde(default, deserialize_with = "key_specs")]
        key_specs: Option<Vec<KeySpec>>,
    },
    /// The RustCrypto crates. It supports every spec.
    #[serde(rename = "rustcrypto")]
    RustCrypto {
        /// What it is for; all that it supports if absent.
        #[serde(default, deserialize_with = "key_specs")]
        key_specs: Option<Vec<KeySpec>>,
    },
    /// The hardware module. It supports RSA.
    Pkcs11 {
        /// What it is for; all that it supports if absent.
        #[serde(default, deserialize_with = "key_specs")]
        key_specs: Option<Vec<KeySpec>>,
    },
}

impl Provider {
    /// The kind's name.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AwsLc { .. } => "aws-lc-rs",
            Self::RustCrypto { .. } => "rustcrypto",
            Self::Pkcs11 { .. } => "pkcs11",
        }
    }

    /// What it is for; all that it supports if absent.
    pub fn key_specs(&self) -> Option<&[KeySpec]> {
        match self {
            Self::AwsLc { key_specs }
            | Self::RustCrypto { key_specs }
            | Self::Pkcs11 { key_specs } => key_specs.as_deref(),
        }
    }
}

/// The credentials that are accepted. At least one kind must be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The file with the hashes of tokens.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The file with access keys and secret keys; not readable by others. REST only.
    #[serde(default)]
    pub access_key_file: Option<PathBuf>,
    /// Whom the identities of certificates stand for; the first that is for one decides.
    #[serde(default)]
    pub mtls: Vec<IdentityRule>,
    /// Who is believed what it says of its clients' certificates.
    #[serde(default)]
    pub forwarded: Option<Forwarded>,
    /// Issuers of JSON Web Tokens.
    #[serde(default)]
    pub jwt: Vec<Jwt>,
    /// The IAM service that says what tokens are good for.
    #[serde(default)]
    pub iam: Option<Iam>,
    /// The file with rules: what callers may do beyond their credentials, and what they may not.
    #[serde(default)]
    pub policy_file: Option<PathBuf>,
}

/// An IAM service, asked over the Keystone v3 API.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iam {
    /// Its address. HTTPS, or HTTP on this machine.
    #[serde(deserialize_with = "url")]
    pub endpoint: Uri,
    /// The file with the certificates of the authorities that the address is trusted by; those that
    /// the system trusts if absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The file with the user, password and project with which it is asked; not readable by others.
    pub credential_file: PathBuf,
    /// How long a token is believed at most without asking again.
    #[serde(default = "default_cache_time", deserialize_with = "duration")]
    pub cache_time: Duration,
    /// What roles may do: a caller has the actions of every rule that fits. May be absent beside a
    /// policy file, whose rules may name the same roles.
    #[serde(default)]
    pub rules: Vec<IamRule>,
}

/// What a role may do.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IamRule {
    /// The role's name; `*` stands for every one.
    pub role: String,
    /// The project that the rule is for; all if absent.
    #[serde(default, deserialize_with = "parsed_option")]
    pub project: Option<ProjectId>,
    /// The actions.
    #[serde(deserialize_with = "actions")]
    pub actions: Actions,
}

/// An issuer of JSON Web Tokens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// Its name, exactly as `iss` has it.
    pub issuer: String,
    /// The file with its keys, a JWK Set. Others may read it and not write it.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// The address of its keys, in place of a file. HTTPS, or HTTP on this machine.
    #[serde(default, deserialize_with = "jwks_url")]
    pub jwks_url: Option<Uri>,
    /// The file with the certificates of the authorities that the address is trusted by; those that
    /// the system trusts if absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The file with the token that the address asks for.
    #[serde(default)]
    pub bearer_token_file: Option<PathBuf>,
    /// Who its tokens may be for: `aud` has one of these.
    pub audiences: Vec<String>,
    /// How its tokens may be signed.
    #[serde(default = "default_algorithms", deserialize_with = "algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// How far its clock may be from ours; at most five minutes.
    #[serde(default = "default_clock_skew", deserialize_with = "duration")]
    pub clock_skew: Duration,
    /// Who its callers are. The first rule that fits decides, and without one nobody is let in.
    pub rules: Vec<JwtRule>,
}

/// Which claims make which caller.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtRule {
    /// What a token must claim: by the claim's name, or a JSON Pointer into it, its text. A final `*`
    /// stands for any rest.
    pub claims: BTreeMap<String, String>,
    /// The one project that its caller is for.
    #[serde(deserialize_with = "parsed")]
    pub project: ProjectId,
    /// What its caller is, for rules of the policy file that name roles.
    #[serde(default, deserialize_with = "roles")]
    pub roles: Arc<[Arc<str>]>,
    /// What its caller may do with every key of the project. May be absent beside roles.
    #[serde(default, deserialize_with = "actions")]
    pub actions: Actions,
}

/// Whom an identity of a certificate stands for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRule {
    /// A SPIFFE ID, all SPIFFE IDs below a path, or a DNS name.
    #[serde(deserialize_with = "parsed")]
    pub identity: IdentityPattern,
    /// The project.
    #[serde(deserialize_with = "parsed")]
    pub project: ProjectId,
    /// What it is, for rules of the policy file that name roles.
    #[serde(default, deserialize_with = "roles")]
    pub roles: Arc<[Arc<str>]>,
    /// What it may do with every key of the project. May be absent beside roles.
    #[serde(default, deserialize_with = "actions")]
    pub actions: Actions,
}

/// Proxies that tell the certificates of their clients in `x-forwarded-client-cert`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forwarded {
    /// Where they connect from. Others that send the header are refused.
    pub peers: Vec<ForwardedPeer>,
}

/// Where a proxy connects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ForwardedPeer {
    /// This machine, over TCP.
    Loopback,
    /// One address of this machine, over TCP.
    Address(IpAddr),
    /// Whoever can open a Unix socket.
    Unix,
}

impl TryFrom<String> for ForwardedPeer {
    type Error = InvalidPeer;

    fn try_from(text: String) -> Result<Self, InvalidPeer> {
        /// What Istio's sidecar comes from over IPv6. It stands on the loopback interface.
        const ISTIO: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
        match text.as_str() {
            "loopback" => Ok(Self::Loopback),
            "unix" => Ok(Self::Unix),
            text => {
                let address: IpAddr = text.parse().map_err(|_| InvalidPeer)?;
                let own = address.is_loopback() || address == ISTIO;
                own.then_some(Self::Address(address)).ok_or(InvalidPeer)
            }
        }
    }
}

/// The text names no place of this machine that a proxy can connect from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected loopback, unix, or a loopback address")]
pub struct InvalidPeer;

/// Where events go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Audit {
    /// JSON lines on standard output, beside nothing else: logs go to standard error.
    Stdout {},
    /// JSON lines appended to a file.
    File {
        /// The file; made, for its owner alone, if it is not there.
        path: PathBuf,
    },
}

/// Logs, on standard error.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Which lines: `error`, `warn`, `info`, `debug` or `trace`, and such a level per module, as
    /// `info,kmsgate::service=debug`.
    pub filter: String,
    /// How lines are written.
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person at a terminal.
    Text,
}

/// What bounds the server's use of the machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests in work at a time on both faces together; more are refused at once.
    pub requests_in_flight: NonZeroUsize,
    /// The longest that one request may take.
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Duration,
    /// How old a connection gets, give or take a tenth, before its client is told to make another.
    #[serde(deserialize_with = "duration")]
    pub connection_age: Duration,
    /// Keys that are held opened in memory.
    pub opened_keys: NonZeroUsize,
    /// Threads for private operations and making keys; one per core if absent.
    pub cpu_threads: Option<NonZeroUsize>,
    /// Such operations that may wait for a thread; more are refused at once.
    pub cpu_queue: NonZeroUsize,
    /// What each caller may ask for; without a bound if absent.
    pub per_caller: PerCaller,
    /// What may be asked of each key; without a bound if absent.
    pub per_key: PerKey,
}

/// What each caller may ask for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerCaller {
    /// Processor time for the work with keys and records: so many cores over time.
    #[serde(deserialize_with = "cores")]
    pub cores: Option<Cores>,
    /// Such time that may be used at once by who has not asked for a while; one second if absent.
    #[serde(deserialize_with = "some_duration")]
    pub burst: Option<Duration>,
    /// Requests over time, whatever they ask for.
    pub requests_per_second: Option<NonZeroU32>,
    /// Requests at once by who has not asked for a while; those of one second if absent.
    pub requests_burst: Option<NonZeroU32>,
}

/// What may be asked of each key, by all callers together.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerKey {
    /// Processor time for encrypting and decrypting: so many cores over time.
    #[serde(deserialize_with = "cores")]
    pub cores: Option<Cores>,
    /// Such time that may be used at once after a while without; one second if absent.
    #[serde(deserialize_with = "some_duration")]
    pub burst: Option<Duration>,
}

/// How the server stops.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long the server goes on after it has said that it is not ready, so that load balancers
    /// hear of it.
    #[serde(deserialize_with = "duration")]
    pub lag: Duration,
    /// How long requests may then take to end before they are cut off.
    #[serde(deserialize_with = "duration")]
    pub drain: Duration,
}

impl Config {
    /// Parses the text of a configuration file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check_listeners()?;
        config.check_credentials()?;
        config.crypto.check()?;
        config.limits.check()?;
        if let Store::Etcd(etcd) = &config.store {
            etcd.mistake()
                .map_or(Ok(()), |wrong| Err(ConfigError::Etcd(wrong)))?;
        }
        let in_token = config.pkcs11.as_ref().and_then(|it| it.root_key.as_ref());
        if config.root_key_file.is_some() == in_token.is_some() {
            return Err(ConfigError::RootKey);
        }
        let previous = config.pkcs11.as_ref().map(|it| &it.previous_root_keys);
        let in_token = in_token.or_else(|| previous?.first());
        let is_pkcs11 = |provider: &Provider| matches!(provider, Provider::Pkcs11 { .. });
        let has_keys = config.crypto.providers.iter().any(is_pkcs11);
        match config.pkcs11 {
            None if has_keys => Err(ConfigError::NoModule),
            Some(_) if in_token.is_none() && !has_keys => Err(ConfigError::IdleModule),
            _ => Ok(config),
        }
    }

    /// Whether clients are asked for certificates.
    pub fn asks_for_certificates(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.client_ca_file.is_some())
    }

    /// Refuses kinds of credentials that nobody could use, or that contradict themselves.
    fn check_credentials(&self) -> Result<(), ConfigError> {
        let auth = &self.auth;
        let certificates = self.asks_for_certificates();
        let told = auth.forwarded.is_some();
        if auth.mtls.is_empty() {
            if told {
                return Err(ConfigError::NoIdentities);
            }
            let files = auth.token_file.is_some() || auth.access_key_file.is_some();
            if !files && auth.jwt.is_empty() && auth.iam.is_none() {
                return Err(ConfigError::NoCredentials);
            }
        } else if !certificates && !told {
            return Err(ConfigError::NoCertificates);
        }
        if let Some(iam) = &auth.iam {
            let idle = iam.rules.is_empty() && auth.policy_file.is_none();
            if idle || iam.rules.iter().any(|rule| rule.role.is_empty()) {
                return Err(ConfigError::NoRoles);
            }
            if iam.cache_time > MAX_CACHE_TIME {
                return Err(ConfigError::CacheTime);
            }
        }
        let rights = auth.mtls.iter().map(|rule| (&rule.roles, rule.actions));
        let jwt_rules = auth.jwt.iter().flat_map(|jwt| &jwt.rules);
        let mut rights = rights.chain(jwt_rules.map(|rule| (&rule.roles, rule.actions)));
        if rights.any(|(roles, actions)| roles.is_empty() && actions == Actions::default()) {
            return Err(ConfigError::NoRights);
        }
        let mut issuers = HashSet::new();
        for jwt in &auth.jwt {
            let wrong = jwt.mistake().or_else(|| {
                // A caller is named by its issuer and its subject, with a colon between.
                let alike = |other: &&String| {
                    let begins = |one: &str, other: &str| {
                        let rest = one.strip_prefix(other);
                        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
                    };
                    begins(other, &jwt.issuer) || begins(&jwt.issuer, other)
                };
                let again = issuers.iter().any(alike);
                issuers.insert(&jwt.issuer);
                again.then_some(
                    "the issuer stands there twice, or is another's beginning before a colon",
                )
            });
            if let Some(wrong) = wrong {
                return Err(ConfigError::Jwt(jwt.issuer.clone(), wrong));
            }
        }
        Ok(())
    }

    /// Refuses plain text where other machines reach it, unless that is what was asked for.
    fn check_listeners(&self) -> Result<(), ConfigError> {
        let faces = [&self.grpc, &self.rest];
        let open = faces.into_iter().find(|address| !address.is_local());
        let is_unix = |address: &&Address| matches!(address, Address::Unix(_));
        let sockets = faces.iter().filter(|address| is_unix(address)).count();
        let forwarded = self.auth.forwarded.as_ref();
        if sockets == 0 && forwarded.is_some_and(|it| it.peers.contains(&ForwardedPeer::Unix)) {
            return Err(ConfigError::NoUnixSocket);
        }
        match (&self.tls, open) {
            (None, Some(address)) if !self.allow_plaintext => {
                Err(ConfigError::Plaintext(address.clone()))
            }
            (Some(_), _) if sockets == faces.len() => Err(ConfigError::IdleTls),
            (Some(_), _) if self.allow_plaintext => Err(ConfigError::PlaintextAndTls),
            (Some(tls), _)
                if tls.client_ca_file.is_none()
                    && tls.client_certificates == ClientCertificates::Required =>
            {
                Err(ConfigError::NoClientCa)
            }
            _ => Ok(()),
        }
    }
}

impl Jwt {
    /// What is wrong with the settings, taken together.
    fn mistake(&self) -> Option<&'static str> {
        let printable = self.issuer.bytes().all(|byte| byte.is_ascii_graphic());
        if !(1..=255).contains(&self.issuer.len()) || !printable {
            return Some("an issuer is 1 to 255 printable characters without spaces");
        }
        if self.jwks_file.is_some() == self.jwks_url.is_some() {
            return Some("name its keys once: jwks_file, or jwks_url");
        }
        if self.jwks_file.is_some() && (self.ca_file.is_some() || self.bearer_token_file.is_some())
        {
            return Some("ca_file and bearer_token_file are for a jwks_url");
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Some("name at least one audience, and none that is empty");
        }
        if self.clock_skew > MAX_CLOCK_SKEW {
            return Some("clock_skew is more than 5m");
        }
        if self.rules.is_empty() {
            return Some("name at least one of its rules, or nobody is let in");
        }
        if self.rules.iter().any(|rule| rule.claims.is_empty()) {
            return Some("a rule names no claims; sub = \"*\" fits every token");
        }
        None
    }
}

/// The longest that an IAM token is believed without asking again: as long as it lives.
const MAX_CACHE_TIME: Duration = Duration::from_secs(24 * 3600);

/// The most that an issuer's clock may be from ours.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

impl Crypto {
    /// Refuses lists that say nothing, or something twice.
    fn check(&self) -> Result<(), ConfigError> {
        if self.providers.is_empty() {
            return Err(ConfigError::NoProviders);
        }
        let mut kinds = HashSet::new();
        for provider in &self.providers {
            let kind = provider.kind();
            if !kinds.insert(kind) {
                return Err(ConfigError::ProviderTwice(kind));
            }
            let Some(specs) = provider.key_specs() else {
                continue;
            };
            if specs.is_empty() {
                return Err(ConfigError::NoKeySpecs(kind));
            }
            let mut seen = HashSet::new();
            if let Some(twice) = specs.iter().find(|spec| !seen.insert(**spec)) {
                return Err(ConfigError::KeySpecTwice(kind, twice.name()));
            }
        }
        Ok(())
    }
}

impl Limits {
    /// Refuses a burst beyond a rate that is not there, which would bound nothing, and times in which nobody is
    /// served.
    fn check(&self) -> Result<(), ConfigError> {
        let Self {
            request_timeout,
            connection_age,
            per_caller,
            per_key,
            ..
        } = self;
        for (name, time, least) in [
            ("request_timeout", *request_timeout, LEAST_TIMEOUT),
            ("connection_age", *connection_age, LEAST_AGE),
        ] {
            if time < least {
                return Err(ConfigError::TooShort(name, least));
            }
        }
        for (burst, cores) in [
            (per_caller.burst, per_caller.cores),
            (per_key.burst, per_key.cores),
        ] {
            if burst.is_some() && cores.is_none() {
                return Err(ConfigError::NoRate("burst", "cores"));
            }
        }
        if per_caller.requests_burst.is_some() && per_caller.requests_per_second.is_none() {
            return Err(ConfigError::NoRate("requests_burst", "requests_per_second"));
        }
        Ok(())
    }
}

impl Default for Crypto {
    fn default() -> Self {
        Self {
            // RUSTSEC-2023-0071 says of the crate `rsa` that the time of a private operation may
            // tell something of the key, so RSA is AWS-LC's. AES is because it is faster there
            // (`cargo bench --bench providers`).
            providers: vec![
                Provider::AwsLc { key_specs: None },
                Provider::RustCrypto {
                    key_specs: Some(vec![KeySpec::Sm2]),
                },
            ],
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self::Stdout {}
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Json,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_in_flight: count(4096),
            request_timeout: Duration::from_secs(10),
            connection_age: Duration::from_secs(3600),
            opened_keys: count(100_000),
            cpu_threads: None,
            cpu_queue: count(1024),
            per_caller: PerCaller::default(),
            per_key: PerKey::default(),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            lag: Duration::from_secs(5),
            drain: Duration::from_secs(20),
        }
    }
}

/// Why a text is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is unknown, or a value is not of its type.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// Nobody could ever be let in.
    #[error("auth: name a token_file, an access_key_file, iam, jwt or mtls, or nobody is let in")]
    NoCredentials,
    /// No IAM token could give its caller anything.
    #[error("auth.iam: name at least one of its rules, each with a role, or a policy_file")]
    NoRoles,
    /// A rule makes a caller who may do nothing, and never could.
    #[error("auth: a rule of mtls or jwt has neither actions nor roles")]
    NoRights,
    /// A token that was taken back would work for too long.
    #[error("auth.iam: cache_time is more than 1440m")]
    CacheTime,
    /// Others could read what callers send.
    #[error(
        "{0} is not on loopback: give it a [tls] section, or say allow_plaintext = true if something \
         in front of it encrypts"
    )]
    Plaintext(Address),
    /// Both cannot be.
    #[error("allow_plaintext is for a server without a [tls] section")]
    PlaintextAndTls,
    /// Nothing is encrypted with it.
    #[error("tls: gRPC and REST are both on Unix sockets, which are in plain text")]
    IdleTls,
    /// No client certificate could be good.
    #[error("tls: client_certificates = \"required\" needs a client_ca_file")]
    NoClientCa,
    /// Nothing tells an identity.
    #[error("auth.mtls: needs a client_ca_file under [tls], or an [auth.forwarded] section")]
    NoCertificates,
    /// What is told stands for nobody.
    #[error("auth.forwarded: needs [[auth.mtls]] rules that say whom an identity stands for")]
    NoIdentities,
    /// Nobody could connect from where they would be believed.
    #[error("auth.forwarded: peers names unix, and neither gRPC nor REST is on a Unix socket")]
    NoUnixSocket,
    /// The settings of an issuer contradict themselves.
    #[error("auth.jwt {0:?}: {1}")]
    Jwt(String, &'static str),
    /// There is no root key, or there are two.
    #[error("name one root key: root_key_file, or root_key under [pkcs11]")]
    RootKey,
    /// The provider has no token.
    #[error("crypto.providers: pkcs11 needs a [pkcs11] section that says where the token is")]
    NoModule,
    /// The settings of etcd contradict themselves, or say too little.
    #[error("store: {0}")]
    Etcd(&'static str),
    /// The token has no use.
    #[error(
        "pkcs11: name a root_key, previous_root_keys, or pkcs11 among crypto.providers, or leave the \
         section out"
    )]
    IdleModule,
    /// No key could ever be made.
    #[error("crypto.providers: name at least one provider, or leave the list out")]
    NoProviders,
    /// Two entries are of one kind.
    #[error("crypto.providers: {0} stands there twice; give one entry all its key_specs")]
    ProviderTwice(&'static str),
    /// An entry is for nothing.
    #[error(
        "crypto.providers: {0} has no key_specs; without that setting it is for all that it supports"
    )]
    NoKeySpecs(&'static str),
    /// An entry is for the same spec twice.
    #[error("crypto.providers: {0} has {1} twice among its key_specs")]
    KeySpecTwice(&'static str, &'static str),
    /// A limit has a burst and no rate.
    #[error("limits: {0} bounds nothing without {1}")]
    NoRate(&'static str, &'static str),

    /// A time is so short that nobody would be served.
    #[error("limits: {0} is {1:?} at least")]
    TooShort(&'static str, Duration),
}

/// The least time that a request may have, and the least age of a connection.
pub const LEAST_TIMEOUT: Duration = Duration::from_millis(10);
const LEAST_AGE: Duration = Duration::from_secs(1);

fn default_grpc() -> Address {
    loopback(9090)
}

fn default_rest() -> Address {
    loopback(8080)
}

fn default_admin() -> Address {
    loopback(9100)
}

fn loopback(port: u16) -> Address {
    Address::Tcp((Ipv4Addr::LOCALHOST, port).into())
}

fn default_sessions() -> NonZeroUsize {
    count(4)
}

const fn default_cache_time() -> Duration {
    Duration::from_secs(300)
}

fn default_realm() -> String {
    "local".to_owned()
}

fn default_algorithms() -> Vec<Algorithm> {
    vec![Algorithm::Rs256, Algorithm::Es256]
}

fn default_clock_skew() -> Duration {
    Duration::from_secs(30)
}

fn count(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

/// Reads a value from its text.
fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// Reads a value that is there from its text.
fn parsed_option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    parsed(deserializer).map(Some)
}

/// Reads names of roles.
fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[Arc<str>]>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    if !(1..=MAX_ROLES).contains(&names.len()) || !names.iter().all(|name| is_name(name)) {
        return Err(serde::de::Error::custom(
            "expected 1 to 16 roles of letters, digits, dots, underscores and hyphens",
        ));
    }
    Ok(names.into_iter().map(Arc::from).collect())
}

/// Reads actions by their documented names, and patterns of them.
fn actions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Actions, D::Error> {
    let patterns = Vec::<String>::deserialize(deserializer)?;
    if patterns.is_empty() {
        return Err(serde::de::Error::custom("actions is empty"));
    }
    patterns
        .iter()
        .try_fold(Actions::default(), |all, pattern| {
            let named = Actions::matching(pattern);
            let named =
                named.map_err(|_| serde::de::Error::custom(format!("no action {pattern:?}")));
            Ok(all.union(named?))
        })
}

/// Reads key specs by their documented names.
fn key_specs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<KeySpec>>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let specs = names.into_iter().map(|name| {
        let spec: Result<KeySpec, _> = name.parse();
        spec.map_err(|_| {
            let all: Vec<&str> = KeySpec::ALL.iter().map(|spec| spec.name()).collect();
            let all = all.join(", ");
            serde::de::Error::custom(format!("no key spec {name:?}: expected one of {all}"))
        })
    });
    specs.collect::<Result<_, _>>().map(Some)
}

/// Reads signature algorithms by their registered names.
fn algorithms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Algorithm>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(serde::de::Error::custom("algorithms is empty"));
    }
    let algorithms = names.iter().map(|name| {
        let algorithm: Result<Algorithm, _> = name.parse();
        algorithm.map_err(|_| {
            let all: Vec<&str> = Algorithm::ALL.iter().map(|one| one.name()).collect();
            let all = all.join(", ");
            serde::de::Error::custom(format!("no algorithm {name:?}: expected one of {all}"))
        })
    });
    algorithms.collect()
}

/// Reads an address of HTTPS, or of HTTP on this machine: whoever could change what another machine
/// answers would choose the keys.
fn jwks_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uri>, D::Error> {
    url(deserializer).map(Some)
}

/// Reads an address that may be asked.
fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uri, D::Error> {
    let text = String::deserialize(deserializer)?;
    let uri: Result<Uri, _> = text.parse();
    match uri {
        Ok(uri) if may_be_asked(&uri) => Ok(uri),
        _ => Err(serde::de::Error::custom(
            "expected an https address, or an http address of this machine, without a user",
        )),
    }
}

/// Whether a question to this address is safe on its way.
fn may_be_asked(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let authority = uri.authority().map_or("@", |authority| authority.as_str());
    let is_safe = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => is_this_machine(host),
        _ => false,
    };
    is_safe && !host.is_empty() && !authority.contains('@')
}

/// Reads addresses that may be asked.
fn urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Uri>, D::Error> {
    #[derive(Deserialize)]
    struct Url(#[serde(deserialize_with = "url")] Uri);
    let urls = Vec::<Url>::deserialize(deserializer)?;
    Ok(urls.into_iter().map(|Url(uri)| uri).collect())
}

/// Reads a number of cores.
fn cores<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cores>, D::Error> {
    let cores = Cores::new(f64::deserialize(deserializer)?);
    let wrong = || serde::de::Error::custom("expected a number of cores, from 0.000001 to 4000");
    cores.map(Some).ok_or_else(wrong)
}

/// Reads a duration where there need be none.
fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// Reads a duration such as `500ms`, `10s` or `2m`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom("expected a whole number and ms, s or m, such as \"10s\"")
    })
}

/// The duration that `text` writes as a whole number and a unit: `ms`, `s` or `m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"
        root_key_file = "/etc/kmsgate/root.key"
        store = { kind = "sqlite", path = "/var/lib/kmsgate/keys.db" }
        auth = { token_file = "/etc/kmsgate/tokens.toml" }
    "#;

    #[test]
    fn three_lines_run_a_server_on_loopback() {
        let config = Config::parse(SMALLEST).unwrap();
        assert!(config.grpc.is_local() && config.rest.is_local());
        assert!(config.admin.is_local() && !config.reflection);
    }

    #[test]
    fn an_unknown_key_is_refused_wherever_it_stands() {
        for misspelt in [
            "reflexion = true",
            "[limits]\nrequest_in_flight = 5",
            "[audit]\nkind = \"stdout\"\npath = \"x\"",
            "[log]\nlevel = \"info\"",
            "[shutdown]\nlags = \"5s\"",
            "[crypto]\nprovider = []",
            "[[crypto.providers]]\nkind = \"rustcrypto\"\nkey_spec = [\"SM2\"]",
        ] {
            let text = format!("{SMALLEST}\n{misspelt}");
            assert!(Config::parse(&text).is_err(), "{misspelt}");
        }
        let memory = SMALLEST.replace("\"sqlite\"", "\"memory\"");
        assert!(
            Config::parse(&memory).is_err(),
            "a memory store has no path"
        );
    }

    #[test]
    fn a_configuration_that_lets_nobody_in_is_refused() {
        let text = SMALLEST.replace("token_file = \"/etc/kmsgate/tokens.toml\"", "");
        assert!(matches!(
            Config::parse(&text),
            Err(ConfigError::NoCredentials)
        ));
    }

    const ISSUER: &str = r#"issuer = "https://issuer.example"
        jwks_file = "/jwks.json"
        audiences = ["kms"]
        rules = [{ claims = { sub = "*" }, project = "p", actions = ["kms:cmk:*"] }]"#;

    #[test]
    fn an_issuer_of_tokens_needs_keys_an_audience_and_a_rule() {
        let config = with_issuer(ISSUER).unwrap();
        let [jwt] = &*config.auth.jwt else {
            panic!("{config:?}")
        };
        assert_eq!(jwt.algorithms, [Algorithm::Rs256, Algorithm::Es256]);
        assert_eq!(jwt.clock_skew, Duration::from_secs(30));
        let (alone, _) = SMALLEST.split_once("auth").unwrap();
        let alone = Config::parse(&format!("{alone}\n[[auth.jwt]]\n{ISSUER}"));
        assert!(alone.is_ok(), "no other kind of credential is needed");

        for (from, to, sentence) in [
            ("https://issuer.example", "", "an issuer is 1 to 255"),
            ("https://issuer.example", "is suer", "an issuer is 1 to 255"),
            ("jwks_file = \"/jwks.json\"", "", "name its keys once"),
            (
                "audiences",
                "jwks_url = \"https://x/\"\naudiences",
                "name its keys once",
            ),
            (
                "audiences",
                "ca_file = \"/ca.pem\"\naudiences",
                "are for a jwks_url",
            ),
            (
                "audiences",
                "bearer_token_file = \"/token\"\naudiences",
                "are for a jwks_url",
            ),
            ("[\"kms\"]", "[]", "name at least one audience"),
            ("[\"kms\"]", "[\"kms\", \"\"]", "none that is empty"),
            ("audiences = [\"kms\"]", "", "missing field `audiences`"),
            (
                "audiences",
                "clock_skew = \"301s\"\naudiences",
                "clock_skew is more than 5m",
            ),
            (
                "audiences",
                "algorithms = []\naudiences",
                "algorithms is empty",
            ),
            (
                "audiences",
                "algorithms = [\"RS256\", \"none\"]\naudiences",
                "no algorithm \"none\": expected one of RS256, ",
            ),
            (
                "audiences",
                "algorithms = [\"HS256\"]\naudiences",
                "no algorithm \"HS256\"",
            ),
            ("{ sub = \"*\" }", "{}", "a rule names no claims"),
            ("{ sub = \"*\" }", "{ sub = 7 }", "expected a string"),
            ("\"p\"", "\"p q\"", "not a project id"),
            (
                "kms:cmk:*",
                "kms:cmk:encrypt",
                "no action \"kms:cmk:encrypt\"",
            ),
            ("[\"kms:cmk:*\"]", "[]", "actions is empty"),
            ("project", "role = \"x\", project", "unknown field `role`"),
            ("issuer =", "key = 1\nissuer =", "unknown field `key`"),
        ] {
            let text = ISSUER.replacen(from, to, 1);
            let error = with_issuer(&text).unwrap_err().to_string();
            assert!(error.contains(sentence), "{text}: {error}");
        }
        let none = ISSUER.split_once("rules").unwrap().0;
        let error = with_issuer(&format!("{none}rules = []")).unwrap_err();
        assert!(error.to_string().contains("at least one of its rules"));
        let twice = with_issuer(&format!("{ISSUER}\n[[auth.jwt]]\n{ISSUER}")).unwrap_err();
        assert!(twice.to_string().contains("stands there twice"), "{twice}");
        let port = ISSUER.replacen("\"\n", ":8443\"\n", 1);
        let beginning = with_issuer(&format!("{ISSUER}\n[[auth.jwt]]\n{port}")).unwrap_err();
        let told = beginning.to_string();
        assert!(told.contains("another's beginning"), "{told}");
    }

    #[test]
    fn keys_are_fetched_over_https_or_from_this_machine() {
        let with_url = |url: &str| {
            let url = format!("jwks_url = {url:?}");
            with_issuer(&ISSUER.replace("jwks_file = \"/jwks.json\"", &url))
        };
        for good in [
            "https://issuer.example/jwks",
            "https://kubernetes.default.svc/openid/v1/jwks",
            "https://10.0.0.1:6443/openid/v1/jwks?x=1",
            "http://127.0.0.1:8200/jwks",
            "http://[::1]/jwks",
            "http://localhost/jwks",
        ] {
            let config = with_url(good).unwrap();
            assert_eq!(config.auth.jwt[0].jwks_url, Some(good.parse().unwrap()));
        }
        for bad in [
            "",
            "/jwks",
            "issuer.example",
            "http://issuer.example/jwks",
            "http://10.0.0.1/jwks",
            "http://localhost.example/jwks",
            "http://127.0.0.1@issuer.example/jwks",
            "https://user:secret@issuer.example/jwks",
            "ftp://127.0.0.1/jwks",
            "file:///jwks",
            "https:///jwks",
        ] {
            let error = with_url(bad).unwrap_err().to_string();
            assert!(
                error.contains("expected an https address"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_provider_may_be_for_some_key_specs() {
        let config = with_providers(r#"{ kind = "rustcrypto", key_specs = ["SM2", "AES_256"] }"#);
        let specs = Some(vec![KeySpec::Sm2, KeySpec::Aes256]);
        let expected = [Provider::RustCrypto { key_specs: specs }];
        assert_eq!(config.unwrap().crypto.providers, expected);
    }

    #[test]
    fn rsa_is_aws_lcs_unless_somebody_says_otherwise() {
        let config = Config::parse(SMALLEST).unwrap();
        for spec in [KeySpec::Rsa2048, KeySpec::Rsa3072, KeySpec::Rsa4096] {
            let mut providers = config.crypto.providers.iter();
            let has = |provider: &&Provider| {
                let specs = provider.key_specs();
                specs.is_none_or(|specs| specs.contains(&spec))
            };
            assert_eq!(providers.find(has).unwrap().kind(), "aws-lc-rs", "{spec:?}");
        }
    }

    #[test]
    fn a_list_of_providers_that_says_nothing_or_something_twice_is_refused() {
        for (providers, sentence) in [
            ("", "name at least one provider"),
            (
                r#"{ kind = "rustcrypto" }, { kind = "rustcrypto", key_specs = ["SM2"] }"#,
                "rustcrypto stands there twice",
            ),
            (
                r#"{ kind = "rustcrypto", key_specs = [] }"#,
                "rustcrypto has no key_specs",
            ),
            (
                r#"{ kind = "rustcrypto", key_specs = ["SM2", "AES_256", "SM2"] }"#,
                "rustcrypto has SM2 twice",
            ),
            (
                r#"{ kind = "rustcrypto", key_specs = ["RSA_1024"] }"#,
                r#"no key spec "RSA_1024": expected one of AES_256, RSA_2048, "#,
            ),
            (r#"{ kind = "no-such" }"#, "unknown variant `no-such`"),
            (r#"{ key_specs = ["SM2"] }"#, "missing field `kind`"),
        ] {
            let error = with_providers(providers).unwrap_err().to_string();
            assert!(error.contains(sentence), "{providers}: {error}");
        }
    }

    #[test]
    fn a_store_is_named_by_its_kind_and_its_place() {
        let path = PathBuf::from("/a:b/keys.db");
        assert_eq!("sqlite:/a:b/keys.db".parse(), Ok(Store::Sqlite { path }));
        for bad in ["", "sqlite", "sqlite:", "memory:", "/keys.db", "SQLITE:x"] {
            assert_eq!(bad.parse::<Store>(), Err(InvalidStore), "{bad:?}");
        }
    }

    #[test]
    fn there_is_one_root_key_and_no_module_without_a_use() {
        let module = r#"module = "/m.so"
            token = "kms"
            pin_file = "/pin""#;
        let in_token = format!("[pkcs11]\n{module}\nroot_key = \"root\"");
        let in_file = "root_key_file = \"/etc/kmsgate/root.key\"";
        let rsa = "[crypto]\nproviders = [{ kind = \"pkcs11\" }, { kind = \"rustcrypto\" }]";
        let none = SMALLEST.replace(in_file, "");
        for (text, expected) in [
            (format!("{none}{in_token}"), Ok(())),
            (format!("{SMALLEST}{rsa}\n[pkcs11]\n{module}"), Ok(())),
            (
                format!("{SMALLEST}[pkcs11]\n{module}\nprevious_root_keys = [\"old\"]"),
                Ok(()),
            ),
            (
                format!("previous_root_key_files = [\"/old.key\"]\n{none}{in_token}"),
                Ok(()),
            ),
            (
                format!("previous_root_key_files = [\"/old.key\"]\n{none}"),
                Err("name one root key"),
            ),
            (none.clone(), Err("name one root key")),
            (format!("{SMALLEST}{in_token}"), Err("name one root key")),
            (format!("{SMALLEST}{rsa}"), Err("needs a [pkcs11] section")),
            (
                format!("{SMALLEST}[pkcs11]\n{module}"),
                Err("name a root_key, previous_root_keys, or pkcs11 among"),
            ),
            (
                format!("{none}{in_token}\nsessions = 0"),
                Err("expected a nonzero usize"),
            ),
            (
                format!("{none}{in_token}\npin = \"1234\""),
                Err("unknown field `pin`"),
            ),
        ] {
            match (Config::parse(&text), expected) {
                (Ok(_), Ok(())) => {}
                (Err(error), Err(sentence)) => {
                    assert!(error.to_string().contains(sentence), "{text}: {error}");
                }
                (parsed, _) => panic!("{text}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn a_limit_per_caller_or_key_is_a_rate_and_perhaps_a_burst() {
        let config = with_limits("per_caller = { cores = 0.5, burst = \"2s\" }").unwrap();
        assert_eq!(config.limits.per_caller.cores, Cores::new(0.5));
        assert_eq!(config.limits.per_caller.burst, Some(Duration::from_secs(2)));
        let config = with_limits("per_key = { cores = 2 }").unwrap();
        assert_eq!(config.limits.per_key.cores, Cores::new(2.0));
        assert_eq!(with_limits("").unwrap().limits, Limits::default());
        for (wrong, sentence) in [
            ("per_caller = { cores = 0 }", "from 0.000001 to 4000"),
            ("per_key = { cores = nan }", "from 0.000001 to 4000"),
            ("per_caller = { requests_per_second = 0 }", "nonzero"),
            ("per_caller = { burst = \"2s\" }", "without cores"),
            ("per_key = { burst = \"2s\" }", "without cores"),
            (
                "per_caller = { requests_burst = 5 }",
                "without requests_per_second",
            ),
            ("per_key = { requests_per_second = 5 }", "unknown field"),
            (
                "request_timeout = \"9ms\"",
                "request_timeout is 10ms at least",
            ),
            ("connection_age = \"0s\"", "connection_age is 1s at least"),
        ] {
            let error = with_limits(wrong).unwrap_err().to_string();
            assert!(error.contains(sentence), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_duration_has_a_number_and_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for bad in ["", "5", "s", "-5s", "1.5s", "5h", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn plain_text_stays_on_loopback_unless_somebody_says_otherwise() {
        let tls = "[tls]\ncertificate_file = \"c\"\nprivate_key_file = \"k\"\n";
        for (first, last, expected) in [
            ("grpc = \"[::1]:1\"\nrest = \"127.1.2.3:1\"", "", None),
            ("admin = \"0.0.0.0:1\"", "", None),
            (
                "grpc = \"0.0.0.0:1\"",
                "",
                Some("0.0.0.0:1 is not on loopback"),
            ),
            ("rest = \"[::]:1\"", "", Some("[::]:1 is not on loopback")),
            ("rest = \"[::]:1\"\nallow_plaintext = true", "", None),
            ("rest = \"[::]:1\"", tls, None),
            ("grpc = \"unix:/k\"\nrest = \"unix:/r\"", "", None),
            ("grpc = \"unix:/k\"\nrest = \"[::]:1\"", tls, None),
            (
                "grpc = \"unix:/k\"\nrest = \"[::]:1\"",
                "",
                Some("[::]:1 is not on loopback"),
            ),
            (
                "grpc = \"unix:/k\"\nrest = \"unix:/r\"",
                tls,
                Some("both on Unix sockets"),
            ),
            (
                "grpc = \"unix:\"",
                "",
                Some("expected an address and a port"),
            ),
            (
                "allow_plaintext = true",
                tls,
                Some("for a server without a [tls]"),
            ),
        ] {
            expect(&format!("{first}\n{SMALLEST}\n{last}"), expected);
        }
    }

    #[test]
    fn certificates_stand_for_somebody_and_come_from_somewhere() {
        let rule =
            "[[auth.mtls]]\nidentity = \"dns:a.b\"\nproject = \"p\"\nactions = [\"kms:*\"]\n";
        let told = "[auth.forwarded]\npeers = [\"loopback\"]\n";
        let by_socket = "[auth.forwarded]\npeers = [\"unix\"]\n";
        let tls = "[tls]\ncertificate_file = \"c\"\nprivate_key_file = \"k\"\n";
        let clients = "client_ca_file = \"a\"\n";
        let required = "client_certificates = \"required\"\n";
        // Tables, because an inline one cannot be added to.
        let token = SMALLEST.replace(
            "auth = { token_file = \"/etc/kmsgate/tokens.toml\" }",
            "[auth]\ntoken_file = \"t\"\n",
        );
        let none = token.replace("token_file = \"t\"", "");
        let rule_with = |from: &str, to: &str| rule.replace(from, to);
        for (text, expected) in [
            (format!("{none}{rule}{tls}{clients}"), None),
            (format!("{none}{rule}{told}"), None),
            (format!("{token}{tls}{clients}{required}"), None),
            (format!("rest = \"unix:/r\"\n{none}{rule}{by_socket}"), None),
            (
                format!("admin = \"unix:/a\"\n{none}{rule}{by_socket}"),
                Some("neither gRPC nor REST is on a Unix socket"),
            ),
            (format!("{none}{tls}{clients}"), Some("nobody is let in")),
            (
                format!("{token}{rule}"),
                Some("auth.mtls: needs a client_ca_file"),
            ),
            (
                format!("{token}{rule}{tls}"),
                Some("auth.mtls: needs a client_ca_file"),
            ),
            (
                format!("{token}{told}"),
                Some("auth.forwarded: needs [[auth.mtls]]"),
            ),
            (
                format!("{token}{tls}{required}"),
                Some("needs a client_ca_file"),
            ),
            (
                format!(
                    "{none}{rule}{}",
                    told.replace("loopback", "127.0.0.6\", \"::1\", \"::6")
                ),
                None,
            ),
            (
                format!("{none}{rule}{}", told.replace("loopback", "10.0.0.1")),
                Some("expected loopback, unix, or a loopback address"),
            ),
            (
                format!("{none}{told}{}", rule_with("dns:a.b", "a.b")),
                Some("expected spiffe://"),
            ),
            (
                format!("{none}{told}{}", rule_with("\"p\"", "\"p q\"")),
                Some("project"),
            ),
            (
                format!("{none}{told}{}", rule_with("kms:*", "kms:all")),
                Some("no action \"kms:all\""),
            ),
            (
                format!("{none}{told}{}", rule_with("\"kms:*\"", "")),
                Some("actions is empty"),
            ),
        ] {
            expect(&text, expected);
        }
    }

    /// That a text is a configuration, or is refused with a sentence that has `expected` in it.
    fn expect(text: &str, expected: Option<&str>) {
        match (Config::parse(text), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(sentence)) => {
                assert!(error.to_string().contains(sentence), "{text}: {error}");
            }
            (parsed, _) => panic!("{text}: {parsed:?}"),
        }
    }

    fn with_issuer(issuer: &str) -> Result<Config, ConfigError> {
        let rest = SMALLEST
            .replace("auth = { ", "[auth]\n")
            .replace(".toml\" }", ".toml\"");
        Config::parse(&format!("{rest}\n[[auth.jwt]]\n{issuer}"))
    }

    fn with_limits(limits: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("{SMALLEST}\n[limits]\n{limits}"))
    }

    fn with_providers(providers: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("{SMALLEST}\n[crypto]\nproviders = [{providers}]"))
    }
}
