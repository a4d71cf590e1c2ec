//! JSON Web Tokens, from the header to the caller: who is let in, and the ways in that are known to
//! have been forgotten by others.

mod jws;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Method, Uri};
use kmsgate::auth::file::{Refresh, Secrecy, Watched};
use kmsgate::auth::https::Endpoint;
use kmsgate::auth::jwt::{Claim, Fetched, Issuer, Jwt, KeySet, Keys, Rule};
use kmsgate::auth::token::{Entry, Tokens};
use kmsgate::auth::{AuthError, Authenticator, Chain, Evidence, Peer};
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::jwt::Algorithm;
use kmsgate::domain::time::{Clock, Timestamp};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::jws::{Signer, jwks};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const OTHER: &str = "https://other.example";
const SUBJECT: &str = "system:serviceaccount:shop:billing";

/// 2026-11-23T06:53:28Z.
const NOW: i64 = 1_795_416_808;

/// How far the issuers' clocks may be off, in seconds.
const SKEW: i64 = 30;

#[tokio::test]
async fn a_token_is_for_us_if_one_of_its_audiences_is() {
    let world = World::new();
    for audience in [
        json!("kms"),
        json!("https://kms.example"),
        json!(["vault", "kms"]),
        json!([7, "kms"]),
    ] {
        let mut claims = claims();
        claims["aud"] = audience.clone();
        let token = world.p256.sign(&claims);
        let caller = world.ask("x-auth-token", &token).await.unwrap();
        assert!(caller.is_some(), "{audience}");
    }
}

#[tokio::test]
async fn a_token_of_every_algorithm_lets_its_subject_in() {
    let world = World::new();
    for &algorithm in Algorithm::ALL {
        let token = world.signer(algorithm).sign_by(algorithm.name(), &claims());
        for (name, value) in [
            ("x-auth-token", token.clone()),
            ("authorization", format!("bearer {token}")),
        ] {
            let caller = world.ask(name, &value).await.unwrap().unwrap();
            assert_eq!(&*caller.name, format!("jwt:{ISSUER}:{SUBJECT}"));
            assert_eq!(caller.project.as_str(), "shop");
            assert!(caller.actions.contains(Action::EncryptData));
            assert!(!caller.actions.contains(Action::CreateKey));
        }
    }
}

#[tokio::test]
async fn a_token_is_signed_by_an_algorithm_of_its_issuer() {
    let world = World::new();
    for &algorithm in Algorithm::ALL {
        let mut claims = claims();
        claims["iss"] = json!(OTHER);
        claims["sub"] = json!("robot");
        let signer = world.signer(algorithm);
        let token = signer.sign_by(algorithm.name(), &claims);
        let answer = world.present(&token).await;
        // Of the other issuer, who has the same keys.
        assert_eq!(
            answer.is_ok(),
            algorithm == Algorithm::Es256,
            "{algorithm:?}"
        );
    }
}

#[tokio::test]
async fn a_forged_token_is_refused() {
    let world = World::new();
    let forged = forgeries(&world);
    assert!(forged.len() > 100, "{}", forged.len());
    for (about, token) in &forged {
        let answer = world.present(token).await;
        let refused = matches!(answer, Err(AuthError::InvalidToken));
        assert!(refused, "{about}: {token}: {answer:?}");
    }
}

