//! Who is let in, and who is not: tokens and AK/SK signatures, from the file to the caller.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use http::{HeaderMap, Method, Uri};
use rcgen::{CertificateParams, KeyPair, SanType};
use tempfile::TempDir;

use kmsgate::auth::aksk::AccessKeys;
use kmsgate::auth::file::{FileError, Refresh};
use kmsgate::auth::mtls::{Certificate, ClientCertificates, Forwarded, Neighbour, Rule, Rules};
use kmsgate::auth::token::{Entry, Tokens, hash};
use kmsgate::auth::{AuthError, Authenticator, Chain, Evidence, Peer};
use kmsgate::domain::address::Origin;
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::time::{Clock, Timestamp};

#[tokio::test]
async fn a_known_token_is_its_caller_in_either_header() {
    let tokens = TokenFile::new(&[ENTRY]).load();
    for (name, value) in [
        ("x-auth-token", "s3cret".to_owned()),
        ("authorization", "bearer s3cret".to_owned()),
    ] {
        let caller = ask(&tokens, &Request::with(name, &value)).await.unwrap();
        let caller = caller.unwrap();
        assert_eq!(&*caller.name, "billing");
        assert_eq!(caller.project.as_str(), PROJECT);
        assert!(caller.actions.contains(Action::EncryptData));
        assert!(!caller.actions.contains(Action::DecryptData));
    }
}

#[tokio::test]
async fn an_unknown_token_is_invalid() {
    let tokens = TokenFile::new(&[ENTRY]).load();
    for unknown in ["s3cre", "s3cret2", &hash(b"s3cret")] {
        let result = ask(&tokens, &Request::with("x-auth-token", unknown)).await;
        assert!(matches!(result, Err(AuthError::InvalidToken)), "{unknown}");
    }
}

#[tokio::test]
async fn a_token_expires_on_the_dot() {
    let clock = TestClock::at(NOW);
    let file = TokenFile::new(&[Entry {
        expires: Some("2026-11-23T06:53:28Z"),
        ..ENTRY
    }]);
    let tokens = Tokens::load(&file.path, clock.clone()).unwrap();
    let request = Request::with("x-auth-token", "s3cret");
    clock.set(NOW - 1);
    assert!(ask(&tokens, &request).await.is_ok());
    clock.set(NOW);
    let result = ask(&tokens, &request).await;
    assert!(matches!(result, Err(AuthError::ExpiredToken)));
}

