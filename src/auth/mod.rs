//! Who is asking, and may they.
//!
//! An [`Authenticator`] knows one kind of credential and turns it into a [`Caller`]. They are asked
//! in the order of a [`Chain`]; the first that finds its kind decides, and a bad credential never
//! falls through to the next. [`policy`] then says what a caller may do.
//!
//! # Adding a kind of credential
//!
//! Implement [`Authenticator`] in one file and put it into the chain that `server` builds.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, Method, Uri};

use crate::auth::mtls::Certificate;
use crate::domain::address::Origin;
use crate::domain::caller::Caller;

pub mod aksk;
mod canonical;
mod date;
mod entry;
pub mod file;
mod hex;
pub mod https;
pub mod iam;
pub mod jwt;
pub mod mtls;
pub mod policy;
mod seldom;
pub mod token;

/// Checks one kind of credential.
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync {
    /// The caller whose credential the request carries; none if it carries none of this kind.
    async fn authenticate(&self, request: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError>;

    /// Whether the headers carry a credential of this kind that signs the body, and nothing in them
    /// shows that it is bad, so that the body must be read before anything is known of the caller.
    fn signs_body(&self, headers: &HeaderMap) -> bool;
}

/// What of a request a credential may be in, or sign. All of it comes from the network.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// The HTTP method.
    pub method: &'a Method,
    /// The target as it was sent: a signature covers its raw path.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The whole body, where a credential [signs](Authenticator::signs_body) it. gRPC never has it.
    pub body: Option<&'a [u8]>,
    /// Who sent it.
    pub peer: &'a Peer,
}

/// The other end of a connection: what all its requests have in common.
#[derive(Debug)]
pub struct Peer {
    /// Where it connects from.
    pub origin: Origin,
    /// The certificate that it has proven to own.
    pub certificate: Option<Certificate>,
}

impl Peer {
    /// The other end of a Unix socket: a process of this user.
    pub const fn unix(user: u32) -> Self {
        Self {
            origin: Origin::Unix(user),
            certificate: None,
        }
    }
}

/// Authenticators in the order in which they are asked.
#[derive(Debug)]
pub struct Chain(Vec<Arc<dyn Authenticator>>);

impl Chain {
    /// Asks `authenticators` in this order.
    pub fn new(authenticators: Vec<Arc<dyn Authenticator>>) -> Self {
        Self(authenticators)
    }

    /// The caller, from the first authenticator that finds its kind of credential.
    pub async fn authenticate(&self, request: &Evidence<'_>) -> Result<Arc<Caller>, AuthError> {
        for authenticator in &self.0 {
            if let Some(caller) = authenticator.authenticate(request).await? {
                return Ok(caller);
            }
        }
        match token::find(request.headers)? {
            // It is of no kind that is accepted here, and yet no missing one.
            Some(_) => Err(AuthError::InvalidToken),
            None => Err(AuthError::Missing),
        }
    }

    /// Whether the body must be read before anything is known of the caller.
    pub fn signs_body(&self, headers: &HeaderMap) -> bool {
        self.0
            .iter()
            .any(|authenticator| authenticator.signs_body(headers))
    }
}

/// Why a request has no caller.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It carries no credential.
    #[error("no credential")]
    Missing,
    /// It carries a token that is not known.
    #[error("the token is not valid")]
    InvalidToken,
    /// It carries a token that was valid once.
    #[error("the token has expired")]
    ExpiredToken,
    /// It carries a signature that does not hold. The text says which part failed, and nothing of
    /// what was sent.
    #[error("{0}")]
    BadSignature(&'static str),
    /// What it takes to check its credential is not there yet.
    #[error("the credential cannot be checked now")]
    Unavailable,
    /// The IAM service that issued its token does not say what it is good for.
    #[error("the IAM service does not answer")]
    IamUnavailable,
    /// Its sender has sent too many credentials that are not good.
    #[error("too many credentials that are not good")]
    Throttled,
    /// Its certificate, or what a proxy says of one, does not hold. The text says why.
    #[error("{0}")]
    BadCertificate(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_read_first_if_any_kind_of_credential_signs_it() {
        let chain = |kinds: &[bool]| {
            let kinds = kinds.iter().map(|signs| Arc::new(Kind(*signs)) as _);
            Chain::new(kinds.collect())
        };
        for (kinds, signs) in [
            (&[][..], false),
            (&[false, false], false),
            (&[false, true], true),
            (&[true, false], true),
        ] {
            assert_eq!(
                chain(kinds).signs_body(&HeaderMap::new()),
                signs,
                "{kinds:?}"
            );
        }
    }

    /// A kind of credential that signs the body, or does not.
    #[derive(Debug)]
    struct Kind(bool);

    #[async_trait]
    impl Authenticator for Kind {
        async fn authenticate(&self, _: &Evidence<'_>) -> Result<Option<Arc<Caller>>, AuthError> {
            Ok(None)
        }

        fn signs_body(&self, _: &HeaderMap) -> bool {
            self.0
        }
    }
}