/// Tokens that nobody may be let in with, and why.
fn forgeries(world: &World) -> Vec<(&'static str, String)> {
    let (rsa, p256, p384, ed) = (&world.rsa, &world.p256, &world.p384, &world.ed);
    let stranger = Signer::p256("p256");
    let good = p256.sign(&claims());
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = *parts else {
        panic!("{good}")
    };
    let mut forged = vec![
        ("another key with the same id", stranger.sign(&claims())),
        ("no signature", format!("{header}.{payload}.")),
        ("no last part", format!("{header}.{payload}")),
        ("no claims", format!("{header}..{signature}")),
        ("the header alone", format!("{header}.")),
        ("a part more", format!("{good}.")),
        ("five parts", format!("{good}.{payload}.{signature}")),
        ("a truncated signature", good[..good.len() - 2].to_owned()),
        ("a padded signature", format!("{good}==")),
        (
            "a padded header",
            format!("{header}=.{payload}.{signature}"),
        ),
        ("a space inside", format!("{header}. {payload}.{signature}")),
        ("a line break inside", good.replace('.', ".\t")),
        (
            "ES256 of zeros",
            format!("{header}.{payload}.{}", encode(&[0; 64])),
        ),
        (
            "ES256 in DER",
            format!("{header}.{payload}.{}", encode(&der(&decode(signature)))),
        ),
    ];

    // The signature of one token under the claims of another.
    let mut others = claims();
    others["sub"] = json!("system:serviceaccount:shop:admin");
    let swapped = encode(others.to_string().as_bytes());
    forged.push(("other claims", format!("{header}.{swapped}.{signature}")));
    let other_header = encode(br#"{"alg":"ES256","kid":"p256"}"#);
    forged.push((
        "another header",
        format!("{other_header}.{payload}.{signature}"),
    ));

    // Algorithms that are none, and public keys taken for secrets.
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = encode(json!({ "alg": none }).to_string().as_bytes());
        forged.push(("alg none", format!("{header}.{payload}.")));
        forged.push((
            "alg none with a signature",
            format!("{header}.{payload}.{signature}"),
        ));
    }
    let pem = format!(
        "-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n",
        STANDARD.encode(rsa.rsa_der())
    );
    let (modulus, _) = rsa.rsa_numbers();
    for secret in [
        pem.into_bytes(),
        rsa.rsa_der(),
        modulus.clone(),
        encode(&modulus).into_bytes(),
        rsa.jwk().to_string().into_bytes(),
        Vec::new(),
    ] {
        for header in [
            json!({ "alg": "HS256", "kid": "rsa" }),
            json!({ "alg": "RS256", "kid": "rsa" }),
        ] {
            let signed = format!("{}.{payload}", encode(header.to_string().as_bytes()));
            let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
            mac.update(signed.as_bytes());
            let mac = encode(&mac.finalize().into_bytes());
            forged.push((
                "a public key as an HMAC's secret",
                format!("{signed}.{mac}"),
            ));
        }
    }

    // A key of one type under the name of another, and a key's name under another key.
    for (about, signer, algorithm, kid) in [
        ("an RSA signature as PSS", rsa, "RS256", "rsa"),
        ("an EC key for RSA", p256, "RS256", "p256"),
        ("an RSA key for EC", rsa, "ES256", "rsa"),
        ("P-384 as ES256", p384, "ES256", "p384"),
        ("P-256 as ES384", p256, "ES384", "p256"),
        ("Ed25519 as ES256", ed, "ES256", "ed"),
        ("a kid that is not there", p256, "ES256", "p257"),
        ("an empty kid", p256, "ES256", ""),
        ("a kid of another issuer", &world.others, "ES256", "other"),
        ("a kid that is a path", p256, "ES256", "../../etc/passwd"),
        ("a kid that is a file", p256, "ES256", "/proc/self/environ"),
        ("a kid that is SQL", p256, "ES256", "' OR '1'='1"),
    ] {
        let named = if about.ends_with("PSS") {
            "PS256"
        } else {
            algorithm
        };
        let header = json!({ "alg": named, "kid": kid });
        let token = signer.sign_texts(&header.to_string(), &claims().to_string(), algorithm);
        forged.push((about, token));
    }
    // Without a kid the only key that fits is meant, and here none does.
    forged.push(("no kid, and no key of the type", {
        let header = json!({ "alg": "ES512" });
        stranger.sign_texts(&header.to_string(), &claims().to_string(), "ES512")
    }));

    // Keys that the token brings along.
    let address = "https://attacker.example/jwks";
    for more in [
        json!({ "jwk": stranger.jwk() }),
        json!({ "jku": address }),
        json!({ "x5u": address }),
        json!({ "x5c": [STANDARD.encode(b"certificate")] }),
        json!({ "x5t": "AA", "x5t#S256": "AA" }),
    ] {
        let mut header = json!({ "alg": "ES256" });
        header
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        forged.push(("a key of its own", stranger.sign_with(&header, &claims())));
        header["kid"] = json!("p256");
        forged.push(("a key of its own", stranger.sign_with(&header, &claims())));
    }

    // Headers that ask for what is not there, signed by the right key.
    for more in [
        r#","crit":["exp"],"exp":1"#,
        r#","crit":["b64"],"b64":false"#,
        r#","cty":"JWT""#,
        r#","enc":"A256GCM""#,
        r#","typ":"logout+jwt""#,
        r#","alg":"none""#,
        r#","kid":"p256""#,
        r#","x":{"y":1,"y":2}"#,
    ] {
        let header = format!(r#"{{"alg":"ES256","kid":"p256"{more}}}"#);
        forged.push((
            "a header",
            p256.sign_texts(&header, &claims().to_string(), "ES256"),
        ));
    }

    // Claims, signed by the right key.
    let changed = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        p256.sign(&claims)
    };
    for (name, value) in [
        (
            "iss",
            json!("https://kubernetes.default.svc.cluster.local/"),
        ),
        ("iss", json!("https://KUBERNETES.default.svc.cluster.local")),
        ("iss", json!("https://attacker.example")),
        ("iss", json!(OTHER)),
        ("iss", json!([ISSUER])),
        ("iss", json!("")),
        ("aud", json!("other")),
        ("aud", json!(["other", "km", "kms2"])),
        ("aud", json!([])),
        ("aud", json!("")),
        ("aud", json!({ "kms": "kms" })),
        ("aud", json!([["kms"]])),
        ("exp", json!((NOW + 600).to_string())),
        ("exp", json!(null)),
        ("exp", json!([NOW + 600])),
        ("nbf", json!(NOW + SKEW + 1)),
        ("nbf", json!("now")),
        ("iat", json!(NOW + SKEW + 1)),
        ("iat", json!(true)),
        ("sub", json!("system:serviceaccount:shop:other")),
        ("sub", json!("system:serviceaccount:shop:billing2")),
        ("sub", json!("system:serviceaccount:shop:billin\u{261}")),
        ("sub", json!("system:serviceaccount:shop:b\u{456}lling")),
        ("sub", json!(format!("{SUBJECT}\n"))),
        ("sub", json!("team:\u{202e}x")),
        ("sub", json!(format!("team:{}", "x".repeat(251)))),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("sub", json!([SUBJECT])),
    ] {
        forged.push(("claims", changed(name, value)));
    }
    for missing in ["iss", "aud", "exp", "sub"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(missing).unwrap();
        forged.push(("a claim is missing", p256.sign(&claims)));
    }
    for text in [
        claims().to_string().replacen('{', r#"{"sub":"team:a","#, 1),
        claims()
            .to_string()
            .replacen('{', r#"{"exp":9999999999,"#, 1),
        format!("[{}]", claims()),
        format!("{} ", &claims().to_string()[1..]),
        String::new(),
    ] {
        let header = r#"{"alg":"ES256","kid":"p256"}"#;
        forged.push(("claims", p256.sign_texts(header, &text, "ES256")));
    }
    // A token in a token.
    let header = r#"{"alg":"ES256","kid":"p256"}"#;
    forged.push(("nested", p256.sign_texts(header, &good, "ES256")));
    forged
}

#[tokio::test]
async fn a_token_is_good_from_its_beginning_to_its_end_and_a_little_beyond() {
    let world = World::new();
    let at = async |now: i64, claims: &Value| {
        world.clock.set(now);
        world.present(&world.p256.sign(claims)).await
    };
    let mut times = claims();
    times["exp"] = json!(NOW);
    assert!(at(NOW + SKEW - 1, &times).await.is_ok());
    for late in [NOW + SKEW, NOW + SKEW + 1, NOW + 1_000_000_000] {
        let answer = at(late, &times).await;
        assert!(matches!(answer, Err(AuthError::ExpiredToken)), "{late}");
    }
    times["exp"] = json!(NOW + 600);
    for name in ["nbf", "iat"] {
        times[name] = json!(NOW);
        assert!(at(NOW - SKEW, &times).await.is_ok(), "{name}");
        let answer = at(NOW - SKEW - 1, &times).await;
        assert!(matches!(answer, Err(AuthError::InvalidToken)), "{name}");
        times.as_object_mut().unwrap().remove(name);
    }
    times["exp"] = json!(NOW as f64 + 0.5);
    assert!(at(NOW + SKEW, &times).await.is_ok());
}

#[tokio::test]
async fn only_who_had_a_good_token_is_told_that_it_expired() {
    let world = World::new();
    let mut old = claims();
    old["exp"] = json!(NOW - SKEW);
    let answer = world.present(&world.p256.sign(&old)).await;
    assert!(matches!(answer, Err(AuthError::ExpiredToken)));
    let forged = Signer::p256("p256").sign(&old);
    for (name, value) in [("aud", json!("other")), ("sub", json!("nobody"))] {
        let mut old = old.clone();
        old[name] = value;
        let answer = world.present(&world.p256.sign(&old)).await;
        assert!(matches!(answer, Err(AuthError::InvalidToken)), "{name}");
    }
    let answer = world.present(&forged).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)));
}

