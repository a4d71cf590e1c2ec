//! Unix sockets, against the running program.

mod program;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use kmsgate::grpc::pb;
use kmsgate::grpc::pb::crypto_service_client::CryptoServiceClient;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;

use crate::program::{Addresses, Answer, PROJECT, Program, Site, TOKEN, done, refused};

/// The header in which a proxy tells its clients' certificates, and what one tells.
const FORWARDED: &str = "x-forwarded-client-cert";
const BILLING: &str = "URI=spiffe://example.org/ns/shop/sa/billing";

#[tokio::test]
async fn both_faces_and_the_probes_are_served_on_unix_sockets() {
    let site = on_sockets(&["grpc", "rest", "admin"], "");
    let (program, _) = site.serve();
    for name in ["grpc", "rest", "admin"] {
        let mode = fs::metadata(socket(&site, name)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o660, "{name}");
    }
    let ready = ask(&socket(&site, "admin"), get("/readyz")).await;
    assert_eq!(ready.text, "ok\n");

    let rest = socket(&site, "rest");
    let body = json!({ "key_alias": "k" });
    let made = ask(&rest, post("create-key", &body, &[("x-auth-token", TOKEN)])).await;
    let key = made.json()["key_info"]["key_id"]
        .as_str()
        .map(str::to_owned);
    let sealed = encrypt(&socket(&site, "grpc"), &key.unwrap())
        .await
        .unwrap();
    let body = json!({ "cipher_text": sealed });
    let opened = ask(
        &rest,
        post("decrypt-data", &body, &[("x-auth-token", TOKEN)]),
    )
    .await;
    assert_eq!(opened.json()["plain_text"], "hello");
    let refused = ask(&rest, post("decrypt-data", &body, &[])).await;
    assert_eq!(refused.code(), "APIGW.0301");

    program.stop();
    for name in ["grpc", "rest", "admin"] {
        assert!(!socket(&site, name).exists(), "{name} is removed");
    }
}

#[tokio::test]
async fn commands_and_a_gateway_ask_over_a_unix_socket() {
    let site = on_sockets(&["grpc"], "");
    let (_program, _) = site.serve();
    site.write("token", TOKEN);
    let server = format!("unix:{}", site.name("grpc.sock"));
    assert_eq!(done(["health", "--server", &server], b""), "serving\n");
    let token = site.name("token");
    let named = ["--server", &server, "--token-file", &token];
    let key = done(["key", "create", "k"].into_iter().chain(named), b"");
    assert_eq!(key.trim().len(), 36, "{key}");
    let ca = ["health", "--server", &server, "--ca-file", &token];
    let told = refused(ca, b"");
    assert!(told.contains("is not https"), "{told}");

    let rest = format!("unix:{}", site.name("gateway.sock"));
    let (gateway, _) = Program::serve([
        "gateway",
        "--shutdown-lag",
        "0ms",
        "--upstream",
        &server,
        "--rest",
        &rest,
        "--admin",
        "127.0.0.1:0",
    ]);
    let body = json!({ "key_spec": "ALL" });
    let request = post("list-keys", &body, &[("x-auth-token", TOKEN)]);
    let answer = ask(&socket(&site, "gateway"), request).await;
    assert_eq!(answer.json()["keys"], json!([key.trim()]), "{answer:?}");
    gateway.stop();
    assert!(!socket(&site, "gateway").exists());
}

#[tokio::test]
async fn a_killed_server_s_socket_is_taken_over_and_a_living_one_s_is_not() {
    let site = on_sockets(&["rest"], "");
    let (program, _) = site.serve();
    program.kill();
    assert!(socket(&site, "rest").exists());
    let (_program, _) = site.serve();
    let list = || post("list-keys", &json!({}), &[("x-auth-token", TOKEN)]);
    let answer = ask(&socket(&site, "rest"), list()).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");

    // One with a store of its own, and the same socket.
    let config = fs::read_to_string(site.path("kmsgate.toml")).unwrap();
    site.write("other.toml", &config.replace("keys.db", "other.db"));
    let told = refused(["serve", "--config", &site.name("other.toml")], b"");
    assert!(told.contains("cannot listen on unix:"), "{told}");
    assert!(told.contains("in use"), "{told}");
    let answer = ask(&socket(&site, "rest"), list()).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test]
