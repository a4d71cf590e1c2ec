//! What the audit keeps: one line for each change and each refusal, none for data calls that
//! succeed, and nothing of what a request holds.

use kmsgate::error::Kind;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::concurrency::slow_call;
use crate::face::framed;
use crate::lifecycle::about_a_key;
use crate::schema::Call;
use crate::seeds::{DOCUMENTED, NOBODY};
use crate::world::{Right, World};
use crate::{SEQUENCE, aes_key, create, decrypt, encrypt, made, on, sealed};

#[tokio::test]
async fn every_change_and_every_refusal_is_kept_and_no_data_call_that_succeeds() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let before = world.audited(&face).await.len();
        let sequenced = |call: Call| call.with("sequence", SEQUENCE);
        let key = made(&face, &sequenced(create("audited"))).await;
        for _ in 0..5 {
            let frame = sealed(&face, &key, "x").await;
            face.done(&decrypt(&frame)).await;
        }
        let mut expected = vec![("done", "kms:cmk:create", None)];
        for (operation, action) in [
            ("describe-key", "kms:cmk:get"),
            ("rotate-on-demand", "kms:cmk:rotate"),
            ("disable-key", "kms:cmk:disable"),
            ("enable-key", "kms:cmk:enable"),
        ] {
            face.done(&sequenced(on(operation, &key))).await;
            expected.push(("done", action, None));
        }
        for (call, action, kind) in [
            (
                encrypt(NOBODY, "x"),
                "kms:cmk:encryptData",
                Kind::KeyNotFound,
            ),
            (encrypt("x", "x"), "kms:cmk:encryptData", Kind::InvalidKeyId),
            (
                decrypt(&[3; 140]),
                "kms:cmk:decryptData",
                Kind::InvalidCiphertext,
            ),
            (
                on("enable-key", &key),
                "kms:cmk:enable",
                Kind::KeyNotDisabled,
            ),
            (create("audited"), "kms:cmk:create", Kind::DuplicateAlias),
        ] {
            face.refused(kind, &sequenced(call)).await;
            expected.push(("refused", action, Some(kind)));
        }
        let lines = world.audited(&face).await;
        let lines = &lines[before..lines.len() - 1];
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, (outcome, action, kind)) in lines.iter().zip(expected) {
            assert_eq!(line["outcome"], outcome);
            assert_eq!(line["action"], action);
            assert_eq!(line["sequence"], SEQUENCE);
            assert_eq!(line["project_id"], *face.project);
            assert_eq!(line["request_id"].as_str().unwrap().len(), 32);
            assert_eq!(
                line["error_code"].as_str(),
                kind.map(|kind| kind.row().code)
            );
        }
    }
}

#[tokio::test]
async fn a_refusal_that_no_use_case_sees_is_kept_too() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let before = world.audited(&face).await.len();
        let call = encrypt(DOCUMENTED, "x");
        face.with_nothing()
            .refused(Kind::Unauthenticated, &call)
            .await;
        face.with_token("x")
            .refused(Kind::InvalidToken, &call)
            .await;
        face.naming("bare")
            .refused(Kind::ProjectMismatch, &call)
            .await;
        face.with_right(Right::Listing)
            .refused(Kind::Denied, &call)
            .await;
        let answer = face.send("encrypt-data", framed(b"garbage")).await;
        let malformed = answer.refusal().kind;
        let raw = face.post("/nothing", framed(b"")).await;
        face.read("encrypt-data", &raw)
            .is(Kind::UnknownPath, "/nothing");
        let lines = world.audited(&face).await;
        let lines = &lines[before..lines.len() - 1];
        let codes: Vec<&str> = lines.iter().map(code).collect();
        let expected = [
            Kind::Unauthenticated,
            Kind::InvalidToken,
            Kind::ProjectMismatch,
            Kind::Denied,
            malformed,
            Kind::UnknownPath,
        ];
        assert_eq!(codes, expected.map(|kind| kind.row().code));
        assert!(lines.iter().all(|line| line["outcome"] == "refused"));
        assert_eq!(lines[0].get("caller"), None);
        let actions: Vec<_> = lines.iter().map(|line| line.get("action")).collect();
        assert!(
            actions[..5]
                .iter()
                .all(|action| action.is_some_and(|action| action == "kms:cmk:encryptData")),
            "{lines:#?}"
        );
        assert_eq!(actions[5], None, "the path names no action");
        assert_eq!(lines[3]["project_id"], *face.project);
    }
}