#[tokio::test]
async fn the_first_rule_that_fits_decides() {
    let world = World::new();
    for (subject, namespace, project) in [
        ("system:serviceaccount:shop:billing", "shop", "shop"),
        ("system:serviceaccount:lab:probe", "lab", "lab"),
        ("system:serviceaccount:shop:probe", "lab", "lab"),
        ("team:red", "shop", "teams"),
    ] {
        let mut claims = claims();
        claims["sub"] = json!(subject);
        claims["kubernetes.io"]["namespace"] = json!(namespace);
        let caller = world.present(&world.p256.sign(&claims)).await;
        assert_eq!(
            caller.unwrap().unwrap().project.as_str(),
            project,
            "{subject}"
        );
    }
}

#[tokio::test]
async fn without_a_kid_the_only_key_that_fits_is_meant() {
    let world = World::new();
    let token = world.p256.sign_with(&json!({ "alg": "ES256" }), &claims());
    assert!(world.present(&token).await.is_ok());
    let twice = jwks(&[&world.p256, &Signer::p256("second")]);
    world.replace_keys(&twice);
    let answer = world.present(&token).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)));
}

#[tokio::test]
async fn what_is_no_json_web_token_is_left_to_the_next_kind() {
    let world = World::new();
    for other in [
        "x",
        "a.b.c",
        "eyJ.eyJ.x",
        "e30.e30.x",
        "MIIabc-def",
        "..",
        &"x".repeat(32 * 1024),
    ] {
        let answer = world.present(other).await;
        assert!(matches!(answer, Ok(None)), "{other}: {answer:?}");
    }
    let answer = world.ask("authorization", "Basic dDp0").await;
    assert!(matches!(answer, Ok(None)), "{answer:?}");
    assert!(!world.jwt.signs_body(&HeaderMap::new()));
}

