//! A copy of a store that is in use is a store, and so is a copy of one that is not.

mod program;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tonic::transport::Channel;

use kmsgate::grpc::pb;
use kmsgate::grpc::pb::operator_service_client::OperatorServiceClient;

use crate::program::keys::{check, create, make};
use crate::program::{Addresses, ENTRY, Grpc, Site, TOKEN, done, entry, fetch, refused, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_on_a_backup_of_a_running_one_and_every_key_decrypts() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let made = make(at, 40).await;
    let stop = Arc::new(AtomicBool::new(false));
    let meanwhile = tokio::spawn(work(at, Arc::clone(&stop)));
    let file = site.name("backup.db");
    assert_eq!(
        done(backup(&site, at, &file), b""),
        format!("{file} is a copy of the store\n")
    );
    stop.store(true, Ordering::Relaxed);
    assert!(meanwhile.await.unwrap() > 0);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!site.path("keys.db-backup").exists() && !site.path("backup.db-new").exists());
    // The file is there, and is never replaced.
    let reason = refused(backup(&site, at, &file), b"");
    assert!(reason.contains("exists already"), "{reason}");
    let audit = program.stop().0;
    let told = audit
        .lines()
        .filter(|line| line.contains("\"kms:system:backUpStore\""));
    assert_eq!(told.count(), 1, "{audit}");

    restore(&site, "backup.db");
    let (program, at) = site.serve();
    check(at, &made).await;
    program.stop();
    let config = site.name("kmsgate.toml");
    let good = done(["store", "check", "--config", &config], b"");
    assert!(good.starts_with("the store is good: keys "), "{good}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_has_begun_is_a_request_in_work_and_is_sent_whole_by_a_server_that_stops() {
    // More than anybody on the way holds back.
    const KEYS: usize = 500;
    /// The smallest that HTTP/2 starts with (RFC 9113, section 6.9.2).
    const WINDOW: u32 = 65_535;
    let site = Site::new("");
    let (mut program, at) = site.serve();
    for number in 0..KEYS {
        create(at, &json!({ "key_alias": format!("k-{number}") })).await;
    }
    let endpoint = Channel::from_shared(format!("http://{}", at.grpc)).unwrap();
    let endpoint = endpoint
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let channel = endpoint.connect().await.unwrap();
    let mut slow = OperatorServiceClient::new(channel);
    let asking = Grpc::connect(at.grpc, TOKEN).await;
    let answer = slow.back_up_store(asking.ask(pb::BackUpStoreRequest {}));
    let mut parts = answer.await.unwrap().into_inner();
    let first = parts.message().await.unwrap().unwrap();
    let metrics = fetch(at.admin, "/metrics").await.text;
    assert!(
        metrics.contains("\nkmsgate_requests_in_flight 1\n"),
        "{metrics}"
    );

    program.signal(Signal::TERM);
    // Longer than a connection without work is left alone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut received = first.data.len() as u64;
    while let Some(part) = parts.message().await.unwrap() {
        received += part.data.len() as u64;
    }
    assert_eq!(received, first.size);
    assert!(program.ended().success());
}

#[tokio::test]
async fn nobody_takes_a_backup_without_the_right() {
    let site = Site::new("");
    let mut narrow = ENTRY;
    narrow.actions = &["kms:cmk:*"];
    site.write("tokens.toml", &entry(narrow, TOKEN));
    let (_program, at) = site.serve();
    let reason = refused(backup(&site, at, &site.name("backup.db")), b"");
    assert_eq!(reason, "kmsgate: KMS.0306: No access permissions.\n");
    assert!(!site.path("backup.db").exists() && !site.path("backup.db-new").exists());
}

#[tokio::test]
async fn a_store_that_is_no_file_has_no_backup() {
    let site = Site::new("");
    let config = fs::read_to_string(site.path("kmsgate.toml")).unwrap();
    let file = format!(
        "{{ kind = \"sqlite\", path = \"{}\" }}",
        site.name("keys.db")
    );
    let memory = config.replace(&file, "{ kind = \"memory\" }");
    assert_ne!(config, memory);
    site.write("kmsgate.toml", &memory);
    let (_program, at) = site.serve();
    let reason = refused(backup(&site, at, &site.name("backup.db")), b"");
    assert!(reason.contains("KMS.0215: "), "{reason}");
    assert!(reason.contains("is not a file"), "{reason}");
}

