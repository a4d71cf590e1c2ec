//! A root key is replaced while the server serves, and the old one is needed until that is done.

mod program;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use kmsgate::grpc::pb;

use crate::program::keys::{Made, check, create, encrypt, make};
use crate::program::{
    Addresses, ENTRY, Grpc, Program, Site, TOKEN, call, done, entry, fetch, refused,
};

/// Enough for several transactions.
const KEYS: usize = 130;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_key_is_replaced_while_the_server_serves() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let made = make(at, KEYS).await;
    program.stop();

    site.add_root_key();
    site.configure("new.key", &["root.key"]);
    let (program, at) = site.serve();
    assert_eq!(in_use(at).await, 2);
    check(at, &made).await;
    // Calls go on meanwhile, and none fails.
    let stop = Arc::new(AtomicBool::new(false));
    let meanwhile = tokio::spawn(work(at, Arc::clone(&stop)));
    let (told, steps) = rotate(&site, at);
    stop.store(true, Ordering::Relaxed);
    let made_meanwhile = meanwhile.await.unwrap();
    assert!(
        told.contains("every record is under the first root key: records "),
        "{told}"
    );
    assert!(steps.lines().count() > 2, "{steps}");
    assert_eq!(in_use(at).await, 1);
    check(at, &made).await;
    check(at, &made_meanwhile).await;
    // There is nothing left to do.
    let (told, _) = rotate(&site, at);
    assert!(told.contains(", changed 0\n"), "{told}");
    let audit = program.stop().0;
    let rotated = audit.lines().filter(|line| {
        line.contains("\"kms:system:rotateRootKey\"") && line.contains("\"operator\"")
    });
    assert_eq!(rotated.count(), 2, "{audit}");

    std::fs::remove_file(site.path("root.key")).unwrap();
    site.configure("new.key", &[]);
    let (program, at) = site.serve();
    check(at, &made).await;
    check(at, &made_meanwhile).await;
    program.stop();
    let good = done(
        ["store", "check", "--config", &site.name("kmsgate.toml")],
        b"",
    );
    assert!(good.starts_with("the store is good: "), "{good}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_does_not_start_without_a_root_key_that_its_store_needs() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let made = make(at, 3).await;
    program.stop();
    let serve = ["serve", "--config", &site.name("kmsgate.toml")];

    // At once, as if that were all.
    site.add_root_key();
    site.configure("new.key", &[]);
    let reason = refused(serve, b"");
    assert!(
        reason.contains("was not written under this root key"),
        "{reason}"
    );
    assert!(reason.contains("previous_root_key_files"), "{reason}");

    // Before the rotation, though nothing was written since.
    site.configure("new.key", &["root.key"]);
    let (program, at) = site.serve();
    check(at, &made).await;
    program.stop();
    site.configure("new.key", &[]);
    let old = site.root_key_id("root.key");
    let reason = refused(serve, b"");
    let sentence = format!("the store still has records under root key {old}");
    assert!(reason.contains(&sentence), "{reason}");
    site.configure("root.key", &[]);
    // The other way round, what the store needs cannot even be read.
    let reason = refused(serve, b"");
    assert!(
        reason.contains("was not written under this root key"),
        "{reason}"
    );

    // And back again: the old one seals, and the new one is taken away after a rotation.
    site.configure("root.key", &["new.key"]);
    let (program, at) = site.serve();
    check(at, &made).await;
    rotate(&site, at);
    program.stop();
    site.configure("root.key", &[]);
    let (program, at) = site.serve();
    check(at, &made).await;
    program.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_was_killed_goes_on_where_it_was() {
    let site = Site::new("");
    let (program, at) = site.serve();
    let made = make(at, KEYS).await;
    program.stop();
    site.add_root_key();
    site.configure("new.key", &["root.key"]);

    let mut changed = Vec::new();
    for kill_after in [1, 2] {
        let (program, at) = site.serve();
        let grpc = Grpc::connect(at.grpc, TOKEN).await;
        let mut operator = grpc.operator.clone();
        let asked = operator.rotate_root_key(grpc.ask(pb::RotateRootKeyRequest {}));
        let mut messages = asked.await.unwrap().into_inner();
        let mut last = pb::RotateRootKeyResponse::default();
        // The first one says how much there is to do.
        for _ in 0..=kill_after {
            last = messages.message().await.unwrap().unwrap();
        }
        program.kill();
        changed.push(last.changed);
    }
    let serve = ["serve", "--config", &site.name("kmsgate.toml")];
    site.configure("new.key", &[]);
    let reason = refused(serve, b"");
    assert!(reason.contains(&site.root_key_id("root.key")), "{reason}");

    site.configure("new.key", &["root.key"]);
    let (program, at) = site.serve();
    check(at, &made).await;
    let (told, _) = rotate(&site, at);
    let all: u64 = number_after(&told, "records ");
    let rest: u64 = number_after(&told, "changed ");
    assert!(rest < all, "what was done is not done again: {told}");
    assert!(changed[0] > 0, "the kill came when it was at work");
    check(at, &made).await;
    program.stop();
    std::fs::remove_file(site.path("root.key")).unwrap();
    site.configure("new.key", &[]);
    let (program, at) = site.serve();
    check(at, &made).await;
    program.stop();
}

#[tokio::test]
async fn nobody_rotates_a_root_key_without_the_right() {
    let site = Site::new("");
    let mut narrow = ENTRY;
    narrow.actions = &["kms:cmk:*"];
    site.write("tokens.toml", &entry(narrow, TOKEN));
    let (_program, at) = site.serve();
    let reason = refused(rotation(&site, at), b"");
    assert_eq!(reason, "kmsgate: KMS.0306: No access permissions.\n");
}

#[test]
fn a_root_key_that_is_configured_twice_is_refused() {
    let site = Site::new("");
    site.configure("root.key", &["root.key"]);
    let check = ["check-config", "--config", &site.name("kmsgate.toml")];
    let reason = refused(check, b"");
    let id = site.root_key_id("root.key");
    assert!(
        reason.contains(&format!("root key {id} is configured twice")),
        "{reason}"
    );
}

/// Makes, rotates, disables and enables keys until it is told to stop. Nothing may fail.
async fn work(at: Addresses, stop: Arc<AtomicBool>) -> Made {
    let made = Mutex::new(Made::new());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) && number > 3 {
            break;
        }
        let new = json!({ "key_alias": format!("meanwhile-{number}") });
        let key = create(at, &new).await;
        let mut ciphertexts = vec![encrypt(at, &key).await];
        let named = json!({ "key_id": key });
        for operation in ["rotate-on-demand", "disable-key", "enable-key"] {
            let answer = call(at.rest, TOKEN, operation, &named).await;
            assert!(answer.status.is_success(), "{operation}: {answer:?}");
        }
        ciphertexts.push(encrypt(at, &key).await);
        made.lock().unwrap().insert(key, ciphertexts);
    }
    made.into_inner().unwrap()
}

