//! What bounds a caller's hold on the server: the time that a request may take, how many are in work,
//! and what a caller or a key may be asked for over time.

use std::time::Duration;

use kmsgate::error::Kind;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::concurrency::slow_call;
use crate::decrypting::under;
use crate::face::{Face, Sending, bytes, framed, read_http1};
use crate::schema::Call;
use crate::seeds::{DOCUMENTED, NOBODY, RSA_3072, RSA_4096};
use crate::signature::{Layout, signed};
use crate::world::{ACCESS_KEY, Right, World, on_both_faces};
use crate::{create, encrypt};

const RSA: &str = "RSAES_OAEP_SHA_256";

#[tokio::test]
async fn a_body_that_never_arrives_ends_by_the_servers_own_time() {
    let world = World::with("limits = { request_timeout = \"300ms\" }\n").await;
    let rest = world.rest();
    let mut half_sent = half_a_request(&rest).await;
    // Others do not wait for it.
    for face in [world.rest(), world.grpc()] {
        face.done(&encrypt(DOCUMENTED, "x")).await;
    }
    let raw = read_http1(&mut half_sent).await;
    rest.read("encrypt-data", &raw)
        .is(Kind::DeadlineExceeded, "half a body");
}

#[tokio::test]
async fn a_message_that_never_arrives_ends_by_the_callers_own_time() {
    let world = World::start().await;
    let grpc = world.grpc().with_header("grpc-timeout", "100m");
    let message = framed(&encrypt(DOCUMENTED, "x").to_message(None));
    let raw = grpc
        .post(
            "/kmsgate.v1.CryptoService/EncryptData",
            Sending::half(&message),
        )
        .await;
    grpc.read("encrypt-data", &raw)
        .is(Kind::DeadlineExceeded, "half a message");
}

#[tokio::test]
async fn work_that_outlasts_the_callers_own_time_is_given_up() {
    // The one thread of the pool has a second's work to do before.
    let world = World::with("limits = { cpu_threads = 1 }\n").await;
    let grpc = world.grpc();
    let slow = slow_call(&grpc).await;
    let mut others = JoinSet::new();
    for _ in 0..40 {
        let (grpc, slow) = (grpc.clone(), slow.clone());
        others.spawn(async move { grpc.call(&slow).await });
    }
    others.join_next().await;
    let hurried = grpc.with_header("grpc-timeout", "20m");
    hurried.refused(Kind::DeadlineExceeded, &slow).await;
    others.shutdown().await;
    grpc.done(&slow).await;
}

