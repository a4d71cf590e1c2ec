//! Client certificates, and what a proxy says of them.
//!
//! A certificate that the TLS layer has verified tells [identities](Identity): its SPIFFE ID, which
//! is the URI among its subject alternative names if there is exactly one (X.509-SVID specification,
//! section 2), and its DNS names. [`Rules`] say whom an identity stands for: the first rule that is
//! for one of them decides. A certificate that no rule is for counts as absent, because a mesh gives
//! every caller a certificate, and one of them may have come with a token.
//!
//! Behind a sidecar the certificate ends at the proxy, which says what it was in
//! `x-forwarded-client-cert`. That header is believed from [configured](Forwarded) peers alone.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::auth::seldom::Seldom;
use crate::auth::{AuthError, Authenticator, Evidence, Peer};
use crate::domain::address::Origin;
use crate::domain::caller::{Actions, Caller};
use crate::domain::identity::{Identity, IdentityPattern};
use crate::domain::key::ProjectId;
use crate::domain::time::{Clock, Timestamp};

/// The header in which a proxy tells the certificates of its clients.
const FORWARDED: &str = "x-forwarded-client-cert";

/// The most names of one certificate that are looked at. One with more tells none.
const MAX_NAMES: usize = 100;

/// A certificate that was verified when its connection was made.
#[derive(Debug)]
pub struct Certificate {
    identities: Vec<Identity>,
    not_after: Timestamp,
    /// Whom the rules say that it stands for, once they were asked.
    caller: OnceLock<Option<Arc<Caller>>>,
}

impl Certificate {
    /// Reads what a verified certificate says, in DER (RFC 5280).
    pub fn parse(der: &[u8]) -> Result<Self, InvalidCertificate> {
        let certificate = x509_cert::Certificate::from_der(der).map_err(|_| InvalidCertificate)?;
        let certificate = certificate.tbs_certificate();
        let names: Option<(bool, SubjectAltName)> = certificate
            .get_extension()
            .map_err(|_| InvalidCertificate)?;
        let not_after = certificate.validity().not_after.to_unix_duration();
        Ok(Self {
            identities: names.map_or_else(Vec::new, |(_, names)| identities(&names)),
            not_after: Timestamp(i64::try_from(not_after.as_millis()).unwrap_or(i64::MAX)),
            caller: OnceLock::new(),
        })
    }

    /// When it ends.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// The bytes are no certificate that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be read")]
pub struct InvalidCertificate;

fn identities(names: &SubjectAltName) -> Vec<Identity> {
    let mut told = Told::default();
    for name in names.0.iter().take(MAX_NAMES + 1) {
        match name {
            GeneralName::UniformResourceIdentifier(uri) => told.uri(uri.as_str()),
            GeneralName::DnsName(name) => told.dns(name.as_str()),
            _ => told.names += 1,
        }
    }
    told.identities()
}

/// The names of a certificate, as they are found.
#[derive(Default)]
struct Told<'a> {
    names: usize,
    uris: usize,
    uri: Option<&'a str>,
    dns: Vec<&'a str>,
}

impl<'a> Told<'a> {
    fn uri(&mut self, uri: &'a str) {
        self.names += 1;
        self.uris += 1;
        self.uri = Some(uri);
    }

    fn dns(&mut self, name: &'a str) {
        self.names += 1;
        self.dns.push(name);
    }

    fn identities(self) -> Vec<Identity> {
        if self.names > MAX_NAMES {
            return Vec::new();
        }
        let uri = self.uri.filter(|_| self.uris == 1);
        let spiffe = uri.and_then(Identity::spiffe);
        let dns = self.dns.into_iter().filter_map(Identity::dns);
        spiffe.into_iter().chain(dns).collect()
    }
}

/// Whom an identity stands for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The identities that it is for.
    pub identity: IdentityPattern,
    /// The project.
    pub project: ProjectId,
    /// What they are, for rules that name roles.
    pub roles: Arc<[Arc<str>]>,
    /// What they may do with every key of the project.
    pub actions: Actions,
}