fn rotation(site: &Site, at: Addresses) -> Vec<String> {
    std::fs::write(site.path("token"), TOKEN).unwrap();
    let server = format!("http://{}", at.grpc);
    let token = site.name("token");
    [
        "root-key",
        "rotate",
        "--server",
        &server,
        "--token-file",
        &token,
    ]
    .map(str::to_owned)
    .into()
}

/// What `kmsgate root-key rotate` says, and how it tells how far it is.
fn rotate(site: &Site, at: Addresses) -> (String, String) {
    let mut program = Program::start(rotation(site, at));
    let status = program.ended();
    let (told, steps) = (program.stdout.whole(), program.stderr.whole());
    assert!(status.success(), "{steps}");
    (told, steps)
}

/// How many root keys the server says that its store needs.
async fn in_use(at: Addresses) -> u64 {
    let metrics = fetch(at.admin, "/metrics").await.text;
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix("kmsgate_root_keys_in_use "));
    line.unwrap().parse().unwrap()
}

fn number_after(text: &str, words: &str) -> u64 {
    let (_, rest) = text.split_once(words).unwrap();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap()
}

impl Site {
    /// Makes a second root key, in `new.key`.
    fn add_root_key(&self) {
        done(["root-key", "new", &self.name("new.key")], b"");
    }

    /// Has the key in one file seal, and those in the others open what they sealed.
    fn configure(&self, sealing: &str, previous: &[&str]) {
        let previous: Vec<String> = previous.iter().map(|name| self.name(name)).collect();
        let config = format!(
            "previous_root_key_files = {previous:?}\n{}",
            self.config(sealing)
        );
        self.write("kmsgate.toml", &config);
    }

    fn root_key_id(&self, name: &str) -> String {
        let root = kmsgate::crypto::root::RootKey::load(&self.path(name)).unwrap();
        kmsgate::crypto::root::Root::id(&root).to_string()
    }
}
