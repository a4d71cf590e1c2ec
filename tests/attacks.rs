//! What strangers do to a connection, against the running program: each attack ends, or goes on at its
//! own cost, while others are answered, and leaves nothing behind.

mod program;

use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::program::{Addresses, PATIENCE, PROJECT, Program, Site, TOKEN, call, fetch};

/// The HTTP/2 preface and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

// Types and flags of frames (RFC 9113, section 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A block of headers that asks for nothing: POST http /x of h (RFC 7541, appendix A).
const REQUEST: [u8; 9] = [0x83, 0x86, 0x04, 2, b'/', b'x', 0x01, 1, b'h'];

/// How much of a flood is sent, if the server goes on reading it.
const FLOOD: usize = 64 * 1024 * 1024;

#[tokio::test]
async fn streams_that_are_begun_and_given_up_leave_nothing_behind() {
    // CVE-2023-44487. The first request is not given up: it is one that is answered.
    let (world, mut stream) = World::attacked().await;
    let mut one = Vec::new();
    frame(&mut one, HEADERS, END_HEADERS | END_STREAM, 1, &REQUEST);
    let (_, answer) = world.send_and_read(&mut stream, &one).await;
    assert!(frames(&answer).contains(&HEADERS), "{answer:?}");
    assert!(!is_refusal(&answer), "{answer:?}");
    // So few that the server reads them at once, and many more than may be given up before they are
    // begun.
    let few = given_up(1..101);
    let (_, answer) = world.send_and_read(&mut stream, &few).await;
    assert!(frames(&answer).contains(&GOAWAY), "{answer:?}");
    let mut stream = TcpStream::connect(world.at.grpc).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    // Where this ends, what says why may be lost with the connection.
    let flood = given_up(0..20_000);
    world.send_and_read(&mut stream, &flood).await;
    world.is_well().await;
}

#[tokio::test]
async fn headers_without_end_are_cut_off() {
    let (world, mut stream) = World::attacked().await;
    let mut begun = Vec::new();
    frame(&mut begun, HEADERS, END_STREAM, 1, &[0x83, 0x86]);
    // A literal header without indexing, again and again (CVE-2024-27316 and its like).
    let header = [&[0x00, 1, b'a', 100][..], &[b'b'; 100]]
        .concat()
        .repeat(100);
    let mut more = Vec::new();
    frame(&mut more, CONTINUATION, 0, 1, &header);
    // One frame more than the server takes: for 256 KiB of headers 16 of 16 KiB, and a quarter more.
    // Nothing comes after it, so what says why is not lost with the connection.
    let just_over = [&begun[..], &more.repeat(21)].concat();
    let (_, answer) = world.send_and_read(&mut stream, &just_over).await;
    assert!(frames(&answer).contains(&GOAWAY), "{answer:?}");
    let mut stream = TcpStream::connect(world.at.grpc).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    let flood = [&begun[..], &more.repeat(FLOOD / more.len())].concat();
    let (sent, _) = world.send_and_read(&mut stream, &flood).await;
    assert!(sent < 8 * 1024 * 1024, "{sent} bytes could be sent");
    world.is_well().await;
}

#[tokio::test]
async fn a_small_block_that_stands_for_many_headers_is_refused() {
    let (world, mut stream) = World::attacked().await;
    let mut block = REQUEST.to_vec();
    // One entry of the dynamic table, of 4000 bytes, and then only its index.
    block.extend([0x40, 1, b'a', 127]);
    block.extend(integer(4000 - 127));
    block.extend([b'b'; 4000]);
    for (stream_id, times) in [(1, 1), (3, 10_000)] {
        let block = [&block[..], &[0xbe].repeat(times)].concat();
        let mut request = Vec::new();
        let flags = END_HEADERS | END_STREAM;
        frame(&mut request, HEADERS, flags, stream_id, &block);
        let (_, answer) = world.send_and_read(&mut stream, &request).await;
        // Where it stands for few it is a request like others.
        assert_eq!(is_refusal(&answer), times > 1, "{times}: {answer:?}");
        let answered = frames(&answer).contains(&HEADERS);
        assert!(answered || times > 1, "{answer:?}");
    }
    world.is_well().await;
}

