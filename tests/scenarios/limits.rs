//! What bounds a caller's hold on the server: the time that a request may take, and how many are in
//! work.

use std::time::Duration;

use kmsgate::error::Kind;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::concurrency::slow_call;
use crate::encrypt;
use crate::face::{Face, Sending, framed, read_http1};
use crate::seeds::DOCUMENTED;
use crate::world::{World, on_both_faces};

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