#[tokio::test]
async fn what_is_a_json_web_token_is_nothing_else() {
    let world = World::new();
    let unsigned = format!("{}.e30.", encode(br#"{"alg":"none"}"#));
    let odd = format!("{}=.x", encode(br#"{"alg":1}"#));
    let path = world.dir.path().join("tokens.toml");
    let entry = |name, token: &str| {
        let entry = Entry {
            name,
            project: "shop",
            expires: None,
            actions: &["kms:*"],
        };
        entry.render(token.as_bytes()).unwrap()
    };
    let text = entry("a", &unsigned) + &entry("b", &odd) + &entry("c", "plain");
    fs::write(&path, text).unwrap();
    let tokens = Arc::new(Tokens::load(&path, world.clock.clone()).unwrap());
    let chain = Chain::new(vec![Arc::clone(&world.jwt) as _, tokens]);
    let ask = async |token: &str| {
        let headers = headers("x-auth-token", token);
        chain.authenticate(&evidence(&headers)).await
    };
    // Though the file has both.
    for token in [&unsigned, &odd] {
        assert!(matches!(ask(token).await, Err(AuthError::InvalidToken)));
    }
    assert_eq!(&*ask("plain").await.unwrap().name, "c");
    let token = world.p256.sign(&claims());
    assert!(ask(&token).await.unwrap().name.starts_with("jwt:"));
}

#[tokio::test]
async fn a_token_of_no_kind_is_a_bad_one_and_not_a_missing_one() {
    let world = World::new();
    let chain = Chain::new(vec![Arc::clone(&world.jwt) as _]);
    for (name, value) in [("x-auth-token", "x"), ("authorization", "Bearer x")] {
        let headers = headers(name, value);
        let answer = chain.authenticate(&evidence(&headers)).await;
        assert!(matches!(answer, Err(AuthError::InvalidToken)), "{name}");
    }
    let headers = headers("authorization", "Basic dDp0");
    let answer = chain.authenticate(&evidence(&headers)).await;
    assert!(matches!(answer, Err(AuthError::Missing)));
}

#[tokio::test]
async fn a_request_carries_one_credential() {
    let world = World::new();
    let token = world.p256.sign(&claims());
    for other in ["Bearer x", "Basic dDp0", &format!("Bearer {token}")] {
        let mut both = headers("x-auth-token", &token);
        both.append("authorization", other.parse().unwrap());
        let answer = world.jwt.authenticate(&evidence(&both)).await;
        assert!(matches!(answer, Err(AuthError::InvalidToken)), "{other}");
    }
    let mut twice = headers("x-auth-token", &token);
    twice.append("x-auth-token", token.parse().unwrap());
    let answer = world.jwt.authenticate(&evidence(&twice)).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)));
}

#[tokio::test]
async fn a_token_has_at_most_32_kibibytes() {
    let world = World::new();
    let of_size = |size: usize| {
        let mut claims = claims();
        let mut token = world.p256.sign(&claims);
        // Three bytes of a claim are four of the token.
        let more = (size - token.len()) * 3 / 4;
        for padding in more - 20..=more {
            claims["padding"] = json!("x".repeat(padding));
            token = world.p256.sign(&claims);
            if token.len() >= size {
                break;
            }
        }
        token
    };
    let longest = of_size(32 * 1024 - 2);
    assert!(
        (32 * 1024 - 4..=32 * 1024).contains(&longest.len()),
        "{}",
        longest.len()
    );
    assert!(world.present(&longest).await.unwrap().is_some());
    let longer = of_size(32 * 1024 + 1);
    let answer = world.present(&longer).await;
    assert!(
        matches!(answer, Err(AuthError::InvalidToken)),
        "{}",
        longer.len()
    );
}

#[tokio::test]
async fn a_remembered_token_is_no_longer_good_than_any_other() {
    let world = World::new();
    let mut claims = claims();
    claims["exp"] = json!(NOW + 20);
    let token = world.p256.sign(&claims);
    let first = world.present(&token).await.unwrap().unwrap();
    let again = world.present(&token).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &again), "it is remembered");
    world.clock.set(NOW + 20 + SKEW - 1);
    assert!(world.present(&token).await.is_ok());
    world.clock.set(NOW + 20 + SKEW);
    let answer = world.present(&token).await;
    assert!(matches!(answer, Err(AuthError::ExpiredToken)));

    // And it is looked at anew after a minute, and when the clock was set back.
    claims["exp"] = json!(NOW + 6000);
    claims["nbf"] = json!(NOW);
    let token = world.p256.sign(&claims);
    world.clock.set(NOW);
    let first = world.present(&token).await.unwrap().unwrap();
    world.clock.set(NOW + 59);
    let again = world.present(&token).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    world.clock.set(NOW + 60);
    let again = world.present(&token).await.unwrap().unwrap();
    assert!(!Arc::ptr_eq(&first, &again));
    world.clock.set(NOW - 60);
    let answer = world.present(&token).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)));
}

