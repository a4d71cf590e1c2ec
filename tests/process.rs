//! The program as an operator meets it: started, asked, reconfigured, stopped, and refusing what is
//! wrong.

mod jws;
mod program;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode};
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use kmsgate::config::{Config, Limits};
use kmsgate::crypto::root::RootKey;
use kmsgate::server::{Server, StartError};

use crate::program::{
    Addresses, Answer, Dev, ENTRY, Grpc, PATIENCE, PROJECT, Program, Site, TOKEN, call, done,
    entry, fetch, read_env, refused, run, send,
};

/// The key of the documentation's example (contract, section 1.2), which `dev` makes first.
const EXAMPLE_KEY: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";

#[tokio::test]
async fn dev_makes_everything_and_a_second_start_finds_it_again() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("made/for/it");
    let first = Dev::start(&data, &[]);
    let sealed = encrypt(first.at, first.token(), first.key(), "before").await;
    let before = read_env(&data.join("dev.env"));
    let (_, log) = first.program.stop();
    assert_eq!(log, "", "nothing to warn of");

    let second = Dev::start(&data, &[]);
    for (name, value) in before {
        // The ports are free ones, and others each time.
        if !["KMSGATE_GRPC", "KMSGATE_REST", "KMSGATE_ADMIN"].contains(&name.as_str()) {
            assert_eq!(second.env[&name], value, "{name}");
        }
    }
    let body = json!({ "cipher_text": sealed });
    let opened = call(second.at.rest, second.token(), "decrypt-data", &body).await;
    assert_eq!(opened.json()["plain_text"], "before");
    let all = json!({ "key_spec": "ALL" });
    let keys = call(second.at.rest, second.token(), "list-keys", &all).await;
    assert_eq!(keys.json()["keys"].as_array().unwrap().len(), 3);
}

#[test]
fn dev_writes_ten_names_and_keeps_its_secrets_to_its_owner() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let dev = Dev::start(&data, &[]);
    let mut names: Vec<_> = dev.env.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "KMSGATE_ADMIN",
            "KMSGATE_AES_KEY",
            "KMSGATE_AK",
            "KMSGATE_GRPC",
            "KMSGATE_PROJECT",
            "KMSGATE_REST",
            "KMSGATE_RSA_KEY",
            "KMSGATE_SK",
            "KMSGATE_SM2_KEY",
            "KMSGATE_TOKEN",
        ]
    );
    assert_eq!(dev.env["KMSGATE_PROJECT"], PROJECT);
    assert_eq!(dev.key(), EXAMPLE_KEY);
    assert_eq!(mode(&data), 0o700);
    for file in ["dev.env", "root.key", "tokens.toml", "access-keys.toml"] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    // The audit can tell which of the two was used.
    for (file, name) in [
        ("tokens.toml", "dev-token"),
        ("access-keys.toml", "dev-access-key"),
    ] {
        let text = fs::read_to_string(data.join(file)).unwrap();
        assert!(text.contains(&format!("\nname = \"{name}\"\n")), "{file}");
    }
}

#[tokio::test]
async fn a_server_serves_what_dev_made_by_the_configuration_that_dev_wrote() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let token = dev.token().to_owned();
    let sealed = encrypt(dev.at, &token, dev.key(), "made by dev").await;
    dev.program.stop();
    let config = dir.path().join("kmsgate.toml");
    assert_eq!(mode(&config), 0o600);
    let parsed = Config::parse(&fs::read_to_string(&config).unwrap()).unwrap();
    assert_eq!(parsed.limits, Limits::default(), "dev limits nobody");

    let (_program, at) = Program::serve(["serve", "--config", config.to_str().unwrap()]);
    let body = json!({ "cipher_text": sealed });
    let opened = call(at.rest, &token, "decrypt-data", &body).await;
    assert_eq!(opened.json()["plain_text"], "made by dev");
}

#[test]
fn dev_says_so_when_the_store_is_of_another_root_key() {
    let dir = TempDir::new().unwrap();
    Dev::start(dir.path(), &[]).program.stop();
    let root = dir.path().join("root.key");
    fs::remove_file(&root).unwrap();
    RootKey::create(&root).unwrap();
    let free = "127.0.0.1:0";
    let ports = ["--grpc", free, "--rest", free, "--admin", free];
    let data = ["dev", "--data", dir.path().to_str().unwrap()];
    let reason = refused([&data[..], &ports].concat(), b"");
    assert!(
        reason.contains("was not written under this root key"),
        "{reason}"
    );
}

#[test]
fn the_lines_to_paste_quote_a_path_that_a_shell_would_take_apart() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("a b's $HOME");
    let dev = Dev::start(&data, &[]);
    let mut pasted = dev.greeting.lines().filter(|line| line.contains(" && "));
    for line in [pasted.next().unwrap(), pasted.next().unwrap()] {
        let (source, _) = line.split_once(" && ").unwrap();
        let script = format!("{source} && echo $KMSGATE_TOKEN");
        let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&shell.stdout).trim(),
            dev.token(),
            "{source}"
        );
    }
}

