//! The REST gateway against a stub of the services: JSON both ways, malformed bodies, paths,
//! failures, and a remote upstream, good and bad.
//!
//! Bodies are the samples of Huawei's documents (contract, sections 1.2, 5.2 and 6.6), or have the
//! documented members where there is no sample.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::BodyExt;
use proptest::prelude::{any, prop};
use proptest::{prop_assert, proptest};
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::ServiceExt;

use kmsgate::error::{Error, Face, Kind, Retry};
use kmsgate::gateway::{Rest, Upstream, router};
use kmsgate::grpc::pb;
use kmsgate::grpc::pb::crypto_service_server::{CryptoService, CryptoServiceServer};
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;
use kmsgate::grpc::pb::key_service_server::{KeyService, KeyServiceServer};
use kmsgate::server::serve_gateway;

const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";
const KEY: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";
const SAMPLE_KEY: &str = "bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e";
const SEQUENCE: &str = "919c82d4-8046-4722-9094-35c3c6524cff";
const TEN_SECONDS: Duration = Duration::from_secs(10);

/// Section 5.2, with the member that newer documents add, and no expiry: only imported material
/// expires.
const KEY_INFO: &str = concat!(
    r#"{"key_id":"0d0466b0-e727-4d9c-b35d-f84bb474a37f","#,
    r#""domain_id":"00074811d5c27c4f8d48bb91e4a1dcfd","key_alias":"test","realm":"test","#,
    r#""key_description":"key_description","creation_date":"1502799822000","#,
    r#""scheduled_deletion_date":"","key_spec":"AES_256","key_usage":"ENCRYPT_DECRYPT","#,
    r#""key_state":"2","default_key_flag":"0","key_type":"1","expiration_time":"","#,
    r#""origin":"kms","key_rotation_enabled":"false","sys_enterprise_project_id":"0","#,
    r#""keystore_id":"0","partition_type":"1"}"#,
);

#[tokio::test]
async fn every_operation_reads_and_answers_the_documented_json() {
    for case in cases() {
        let stub = answering(&case);
        let answer = call(&stub.router(), case.name, case.body.to_string()).await;
        assert_eq!(answer.status, 200, "{}: {}", case.name, answer.body);
        assert_eq!(answer.body, case.json, "{}", case.name);
        assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        let seen = stub.last();
        assert_eq!(seen.method, case.method);
        assert_eq!(seen.message, case.request, "{}", case.name);
    }
}

#[tokio::test]
async fn a_remote_upstream_gives_the_same_answers() {
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    for case in cases() {
        stub.answers(case.method, case.answer);
        let answer = call(&gateway, case.name, case.body.to_string()).await;
        assert_eq!(answer.status, 200, "{}: {}", case.name, answer.body);
        assert_eq!(answer.body, case.json, "{}", case.name);
        assert_eq!(stub.last().message, case.request, "{}", case.name);
    }
}

#[tokio::test]
async fn a_member_that_is_null_is_absent() {
    for case in cases() {
        for member in members(&case.body) {
            let null = with(&case.body, &member, Value::Null);
            let absent = message_of(&case, &without(&case.body, &member)).await;
            assert!(absent == message_of(&case, &null).await, "{member}");
        }
    }
}

