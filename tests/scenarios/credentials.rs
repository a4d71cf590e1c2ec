//! Who is let in (decision 10 and the rows after it), and what needs nobody.

use kmsgate::error::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::face::{Face, Over, framed};
use crate::lifecycle::about_a_key;
use crate::schema::Call;
use crate::seeds::{DOCUMENTED, NOBODY};
use crate::signature::{Layout, signed};
use crate::world::{ACCESS_KEY, GRPC_PROJECT, REST_PROJECT, Right, World, on_both_faces};
use crate::{create, encrypt, on};

#[tokio::test]
async fn nobody_is_let_in_without_a_credential() {
    on_both_faces(async |face| {
        let nobody = face.with_nothing();
        for call in about_a_key(DOCUMENTED) {
            let refusal = nobody.refused(Kind::Unauthenticated, &call).await;
            let message = "Incorrect IAM authentication information: x-auth-token not found";
            assert_eq!(refusal.message, message);
        }
        for other in ["Basic dDp0", "Token x", "Bearers x"] {
            let face = nobody.with_header("authorization", other);
            face.refused(Kind::Unauthenticated, &encrypt(DOCUMENTED, "x"))
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_not_known_is_invalid() {
    on_both_faces(async |face| {
        let call = encrypt(DOCUMENTED, "x");
        for token in ["x", "", "Everything-of-", &"x".repeat(20_000)] {
            face.with_token(token)
                .refused(Kind::InvalidToken, &call)
                .await;
            let bearer = face.with_nothing();
            let bearer = bearer.with_header("authorization", &format!("Bearer {token}"));
            bearer.refused(Kind::InvalidToken, &call).await;
        }
        // One request has one credential, be both good.
        let good = crate::world::token(&face.project, Right::Everything);
        let both = face.with_header("authorization", &format!("Bearer {good}"));
        both.refused(Kind::InvalidToken, &call).await;
    })
    .await;
}

#[tokio::test]
async fn a_token_may_come_as_a_bearer() {
    on_both_faces(async |face| {
        let token = crate::world::token(&face.project, Right::Everything);
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let bearer = face.with_nothing();
            let bearer = bearer.with_header("authorization", &format!("{scheme} {token}"));
            bearer.done(&encrypt(DOCUMENTED, "x")).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_expired_token_is_told_as_expired() {
    on_both_faces(async |face| {
        let call = encrypt(DOCUMENTED, "x");
        let expired = face.with_right(Right::Expired);
        expired.refused(Kind::ExpiredToken, &call).await;
    })
    .await;
}

#[tokio::test]
async fn a_token_is_good_for_one_project() {
    on_both_faces(async |face| {
        for project in ["bare", "nobodys", "x"] {
            let naming = face.naming(project);
            for call in about_a_key(DOCUMENTED) {
                naming.refused(Kind::ProjectMismatch, &call).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_right_is_needed_for_each_action_whether_or_not_the_key_exists() {
    // Decision 14.
    on_both_faces(async |face| {
        let lister = face.with_right(Right::Listing);
        lister.done(&Call::new("list-keys")).await;
        for key in [DOCUMENTED, NOBODY] {
            for call in about_a_key(key) {
                lister.refused(Kind::Denied, &call).await;
            }
            let call = crate::decrypting::under(key, "RSAES_OAEP_SHA_256", &[0; 256]);
            lister.refused(Kind::Denied, &call).await;
        }
        lister
            .refused(Kind::Denied, &crate::decrypt(&[3; 140]))
            .await;
        lister.refused(Kind::Denied, &create("x")).await;
    })
    .await;
}

#[tokio::test]
async fn a_signature_of_either_layout_lets_its_access_key_in() {
    let world = World::start().await;
    let rest = world.rest();
    let (_, secret_key) = ACCESS_KEY;
    for layout in [Layout::A, Layout::B] {
        let call = encrypt(DOCUMENTED, "hello world");
        let (path, body) = (rest.path(call.operation), call.to_json());
        let signer = signed(&rest, layout, secret_key, &path, &body);
        let answer = signer.send(call.operation, body).await;
        assert_eq!(answer.outcome.unwrap()["key_id"], DOCUMENTED);
    }
}

#[tokio::test]
async fn a_signature_that_does_not_hold_lets_nobody_in() {
    let world = World::start().await;
    let rest = world.rest();
    let (_, secret_key) = ACCESS_KEY;
    let call = encrypt(DOCUMENTED, "hello world");
    let (path, body) = (rest.path(call.operation), call.to_json());
    for layout in [Layout::A, Layout::B] {
        let refused = async |face: &Face, body: &[u8], about: &str| {
            let answer = face.send(call.operation, body.to_vec()).await;
            answer.is(Kind::Unauthenticated, about);
        };
        let sign = |secret: &str, path: &str| signed(&rest, layout, secret, path, &body);
        refused(&sign("another", &path), &body, "another secret key").await;
        let other_path = rest.path("decrypt-data");
        refused(&sign(secret_key, &other_path), &body, "another path").await;
        let good = sign(secret_key, &path);
        let other_body = encrypt(DOCUMENTED, "hello worle").to_json();
        refused(&good, &other_body, "another body").await;
        let later = good.with_header("x-sdk-date", "20380101T000000Z");
        refused(&later, &body, "another time").await;
        let unsigned = good.with_header("x-sdk-content-sha256", "UNSIGNED-PAYLOAD");
        refused(&unsigned, &body, "an unsigned payload").await;
        let two = good.with_header("x-auth-token", "x");
        let answer = two.send(call.operation, body.clone()).await;
        answer.is(Kind::InvalidToken, "a token beside it");
        let other = good.naming(GRPC_PROJECT);
        let path = other.path(call.operation);
        let signer = signed(&other, layout, secret_key, &path, &body);
        let answer = signer.send(call.operation, body.clone()).await;
        answer.is(Kind::ProjectMismatch, "another project's path");
    }
}

#[tokio::test]
async fn a_signature_is_for_rest_alone() {
    let world = World::start().await;
    let grpc = world.face(Over::Grpc, REST_PROJECT);
    let call = encrypt(DOCUMENTED, "x");
    let body = framed(&call.to_message(Some(REST_PROJECT)));
    let (_, secret_key) = ACCESS_KEY;
    for layout in [Layout::A, Layout::B] {
        let path = grpc.path(call.operation);
        let signer = signed(&grpc, layout, secret_key, &path, &body);
        let refusal = signer.refused(Kind::Unauthenticated, &call).await;
        assert!(
            refusal.message.ends_with("REST only"),
            "{}",
            refusal.message
        );
    }
}

#[tokio::test]
async fn one_peer_cannot_keep_the_signed_requests_of_others_out() {
    let world = World::start().await;
    let rest = world.rest();
    let (_, secret_key) = ACCESS_KEY;
    let call = encrypt(DOCUMENTED, "x");
    let (path, body) = (rest.path(call.operation), call.to_json());
    let signer = signed(&rest, Layout::A, secret_key, &path, &body);
    // Headers of a signature that would be good, and never a body to check it with.
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\n", rest.address);
    for (name, value) in &signer.headers {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    let mut attackers = Vec::new();
    for _ in 0..300 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(rest.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        attackers.push(stream);
    }
    let status = async |mut stream: TcpStream| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    };
    let last = attackers.pop().unwrap();
    assert_eq!(status(last).await, "HTTP/1.1 429", "it has no place left");

    let answer = signer.send(call.operation, body).await;
    assert_eq!(answer.outcome.unwrap()["key_id"], DOCUMENTED);
    // Those that had a place are told that they took too long, and the others at once that there is none.
    let (mut waited, mut refused) = (0, 0);
    for stream in attackers {
        match &*status(stream).await {
            "HTTP/1.1 504" => waited += 1,
            "HTTP/1.1 429" => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((waited, refused), (64, 235));
}

#[tokio::test]
async fn a_signature_whose_headers_show_that_it_is_bad_waits_for_no_body() {
    let world = World::start().await;
    let rest = world.rest();
    let path = rest.path("encrypt-data");
    let signer = signed(&rest, Layout::A, "any", &path, b"");
    let now = signer.headers["x-sdk-date"].to_str().unwrap();
    for (access_key, date, why) in [
        ("AKEXAMPLE0000000001", now, "ak not exist"),
        (ACCESS_KEY.0, "20191115T033655Z", "more than 15 minutes"),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\nx-sdk-date: {date}\r\n\
             authorization: SDK-HMAC-SHA256 Access={access_key}, SignedHeaders=x-sdk-date, \
             Signature={:064}\r\n\r\n",
            0
        );
        let mut stream = TcpStream::connect(rest.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(why) {
            let read = stream.read_buf(&mut answer).await.unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
        }
    }
}

#[tokio::test]
async fn a_grpc_call_may_leave_its_project_out() {
    let world = World::start().await;
    let grpc = world.grpc();
    for call in [
        encrypt(DOCUMENTED, "x"),
        on("describe-key", DOCUMENTED),
        Call::new("list-keys"),
        create("made-without-a-project"),
    ] {
        let body = framed(&call.to_message(None));
        let answer = grpc.send(call.operation, body).await;
        answer.outcome.unwrap();
    }
    let made = grpc.done(&Call::new("list-keys")).await.to_string();
    assert!(made.contains("made-without-a-project"));
}

#[tokio::test]
async fn health_and_reflection_need_no_credential() {
    let world = World::with("reflection = true\n").await;
    let nobody = world.grpc().with_nothing();
    for service in ["", "kmsgate.v1.CryptoService", "kmsgate.v1.KeyService"] {
        // grpc.health.v1.HealthCheckRequest { service = 1 }, HealthCheckResponse { status = 1:
        // SERVING }
        let length = u8::try_from(service.len()).unwrap();
        let message = [&[0x0a, length], service.as_bytes()].concat();
        let raw = nobody
            .post("/grpc.health.v1.Health/Check", framed(&message))
            .await;
        assert_eq!(*raw.body, framed(&[0x08, 1]), "{service:?}");
        assert!(raw.headers.contains_key("x-request-id"));
    }
    // ServerReflectionRequest { list_services = 7 }
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let raw = nobody.post(path, framed(&[0x3a, 0])).await;
    let text = String::from_utf8_lossy(&raw.body).into_owned();
    for service in ["kmsgate.v1.CryptoService", "kmsgate.v1.KeyService"] {
        assert!(text.contains(service), "{text}");
    }
    nobody
        .refused(Kind::Unauthenticated, &encrypt(DOCUMENTED, "x"))
        .await;
}
