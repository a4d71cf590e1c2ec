//! What REST alone can be told: JSON and HTTP, good and bad. Whatever is wrong, nothing changes and
//! the server goes on.

use http::header::ALLOW;
use kmsgate::error::Kind;
use serde_json::{Map, Value, json};

use crate::face::{Face, bytes};
use crate::lifecycle::about_a_key;
use crate::schema::Call;
use crate::seeds::DOCUMENTED;
use crate::world::{GRPC_PROJECT, REST_PROJECT, World};
use crate::{SEQUENCE, create, decrypt, encrypt, on};

/// The page's request example, as it is printed.
const EXAMPLE: &str = r#"{
  "key_id" : "0d0466b0-e727-4d9c-b35d-f84bb474a37f",
  "plain_text" : "hello world",
  "encryption_algorithm" : "SYMMETRIC_DEFAULT"
}"#;

#[tokio::test]
async fn the_documented_example_is_answered_as_documented() {
    let world = World::start().await;
    let rest = world.rest();
    let path = rest.path("encrypt-data");
    let raw = rest.post(&path, EXAMPLE).await;
    assert_eq!(raw.status, 200);
    let body = str::from_utf8(&raw.body).unwrap();
    let start = format!(r#"{{"key_id":"{DOCUMENTED}","cipher_text":""#);
    let cipher_text = body.strip_prefix(&start).unwrap().strip_suffix("\"}");
    assert_eq!(cipher_text.unwrap().len(), 188);
    let answer = rest.read("encrypt-data", &raw).outcome.unwrap();
    let answer = rest.done(&decrypt(&bytes(&answer["cipher_text"]))).await;
    let expected = json!({
        "key_id": DOCUMENTED, "plain_text": "hello world", "plain_text_base64": "aGVsbG8gd29ybGQ=",
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn http_2_says_what_http_1_says() {
    let world = World::start().await;
    let rest = world.rest().over_http2();
    let answer = rest.send("encrypt-data", EXAMPLE).await.outcome.unwrap();
    let sealed = bytes(&answer["cipher_text"]);
    assert_eq!(
        rest.done(&decrypt(&sealed)).await["plain_text"],
        "hello world"
    );
    rest.refused(Kind::InvalidPlaintext, &encrypt(DOCUMENTED, ""))
        .await;
    let answer = rest.send("encrypt-data", vec![b' '; 64 * 1024 + 1]).await;
    answer.is(Kind::MessageTooLong, "HTTP/2");
    let answer = rest.send("encrypt-data", "{").await;
    answer.is(Kind::InvalidJson, "HTTP/2");
}

#[tokio::test]
async fn escapes_and_other_spellings_of_a_body_say_the_same() {
    let world = World::start().await;
    let rest = world.rest();
    for (body, plain) in [
        (
            format!(r#"{{"key_id":"{DOCUMENTED}","plain_text":"\ud83d\udd11"}}"#),
            "🔑",
        ),
        (
            format!(r#"{{"key_id":"{DOCUMENTED}","plain_text":"\u0000\n\/"}}"#),
            "\0\n/",
        ),
        (
            format!(r#"{{"\u006bey_id":"{DOCUMENTED}","plain_text":"x"}}"#),
            "x",
        ),
        (
            format!(
                r#"{{"key_id":"{DOCUMENTED}","plain_text":"x","sequence":null,
                "encryption_algorithm":null,"additional_authenticated_data":null,
                "plain_text_base64":null,"vm_id":{{"a":[1,-2.5,true,null]}}}}"#
            ),
            "x",
        ),
        (
            format!(r#"{{"key_id":"{DOCUMENTED}","plain_text_base64":"eA=="}}"#),
            "x",
        ),
        (escaped(4096), &"\0".repeat(4096)),
    ] {
        let answer = rest.send("encrypt-data", body).await.outcome.unwrap();
        let answer = rest.done(&decrypt(&bytes(&answer["cipher_text"]))).await;
        assert_eq!(answer["plain_text"], plain);
    }
    // A content type is not looked at.
    let plain = rest.with_header("content-type", "text/plain");
    let answer = plain.send("encrypt-data", EXAMPLE).await;
    answer.outcome.unwrap();
}

#[tokio::test]
async fn a_body_that_is_no_object_is_invalid_json() {
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"hello",
        b"null",
        b"true",
        b"5",
        b"\"x\"",
        b"[]",
        b"[{}]",
        b"{}{}",
        b"{} x",
        b"{,}",
        b"{\"key_id\"}",
        b"{'key_id':'x'}",
        b"\xef\xbb\xbf{}",
        b"{\"key_id\":\"\xff\"}",
        b"{\"x\":\"\xed\xa0\x80\"}",
        br#"{"plain_text":"\ud834"}"#,
        br#"{"plain_text":"\udd1e\ud834"}"#,
        br#"{"x":"\ud834"}"#,
        br#"{"key_id":"x","key_id":"x"}"#,
        br#"{"key_id":null,"key_id":"x"}"#,
        br#"{"x":1,"x":1}"#,
        b"{\"plain_text\":\"\n\"}",
        deep.as_bytes(),
        b"\x1f\x8b\x08\x00",
        b"key_id=x&plain_text=x",
    ];
    unchanged(async |rest| {
        for call in all_calls() {
            for body in bodies {
                let answer = rest.send(call.operation, body.to_vec()).await;
                let about = String::from_utf8_lossy(body);
                answer.is(Kind::InvalidJson, &about[..about.len().min(60)]);
                assert_eq!(answer.refusal().message, Kind::InvalidJson.row().text);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_cut_off_anywhere_is_invalid_json() {
    unchanged(async |rest| {
        for call in [
            encrypt(DOCUMENTED, "x").with("sequence", SEQUENCE),
            create("x"),
        ] {
            let body = call.to_json();
            for end in 0..body.len() {
                let answer = rest.send(call.operation, body[..end].to_vec()).await;
                answer.is(Kind::InvalidJson, &end.to_string());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_member_of_another_type_is_invalid_json() {
    unchanged(async |rest| {
        for call in all_calls() {
            let body: Map<String, Value> = serde_json::from_slice(&call.to_json()).unwrap();
            for member in body.keys() {
                for wrong in [json!(5), json!(1.5), json!(true), json!(["x"]), json!({})] {
                    let mut body = body.clone();
                    body[member] = wrong;
                    let body = serde_json::to_vec(&body).unwrap();
                    let answer = rest.send(call.operation, body).await;
                    answer.is(Kind::InvalidJson, member);
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn base64_that_is_none_is_an_invalid_plaintext_or_ciphertext() {
    unchanged(async |rest| {
        for bad in [
            "x", "eA", "eA=", "eA===", "eB==", "e A==", "eA==\n", "_-==", "é", "=",
        ] {
            let call = on("encrypt-data", DOCUMENTED).with("plain_text_base64", bad);
            rest.refused(Kind::InvalidPlaintext, &call).await;
        }
        let empty = on("encrypt-data", DOCUMENTED).with("plain_text_base64", "");
        rest.refused(Kind::InvalidPlaintext, &empty).await;
        let frame = "A".repeat(188);
        for bad in [
            "A".repeat(127),
            "A".repeat(5649),
            "A".repeat(187),
            frame.replacen('A', "=", 1),
            frame.replacen('A', "-", 1),
            frame.replacen('A', " ", 1),
            frame.replacen('A', "é", 1),
            frame[1..].to_owned() + "\n",
            "=".repeat(188),
        ] {
            let call = Call::new("decrypt-data").with("cipher_text", &bad);
            rest.refused(Kind::InvalidCiphertext, &call).await;
        }
        let both = encrypt(DOCUMENTED, "x").with("plain_text_base64", "eA==");
        let refusal = rest.refused(Kind::InvalidParameter, &both).await;
        assert!(refusal.message.ends_with("exclude each other."));
    })
    .await;
}

#[tokio::test]
async fn a_number_is_written_in_decimal_digits() {
    unchanged(async |rest| {
        let schedule = on("schedule-key-deletion", DOCUMENTED);
        for days in ["abc", "-7", "+7", " 7", "7.0", "7d", "99999999999999999999"] {
            let call = schedule.clone().with("pending_days", days);
            rest.refused(Kind::InvalidPendingDays, &call).await;
        }
        rest.refused(Kind::MissingParameter, &schedule.with("pending_days", ""))
            .await;
        for limit in ["x", "-1", "1.5", "99999999999999999999"] {
            let call = Call::new("list-keys").with("limit", limit);
            rest.refused(Kind::InvalidLimit, &call).await;
        }
        for marker in ["x", "-1", "1.5", "99999999999999999999"] {
            let call = Call::new("list-keys").with("marker", marker);
            rest.refused(Kind::InvalidMarker, &call).await;
        }
        // The zero values are protobuf's alone.
        let call = encrypt(DOCUMENTED, "x")
            .with("encryption_algorithm", "ENCRYPTION_ALGORITHM_UNSPECIFIED");
        rest.refused(Kind::InvalidParameter, &call).await;
        let call = Call::new("list-keys").with("key_state", "ENABLED");
        rest.refused(Kind::InvalidParameter, &call).await;
    })
    .await;
}

#[tokio::test]
async fn a_body_has_at_most_64_kib_however_it_is_sent() {
    // Decision 15.
    const MOST: usize = 64 * 1024;
    let of = |length: usize| {
        let mut body = encrypt(DOCUMENTED, "x").to_json();
        body.resize(length, b' ');
        body
    };
    unchanged(async |rest| {
        let path = rest.path("encrypt-data");
        rest.send("encrypt-data", of(MOST)).await.outcome.unwrap();
        for length in [MOST + 1, 2 * MOST] {
            let answer = rest.send("encrypt-data", of(length)).await;
            answer.is(Kind::MessageTooLong, "with a content-length");
        }
        // Who sends it all before reading is still told why, and not cut off.
        let length = 128 * MOST;
        let mut all = rest.head("POST", &path, &format!("content-length: {length}\r\n"));
        all.resize(all.len() + length, b' ');
        let answer = rest.read("encrypt-data", &rest.write(&all).await);
        answer.is(Kind::MessageTooLong, "sent as a whole");
        // Only said: nothing is waited for.
        let head = rest.head("POST", &path, "content-length: 1000000000\r\n");
        let answer = rest.read("encrypt-data", &rest.write(&head).await);
        answer.is(Kind::MessageTooLong, "said");
        for (length, fits) in [(MOST, true), (MOST + 1, false)] {
            let mut request = rest.head("POST", &path, "transfer-encoding: chunked\r\n");
            for chunk in of(length).chunks(4096) {
                request.extend(format!("{:x}\r\n", chunk.len()).bytes());
                request.extend(chunk);
                request.extend(b"\r\n");
            }
            request.extend(b"0\r\n\r\n");
            let answer = rest.read("encrypt-data", &rest.write(&request).await);
            match fits {
                true => drop(answer.outcome.unwrap()),
                false => answer.is(Kind::MessageTooLong, "in chunks"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_path_that_is_not_exactly_a_documented_one_is_unknown() {
    unchanged(async |rest| {
        let project = REST_PROJECT;
        for path in [
            "/".to_owned(),
            "/v1.0".to_owned(),
            format!("/v1.0/{project}"),
            format!("/v1.0/{project}/kms"),
            format!("/v1.0/{project}/kms/"),
            format!("/v1.0/{project}/kms/nothing"),
            format!("/v1.0/{project}/kms/Encrypt-Data"),
            format!("/v1.0/{project}/kms/encrypt-data/"),
            format!("/v1.0/{project}/kms//encrypt-data"),
            format!("//v1.0/{project}/kms/encrypt-data"),
            format!("/V1.0/{project}/kms/encrypt-data"),
            format!("/v1/{project}/kms/encrypt-data"),
            format!("/v1.0/{project}/kms/../kms/encrypt-data"),
            format!("/v1.0/{project}/kms/./encrypt-data"),
            format!("/v1.0/{project}/kms/%65ncrypt-data"),
            format!("/v1.0/{project}%2fkms/encrypt-data"),
            format!("/v1.0/{project}/kms%2fencrypt-data"),
            format!("/v1.0/{project}/kms/encrypt-data%00"),
            "/v1.0//kms/encrypt-data".to_owned(),
            "/v1.0/%ff/kms/encrypt-data".to_owned(),
            "/kmsgate.v1.CryptoService/EncryptData".to_owned(),
            format!("/v1.0/{GRPC_PROJECT}/kms/nothing"),
        ] {
            let request = [rest.head("POST", &path, &length(EXAMPLE)), EXAMPLE.into()].concat();
            let answer = rest.read("encrypt-data", &rest.write(&request).await);
            answer.is(Kind::UnknownPath, &path);
        }
        for path in [
            format!("/v1.0/{project}%2f../kms/encrypt-data"),
            format!("/v1.0/{project}%00/kms/encrypt-data"),
            "/v1.0/%/kms/encrypt-data".to_owned(),
            "/v1.0/../kms/encrypt-data".to_owned(),
        ] {
            let request = [rest.head("POST", &path, &length(EXAMPLE)), EXAMPLE.into()].concat();
            let answer = rest.read("encrypt-data", &rest.write(&request).await);
            answer.is(Kind::ProjectMismatch, &path);
        }
        // The project alone is percent-decoded, and a query means nothing.
        for path in [
            format!("/v1.0/%35{}/kms/encrypt-data", &project[1..]),
            format!("/v1.0/{project}/kms/encrypt-data?key_id=x"),
        ] {
            let request = [rest.head("POST", &path, &length(EXAMPLE)), EXAMPLE.into()].concat();
            let answer = rest.read("encrypt-data", &rest.write(&request).await);
            answer.outcome.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_known_path_is_posted_to() {
    unchanged(async |rest| {
        for call in all_calls() {
            let path = rest.path(call.operation);
            for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
                let raw = rest.write(&rest.head(method, &path, "")).await;
                let answer = rest.read(call.operation, &raw);
                answer.is(Kind::MethodNotSupported, method);
                assert_eq!(raw.headers[ALLOW], "POST");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_header_list_over_64_kib_is_refused() {
    unchanged(async |rest| {
        let good = rest.with_header("x-padding", &"x".repeat(60_000));
        good.done(&encrypt(DOCUMENTED, "x")).await;
        let over = rest.with_header("x-padding", &"x".repeat(64 * 1024));
        over.refused(Kind::HeadersTooLong, &encrypt(DOCUMENTED, "x"))
            .await;
    })
    .await;
}

/// The HTTP library reads at most 100 headers of an HTTP/1.1 request, and refuses more by itself:
/// the front sees nothing.
#[tokio::test]
async fn a_hundred_headers_are_read_and_more_are_refused_without_a_body() {
    unchanged(async |rest| {
        let path = rest.path("encrypt-data");
        let with = |count: usize| {
            let own = rest.head("POST", &path, &length(EXAMPLE));
            let own = own.split(|byte| *byte == b'\n').count() - 3;
            let more: String = (own..count)
                .map(|number| format!("x-{number}: x\r\n"))
                .collect();
            let head = rest.head("POST", &path, &(length(EXAMPLE) + &more));
            [head, EXAMPLE.into()].concat()
        };
        let raw = rest.write(&with(100)).await;
        rest.read("encrypt-data", &raw).outcome.unwrap();
        let raw = rest.write(&with(101)).await;
        assert_eq!((raw.status.as_u16(), raw.body.len()), (431, 0));
    })
    .await;
}

#[tokio::test]
async fn a_request_id_of_the_callers_is_not_taken_over() {
    let world = World::start().await;
    let theirs = "0123456789abcdef0123456789abcdef";
    for face in [world.rest(), world.grpc()] {
        let face = face.with_header("x-request-id", theirs);
        let answer = face.call(&encrypt(DOCUMENTED, "x")).await;
        assert_ne!(answer.request_id, theirs);
    }
}

#[tokio::test]
async fn a_grpc_timeout_means_nothing_over_rest() {
    let world = World::start().await;
    let hurried = world.rest().with_header("grpc-timeout", "1n");
    let answer = hurried.call(&encrypt(DOCUMENTED, "x")).await;
    answer.outcome.unwrap();
}

/// Runs a story, after which the same keys are there and the server works.
async fn unchanged(story: impl AsyncFn(&Face)) {
    let world = World::start().await;
    let rest = world.rest();
    let all = Call::new("list-keys").with("key_spec", "ALL");
    let before = rest.done(&all).await;
    story(&rest).await;
    assert_eq!(rest.done(&all).await, before);
    rest.done(&encrypt(DOCUMENTED, "x")).await;
}

/// A good call of each operation.
fn all_calls() -> Vec<Call> {
    let mut calls = about_a_key(DOCUMENTED);
    calls.extend([
        decrypt(&[3; 140]).with("key_id", DOCUMENTED),
        create("x").with("key_spec", "AES_256"),
        Call::new("list-keys")
            .with("limit", "1")
            .with("marker", "0"),
    ]);
    let sequenced = calls
        .into_iter()
        .map(|call| call.with("sequence", SEQUENCE));
    sequenced.collect()
}

/// A body whose plaintext is this many zero bytes, each six bytes long.
fn escaped(length: usize) -> String {
    let plain_text = r"\u0000".repeat(length);
    format!(r#"{{"key_id":"{DOCUMENTED}","plain_text":"{plain_text}"}}"#)
}

fn length(body: &str) -> String {
    format!("content-length: {}\r\n", body.len())
}