/// Rules, in the order in which they are asked.
#[derive(Debug)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Asks `rules` in this order.
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// The caller that the first rule for one of `identities` makes of it.
    pub fn caller(&self, identities: &[Identity]) -> Option<Arc<Caller>> {
        self.0.iter().find_map(|rule| {
            let identity = identities.iter().find(|it| rule.identity.matches(it))?;
            Some(Arc::new(Caller {
                name: Arc::clone(identity.text()),
                project: rule.project.clone(),
                roles: Arc::clone(&rule.roles),
                actions: rule.actions,
            }))
        })
    }
}

/// Lets in whom a client certificate stands for.
#[derive(Debug)]
pub struct ClientCertificates {
    rules: Arc<Rules>,
    forwarded: Option<Arc<Forwarded>>,
    clock: Arc<dyn Clock>,
}

impl ClientCertificates {
    /// Asks `rules` about the certificate of a connection.
    pub const fn new(rules: Arc<Rules>, clock: Arc<dyn Clock>) -> Self {
        Self {
            rules,
            forwarded: None,
            clock,
        }
    }

    /// Leaves those to `forwarded` who are believed there: they are proxies, whose own certificates do not stand for
    /// their clients. That holds without the header too, which a client without a certificate comes without.
    #[must_use]
    pub fn beside(self, forwarded: Arc<Forwarded>) -> Self {
        Self {
            forwarded: Some(forwarded),
            ..self
        }
    }
}

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        let Some(certificate) = &request.peer.certificate else {
            return Ok(None);
        };
        let forwarded = self.forwarded.as_ref();
        if forwarded.is_some_and(|forwarded| forwarded.believes(request.peer)) {
            return Ok(None);
        }
        let mapped = certificate
            .caller
            .get_or_init(|| self.rules.caller(&certificate.identities));
        let Some(caller) = mapped else {
            return Ok(None);
        };
        refuse_others(request.headers)?;
        // A connection may last longer than the certificate that it was made with.
        if certificate.not_after < self.clock.now() {
            return Err(AuthError::BadCertificate(
                "the client certificate has expired",
            ));
        }
        Ok(Some(Arc::clone(caller)))
    }

    fn signs_body(&self, _: &HeaderMap) -> bool {
        false
    }
}

/// Lets in whom a proxy has let in, as it says in `x-forwarded-client-cert`.
///
/// Of the elements that proxies have added to the header, only the last counts: the one that the
/// peer itself has written (Envoy's documentation of the header).
#[derive(Debug)]
pub struct Forwarded {
    rules: Arc<Rules>,
    believed: Vec<Neighbour>,
    unbelieved: Seldom,
}

/// Who is believed what it says of its clients' certificates. Nobody on another machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Who connects from this machine over TCP.
    Loopback,
    /// Who connects from this address of this machine, over TCP.
    Address(IpAddr),
    /// Who connects to a Unix socket: those whom its file lets.
    Unix,
}

impl Forwarded {
    /// Asks `rules` about what those say who are believed.
    pub const fn new(rules: Arc<Rules>, believed: Vec<Neighbour>, clock: Arc<dyn Clock>) -> Self {
        Self {
            rules,
            believed,
            unbelieved: Seldom::new(clock),
        }
    }

    /// Refuses a request with the header from whoever is not believed, and says so in the log.
    fn check(&self, request: &Evidence<'_>) -> Result<(), AuthError> {
        if self.believes(request.peer) || !request.headers.contains_key(FORWARDED) {
            return Ok(());
        }
        if let Some(requests) = self.unbelieved.admit() {
            let peer = request.peer.origin;
            tracing::warn!(
                %peer,
                requests,
                "a peer that is not configured sent x-forwarded-client-cert"
            );
        }
        Err(AuthError::BadCertificate(
            "x-forwarded-client-cert is not believed from this peer",
        ))
    }

    fn believes(&self, peer: &Peer) -> bool {
        self.believed.iter().any(|neighbour| match neighbour {
            Neighbour::Loopback => peer.origin.is_loopback(),
            Neighbour::Address(address) => peer.origin.address() == Some(*address),
            Neighbour::Unix => matches!(peer.origin, Origin::Unix(_)),
        })
    }
}