#[tokio::test]
async fn a_key_that_is_taken_out_of_the_file_stops_working_with_its_next_reading() {
    let world = World::new();
    let token = world.p256.sign(&claims());
    let rsa = world.rsa.sign(&claims());
    assert!(world.present(&token).await.is_ok());
    world.replace_keys(&jwks(&[&world.rsa]));
    let answer = world.present(&token).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)));
    assert!(world.present(&rsa).await.is_ok());
    world.replace_keys(r#"{"keys":[]}"#);
    let answer = world.present(&rsa).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)));
    world.replace_keys(&jwks(&[&world.rsa, &world.p256]));
    assert!(world.present(&token).await.is_ok());
}

#[tokio::test]
async fn a_key_that_is_new_at_the_address_is_fetched_when_a_token_names_it() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let address = Address::serve(&jwks(&[&old])).await;
    let clock = TestClock::at(NOW);
    let (jwt, keys) = address.follow(&clock);
    assert!(present(&jwt, &old.sign(&claims())).await.is_ok());
    assert_eq!(address.asked(), 1);

    // Only now does the issuer begin to sign with the new key; many come with it at a time.
    address.publish(&jwks(&[&old, &new]));
    clock.set(NOW + 10);
    let token = new.sign(&claims());
    let together = (0..20).map(|_| {
        let (jwt, token) = (Arc::clone(&jwt), token.clone());
        tokio::spawn(async move { present(&jwt, &token).await.is_ok() })
    });
    for one in together.collect::<Vec<_>>() {
        assert!(one.await.unwrap());
    }
    assert_eq!(address.asked(), 2, "all of them share one fetch");

    // A key that nobody has is asked for once in ten seconds.
    let unknown = Signer::p256("unknown").sign(&claims());
    for (later, asked) in [(0, 2), (9, 2), (10, 3), (10, 3), (19, 3), (20, 4), (-5, 5)] {
        clock.set(NOW + 10 + later);
        let answer = present(&jwt, &unknown).await;
        assert!(matches!(answer, Err(AuthError::InvalidToken)), "{answer:?}");
        assert_eq!(address.asked(), asked, "{later} seconds later");
    }

    // A key that is withdrawn works until the keys are fetched anew.
    address.publish(&jwks(&[&new]));
    let withdrawn = old.sign(&claims());
    assert!(present(&jwt, &withdrawn).await.is_ok());
    clock.set(NOW + 100);
    assert!(present(&jwt, &unknown).await.is_err());
    let answer = present(&jwt, &withdrawn).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)), "{answer:?}");
    assert!(present(&jwt, &token).await.is_ok());
    assert_eq!(keys.failed(), 0);
}