async fn what_a_proxy_says_is_believed_over_the_sockets_that_are_configured() {
    let body = json!({ "key_spec": "ALL" });
    let said = || post("list-keys", &body, &[(FORWARDED, BILLING)]);
    let site = on_sockets(&["rest"], &rules("unix"));
    let (program, at) = site.serve();
    let answer = ask(&socket(&site, "rest"), said()).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    // gRPC is on a port, where the same header is refused, and logged once a second with a count.
    for _ in 0..20 {
        assert_eq!(told_over_grpc(at).await, "APIGW.0301");
    }
    let log = program.stop().1;
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("a peer that is not configured"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stands_for: u64 = lines
        .iter()
        .map(|line| line["requests"].as_u64().unwrap())
        .sum();
    assert!((1..=20).contains(&stands_for), "{log}");
    assert!(lines.len() < 20, "{log}");
    assert!(
        lines[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{log}"
    );

    // And the other way round.
    let site = on_sockets(&["rest"], &rules("loopback"));
    let (program, _) = site.serve();
    let answer = ask(&socket(&site, "rest"), said()).await;
    assert_eq!(answer.code(), "APIGW.0301", "{answer:?}");
    let log = program.stop().1;
    assert!(log.contains("\"peer\":\"unix socket, user "), "{log}");
}

/// A site whose server has these on Unix sockets, and the rest on ports.
fn on_sockets(names: &[&str], more: &str) -> Site {
    let site = Site::new("");
    let mut config = site.config("root.key");
    for name in names {
        let path = site.name(&format!("{name}.sock"));
        let port = format!("{name} = \"127.0.0.1:0\"");
        let socket = format!("{name} = \"unix:{path}\"");
        config = config.replace(&port, &socket);
        assert!(config.contains(&socket), "{config}");
    }
    site.write("kmsgate.toml", &format!("{config}{more}"));
    site
}

/// Settings that let in whom the certificate is for, as these peers tell it.
fn rules(peers: &str) -> String {
    format!(
        "[auth.forwarded]\npeers = [\"{peers}\"]\n[[auth.mtls]]\n\
         identity = \"spiffe://example.org/ns/shop/*\"\nproject = \"{PROJECT}\"\n\
         actions = [\"kms:cmk:list\"]\n"
    )
}

fn socket(site: &Site, name: &str) -> std::path::PathBuf {
    site.path(&format!("{name}.sock"))
}

fn get(path: &str) -> Request<Full<bytes::Bytes>> {
    let request = Request::get(path).header("host", "localhost");
    request.body(Full::default()).unwrap()
}

fn post(operation: &str, body: &Value, headers: &[(&str, &str)]) -> Request<Full<bytes::Bytes>> {
    let path = format!("/v1.0/{PROJECT}/kms/{operation}");
    let mut request = Request::post(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_string())).unwrap()
}

/// Sends a request over a socket, and reads the whole answer.
async fn ask(socket: &Path, request: Request<Full<bytes::Bytes>>) -> Answer {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// Encrypts over gRPC; the ciphertext in Base64.
async fn encrypt(socket: &Path, key: &str) -> Result<String, tonic::Status> {
    use base64::Engine as _;
    let address = format!("unix:{}", socket.display());
    let channel = Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut request = tonic::Request::new(pb::EncryptDataRequest {
        key_id: key.to_owned(),
        plaintext: Some(Plaintext::PlainText("hello".to_owned())),
        ..pb::EncryptDataRequest::default()
    });
    let token = TOKEN.parse().unwrap();
    request.metadata_mut().insert("x-auth-token", token);
    let sealed = CryptoServiceClient::new(channel)
        .encrypt_data(request)
        .await?;
    let sealed = sealed.into_inner().cipher_text;
    Ok(base64::engine::general_purpose::STANDARD.encode(sealed))
}

/// The code of the refusal of a forwarded certificate over gRPC.
async fn told_over_grpc(at: Addresses) -> String {
    let address = format!("http://{}", at.grpc);
    let channel = Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut request = tonic::Request::new(pb::EncryptDataRequest::default());
    let metadata = request.metadata_mut();
    metadata.insert(FORWARDED, BILLING.parse().unwrap());
    let refused = CryptoServiceClient::new(channel)
        .encrypt_data(request)
        .await;
    kmsgate::grpc::status::code(&refused.unwrap_err())
        .unwrap()
        .to_owned()
}
