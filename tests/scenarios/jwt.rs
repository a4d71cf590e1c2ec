//! Callers with a JSON Web Token.

use std::fs;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kmsgate::error::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::face::Face;
use crate::jws::{Signer, jwks};
use crate::schema::Call;
use crate::seeds::DOCUMENTED;
use crate::signature::{Layout, signed};
use crate::world::{ACCESS_KEY, GRPC_PROJECT, REST_PROJECT, Right, World, token};
use crate::{create, encrypt};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

#[tokio::test]
async fn a_service_account_is_let_in_by_its_projected_token() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    for face in [world.rest(), world.grpc()] {
        let token = issuer.token(&face.project, "billing");
        for face in [
            face.with_token(&token),
            face.with_nothing()
                .with_header("authorization", &format!("Bearer {token}")),
        ] {
            face.done(&encrypt(DOCUMENTED, "hello world")).await;
            face.refused(Kind::Denied, &create("x")).await;
            face.naming("another")
                .refused(Kind::ProjectMismatch, &encrypt(DOCUMENTED, "x"))
                .await;
        }
        // The other kinds are there as before.
        face.done(&encrypt(DOCUMENTED, "hello world")).await;
    }
}

#[tokio::test]
async fn the_audit_names_issuer_and_subject() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    let face = world.rest();
    let caller = face.with_token(&issuer.token(&face.project, "billing"));
    caller.refused(Kind::Denied, &create("x")).await;
    let lines = world.audited(&face).await;
    let name = format!(
        "jwt:{ISSUER}:system:serviceaccount:{}:billing",
        face.project
    );
    let told = lines.iter().any(|line| line["caller"] == *name);
    assert!(told, "{lines:?}");
}

