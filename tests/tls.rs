//! TLS, client certificates, and what a proxy says of them, against the running program.

mod program;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustix::process::Signal;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::program::{
    Addresses, Answer, Grpc, PATIENCE, PROJECT, Program, Site, TOKEN, call, done, fetch, refused,
    run, send,
};

const BILLING: &str = "spiffe://example.org/ns/shop/sa/billing";
const STRANGER: &str = "spiffe://example.org/ns/other/sa/stranger";

#[tokio::test]
async fn both_versions_of_tls_are_spoken_on_both_faces_and_nothing_else_is() {
    let site = Tls::new("", "");
    let (_program, at) = site.serve();
    let versions = [
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
    ];
    for (offered, expected) in versions {
        for (address, protocols, chosen) in [
            (at.grpc, &["h2"][..], Some("h2")),
            (at.grpc, &["http/1.1", "h2"], Some("h2")),
            (at.rest, &["h2", "http/1.1"], Some("h2")),
            (at.rest, &["http/1.1"], Some("http/1.1")),
            (at.rest, &[], None),
        ] {
            let mut client = Client::of(&site.ca).config(&[offered]);
            client.alpn_protocols = protocols
                .iter()
                .map(|name| name.as_bytes().into())
                .collect();
            let stream = connect(address, client).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.protocol_version(), Some(expected));
            let protocol = session.alpn_protocol();
            assert_eq!(protocol, chosen.map(str::as_bytes), "{protocols:?}");
        }
        let mut client = Client::of(&site.ca).config(&[offered]);
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let refused = connect(at.grpc, client).await;
        assert!(refused.is_err(), "gRPC is HTTP/2 alone");
    }
    // A client in plain text, and one that trusts another CA.
    let mut plain = TcpStream::connect(at.rest).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let stranger = Client::of(&Ca::new()).config(rustls::ALL_VERSIONS);
    assert!(connect(at.rest, stranger).await.is_err());

    // The server hears of a client that went away after the client has gone.
    let deadline = Instant::now() + PATIENCE;
    let metrics = loop {
        let metrics = fetch(at.admin, "/metrics").await.text;
        if metric(&metrics, "kmsgate_tls_failed_handshakes_total") == 4 {
            break metrics;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let ends = metric(&metrics, "kmsgate_tls_certificate_not_after_seconds");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let left = ends - now.unwrap().as_secs();
    assert!((3000..=3600).contains(&left), "{left}");
}

#[tokio::test]
async fn calls_over_tls_are_answered_as_without() {
    let site = Tls::new("", "");
    let (_program, at) = site.serve();
    let client = Client::of(&site.ca);
    // As long as can be, both ways, so that an answer takes several records.
    let body = json!({ "key_alias": "long", "key_description": "d".repeat(255) });
    let made = client.post(at.rest, "create-key", Some(TOKEN), &body).await;
    let key = made.json()["key_info"]["key_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let text = "p".repeat(4096);
    let body = json!({ "key_id": key, "plain_text": text });
    let sealed = client
        .post(at.rest, "encrypt-data", Some(TOKEN), &body)
        .await;
    let body = json!({ "cipher_text": sealed.json()["cipher_text"] });
    let opened = client
        .post(at.rest, "decrypt-data", Some(TOKEN), &body)
        .await;
    assert_eq!(opened.json()["plain_text"], *text);
    assert_eq!(client.grpc(at.grpc, Some(TOKEN)).await, Ok(()));
}

#[tokio::test]
async fn a_certificate_is_a_caller_if_a_rule_is_for_it() {
    let site = Tls::new(OPTIONAL, RULES);
    let (_program, at) = site.serve();
    let with = |names: &[SanType]| Client::of(&site.ca).with(&site.ca, names, HOUR);
    let unknown = Some("APIGW.0301");
    let denied = Some("KMS.0306");
    let everyone = [
        ("a SPIFFE ID of its own", with(&[uri(BILLING)]), None),
        (
            "one below a path",
            with(&[uri("spiffe://example.org/ns/reports/sa/a/b")]),
            denied,
        ),
        (
            "a DNS name in any case",
            with(&[dns("Backup.Shop.svc")]),
            None,
        ),
        (
            "names beside it",
            with(&[dns("x.svc"), uri(BILLING), dns("y.svc")]),
            None,
        ),
        ("a stranger", with(&[uri(STRANGER)]), unknown),
        (
            "the beginning of a path",
            with(&[uri("spiffe://example.org/ns/reports")]),
            unknown,
        ),
        ("two URIs", with(&[uri(BILLING), uri(STRANGER)]), unknown),
        ("a wildcard", with(&[dns("*.shop.svc")]), unknown),
        (
            "another trust domain",
            with(&[uri("spiffe://example.com/ns/shop/sa/billing")]),
            unknown,
        ),
        ("no names", with(&[]), unknown),
        ("no certificate", Client::of(&site.ca), unknown),
    ];
    for (who, client, expected) in &everyone {
        let body = json!({ "key_spec": "ALL" });
        let answer = client.post(at.rest, "list-keys", None, &body).await;
        match expected {
            None => assert_eq!(answer.status, StatusCode::OK, "{who}: {answer:?}"),
            Some(code) => assert_eq!(answer.code(), *code, "{who}"),
        }
        let over_grpc = client.grpc(at.grpc, None).await;
        assert_eq!(
            over_grpc,
            expected.map_or(Ok(()), |code| Err(code.to_owned())),
            "{who}"
        );
    }
    // Whom the audit names is the identity.
    let (program, _) = (_program, ());
    let line = program.stdout.wait_for(|text| text.contains("reports"));
    assert!(
        line.contains("spiffe://example.org/ns/reports/sa/a/b"),
        "{line}"
    );
}

#[tokio::test]
async fn a_header_s_credential_decides_whatever_the_certificate_is() {
    let site = Tls::new(OPTIONAL, RULES);
    let (_program, at) = site.serve();
    let billing = Client::of(&site.ca).with(&site.ca, &[uri(BILLING)], HOUR);
    let stranger = Client::of(&site.ca).with(&site.ca, &[uri(STRANGER)], HOUR);
    let body = json!({ "key_alias": "made-by-token", "key_spec": "AES_256" });
    let made = stranger
        .post(at.rest, "create-key", Some(TOKEN), &body)
        .await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");
    let bad = billing
        .post(at.rest, "list-keys", Some("no-such-token"), &json!({}))
        .await;
    assert_eq!(bad.code(), "KMS.0302", "a bad token never falls through");
    assert_eq!(
        billing.grpc(at.grpc, Some("no-such-token")).await,
        Err("KMS.0302".to_owned())
    );
    // A credential of a kind that nobody here takes is not passed over either.
    let mut request = post(at.rest, "list-keys", &json!({}));
    let basic = "Basic YWRtaW46YWRtaW4=".parse().unwrap();
    request.headers_mut().insert("authorization", basic);
    assert_eq!(billing.send(at.rest, request).await.code(), "KMS.0302");
}

#[tokio::test]
async fn a_required_certificate_is_required_and_a_bad_one_is_never_good() {
    let other = Ca::new();
    for (mode, without) in [(OPTIONAL, true), (REQUIRED, false)] {
        let site = Tls::new(mode, RULES);
        let (_program, at) = site.serve();
        let nobody = Client::of(&site.ca);
        assert_eq!(nobody.is_let_in(at).await, without, "{mode}");
        let good = Client::of(&site.ca).with(&site.ca, &[uri(BILLING)], HOUR);
        assert!(good.is_let_in(at).await, "{mode}");
        let foreign = Client::of(&site.ca).with(&other, &[uri(BILLING)], HOUR);
        assert!(!foreign.is_let_in(at).await, "{mode}: another CA");
        let of_a_server = Client::of(&site.ca).using(site.ca.issue(
            &[uri(BILLING)],
            HOUR,
            ExtendedKeyUsagePurpose::ServerAuth,
        ));
        assert!(!of_a_server.is_let_in(at).await, "{mode}: a server's");
        let ended = Client::of(&site.ca).with(&site.ca, &[uri(BILLING)], -HOUR);
        assert!(!ended.is_let_in(at).await, "{mode}: expired");
    }
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let site = Tls::new(OPTIONAL, RULES);
    let (_program, at) = site.serve();
    let client = Client::of(&site.ca).with(&site.ca, &[uri(BILLING)], 4);
    let mut connection = client.connection(at.rest).await;
    let first = ask(&mut connection, post(at.rest, "list-keys", &json!({}))).await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask(&mut connection, post(at.rest, "list-keys", &json!({}))).await;
        if answer.status != StatusCode::OK {
            assert_eq!(answer.code(), "APIGW.0301");
            assert!(
                answer.text.contains("the client certificate has expired"),
                "{answer:?}"
            );
            break;
        }
        assert!(Instant::now() < deadline, "still let in");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn files_change_under_running_connections_and_bad_ones_change_nothing() {
    let site = Tls::new(REQUIRED, RULES);
    let (program, at) = site.serve();
    let client = Client::of(&site.ca).with(&site.ca, &[uri(BILLING)], HOUR);
    let config = Arc::new(client.config(rustls::ALL_VERSIONS));
    let mut standing = client.connection(at.rest).await;
    let answer = ask(&mut standing, post(at.rest, "list-keys", &json!({}))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        kinds.push(resumed(at.rest, &config).await.unwrap());
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);

    // A key that is another certificate's: nothing changes, and the metric tells.
    let (chain, _) = site.ca.issue(
        &[dns("localhost")],
        HOUR,
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    site.swap(&[("tls.crt", &chain)]);
    program
        .stderr
        .wait_for(|log| log.contains("is another certificate's"));
    let metrics = fetch(at.admin, "/metrics").await.text;
    assert_eq!(metric(&metrics, "kmsgate_stale_credential_files"), 1);
    assert!(client.is_let_in_over_rest(at.rest).await);

    // Other CAs on both sides. The connection that stands goes on.
    let other = Ca::new();
    let (chain, key) = other.issue(
        &[dns("localhost")],
        HOUR,
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    site.swap(&[
        ("tls.crt", &chain),
        ("tls.key", &key),
        ("ca.crt", &other.pem()),
    ]);
    program
        .stderr
        .wait_for(|log| log.contains("read a credential or policy file"));
    let answer = ask(&mut standing, post(at.rest, "list-keys", &json!({}))).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let new = Client::of(&other).with(&other, &[uri(BILLING)], HOUR);
    assert!(new.is_let_in_over_rest(at.rest).await);
    let metrics = fetch(at.admin, "/metrics").await.text;
    assert_eq!(metric(&metrics, "kmsgate_stale_credential_files"), 0);

    // Neither an old certificate nor an old session lets anyone in.
    let old = Client::of(&other).with(&site.ca, &[uri(BILLING)], HOUR);
    assert!(!old.is_let_in_over_rest(at.rest).await);
    assert!(resumed(at.rest, &config).await.is_err());
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_is_left_and_holds_up_nobody() {
    let site = Tls::new("", "");
    let (program, at) = site.serve();
    let begun = Instant::now();
    let mut silent = TcpStream::connect(at.rest).await.unwrap();
    // The head of a record, and nothing of what it announces.
    silent.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let client = Client::of(&site.ca);
    assert!(client.is_let_in(at).await);
    let _ = silent.read_to_end(&mut Vec::new()).await;
    let waited = begun.elapsed();
    let in_time = Duration::from_secs(5)..Duration::from_secs(10);
    assert!(in_time.contains(&waited), "{waited:?}");
    // Neither does it hold up a stop.
    let _silent = TcpStream::connect(at.grpc).await.unwrap();
    let begun = Instant::now();
    program.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_client_that_comes_as_the_server_stops_is_answered() {
    let site = Tls::new("", "");
    let (mut program, at) = site.serve();
    let early = TcpStream::connect(at.rest).await.unwrap();
    program.signal(Signal::TERM);
    // Now nobody listens any longer.
    while TcpStream::connect(at.rest).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let config = Client::of(&site.ca).config(rustls::ALL_VERSIONS);
    let mut stream = shake_hands(early, config).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized"), "{answer}");
    assert!(program.ended().success());
}

#[tokio::test]
async fn commands_and_a_gateway_ask_over_tls() {
    let site = Tls::new(REQUIRED, RULES);
    let (_program, at) = site.serve();
    let server = format!("https://localhost:{}", at.grpc.port());
    let own = |name: &str, names: &[SanType]| {
        let (chain, key) = site
            .ca
            .issue(names, HOUR, ExtendedKeyUsagePurpose::ClientAuth);
        site.site.write(&format!("{name}.crt"), &chain);
        site.site.write(&format!("{name}.key"), &key);
        let file = |end| site.site.name(&format!("{name}.{end}"));
        [
            "--ca-file".to_owned(),
            site.site.name("..data/ca.crt"),
            "--certificate-file".to_owned(),
            file("crt"),
            "--private-key-file".to_owned(),
            file("key"),
        ]
    };
    let asked = |words: &[&str], tls: &[String]| {
        let words = words.iter().map(|word| (*word).to_owned());
        let server = ["--server".to_owned(), server.clone()];
        words
            .chain(server)
            .chain(tls.iter().cloned())
            .collect::<Vec<_>>()
    };
    let backup = own("backup", &[dns("backup.shop.svc")]);
    assert_eq!(done(asked(&["health"], &backup), b""), "serving\n");
    // The certificate is the credential.
    let key = done(asked(&["key", "create", "orders"], &backup), b"");
    assert_eq!(key.trim().len(), 36, "{key}");
    for (words, tls, sentence) in [
        (
            &["key", "list"][..],
            &backup[..2],
            "needs a --token-file, or a --certificate-file",
        ),
        (&["health"], &[], "name its CA with --ca-file"),
        (
            &["health"],
            &backup[..2], // Whether the alert is read before the connection is gone depends.
            "kmsgate: ",
        ),
    ] {
        let told = refused(asked(words, tls), b"");
        assert!(told.contains(sentence), "{words:?}: {told}");
    }

    // Whom a rule is for is explained without a server.
    let config = site.site.name("kmsgate.toml");
    let explain = [
        "policy", "explain", "--config", &config, "--caller", BILLING, "--action",
    ];
    let told = done(explain.into_iter().chain(["kms:cmk:list"]), b"");
    assert!(
        told.starts_with(&format!(
            "allowed: kms:cmk:list for the certificate {BILLING}"
        )),
        "{told}"
    );
    let told = run(explain.into_iter().chain(["kms:cmk:create"]), b"");
    assert_eq!(told.status.code(), Some(1), "{told:?}");

    // The gateway's certificate opens the connection, and stands for no caller that it asks for,
    // although a rule is for it.
    let serving = ["--tls-certificate-file", "--tls-private-key-file"];
    let files = ["..data/tls.crt", "..data/tls.key"].map(|name| site.site.name(name));
    let free = ["--rest", "127.0.0.1:0", "--admin", "127.0.0.1:0"].map(str::to_owned);
    let mut arguments = vec![
        "gateway".to_owned(),
        "--upstream".to_owned(),
        server.clone(),
    ];
    arguments.extend(own("gateway", &[uri(BILLING)]));
    for (flag, file) in serving.into_iter().zip(files) {
        arguments.extend([flag.to_owned(), file]);
    }
    arguments.extend(free);
    let (_gateway, gateway) = Program::serve(arguments);
    let client = Client::of(&site.ca);
    let answer = client
        .post(gateway.rest, "list-keys", Some(TOKEN), &json!({}))
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let answer = client
        .post(gateway.rest, "list-keys", None, &json!({}))
        .await;
    assert_eq!(answer.code(), "APIGW.0301");
    let metrics = fetch(gateway.admin, "/metrics").await.text;
    assert_ne!(
        metric(&metrics, "kmsgate_tls_certificate_not_after_seconds"),
        0
    );
    let plain = [
        "gateway",
        "--upstream",
        &server,
        "--rest",
        "0.0.0.0:0",
        "--ca-file",
    ];
    let ca = site.site.name("..data/ca.crt");
    let told = refused(plain.into_iter().chain([&*ca]), b"");
    assert!(told.contains("0.0.0.0:0 is not on loopback"), "{told}");
}

#[test]
fn a_server_that_does_not_shake_hands_holds_up_no_command() {
    let site = Site::new("");
    site.write("token", TOKEN);
    site.write("ca.crt", &Ca::new().pem());
    let (token, ca) = (site.name("token"), site.name("ca.crt"));
    // The system lets connections in, and nobody takes them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("https://{}", silent.local_addr().unwrap());
    let tls = ["--server", &server, "--ca-file", &ca];
    for words in [&["health"][..], &["key", "list", "--token-file", &token]] {
        let told = refused(words.iter().chain(&tls), b"");
        let sentence = format!("{server} said nothing in 5s");
        assert!(told.contains(&sentence), "{words:?}: {told}");
    }
}

#[tokio::test]
async fn a_gateway_gives_up_a_handshake_that_does_not_end() {
    let site = Site::new("");
    site.write("ca.crt", &Ca::new().pem());
    let ca = site.name("ca.crt");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("https://{}", silent.local_addr().unwrap());
    let (_gateway, gateway) = Program::serve([
        "gateway",
        "--timeout",
        "100ms",
        "--upstream",
        &upstream,
        "--ca-file",
        &ca,
        "--rest",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let connections = async {
        let first = silent.accept().await.unwrap();
        (first, silent.accept().await.unwrap())
    };
    let asking = async {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let answer = call(gateway.rest, TOKEN, "describe-key", &json!({})).await;
            assert_eq!(answer.code(), "APIGW.0201");
        }
    };
    tokio::select! {
        _ = connections => {}
        () = asking => panic!("it waits for the first for ever"),
    }
}

#[tokio::test]
async fn a_gateway_follows_the_files_by_which_it_knows_its_upstream() {
    let site = Tls::new(REQUIRED, RULES);
    let (_program, at) = site.serve();
    let purpose = ExtendedKeyUsagePurpose::ClientAuth;
    let own = |ca: &Ca| ca.issue(&[uri(STRANGER)], HOUR, purpose.clone());
    let put = |ca: &Ca, (chain, key): (String, String)| {
        site.site.write("upstream-ca.crt", &ca.pem());
        site.site.write("gateway.crt", &chain);
        site.site.write("gateway.key", &key);
    };
    let other = Ca::new();
    put(&other, own(&other));
    let server = format!("https://localhost:{}", at.grpc.port());
    let mut arguments = vec!["gateway".to_owned(), "--upstream".to_owned(), server];
    for (flag, file) in [
        ("--ca-file", "upstream-ca.crt"),
        ("--certificate-file", "gateway.crt"),
        ("--private-key-file", "gateway.key"),
    ] {
        arguments.extend([flag.to_owned(), site.site.name(file)]);
    }
    arguments.extend(["--rest", "127.0.0.1:0", "--admin", "127.0.0.1:0"].map(str::to_owned));
    let (program, gateway) = Program::serve(arguments);
    let list = async || call(gateway.rest, TOKEN, "list-keys", &json!({})).await;
    assert_eq!(
        list().await.code(),
        "APIGW.0201",
        "it does not know the server"
    );

    // Half of what belongs together changes nothing.
    let (chain, key) = own(&site.ca);
    site.site.write("gateway.crt", &chain);
    program
        .stderr
        .wait_for(|log| log.contains("the private key is another's"));
    let metrics = fetch(gateway.admin, "/metrics").await.text;
    assert_eq!(metric(&metrics, "kmsgate_stale_credential_files"), 1);

    put(&site.ca, (chain, key));
    let deadline = Instant::now() + PATIENCE;
    while list().await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "{}", program.stderr.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_a_proxy_says_is_believed_from_where_the_configuration_says() {
    let site = Site::new("");
    let rules = format!("[auth.forwarded]\npeers = [\"loopback\"]\n{RULES}");
    let config = format!("{}\n{rules}", site.config("root.key"));
    site.write("kmsgate.toml", &config);
    let (_program, at) = site.serve();
    let forwarded = async |headers: &[&str]| {
        let mut request = post(at.rest, "list-keys", &json!({}));
        *request.uri_mut() = format!("http://{}{}", at.rest, request.uri())
            .parse()
            .unwrap();
        for value in headers {
            let name = "x-forwarded-client-cert";
            request.headers_mut().append(name, value.parse().unwrap());
        }
        send(request).await
    };
    let forwarded_over_grpc = async |headers: &[&str]| {
        let mut grpc = Grpc::connect(at.grpc, TOKEN).await;
        let mut request = tonic::Request::new(kmsgate::grpc::pb::ListKeysRequest::default());
        for value in headers {
            let name = "x-forwarded-client-cert";
            request.metadata_mut().append(name, value.parse().unwrap());
        }
        let answer = grpc.keys.list_keys(request).await;
        answer.map(|_| ()).map_err(|status| {
            let code = kmsgate::grpc::status::code(&status).unwrap();
            format!("{code}: {}", status.message())
        })
    };
    let own =
        format!("By=spiffe://example.org/k;Hash=ab;Subject=\"CN=a,O=\\\"b\\\";c\";URI={BILLING}");
    for good in [
        own.clone(),
        format!("URI={STRANGER},{own}"),
        "By=x;DNS=other.svc;DNS=backup.shop.svc".to_owned(),
    ] {
        let answer = forwarded(&[&good]).await;
        assert_eq!(answer.status, StatusCode::OK, "{good}: {answer:?}");
        assert_eq!(forwarded_over_grpc(&[&good]).await, Ok(()), "{good}");
    }
    for (bad, why) in [
        (format!("{own},URI={STRANGER}"), "x-auth-token not found"),
        (format!("{own},By=x"), "x-auth-token not found"),
        (format!("{own};URI={STRANGER}"), "x-auth-token not found"),
        ("By=x".to_owned(), "x-auth-token not found"),
        (format!("{own},"), "is malformed"),
        (format!("a=\",{own}"), "is malformed"),
        ("URI=\"".to_owned(), "is malformed"),
        (BILLING.to_owned(), "is malformed"),
        (String::new(), "is malformed"),
        // What a client itself has sent, before what the proxy adds of it.
        (
            "DNS=backup.shop.svc;x,By=y;Hash=ab;DNS=z".to_owned(),
            "is malformed",
        ),
        (
            "DNS=backup.shop.svc;,By=y;Hash=ab".to_owned(),
            "is malformed",
        ),
    ] {
        let answer = forwarded(&[&bad]).await;
        assert_eq!(answer.code(), "APIGW.0301", "{bad}");
        assert!(answer.text.contains(why), "{bad}: {answer:?}");
        let over_grpc = forwarded_over_grpc(&[&bad]).await.unwrap_err();
        let same = over_grpc.starts_with("APIGW.0301: ") && over_grpc.contains(why);
        assert!(same, "{bad}: {over_grpc}");
    }
    let twice = forwarded(&[&own, &own]).await;
    assert_eq!(twice.code(), "APIGW.0301");
    let twice = forwarded_over_grpc(&[&own, &own]).await;
    assert!(twice.unwrap_err().starts_with("APIGW.0301: "));

    // Where nobody is configured to be believed, the header is a header like any other.
    let site = Site::new("");
    let (_program, at) = site.serve();
    let mut request = post(at.rest, "list-keys", &json!({}));
    *request.uri_mut() = format!("http://{}{}", at.rest, request.uri())
        .parse()
        .unwrap();
    let headers = request.headers_mut();
    headers.insert("x-forwarded-client-cert", own.parse().unwrap());
    assert_eq!(send(request).await.code(), "APIGW.0301");
    let answer = call(at.rest, TOKEN, "list-keys", &json!({})).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn what_another_peer_says_is_refused_and_logged() {
    let site = Site::new("");
    let config = format!(
        "{}\n[auth.forwarded]\npeers = []\n{RULES}",
        site.config("root.key")
    );
    site.write("kmsgate.toml", &config);
    let (program, at) = site.serve();
    let mut request = post(at.rest, "list-keys", &json!({}));
    *request.uri_mut() = format!("http://{}{}", at.rest, request.uri())
        .parse()
        .unwrap();
    let value = format!("URI={BILLING}");
    let headers = request.headers_mut();
    headers.insert("x-forwarded-client-cert", value.parse().unwrap());
    // A good token makes it no better.
    let mut with_token = request.clone();
    let headers = with_token.headers_mut();
    headers.insert("x-auth-token", TOKEN.parse().unwrap());
    for request in [request, with_token] {
        let answer = send(request).await;
        assert_eq!(answer.code(), "APIGW.0301");
        assert!(answer.text.contains("not believed"), "{answer:?}");
    }
    let mut grpc = Grpc::connect(at.grpc, TOKEN).await;
    let mut request = grpc.ask(kmsgate::grpc::pb::ListKeysRequest::default());
    let metadata = request.metadata_mut();
    metadata.insert("x-forwarded-client-cert", value.parse().unwrap());
    let status = grpc.keys.list_keys(request).await.unwrap_err();
    assert!(status.message().contains("not believed"), "{status}");
    program
        .stderr
        .wait_for(|log| log.contains("a peer that is not configured"));
}

#[test]
fn files_that_make_no_tls_are_told_before_anything_starts() {
    let site = Tls::new(REQUIRED, RULES);
    let check = || {
        refused(
            ["check-config", "--config", &site.site.name("kmsgate.toml")],
            b"",
        )
    };
    let (chain, key) = site.ca.issue(
        &[dns("localhost")],
        HOUR,
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    let good = [
        ("tls.crt", chain),
        ("tls.key", key),
        ("ca.crt", site.ca.pem()),
    ];
    for (name, text, sentence) in [
        ("tls.crt", "", "there is no certificate in the file"),
        (
            "tls.crt",
            "-----BEGIN CERTIFICATE-----\n!",
            "the certificate is not PEM",
        ),
        (
            "tls.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "the certificate cannot be read",
        ),
        ("tls.key", "", "the private key is not PEM"),
        (
            "tls.key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "the private key cannot be used",
        ),
        ("ca.crt", "", "there is no certificate in client_ca_file"),
    ] {
        site.swap(&good.each_ref().map(|(name, text)| (*name, &**text)));
        site.swap(&[(name, text)]);
        let told = check();
        assert!(told.contains(sentence), "{name}: {told}");
    }
}

const HOUR: i64 = 3600;
const OPTIONAL: &str = "client_ca_file = \"DIR/..data/ca.crt\"";
const REQUIRED: &str = "client_ca_file = \"DIR/..data/ca.crt\"\nclient_certificates = \"required\"";
const RULES: &str = r#"
[[auth.mtls]]
identity = "spiffe://example.org/ns/shop/sa/billing"
project = "53d1aefc533f4ce9a59c26b01667cbcf"
actions = ["kms:cmk:list"]
[[auth.mtls]]
identity = "spiffe://example.org/ns/reports/*"
project = "53d1aefc533f4ce9a59c26b01667cbcf"
actions = ["kms:cmk:encryptData"]
[[auth.mtls]]
identity = "dns:backup.shop.svc"
project = "53d1aefc533f4ce9a59c26b01667cbcf"
actions = ["kms:cmk:*"]
"#;

/// A site that serves TLS from a directory as Kubernetes mounts a Secret: the files are links into
/// `..data`, and that is a link which is replaced in one step.
struct Tls {
    site: Site,
    ca: Ca,
}

impl Tls {
    /// A site with these lines in its `[tls]` section, and these after all others.
    fn new(lines: &str, more: &str) -> Self {
        let site = Site::new("");
        let ca = Ca::new();
        let dir = site.dir.path().display().to_string();
        let config = format!(
            "{}\n[tls]\ncertificate_file = \"DIR/..data/tls.crt\"\n\
             private_key_file = \"DIR/..data/tls.key\"\n{lines}\n{more}",
            site.config("root.key")
        );
        site.write("kmsgate.toml", &config.replace("DIR", &dir));
        let tls = Self { site, ca };
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        let (chain, key) = tls.ca.issue(&[dns("localhost")], HOUR, purpose);
        tls.swap(&[
            ("tls.crt", &chain),
            ("tls.key", &key),
            ("ca.crt", &tls.ca.pem()),
        ]);
        tls
    }

    /// Puts other files in the place of these, in one step, as Kubernetes does.
    fn swap(&self, files: &[(&str, &str)]) {
        let data = self.site.path("..data");
        let generation = fs::read_link(&data).map_or(0, |old| {
            let old = old.to_str().unwrap();
            old.strip_prefix("..").unwrap().parse::<u32>().unwrap() + 1
        });
        let name = format!("..{generation}");
        fs::create_dir(self.site.path(&name)).unwrap();
        if let Ok(entries) = fs::read_dir(&data) {
            for entry in entries {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_str().unwrap();
                fs::copy(&path, self.site.path(&format!("{name}/{file}"))).unwrap();
            }
        }
        for (file, text) in files {
            self.site.write(&format!("{name}/{file}"), text);
        }
        let new = self.site.path("..data_tmp");
        symlink(&name, &new).unwrap();
        fs::rename(new, data).unwrap();
    }

    fn serve(&self) -> (Program, Addresses) {
        self.site.serve()
    }
}

/// A certificate authority.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names that is good for so many seconds, and its key.
    fn issue(
        &self,
        names: &[SanType],
        seconds: i64,
        purpose: ExtendedKeyUsagePurpose,
    ) -> (String, String) {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(2 * 3600)).into();
        let left = Duration::from_secs(seconds.unsigned_abs());
        params.not_after = if seconds > 0 { now + left } else { now - left }.into();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A client, the CA that it trusts, and its own certificate and key if it has any.
struct Client {
    trusted: String,
    own: Option<(String, String)>,
}

impl Client {
    fn of(ca: &Ca) -> Self {
        Self {
            trusted: ca.pem(),
            own: None,
        }
    }

    fn with(self, ca: &Ca, names: &[SanType], seconds: i64) -> Self {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        self.using(ca.issue(names, seconds, purpose))
    }

    fn using(self, own: (String, String)) -> Self {
        Self {
            own: Some(own),
            ..self
        }
    }

    fn config(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let trusted = CertificateDer::from_pem_slice(self.trusted.as_bytes()).unwrap();
        roots.add(trusted).unwrap();
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match &self.own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
        }
    }

    /// An HTTP/1.1 connection.
    async fn connection(&self, address: SocketAddr) -> http1::SendRequest<Full<bytes::Bytes>> {
        let config = self.config(rustls::ALL_VERSIONS);
        let stream = connect(address, config).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn send(&self, rest: SocketAddr, request: Request<Full<bytes::Bytes>>) -> Answer {
        ask(&mut self.connection(rest).await, request).await
    }

    async fn post(
        &self,
        rest: SocketAddr,
        operation: &str,
        token: Option<&str>,
        body: &serde_json::Value,
    ) -> Answer {
        let mut request = post(rest, operation, body);
        if let Some(token) = token {
            let headers = request.headers_mut();
            headers.insert("x-auth-token", token.parse().unwrap());
        }
        self.send(rest, request).await
    }

    /// Lists keys over gRPC, and tells the code of a refusal.
    async fn grpc(&self, grpc: SocketAddr, token: Option<&str>) -> Result<(), String> {
        self.try_grpc(grpc, token).await.unwrap()
    }

    /// The same; none if there is no connection.
    async fn try_grpc(&self, grpc: SocketAddr, token: Option<&str>) -> Option<Result<(), String>> {
        let mut config = self.config(rustls::ALL_VERSIONS);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = connect(grpc, config).await.ok()?;
        let executor = TokioExecutor::new();
        let handshake = http2::handshake(executor, TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.ok()?;
        tokio::spawn(connection);
        let message = prost::Message::encode_to_vec(&kmsgate::grpc::pb::ListKeysRequest {
            project_id: PROJECT.to_owned(),
            ..Default::default()
        });
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = [&[0], &length[..], &message].concat();
        let mut request = Request::post("https://localhost/kmsgate.v1.KeyService/ListKeys")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            request = request.header("x-auth-token", token);
        }
        let body = Full::new(bytes::Bytes::from(body));
        let request = request.body(body).unwrap();
        // With TLS 1.3 a client hears of a refused certificate when it reads.
        let answer = sender.send_request(request).await.ok()?;
        let headers = answer.headers().clone();
        let trailers = answer.into_body().collect().await.ok()?;
        let trailers = trailers.trailers().cloned().unwrap_or(headers);
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        Some(match status.code() {
            tonic::Code::Ok => Ok(()),
            _ => Err(kmsgate::grpc::status::code(&status).unwrap().to_owned()),
        })
    }

    /// Whether a token is taken over a connection of this client, on both faces alike.
    async fn is_let_in(&self, at: Addresses) -> bool {
        let over_rest = self.is_let_in_over_rest(at.rest).await;
        let over_grpc = self.try_grpc(at.grpc, Some(TOKEN)).await == Some(Ok(()));
        assert_eq!(over_rest, over_grpc);
        over_rest
    }

    async fn is_let_in_over_rest(&self, rest: SocketAddr) -> bool {
        let Ok(stream) = connect(rest, self.config(rustls::ALL_VERSIONS)).await else {
            return false;
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = post(rest, "list-keys", &json!({}));
        let headers = request.headers_mut();
        headers.insert("x-auth-token", TOKEN.parse().unwrap());
        // With TLS 1.3 a client hears of a refused certificate when it reads.
        let answer = sender.send_request(request).await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }
}

async fn connect(
    address: SocketAddr,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    shake_hands(TcpStream::connect(address).await?, config).await
}

async fn shake_hands(
    stream: TcpStream,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    tokio::time::timeout(PATIENCE, connecting).await?
}

/// How a handshake went that may resume the session before it, once a request was answered.
async fn resumed(rest: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<HandshakeKind> {
    let stream = TcpStream::connect(rest).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    let mut stream = connector.connect(name, stream).await?;
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(stream.get_ref().1.handshake_kind().unwrap())
}

fn post(
    rest: SocketAddr,
    operation: &str,
    body: &serde_json::Value,
) -> Request<Full<bytes::Bytes>> {
    Request::post(format!("/v1.0/{PROJECT}/kms/{operation}"))
        .header("host", rest.to_string())
        .body(Full::from(body.to_string()))
        .unwrap()
}

async fn ask(
    connection: &mut http1::SendRequest<Full<bytes::Bytes>>,
    request: Request<Full<bytes::Bytes>>,
) -> Answer {
    connection.ready().await.unwrap();
    let answer = connection.send_request(request).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// The value of a metric without labels.
fn metric(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
        .parse()
        .unwrap()
}