#[tokio::test]
async fn requests_of_nobody_take_no_callers_place() {
    let world = World::with("limits = { requests_in_flight = 2 }\n").await;
    let rest = world.rest();
    let stranger = rest.with_token("nobody");
    let mut half_sent = Vec::new();
    for _ in 0..4 {
        half_sent.push(half_a_request(&stranger).await);
    }
    // Nor do health checks, which anybody may ask for.
    let (grpc, check) = (world.grpc().with_nothing(), "/grpc.health.v1.Health/Check");
    let mut checks = JoinSet::new();
    for _ in 0..4 {
        let grpc = grpc.clone();
        checks.spawn(async move { grpc.post(check, Sending::half(&framed(b"\n\x01x"))).await });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    for face in [world.rest(), world.grpc()] {
        face.done(&encrypt(DOCUMENTED, "x")).await;
    }
    for mut stream in half_sent {
        let raw = read_http1(&mut stream).await;
        rest.read("encrypt-data", &raw)
            .is(Kind::InvalidToken, "a stranger's half a body");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_holds_up_nobody() {
    on_both_faces(async |face| {
        let mut silent = Vec::new();
        for words in [
            &b""[..],
            b"P",
            b"POST / HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(face.address).await.unwrap();
            stream.write_all(words).await.unwrap();
            silent.push(stream);
        }
        face.done(&encrypt(DOCUMENTED, "x")).await;
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_not_http_hurt_nobody() {
    on_both_faces(async |face| {
        for garbage in [
            &[0; 100][..],
            &[0xff; 100],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let mut stream = TcpStream::connect(face.address).await.unwrap();
            let _ = stream.write_all(garbage).await;
            let _ = stream.shutdown().await;
        }
        face.done(&encrypt(DOCUMENTED, "x")).await;
    })
    .await;
}

#[tokio::test]
async fn more_requests_than_may_be_in_work_are_refused_at_once() {
    // Decision 16.
    let world = World::with("limits = { requests_in_flight = 1 }\n").await;
    let rest = world.rest();
    let half_sent = half_a_request(&rest).await;
    for face in [&rest, &world.grpc()] {
        let refusal = until_refused(face).await;
        assert_eq!(refusal, Kind::Throttled);
    }
    drop(half_sent);
    for face in [&rest, &world.grpc()] {
        // The server may not yet have noticed that the half request is gone.
        while face.call(&encrypt(DOCUMENTED, "x")).await.outcome.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_callers_requests_are_bounded_whatever_they_ask_for() {
    let limit = "limits.per_caller = { requests_per_second = 1, requests_burst = 3 }\n";
    let world = World::with(limit).await;
    for face in [world.rest(), world.grpc()] {
        face.done(&encrypt(DOCUMENTED, "x")).await;
        face.refused(Kind::KeyNotFound, &encrypt(NOBODY, "x")).await;
        face.refused(Kind::MissingParameter, &Call::new("encrypt-data"))
            .await;
        let mut refusal = face
            .refused(Kind::Throttled, &encrypt(DOCUMENTED, "x"))
            .await;
        assert!(
            refusal
                .message
                .ends_with("The caller sends too many requests.")
        );
        for _ in 0..20 {
            // Being refused costs nothing.
            refusal = face
                .refused(Kind::Throttled, &encrypt(DOCUMENTED, "x"))
                .await;
        }
        let pause = refusal.pause.unwrap();
        assert!(pause <= Duration::from_secs(1), "{pause:?}");
        // Others have requests of their own: another caller of the project, and those who need no
        // credential.
        face.with_right(Right::Listing)
            .done(&Call::new("list-keys"))
            .await;
        face.with_nothing()
            .refused(Kind::Unauthenticated, &encrypt(DOCUMENTED, "x"))
            .await;
        tokio::time::sleep(pause).await;
        face.done(&encrypt(DOCUMENTED, "x")).await;
    }
}

#[tokio::test]
async fn health_checks_are_nobodys_requests() {
    let limit = "limits.per_caller = { requests_per_second = 1, requests_burst = 1 }\n";
    let world = World::with(limit).await;
    let grpc = world.grpc();
    grpc.done(&encrypt(DOCUMENTED, "x")).await;
    grpc.refused(Kind::Throttled, &encrypt(DOCUMENTED, "x"))
        .await;
    for _ in 0..10 {
        let raw = grpc.post("/grpc.health.v1.Health/Check", framed(b"")).await;
        assert_eq!(raw.trailers["grpc-status"], "0", "{raw:?}");
    }
}

/// Limits that repay so little that no test sees it: a microsecond of processor time a second.
const ONE_MILLISECOND: &str = "{ cores = 0.000001, burst = \"1ms\" }";

#[tokio::test]
async fn a_caller_is_charged_by_what_work_costs() {
    let world = World::with(&format!("limits.per_caller = {ONE_MILLISECOND}\n")).await;
    // An RSA_4096 key is opened in 560 microseconds, encrypts in 58, and decrypts in 1500; an AES_256
    // key is opened in 3 and encrypts in 1.
    let under_rsa = encrypt(RSA_4096, "x").with("encryption_algorithm", RSA);
    for face in [world.rest(), world.grpc()] {
        let encrypted = face.done(&under_rsa).await;
        let expensive = under(RSA_4096, RSA, &bytes(&encrypted["cipher_text"]));
        let refusal = face.refused(Kind::Throttled, &expensive).await;
        assert!(
            refusal
                .message
                .ends_with("The caller's processor time is used up.")
        );
        // What costs more than the burst must wait until all is paid: 618 microseconds.
        let pause = refusal.pause.unwrap();
        let paid = Duration::from_secs(500)..=Duration::from_secs(618);
        assert!(paid.contains(&pause), "{pause:?}");
        // What is cheap goes on, and so does what comes after it, to the last microsecond.
        for _ in 0..300 {
            face.done(&encrypt(DOCUMENTED, "x")).await;
            face.refused(Kind::Throttled, &expensive).await;
        }
        let left = 1000 - 618 - 303;
        for _ in 0..left {
            face.done(&encrypt(DOCUMENTED, "x")).await;
        }
        let mut more = 0;
        while face.call(&encrypt(DOCUMENTED, "x")).await.outcome.is_ok() {
            more += 1;
        }
        // One for each second that this took.
        assert!(more < 60, "{more}");
        // Nobody is charged for what is not the caller's to ask for.
        face.refused(Kind::KeyNotFound, &encrypt(NOBODY, "x")).await;
    }
}

#[tokio::test]
async fn a_key_is_charged_for_all_of_its_callers() {
    let world = World::with(&format!("limits.per_key = {ONE_MILLISECOND}\n")).await;
    let under_rsa = encrypt(RSA_4096, "x").with("encryption_algorithm", RSA);
    for face in [world.rest(), world.grpc()] {
        let encrypted = face.done(&under_rsa).await;
        let expensive = under(RSA_4096, RSA, &bytes(&encrypted["cipher_text"]));
        let refusal = face.refused(Kind::Throttled, &expensive).await;
        assert!(
            refusal
                .message
                .ends_with("The key's processor time is used up.")
        );
        // Other keys of the same caller have time of their own.
        face.done(&encrypt(DOCUMENTED, "x")).await;
        let other = encrypt(RSA_3072, "x").with("encryption_algorithm", RSA);
        face.done(&other).await;
        face.done(&under_rsa).await;
    }
    // Another caller of the same project finds the key as the first left it.
    let rest = world.rest();
    let (path, body) = (rest.path(under_rsa.operation), under_rsa.to_json());
    let (_, secret_key) = ACCESS_KEY;
    let signer = signed(&rest, Layout::A, secret_key, &path, &body);
    let mut done = 0;
    while signer
        .send(under_rsa.operation, body.clone())
        .await
        .outcome
        .is_ok()
    {
        done += 1;
    }
    // 58 microseconds each, beside the 560 for opening the key.
    let left = (1000 - 560) / 58 - 2;
    assert!((left..=left + 1).contains(&done), "{done}");
    rest.refused(Kind::Throttled, &under_rsa).await;
}

#[tokio::test]
async fn making_and_listing_keys_is_charged_and_a_refusal_changes_nothing() {
    let limit = "limits.per_caller = { cores = 0.000001, burst = \"100ms\" }\n";
    let world = World::with(limit).await;
    for face in [world.rest(), world.grpc()] {
        let rsa = |alias| create(alias).with("key_spec", "RSA_2048");
        // 90 milliseconds each.
        face.done(&rsa("first")).await;
        face.refused(Kind::Throttled, &rsa("second")).await;
        // An AES_256 key is made in 3 microseconds, beside 100 for changing the store.
        face.done(&create("third")).await;
        face.done(&create("second")).await;
        // A list costs 10 microseconds for each key that is read, which is known afterwards.
        let listing = face.with_right(Right::Listing);
        let list = Call::new("list-keys").with("limit", "1");
        let mut lists = 0;
        while lists < 1000 && listing.call(&list).await.outcome.is_ok() {
            lists += 1;
        }
        let keys = 13 + 3;
        let expected = 100_000 / (10 + 10 * keys);
        assert!((expected..expected + 10).contains(&lists), "{lists}");
    }
}

#[tokio::test]
async fn work_over_the_burst_is_done_for_who_owes_nothing() {
    let limit = "limits.per_caller = { cores = 0.0002, burst = \"0ms\" }\n";
    let world = World::with(limit).await;
    for face in [world.rest(), world.grpc()] {
        // 113 microseconds, which take half a second to be paid off; the same for what comes next.
        face.done(&create("first")).await;
        face.refused(Kind::Throttled, &create("second")).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        face.done(&create("second")).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let rotate = Call::new("rotate-on-demand").with("key_id", DOCUMENTED);
        face.done(&rotate).await;
    }
}

#[tokio::test]
async fn the_audit_is_told_of_whom_a_limit_refuses() {
    let limit = "limits.per_caller = { requests_per_second = 1, requests_burst = 1 }\n\
                 limits.per_key = { cores = 0.000001, burst = \"0ms\" }\n";
    let world = World::with(limit).await;
    let (rest, grpc) = (world.rest(), world.grpc());
    grpc.done(&encrypt(DOCUMENTED, "x")).await;
    let by_request = grpc.call(&encrypt(DOCUMENTED, "x")).await;
    by_request.is(Kind::Throttled, "the second request of a caller");
    rest.done(&encrypt(DOCUMENTED, "x")).await;
    let other = rest.path("encrypt-data");
    let (_, secret_key) = ACCESS_KEY;
    let body = encrypt(DOCUMENTED, "x").to_json();
    let signer = signed(&rest, Layout::A, secret_key, &other, &body);
    let by_key = signer.send("encrypt-data", body).await;
    by_key.is(Kind::Throttled, "the second use of a key");
    for answer in [by_request, by_key] {
        let of = |line: &Value| line["request_id"] == *answer.request_id;
        let lines = world.audited_until(|lines| lines.iter().any(of)).await;
        let line = lines.iter().find(|line| of(line)).unwrap();
        assert_eq!(line["error_code"], "APIGW.0308", "{line}");
        assert_eq!(line["action"], "kms:cmk:encryptData", "{line}");
    }
}

/// A connection on which half of a request was sent.
async fn half_a_request(rest: &Face) -> TcpStream {
    let body = encrypt(DOCUMENTED, "x").to_json();
    let length = format!("content-length: {}\r\n", body.len());
    let head = rest.head("POST", &rest.path("encrypt-data"), &length);
    let mut stream = TcpStream::connect(rest.address).await.unwrap();
    stream.write_all(&head).await.unwrap();
    stream.write_all(&body[..body.len() / 2]).await.unwrap();
    stream
}

/// The row of the first refusal: the server may not yet have read the half request when the first
/// call comes.
async fn until_refused(face: &Face) -> Kind {
    loop {
        if let Err(refusal) = face.call(&encrypt(DOCUMENTED, "x")).await.outcome {
            return refusal.kind;
        }
        tokio::task::yield_now().await;
    }
}