#[tokio::test]
async fn nothing_that_a_request_holds_is_kept() {
    const SECRET: &str = "attack-at-dawn";
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let key = aes_key(&face).await;
        let call = encrypt(&key, SECRET).with("additional_authenticated_data", SECRET);
        let sealed = crate::face::bytes(&face.done(&call).await["cipher_text"]);
        face.refused(Kind::InvalidCiphertext, &decrypt(&sealed))
            .await;
        made(&face, &create(SECRET).with("key_description", SECRET)).await;
        face.refused(Kind::DuplicateAlias, &create(SECRET)).await;
        face.refused(Kind::InvalidKeyId, &encrypt(SECRET, SECRET))
            .await;
        let call = encrypt(&key, SECRET).with("sequence", SECRET);
        face.refused(Kind::InvalidSequence, &call).await;
        face.with_token(SECRET)
            .refused(Kind::InvalidToken, &call)
            .await;
        face.naming(SECRET)
            .refused(Kind::ProjectMismatch, &call)
            .await;
        face.send("encrypt-data", SECRET).await;
        for call in about_a_key(&key) {
            let call = call.with("sequence", SECRET);
            face.refused(Kind::InvalidSequence, &call).await;
        }
        let lines = world.audited(&face).await;
        let text = format!("{lines:?}");
        assert!(lines.len() > 15 && !text.contains(SECRET), "{text}");
        let base64 = "YXR0YWNrLWF0LWRhd24";
        assert!(!text.contains(base64) && !text.contains("Everything-of-x"));
    }
}

#[tokio::test]
async fn a_call_that_its_caller_abandons_is_kept_as_cancelled() {
    let world = World::with("limits = { cpu_threads = 1 }\n").await;
    let grpc = world.grpc();
    let slow = slow_call(&grpc).await;
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (grpc, slow) = (grpc.clone(), slow.clone());
        others.spawn(async move { grpc.call(&slow).await });
    }
    // The first that ends says that the others are in work.
    others.join_next().await;
    others.shutdown().await;
    let cancelled = |lines: &[Value]| {
        let mut all = lines.iter();
        all.any(|line| line["outcome"] == "cancelled" && line["action"] == "kms:cmk:decryptData")
    };
    world.audited_until(cancelled).await;
    grpc.done(&encrypt(DOCUMENTED, "x")).await;
}

#[tokio::test]
async fn a_change_that_its_caller_abandons_is_made_and_kept_as_done() {
    let world = World::start().await;
    let rest = world.rest();
    for _ in 0..20 {
        let key = aes_key(&rest).await;
        rest.done(&encrypt(&key, "x")).await;
        let body = on("disable-key", &key).to_json();
        let length = format!("content-length: {}\r\n", body.len());
        let head = rest.head("POST", &rest.path("disable-key"), &length);
        let mut stream = TcpStream::connect(rest.address).await.unwrap();
        stream.write_all(&[head, body].concat()).await.unwrap();
        drop(stream);

        let disable = |line: &&Value| line["key_id"] == *key && line["action"] == "kms:cmk:disable";
        let told = |lines: &[Value]| lines.iter().any(|line| disable(&line));
        let lines = world.audited_until(told).await;
        assert_eq!(lines.iter().find(disable).unwrap()["outcome"], "done");
        rest.refused(Kind::KeyDisabled, &encrypt(&key, "x")).await;
    }
}

#[tokio::test]
async fn a_call_that_the_server_gives_up_is_kept_as_refused() {
    let world = World::with("limits = { cpu_threads = 1 }\n").await;
    let grpc = world.grpc();
    let slow = slow_call(&grpc).await;
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (grpc, slow) = (grpc.clone(), slow.clone());
        others.spawn(async move { grpc.call(&slow).await });
    }
    // The first that ends says that the others are in work.
    others.join_next().await;
    let hurried = grpc.with_header("grpc-timeout", "20m").call(&slow).await;
    hurried.is(Kind::DeadlineExceeded, "20 ms");
    others.shutdown().await;
    let lines = world.audited(&grpc).await;
    let refused = |line: &Value| {
        line["request_id"] == *hurried.request_id
            && line["outcome"] == "refused"
            && line["error_code"] == Kind::DeadlineExceeded.row().code
    };
    assert!(lines.iter().any(refused), "{lines:#?}");
}

fn code(line: &Value) -> &str {
    line["error_code"].as_str().unwrap()
}
