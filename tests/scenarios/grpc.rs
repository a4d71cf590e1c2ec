//! What gRPC alone can be told: protobuf, frames and metadata, good and bad. Whatever is wrong,
//! nothing changes and the server goes on.

use kmsgate::error::Kind;

use crate::face::{Face, framed};
use crate::schema::{Call, OPERATIONS};
use crate::seeds::DOCUMENTED;
use crate::world::World;
use crate::{SEQUENCE, create, encrypt};

#[tokio::test]
async fn bytes_that_are_no_message_are_an_invalid_format() {
    unchanged(async |grpc| {
        for (operation, _, _) in OPERATIONS {
            for bad in [
                &b"garbage"[..],
                &[0xff; 100],
                &[0x0a],
                &[0x0a, 200, 1],
                &[0x12, 2, 0xc3, 0x28], // Field 2 is text, and this is not UTF-8.
                &[0x13],                // A group without an end.
                &[
                    0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
                ],
            ] {
                let answer = grpc.send(operation, framed(bad)).await;
                answer.is(Kind::InvalidFormat, &format!("{operation} {bad:02x?}"));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_cut_off_anywhere_is_refused() {
    unchanged(async |grpc| {
        for call in [
            Call::new("encrypt-data")
                .with("sequence", SEQUENCE)
                .with("key_id", DOCUMENTED)
                .with("plain_text", "hello world"),
            create("x"),
        ] {
            let message = call.to_message(Some(&grpc.project));
            for end in 0..message.len() {
                let answer = grpc.send(call.operation, framed(&message[..end])).await;
                let kind = answer.refusal().kind;
                // Between two fields, what is left is a message, and a field is missing.
                let expected = [Kind::InvalidFormat, Kind::MissingParameter];
                assert!(expected.contains(&kind), "{end}: {kind:?}");
            }
            let whole = framed(&message);
            for end in 0..whole.len() {
                let answer = grpc.send(call.operation, whole[..end].to_vec()).await;
                answer.is(Kind::InvalidFormat, &format!("a frame of {end} bytes"));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_number_that_names_no_value_is_an_invalid_parameter() {
    unchanged(async |grpc| {
        for (operation, tag) in [
            ("encrypt-data", 5),
            ("decrypt-data", 5),
            ("create-key", 3),
            ("create-key", 4),
            ("list-keys", 4),
            ("list-keys", 5),
        ] {
            let call = match operation {
                "encrypt-data" => encrypt(DOCUMENTED, "x"),
                "decrypt-data" => crate::decrypt(&[3; 140]),
                "create-key" => create("x"),
                _ => Call::new("list-keys"),
            };
            for number in [&[6][..], &[99], &[0xff, 0xff, 0xff, 0xff, 0x07]] {
                // 6 is no state, no spec, no usage and no algorithm.
                let mut message = call.to_message(None);
                message.push(tag << 3);
                message.extend(number);
                let answer = grpc.send(operation, framed(&message)).await;
                answer.is(Kind::InvalidParameter, &format!("{operation} {tag}"));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_unknown_field_is_passed_over() {
    let world = World::start().await;
    let grpc = world.grpc();
    let mut message = encrypt(DOCUMENTED, "x").to_message(None);
    message.extend([0xa2, 0x06, 3, b'n', b'e', b'w']); // Field 100.
    let answer = grpc.send("encrypt-data", framed(&message)).await;
    answer.outcome.unwrap();
}

#[tokio::test]
async fn the_last_form_of_plaintext_counts() {
    let world = World::start().await;
    let grpc = world.grpc();
    // A oneof has one value: of two on the wire, the last.
    let call = encrypt(DOCUMENTED, "first").with("plain_text_base64", &b"second"[..]);
    let answer = grpc.done(&call).await;
    let sealed = crate::face::bytes(&answer["cipher_text"]);
    let answer = grpc.done(&crate::decrypt(&sealed)).await;
    assert_eq!(answer["plain_text"], "second");
}

#[tokio::test]
async fn a_message_has_at_most_64_kib() {
    // Decision 15.
    const MOST: usize = 64 * 1024;
    unchanged(async |grpc| {
        let padded = |length: usize| {
            let mut message = encrypt(DOCUMENTED, "x").to_message(None);
            // Field 100, delimited, with a length of three bytes.
            let rest = length - message.len() - 5;
            let bytes = [rest & 0x7f | 0x80, rest >> 7 & 0x7f | 0x80, rest >> 14];
            message.extend([0xa2, 0x06]);
            message.extend(bytes.map(|byte| byte as u8));
            message.resize(length, 0);
            message
        };
        let whole = grpc.send("encrypt-data", framed(&padded(MOST))).await;
        whole.outcome.unwrap();
        for length in [MOST + 1, 2 * MOST, 1 << 20] {
            let answer = grpc.send("encrypt-data", framed(&padded(length))).await;
            answer.is(Kind::MessageTooLong, &length.to_string());
        }
        // Only said: nothing is waited for, or made room for.
        let answer = grpc
            .send("encrypt-data", vec![0, 0xff, 0xff, 0xff, 0xff])
            .await;
        answer.is(Kind::MessageTooLong, "said");
    })
    .await;
}

#[tokio::test]
async fn a_method_that_is_none_is_unknown() {
    unchanged(async |grpc| {
        for path in [
            "/",
            "/kmsgate.v1.CryptoService",
            "/kmsgate.v1.CryptoService/",
            "/kmsgate.v1.CryptoService/Nothing",
            "/kmsgate.v1.CryptoService/encryptData",
            "/kmsgate.v1.KeyService/EncryptData",
            "/kmsgate.v2.CryptoService/EncryptData",
            "/kmsgate.v1.CryptoService/EncryptData/",
            "//kmsgate.v1.CryptoService/EncryptData",
            "/v1.0/x/kms/encrypt-data",
            // Reflection is off unless it is configured.
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.health.v1.Health/Nothing",
        ] {
            let raw = grpc.post(path, framed(b"")).await;
            grpc.read("encrypt-data", &raw).is(Kind::UnknownPath, path);
        }
    })
    .await;
}

#[tokio::test]
async fn a_compressed_message_is_refused() {
    unchanged(async |grpc| {
        let mut body = framed(&encrypt(DOCUMENTED, "x").to_message(None));
        body[0] = 1;
        for encoding in ["gzip", "deflate", "zstd", "nothing"] {
            let face = grpc.with_header("grpc-encoding", encoding);
            let answer = face.send("encrypt-data", body.clone()).await;
            answer.is(Kind::InvalidFormat, encoding);
        }
        // Said by the flag alone.
        let answer = grpc.send("encrypt-data", body.clone()).await;
        answer.is(Kind::InvalidFormat, "no encoding");
        body[0] = 7;
        let answer = grpc.send("encrypt-data", body.clone()).await;
        answer.is(Kind::InvalidFormat, "no flag");
        // What the client can read does not matter to a server that compresses nothing.
        let face = grpc.with_header("grpc-accept-encoding", "gzip,identity");
        face.done(&encrypt(DOCUMENTED, "x")).await;
    })
    .await;
}

#[tokio::test]
async fn an_encoding_that_changes_nothing_is_accepted() {
    unchanged(async |grpc| {
        let face = grpc.with_header("grpc-encoding", "identity");
        face.done(&encrypt(DOCUMENTED, "x")).await;
        let raw = face
            .post("/kmsgate.v1.CryptoService/Nothing", framed(b""))
            .await;
        face.read("encrypt-data", &raw)
            .is(Kind::UnknownPath, "an unknown method");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_has_passed_is_exceeded() {
    unchanged(async |grpc| {
        for timeout in ["0n", "1n", "0S", "0H"] {
            let late = grpc.with_header("grpc-timeout", timeout);
            for call in [encrypt(DOCUMENTED, "x"), create("late")] {
                late.refused(Kind::DeadlineExceeded, &call).await;
            }
        }
        // However fast the server is.
        let late = grpc.with_header("grpc-timeout", "1n");
        for _ in 0..50 {
            late.refused(Kind::DeadlineExceeded, &encrypt(DOCUMENTED, "x"))
                .await;
        }
        let in_time = grpc.with_header("grpc-timeout", "1H");
        in_time.done(&encrypt(DOCUMENTED, "x")).await;
        for malformed in ["", "1", "S", "-1S", "1s", "999999999S", "soon"] {
            let face = grpc.with_header("grpc-timeout", malformed);
            face.refused(Kind::InvalidFormat, &encrypt(DOCUMENTED, "x"))
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_grpc_is_told_so() {
    unchanged(async |grpc| {
        for kind in [
            "application/json",
            "text/html",
            "",
            "application/grp",
            "application/grpc-web",
        ] {
            let face = grpc.with_header("content-type", kind);
            face.refused(Kind::InvalidFormat, &encrypt(DOCUMENTED, "x"))
                .await;
        }
        let face = grpc.with_header("content-type", "application/grpc+proto");
        face.done(&encrypt(DOCUMENTED, "x")).await;
        // A browser or a probe that speaks HTTP/1.1.
        let raw = grpc.write(&grpc.head("GET", "/", "")).await;
        assert_eq!(raw.status, 415, "{raw:?}");
        grpc.read("encrypt-data", &raw)
            .is(Kind::InvalidFormat, "HTTP/1.1");
    })
    .await;
}

#[tokio::test]
async fn a_header_list_over_64_kib_is_refused() {
    unchanged(async |grpc| {
        let good = grpc.with_header("x-padding", &"x".repeat(60_000));
        good.done(&encrypt(DOCUMENTED, "x")).await;
        let over = grpc.with_header("x-padding", &"x".repeat(64 * 1024));
        over.refused(Kind::HeadersTooLong, &encrypt(DOCUMENTED, "x"))
            .await;
    })
    .await;
}

/// Runs a story, after which the same keys are there and the server works.
async fn unchanged(story: impl AsyncFn(&Face)) {
    let world = World::start().await;
    let grpc = world.grpc();
    let all = Call::new("list-keys");
    let before = grpc.done(&all).await;
    story(&grpc).await;
    assert_eq!(grpc.done(&all).await, before);
    grpc.done(&encrypt(DOCUMENTED, "x")).await;
}