#[tokio::test]
async fn a_token_that_does_not_hold_lets_nobody_in() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    for face in [world.rest(), world.grpc()] {
        let call = encrypt(DOCUMENTED, "x");
        let good = claims(&face.project, "billing");
        let refused = async |about: &str, token: &str, kind: Kind| {
            let refusal = face.with_token(token).refused(kind, &call).await;
            assert_eq!(refusal.message, kind.row().text, "{about}");
        };
        let changed = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            issuer.signer.sign(&claims)
        };
        let long_ago = changed("exp", json!(now() - 3600));
        refused("expired", &long_ago, Kind::ExpiredToken).await;
        for (about, token) in [
            ("another audience", changed("aud", json!(["vault"]))),
            (
                "another issuer",
                changed("iss", json!("https://issuer.example")),
            ),
            (
                "no rule",
                changed("sub", json!("system:serviceaccount:x:y")),
            ),
            ("not yet", changed("nbf", json!(now() + 3600))),
            ("a stranger's key", Signer::p256("k").sign(&good)),
            ("unsigned", format!("{}.e30.", encode(r#"{"alg":"none"}"#))),
            (
                "garbage",
                format!("{}.%%%.%%%", encode(r#"{"alg":"ES256"}"#)),
            ),
            ("a token in the file of tokens' style", "a.b.c".to_owned()),
        ] {
            refused(about, &token, Kind::InvalidToken).await;
        }
        let many = format!("{}.{}", encode(r#"{"alg":"ES256"}"#), "x.".repeat(10_000));
        refused("garbage", &many, Kind::InvalidToken).await;
    }
}

#[tokio::test]
async fn a_request_has_one_credential_whatever_its_kind() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    for face in [world.rest(), world.grpc()] {
        let call = encrypt(DOCUMENTED, "x");
        let jwt = issuer.token(&face.project, "billing");
        let known = token(&face.project, Right::Everything);
        for (one, other) in [(&jwt, &known), (&known, &jwt), (&jwt, &jwt)] {
            let both = face.with_token(one);
            let both = both.with_header("authorization", &format!("Bearer {other}"));
            both.refused(Kind::InvalidToken, &call).await;
        }
    }
    let rest = world.rest();
    let call = encrypt(DOCUMENTED, "x");
    let (path, body) = (rest.path(call.operation), call.to_json());
    let (_, secret_key) = ACCESS_KEY;
    let signer = signed(&rest, Layout::A, secret_key, &path, &body);
    let jwt = issuer.token(&rest.project, "billing");
    let both = signer.with_header("x-auth-token", &jwt);
    let answer = both.send(call.operation, body).await;
    answer.is(Kind::InvalidToken, "a signature and a token");
}

#[tokio::test]
async fn a_token_of_32_kibibytes_passes() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    for face in [world.rest(), world.grpc()] {
        let mut claims = claims(&face.project, "billing");
        claims["padding"] = json!("x".repeat(24_000));
        let token = issuer.signer.sign(&claims);
        assert!((32_000..32_768).contains(&token.len()), "{}", token.len());
        let long = face.with_token(&token);
        long.done(&encrypt(DOCUMENTED, "x")).await;
        claims["padding"] = json!("x".repeat(25_000));
        let longer = face.with_token(&issuer.signer.sign(&claims));
        longer
            .refused(Kind::InvalidToken, &encrypt(DOCUMENTED, "x"))
            .await;
    }
}

#[tokio::test]
async fn a_key_that_is_taken_back_lets_nobody_in_any_more() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    let face: Face = world.rest();
    let caller = face.with_token(&issuer.token(&face.project, "billing"));
    let call = Call::new("list-keys");
    caller.done(&call).await;
    issuer.publish(r#"{"keys":[]}"#);
    let refused = async {
        while caller.call(&call).await.outcome.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), refused).await;
    waited.expect("the file is read again");
    caller.refused(Kind::InvalidToken, &call).await;
}

#[tokio::test]
async fn the_keys_of_an_issuer_come_from_its_address() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let published = jwks(&[&issuer.signer]);
    let answer = move || std::future::ready(published.clone());
    let router = Router::new().route("/openid/v1/jwks", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let url = format!("http://{at}/openid/v1/jwks");
    let world = World::with(&Issuer::settings(&format!("jwks_url = {url:?}"))).await;
    for face in [world.rest(), world.grpc()] {
        let token = issuer.token(&face.project, "billing");
        // The first caller waits for the keys, if they are not there yet.
        let face = face.with_token(&token);
        face.done(&encrypt(DOCUMENTED, "hello world")).await;
    }
}

#[tokio::test]
async fn while_the_keys_of_an_issuer_are_not_there_its_callers_may_come_again() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", closed.local_addr().unwrap());
    drop(closed);
    let issuer = Issuer::new();
    let world = World::with(&Issuer::settings(&format!("jwks_url = {url:?}"))).await;
    for face in [world.rest(), world.grpc()] {
        let call = encrypt(DOCUMENTED, "x");
        let caller = face.with_token(&issuer.token(&face.project, "billing"));
        let refusal = caller.refused(Kind::Unavailable, &call).await;
        assert_eq!(refusal.message, Kind::Unavailable.row().text);
        face.done(&call).await;
    }
}

/// A cluster, and the file with its key.
pub(crate) struct Issuer {
    dir: TempDir,
    pub(crate) signer: Signer,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let signer = Signer::p256("k");
        let issuer = Self { dir, signer };
        issuer.publish(&jwks(&[&issuer.signer]));
        issuer
    }

    fn publish(&self, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join("jwks.json")).unwrap();
    }

    /// A server that lets the accounts `billing` of two namespaces into the projects of their names.
    pub(crate) async fn world(&self) -> World {
        let path = self.dir.path().join("jwks.json");
        World::with(&Self::settings(&format!("jwks_file = {path:?}"))).await
    }

    /// What the server is told of the cluster, whose keys are where `keys` says.
    fn settings(keys: &str) -> String {
        let mut lines =
            format!("[[auth.jwt]]\nissuer = {ISSUER:?}\n{keys}\naudiences = [\"kms\"]\n");
        for project in [REST_PROJECT, GRPC_PROJECT] {
            lines += &format!(
                "[[auth.jwt.rules]]\n\
                 claims = {{ sub = \"system:serviceaccount:{project}:billing\" }}\n\
                 project = {project:?}\n\
                 actions = [\"kms:cmk:encryptData\", \"kms:cmk:list\"]\n"
            );
        }
        lines
    }

    /// A token of an account.
    fn token(&self, namespace: &str, account: &str) -> String {
        self.signer.sign(&claims(namespace, account))
    }
}

pub(crate) fn claims(namespace: &str, account: &str) -> Value {
    json!({
        "aud": ["kms"],
        "exp": now() + 3600,
        "iat": now(),
        "iss": ISSUER,
        "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": account } },
        "nbf": now(),
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
    })
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

pub(crate) fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}