#[tokio::test]
async fn a_request_without_a_token_is_left_to_the_next_authenticator() {
    let tokens = TokenFile::new(&[ENTRY]).load();
    assert!(ask(&tokens, &published()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_proxy_s_certificate_does_not_stand_for_the_proxy_s_clients() {
    const PROXY: &str = "spiffe://example.org/ns/ingress/sa/proxy";
    let mut parameters = CertificateParams::default();
    let name = SanType::URI(PROXY.try_into().unwrap());
    parameters.subject_alt_names = vec![name];
    let der = parameters
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap();
    let peer = Peer {
        certificate: Some(Certificate::parse(der.der()).unwrap()),
        ..Peer::unix(0)
    };
    let rule = Rule {
        identity: PROXY.parse().unwrap(),
        project: PROJECT.parse().unwrap(),
        roles: Arc::default(),
        actions: Actions::ALL,
    };
    let rules = Arc::new(Rules::new(vec![rule]));
    let new = || ClientCertificates::new(Arc::clone(&rules), TestClock::at(NOW));
    let beside = |neighbour| {
        let forwarded = Forwarded::new(Arc::clone(&rules), vec![neighbour], TestClock::at(NOW));
        new().beside(Arc::new(forwarded))
    };
    let own = Request::default();
    let client = Request::with("x-forwarded-client-cert", "URI=spiffe://example.org/x");
    for (certificates, request, expected) in [
        (new(), &own, Some(PROXY)),
        // Where nobody is believed it is a header like any other.
        (new(), &client, Some(PROXY)),
        (beside(Neighbour::Loopback), &own, Some(PROXY)),
        (beside(Neighbour::Unix), &client, None),
        // A proxy says nothing of a client that has no certificate.
        (beside(Neighbour::Unix), &own, None),
    ] {
        let evidence = Evidence {
            peer: &peer,
            ..request.evidence()
        };
        let caller = certificates.authenticate(&evidence).await.unwrap();
        assert_eq!(caller.as_ref().map(|caller| &*caller.name), expected);
    }
}

#[tokio::test]
async fn who_is_believed_may_be_one_address_of_this_machine() {
    let rules = Arc::new(Rules::new(Vec::new()));
    let address = "127.0.0.6".parse().unwrap();
    let neighbours = vec![Neighbour::Address(address)];
    let forwarded = Forwarded::new(rules, neighbours, TestClock::at(NOW));
    let told = Request::with("x-forwarded-client-cert", "URI=spiffe://example.org/x");
    for (origin, believed) in [
        ("127.0.0.6:1", true),
        ("[::ffff:127.0.0.6]:1", true),
        ("127.0.0.1:1", false),
        ("[::1]:1", false),
        ("[::6]:1", false),
    ] {
        let peer = Peer {
            origin: Origin::Tcp(origin.parse().unwrap()),
            certificate: None,
        };
        let evidence = Evidence {
            peer: &peer,
            ..told.evidence()
        };
        let answer = forwarded.authenticate(&evidence).await;
        assert_eq!(answer.is_ok(), believed, "{origin}");
    }
}

#[test]
fn a_token_file_with_a_mistake_is_refused_whole() {
    let good = ENTRY.render(b"s3cret").unwrap();
    for (from, to, line, reason) in [
        ("sha256", "sha265", 3, "a key is unknown"),
        ("[[token]]", "[[tokens]]", 1, "a key is unknown"),
        (
            "project = ",
            "# project = ",
            1,
            "a key is unknown or missing",
        ),
        ("encryptData", "encrypt", 5, "no such action"),
        ("billing", "bill ing", 2, "name is not"),
        (&hash(b"s3cret"), "abc", 3, "sha256 is not"),
        (PROJECT, "a/b", 4, "project is not"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        let file = TokenFile::of(&bad);
        let error = Tokens::load(&file.path, TestClock::at(NOW)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("line {line}: {reason}")),
            "{text}: {bad}"
        );
    }
}

#[test]
fn names_and_hashes_of_tokens_are_unique() {
    let first = ENTRY.render(b"s3cret").unwrap();
    for (second, reason) in [
        (ENTRY.render(b"other"), "line 7: the name is not unique"),
        (OTHER.render(b"s3cret"), "line 8: the sha256 is not unique"),
    ] {
        let file = TokenFile::of(&(first.clone() + &second.unwrap()));
        let error = Tokens::load(&file.path, TestClock::at(NOW)).unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
}

#[test]
fn a_token_file_that_anyone_may_write_is_refused() {
    let file = TokenFile::new(&[ENTRY]);
    file.chmod(0o646);
    let result = Tokens::load(&file.path, TestClock::at(NOW));
    assert!(matches!(result, Err(FileError::TooOpen(0o646))));
}

#[tokio::test]
async fn a_token_is_known_and_forgotten_as_its_file_says() {
    let file = TokenFile::new(&[ENTRY]);
    let tokens = file.load();
    let request = Request::with("x-auth-token", "s3cret");
    assert!(!tokens.refresh().unwrap());

    file.replace(&OTHER.render(b"other").unwrap());
    assert!(
        ask(&tokens, &request).await.is_ok(),
        "not before the refresh"
    );
    assert!(tokens.refresh().unwrap());
    assert!(ask(&tokens, &request).await.is_err());
    assert!(
        ask(&tokens, &Request::with("x-auth-token", "other"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_bad_token_file_leaves_the_old_tokens_in_use() {
    let file = TokenFile::new(&[ENTRY]);
    let tokens = file.load();
    file.replace("[[token]]\nname = \"half");
    assert!(matches!(tokens.refresh(), Err(FileError::Malformed(_))));
    assert!(
        ask(&tokens, &Request::with("x-auth-token", "s3cret"))
            .await
            .is_ok()
    );
    assert_eq!(tokens.path(), file.path);
}

#[tokio::test]
async fn a_mounted_token_file_follows_the_link_that_kubernetes_swaps() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, token) in [("v1", &b"one"[..]), ("v2", b"two")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(
            at(version).join("tokens.toml"),
            ENTRY.render(token).unwrap(),
        )
        .unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/tokens.toml", at("tokens.toml")).unwrap();
    let tokens = Tokens::load(&at("tokens.toml"), TestClock::at(NOW)).unwrap();
    assert!(
        ask(&tokens, &Request::with("x-auth-token", "one"))
            .await
            .is_ok()
    );

    symlink("v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert!(tokens.refresh().unwrap());
    assert!(
        ask(&tokens, &Request::with("x-auth-token", "one"))
            .await
            .is_err()
    );
    assert!(
        ask(&tokens, &Request::with("x-auth-token", "two"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_request_that_the_python_sdk_signed_is_let_in() {
    let caller = ask(&access_keys(), &published()).await.unwrap().unwrap();
    assert_eq!(&*caller.name, "billing");
    assert_eq!(caller.project.as_str(), PROJECT);
    assert!(caller.actions.contains(Action::EncryptData));
}

#[tokio::test]
async fn the_same_signed_call_may_come_again() {
    let keys = access_keys();
    for _ in 0..4 {
        assert!(ask(&keys, &published()).await.is_ok());
    }
}

#[tokio::test]
async fn both_layouts_are_let_in_as_computed_elsewhere() {
    let keys = access_keys();
    for (name, request) in [
        ("LAYOUT_B", signed("LAYOUT_B")),
        ("SCOPED", signed("SCOPED")),
        (
            "SPACED",
            signed("SPACED").and("user-agent", "two  spaces and \ta tab"),
        ),
        ("DATED", signed("DATED")),
        (
            "HASHED",
            signed("HASHED").and("x-sdk-content-sha256", BODY_HASH),
        ),
        (
            "SHOUTED",
            signed("SHOUTED").and("x-sdk-content-sha256", &BODY_HASH.to_uppercase()),
        ),
        ("QUERIED", queried("/?marker=a%20b&limit=2")),
        ("QUERIED", queried("?limit=2&marker=%61%20b")),
    ] {
        let result = ask(&keys, &request).await;
        assert!(matches!(result, Ok(Some(_))), "{name}: {result:?}");
    }
}

#[tokio::test]
async fn over_http_2_the_host_stands_in_the_target() {
    let mut request = published().without("host");
    refused(&request, "a signed header is missing or repeated").await;
    request.uri = format!("http://127.0.0.1:18080{PATH}").parse().unwrap();
    assert!(ask(&access_keys(), &request).await.is_ok());
    request.uri = format!("http://127.0.0.1:18081{PATH}").parse().unwrap();
    refused(&request, MISMATCH).await;
}

#[tokio::test]
async fn whatever_is_signed_cannot_be_changed() {
    let header = |name, value| published().without(name).and(name, value);
    for (what, request) in [
        (
            "method",
            Request {
                method: Method::PUT,
                ..published()
            },
        ),
        (
            "body",
            Request {
                body: Some(BODY.replace("hello", "jello")),
                ..published()
            },
        ),
        (
            "no body",
            Request {
                body: Some(String::new()),
                ..published()
            },
        ),
        (
            "path",
            Request {
                uri: "/v1.0/p/kms/encrypt-data".parse().unwrap(),
                ..published()
            },
        ),
        (
            "query",
            Request {
                uri: format!("{PATH}?a=b").parse().unwrap(),
                ..published()
            },
        ),
        ("query of a signed query", queried("?limit=3&marker=a%20b")),
        ("host", header("host", "127.0.0.1:18081")),
        ("project", header("x-project-id", "another")),
        ("user agent", header("user-agent", "curl/8")),
        ("date", header("x-sdk-date", "20261123T065329Z")),
        (
            "body of layout B",
            Request {
                body: Some("{}".to_owned()),
                ..signed("LAYOUT_B")
            },
        ),
        ("region", signed("SCOPED").resigned("local-1", "local-2")),
        ("service", signed("SCOPED").resigned("/kms/", "//")),
        (
            "spaces of layout A",
            header("content-type", "application/json;  charset=utf-8"),
        ),
        (
            "first digit",
            published().resigned("Signature=a", "Signature=b"),
        ),
        ("last digit", published().resigned("67e1", "67e2")),
        (
            "fewer signed headers",
            published().resigned("content-type;", ""),
        ),
    ] {
        let result = ask(&access_keys(), &request).await;
        assert!(
            matches!(result, Err(AuthError::BadSignature(MISMATCH))),
            "{what}: {result:?}"
        );
    }
}

#[tokio::test]
async fn no_header_chooses_the_project() {
    let request = signed("LAYOUT_B").and("x-project-id", "another");
    let caller = ask(&access_keys(), &request).await.unwrap().unwrap();
    assert_eq!(caller.project.as_str(), PROJECT);
}

#[tokio::test]
async fn a_signature_lasts_15_minutes_both_ways() {
    const LIMIT: i64 = 15 * 60 * 1000;
    let clock = TestClock::at(NOW);
    let file = AccessKeyFile::new("");
    let keys = AccessKeys::load(&file.path, clock.clone()).unwrap();
    for (now, let_in) in [
        (NOW - LIMIT - 1, false),
        (NOW - LIMIT, true),
        (NOW + LIMIT, true),
        (NOW + LIMIT + 1, false),
        (i64::MIN, false),
        (i64::MAX, false),
    ] {
        clock.set(now);
        let result = ask(&keys, &published()).await;
        assert_eq!(result.is_ok(), let_in, "{now}: {result:?}");
    }
}

#[tokio::test]
async fn the_date_is_signed_and_exact() {
    let unsigned = published().resigned(";x-sdk-date", "");
    refused(&unsigned, "x-sdk-date is not signed").await;
    let malformed = "x-sdk-date is not a date like 20191115T033655Z";
    refused(&published().without("x-sdk-date"), malformed).await;
    for date in [
        "",
        "20261123T065328",
        "2026-11-23T06:53:28Z",
        "Mon, 23 Nov 2026 06:53:28 GMT",
    ] {
        let request = published().without("x-sdk-date").and("x-sdk-date", date);
        refused(&request, malformed).await;
    }
    let other_day = signed("LAYOUT_B").resigned("/20261123/", "/20261122/");
    refused(
        &other_day,
        "the credential's date is not that of x-sdk-date",
    )
    .await;
}

#[tokio::test]
async fn a_signed_header_is_there_once() {
    let text = "a signed header is missing or repeated";
    refused(&published().without("content-type"), text).await;
    let repeated = published().and("x-project-id", PROJECT);
    refused(&repeated, text).await;
    let repeated = published().and("x-sdk-date", "20261123T065328Z");
    refused(&repeated, text).await;
}

#[tokio::test]
async fn the_body_that_came_is_the_one_that_is_hashed() {
    let name = "x-sdk-content-sha256";
    let not_signed = published().and(name, BODY_HASH);
    refused(&not_signed, "x-sdk-content-sha256 is not signed").await;

    let text = "x-sdk-content-sha256 is not the hash of the body";
    refused(&signed("UNSIGNED").and(name, "UNSIGNED-PAYLOAD"), text).await;
    refused(&signed("HASHED").and(name, &hash(b"")), text).await;
    let mut other_body = signed("HASHED").and(name, BODY_HASH);
    other_body.body = Some("{}".to_owned());
    refused(&other_body, text).await;
}

#[tokio::test]
async fn an_unknown_access_key_is_refused_without_repeating_it() {
    for request in [published(), signed("LAYOUT_B")] {
        let request = request.resigned("AKEXAMPLE0000000000", "AKEXAMPLE0000000001");
        refused(&request, "Get secretKey failed, ak not exist").await;
    }
}

#[tokio::test]
async fn an_expired_access_key_is_told_only_to_whoever_holds_it() {
    let file = AccessKeyFile::new("expires = 2026-11-23T06:53:28Z");
    let keys = AccessKeys::load(&file.path, TestClock::at(NOW)).unwrap();
    let result = ask(&keys, &published()).await;
    assert!(matches!(
        result,
        Err(AuthError::BadSignature("the access key has expired"))
    ));
    let result = ask(&keys, &published().resigned("67e1", "67e2")).await;
    assert!(matches!(result, Err(AuthError::BadSignature(MISMATCH))));
}

#[tokio::test]
async fn a_malformed_signature_is_refused() {
    let malformed = "the signature is malformed";
    for (from, to) in [
        ("Access=", "Acces="),
        ("Access=AKEXAMPLE0000000000, ", ""),
        ("SignedHeaders=", "SignedHeaders=Accept;"),
        ("content-type;host", "host;content-type"),
        ("host;", "host;host;"),
        ("67e1", "67e"),
        ("67e1", "67e1, Signature=00"),
        ("67e1", "67eg"),
        (", Signature", ", Access=AK, Signature"),
        (", Signature", " Signature"),
    ] {
        refused(&published().resigned(from, to), malformed).await;
    }
    let whole = published().headers["authorization"]
        .to_str()
        .unwrap()
        .to_owned();
    for length in "SDK-HMAC-SHA256 ".len()..whole.len() {
        let cut = published()
            .without("authorization")
            .and("authorization", &whole[..length]);
        let result = ask(&access_keys(), &cut).await;
        assert!(
            matches!(result, Err(AuthError::BadSignature(_))),
            "{length}: {result:?}"
        );
    }
    let long = published().resigned(
        "SignedHeaders=",
        &format!("SignedHeaders={}", "a;".repeat(2000)),
    );
    refused(&long, "the signature is too long").await;
}

#[tokio::test]
async fn other_signature_algorithms_are_refused_and_other_schemes_left_to_others() {
    for other in [
        "SDK-HMAC-SHA1",
        "SDK-HMAC-SM3",
        "V11-HMAC-SHA256",
        "sdk-hmac-sha256",
        "SDK-HMAC-SHA256X",
    ] {
        let request = published().resigned("SDK-HMAC-SHA256", other);
        refused(&request, "the signature algorithm is not SDK-HMAC-SHA256").await;
    }
    for request in [
        Request::with("authorization", "Bearer s3cret"),
        Request::with("authorization", "Basic c2Rr"),
        Request::with("x-auth-token", "s3cret"),
        published().without("authorization"),
    ] {
        assert!(ask(&access_keys(), &request).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_signature_is_for_rest_and_comes_alone() {
    let grpc = Request {
        body: None,
        ..published()
    };
    refused(&grpc, "AK/SK signatures are for REST only").await;
    for (name, value) in [
        ("x-auth-token", "s3cret"),
        ("authorization", "Bearer s3cret"),
    ] {
        refused(
            &published().and(name, value),
            "there is more than one credential",
        )
        .await;
    }
}

#[tokio::test]
async fn a_temporary_access_key_comes_with_its_security_token_and_no_other_does() {
    let temporary = AccessKeyFile::new("security_token = \"s3curity\"");
    let temporary = AccessKeys::load(&temporary.path, TestClock::at(NOW)).unwrap();
    let header = "x-security-token";
    let with = |tokens: &[&str]| {
        let request = published();
        tokens
            .iter()
            .fold(request, |request, token| request.and(header, token))
    };
    let caller = ask(&temporary, &with(&["s3curity"])).await.unwrap();
    assert_eq!(&*caller.unwrap().name, "billing");
    let (none, wrong) = ("x-security-token is not the access key's", "s3curitx");
    for (keys, tokens) in [
        (&temporary, &[][..]),
        (&temporary, &[""]),
        (&temporary, &[wrong]),
        (&temporary, &["s3curity", "s3curity"]),
        (&temporary, &["s3curity", wrong]),
        (&access_keys(), &["s3curity"]),
    ] {
        let told = ask(keys, &with(tokens)).await;
        assert!(
            matches!(told, Err(AuthError::BadSignature(why)) if why == none),
            "{tokens:?}: {told:?}"
        );
    }
    let empty = AccessKeyFile::of(&access_key_entry("security_token = \"\""));
    let error = AccessKeys::load(&empty.path, TestClock::at(NOW)).unwrap_err();
    assert_eq!(error.to_string(), "line 7: security_token is empty");
}

#[tokio::test]
async fn a_chain_asks_both_and_a_request_with_neither_has_no_credential() {
    let file = TokenFile::new(&[ENTRY]);
    let chain = Chain::new(vec![Arc::new(file.load()), Arc::new(access_keys())]);
    for request in [Request::with("x-auth-token", "s3cret"), published()] {
        assert!(chain.authenticate(&request.evidence()).await.is_ok());
    }
    let neither = Request::with("accept", "*/*");
    let result = chain.authenticate(&neither.evidence()).await;
    assert!(matches!(result, Err(AuthError::Missing)));
    let both = published().and("x-auth-token", "s3cret");
    let result = chain.authenticate(&both.evidence()).await;
    assert!(matches!(result, Err(AuthError::InvalidToken)));
}

#[test]
fn an_access_key_file_open_to_others_is_refused() {
    let file = AccessKeyFile::new("");
    for mode in [0o644, 0o604, 0o602, 0o601] {
        file.chmod(mode);
        let result = AccessKeys::load(&file.path, TestClock::at(NOW));
        assert!(
            matches!(result, Err(FileError::TooOpen(m)) if m == mode),
            "{mode:o}"
        );
    }
    file.chmod(0o640);
    assert!(AccessKeys::load(&file.path, TestClock::at(NOW)).is_ok());
}

#[test]
fn an_access_key_file_with_a_mistake_is_refused_without_repeating_a_secret() {
    let good = access_key_entry("");
    for (from, to, reason) in [
        ("secret_key", "secret", "line 3: a key is unknown"),
        (
            "\"SKEXAMPLE",
            "[\"SKEXAMPLE",
            "line 4: the text is not TOML",
        ),
        ("\"SKEXAMPLE", "SKEXAMPLE", "line 3: the text is not TOML"),
        (
            &format!("\"{SECRET}\""),
            "\"\"",
            "line 3: secret_key is empty",
        ),
        ("AKEX", "AK-EX", "line 2: access_key is not"),
        (
            "\"billing\"",
            "7",
            "line 4: a key is unknown or missing, or its value has the wrong type",
        ),
        ("kms:cmk:*", "kms:cmk:encryptdata", "line 6: no such action"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        let file = AccessKeyFile::of(&bad);
        let error = AccessKeys::load(&file.path, TestClock::at(NOW)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(reason), "{text}: {bad}");
        assert!(
            !format!("{text} {error:?}").contains("secretsecret"),
            "{text}"
        );
    }
    let twice = AccessKeyFile::of(&good.repeat(2));
    let error = AccessKeys::load(&twice.path, TestClock::at(NOW)).unwrap_err();
    assert_eq!(error.to_string(), "line 9: the access_key is not unique");
}

#[test]
fn names_of_access_keys_are_unique() {
    let first = access_key_entry("");
    let second = first.replace("AKEX", "AKOTHER");
    let nameless = second.replace("name = \"billing\"\n", "");
    let of_the_second = first.replace("billing", "AKOTHERAMPLE0000000000");
    for (first, second, reason) in [
        (&first, &second, "line 11: the name is not unique"),
        (&of_the_second, &nameless, "line 9: the name is not unique"),
    ] {
        let file = AccessKeyFile::of(&format!("{first}{second}"));
        let error = AccessKeys::load(&file.path, TestClock::at(NOW)).unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
}

#[tokio::test]
async fn an_access_key_is_its_own_name_if_it_has_no_other() {
    let file = AccessKeyFile::of(&access_key_entry("").replace("name = \"billing\"\n", ""));
    let keys = AccessKeys::load(&file.path, TestClock::at(NOW)).unwrap();
    let caller = ask(&keys, &published()).await.unwrap().unwrap();
    assert_eq!(&*caller.name, "AKEXAMPLE0000000000");
}

#[test]
fn a_credential_is_found_by_its_name_also_when_it_has_expired() {
    let past = "2020-01-01T00:00:00Z";
    let valid = access_key_entry("")
        .replace("AKEX", "AKOTHER")
        .replace("billing", "other");
    let file = AccessKeyFile::of(&(access_key_entry(&format!("expires = {past}")) + &valid));
    let keys = AccessKeys::load(&file.path, TestClock::at(NOW)).unwrap();
    let expired = Entry {
        expires: Some(past),
        ..ENTRY
    };
    let [expired, valid] = [
        expired.render(b"s3cret").unwrap(),
        OTHER.render(b"another").unwrap(),
    ];
    let tokens = TokenFile::of(&(expired + &valid)).load();
    for name in ["billing", "other"] {
        assert_eq!(&*keys.named(name).unwrap().name, name);
        assert_eq!(&*tokens.named(name).unwrap().name, name);
    }
    assert!(keys.named("AKEXAMPLE0000000000").is_none());
    assert!(tokens.named("s3cret").is_none());
}

#[tokio::test]
async fn an_access_key_is_forgotten_when_its_file_forgets_it() {
    let file = AccessKeyFile::new("");
    let keys = AccessKeys::load(&file.path, TestClock::at(NOW)).unwrap();
    file.replace("");
    assert!(keys.refresh().unwrap());
    assert!(ask(&keys, &published()).await.is_err());
    assert_eq!(keys.path(), file.path);
}

#[test]
fn authenticators_print_no_secret() {
    let printed = format!("{:?} {:?}", TokenFile::new(&[ENTRY]).load(), access_keys());
    assert!(!printed.contains("secretsecret"), "{printed}");
    assert!(!printed.contains(&hash(b"s3cret")), "{printed}");
}

const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";
const SECRET: &str = "SKEXAMPLEsecretsecretsecretsecretsecret";
const PATH: &str = "/v1.0/53d1aefc533f4ce9a59c26b01667cbcf/kms/encrypt-data";
const MISMATCH: &str = "verify aksk signature fail";

/// 2026-11-23T06:53:28Z, when the requests were signed.
const NOW: i64 = 1_795_416_808_000;

/// The body of the published request (contract, section 6.6), and its hash (section 6.3).
const BODY: &str = r#"{"key_id": "0d0466b0-e727-4d9c-b35d-f84bb474a37f", "plain_text": "hello world", "encryption_algorithm": "SYMMETRIC_DEFAULT"}"#;
const BODY_HASH: &str = "62de37f7c3740a906a30fded056a13fe4045944f284311d343b766ab25b529ac";

const ENTRY: Entry<'_> = Entry {
    name: "billing",
    project: PROJECT,
    expires: None,
    actions: &["kms:cmk:encryptData", "kms:cmk:get"],
};
const OTHER: Entry<'_> = Entry {
    name: "other",
    ..ENTRY
};

/// The request of contract, section 6.3, vector 2: what Huawei's Python SDK sends.
fn published() -> Request {
    Request::default()
        .and("content-type", "application/json;charset=utf-8")
        .and("host", "127.0.0.1:18080")
        .and(
            "user-agent",
            "huaweicloud-usdk-python/3.0; os/Linux##1_SMP_PREEMPT_DYNAMIC_@0#x86_64 \
             python/3.11.7 impl/CPython; app/8e79bad7-0502-470f-8bbc-d23af7578dd5",
        )
        .and("x-project-id", PROJECT)
        .and("x-sdk-date", "20261123T065328Z")
        .and(
            "authorization",
            "SDK-HMAC-SHA256 Access=AKEXAMPLE0000000000, \
             SignedHeaders=content-type;host;user-agent;x-project-id;x-sdk-date, \
             Signature=ab5c1b42d1812aec20fd5960019375d5b63781a58dbe8313e5429740f06967e1",
        )
}

/// A request with a signature of `tests/vectors/sign.py`, which prints `sign.txt`.
fn signed(name: &str) -> Request {
    let mut vectors = include_str!("vectors/sign.txt").lines();
    let authorization = vectors.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Request::default()
        .and("content-type", "application/json")
        .and("host", "127.0.0.1:18080")
        .and("x-sdk-date", "20261123T065328Z")
        .and("authorization", authorization.unwrap())
}

fn queried(query: &str) -> Request {
    Request {
        method: Method::GET,
        uri: format!("{PATH}{query}").parse().unwrap(),
        body: Some(String::new()),
        ..signed("QUERIED")
    }
}

struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            method: Method::POST,
            uri: Uri::from_static(PATH),
            headers: HeaderMap::new(),
            body: Some(BODY.to_owned()),
        }
    }
}

impl Request {
    fn with(name: &'static str, value: &str) -> Self {
        Self::default().and(name, value)
    }

    fn and(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn without(mut self, name: &str) -> Self {
        assert!(self.headers.remove(name).is_some(), "{name}");
        self
    }

    /// Changes the text of the signature's header.
    fn resigned(mut self, from: &str, to: &str) -> Self {
        let value = self.headers["authorization"].to_str().unwrap();
        let changed = value.replacen(from, to, 1);
        assert_ne!(changed, value, "{from}");
        self.headers
            .insert("authorization", changed.parse().unwrap());
        self
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            method: &self.method,
            uri: &self.uri,
            headers: &self.headers,
            body: self.body.as_deref().map(str::as_bytes),
            peer: &PEER,
        }
    }
}

static PEER: Peer = Peer::unix(0);

async fn ask(
    authenticator: &impl Authenticator,
    request: &Request,
) -> Result<Option<Arc<Caller>>, AuthError> {
    authenticator.authenticate(&request.evidence()).await
}

async fn refused(request: &Request, text: &str) {
    let error = ask(&access_keys(), request).await.unwrap_err();
    assert!(
        matches!(error, AuthError::BadSignature(said) if said == text),
        "{error:?}"
    );
}

fn access_keys() -> AccessKeys {
    AccessKeys::load(&AccessKeyFile::new("").path, TestClock::at(NOW)).unwrap()
}

fn access_key_entry(expires: &str) -> String {
    format!(
        "[[access_key]]\naccess_key = \"AKEXAMPLE0000000000\"\nsecret_key = \"{SECRET}\"\n\
         name = \"billing\"\nproject = \"{PROJECT}\"\nactions = [\"kms:cmk:*\"]\n{expires}\n"
    )
}

type TokenFile = TestFile<0o644>;
type AccessKeyFile = TestFile<0o600>;

/// A file of this mode in a directory of its own.
struct TestFile<const MODE: u32> {
    dir: TempDir,
    path: PathBuf,
}

impl<const MODE: u32> TestFile<MODE> {
    fn of(text: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("credentials.toml");
        let file = Self { dir, path };
        file.replace(text);
        file
    }

    fn replace(&self, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        chmod(&new, MODE);
        fs::rename(new, &self.path).unwrap();
    }

    fn chmod(&self, mode: u32) {
        chmod(&self.path, mode);
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

impl TokenFile {
    /// Entries for the token `s3cret`.
    fn new(entries: &[Entry<'_>]) -> Self {
        let texts = entries.iter().map(|entry| entry.render(b"s3cret").unwrap());
        Self::of(&texts.collect::<String>())
    }

    fn load(&self) -> Tokens {
        Tokens::load(&self.path, TestClock::at(NOW)).unwrap()
    }
}

impl AccessKeyFile {
    fn new(expires: &str) -> Self {
        Self::of(&access_key_entry(expires))
    }
}

#[derive(Debug)]
struct TestClock(AtomicI64);

impl TestClock {
    fn at(millis: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(millis)))
    }

    fn set(&self, millis: i64) {
        self.0.store(millis, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}