#[async_trait]
impl Authenticator for Forwarded {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        let mut lines = request.headers.get_all(FORWARDED).iter();
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        self.check(request)?;
        let malformed = AuthError::BadCertificate("x-forwarded-client-cert is malformed");
        if lines.next().is_some() {
            return Err(malformed);
        }
        let Some(identities) = line.to_str().ok().and_then(last_element) else {
            return Err(malformed);
        };
        let caller = self.rules.caller(&identities);
        if caller.is_some() {
            refuse_others(request.headers)?;
        }
        Ok(caller)
    }

    fn signs_body(&self, _: &HeaderMap) -> bool {
        false
    }
}

/// Refuses what a stranger says in `x-forwarded-client-cert`, whatever credential comes with it. Lets nobody
/// in; asked before all who do.
#[derive(Debug)]
pub struct Strangers(pub Arc<Forwarded>);

#[async_trait]
impl Authenticator for Strangers {
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
        self.0.check(request).map(|()| None)
    }

    fn signs_body(&self, _: &HeaderMap) -> bool {
        false
    }
}

/// Refuses a request with a certificate that stands for somebody and a credential that nobody took:
/// one that is presented is never passed over for another.
fn refuse_others(headers: &HeaderMap) -> Result<(), AuthError> {
    if headers.contains_key(AUTHORIZATION) || headers.contains_key("x-auth-token") {
        return Err(AuthError::InvalidToken);
    }
    Ok(())
}

/// The identities in the last element of `x-forwarded-client-cert`: elements are parted by commas,
/// and the `KEY=VALUE` of an element by semicolons. A value with one of those in it is quoted, and a
/// quote in it has a backslash before it.
fn last_element(header: &str) -> Option<Vec<Identity>> {
    let mut pairs = Vec::new();
    let mut rest = header;
    loop {
        let (key, after) = rest.split_once('=')?;
        // What is no pair is not taken for the beginning of the next one: the next may be of another element.
        if key.contains([';', ',', '"']) {
            return None;
        }
        let (value, after) = value(after)?;
        pairs.push((key.trim(), value));
        let mut chars = after.chars();
        match chars.next() {
            None => break,
            Some(';') => {}
            // What came before is what another proxy has said.
            Some(',') => pairs.clear(),
            Some(_) => return None,
        }
        rest = chars.as_str();
    }
    let mut told = Told::default();
    for (key, value) in &pairs {
        if key.eq_ignore_ascii_case("uri") {
            told.uri(value);
        } else if key.eq_ignore_ascii_case("dns") {
            told.dns(value);
        }
    }
    Some(told.identities())
}

/// The value that a text begins with, and what comes after it. One with a quote that is escaped is
/// told as it is written: no identity has one.
fn value(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (!value.contains('"')).then_some((value, rest));
    };
    let mut escaped = false;
    let end = quoted.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    let (value, rest) = quoted.split_at(end);
    Some((value, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_with_many_names_tells_none_and_one_with_two_uris_no_spiffe_id() {
        let uri = "spiffe://example.org/a";
        let told = |uris: usize, names: usize| {
            let mut told = Told::default();
            (0..uris).for_each(|_| told.uri(uri));
            (0..names).for_each(|_| told.dns("a.example"));
            told.identities().len()
        };
        assert_eq!(told(0, 0), 0);
        assert_eq!(told(1, 0), 1);
        assert_eq!(told(1, 1), 2);
        assert_eq!(told(2, 1), 1);
        assert_eq!(told(1, 99), 100);
        assert_eq!(told(0, 100), 100);
        assert_eq!(told(1, 100), 0);
        assert_eq!(told(100, 0), 0);
        assert_eq!(told(0, 101), 0);
    }

    #[test]
    fn names_of_any_kind_count() {
        let dns =
            || GeneralName::DnsName("a.example".parse::<String>().unwrap().try_into().unwrap());
        let other = || GeneralName::Rfc822Name("a@a.example".to_owned().try_into().unwrap());
        let told = |others: usize| {
            let all = (0..others).map(|_| other()).chain([dns()]);
            identities(&SubjectAltName(all.collect())).len()
        };
        assert_eq!(told(0), 1);
        assert_eq!(told(99), 1);
        assert_eq!(told(100), 0);
    }
}
