//! JSON Web Tokens, and the keys that verify them. Nobody is let in but with the claims that the one
//! key signed; what begins as a token is never left to another kind of credential; and a set of keys
//! that loads is JSON with a list of keys.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, Method, Uri};
use kmsgate::auth::file::{Secrecy, Watched};
use kmsgate::auth::jwt::{Claim, Issuer, Jwt, KeySet, Keys, Rule};
use kmsgate::auth::{Authenticator, Evidence, Peer};
use kmsgate::domain::caller::Actions;
use kmsgate::domain::jwt::Algorithm;
use kmsgate_fuzz::{PROJECT, Scratch, Still, byte, now, part};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"JyS04xCV3s1xV66oqYV20dMlylihTfURhcCo136Szdk","y":"hZirD_yEpNtnDN9nki_Q9Jb0z5XOJNowH9iz0Y5NzqQ"}]}"#;

/// What the key signed, and its signature.
const SIGNED: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJpIiwiYXVkIjoia21zIiwic3ViIjoicyIsImV4cCI6NDEwMjQ0NDgwMH0";
const SIGNATURE: &str =
    "4bev5d9RiH9zloi0nF61hszVfAYU8L1paK5eAp-8pnjBdwhPJquBTNWhKrfYYtV93UAHQnDY4jhznQUCGFK_wQ";

static FILE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

static JWT: LazyLock<Jwt> = LazyLock::new(|| {
    let jwt = tokens(KEYS).unwrap();
    let good = ask(&jwt, format!("{SIGNED}.{SIGNATURE}").as_bytes());
    assert_eq!(good, Some(Some(())));
    jwt
});

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    match byte(&mut rest) {
        b'k' => keys(rest),
        b'p' => parts(part(&mut rest), rest),
        _ => token(rest),
    }
});

/// A token of the input's bytes.
fn token(token: &[u8]) {
    let header = token.split(|byte| *byte == b'.').next().unwrap_or_default();
    let header = BASE64_URL_SAFE_NO_PAD.decode(header).unwrap_or_default();
    let header: Option<Value> = serde_json::from_slice(&header).ok();
    let begins = header.is_some_and(|header| header.get("alg").is_some()) && token.contains(&b'.');
    match ask(&JWT, token) {
        Some(Some(())) => assert!(token.starts_with(format!("{SIGNED}.").as_bytes())),
        Some(None) => assert!(!begins && !token.is_empty()),
        None => {}
    }
}

/// A token of a header and claims, whose signature is another's.
fn parts(header: &[u8], claims: &[u8]) {
    let encode = |text| BASE64_URL_SAFE_NO_PAD.encode(text);
    let text = format!("{}.{}.{SIGNATURE}", encode(header), encode(claims));
    token(text.as_bytes());
}

/// A set of keys.
fn keys(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if KeySet::parse(text).is_err() {
        return;
    }
    let set: Value = serde_json::from_str(text).unwrap();
    assert!(set["keys"].as_array().unwrap().len() <= 100);
    // Whatever keys they are, they did not sign this, unless they are the key.
    let jwt = tokens(text).unwrap();
    if ask(&jwt, format!("{SIGNED}.{SIGNATURE}").as_bytes()) == Some(Some(())) {
        let known: Value = serde_json::from_str(KEYS).unwrap();
        let known = &known["keys"][0]["x"];
        let listed = set["keys"].as_array().unwrap();
        assert!(listed.iter().any(|key| key["x"] == *known));
    }
}

fn tokens(keys: &str) -> Option<Jwt> {
    FILE.write(keys.as_bytes());
    let keys = Watched::load(FILE.path(), Secrecy::Public, KeySet::parse).ok()?;
    let issuer = Issuer {
        name: "i".to_owned(),
        keys: Keys::File(Arc::new(keys)),
        audiences: vec!["kms".to_owned()],
        algorithms: Algorithm::ALL.to_vec(),
        clock_skew: Duration::from_secs(30),
        rules: vec![Rule {
            claims: vec![Claim {
                path: "/sub".to_owned(),
                text: "*".to_owned(),
            }],
            project: PROJECT.parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::ALL,
        }],
    };
    Some(Jwt::new(vec![issuer], Arc::new(Still)))
}

/// Whether the token is let in; none if it is refused.
fn ask(jwt: &Jwt, token: &[u8]) -> Option<Option<()>> {
    let mut headers = HeaderMap::new();
    headers.insert("x-auth-token", HeaderValue::from_bytes(token).ok()?);
    let evidence = Evidence {
        method: &Method::POST,
        uri: &Uri::from_static("/"),
        headers: &headers,
        body: None,
        peer: &Peer::unix(0),
    };
    let answer = now(jwt.authenticate(&evidence));
    answer.ok().map(|caller| caller.map(|_| ()))
}
