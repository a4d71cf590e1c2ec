//! encrypt-data and decrypt-data without the router.
//!
//! Nearly all requests are one of these two, with a path as plain as the documented one, and so
//! short that the router's boxes and its map of parameters count. What is not exactly one of them
//! goes to the [router](crate::gateway::router()), which alone judges paths and HTTP methods. Both
//! make the same call of the same service.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};

use crate::error::Kind;
use crate::gateway::{MAX_BODY, answer, call, refusal};
use crate::grpc::pb::crypto_service_server::CryptoService;

/// Answers encrypt-data and decrypt-data.
#[derive(Clone)]
pub struct Direct(Arc<dyn CryptoService>);

impl Direct {
    /// Answers with `crypto`.
    pub fn new(crypto: Arc<dyn CryptoService>) -> Self {
        Self(crypto)
    }

    /// Answers a request that is plain.
    pub async fn answer(&self, plain: Plain, parts: Parts, body: Bytes) -> Response<Body> {
        if body.len() > MAX_BODY {
            return refusal::told(&Kind::MessageTooLong.into());
        }
        let Plain {
            project_id,
            operation,
        } = plain;
        match operation {
            Operation::Encrypt => match call(project_id, parts, &body) {
                Ok(request) => answer(self.0.encrypt_data(request).await),
                Err(error) => refusal::told(&error),
            },
            Operation::Decrypt => match call(project_id, parts, &body) {
                Ok(request) => answer(self.0.decrypt_data(request).await),
                Err(error) => refusal::told(&error),
            },
        }
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Direct")
    }
}

/// What the path of a request says that needs no router.
#[derive(Debug)]
pub struct Plain {
    project_id: String,
    operation: Operation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Encrypt,
    Decrypt,
}

impl Plain {
    /// Reads the path of a request, if it needs no router. A `%` may stand for anything.
    pub fn of(parts: &Parts) -> Option<Self> {
        if parts.method != Method::POST {
            return None;
        }
        let path = parts.uri.path();
        let (operation, project_id) = match project(path, "encrypt-data") {
            Some(project_id) => (Operation::Encrypt, project_id),
            None => (Operation::Decrypt, project(path, "decrypt-data")?),
        };
        (!project_id.as_bytes().contains(&b'%')).then(|| Self {
            project_id: project_id.to_owned(),
            operation,
        })
    }
}

/// The project id, as it is written, in a path that names this operation; none if it names another.
pub fn project<'a>(path: &'a str, operation: &str) -> Option<&'a str> {
    // Every request passes here, most of them with a path that is right, so it is compared and not searched.
    let path = path.strip_suffix(operation)?.strip_suffix("/kms/")?;
    let project_id = path.strip_prefix("/v1.0/")?;
    (!project_id.is_empty() && !project_id.as_bytes().contains(&b'/')).then_some(project_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_operations_with_a_plain_path_need_no_router() {
        for (path, operation) in [
            ("/v1.0/p1/kms/encrypt-data", Operation::Encrypt),
            ("/v1.0/p1/kms/decrypt-data", Operation::Decrypt),
            ("/v1.0/p1/kms/decrypt-data?a=/kms/b", Operation::Decrypt),
        ] {
            let plain = Plain::of(&parts("POST", path)).unwrap();
            assert_eq!((&*plain.project_id, plain.operation), ("p1", operation));
        }
    }

    #[test]
    fn everything_else_is_for_the_router() {
        for path in [
            "/v1.0//kms/encrypt-data",
            "/v1.0/kms/encrypt-data",
            "/v1.0/p%31/kms/encrypt-data",
            "/v1.0/p1/x/kms/encrypt-data",
            "/v1.0/p1/kms/kms/encrypt-data",
            "/v1.0/p1/kms/encrypt-data/",
            "/v1.0/p1/kms/encrypt%2ddata",
            "/v1.0/p1/kms/Encrypt-data",
            "/v1.0/p1//kms/encrypt-data",
            "/v1/p1/kms/encrypt-data",
            "/v1.0/p1/kms/create-key",
            "/v1.0/p1/kms/",
            "//v1.0/p1/kms/encrypt-data",
            "/",
            "*",
        ] {
            assert!(Plain::of(&parts("POST", path)).is_none(), "{path}");
        }
        for method in ["GET", "PUT", "OPTIONS", "post"] {
            let parts = parts(method, "/v1.0/p1/kms/encrypt-data");
            assert!(Plain::of(&parts).is_none(), "{method}");
        }
    }

    fn parts(method: &str, path: &str) -> Parts {
        let request = http::Request::builder().method(method).uri(path);
        request.body(()).unwrap().into_parts().0
    }
}