#[tokio::test]
async fn a_member_that_is_empty_is_absent_save_plaintext() {
    for case in cases() {
        for member in members(&case.body) {
            let empty = with(&case.body, &member, json!(""));
            let absent = message_of(&case, &without(&case.body, &member)).await;
            let same = absent == message_of(&case, &empty).await;
            assert_eq!(same, member != "plain_text", "{} {member}", case.name);
        }
    }
    for (body, plaintext) in [
        (r#"{"plain_text":""}"#, Plaintext::PlainText(String::new())),
        (
            r#"{"plain_text_base64":""}"#,
            Plaintext::PlainBytes(Vec::new()),
        ),
    ] {
        let message: pb::EncryptDataRequest = read("encrypt-data", body).await;
        assert!(message.plaintext == Some(plaintext), "{body}");
    }
}

#[tokio::test]
async fn unknown_members_are_ignored() {
    for case in cases() {
        let mut body = case.body.clone();
        body["enterprise_project_id"] = json!("0");
        body["auto_rotation"] = json!(0);
        body["vm_id"] = json!({"a": [1, -2.5, true, null, "x", {"b": []}]});
        assert!(message_of(&case, &body).await == case.request);
    }
}

#[tokio::test]
async fn a_member_of_the_wrong_type_is_refused() {
    for case in cases() {
        for member in members(&case.body) {
            for wrong in [
                json!(5),
                json!(1.5),
                json!(true),
                json!([]),
                json!(["x"]),
                json!({}),
            ] {
                let body = with(&case.body, &member, wrong).to_string();
                refuses(case.name, body, Kind::InvalidJson).await;
            }
        }
    }
}

#[tokio::test]
async fn a_repeated_member_is_refused() {
    for case in cases() {
        let body = case.body.to_string();
        let rest = body.strip_prefix('{').unwrap();
        for member in members(&case.body) {
            let value = &case.body[&member];
            let twice = format!(r#"{{"{member}":{value},{rest}"#);
            refuses(case.name, twice, Kind::InvalidJson).await;
        }
        let unknown = format!(r#"{{"x":1,"x":1,{rest}"#);
        refuses(case.name, unknown, Kind::InvalidJson).await;
    }
}

#[tokio::test]
async fn a_body_cut_off_anywhere_is_refused() {
    for case in cases() {
        let body = case.body.to_string().into_bytes();
        for end in 0..body.len() {
            refuses(case.name, body[..end].to_vec(), Kind::InvalidJson).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_is_no_sound_object_is_refused() {
    let deep = format!(r#"{{"x":{}"#, "[".repeat(60_000));
    let deep_and_closed = format!(r#"{{"x":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"hello",
        b"null",
        b"[]",
        br#"["0d0466b0-e727-4d9c-b35d-f84bb474a37f"]"#,
        b"{}{}",
        b"{} x",
        b"<html></html>",
        br#"{"key_id":"\ud834"}"#,
        b"{\"key_id\":\"\xff\"}",
        b"{\"x\":\"\xff\"}",
        deep.as_bytes(),
        deep_and_closed.as_bytes(),
    ];
    for case in cases() {
        for &body in bodies {
            refuses(case.name, body.to_vec(), Kind::InvalidJson).await;
        }
    }
}

#[tokio::test]
async fn a_body_over_64_kib_is_refused() {
    let frame = r#"{"x":""}"#.len();
    let body = |length: usize| format!(r#"{{"x":"{}"}}"#, "x".repeat(length - frame));
    for case in cases() {
        let answer = call(&answering(&case).router(), case.name, body(65_536)).await;
        assert_eq!(answer.status, 200, "{}: {}", case.name, answer.body);
        refuses(case.name, body(65_537), Kind::MessageTooLong).await;
        refuses(case.name, "[".repeat(100_000), Kind::MessageTooLong).await;
    }
}

#[tokio::test]
async fn a_name_that_is_not_documented_is_a_number_that_no_enumeration_has() {
    for bad in [
        "AES",
        "symmetric_default",
        "SYMMETRIC_DEFAULT ",
        "ENCRYPTION_ALGORITHM_UNSPECIFIED",
        "1",
    ] {
        let body = json!({"encryption_algorithm": bad}).to_string();
        let message: pb::EncryptDataRequest = read("encrypt-data", body.clone()).await;
        assert_eq!(message.encryption_algorithm, -1, "{bad}");
        let message: pb::DecryptDataRequest = read("decrypt-data", body).await;
        assert_eq!(message.encryption_algorithm, -1, "{bad}");
    }
    for bad in ["EC_P256", "KEY_SPEC_UNSPECIFIED", "ALL"] {
        let body = json!({"key_spec": bad, "key_usage": bad}).to_string();
        let message: pb::CreateKeyRequest = read("create-key", body).await;
        assert_eq!((message.key_spec, message.key_usage), (-1, -1), "{bad}");
    }
    for bad in ["0", "6", "8", "02", "ENABLED", "KEY_STATE_UNSPECIFIED"] {
        let body = json!({"key_state": bad, "key_spec": "SM4"}).to_string();
        let message: pb::ListKeysRequest = read("list-keys", body).await;
        assert_eq!((message.key_state, message.key_spec), (-1, -1), "{bad}");
    }
}

#[tokio::test]
async fn documented_names_are_their_numbers() {
    for (number, name) in ["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_256", "SM2_ENCRYPT"]
        .into_iter()
        .enumerate()
    {
        let body = json!({"encryption_algorithm": name}).to_string();
        let message: pb::EncryptDataRequest = read("encrypt-data", body).await;
        assert_eq!(message.encryption_algorithm as usize, number + 1, "{name}");
    }
    for (number, name) in ["AES_256", "RSA_2048", "RSA_3072", "RSA_4096", "SM2"]
        .into_iter()
        .enumerate()
    {
        let body = json!({"key_spec": name}).to_string();
        let message: pb::CreateKeyRequest = read("create-key", body).await;
        assert_eq!(message.key_spec as usize, number + 1, "{name}");
    }
    for code in ["1", "2", "3", "4", "5", "7"] {
        let body = json!({"key_state": code}).to_string();
        let message: pb::ListKeysRequest = read("list-keys", body).await;
        assert_eq!(message.key_state.to_string(), code);
    }
}

#[tokio::test]
async fn keys_are_listed_of_aes_256_unless_another_spec_or_all_is_asked() {
    for (body, spec) in [
        (r"{}", pb::KeySpec::Aes256),
        (r#"{"key_spec":null}"#, pb::KeySpec::Aes256),
        (r#"{"key_spec":""}"#, pb::KeySpec::Aes256),
        (r#"{"key_spec":"ALL"}"#, pb::KeySpec::Unspecified),
        (r#"{"key_spec":"SM2"}"#, pb::KeySpec::Sm2),
    ] {
        let message: pb::ListKeysRequest = read("list-keys", body).await;
        assert_eq!(message.key_spec(), spec, "{body}");
        assert_eq!((message.limit, message.marker), (None, 0));
    }
}

#[tokio::test]
async fn a_number_is_digits() {
    for (text, number) in [("7", 7), ("0", 0), ("007", 7), ("2147483647", i32::MAX)] {
        let body = json!({"limit": text, "marker": text}).to_string();
        let message: pb::ListKeysRequest = read("list-keys", body).await;
        assert_eq!((message.limit, message.marker), (Some(number), number));
        let body = json!({"pending_days": text}).to_string();
        let message: pb::ScheduleKeyDeletionRequest = read("schedule-key-deletion", body).await;
        assert_eq!(message.pending_days, Some(number));
    }
    for bad in [
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.0",
        "1e1",
        "0x7",
        "x",
        "٧",
        "2147483648",
        "99999999999999999999",
    ] {
        let body = |member: &str| json!({ member: bad }).to_string();
        refuses("list-keys", body("limit"), Kind::InvalidLimit).await;
        refuses("list-keys", body("marker"), Kind::InvalidMarker).await;
        let days = body("pending_days");
        refuses("schedule-key-deletion", days, Kind::InvalidPendingDays).await;
    }
}

#[tokio::test]
async fn plaintext_is_text_or_base64() {
    let odd = "日本\n\u{0}𝄞\"\\";
    let body = json!({ "plain_text": odd }).to_string();
    let message: pb::EncryptDataRequest = read("encrypt-data", body).await;
    assert!(message.plaintext == Some(Plaintext::PlainText(odd.into())));

    // RFC 4648, section 10.
    let body = r#"{"plain_text_base64":"Zm9vYg==","plain_text":null}"#;
    let message: pb::EncryptDataRequest = read("encrypt-data", body).await;
    assert!(message.plaintext == Some(Plaintext::PlainBytes(b"foob".to_vec())));

    // Escaped as PHP's encoder does.
    let body = r#"{"plain_text_base64":"\/\/\/\/"}"#;
    let message: pb::EncryptDataRequest = read("encrypt-data", body).await;
    assert!(message.plaintext == Some(Plaintext::PlainBytes(vec![0xff; 3])));
}

#[tokio::test]
async fn both_forms_of_plaintext_are_one_too_many() {
    for body in [
        r#"{"plain_text":"foob","plain_text_base64":"Zm9vYg=="}"#,
        r#"{"plain_text":"","plain_text_base64":""}"#,
    ] {
        refuses("encrypt-data", body, Kind::InvalidParameter).await;
    }
}

#[tokio::test]
async fn base64_is_standard_padded_and_canonical() {
    // Variants of RFC 4648's "Zm9vYg==" and "Zm9v"; "Zm9vYh==" has stray bits (section 3.5).
    for bad in [
        "Zm9vYg",
        "Zm9vYg=",
        "Zm9vYg===",
        "Zm9v====",
        "Zm9vYh==",
        "Zm==9vYg",
        "Zm9v=",
        "=",
        "Z",
        "Zm9v\n",
        " Zm9v",
        "Zm 9v",
        "Zm9v\r\nYg==",
        "Zm9*",
        "-_-_",
        "é",
    ] {
        let body = json!({"plain_text_base64": bad}).to_string();
        refuses("encrypt-data", body, Kind::InvalidPlaintext).await;
        // The same fault at the end of text that is long enough.
        let body = json!({"cipher_text": "A".repeat(184) + bad}).to_string();
        refuses("decrypt-data", body, Kind::InvalidCiphertext).await;
    }
}

#[tokio::test]
async fn ciphertext_is_128_to_5648_characters() {
    let body = |length: usize| json!({"cipher_text": "A".repeat(length)}).to_string();
    for length in [128, 5648] {
        let message: pb::DecryptDataRequest = read("decrypt-data", body(length)).await;
        assert!(message.cipher_text == vec![0; length / 4 * 3]);
    }
    for length in [4, 124, 5652, 60_000] {
        refuses("decrypt-data", body(length), Kind::InvalidCiphertext).await;
    }
}

#[tokio::test]
async fn bytes_that_are_not_text_are_told_as_base64_alone() {
    let stub = Arc::new(Stub::default());
    let answer = pb::DecryptDataResponse {
        key_id: KEY.into(),
        plain_text: String::new(),
        plain_bytes: vec![0xff; 3],
    };
    stub.answers("decrypt_data", answer.encode_to_vec());
    let answer = call(&stub.router(), "decrypt-data", "{}").await;
    let json = format!(r#"{{"key_id":"{KEY}","plain_text":"","plain_text_base64":"////"}}"#);
    assert_eq!(answer.body, json);
}

#[tokio::test]
async fn a_page_tells_what_follows_and_when_keys_go() {
    let stub = Arc::new(Stub::default());
    let key = pb::KeyDetails {
        key_state: pb::KeyState::PendingDeletion.into(),
        scheduled_deletion_date: Some(1_502_799_999_000),
        ..key_details()
    };
    let page = pb::ListKeysResponse {
        keys: vec![KEY.into()],
        key_details: vec![key],
        next_marker: Some(1),
        truncated: true,
        total: 2,
    };
    stub.answers("list_keys", page.encode_to_vec());
    let answer = call(&stub.router(), "list-keys", "{}").await;
    let page: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(page["next_marker"], "1");
    assert_eq!(page["truncated"], "true");
    assert_eq!(page["total"], 2);
    let key = &page["key_details"][0];
    assert_eq!(key["key_state"], "4");
    assert_eq!(key["scheduled_deletion_date"], "1502799999000");
}

#[tokio::test]
async fn a_success_without_its_content_is_a_bad_upstream() {
    for case in cases() {
        let stub = Arc::new(Stub::default());
        // An empty page of keys is sound; a page with a key that is not is none.
        let page = pb::ListKeysResponse {
            key_details: vec![pb::KeyDetails::default()],
            ..Default::default()
        };
        stub.answers("list_keys", page.encode_to_vec());
        let answer = call(&stub.router(), case.name, "{}").await;
        answer.is(Kind::BadUpstream, case.name);
    }
}

#[tokio::test]
async fn a_success_that_contradicts_itself_or_the_schema_is_a_bad_upstream() {
    let key_id = || KEY.to_owned();
    let no_ciphertext = pb::EncryptDataResponse {
        key_id: key_id(),
        cipher_text: Vec::new(),
    };
    let two_plaintexts = pb::DecryptDataResponse {
        key_id: key_id(),
        plain_text: "a".into(),
        plain_bytes: b"b".to_vec(),
    };
    let no_state = pb::ScheduleKeyDeletionResponse {
        key_id: key_id(),
        key_state: 6,
    };
    let no_spec = pb::KeyDetails {
        key_spec: 99,
        ..key_details()
    };
    let no_spec = pb::DescribeKeyResponse {
        key_info: Some(no_spec),
    };
    let stub = Arc::new(Stub::default());
    stub.answers("encrypt_data", no_ciphertext.encode_to_vec());
    stub.answers("decrypt_data", two_plaintexts.encode_to_vec());
    stub.answers("schedule_key_deletion", no_state.encode_to_vec());
    stub.answers("describe_key", no_spec.encode_to_vec());
    for name in [
        "encrypt-data",
        "decrypt-data",
        "schedule-key-deletion",
        "describe-key",
    ] {
        let answer = call(&stub.router(), name, "{}").await;
        answer.is(Kind::BadUpstream, name);
    }
}

#[tokio::test]
async fn a_path_is_known_exactly_or_not_at_all() {
    let gateway = Arc::new(Stub::default()).router();
    for path in [
        "/",
        "/v1.0",
        "/v1.0/P/kms",
        "/v1.0/P/kms/",
        "/v1.0/P/kms/create-datakey",
        "/v1.0/P/kms/confirm-clock",
        "/v1.0/P/kms/encrypt-data/",
        "/v1.0/P/kms//encrypt-data",
        "/v1.0/P//kms/encrypt-data",
        "//v1.0/P/kms/encrypt-data",
        "/v1.0//kms/encrypt-data",
        "/v1.0/P/kms/Encrypt-Data",
        "/v1.0/P/kms/encrypt%2ddata",
        "/v1.0/P/kms%2fencrypt-data",
        "/v1.0/P/kms/x/../encrypt-data",
        "/v1.0/P/kms/../kms/encrypt-data",
        "/v1.0/P/./kms/encrypt-data",
        "/v1.0/P/kms/decrypt-data/%2e%2e/encrypt-data",
        "/v2/P/kms/encrypt-data",
        "/v1.0/P/kms/encrypt-data;x",
        "/v1.0/%ff/kms/encrypt-data",
        "/v1.0/%c0%ae/kms/encrypt-data",
    ] {
        let answer = post(&gateway, path, HeaderMap::new(), "{}").await;
        answer.is(Kind::UnknownPath, path);
    }
}

#[tokio::test]
async fn a_known_path_takes_posts_alone() {
    let gateway = Arc::new(Stub::default()).router();
    for case in cases() {
        for method in [
            "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "post",
        ] {
            let request = Request::builder().method(method).uri(path(case.name));
            let request = request.body(Body::from("{}")).unwrap();
            let answer = send(&gateway, request).await;
            assert_eq!(answer.status, 405, "{method} {}", case.name);
            assert_eq!(answer.headers[ALLOW], "POST", "{method} {}", case.name);
            if method != "HEAD" {
                answer.is(Kind::MethodNotSupported, case.name);
            }
        }
    }
}

#[tokio::test]
async fn the_project_id_is_the_decoded_segment() {
    for (segment, project_id) in [
        (PROJECT, PROJECT),
        ("a%2fb", "a/b"),
        ("..", ".."),
        ("%2e%2e", ".."),
        ("%E6%97%A5", "日"),
        ("%2541", "%41"),
        ("a+b", "a+b"),
    ] {
        let stub = Arc::new(Stub::default());
        let path = format!("/v1.0/{segment}/kms/encrypt-data");
        let body = r#"{"project_id":"other"}"#;
        post(&stub.router(), &path, HeaderMap::new(), body).await;
        let message = pb::EncryptDataRequest::decode(&*stub.last().message).unwrap();
        assert_eq!(message.project_id, project_id, "{segment}");
    }
}

#[tokio::test]
async fn the_query_and_the_content_type_are_not_looked_at() {
    for content_type in ["", "text/plain", "application/json;charset=utf-8"] {
        let stub = Arc::new(Stub::default());
        let headers = headers(&[("content-type", content_type)]);
        let path = path("encrypt-data") + "?x=1";
        post(&stub.router(), &path, headers, "{}").await;
        assert_eq!(stub.last().method, "encrypt_data", "{content_type}");
    }
}

#[tokio::test]
async fn headers_and_extensions_reach_the_service() {
    #[derive(Clone)]
    struct Marker;

    let stub = Arc::new(Stub::default());
    let request = Request::post(path("encrypt-data"))
        .header("x-auth-token", "T")
        .extension(Marker)
        .body(Body::from("{}"));
    send(&stub.router(), request.unwrap()).await;
    let seen = stub.last();
    assert_eq!(seen.metadata.get("x-auth-token").unwrap(), "T");
    assert!(seen.extensions.get::<Marker>().is_some());
}

#[tokio::test]
async fn every_failure_is_told_by_its_row() {
    let stub = Arc::new(Stub::default());
    let far = remote(serve(&stub).await, TEN_SECONDS);
    for gateway in [stub.router(), far] {
        for &kind in Kind::ALL {
            let failure = move || Error::from(kind).detail("More.");
            stub.fails("encrypt_data", move || failure().into());
            let answer = call(&gateway, "encrypt-data", "{}").await;
            answer.is(kind, "");
            assert_eq!(answer.message(), failure().to_string());
            let pauses = answer.headers.contains_key(RETRY_AFTER);
            assert_eq!(pauses, kind.row().retry == Retry::Backoff, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_layer_refuses_as_the_gateway_does() {
    for &kind in Kind::ALL {
        let response = Rest.refuse(&kind.into());
        assert_eq!(response.extensions().get(), Some(&kind));
        let answer = Answer::read(response).await;
        answer.is(kind, "");
        assert_eq!(answer.message(), kind.row().text);
        let pause = (kind.row().retry == Retry::Backoff).then(|| HeaderValue::from(1));
        assert_eq!(answer.headers.get(RETRY_AFTER), pause.as_ref(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_pause_is_told_in_whole_seconds_rounded_up() {
    for (pause, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (90_000, "90")] {
        let stub = Arc::new(Stub::default());
        stub.fails("encrypt_data", move || {
            let mut details = ErrorDetails::with_error_info("THROTTLED", "kmsgate", HashMap::new());
            details.set_retry_info(Some(Duration::from_millis(pause)));
            Status::with_error_details(Code::ResourceExhausted, "Slow down.", details)
        });
        let answer = call(&stub.router(), "encrypt-data", "{}").await;
        answer.is(Kind::Throttled, "");
        assert_eq!(answer.headers[RETRY_AFTER], seconds, "{pause}");
    }
}

#[tokio::test]
async fn a_failure_that_is_not_ours_is_a_bad_upstream_and_is_not_quoted() {
    let stub = Arc::new(Stub::default());
    let far = remote(serve(&stub).await, TEN_SECONDS);
    for gateway in [stub.router(), far] {
        for code in (1..=16).map(Code::from_i32) {
            for (reason, domain) in [
                ("", ""),
                ("KEY_NOT_FOUND", "example.com"),
                ("NO_SUCH_ROW", "kmsgate"),
            ] {
                stub.fails("encrypt_data", move || {
                    let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
                    Status::with_error_details(code, "10.0.0.7 says no", details)
                });
                let answer = call(&gateway, "encrypt-data", "{}").await;
                let kind = match code {
                    Code::DeadlineExceeded => Kind::DeadlineExceeded,
                    _ => Kind::BadUpstream,
                };
                answer.is(kind, reason);
                assert_eq!(answer.message(), kind.row().text);
            }
        }
    }
}

#[tokio::test]
async fn the_status_goes_with_the_answer_for_the_layers_in_front() {
    let stub = Arc::new(Stub::default());
    stub.fails("encrypt_data", || Status::internal("why"));
    let request = Request::post(path("encrypt-data")).body(Body::from("{}"));
    let response = stub.router().oneshot(request.unwrap()).await.unwrap();
    let status = response.extensions().get::<Status>().unwrap();
    assert_eq!(status.message(), "why");
    assert_eq!(response.extensions().get(), Some(&Kind::BadUpstream));
}

#[tokio::test]
async fn an_upstream_gets_credentials_trace_context_and_time_alone() {
    let sent = [
        ("x-auth-token", "T"),
        ("authorization", "bearer B"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad-01"),
        ("tracestate", "a=1"),
        ("tracestate", "b=2"),
    ];
    let kept_back = [
        ("cookie", "c=1"),
        ("x-request-id", "0b67bf0abe6d9a8844030ded87109c9f"),
        ("x-project-id", PROJECT),
        ("x-forwarded-for", "192.0.2.1"),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "gzip"),
        ("grpc-status", "0"),
    ];
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    let headers = headers(&[&sent[..], &kept_back].concat());
    post(&gateway, &path("encrypt-data"), headers, "{}").await;

    let metadata = stub.last().metadata;
    for (name, value) in sent {
        let mut values = metadata.get_all(name).iter();
        assert!(values.any(|got| got == value), "{name}: {value}");
    }
    for (name, _) in kept_back {
        assert!(metadata.get(name).is_none(), "{name}");
    }
    assert!(metadata.get("grpc-timeout").is_some());
}

#[tokio::test]
async fn an_answer_has_the_request_id_of_the_upstream_if_that_is_a_kmsgate_s() {
    let ours = "5a026c6d9a0b40410000000000000005";
    for (theirs, told) in [
        (ours, Some(ours)),
        ("", None),
        ("5a026c6d-9a0b-4041-0000-000000000005", None),
        ("the-5th-request-of-a-proxy-there", None),
    ] {
        let gateway = web(move || {
            let mut response = http::Response::new(Body::empty());
            *response.headers_mut() = headers(&[
                ("content-type", "application/grpc"),
                ("grpc-status", "5"),
                ("x-request-id", theirs),
            ]);
            response
        })
        .await;
        let answer = call(&gateway, "encrypt-data", "{}").await;
        let id = answer.headers.get("x-request-id");
        assert_eq!(id.map(|id| id.to_str().unwrap()), told);
    }
}

#[tokio::test]
async fn the_longest_body_reaches_a_remote_upstream() {
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    let frame = r#"{"plain_text":""}"#.len();
    let plain_text = "x".repeat(65_536 - frame);
    let body = format!(r#"{{"plain_text":"{plain_text}"}}"#);
    call(&gateway, "encrypt-data", body).await;
    let message = pb::EncryptDataRequest::decode(&*stub.last().message).unwrap();
    assert!(message.plaintext == Some(Plaintext::PlainText(plain_text)));
}

#[tokio::test]
async fn a_signature_is_refused_before_a_remote_upstream_is_asked() {
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    for signature in [
        "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature=00",
        "SDK-HMAC-SHA256 Credential=AK/20261123/r/kms/sdk_request, SignedHeaders=host, Signature=0",
        "SDK-SM2-SM3 Access=AK, SignedHeaders=host;x-sdk-date, Signature=00",
        "sdk-ecdsa-p256-sha256 é",
        "V11-HMAC-SHA256 Credential=AK/20261123/r/kms, SignedHeaders=host, Signature=00",
    ] {
        let signature = HeaderValue::from_bytes(signature.as_bytes()).unwrap();
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, signature.clone());
        let answer = post(&gateway, &path("encrypt-data"), headers, "{}").await;
        answer.is(Kind::Unauthenticated, &format!("{signature:?}"));
        assert!(
            answer.message().contains("use x-auth-token"),
            "{}",
            answer.body
        );
    }
    assert!(stub.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn other_schemes_and_several_credentials_are_the_upstreams_to_refuse() {
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    let signature = "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host, Signature=00";
    for sent in [
        &[("authorization", "Basic dTpw")][..],
        &[("authorization", "Bearerx y")],
        &[("authorization", "")],
        &[("authorization", "é")],
        &[("x-auth-token", "T"), ("authorization", "Basic dTpw")],
        &[("x-auth-token", "T"), ("authorization", signature)],
        &[("authorization", signature), ("authorization", "Bearer B")],
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        post(&gateway, &path("encrypt-data"), headers.clone(), "{}").await;
        let forwarded = stub.last().metadata.into_headers();
        for name in ["x-auth-token", "authorization"] {
            let (got, sent) = (forwarded.get_all(name), headers.get_all(name));
            assert!(got.iter().eq(sent.iter()), "{name}: {sent:?}");
        }
    }
}

#[tokio::test]
async fn a_request_without_a_credential_does_not_go_on_as_the_gateway() {
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    let headers = headers(&[("cookie", "a=b")]);
    let answer = post(&gateway, &path("encrypt-data"), headers, "{}").await;
    answer.is(Kind::Unauthenticated, "no credential");
    assert!(stub.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_grpc_timeout_means_nothing_over_rest() {
    let stub = Arc::new(Stub::default());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    for theirs in ["", "2S", "1500m", "0n", "99999999H", "1x", "S"] {
        let headers = headers(&[("grpc-timeout", theirs), ("x-auth-token", "T")]);
        post(&gateway, &path("encrypt-data"), headers, "{}").await;
        let metadata = stub.last().metadata;
        assert_eq!(metadata.get_all("grpc-timeout").iter().count(), 1);
        assert_eq!(given(&stub), TEN_SECONDS, "{theirs}");
    }
}

#[tokio::test]
async fn an_upstream_has_at_least_a_minute_for_what_may_take_long() {
    let stub = Arc::new(Stub::default());
    let address = serve(&stub).await;
    for (ours, long) in [(10, 60), (90, 90)] {
        let gateway = remote(address, Duration::from_secs(ours));
        for case in cases() {
            call(&gateway, case.name, case.body.to_string()).await;
            let seconds = match case.name {
                "create-key" | "list-keys" => long,
                _ => ours,
            };
            assert_eq!(given(&stub), Duration::from_secs(seconds), "{}", case.name);
        }
    }
}

// The clock is paused and jumps to the next timer when nothing else is to do.
#[tokio::test(start_paused = true)]
async fn a_gateway_waits_as_long_as_it_was_told() {
    for (told, operation, waits) in [
        (300, "encrypt-data", 300),
        (300, "create-key", 60_000),
        (300, "list-keys", 60_000),
        (30_000, "encrypt-data", 30_000),
        (90_000, "list-keys", 90_000),
    ] {
        let [told, waits] = [told, waits].map(Duration::from_millis);
        let endpoint = Endpoint::from_shared(format!("http://{}", silent().await)).unwrap();
        let upstream = Upstream::new(endpoint.connect_lazy(), told);
        let rest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(rest.local_addr().unwrap())
            .await
            .unwrap();
        let serving = serve_gateway(
            rest.into(),
            None,
            admin.into(),
            upstream,
            Vec::new(),
            Duration::ZERO,
            std::future::pending(),
        );
        let begun = tokio::time::Instant::now();
        let ask = async {
            let request = format!(
                "POST {} HTTP/1.1\r\nhost: h\r\nx-auth-token: T\r\nconnection: close\r\n\
                 content-length: 2\r\n\r\n{{}}",
                path(operation)
            );
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::select! {
            ended = serving => panic!("{ended:?}"),
            answer = ask => answer,
        };
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        let waited = begun.elapsed();
        let bounds = waits..waits + Duration::from_secs(5);
        assert!(bounds.contains(&waited), "{told:?} {operation}: {waited:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let gateway = remote(closed_port().await, TEN_SECONDS);
    for case in cases() {
        let answer = call(&gateway, case.name, case.body.to_string()).await;
        answer.is(Kind::BadUpstream, case.name);
        assert_eq!(answer.message(), "Backend unavailable.");
    }
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_used_again() {
    let address = closed_port().await;
    let gateway = remote(address, TEN_SECONDS);
    let case = &cases()[0];
    let answer = call(&gateway, case.name, "{}").await;
    answer.is(Kind::BadUpstream, "while it is away");
    serve_at(&answering(case), TcpListener::bind(address).await.unwrap());
    let answer = call(&gateway, case.name, "{}").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_a_504() {
    let address = silent().await;
    let gateway = remote(address, Duration::from_millis(50));
    let short = |case: &Case| !["create-key", "list-keys"].contains(&case.name);
    for case in cases().into_iter().filter(short) {
        let answer = call(&gateway, case.name, case.body.to_string()).await;
        answer.is(Kind::DeadlineExceeded, case.name);
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_a_502() {
    let address = peer(async |stream: TcpStream| drop(stream)).await;
    let answer = call(&remote(address, TEN_SECONDS), "encrypt-data", "{}").await;
    answer.is(Kind::BadUpstream, "at once");

    let address = peer(async |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let answer = call(&remote(address, TEN_SECONDS), "encrypt-data", "{}").await;
    answer.is(Kind::BadUpstream, "after a while");
}

#[tokio::test]
async fn an_upstream_that_speaks_http_1_is_a_502() {
    let address = peer(async |mut stream: TcpStream| {
        let page = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n<html></html>";
        let _ = stream.write_all(page).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let answer = call(&remote(address, TEN_SECONDS), "encrypt-data", "{}").await;
    answer.is(Kind::BadUpstream, "");
}

#[tokio::test]
async fn an_upstream_that_answers_http_2_and_not_grpc_is_a_502() {
    for status in [200, 204, 301, 401, 404, 429, 500, 503, 504] {
        let gateway = web(move || {
            let mut page = http::Response::new(Body::from("<html></html>"));
            *page.status_mut() = http::StatusCode::from_u16(status).unwrap();
            page
        })
        .await;
        let answer = call(&gateway, "encrypt-data", "{}").await;
        answer.is(Kind::BadUpstream, &status.to_string());
    }
}

#[tokio::test]
async fn details_that_are_not_base64_are_a_502_and_no_panic() {
    let bad = || {
        headers(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "5"),
            ("grpc-status-details-bin", "!"),
        ])
    };
    let in_headers = move || {
        let mut response = http::Response::new(Body::empty());
        *response.headers_mut() = bad();
        response
    };
    let in_trailers = move || {
        let body = Body::empty().with_trailers(async move { Some(Ok(bad())) });
        http::Response::new(Body::new(body))
    };
    for gateway in [web(in_headers).await, web(in_trailers).await] {
        let answer = call(&gateway, "encrypt-data", "{}").await;
        answer.is(Kind::BadUpstream, "");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_a_502() {
    let stub = Arc::new(Stub::default());
    let answer = pb::EncryptDataResponse {
        key_id: KEY.into(),
        cipher_text: vec![0; 65_536],
    };
    stub.answers("encrypt_data", answer.encode_to_vec());
    let gateway = remote(serve(&stub).await, TEN_SECONDS);
    let answer = call(&gateway, "encrypt-data", "{}").await;
    answer.is(Kind::BadUpstream, "");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_reach_the_service(
        operation in any::<prop::sample::Index>(),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let case = operation.get(&cases()).clone();
        let answer = now(call(&answering(&case).router(), case.name, body));
        prop_assert!(answer.is_sound(), "{} {}", answer.status, answer.body);
    }

    #[test]
    fn any_damage_is_refused_or_reaches_the_service(
        operation in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        cut in 0..4_usize,
        patch in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let case = operation.get(&cases()).clone();
        let mut body = case.body.to_string().into_bytes();
        let at = at.index(body.len());
        let end = body.len().min(at + cut);
        body.splice(at..end, patch);
        let answer = now(call(&answering(&case).router(), case.name, body));
        prop_assert!(answer.is_sound(), "{} {}", answer.status, answer.body);
    }
}

/// One operation: what the caller sends and reads, and what the service gets and answers.
#[derive(Clone)]
struct Case {
    name: &'static str,
    method: &'static str,
    body: Value,
    request: Vec<u8>,
    answer: Vec<u8>,
    json: String,
}

/// Makes a request whose fields are those here and those that every request has.
macro_rules! request {
    ($message:ident { $( $field:ident: $value:expr ),* }) => {
        pb::$message {
            project_id: PROJECT.into(),
            sequence: SEQUENCE.into(),
            $( $field: $value, )*
        }
    };
}

fn cases() -> Vec<Case> {
    let key_id = || KEY.to_owned();
    let sample_key = || SAMPLE_KEY.to_owned();
    let named = json!({"key_id": KEY, "sequence": SEQUENCE});
    let state = |key_state: pb::KeyState| {
        Some(pb::KeyStateInfo {
            key_id: sample_key(),
            key_state: key_state.into(),
        })
    };
    // Section 6.6: Python's `base64.b64encode(b"\x02\x00" + b"\0" * 139)`.
    let cipher_bytes = || [vec![2], vec![0; 140]].concat();
    let cipher_text = "AgAA".to_owned() + &"A".repeat(184);
    vec![
        case(
            ("encrypt-data", "encrypt_data"),
            json!({
                "key_id": KEY,
                "plain_text": "hello world",
                "encryption_algorithm": "SYMMETRIC_DEFAULT",
                "additional_authenticated_data": "aad",
                "sequence": SEQUENCE,
            }),
            &request!(EncryptDataRequest {
                key_id: key_id(),
                plaintext: Some(Plaintext::PlainText("hello world".into())),
                encryption_algorithm: pb::EncryptionAlgorithm::SymmetricDefault.into(),
                additional_authenticated_data: "aad".into()
            }),
            &pb::EncryptDataResponse {
                key_id: key_id(),
                cipher_text: cipher_bytes(),
            },
            &format!(r#"{{"key_id":"{KEY}","cipher_text":"{cipher_text}"}}"#),
        ),
        case(
            ("decrypt-data", "decrypt_data"),
            json!({
                "cipher_text": cipher_text,
                "encryption_algorithm": "RSAES_OAEP_SHA_256",
                "key_id": KEY,
                "additional_authenticated_data": "aad",
                "sequence": SEQUENCE,
            }),
            &request!(DecryptDataRequest {
                key_id: key_id(),
                cipher_text: cipher_bytes(),
                encryption_algorithm: pb::EncryptionAlgorithm::RsaesOaepSha256.into(),
                additional_authenticated_data: "aad".into()
            }),
            &pb::DecryptDataResponse {
                key_id: sample_key(),
                plain_text: "hello world".into(),
                plain_bytes: b"hello world".to_vec(),
            },
            concat!(
                r#"{"key_id":"bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e","#,
                r#""plain_text":"hello world","plain_text_base64":"aGVsbG8gd29ybGQ="}"#,
            ),
        ),
        case(
            ("create-key", "create_key"),
            json!({
                "key_alias": "test",
                "key_spec": "RSA_3072",
                "key_usage": "ENCRYPT_DECRYPT",
                "key_description": "key_description",
                "origin": "kms",
                "keystore_id": "0",
                "sequence": SEQUENCE,
            }),
            &request!(CreateKeyRequest {
                key_alias: "test".into(),
                key_spec: pb::KeySpec::Rsa3072.into(),
                key_usage: pb::KeyUsage::EncryptDecrypt.into(),
                key_description: "key_description".into(),
                origin: "kms".into(),
                keystore_id: "0".into()
            }),
            &pb::CreateKeyResponse {
                key_info: Some(pb::CreatedKey {
                    key_id: sample_key(),
                    domain_id: "b168fe00ff56492495a7d22974df2d0b".into(),
                }),
            },
            concat!(
                r#"{"key_info":{"key_id":"bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e","#,
                r#""domain_id":"b168fe00ff56492495a7d22974df2d0b"}}"#,
            ),
        ),
        case(
            ("describe-key", "describe_key"),
            named.clone(),
            &request!(DescribeKeyRequest { key_id: key_id() }),
            &pb::DescribeKeyResponse {
                key_info: Some(key_details()),
            },
            &format!(r#"{{"key_info":{KEY_INFO}}}"#),
        ),
        case(
            ("list-keys", "list_keys"),
            json!({
                "limit": "10",
                "marker": "20",
                "key_state": "2",
                "key_spec": "SM2",
                "sequence": SEQUENCE,
            }),
            &request!(ListKeysRequest {
                limit: Some(10),
                marker: 20,
                key_state: pb::KeyState::Enabled.into(),
                key_spec: pb::KeySpec::Sm2.into()
            }),
            &pb::ListKeysResponse {
                keys: vec![key_id(), key_id()],
                key_details: vec![key_details(), key_details()],
                next_marker: None,
                truncated: false,
                total: 2,
            },
            &[
                format!(r#"{{"keys":["{KEY}","{KEY}"],"#),
                format!(r#""key_details":[{KEY_INFO},{KEY_INFO}],"#),
                r#""next_marker":"","truncated":"false","total":2}"#.to_owned(),
            ]
            .concat(),
        ),
        case(
            ("enable-key", "enable_key"),
            named.clone(),
            &request!(EnableKeyRequest { key_id: key_id() }),
            &pb::EnableKeyResponse {
                key_info: state(pb::KeyState::Enabled),
            },
            r#"{"key_info":{"key_id":"bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e","key_state":"2"}}"#,
        ),
        case(
            ("disable-key", "disable_key"),
            named.clone(),
            &request!(DisableKeyRequest { key_id: key_id() }),
            &pb::DisableKeyResponse {
                key_info: state(pb::KeyState::Disabled),
            },
            r#"{"key_info":{"key_id":"bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e","key_state":"3"}}"#,
        ),
        case(
            ("schedule-key-deletion", "schedule_key_deletion"),
            json!({"key_id": KEY, "pending_days": "7", "sequence": SEQUENCE}),
            &request!(ScheduleKeyDeletionRequest {
                key_id: key_id(),
                pending_days: Some(7)
            }),
            &pb::ScheduleKeyDeletionResponse {
                key_id: sample_key(),
                key_state: pb::KeyState::PendingDeletion.into(),
            },
            r#"{"key_id":"bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e","key_state":"4"}"#,
        ),
        case(
            ("cancel-key-deletion", "cancel_key_deletion"),
            named.clone(),
            &request!(CancelKeyDeletionRequest { key_id: key_id() }),
            &pb::CancelKeyDeletionResponse {
                key_id: sample_key(),
                key_state: pb::KeyState::Disabled.into(),
            },
            r#"{"key_id":"bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e","key_state":"3"}"#,
        ),
        case(
            ("get-publickey", "get_public_key"),
            named.clone(),
            &request!(GetPublicKeyRequest { key_id: key_id() }),
            &pb::GetPublicKeyResponse {
                key_id: key_id(),
                public_key: "-----BEGIN PUBLIC KEY-----\nMII/+A==\n".into(),
            },
            &[
                format!(r#"{{"key_id":"{KEY}","#),
                r#""public_key":"-----BEGIN PUBLIC KEY-----\nMII/+A==\n"}"#.to_owned(),
            ]
            .concat(),
        ),
        case(
            ("update-key-alias", "update_key_alias"),
            json!({"key_id": KEY, "key_alias": "test", "sequence": SEQUENCE}),
            &request!(UpdateKeyAliasRequest {
                key_id: key_id(),
                key_alias: "test".into()
            }),
            &pb::UpdateKeyAliasResponse {
                key_info: Some(pb::KeyAliasInfo {
                    key_id: key_id(),
                    key_alias: "test".into(),
                }),
            },
            &format!(r#"{{"key_info":{{"key_id":"{KEY}","key_alias":"test"}}}}"#),
        ),
        case(
            ("update-key-description", "update_key_description"),
            json!({"key_id": KEY, "key_description": "密钥", "sequence": SEQUENCE}),
            &request!(UpdateKeyDescriptionRequest {
                key_id: key_id(),
                key_description: "密钥".into()
            }),
            &pb::UpdateKeyDescriptionResponse {
                key_info: Some(pb::KeyDescriptionInfo {
                    key_id: key_id(),
                    key_description: "密钥".into(),
                }),
            },
            &format!(r#"{{"key_info":{{"key_id":"{KEY}","key_description":"密钥"}}}}"#),
        ),
        case(
            ("rotate-on-demand", "rotate_on_demand"),
            named,
            &request!(RotateOnDemandRequest { key_id: key_id() }),
            &pb::RotateOnDemandResponse {
                key_id: key_id(),
                key_version: 2,
            },
            &format!(r#"{{"key_id":"{KEY}"}}"#),
        ),
    ]
}

fn case(
    (name, method): (&'static str, &'static str),
    body: Value,
    request: &impl Message,
    answer: &impl Message,
    json: &str,
) -> Case {
    Case {
        name,
        method,
        body,
        request: request.encode_to_vec(),
        answer: answer.encode_to_vec(),
        json: json.to_owned(),
    }
}

fn key_details() -> pb::KeyDetails {
    pb::KeyDetails {
        key_id: KEY.into(),
        domain_id: "00074811d5c27c4f8d48bb91e4a1dcfd".into(),
        key_alias: "test".into(),
        realm: "test".into(),
        key_spec: pb::KeySpec::Aes256.into(),
        key_usage: pb::KeyUsage::EncryptDecrypt.into(),
        key_description: "key_description".into(),
        creation_date: 1_502_799_822_000,
        scheduled_deletion_date: None,
        key_state: pb::KeyState::Enabled.into(),
        key_version: 1,
    }
}

fn members(body: &Value) -> Vec<String> {
    body.as_object().unwrap().keys().cloned().collect()
}

fn with(body: &Value, member: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[member] = value;
    body
}

fn without(body: &Value, member: &str) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().remove(member);
    body
}

/// The headers with these names and values, without those that are empty.
fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let filled = pairs.iter().filter(|(_, value)| !value.is_empty());
    let mut headers = HeaderMap::new();
    for (name, value) in filled {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn path(name: &str) -> String {
    format!("/v1.0/{PROJECT}/kms/{name}")
}

/// Calls an operation.
async fn call(gateway: &Router, name: &str, body: impl Into<Body>) -> Answer {
    post(
        gateway,
        &path(name),
        headers(&[("x-auth-token", "T")]),
        body,
    )
    .await
}

async fn post(gateway: &Router, path: &str, headers: HeaderMap, body: impl Into<Body>) -> Answer {
    let mut request = Request::new(body.into());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().unwrap();
    *request.headers_mut() = headers;
    send(gateway, request).await
}

async fn send(gateway: &Router, request: Request<Body>) -> Answer {
    Answer::read(gateway.clone().oneshot(request).await.unwrap()).await
}

/// The message that the service gets for `body`, encoded.
async fn message_of(case: &Case, body: &Value) -> Vec<u8> {
    let stub = answering(case);
    let answer = call(&stub.router(), case.name, body.to_string()).await;
    assert_eq!(answer.status, 200, "{}: {}", case.name, answer.body);
    stub.last().message
}

/// The message that the service gets for `body`.
async fn read<M: Message + Default>(name: &str, body: impl Into<Body>) -> M {
    let stub = Arc::new(Stub::default());
    call(&stub.router(), name, body).await;
    M::decode(&*stub.last().message).unwrap()
}

/// Asserts that `body` is refused as `kind` and that the service is not called.
async fn refuses(name: &str, body: impl Into<Body>, kind: Kind) {
    let stub = Arc::new(Stub::default());
    let answer = call(&stub.router(), name, body).await;
    answer.is(kind, name);
    assert!(answer.message().starts_with(kind.row().text), "{name}");
    assert!(stub.seen.lock().unwrap().is_empty(), "{name}");
}

/// Runs a future to its end.
fn now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    async fn read(response: http::Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.into()).unwrap(),
        }
    }

    /// Asserts that this tells of `kind` in the documented envelope, and of nothing else.
    fn is(&self, kind: Kind, what: &str) {
        let row = kind.row();
        let (code, message) = (json!(row.code), json!(self.message()));
        let told = format!(r#"{{"error":{{"error_code":{code},"error_msg":{message}}}}}"#);
        assert_eq!(self.body, told, "{what}");
        assert_eq!(self.status, row.http.as_u16(), "{what}");
        assert_eq!(self.headers[CONTENT_TYPE], "application/json", "{what}");
    }

    fn message(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).expect(&self.body);
        let message = body["error"]["error_msg"].as_str();
        message.expect(&self.body).to_owned()
    }

    /// Whether this is a success, or a refusal in our own words.
    fn is_sound(&self) -> bool {
        let ours = |kind: &Kind| self.message().starts_with(kind.row().text);
        self.status == 200 || self.status == 400 && Kind::ALL.iter().any(ours)
    }
}

/// The services, which record what they get and answer what they are told to.
#[derive(Default)]
struct Stub {
    seen: Mutex<Vec<Seen>>,
    replies: Mutex<HashMap<&'static str, Reply>>,
}

#[derive(Clone)]
struct Seen {
    method: &'static str,
    metadata: MetadataMap,
    extensions: http::Extensions,
    message: Vec<u8>,
}

type Reply = Box<dyn Fn() -> Result<Vec<u8>, Status> + Send>;

impl Stub {
    fn router(self: &Arc<Self>) -> Router {
        router(Arc::clone(self), Arc::clone(self))
    }

    fn answers(&self, method: &'static str, message: Vec<u8>) {
        let reply = Box::new(move || Ok(message.clone()));
        self.replies.lock().unwrap().insert(method, reply);
    }

    fn fails(&self, method: &'static str, failure: impl Fn() -> Status + Send + 'static) {
        let reply = Box::new(move || Err(failure()));
        self.replies.lock().unwrap().insert(method, reply);
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().expect("a call").clone()
    }

    /// Records a call and answers it; with an empty message if there is no reply for the method.
    fn reply<Q: Message, R: Message + Default>(
        &self,
        method: &'static str,
        request: tonic::Request<Q>,
    ) -> Result<Response<R>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        self.seen.lock().unwrap().push(Seen {
            method,
            metadata,
            extensions,
            message: message.encode_to_vec(),
        });
        let replies = self.replies.lock().unwrap();
        let message = replies
            .get(method)
            .map_or(Ok(Vec::new()), |reply| reply())?;
        Ok(Response::new(R::decode(&*message).unwrap()))
    }
}

macro_rules! stub {
    ($Service:ident: $( $method:ident($request:ident) -> $response:ident; )+) => {
        #[tonic::async_trait]
        impl $Service for Stub {
            $( async fn $method(
                &self,
                request: tonic::Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                self.reply(stringify!($method), request)
            } )+
        }
    };
}

stub! { CryptoService:
    encrypt_data(EncryptDataRequest) -> EncryptDataResponse;
    decrypt_data(DecryptDataRequest) -> DecryptDataResponse;
}

stub! { KeyService:
    create_key(CreateKeyRequest) -> CreateKeyResponse;
    describe_key(DescribeKeyRequest) -> DescribeKeyResponse;
    list_keys(ListKeysRequest) -> ListKeysResponse;
    enable_key(EnableKeyRequest) -> EnableKeyResponse;
    disable_key(DisableKeyRequest) -> DisableKeyResponse;
    schedule_key_deletion(ScheduleKeyDeletionRequest) -> ScheduleKeyDeletionResponse;
    cancel_key_deletion(CancelKeyDeletionRequest) -> CancelKeyDeletionResponse;
    get_public_key(GetPublicKeyRequest) -> GetPublicKeyResponse;
    update_key_alias(UpdateKeyAliasRequest) -> UpdateKeyAliasResponse;
    update_key_description(UpdateKeyDescriptionRequest) -> UpdateKeyDescriptionResponse;
    rotate_on_demand(RotateOnDemandRequest) -> RotateOnDemandResponse;
    confirm_clock(ConfirmClockRequest) -> ConfirmClockResponse;
}

/// A stub that answers as the case says.
fn answering(case: &Case) -> Arc<Stub> {
    let stub = Arc::new(Stub::default());
    stub.answers(case.method, case.answer.clone());
    stub
}

/// A gateway whose upstream is at `address`.
fn remote(address: SocketAddr, timeout: Duration) -> Router {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let upstream = Arc::new(Upstream::new(endpoint.connect_lazy(), timeout));
    router(Arc::clone(&upstream), upstream)
}

/// Serves a stub over gRPC on loopback.
async fn serve(stub: &Arc<Stub>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serve_at(stub, listener);
    address
}

fn serve_at(stub: &Arc<Stub>, listener: TcpListener) {
    let server = Server::builder()
        .add_service(CryptoServiceServer::from_arc(Arc::clone(stub)))
        .add_service(KeyServiceServer::from_arc(Arc::clone(stub)));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
}

/// An address of loopback where no one listens.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Listens on loopback and does `work` with each connection.
async fn peer<F>(work: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(work(stream));
        }
    });
    address
}

/// An address of loopback where someone listens and says nothing.
async fn silent() -> SocketAddr {
    peer(async |mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

/// The time that the last call gave the stub.
fn given(stub: &Stub) -> Duration {
    let metadata = stub.last().metadata;
    let given = metadata.get("grpc-timeout").unwrap().to_str().unwrap();
    let micros = given.strip_suffix('u').unwrap().parse();
    Duration::from_micros(micros.unwrap())
}

/// A gateway whose upstream is a web server that answers every request so.
async fn web(answer: impl Fn() -> http::Response<Body> + Clone + Send + Sync + 'static) -> Router {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = Router::new().fallback(async move || answer());
    tokio::spawn(async move { axum::serve(listener, pages).await });
    remote(address, TEN_SECONDS)
}