#[tokio::test]
async fn dev_shows_a_request_and_its_answer_and_lines_that_work_when_pasted() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let shown = &dev.greeting;
    for text in [
        format!("POST /v1.0/{PROJECT}/kms/encrypt-data"),
        format!("\"key_id\" : \"{EXAMPLE_KEY}\""),
        "\"plain_text\" : \"hello world\"".to_owned(),
        "\"encryption_algorithm\" : \"SYMMETRIC_DEFAULT\"".to_owned(),
        "200 OK".to_owned(),
        "\"cipher_text\" : \"".to_owned(),
        "kmsgate.v1.CryptoService/EncryptData".to_owned(),
    ] {
        assert!(shown.contains(&text), "{text}\n{shown}");
    }
    assert!(!shown.contains(dev.token()), "{shown}");

    // What was shown as answers are answers.
    let shown_ciphertexts = shown
        .lines()
        .filter_map(|line| line.trim().strip_prefix("\"cipher_text\" : \""));
    let mut count = 0;
    for ciphertext in shown_ciphertexts {
        let body = json!({ "cipher_text": ciphertext.trim_end_matches('"') });
        let opened = call(dev.at.rest, dev.token(), "decrypt-data", &body).await;
        assert_eq!(opened.json()["plain_text"], "hello world");
        count += 1;
    }
    assert_eq!(count, 2, "one over each face\n{shown}");

    // The line for curl, as a shell would take it apart.
    let curl = shown.lines().find(|line| line.contains("curl")).unwrap();
    let (source, curl) = curl.trim().split_once(" && ").unwrap();
    let sourced = read_env(Path::new(source.strip_prefix(". ").unwrap()));
    let (_, header) = curl.split_once("-H \"X-Auth-Token: ").unwrap();
    assert!(header.starts_with("$KMSGATE_TOKEN\""), "{curl}");
    let (_, rest) = curl.split_once("-d '").unwrap();
    let (body, url) = rest.split_once("' ").unwrap();
    let request = Request::post(url).header("X-Auth-Token", &sourced["KMSGATE_TOKEN"]);
    // curl's own content type for -d.
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let answer = send(request.body(Full::from(body.to_owned())).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["key_id"], EXAMPLE_KEY);
}

#[test]
fn dev_does_not_make_a_new_root_key_over_a_store_that_has_lost_its_own() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().to_str().unwrap();
    Dev::start(dir.path(), &[]).program.stop();
    fs::remove_file(dir.path().join("root.key")).unwrap();
    let reason = refused(["dev", "--data", data], b"");
    assert!(reason.contains("without it no key"), "{reason}");
    assert!(!dir.path().join("root.key").exists());
}