#[tokio::test]
async fn keys_stay_while_the_address_does_not_answer() {
    let signer = Signer::p256("k");
    let address = Address::serve(&jwks(&[&signer])).await;
    let clock = TestClock::at(NOW);
    let (jwt, keys) = address.follow(&clock);
    let token = signer.sign(&claims());
    assert!(present(&jwt, &token).await.is_ok());
    assert_eq!(keys.age(), Duration::ZERO);

    let unknown = Signer::p256("unknown").sign(&claims());
    let bad = [
        None,
        Some("no JSON".to_owned()),
        Some("x".repeat(1024 * 1024 + 1)),
        Some(r#"{"keys":[{"kty":"oct"}]}"#.to_owned()),
    ];
    for (failed, bad) in (1..).zip(bad) {
        address.answer(bad);
        clock.set(NOW + failed * 10);
        let answer = present(&jwt, &unknown).await;
        assert!(matches!(answer, Err(AuthError::InvalidToken)), "{answer:?}");
        assert_eq!(keys.failed(), failed.unsigned_abs());
        assert!(present(&jwt, &signer.sign(&claims())).await.is_ok());
        assert_eq!(keys.age(), Duration::from_secs(failed.unsigned_abs() * 10));
    }
    address.publish(&jwks(&[&signer]));
    clock.set(NOW + 100);
    assert!(present(&jwt, &unknown).await.is_err());
    assert_eq!((keys.failed(), keys.age()), (4, Duration::ZERO));
}

#[tokio::test]
async fn before_the_first_keys_a_token_can_be_tried_again_and_is_not_refused() {
    let signer = Signer::p256("k");
    let address = Address::serve("").await;
    address.answer(None);
    let clock = TestClock::at(NOW);
    let (jwt, keys) = address.follow(&clock);
    let token = signer.sign(&claims());
    for _ in 0..3 {
        let answer = present(&jwt, &token).await;
        assert!(matches!(answer, Err(AuthError::Unavailable)), "{answer:?}");
    }
    assert_eq!((keys.failed(), address.asked()), (1, 1));
    // What would be refused with any keys is refused without.
    let mut other = claims();
    other["iss"] = json!("https://attacker.example");
    let answer = present(&jwt, &signer.sign(&other)).await;
    assert!(matches!(answer, Err(AuthError::InvalidToken)), "{answer:?}");

    address.publish(&jwks(&[&signer]));
    clock.set(NOW + 10);
    assert!(present(&jwt, &token).await.is_ok());
}

#[tokio::test]
async fn unknown_keys_cannot_fill_the_server_with_requests_that_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let clock = TestClock::at(NOW);
    // It takes connections and never answers.
    let (jwt, _) = follow(address, &clock);
    let mut waiting = JoinSet::new();
    for _ in 0..64 + 3 {
        let jwt = Arc::clone(&jwt);
        let token = Signer::p256("k").sign(&claims());
        waiting.spawn(async move { present(&jwt, &token).await });
    }
    let _open = listener.accept().await.unwrap();
    for _ in 0..3 {
        let answer = waiting.join_next().await.unwrap().unwrap();
        assert!(matches!(answer, Err(AuthError::Unavailable)), "{answer:?}");
    }
    assert_eq!(waiting.len(), 64);
    tokio::task::yield_now().await;
    assert!(waiting.try_join_next().is_none(), "the others wait");
}