#[tokio::test]
async fn a_server_starts_on_a_copied_store_and_every_key_decrypts() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let made = make(at, 40).await;
    let (from, to) = (store(&site, "keys.db"), store(&site, "copy.db"));
    let reason = refused(copying(&site, &from, &to), b"");
    assert!(reason.contains("another process"), "{reason}");
    program.stop();
    let (told, steps) = ended_well(copying(&site, &from, &to));
    // The keys, their aliases, and the time.
    let all = "every record was copied and compared: records 81\n";
    assert_eq!(told, all);
    assert!(steps.ends_with("compared 81/81\n"), "{steps}");
    let reason = refused(copying(&site, &from, &to), b"");
    assert!(reason.contains("the target is not empty"), "{reason}");
    let reason = refused(copying(&site, &from, &from), b"");
    assert!(reason.contains("another process"), "{reason}");
    let nothing = store(&site, "nothing.db");
    let reason = refused(copying(&site, &nothing, &to), b"");
    assert!(reason.contains("there is no such file"), "{reason}");
    assert!(!site.path("nothing.db").exists());

    restore(&site, "copy.db");
    let (program, at) = site.serve();
    check(at, &made).await;
    program.stop();
    let config = site.name("kmsgate.toml");
    let good = done(["store", "check", "--config", &config], b"");
    assert!(good.starts_with("the store is good: keys 40, "), "{good}");
}

#[tokio::test]
async fn no_server_starts_on_a_copy_that_was_cut_short_and_a_repeat_completes_it() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let made = make(at, 60).await;
    program.stop();
    let (from, to) = (store(&site, "keys.db"), store(&site, "copy.db"));
    // A damaged record near the end stops the copy, as a kill would.
    let change = |value: &str| {
        let file = rusqlite::Connection::open(site.path("keys.db")).unwrap();
        let last = "(SELECT max(address) FROM records WHERE address LIKE 'key/%')";
        let update = format!("UPDATE records SET value = {value} WHERE address = {last}");
        assert_eq!(file.execute(&update, []).unwrap(), 1);
        file.close().unwrap();
    };
    change("CAST(value || x'00' AS BLOB)");
    let failed = run(copying(&site, &from, &to), b"");
    let reason = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1), "{reason}");
    assert!(reason.contains(" is corrupt"), "{reason}");

    let config = fs::read_to_string(site.path("kmsgate.toml")).unwrap();
    restore(&site, "copy.db");
    let named = site.name("kmsgate.toml");
    let reason = refused(["serve", "--config", &named], b"");
    assert!(
        reason.contains("the store is a copy that is not complete"),
        "{reason}"
    );
    let reason = refused(["store", "check", "--config", &named], b"");
    assert!(
        reason.contains("copy: a copy into this store is not complete"),
        "{reason}"
    );

    site.write("kmsgate.toml", &config);
    change("CAST(substr(value, 1, length(value) - 1) AS BLOB)");
    let (told, _) = ended_well(copying(&site, &from, &to));
    assert!(
        told.starts_with("every record was copied and compared: "),
        "{told}"
    );
    restore(&site, "copy.db");
    let (program, at) = site.serve();
    check(at, &made).await;
    program.stop();
}

fn store(site: &Site, name: &str) -> String {
    format!("sqlite:{}", site.name(name))
}

fn copying(site: &Site, from: &str, to: &str) -> Vec<String> {
    let config = site.name("kmsgate.toml");
    [
        "store", "copy", "--config", &config, "--from", from, "--to", to,
    ]
    .map(str::to_owned)
    .into()
}

/// What a command says, and how it tells how far it is.
fn ended_well(arguments: Vec<String>) -> (String, String) {
    let ended = run(arguments, b"");
    let [told, steps] = [ended.stdout, ended.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(ended.status.success(), "{steps}");
    (told, steps)
}

/// Makes keys until it is told to stop, and says how many.
async fn work(at: Addresses, stop: Arc<AtomicBool>) -> usize {
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        create(at, &json!({ "key_alias": format!("meanwhile-{made}") })).await;
        made += 1;
    }
    made
}

fn backup(site: &Site, at: Addresses, file: &str) -> Vec<String> {
    fs::write(site.path("token"), TOKEN).unwrap();
    let server = format!("http://{}", at.grpc);
    let token = site.name("token");
    [
        "store",
        "backup",
        file,
        "--server",
        &server,
        "--token-file",
        &token,
    ]
    .map(str::to_owned)
    .into()
}

/// Has the site's server use another file.
fn restore(site: &Site, name: &str) {
    let config = fs::read_to_string(site.path("kmsgate.toml")).unwrap();
    let restored = config.replace(&site.name("keys.db"), &site.name(name));
    assert_ne!(config, restored);
    site.write("kmsgate.toml", &restored);
}