#[tokio::test]
async fn a_request_in_work_is_answered_when_the_server_is_told_to_stop() {
    for signal in [Signal::TERM, Signal::INT] {
        let site = Site::new("");
        let (mut program, at) = site.serve();
        let key = create(at, "k").await;
        let body = json!({ "key_id": key, "plain_text": "late" }).to_string();
        let head = format!(
            "POST /v1.0/{PROJECT}/kms/encrypt-data HTTP/1.1\r\nhost: h\r\nx-auth-token: {TOKEN}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let (first, second) = body.split_at(body.len() / 2);
        let mut stream = TcpStream::connect(at.rest).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        wait_for_metric(at, "kmsgate_requests_in_flight 1").await;

        program.signal(signal);
        program.stderr.wait_for(|log| log.contains("\"stopping\""));
        // No one else is let in any more, soon.
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(at.rest).await.is_ok() {
            assert!(Instant::now() < deadline, "the listener stays open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.write_all(second.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\"cipher_text\""), "{answer}");
        let status = program.ended();
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert!(program.stderr.whole().contains("\"stopped\""));
    }
}

#[tokio::test]
async fn dev_stops_well_too() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = TempDir::new().unwrap();
        let mut dev = Dev::start(dir.path(), &[]);
        dev.program.signal(signal);
        assert_eq!(dev.program.ended().code(), Some(0), "{signal:?}");
    }
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_keep_the_server_from_stopping() {
    let site = Site::new("");
    let config = site
        .config("root.key")
        .replace("\"0ms\"", "\"0ms\", drain = \"100ms\"");
    site.write("kmsgate.toml", &config);
    let (mut program, at) = site.serve();
    let mut stream = TcpStream::connect(at.rest).await.unwrap();
    let head =
        format!("POST / HTTP/1.1\r\nhost: h\r\nx-auth-token: {TOKEN}\r\ncontent-length: 9\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    wait_for_metric(at, "kmsgate_requests_in_flight 1").await;
    program.signal(Signal::TERM);
    assert_eq!(program.ended().code(), Some(0));
    let log = program.stderr.whole();
    assert!(log.contains("drain time was over"), "{log}");
}

#[tokio::test]
async fn a_server_is_not_ready_while_it_lags_and_serves_on() {
    let site = Site::new("");
    let config = site.config("root.key").replace("\"0ms\"", "\"4s\"");
    site.write("kmsgate.toml", &config);
    let (mut program, at) = site.serve();
    let key = create(at, "k").await;
    assert_eq!(fetch(at.admin, "/readyz").await.status, 200);
    program.signal(Signal::TERM);
    program.stderr.wait_for(|log| log.contains("\"stopping\""));
    let ready = fetch(at.admin, "/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), ready.text.as_str()),
        (503, "stopping\n")
    );
    assert_eq!(fetch(at.admin, "/livez").await.status, 200);
    encrypt(at, TOKEN, &key, "still").await;
    assert_eq!(program.ended().code(), Some(0));
}

#[tokio::test]
async fn a_server_starts_from_pieces_that_an_operator_makes_by_hand() {
    let dir = TempDir::new().unwrap();
    let name = |file: &str| dir.path().join(file).to_str().unwrap().to_owned();
    let made = done(["root-key", "new", &name("root.key")], b"");
    assert!(made.contains("Keep a copy"), "{made}");
    assert_eq!(mode(&dir.path().join("root.key")), 0o600);
    let hash = done(["token", "hash"], b"a token of thirty-two random bytes\n");
    let tokens = format!(
        "[[token]]\nname = \"billing\"\nsha256 = \"{}\"\nproject = \"{PROJECT}\"\nactions = [\"kms:cmk:*\"]\n",
        hash.trim()
    );
    fs::write(dir.path().join("tokens.toml"), tokens).unwrap();
    let config = format!(
        "grpc = \"127.0.0.1:0\"\nrest = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
         root_key_file = {:?}\nstore = {{ kind = \"sqlite\", path = {:?} }}\nauth = {{ token_file = {:?} }}\n",
        name("root.key"),
        name("keys.db"),
        name("tokens.toml")
    );
    fs::write(dir.path().join("kmsgate.toml"), config).unwrap();
    let good = done(["check-config", "--config", &name("kmsgate.toml")], b"");
    assert_eq!(good, format!("{} is good\n", name("kmsgate.toml")));
    assert!(
        !dir.path().join("keys.db").exists(),
        "checking makes nothing"
    );

    let (program, at) = Program::serve(["serve", "--config", &name("kmsgate.toml")]);
    let token = "a token of thirty-two random bytes";
    let made = call(at.rest, token, "create-key", &json!({ "key_alias": "k" })).await;
    assert_eq!(made.status, 200, "{}", made.text);
    // The audit goes to standard output by default, and nothing else does.
    let audit = program.stdout.wait_for(|text| text.ends_with('\n'));
    let event: Value = serde_json::from_str(audit.trim()).unwrap();
    assert_eq!(event["action"], "kms:cmk:create");
    assert_eq!(event["caller"], "billing");
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_its_place() {
    let site = Site::new("");
    let good = site.config("root.key");
    for (bad, words) in [
        (format!("reflexion = true\n{good}"), "reflexion"),
        (format!("{good}[log]\nlevel = \"info\"\n"), "level"),
        (good.replace("token_file", "token_fiel"), "token_fiel"),
        (good.replace("\"0ms\"", "\"5\""), "expected a whole number"),
        (good.replacen("127.0.0.1:0", "localhost", 1), "grpc = "),
        (format!("{good}[log]\nfilter = \"=,=\"\n"), "filter"),
        (good.replace("root.key", "none.key"), "does not exist"),
        (good.replace("tokens.toml", "none.toml"), "cannot be read"),
        ("x".to_owned(), "kmsgate.toml"),
    ] {
        site.write("kmsgate.toml", &bad);
        for command in ["serve", "check-config"] {
            let reason = refused([command, "--config", &site.name("kmsgate.toml")], b"");
            assert!(reason.starts_with("kmsgate: "), "{reason}");
            assert!(reason.contains(words), "{command}: {words}\n{reason}");
        }
    }
    let reason = refused(["serve", "--config", &site.name("none")], b"");
    assert!(reason.contains("none: "), "{reason}");
}

#[test]
fn secrets_that_others_may_read_are_refused() {
    let site = Site::new("");
    let keys = format!(
        "[[access_key]]\naccess_key = \"AK\"\nsecret_key = \"SK\"\nproject = \"{PROJECT}\"\nactions = [\"kms:*\"]\n"
    );
    site.write("access-keys.toml", &keys);
    let dir = site.dir.path().display();
    let config =
        site.config("root.key") + &format!("access_key_file = \"{dir}/access-keys.toml\"\n");
    site.write("kmsgate.toml", &config);
    for (file, open, words) in [
        (
            "root.key",
            0o604,
            "open to others: take their rights away with chmod o-rwx",
        ),
        ("access-keys.toml", 0o604, "open to others: mode 604"),
        ("tokens.toml", 0o602, "open to others: mode 602"),
    ] {
        let set =
            |mode| fs::set_permissions(site.path(file), PermissionsExt::from_mode(mode)).unwrap();
        set(open);
        for command in ["serve", "check-config"] {
            let reason = refused([command, "--config", &site.name("kmsgate.toml")], b"");
            assert!(reason.contains(&site.name(file)), "{reason}");
            assert!(reason.contains(words), "{reason}");
        }
        set(0o600);
        done(
            ["check-config", "--config", &site.name("kmsgate.toml")],
            b"",
        );
    }
}

#[tokio::test]
async fn a_gateway_that_stops_serves_on_until_others_know() {
    let nobody = "127.0.0.1:1".parse().unwrap();
    let (mut gateway, at) = start_gateway(nobody, "10s", "2s");
    gateway.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while fetch(at.admin, "/readyz").await.status != StatusCode::SERVICE_UNAVAILABLE {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = call(at.rest, TOKEN, "list-keys", &json!({})).await;
    assert_eq!(answer.code(), "APIGW.0201", "{answer:?}");
    assert!(gateway.ended().success());
}

#[test]
fn a_server_leaves_no_core_and_belongs_to_no_debugger() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let site = Site::new("");
    let (serve, at) = site.serve();
    let upstream = format!("http://{}", at.grpc);
    let free = "127.0.0.1:0";
    let gateway = ["gateway", "--upstream", &upstream, "--rest", free];
    let (gateway, _) = Program::serve([&gateway[..], &["--admin", free]].concat());
    for mut program in [dev.program, serve, gateway] {
        let process = program.proc();
        let limits = fs::read_to_string(process.join("limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let core: Vec<_> = core.unwrap().split_whitespace().skip(4).collect();
        assert_eq!(core, ["0", "0", "bytes"]);
        // Of a process that is not dumpable these files are root's, whoever started it, and they
        // ask the rights that a debugger needs (proc_pid(5)).
        assert_eq!(fs::metadata(process.join("mem")).unwrap().uid(), 0);
        // What writes a core unless it is forbidden.
        program.signal(Signal::ABORT);
        let status = program.ended();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
        assert!(!status.core_dumped());
    }
}

#[tokio::test]
async fn a_store_is_checked_record_by_record() {
    let site = Site::new("");
    let check = ["store", "check", "--config", &site.name("kmsgate.toml")];
    let reason = refused(check, b"");
    assert!(reason.contains("no such file"), "{reason}");
    assert!(!site.path("keys.db").exists(), "checking makes nothing");

    let (program, at) = site.serve();
    let first = create(at, "first").await;
    let second = create(at, "second").await;
    let rotated = json!({ "key_id": first });
    call(at.rest, TOKEN, "rotate-on-demand", &rotated).await;
    let deleted = json!({ "key_id": second, "pending_days": "7" });
    call(at.rest, TOKEN, "schedule-key-deletion", &deleted).await;
    let reason = refused(check, b"");
    assert!(reason.contains("another process"), "{reason}");
    program.stop();
    let good = done(check, b"");
    assert_eq!(
        good,
        "the store is good: keys 2, versions of them 3, to be destroyed 1\n"
    );

    // What only the command sees: a record that is gone, and one that nobody has read.
    let store = rusqlite::Connection::open(site.path("keys.db")).unwrap();
    store
        .execute("DELETE FROM records WHERE address LIKE 'alias/%/first'", [])
        .unwrap();
    store
        .execute(
            "UPDATE records SET value = x'00' WHERE address LIKE 'deletion/%'",
            [],
        )
        .unwrap();
    store.close().unwrap();
    let reason = refused(check, b"");
    for line in [
        "kmsgate: the store is damaged: 3 places".to_owned(),
        format!(
            "  deletion/{PROJECT}/{second}: not what was written there, or under another root key"
        ),
        format!("  key/{PROJECT}/{first}: its alias is not its own"),
        format!("  key/{PROJECT}/{second}: it is to be destroyed and not in the queue"),
        "2 keys verify".to_owned(),
    ] {
        assert!(reason.lines().any(|told| told == line), "{line}\n{reason}");
    }
}

#[test]
fn a_store_has_one_server() {
    let site = Site::new("");
    let (_first, _) = site.serve();
    let reason = refused(["serve", "--config", &site.name("kmsgate.toml")], b"");
    assert!(reason.contains(&site.name("keys.db")), "{reason}");
    assert!(reason.contains("another"), "{reason}");
}

#[tokio::test]
async fn a_server_does_not_start_on_a_store_of_another_root_key() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let key = create(at, "k").await;
    let sealed = encrypt(at, TOKEN, &key, "x").await;
    program.stop();
    done(["root-key", "new", &site.name("other.key")], b"");
    site.write("kmsgate.toml", &site.config("other.key"));

    let reason = refused(["serve", "--config", &site.name("kmsgate.toml")], b"");
    assert!(
        reason.contains("was not written under this root key"),
        "{reason}"
    );

    site.write("kmsgate.toml", &site.config("root.key"));
    let (_program, at) = site.serve();
    let opened = call(
        at.rest,
        TOKEN,
        "decrypt-data",
        &json!({ "cipher_text": sealed }),
    )
    .await;
    assert_eq!(opened.json()["plain_text"], "x", "nothing was harmed");
}

#[tokio::test]
async fn a_store_is_of_its_root_key_before_it_has_a_key() {
    let site = Site::new("");
    let server = |root: &str| {
        let config = Config::parse(&site.config(root)).unwrap();
        Server::build(&config).unwrap()
    };
    // It ends as one would that is stopped at its start: nothing was served, and nothing swept.
    server("root.key").claim_store().await.unwrap();
    done(["root-key", "new", &site.name("other.key")], b"");
    let other = server("other.key").claim_store().await;
    assert!(matches!(other, Err(StartError::WrongRootKey)), "{other:?}");
    server("root.key").claim_store().await.unwrap();
}

#[tokio::test]
async fn a_changed_token_file_is_read_again_and_a_bad_one_is_not_used() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let list = async |token: &str| call(at.rest, token, "list-keys", &json!({})).await;
    let until = async |token: &str, status: u16| {
        let deadline = Instant::now() + PATIENCE;
        while list(token).await.status != status {
            assert!(Instant::now() < deadline, "never {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(list("the next token").await.code(), "KMS.0302");
    let begun = Instant::now();
    site.write("tokens.toml", &entry(ENTRY, "the next token"));
    until("the next token", 200).await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(list(TOKEN).await.code(), "KMS.0302", "the old one is out");

    site.write("tokens.toml", "[[token]]\nname = \"half");
    program
        .stderr
        .wait_for(|log| log.contains("cannot use a credential or policy file"));
    assert_eq!(list("the next token").await.status, 200);
    let metrics = fetch(at.admin, "/metrics").await.text;
    assert_eq!(
        metric(&metrics, "kmsgate_stale_credential_files"),
        1,
        "{metrics}"
    );

    site.write("tokens.toml", &entry(ENTRY, TOKEN));
    until(TOKEN, 200).await;
}

#[tokio::test]
async fn an_issuer_whose_keys_do_not_come_is_told_of_and_keeps_nobody_else_out() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let url = format!("http://{address}/jwks");
    let site = Site::new(&issuer(&format!("jwks_url = {url:?}")));
    let (program, at) = site.serve();
    program
        .stderr
        .wait_for(|log| log.contains("cannot fetch an issuer's keys") && log.contains(&url));
    let claims = json!({ "iss": "https://issuer.example", "aud": "kms", "sub": "s", "exp": 4_102_444_800_u64 });
    let token = jws::Signer::p256("k").sign(&claims);
    let answer = call(at.rest, &token, "list-keys", &json!({})).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "KMS.0104"));
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    assert_eq!(
        call(at.rest, TOKEN, "list-keys", &json!({})).await.status,
        200
    );
    let metrics = fetch(at.admin, "/metrics").await.text;
    assert_ne!(
        metric(&metrics, "kmsgate_jwks_failed_fetches_total"),
        0,
        "{metrics}"
    );
    assert!(metrics.contains("kmsgate_jwks_age_seconds "), "{metrics}");
}

#[test]
fn an_issuer_whose_settings_cannot_be_used_is_refused_at_the_start() {
    let site = Site::new("");
    site.write("other.txt", "x");
    let none = site.name("none");
    let bad = site.name("other.txt");
    let url = "jwks_url = \"https://127.0.0.1/\"";
    for (settings, reason) in [
        (format!("jwks_file = {none:?}"), "cannot be read"),
        (format!("jwks_file = {bad:?}"), "not JSON"),
        (format!("{url}\nca_file = {none:?}"), "none: cannot be read"),
        (
            format!("{url}\nca_file = {bad:?}"),
            "there is no certificate",
        ),
        (
            format!("jwks_url = \"http://127.0.0.1/\"\nbearer_token_file = {none:?}"),
            "cannot be read",
        ),
    ] {
        let config = site.config("root.key") + &issuer(&settings);
        site.write("kmsgate.toml", &config);
        for command in ["serve", "check-config"] {
            let told = refused([command, "--config", &site.name("kmsgate.toml")], b"");
            assert!(told.contains(reason), "{settings}: {told}");
        }
    }
}

/// An issuer with these settings, which say where its keys are.
fn issuer(settings: &str) -> String {
    format!(
        "[[auth.jwt]]\nissuer = \"https://issuer.example\"\naudiences = [\"kms\"]\n{settings}\n\
         [[auth.jwt.rules]]\nclaims = {{ sub = \"*\" }}\nproject = \"p\"\nactions = [\"kms:*\"]\n"
    )
}

#[tokio::test]
async fn a_key_lives_its_life_on_the_command_line() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let data = dir.path().to_str().unwrap();
    let key = |arguments: &[&str]| done([&["key", "--dev", data], arguments].concat(), b"");
    let id = key(&["create", "app/orders", "--description", "of the shop"]);
    let id = id.trim();
    let described = key(&["describe", id]);
    for line in [
        "alias        app/orders",
        "description  of the shop",
        "spec         AES_256",
        "version      1",
    ] {
        assert!(described.contains(line), "{described}");
    }
    let made = described
        .lines()
        .find_map(|line| line.strip_prefix("made         "));
    let made: toml::value::Datetime = made.unwrap().parse().unwrap();
    assert!(made.date.unwrap().year >= 2025, "{described}");
    let listed = key(&["list"]);
    assert_eq!(listed.lines().count(), 5, "{listed}");
    assert!(
        listed
            .lines()
            .any(|line| line.starts_with(id) && line.ends_with("app/orders"))
    );

    let sealed = done(
        ["encrypt", "--dev", data, id, "--aad", "t=1"],
        b"\x00\xff not text",
    );
    assert_eq!(key(&["rotate", id]), "version 2\n");
    let opened = run(
        ["decrypt", "--dev", data, "--aad", "t=1"],
        sealed.as_bytes(),
    );
    assert!(opened.status.success());
    // Not text: the bytes went through a pipe as they were.
    assert_eq!(
        opened.stdout,
        String::from_utf8_lossy(b"\x00\xff not text").as_bytes()
    );
    let reason = refused(["decrypt", "--dev", data], sealed.as_bytes());
    assert_eq!(reason, "kmsgate: KMS.2201: Invalid cipher_text.\n");

    assert_eq!(key(&["disable", id]), "DISABLED\n");
    let reason = refused(["encrypt", "--dev", data, id], b"x");
    assert!(reason.contains("KMS.0209: "), "{reason}");
    assert_eq!(key(&["enable", id]), "ENABLED\n");
    assert_eq!(
        key(&["delete", id, "--pending-days", "7"]),
        "PENDING_DELETION\n"
    );
    assert!(key(&["describe", id]).contains("destroyed    "));
    assert_eq!(key(&["cancel-deletion", id]), "DISABLED\n");
    let reason = refused(
        ["key", "--dev", data, "delete", id, "--pending-days", "6"],
        b"",
    );
    assert!(reason.contains("KMS.1401: "), "{reason}");
    assert_eq!(key(&["confirm-clock"]), "the clock is trusted\n");

    let sm2 = &dev.env["KMSGATE_SM2_KEY"];
    let public = key(&["public-key", sm2]);
    assert!(
        public.starts_with("-----BEGIN PUBLIC KEY-----\n"),
        "{public}"
    );
    assert!(public.ends_with("-----END PUBLIC KEY-----\n"), "{public}");
    let arguments = |command| [command, "--dev", data, sm2, "--algorithm", "SM2_ENCRYPT"];
    let sealed = done(arguments("encrypt"), b"orders");
    assert_eq!(done(arguments("decrypt"), sealed.as_bytes()), "orders");
    let reason = refused(["key", "--dev", data, "public-key", id], b"");
    assert!(reason.contains("KMS.0331: "), "{reason}");
}

#[tokio::test]
async fn the_command_line_asks_the_server_that_is_named() {
    let site = Site::new("");
    let (_program, at) = site.serve();
    let server = format!("http://{}", at.grpc);
    fs::write(site.path("token"), format!("{TOKEN}\n")).unwrap();
    let named = ["--server", &server, "--token-file", &site.name("token")];
    let id = done([&["key", "create", "k"], &named[..]].concat(), b"");
    let sealed = done([&["encrypt", id.trim()], &named[..]].concat(), b"x");
    assert_eq!(
        done([&["decrypt"], &named[..]].concat(), sealed.as_bytes()),
        "x"
    );
    assert_eq!(done(["health", "--server", &server], b""), "serving\n");

    fs::write(site.path("token"), "another").unwrap();
    let reason = refused([&["key", "list"], &named[..]].concat(), b"");
    assert_eq!(reason, "kmsgate: KMS.0302: Invalid X-Auth-Token.\n");
    let nobody = format!("http://{}", nobody().await);
    let reason = refused(["health", "--server", &nobody], b"");
    let expected = format!("kmsgate: cannot reach {nobody}: ");
    assert!(reason.starts_with(&expected), "{reason}");
    assert!(reason.contains("Connection refused"), "{reason}");
    let reason = refused(["key", "list", "--dev", &site.name("none")], b"");
    assert!(reason.contains("--token-file"), "{reason}");
}

#[test]
fn a_token_hash_is_its_sha_256() {
    // FIPS 180-2, appendix B.1.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
    assert_eq!(done(["token", "hash"], b"abc"), abc);
    assert_eq!(done(["token", "hash"], b"abc\n"), abc, "as echo writes it");
    let reason = refused(["token", "hash"], b"\n");
    assert!(reason.contains("expected a token"), "{reason}");
}

#[tokio::test]
async fn a_server_that_says_nothing_does_not_hold_up_who_asks_for_its_health() {
    // As one that waits for its store: the system lets connections in.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    let begun = Instant::now();
    let ask = ["health", "--server", &server].map(str::to_owned);
    let reason = tokio::task::spawn_blocking(|| refused(ask, b""));
    let reason = reason.await.unwrap();
    assert!(reason.contains("said nothing in 5s"), "{reason}");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn what_stands_for_no_spec_or_usage_makes_no_key() {
    let site = Site::new("");
    site.write("token", TOKEN);
    let token = site.name("token");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    for (named, value) in [
        ("--spec", "KEY_SPEC_UNSPECIFIED"),
        ("--usage", "KEY_USAGE_UNSPECIFIED"),
    ] {
        let new = ["key", "create", "--server", &server, "--token-file", &token];
        let reason = refused([&new[..], &["a", named, value]].concat(), b"");
        assert!(reason.contains(named), "{reason}");
    }
}

#[test]
fn a_root_key_is_never_replaced() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("root.key");
    let new = ["root-key", "new", path.to_str().unwrap()];
    done(new, b"");
    let before = fs::read(&path).unwrap();
    let reason = refused(new, b"");
    assert!(reason.contains("exists already"), "{reason}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn requests_are_counted_by_face_method_and_code() {
    let site = Site::new("");
    let (_program, at) = site.serve();
    assert_eq!(fetch(at.admin, "/livez").await.text, "ok\n");
    assert_eq!(fetch(at.admin, "/readyz").await.text, "ok\n");
    let key = create(at, "k").await;
    for _ in 0..3 {
        encrypt(at, TOKEN, &key, "x").await;
    }
    let bad = json!({ "cipher_text": STANDARD.encode([0; 140]) });
    assert_eq!(
        call(at.rest, TOKEN, "decrypt-data", &bad).await.code(),
        "KMS.2201"
    );
    assert_eq!(
        call(at.rest, "nobody", "decrypt-data", &bad).await.code(),
        "KMS.0302"
    );
    assert_eq!(
        call(at.rest, TOKEN, "nothing", &bad).await.code(),
        "APIGW.0101"
    );
    for path in [
        "/create-key",
        "/v1.0/kms/create-key",
        "/v1.0/p/x/create-key",
    ] {
        let request = Request::post(format!("http://{}{path}", at.rest));
        let request = request.header("x-auth-token", TOKEN);
        let answer = send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.code(), "APIGW.0101", "{path}");
    }
    let mut grpc = Grpc::connect(at.grpc, TOKEN).await;
    let request = grpc.ask(kmsgate::grpc::pb::ListKeysRequest::default());
    grpc.keys.list_keys(request).await.unwrap();

    let metrics = fetch(at.admin, "/metrics").await;
    let kind = metrics.headers["content-type"].to_str().unwrap();
    assert!(
        kind.starts_with("application/openmetrics-text; version=1.0.0"),
        "{kind}"
    );
    for (face, method, code, count) in [
        ("rest", "CreateKey", "OK", 1),
        ("rest", "EncryptData", "OK", 3),
        ("rest", "DecryptData", "KMS.2201", 1),
        ("rest", "DecryptData", "KMS.0302", 1),
        ("rest", "other", "APIGW.0101", 4),
        ("grpc", "ListKeys", "OK", 1),
    ] {
        let name = format!(
            "kmsgate_requests_total{{face=\"{face}\",method=\"{method}\",code=\"{code}\"}}"
        );
        assert_eq!(
            metric(&metrics.text, &name),
            count,
            "{name}\n{}",
            metrics.text
        );
    }
    assert_eq!(metric(&metrics.text, "kmsgate_requests_in_flight"), 0);
    assert_eq!(metric(&metrics.text, "kmsgate_opened_keys"), 1);
    assert_eq!(metric(&metrics.text, "kmsgate_cpu_queue_length"), 0);
    assert_eq!(metric(&metrics.text, "kmsgate_clock_held"), 0);
    assert!(!metrics.text.contains(&key) && !metrics.text.contains(PROJECT));
}

#[tokio::test]
async fn refusals_are_counted_by_the_limit_that_refused() {
    let site = Site::new("");
    let limits = "[limits]\nper_caller = { requests_per_second = 1, requests_burst = 3 }\n\
                  per_key = { cores = 0.000001, burst = \"0ms\" }\n";
    site.write("kmsgate.toml", &(site.config("root.key") + limits));
    let (_program, at) = site.serve();
    let key = create(at, "k").await;
    let body = json!({ "key_id": key, "plain_text": "x" });
    for expected in ["", "APIGW.0308", "APIGW.0308"] {
        let answer = call(at.rest, TOKEN, "encrypt-data", &body).await;
        assert_eq!(answer.status == 200, expected.is_empty(), "{answer:?}");
        if !expected.is_empty() {
            assert_eq!(answer.code(), expected);
        }
    }
    let metrics = fetch(at.admin, "/metrics").await.text;
    for (limit, count) in [
        ("per_caller.requests_per_second", 1),
        ("per_caller.cores", 0),
        ("per_key.cores", 1),
    ] {
        let name = format!("kmsgate_throttled_total{{limit=\"{limit}\"}}");
        assert_eq!(metric(&metrics, &name), count, "{metrics}");
    }
}

#[tokio::test]
async fn who_finds_the_queue_full_is_refused_and_fills_no_log() {
    let site = Site::new("");
    let limits = "[limits]\ncpu_threads = 1\ncpu_queue = 1\n";
    site.write("kmsgate.toml", &(site.config("root.key") + limits));
    let (program, at) = site.serve();
    let makers = (0..8).map(|number| {
        tokio::spawn(async move {
            let key = json!({ "key_alias": format!("k{number}"), "key_spec": "RSA_4096" });
            call(at.rest, TOKEN, "create-key", &key).await
        })
    });
    let mut refused = 0;
    for maker in makers.collect::<Vec<_>>() {
        let answer = maker.await.unwrap();
        if answer.status != 200 {
            assert_eq!(answer.code(), "KMS.0104");
            refused += 1;
        }
    }
    assert!(refused > 0, "one is made and one waits");
    let (_, log) = program.stop();
    assert!(!log.contains("KMS.0104"), "{log}");
}

#[tokio::test]
async fn a_gateway_serves_rest_for_a_remote_server() {
    let site = Site::new("");
    let (_program, at) = site.serve();
    let key = create(at, "k").await;
    let (gateway, front) = start_gateway(at.grpc, "10s", "0ms");
    let sealed = encrypt(front, TOKEN, &key, "through").await;
    let opened = call(
        at.rest,
        TOKEN,
        "decrypt-data",
        &json!({ "cipher_text": sealed }),
    )
    .await;
    assert_eq!(opened.json()["plain_text"], "through");
    let refused = call(front.rest, "nobody", "list-keys", &json!({})).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (403, "KMS.0302")
    );
    assert_eq!(fetch(front.admin, "/readyz").await.text, "ok\n");

    // Two credentials, one of another kind, and none are refused as the server itself does.
    for (headers, code) in [
        (
            &[("x-auth-token", TOKEN), ("authorization", "Basic dTpw")][..],
            "KMS.0302",
        ),
        (&[("authorization", "Basic dTpw")], "APIGW.0301"),
        (&[], "APIGW.0301"),
    ] {
        let ask = async |rest: SocketAddr| {
            let mut request = Request::post(format!("http://{rest}/v1.0/{PROJECT}/kms/list-keys"));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            send(request.body(Full::from("{}")).unwrap()).await
        };
        let (direct, through) = (ask(at.rest).await, ask(front.rest).await);
        assert_eq!(through.code(), code, "{headers:?}");
        assert_eq!((through.status, through.text), (direct.status, direct.text));
    }

    // A signature covers a request that the upstream never sees.
    let url = format!("http://{}/v1.0/{PROJECT}/kms/list-keys", front.rest);
    let signed = Request::post(url).header(
        "authorization",
        "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature=00",
    );
    let refused = send(signed.body(Full::from("{}")).unwrap()).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (401, "APIGW.0301")
    );
    gateway.stop();
}

#[tokio::test]
async fn the_request_id_that_a_gateway_tells_is_in_its_server_s_audit() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let (_gateway, front) = start_gateway(at.grpc, "10s", "0ms");
    let nothing = json!({});
    let no_key = json!({ "key_id": EXAMPLE_KEY });
    let mut ids = Vec::new();
    for (token, operation, body, status) in [
        (TOKEN, "create-key", &json!({ "key_alias": "k" }), 200),
        (TOKEN, "list-keys", &nothing, 200),
        (TOKEN, "describe-key", &no_key, 404),
        (TOKEN, "decrypt-data", &nothing, 400),
        ("nobody", "list-keys", &nothing, 403),
    ] {
        let answer = call(front.rest, token, operation, body).await;
        assert_eq!(answer.status.as_u16(), status, "{operation}: {answer:?}");
        ids.push(request_id(&answer));
    }
    let audit = program.stop().0;
    for id in ids {
        let named = format!("\"request_id\":\"{id}\"");
        assert_eq!(audit.matches(&named).count(), 1, "{id}: {audit}");
    }

    // What no server has answered has the gateway's own.
    let lost = call(front.rest, TOKEN, "list-keys", &nothing).await;
    assert_eq!(lost.status, StatusCode::BAD_GATEWAY, "{lost:?}");
    let id = request_id(&lost);
    assert!(id.len() == 32 && !audit.contains(&id), "{id}");
}