/// Two issuers with keys of every type in a file, and their rules.
struct World {
    rsa: Signer,
    p256: Signer,
    p384: Signer,
    ed: Signer,
    others: Signer,
    clock: Arc<TestClock>,
    dir: TempDir,
    keys: Arc<Watched<KeySet>>,
    jwt: Arc<Jwt>,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let clock = TestClock::at(NOW);
        let (rsa, p256) = (Signer::rsa("rsa"), Signer::p256("p256"));
        let (p384, ed) = (Signer::p384("p384"), Signer::ed25519("ed"));
        let others = Signer::p256("other");
        let all = [&rsa, &p256, &p384, &ed];
        let keys = load(&dir, "keys.json", &jwks(&all));
        let issuer = Issuer {
            algorithms: Algorithm::ALL.to_vec(),
            ..issuer(Keys::File(Arc::clone(&keys)))
        };
        let other = Issuer {
            name: OTHER.to_owned(),
            algorithms: vec![Algorithm::Es256],
            rules: vec![rule(&[("sub", "robot")], "other")],
            ..issuer_of(load(
                &dir,
                "other.json",
                &jwks(&[&all[..], &[&others]].concat()),
            ))
        };
        let jwt = Arc::new(Jwt::new(vec![issuer, other], clock.clone()));
        Self {
            rsa,
            p256,
            p384,
            ed,
            others,
            clock,
            dir,
            keys,
            jwt,
        }
    }

    /// Who signs by an algorithm.
    fn signer(&self, algorithm: Algorithm) -> &Signer {
        match algorithm {
            Algorithm::Es256 => &self.p256,
            Algorithm::Es384 => &self.p384,
            Algorithm::EdDsa => &self.ed,
            _ => &self.rsa,
        }
    }

    fn replace_keys(&self, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.keys.path()).unwrap();
        assert!(self.keys.refresh().unwrap());
    }

    async fn present(&self, token: &str) -> Result<Option<Arc<Caller>>, AuthError> {
        present(&self.jwt, token).await
    }

    async fn ask(&self, name: &'static str, value: &str) -> Result<Option<Arc<Caller>>, AuthError> {
        self.jwt
            .authenticate(&evidence(&headers(name, value)))
            .await
    }
}