#[tokio::test]
async fn pings_and_settings_of_a_client_that_does_not_read_are_not_collected() {
    for kind in [PING, SETTINGS] {
        let world = World::new();
        let mut stream = TcpStream::connect(world.at.grpc).await.unwrap();
        stream.write_all(HELLO).await.unwrap();
        let mut some = Vec::new();
        while some.len() < 1024 * 1024 {
            match kind {
                PING => frame(&mut some, PING, 0, 0, &[7; 8]),
                // Another window for streams that are not there.
                _ => frame(&mut some, SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]),
            }
        }
        let mut sent = 0;
        while sent < FLOOD {
            let write = stream.write_all(&some);
            // A server that waits for its client to read, or has left it, reads no more.
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(Ok(())) => sent += some.len(),
                _ => break,
            }
        }
        world.is_well().await;
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_have_a_bounded_memory() {
    let world = World::new();
    // Some 440 KB to tell of.
    for number in 0..300 {
        let description = "\u{1d11e}".repeat(255);
        let body = serde_json::json!({ "key_alias": format!("a{number}"), "key_description": description });
        let made = call(world.at.rest, TOKEN, "create-key", &body).await;
        assert_eq!(made.status, 200, "{made:?}");
    }
    let before = resident(&world.program);
    let stream = TcpStream::connect(world.at.rest).await.unwrap();
    let mut never_reads = h2::client::Builder::new();
    never_reads.initial_window_size(0);
    let handshake = never_reads.handshake::<_, bytes::Bytes>(stream);
    let (mut client, connection) = handshake.await.unwrap();
    // It answers pings.
    tokio::spawn(connection);
    let uri = format!("http://localhost/v1.0/{PROJECT}/kms/list-keys");
    let mut answers = Vec::new();
    for _ in 0..400 {
        client = client.ready().await.unwrap();
        let request = http::Request::post(&uri).header("x-auth-token", TOKEN);
        let (answer, mut body) = client
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        body.send_data(r#"{"limit":"1000"}"#.into(), true).unwrap();
        answers.push(answer);
    }
    let mut waiting = Vec::new();
    let mut refused = 0;
    for answer in answers {
        let answer = answer.await.unwrap();
        match answer.status().as_u16() {
            200 => waiting.push(answer),
            429 => refused += 1,
            status => panic!("{status}"),
        }
    }
    let (waits, grown) = (waiting.len(), resident(&world.program) - before);
    assert!(waits > 100 && refused > 200, "{waits} and {refused}");
    assert!(grown < 128 * 1024, "{grown} KiB more");
    // Whom it does not concern is answered.
    let body = serde_json::json!({ "limit": "10" });
    let answer = call(world.at.rest, TOKEN, "list-keys", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // What is given up makes room.
    drop(waiting);
    let body = serde_json::json!({ "limit": "1000" });
    let until = Instant::now() + PATIENCE;
    while call(world.at.rest, TOKEN, "list-keys", &body).await.status != 200 {
        assert!(Instant::now() < until, "no room was given back");
    }
}

#[tokio::test]
async fn strangers_who_do_not_send_their_bodies_do_not_close_a_gateway() {
    let world = World::new();
    let upstream = format!("http://{}", world.at.grpc);
    let free = "127.0.0.1:0";
    let gateway = ["gateway", "--upstream", &upstream, "--rest", free];
    let (_gateway, at) = Program::serve([&gateway[..], &["--admin", free]].concat());
    let mut kept = Vec::new();
    // More than it has in work at a time.
    for _ in 0..5 {
        let stream = TcpStream::connect(at.rest).await.unwrap();
        let handshake = h2::client::handshake(stream);
        let (mut client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        for path in ["x/create-key", "v1.0/p/kms/create-key"].repeat(500) {
            client = client.ready().await.unwrap();
            let request = http::Request::post(format!("http://localhost/{path}"));
            let request = request.header("content-length", 10).body(()).unwrap();
            kept.push(client.send_request(request, false).unwrap());
        }
    }
    let begun = Instant::now();
    let body = serde_json::json!({});
    while call(at.rest, TOKEN, "list-keys", &body).await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(8), "still closed");
    }
    drop(kept);
}

#[tokio::test]
async fn a_second_request_cannot_be_hidden_in_the_first() {
    let world = World::new();
    let keys = async || {
        let body = serde_json::json!({ "key_spec": "ALL" });
        let keys = call(world.at.rest, TOKEN, "list-keys", &body).await;
        keys.json()["keys"].as_array().unwrap().clone()
    };
    let making = |alias: &str| {
        let body = serde_json::json!({ "key_alias": alias }).to_string();
        format!(
            "POST /v1.0/{PROJECT}/kms/create-key HTTP/1.1\r\nhost: h\r\nx-auth-token: {TOKEN}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let outer = |head: &str, body: &str| {
        format!("POST /v1.0/{PROJECT}/kms/list-keys HTTP/1.1\r\nhost: h\r\n{head}\r\n\r\n{body}")
    };
    // Behind one that ends where it says, a second request is one, and is done.
    let answer = world
        .tell(&outer("content-length: 0", &making("open")))
        .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    assert!(answer.contains(" 200 "), "{answer}");
    let before = keys().await;
    assert_eq!(before.len(), 1, "{before:?}");

    let hidden = making("hidden");
    let length = hidden.len();
    let chunk = format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n");
    // What two programs could read differently: each is refused, or its body is all of the rest.
    for (head, body) in [
        (
            format!("content-length: 0\r\ncontent-length: {length}"),
            &hidden,
        ),
        (format!("content-length: 0, {length}"), &hidden),
        (format!("content-length: +{length}"), &hidden),
        (format!("content-length : {length}"), &hidden),
        (format!("content-length:\x0b{length}"), &hidden),
        (
            format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
            &chunk,
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: identity".to_owned(),
            &chunk,
        ),
        ("transfer-encoding: xchunked".to_owned(), &chunk),
        ("transfer-encoding: chunked, identity".to_owned(), &chunk),
        ("transfer-encoding:\r\n chunked".to_owned(), &chunk),
        ("transfer-encoding : chunked".to_owned(), &chunk),
        (
            "\u{17f}-x: 1\r\ntransfer-encoding: \u{212a}chunked".to_owned(),
            &chunk,
        ),
        ("x: a\ntransfer-encoding: chunked".to_owned(), &chunk),
        ("x: a\rcontent-length: 0".to_owned(), &hidden),
        ("x: a\0".to_owned(), &hidden),
        // A proxy may hand on whatever comes after these, unread.
        (
            "connection: upgrade\r\nupgrade: websocket".to_owned(),
            &hidden,
        ),
        ("connection: x\r\nupgrade: h2c".to_owned(), &hidden),
        ("CONNECT".to_owned(), &hidden),
    ] {
        let request = match head.as_str() {
            "CONNECT" => format!("CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n{body}"),
            head => outer(head, body),
        };
        let answer = world.tell(&request).await;
        let answers = answer.matches("HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{head:?}: {answer}");
        assert!(!answer.contains(" 200 "), "{head:?}: {answer}");
    }
    assert_eq!(keys().await, before);
    world.is_well().await;
}

/// A server, and what its attackers have seen.
struct World {
    at: Addresses,
    program: Program,
    resident: u64,
    _site: Site,
}

impl World {
    fn new() -> Self {
        let site = Site::new("");
        let (program, at) = site.serve();
        let resident = resident(&program);
        Self {
            at,
            program,
            resident,
            _site: site,
        }
    }

    /// A server, and a connection that has said hello over HTTP/2.
    async fn attacked() -> (Self, TcpStream) {
        let world = Self::new();
        let mut stream = TcpStream::connect(world.at.grpc).await.unwrap();
        stream.write_all(HELLO).await.unwrap();
        (world, stream)
    }

    /// Sends bytes over a connection of their own to REST, and gives what comes back. Whoever hangs up
    /// early may not be told all, so this leaves that to the server, for a while.
    async fn tell(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.at.rest).await.unwrap();
        let (_, answer) = self.send_and_read(&mut stream, bytes.as_bytes()).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends bytes and reads what comes meanwhile, up to the end of the connection, or until it is
    /// silent. Gives how much could be sent, and what came.
    async fn send_and_read(&self, stream: &mut TcpStream, bytes: &[u8]) -> (usize, Vec<u8>) {
        let (mut reader, mut writer) = stream.split();
        let write = async {
            let mut sent = 0;
            for some in bytes.chunks(16 * 1024) {
                // Whoever is cut off cannot write on.
                if writer.write_all(some).await.is_err() {
                    break;
                }
                sent += some.len();
            }
            sent
        };
        let read = async {
            let mut all = Vec::new();
            let mut buffer = [0; 16 * 1024];
            loop {
                let read = reader.read(&mut buffer);
                match tokio::time::timeout(Duration::from_secs(2), read).await {
                    Ok(Ok(0) | Err(_)) | Err(_) => return all,
                    Ok(Ok(read)) => all.extend_from_slice(&buffer[..read]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, async { tokio::join!(write, read) })
            .await
            .expect("the server neither reads nor leaves")
    }

    /// That others are answered, nothing is in work, and memory is what it was.
    async fn is_well(&self) {
        let begun = Instant::now();
        let body = serde_json::json!({ "key_spec": "ALL" });
        let answer = call(self.at.rest, TOKEN, "list-keys", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
        let metrics = fetch(self.at.admin, "/metrics").await.text;
        assert!(
            metrics.contains("kmsgate_requests_in_flight 0"),
            "{metrics}"
        );
        let grown = resident(&self.program).saturating_sub(self.resident);
        assert!(grown < 16 * 1024, "{grown} KiB more");
    }
}

/// The resident memory of a program, in KiB.
fn resident(program: &Program) -> u64 {
    let status = fs::read_to_string(program.proc().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

/// Adds a frame to `bytes` (RFC 9113, section 4.1).
fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// What follows the prefix of an integer in HPACK (RFC 7541, section 5.1).
fn integer(mut rest: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// Requests of these numbers on a connection, each given up as soon as it is begun.
fn given_up(numbers: Range<u32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        let id = number * 2 + 1;
        frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, id, &REQUEST);
        frame(&mut bytes, RST_STREAM, 0, id, &8_u32.to_be_bytes());
    }
    bytes
}

/// Whether the server gives up a request or a whole connection. Over HTTP/2 it does the former too
/// after an answer that the headers are too long.
fn is_refusal(answer: &[u8]) -> bool {
    let frames = frames(answer);
    frames.contains(&RST_STREAM) || frames.contains(&GOAWAY)
}

/// The types of the frames in `bytes`.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        kinds.push(*kind);
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        bytes = rest.get(length..).unwrap_or_default();
    }
    kinds
}