#[tokio::test]
async fn a_gateway_says_when_its_upstream_is_gone_and_finds_it_again() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let (_gateway, front) = start_gateway(at.grpc, "10s", "0ms");
    let list = async || call(front.rest, TOKEN, "list-keys", &json!({})).await;
    assert_eq!(list().await.status, 200);
    program.kill();
    let answer = list().await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (502, "APIGW.0201")
    );
    assert_eq!(fetch(front.admin, "/livez").await.status, 200);

    let config = site.config("root.key");
    let same = config.replacen("127.0.0.1:0", &at.grpc.to_string(), 1);
    site.write("kmsgate.toml", &same);
    let (_program, _) = site.serve();
    assert_eq!(list().await.status, 200);
}

#[tokio::test]
async fn a_gateway_does_not_wait_longer_than_it_was_told() {
    // Accepts connections by the system's own queue, and never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = silent.local_addr().unwrap();
    let (_gateway, front) = start_gateway(upstream, "300ms", "0ms");
    let begun = Instant::now();
    let body = json!({ "plain_text": "x" });
    let answer = call(front.rest, TOKEN, "encrypt-data", &body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (504, "APIGW.0201")
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_gateway_with_a_bad_argument_is_refused() {
    for arguments in [
        ["--timeout", "5"],
        ["--timeout", "9ms"],
        ["--shutdown-lag", "5"],
        ["--upstream", "no url"],
        ["--log", "=,="],
    ] {
        let mut all = vec!["gateway", "--rest", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        if arguments[0] != "--upstream" {
            all.extend(["--upstream", "http://127.0.0.1:1"]);
        }
        all.extend(arguments);
        let reason = refused(&all, b"");
        assert!(reason.starts_with("kmsgate: "), "{reason}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let _keep = TcpListener::bind(&taken).await;
    let site = Site::new("");
    let config = site.config("root.key").replacen("127.0.0.1:0", &taken, 1);
    site.write("kmsgate.toml", &config);
    let reason = refused(["serve", "--config", &site.name("kmsgate.toml")], b"");
    assert!(
        reason.contains(&format!("cannot listen on {taken}")),
        "{reason}"
    );
    let reason = refused(
        [
            "gateway",
            "--upstream",
            "http://127.0.0.1:1",
            "--rest",
            &taken,
        ],
        b"",
    );
    assert!(reason.contains(&taken), "{reason}");
}

/// The server's name for the request.
fn request_id(answer: &Answer) -> String {
    answer.headers["x-request-id"].to_str().unwrap().to_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Makes an AES key over REST.
async fn create(at: Addresses, alias: &str) -> String {
    let made = call(at.rest, TOKEN, "create-key", &json!({ "key_alias": alias })).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.text);
    made.json()["key_info"]["key_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Encrypts over REST; the ciphertext.
async fn encrypt(at: Addresses, token: &str, key: &str, text: &str) -> String {
    let body = json!({ "key_id": key, "plain_text": text });
    let answer = call(at.rest, token, "encrypt-data", &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()["cipher_text"].as_str().unwrap().to_owned()
}

/// The number that the metrics say behind a name.
fn metric(metrics: &str, name: &str) -> u64 {
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let found = lines.find_map(|rest| rest.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

async fn wait_for_metric(at: Addresses, line: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !fetch(at.admin, "/metrics").await.text.contains(line) {
        assert!(Instant::now() < deadline, "never {line}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start_gateway(upstream: SocketAddr, timeout: &str, lag: &str) -> (Program, Addresses) {
    let upstream = format!("http://{upstream}");
    let free = "127.0.0.1:0";
    Program::serve([
        "gateway",
        "--shutdown-lag",
        lag,
        "--upstream",
        &upstream,
        "--timeout",
        timeout,
        "--rest",
        free,
        "--admin",
        free,
    ])
}

/// An address where nobody listens.
async fn nobody() -> String {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    free.local_addr().unwrap().to_string()
}