/// What a cluster puts into a projected token of a service account.
fn claims() -> Value {
    json!({
        "aud": ["kms", "vault"],
        "exp": NOW + 3600,
        "iat": NOW,
        "iss": ISSUER,
        "jti": "aed34954-b33a-4142-b1ec-389d6bbb4936",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1" },
            "pod": { "name": "billing-7d9f", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3" },
            "serviceaccount": { "name": "billing", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798" },
        },
        "nbf": NOW,
        "sub": SUBJECT,
    })
}

fn issuer(keys: Keys) -> Issuer {
    Issuer {
        name: ISSUER.to_owned(),
        keys,
        audiences: vec!["kms".to_owned(), "https://kms.example".to_owned()],
        algorithms: vec![Algorithm::Rs256, Algorithm::Es256],
        clock_skew: Duration::from_secs(SKEW.unsigned_abs()),
        rules: vec![
            rule(
                &[("sub", SUBJECT), ("/kubernetes.io/namespace", "shop")],
                "shop",
            ),
            rule(&[("/kubernetes.io/namespace", "lab")], "lab"),
            rule(&[("sub", "team:*")], "teams"),
        ],
    }
}

fn issuer_of(keys: Arc<Watched<KeySet>>) -> Issuer {
    issuer(Keys::File(keys))
}

fn rule(claims: &[(&str, &str)], project: &str) -> Rule {
    let claims = claims.iter().map(|(path, text)| Claim {
        path: (*path).to_owned(),
        text: (*text).to_owned(),
    });
    Rule {
        claims: claims.collect(),
        project: project.parse().unwrap(),
        roles: Arc::default(),
        actions: Actions::matching("kms:cmk:encryptData").unwrap(),
    }
}

fn load(dir: &TempDir, name: &str, text: &str) -> Arc<Watched<KeySet>> {
    let path: PathBuf = dir.path().join(name);
    fs::write(&path, text).unwrap();
    Arc::new(Watched::load(&path, Secrecy::Public, KeySet::parse).unwrap())
}

/// A server on loopback that publishes keys, and counts how often it is asked.
struct Address {
    at: SocketAddr,
    shared: Arc<Published>,
}

#[derive(Default)]
struct Published {
    answer: Mutex<Option<String>>,
    asked: AtomicUsize,
}

impl Address {
    async fn serve(text: &str) -> Self {
        let shared = Arc::new(Published::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let published = Arc::clone(&shared);
        let answer = move || {
            published.asked.fetch_add(1, Ordering::Relaxed);
            let answer = published.answer.lock().unwrap().clone();
            std::future::ready(answer.ok_or(StatusCode::INTERNAL_SERVER_ERROR))
        };
        let router = Router::new().route("/openid/v1/jwks", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let address = Self { at, shared };
        address.publish(text);
        address
    }

    /// Answers with this from now on; with a failure if there is none.
    fn answer(&self, text: Option<String>) {
        *self.shared.answer.lock().unwrap() = text;
    }

    fn publish(&self, text: &str) {
        self.answer(Some(text.to_owned()));
    }

    fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    fn follow(&self, clock: &Arc<TestClock>) -> (Arc<Jwt>, Arc<Fetched>) {
        follow(self.at, clock)
    }
}

/// Tokens of an issuer whose keys are at an address, and the keys.
fn follow(at: SocketAddr, clock: &Arc<TestClock>) -> (Arc<Jwt>, Arc<Fetched>) {
    let uri: Uri = format!("http://{at}/openid/v1/jwks").parse().unwrap();
    let keys = Fetched::new(Endpoint::new(uri, None).unwrap(), None, clock.clone());
    let keys = Arc::new(keys);
    let following = Arc::clone(&keys);
    tokio::spawn(async move { following.follow().await });
    let issuer = issuer(Keys::Url(Arc::clone(&keys)));
    (Arc::new(Jwt::new(vec![issuer], clock.clone())), keys)
}

async fn present(jwt: &Jwt, token: &str) -> Result<Option<Arc<Caller>>, AuthError> {
    let headers = headers("x-auth-token", token);
    jwt.authenticate(&evidence(&headers)).await
}

fn headers(name: &'static str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value.parse().unwrap());
    headers
}

fn evidence(headers: &HeaderMap) -> Evidence<'_> {
    static URI: LazyLock<Uri> = LazyLock::new(|| Uri::from_static("/v1.0/shop/kms/list-keys"));
    static PEER: Peer = Peer::unix(0);
    Evidence {
        method: &Method::POST,
        uri: &URI,
        headers,
        body: None,
        peer: &PEER,
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

/// An ECDSA signature of two numbers, as ASN.1 has it (RFC 3279, section 2.2.3).
fn der(signature: &[u8]) -> Vec<u8> {
    let tlv =
        |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let number = |number: &[u8]| {
        let sign = if number[0] < 128 { &[][..] } else { &[0] };
        tlv(2, &[sign, number].concat())
    };
    let (r, s) = signature.split_at(32);
    tlv(0x30, &[number(r), number(s)].concat())
}

#[derive(Debug)]
struct TestClock(AtomicI64);

impl TestClock {
    fn at(seconds: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(seconds * 1000)))
    }

    fn set(&self, seconds: i64) {
        self.0.store(seconds * 1000, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}
