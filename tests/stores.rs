//! Every store passes the same battery.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::future;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kmsgate::domain::key::{KeyId, KeySpec, KeyState, KeyUsage, KeyVersion, ProjectId, RootKeyId};
use kmsgate::domain::secret::MacKey;
use kmsgate::domain::time::{Stopwatch, Timestamp};
use kmsgate::store::codec::Codec;
use kmsgate::store::etcd::{Cluster, Etcd};
use kmsgate::store::freshness::{Stale, Watcher};
use kmsgate::store::memory::Memory;
use kmsgate::store::root_keys::RootKeys;
use kmsgate::store::sqlite::Sqlite;
use kmsgate::store::{
    Address, AliasRecord, BackUp, Change, ClockRecord, DeletionRecord, KeyRecord, KeyStore, Prefix,
    Record, Revision, RootKeysRecord, StoreError, VersionRecord, Versioned,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// One line here puts a store through every case.
macro_rules! battery {
    ($store:ident, $fixture:ident $(, $ignore:meta)?) => {
        mod $store {
            cases!($fixture, [$($ignore)?];
                what_is_put_is_got
                a_missing_record_is_none
                creating_what_exists_is_a_conflict
                replacing_at_another_revision_is_a_conflict
                changing_what_is_missing_is_a_conflict
                several_changes_happen_together
                of_several_changes_none_happens_if_one_cannot
                a_second_change_of_one_address_is_a_conflict
                of_two_racing_writers_exactly_one_is_told_conflict
                no_update_is_lost
                an_erased_record_is_none_and_can_be_created_again
                revisions_grow
                a_listing_pages_in_order_without_gaps_or_repeats
                a_listing_stays_in_its_prefix
                a_listing_goes_on_where_a_record_was_erased
                a_listing_of_everything_leaves_nothing_out
                a_listing_meets_every_name_that_begins_as_another
                a_mark_is_another_after_every_change_of_a_key_of_the_project
                a_kept_record_stays_as_it_is_and_must_be_as_expected
                a_record_at_another_address_is_never_stored
                a_record_swapped_between_ids_does_not_open
                every_changed_byte_is_detected
            );
        }
    };
}

macro_rules! cases {
    ($fixture:ident, []; $($case:ident)+) => { $( case!($fixture, $case); )+ };
    ($fixture:ident, [$ignore:meta]; $($case:ident)+) => {
        $( case!($fixture, $case, $ignore); )+
    };
}

macro_rules! case {
    ($fixture:ident, $case:ident $(, $ignore:meta)?) => {
            $( #[$ignore] )?
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(<super::$fixture as super::Fixture>::new()).await;
            }
    };
}

battery!(memory, InMemory);
battery!(sqlite, InFile);
battery!(
    etcd,
    InEtcd,
    ignore = "needs a server: tests/interop/etcd.sh runs it"
);

/// A fresh store, and a way to what it stores that goes around it.
trait Fixture {
    fn new() -> Self;

    fn store(&self) -> &dyn KeyStore;

    /// Lets `change` alter the stored bytes of each of the records.
    fn tamper(&mut self, records: &[Address], change: impl Fn(usize, &mut Vec<u8>));
}

struct InMemory(Memory);

impl Fixture for InMemory {
    fn new() -> Self {
        Self(Memory::new(codec(7)))
    }

    fn store(&self) -> &dyn KeyStore {
        &self.0
    }

    fn tamper(&mut self, records: &[Address], change: impl Fn(usize, &mut Vec<u8>)) {
        for (at, address) in records.iter().enumerate() {
            self.0.tamper(address, |value| change(at, value));
        }
    }
}

struct InFile {
    directory: TempDir,
    /// There but while it is opened again.
    store: Option<Sqlite>,
}

impl InFile {
    fn path(&self) -> PathBuf {
        self.directory.path().join("keys.db")
    }

    fn close(&mut self) {
        self.store = None;
    }

    fn reopen(&mut self) {
        self.close();
        self.store = Some(Sqlite::open(&self.path(), codec(7)).unwrap());
    }
}

impl Fixture for InFile {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut fixture = Self {
            directory,
            store: None,
        };
        fixture.reopen();
        fixture
    }

    fn store(&self) -> &dyn KeyStore {
        self.store.as_ref().unwrap()
    }

    fn tamper(&mut self, records: &[Address], change: impl Fn(usize, &mut Vec<u8>)) {
        self.close();
        let mut file = rusqlite::Connection::open(self.path()).unwrap();
        let transaction = file.transaction().unwrap();
        for (at, address) in records.iter().enumerate() {
            let address = address.to_string();
            let select = "SELECT value FROM records WHERE address = ?1";
            let mut value = transaction
                .query_row(select, [&address], |row| row.get(0))
                .unwrap();
            change(at, &mut value);
            let update = "UPDATE records SET value = ?1 WHERE address = ?2";
            transaction.execute(update, (value, address)).unwrap();
        }
        transaction.commit().unwrap();
        drop(file);
        self.reopen();
    }
}

/// Under a prefix of its own in the cluster that `tests/interop/etcd.sh` starts.
struct InEtcd {
    prefix: String,
    store: Etcd,
}

impl InEtcd {
    /// Another server's store under the same prefix.
    fn another(&self) -> Etcd {
        etcd(&self.prefix)
    }

    fn key(&self, address: &Address) -> String {
        format!("{}{address}", self.prefix)
    }
}

impl Fixture for InEtcd {
    fn new() -> Self {
        let prefix = format!("battery-{:016x}/", random());
        Self {
            store: etcd(&prefix),
            prefix,
        }
    }

    fn store(&self) -> &dyn KeyStore {
        &self.store
    }

    fn tamper(&mut self, records: &[Address], change: impl Fn(usize, &mut Vec<u8>)) {
        for (at, address) in records.iter().enumerate() {
            let key = self.key(address);
            let found = etcdctl(&["get", "--write-out=json", &key], &[]);
            let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
            let value = found["kvs"][0]["value"].as_str().unwrap();
            let mut value = STANDARD.decode(value).unwrap();
            change(at, &mut value);
            // Nothing on standard input is no value for it.
            let words: &[&str] = if value.is_empty() {
                &["put", &key, ""]
            } else {
                &["put", &key]
            };
            etcdctl(words, &value);
        }
    }
}

/// A store as a server of its own opens it.
fn etcd(prefix: &str) -> Etcd {
    etcd_at(prefix, endpoints().split(','))
}

fn etcd_at<'a>(prefix: &str, endpoints: impl IntoIterator<Item = &'a str>) -> Etcd {
    let endpoints = endpoints.into_iter();
    let endpoints = endpoints.map(|endpoint| endpoint.parse().unwrap());
    let cluster = Cluster::new(endpoints.collect(), None);
    let mut writer = [0; 16];
    writer[..8].copy_from_slice(&random().to_be_bytes());
    let clock = Arc::new(Running(Instant::now()));
    Etcd::new(
        cluster,
        prefix,
        Duration::from_secs(3),
        writer,
        clock,
        codec(7),
    )
}

fn endpoints() -> String {
    std::env::var("ETCD_ENDPOINTS").expect("tests/interop/etcd.sh starts etcd and says where")
}

/// What etcd's own client prints, given `input`.
fn etcdctl(words: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &endpoints()])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "etcdctl {words:?}");
    output.stdout
}

fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

#[derive(Debug)]
struct Running(Instant);

impl Stopwatch for Running {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Remembers what it is told.
#[derive(Debug, Default)]
struct Heard {
    keys: Mutex<Vec<KeyId>>,
    all: AtomicUsize,
}

impl Watcher for Heard {
    fn changed(&self, _: &ProjectId, key_id: KeyId) {
        self.keys.lock().unwrap().push(key_id);
    }

    fn all_changed(&self) {
        self.all.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("in ten seconds: {what}");
}

#[ignore = "needs a server: tests/interop/etcd.sh runs it"]
#[tokio::test]
async fn etcd_tells_a_server_of_every_change_by_another_and_proves_that_it_did() {
    let fixture = InEtcd::new();
    let (ours, theirs) = (Arc::new(fixture.another()), &fixture.store);
    let before = create(theirs, &key("p", 1)).await;
    let freshness = Arc::clone(ours.freshness().unwrap());
    assert_eq!(freshness.check(), Err(Stale));
    let heard = Arc::new(Heard::default());
    let following = tokio::spawn({
        let (ours, heard) = (Arc::clone(&ours), Arc::clone(&heard));
        async move { ours.follow(&*heard).await }
    });
    until("a first proof", || freshness.check().is_ok()).await;
    assert_eq!(heard.all.load(Ordering::SeqCst), 1);
    assert_eq!(*heard.keys.lock().unwrap(), []);

    for n in 2..=100 {
        create(theirs, &key("p", n)).await;
    }
    let erase = Change::erase(address(&key("p", 1)), before);
    theirs.put(vec![erase]).await.unwrap();
    let acknowledged = freshness.now();
    let fresh_as_of = || freshness.now().saturating_sub(freshness.age().unwrap());
    until("a proof of the last change", || {
        fresh_as_of() > acknowledged
    })
    .await;
    let mut expected: Vec<KeyId> = (2..=100).map(|n| key("p", n).key_id).collect();
    expected.push(key("p", 1).key_id);
    assert_eq!(*heard.keys.lock().unwrap(), expected);
    assert_eq!(heard.all.load(Ordering::SeqCst), 1);

    // Nobody follows any more, so nothing is proven.
    following.abort();
    tokio::time::sleep(Duration::from_millis(3600)).await;
    assert_eq!(freshness.check(), Err(Stale));
}

#[ignore = "needs a server: tests/interop/etcd.sh runs it"]
#[tokio::test]
async fn etcd_put_back_to_another_history_makes_a_server_forget_everything() {
    let fixture = InEtcd::new();
    let ours = Arc::new(fixture.another());
    create(&fixture.store, &key("p", 1)).await;
    let freshness = Arc::clone(ours.freshness().unwrap());
    let heard = Arc::new(Heard::default());
    let follow = || {
        let (ours, heard) = (Arc::clone(&ours), Arc::clone(&heard));
        tokio::spawn(async move { ours.follow(&*heard).await })
    };
    let following = follow();
    until("a first proof", || freshness.check().is_ok()).await;
    // The epoch of an older history: it is gone, as after a restore that was made of before it.
    etcdctl(&["del", &format!("{}epoch", fixture.prefix)], &[]);
    until("everything forgotten", || {
        heard.all.load(Ordering::SeqCst) > 1
    })
    .await;
    // Nothing is proven before somebody has looked whether that store may be served.
    following.await.unwrap();
    assert_eq!(freshness.check(), Err(Stale));
    let following = follow();
    until("a proof again", || freshness.check().is_ok()).await;
    following.abort();
}

/// What gets lost on the way to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// What is sent to it.
    Questions,
    /// What it sends.
    Answers,
}

/// A store that asks etcd by a way on which something may get lost, and otherwise directly.
async fn etcd_by_a_bad_way(prefix: &str) -> (Etcd, watch::Sender<Lost>) {
    let direct = endpoints().split(',').next().unwrap().to_owned();
    let to = direct.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = format!("http://{}", listener.local_addr().unwrap());
    let (lose, lost) = watch::channel(Lost::Nothing);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (questions, answer) = client.into_split();
            let (answers, question) = TcpStream::connect(&to).await.unwrap().into_split();
            tokio::spawn(carry(questions, question, lost.clone(), Lost::Questions));
            tokio::spawn(carry(answers, answer, lost.clone(), Lost::Answers));
        }
    });
    let store = etcd_at(prefix, [way.as_str(), direct.as_str()]);
    // The way is the one that it takes.
    assert_eq!(list(&store, "p").await, []);
    (store, lose)
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    lost: watch::Receiver<Lost>,
    what: Lost,
) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if *lost.borrow() != what && to.write_all(&bytes[..read]).await.is_err() {
            break;
        }
    }
}

#[ignore = "needs a server: tests/interop/etcd.sh runs it"]
#[tokio::test]
async fn etcd_does_a_change_once_whose_question_or_answer_got_lost() {
    for what in [Lost::Questions, Lost::Answers] {
        let fixture = InEtcd::new();
        let (store, lose) = etcd_by_a_bad_way(&fixture.prefix).await;
        lose.send_replace(what);
        let begun = Instant::now();
        let made = create(&store, &key("p", 1)).await;
        // Nowhere near the seven seconds for which etcd may look for a leader.
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(3), "{what:?}: {took:?}");
        let seen = read(fixture.store(), &key("p", 1)).await;
        assert_eq!(seen.revision, made, "{what:?}");

        let (store, lose) = etcd_by_a_bad_way(&InEtcd::new().prefix).await;
        let made = create(&store, &key("p", 1)).await;
        lose.send_replace(what);
        // It leaves nothing by which it is known but the epoch.
        let erase = Change::erase(address(&key("p", 1)), made);
        store.put(vec![erase]).await.unwrap();
        assert_eq!(list(&store, "p").await, [], "{what:?}");
    }
}

#[ignore = "needs a server: tests/interop/etcd.sh runs it"]
#[tokio::test]
async fn etcd_never_takes_another_s_change_for_one_that_got_lost() {
    for what in [Lost::Questions, Lost::Answers] {
        let fixture = InEtcd::new();
        let (store, lose) = etcd_by_a_bad_way(&fixture.prefix).await;
        let theirs = create(fixture.store(), &key("p", 1)).await;
        lose.send_replace(what);
        let change = Change::create(Record::Key(key("p", 1)));
        let answer = store.put(vec![change]).await;
        assert!(
            matches!(answer, Err(StoreError::Unavailable(_))),
            "{what:?}: {answer:?}"
        );
        let seen = read(fixture.store(), &key("p", 1)).await;
        assert_eq!(seen.revision, theirs, "{what:?}");
    }
}

async fn what_is_put_is_got(fixture: impl Fixture) {
    let store = fixture.store();
    for record in one_of_each() {
        let revision = store
            .put(vec![Change::create(record.clone())])
            .await
            .unwrap();
        let got = store.get(&record.address()).await.unwrap();
        assert_eq!(got, Some(versioned(record, revision)));
    }
    let mut key = key("p", 1);
    let read = read(store, &key).await;
    key.description = "another".parse().unwrap();
    let change = Change::replace(Record::Key(key.clone()), read.revision);
    let revision = store.put(vec![change]).await.unwrap();
    let record = Record::Key(key);
    let got = store.get(&record.address()).await.unwrap();
    assert_eq!(got, Some(versioned(record, revision)));
}

async fn a_missing_record_is_none(fixture: impl Fixture) {
    for record in one_of_each() {
        let got = fixture.store().get(&record.address()).await.unwrap();
        assert_eq!(got, None);
    }
}

async fn creating_what_exists_is_a_conflict(fixture: impl Fixture) {
    let store = fixture.store();
    create(store, &key("p", 1)).await;
    let mut other = key("p", 1);
    other.description = "another".parse().unwrap();
    assert_conflict(store.put(vec![Change::create(Record::Key(other))]).await);
    assert_eq!(
        read(store, &key("p", 1)).await.record,
        Record::Key(key("p", 1))
    );
}

async fn replacing_at_another_revision_is_a_conflict(fixture: impl Fixture) {
    let store = fixture.store();
    let first = create(store, &key("p", 1)).await;
    let change = |revision| vec![Change::replace(Record::Key(key("p", 1)), revision)];
    let second = store.put(change(first)).await.unwrap();
    for stale in [
        first,
        Revision(0),
        Revision(second.0 + 1),
        Revision(u64::MAX),
    ] {
        assert_conflict(store.put(change(stale)).await);
    }
    assert_eq!(read(store, &key("p", 1)).await.revision, second);
}

async fn changing_what_is_missing_is_a_conflict(fixture: impl Fixture) {
    let store = fixture.store();
    let record = Record::Key(key("p", 1));
    let address = record.address();
    assert_conflict(store.put(vec![Change::replace(record, Revision(1))]).await);
    assert_conflict(
        store
            .put(vec![Change::erase(address.clone(), Revision(1))])
            .await,
    );
    assert_eq!(store.get(&address).await.unwrap(), None);
}

async fn several_changes_happen_together(fixture: impl Fixture) {
    let store = fixture.store();
    let first = create(store, &key("p", 1)).await;
    let mut replaced = key("p", 1);
    replaced.state = KeyState::Disabled;
    let gone = create(store, &key("p", 2)).await;
    let changes = vec![
        Change::replace(Record::Key(replaced.clone()), first),
        Change::erase(address(&key("p", 2)), gone),
        Change::create(Record::Key(key("p", 3))),
    ];
    let revision = store.put(changes).await.unwrap();
    let expected = [replaced, key("p", 3)].map(|key| versioned(Record::Key(key), revision));
    assert_eq!(list(store, "p").await, expected);
}

async fn of_several_changes_none_happens_if_one_cannot(fixture: impl Fixture) {
    let store = fixture.store();
    let first = create(store, &key("p", 1)).await;
    let before = list(store, "p").await;
    let good = [
        Change::erase(address(&key("p", 1)), first),
        Change::create(Record::Key(key("p", 2))),
    ];
    let bad = Change::replace(Record::Key(key("p", 3)), Revision(1));
    for place in 0..=good.len() {
        let mut changes = good.to_vec();
        changes.insert(place, bad.clone());
        assert_conflict(store.put(changes).await);
        assert_eq!(list(store, "p").await, before, "the bad one at {place}");
    }
}

async fn a_second_change_of_one_address_is_a_conflict(fixture: impl Fixture) {
    let store = fixture.store();
    let twice = vec![Change::create(Record::Key(key("p", 1))); 2];
    assert_conflict(store.put(twice).await);
    let first = create(store, &key("p", 1)).await;
    let erase = Change::erase(address(&key("p", 1)), first);
    let create = Change::create(Record::Key(key("p", 1)));
    assert_conflict(store.put(vec![erase, create]).await);
    assert_eq!(read(store, &key("p", 1)).await.revision, first);
}

async fn of_two_racing_writers_exactly_one_is_told_conflict(fixture: impl Fixture) {
    let store = fixture.store();
    let mut revision = create(store, &key("p", 1)).await;
    for round in 0..20 {
        let write = |text: &str| {
            let mut key = key("p", 1);
            key.description = text.parse().unwrap();
            store.put(vec![Change::replace(Record::Key(key), revision)])
        };
        let (one, other) = tokio::join!(write("one"), write("other"));
        revision = match (one, other) {
            (Ok(won), Err(StoreError::Conflict)) | (Err(StoreError::Conflict), Ok(won)) => won,
            answers => panic!("round {round}: {answers:?}"),
        };
        assert_eq!(read(store, &key("p", 1)).await.revision, revision);
    }
}

async fn no_update_is_lost(fixture: impl Fixture) {
    const WRITERS: i64 = 4;
    const UPDATES: i64 = 10;
    let store = fixture.store();
    let clock = |seen| {
        Record::Clock(ClockRecord {
            seen: Timestamp(seen),
        })
    };
    store.put(vec![Change::create(clock(0))]).await.unwrap();
    let add_one = async || loop {
        let read = store.get(&Address::Clock).await.unwrap().unwrap();
        let Record::Clock(ClockRecord { seen }) = read.record else {
            panic!("{read:?}");
        };
        let change = Change::replace(clock(seen.0 + 1), read.revision);
        match store.put(vec![change]).await {
            Ok(_) => return,
            Err(StoreError::Conflict) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let runtime = Handle::current();
    tokio::task::block_in_place(|| {
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    for _ in 0..UPDATES {
                        runtime.block_on(add_one());
                    }
                });
            }
        });
    });
    let read = store.get(&Address::Clock).await.unwrap().unwrap();
    assert_eq!(read.record, clock(WRITERS * UPDATES));
}

async fn an_erased_record_is_none_and_can_be_created_again(fixture: impl Fixture) {
    let store = fixture.store();
    for record in one_of_each() {
        let address = record.address();
        let create = || store.put(vec![Change::create(record.clone())]);
        let first = create().await.unwrap();
        let erase = |revision| store.put(vec![Change::erase(address.clone(), revision)]);
        assert_conflict(erase(Revision(first.0 + 1)).await);
        erase(first).await.unwrap();
        assert_eq!(store.get(&address).await.unwrap(), None);
        assert_conflict(erase(first).await);
        let again = create().await.unwrap();
        assert!(again > first, "a revision is never used twice");
        let got = store.get(&address).await.unwrap().unwrap();
        assert_eq!((got.record, got.revision), (record, again));
    }
}

async fn revisions_grow(fixture: impl Fixture) {
    let store = fixture.store();
    let mut last = Revision(0);
    for n in 0..10 {
        let revision = create(store, &key("p", n)).await;
        assert!(revision > last, "{revision:?} after {last:?}");
        last = revision;
        assert_conflict(
            store
                .put(vec![Change::create(Record::Key(key("p", n)))])
                .await,
        );
        let erase = Change::erase(address(&key("p", n)), revision);
        let revision = store.put(vec![erase]).await.unwrap();
        assert!(revision > last, "{revision:?} after {last:?}");
        last = revision;
    }
}

async fn a_listing_pages_in_order_without_gaps_or_repeats(fixture: impl Fixture) {
    const KEYS: u8 = 23;
    let store = fixture.store();
    // In an order that is not theirs.
    let keys = (0..KEYS).map(|n| key("p", n.wrapping_mul(11)));
    let changes = keys.map(|key| Change::create(Record::Key(key)));
    store.put(changes.collect()).await.unwrap();

    let prefix = Prefix::Keys(project("p"));
    for limit in [1, 2, 5, 22, 23, 24, 1000, usize::MAX] {
        let mut seen = Vec::new();
        loop {
            let after = seen.last();
            let page = store.list(&prefix, after, limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            seen.extend(page.iter().map(|read| read.record.address()));
        }
        assert_eq!(seen.len(), usize::from(KEYS), "pages of {limit}");
        let order = |pair: &[Address]| pair[0].to_string() < pair[1].to_string();
        assert!(seen.windows(2).all(order), "pages of {limit}");
    }
    assert!(store.list(&prefix, None, 0).await.unwrap().is_empty());
}

async fn a_listing_stays_in_its_prefix(fixture: impl Fixture) {
    let store = fixture.store();
    let projects = ["a", "a-", "a-b", "a0", "aa", "ab", "A", "b", "_"];
    for (n, project) in (0..).zip(projects) {
        create(store, &key(project, n)).await;
        create(store, &key(project, n + 100)).await;
        let records = [alias(project, n), deletion(project, n)];
        store.put(records.map(Change::create).into()).await.unwrap();
    }
    store.put(vec![Change::create(clock())]).await.unwrap();

    for (n, project) in (0..).zip(projects) {
        let listed = addresses(&list(store, project).await);
        let expected = [address(&key(project, n)), address(&key(project, n + 100))];
        assert_eq!(listed, expected, "{project}");
    }
    let queue = store.list(&Prefix::Deletions, None, 100).await.unwrap();
    let mut expected: Vec<Address> = (0..)
        .zip(projects)
        .map(|(n, project)| deletion(project, n).address())
        .collect();
    expected.sort_by_key(Address::to_string);
    assert_eq!(addresses(&queue), expected);

    // A place beyond the prefix, and one before it.
    let prefix = Prefix::Keys(project("a"));
    let beyond = address(&key("b", 0));
    let page = store.list(&prefix, Some(&beyond), 100).await.unwrap();
    assert_eq!(addresses(&page), []);
    let before = alias("z", 0).address();
    let page = store.list(&prefix, Some(&before), 100).await.unwrap();
    assert_eq!(page, list(store, "a").await);
}

async fn a_listing_goes_on_where_a_record_was_erased(fixture: impl Fixture) {
    let store = fixture.store();
    for n in 1..=3 {
        create(store, &key("p", n)).await;
    }
    let middle = read(store, &key("p", 2)).await;
    let place = middle.record.address();
    let erase = Change::erase(place.clone(), middle.revision);
    store.put(vec![erase]).await.unwrap();
    let prefix = Prefix::Keys(project("p"));
    let page = store.list(&prefix, Some(&place), 100).await.unwrap();
    assert_eq!(addresses(&page), [address(&key("p", 3))]);
}

async fn a_listing_of_everything_leaves_nothing_out(fixture: impl Fixture) {
    let store = fixture.store();
    assert_eq!(
        store.list(&Prefix::Everything, None, 100).await.unwrap(),
        []
    );
    let mut records: Vec<Record> = one_of_each().into();
    for project in ["A", "_", "a-b", "z"] {
        records.extend([
            Record::Key(key(project, 9)),
            alias(project, 9),
            deletion(project, 9),
        ]);
    }
    let changes = records.iter().cloned().map(Change::create);
    store.put(changes.collect()).await.unwrap();
    records.sort_by_key(|record| record.address().to_string());
    for limit in [1, 3, 100] {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().map(Record::address);
            let page = store.list(&Prefix::Everything, after.as_ref(), limit);
            let page = page.await.unwrap();
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|read| read.record));
        }
        assert_eq!(seen, records, "pages of {limit}");
    }
}

async fn a_listing_meets_every_name_that_begins_as_another(fixture: impl Fixture) {
    let store = fixture.store();
    let mut names = vec![String::new()];
    for length in 0..4 {
        let shorter = names.clone();
        let of_length = shorter.iter().filter(|name| name.len() == length);
        names.extend(of_length.flat_map(|name| ["0", "1", "z"].map(|end| format!("{name}{end}"))));
    }
    names.remove(0);
    let mut records = Vec::new();
    for project in ["a", "a-b", "b"] {
        for (n, name) in (0..).zip(&names) {
            let Record::Alias(mut one) = alias(project, n) else {
                unreachable!()
            };
            one.alias = name.parse().unwrap();
            records.push(Record::Alias(one));
        }
        records.extend((0..40).map(|n| Record::Key(key(project, n))));
    }
    for some in records.chunks(50) {
        let changes = some.iter().cloned().map(Change::create);
        store.put(changes.collect()).await.unwrap();
    }
    records.sort_by_key(|record| record.address().to_string());
    for limit in [1, 2, 7, 50, 500] {
        let mut seen: Vec<Record> = Vec::new();
        loop {
            let after = seen.last().map(Record::address);
            let page = store.list(&Prefix::Everything, after.as_ref(), limit);
            let page = page.await.unwrap();
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|read| read.record));
        }
        assert_eq!(seen.len(), records.len(), "pages of {limit}");
        assert!(seen == records, "pages of {limit}");
    }
}

async fn a_mark_is_another_after_every_change_of_a_key_of_the_project(fixture: impl Fixture) {
    let store = fixture.store();
    let prefix = Prefix::Keys(project("p"));
    let mark = async || store.mark(&prefix).await.unwrap().unwrap();
    let of_all = async || store.mark(&Prefix::Everything).await.unwrap().unwrap();
    let before = of_all().await;
    let mut marks = vec![mark().await];
    let first = create(store, &key("p", 1)).await;
    marks.push(mark().await);
    let replace = Change::replace(Record::Key(key("p", 1)), first);
    let second = store.put(vec![replace]).await.unwrap();
    marks.push(mark().await);
    let erase = Change::erase(address(&key("p", 1)), second);
    store.put(vec![erase.clone()]).await.unwrap();
    marks.push(mark().await);
    for (place, mark) in marks.iter().enumerate() {
        assert!(!marks[..place].contains(mark), "{place}");
    }
    // Not after what changes none: a conflict, a read, another project, another record, a look.
    assert_conflict(store.put(vec![erase]).await);
    list(store, "p").await;
    let other = create(store, &key("p-2", 1)).await;
    store
        .put(vec![Change::create(alias("p", 1))])
        .await
        .unwrap();
    let keep = Change::keep(address(&key("p-2", 1)), other);
    let another = Change::create(alias("p-2", 1));
    store.put(vec![keep, another]).await.unwrap();
    assert_eq!(mark().await, marks[3]);
    let after = of_all().await;
    assert_ne!(before, after);
    store
        .put(vec![Change::create(alias("p-2", 2))])
        .await
        .unwrap();
    assert_ne!(after, of_all().await);
    list(store, "p").await;
    assert_eq!(
        store
            .list(&Prefix::Everything, None, 100)
            .await
            .unwrap()
            .len(),
        4
    );
}

async fn a_kept_record_stays_as_it_is_and_must_be_as_expected(fixture: impl Fixture) {
    let store = fixture.store();
    let kept = create(store, &key("p", 1)).await;
    let keep = |revision| Change::keep(address(&key("p", 1)), revision);
    let other = |n| Change::create(Record::Key(key("p", n)));
    store.put(vec![other(2), keep(kept)]).await.unwrap();
    let read = read(store, &key("p", 1)).await;
    assert_eq!(read, versioned(Record::Key(key("p", 1)), kept));

    // Another revision, and no record at all.
    let missing = Change::keep(address(&key("p", 9)), kept);
    for wrong in [keep(Revision(kept.0 + 1)), missing] {
        for changes in [vec![wrong.clone(), other(3)], vec![other(3), wrong]] {
            assert_conflict(store.put(changes).await);
        }
    }
    let erase = Change::erase(address(&key("p", 1)), kept);
    assert_conflict(store.put(vec![keep(kept), erase]).await);
    assert_eq!(list(store, "p").await.len(), 2, "nothing was made");
}

async fn a_record_at_another_address_is_never_stored(fixture: impl Fixture) {
    let store = fixture.store();
    let mut change = Change::create(Record::Key(key("p", 1)));
    change.address = address(&key("p", 2));
    assert_corrupt(store.put(vec![change]).await, &address(&key("p", 2)));
    assert_eq!(list(store, "p").await, []);
}

async fn a_record_swapped_between_ids_does_not_open(mut fixture: impl Fixture) {
    let mut enabled = key("p", 1);
    let mut disabled = key("p", 2);
    enabled.state = KeyState::Enabled;
    disabled.state = KeyState::Disabled;
    create(fixture.store(), &enabled).await;
    create(fixture.store(), &disabled).await;

    let copy = RefCell::new(Vec::new());
    fixture.tamper(&[address(&enabled), address(&disabled)], |_, value| {
        copy.replace_with(|copy| std::mem::replace(value, copy.clone()));
    });
    // The first took nothing, the second took the first's.
    let store = fixture.store();
    for key in [&enabled, &disabled] {
        assert_corrupt(store.get(&address(key)).await, &address(key));
    }
    let listed = store.list(&Prefix::Keys(project("p")), None, 100).await;
    assert_corrupt(listed, &address(&enabled));
}

async fn every_changed_byte_is_detected(mut fixture: impl Fixture) {
    // One record for each byte, all of the same length.
    const RECORDS: usize = 400;
    let keys: Vec<KeyRecord> = (0..RECORDS)
        .map(|n| {
            let mut key = key("p", 0);
            key.key_id = format!("00000000-0000-0000-0000-{n:012}").parse().unwrap();
            key
        })
        .collect();
    let changes = keys.iter().cloned().map(Record::Key).map(Change::create);
    fixture.store().put(changes.collect()).await.unwrap();

    let length = Cell::new(0);
    let places: Vec<Address> = keys.iter().map(address).collect();
    fixture.tamper(&places, |at, value| {
        length.set(value.len());
        if let Some(byte) = value.get_mut(at) {
            *byte ^= 1;
        }
    });
    assert!((1..RECORDS).contains(&length.get()), "{length:?}");
    for (at, place) in places.iter().enumerate() {
        let got = fixture.store().get(place).await;
        if at < length.get() {
            assert_corrupt(got, place);
        } else {
            assert!(got.unwrap().is_some(), "{place} was not touched");
        }
    }
}

#[tokio::test]
async fn reopening_a_file_finds_everything() {
    let mut fixture = InFile::new();
    let mut written = Vec::new();
    for record in one_of_each() {
        let change = Change::create(record.clone());
        let revision = fixture.store().put(vec![change]).await.unwrap();
        written.push(versioned(record, revision));
    }
    fixture.reopen();
    for read in &written {
        let got = fixture.store().get(&read.record.address()).await.unwrap();
        assert_eq!(got.as_ref(), Some(read));
    }
    let next = create(fixture.store(), &key("q", 1)).await;
    assert!(written.iter().all(|read| next > read.revision));
}

#[tokio::test]
async fn a_closed_file_stands_alone() {
    let mut fixture = InFile::new();
    create(fixture.store(), &key("p", 1)).await;
    fixture.close();
    assert_eq!(names(fixture.directory.path()), ["keys.db", "keys.db-lock"]);
}

#[tokio::test]
async fn a_file_is_opened_once() {
    let fixture = InFile::new();
    create(fixture.store(), &key("p", 1)).await;
    for _ in 0..2 {
        let error = refusal(&fixture.path());
        assert!(
            error.contains("another process has the store open"),
            "{error}"
        );
        // Neither may another program read or write it, also not after an attempt.
        let file = rusqlite::Connection::open(fixture.path()).unwrap();
        file.busy_timeout(Duration::ZERO).unwrap();
        let read = file.query_row("SELECT count(*) FROM records", [], |row| {
            row.get::<_, u32>(0)
        });
        let refused = read.unwrap_err();
        let code = refused.sqlite_error_code();
        assert_eq!(code, Some(rusqlite::ErrorCode::DatabaseBusy), "{refused:?}");
    }
    create(fixture.store(), &key("p", 2)).await;
}

#[tokio::test]
async fn a_file_that_another_program_has_locked_is_refused() {
    let mut fixture = InFile::new();
    fixture.close();
    let file = rusqlite::Connection::open(fixture.path()).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = refusal(&fixture.path());
    assert!(
        error.contains("another process has the store open"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_under_another_mac_key_is_corrupt() {
    let mut fixture = InFile::new();
    create(fixture.store(), &key("p", 1)).await;
    fixture.close();
    let store = Sqlite::open(&fixture.path(), codec(8)).unwrap();
    let place = address(&key("p", 1));
    assert_corrupt(store.get(&place).await, &place);
}

#[tokio::test]
async fn a_file_under_a_previous_mac_key_is_read_and_written_under_the_new_one() {
    let mut fixture = InFile::new();
    let old = create(fixture.store(), &key("p", 1)).await;
    fixture.close();
    let both = || codec(8).reading([MacKey::new(vec![7; 32])]);
    let store = Sqlite::open(&fixture.path(), both()).unwrap();
    let found = read(&store, &key("p", 1)).await;
    assert!(!found.current && found.revision == old);
    let again = Change::replace(found.record, found.revision);
    store.put(vec![again]).await.unwrap();
    assert!(read(&store, &key("p", 1)).await.current);
    drop(store);
    let store = Sqlite::open(&fixture.path(), codec(8)).unwrap();
    assert!(read(&store, &key("p", 1)).await.current);
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let database = |sql: &str| {
        fs::remove_file(&path).ok();
        let file = rusqlite::Connection::open(&path).unwrap();
        file.execute_batch(sql).unwrap();
        drop(file);
        fs::read(&path).unwrap()
    };
    let files = [
        Vec::new(),
        b"SQLite format 3\0".to_vec(),
        b"not a database".repeat(100),
        database("CREATE TABLE records (address TEXT)"),
        database("PRAGMA journal_mode = WAL; CREATE TABLE t (x)"),
        database("PRAGMA application_id = 7; CREATE TABLE t (x)"),
    ];
    for (which, bytes) in files.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        let error = refusal(&path);
        assert!(
            error.contains("not a key store of kmsgate"),
            "{which}: {error}"
        );
        assert_eq!(&fs::read(&path).unwrap(), bytes, "{which}");
        assert_eq!(names(directory.path()), ["keys.db", "keys.db-lock"]);
    }
}

#[test]
fn a_newer_schema_is_refused_and_left_as_it_is() {
    let mut fixture = InFile::new();
    fixture.close();
    let file = rusqlite::Connection::open(fixture.path()).unwrap();
    file.pragma_update(None, "user_version", 2).unwrap();
    drop(file);
    let bytes = fs::read(fixture.path()).unwrap();
    let error = refusal(&fixture.path());
    assert!(error.contains("schema 2"), "{error}");
    assert_eq!(fs::read(fixture.path()).unwrap(), bytes);
}

#[test]
fn a_log_without_its_store_is_refused_and_left_as_it_is() {
    for suffix in ["wal", "journal"] {
        let directory = tempfile::tempdir().unwrap();
        let log = format!("keys.db-{suffix}");
        fs::write(directory.path().join(&log), b"frames").unwrap();
        let error = refusal(&directory.path().join("keys.db"));
        assert!(error.contains(&log), "{error}");
        let mut expected = ["keys.db-lock", &log];
        expected.sort_unstable();
        assert_eq!(names(directory.path()), expected);
    }
}

#[test]
fn a_store_is_not_made_in_a_directory_that_does_not_exist() {
    let directory = tempfile::tempdir().unwrap();
    let error = refusal(&directory.path().join("missing/keys.db"));
    assert!(error.contains("missing/keys.db"), "{error}");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn what_is_left_of_a_store_that_was_being_made_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("keys.db-new"), b"half").unwrap();
    Sqlite::open(&directory.path().join("keys.db"), codec(7)).unwrap();
    assert_eq!(names(directory.path()), ["keys.db", "keys.db-lock"]);
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let fixture = InFile::new();
    create(fixture.store(), &key("p", 1)).await;
    let names = names(fixture.directory.path());
    assert_eq!(names, ["keys.db", "keys.db-lock", "keys.db-wal"]);
    for name in names {
        let metadata = fs::metadata(fixture.directory.path().join(&name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_conflict_fails_no_other_put_of_its_transaction() {
    let fixture = InFile::new();
    let store = fixture.store();
    create(store, &key("p", 0)).await;
    // All of them wait together while the first is written. Every second one creates what exists.
    let puts = (0..100).map(|n| {
        let key = key("p", if n % 2 == 0 { 0 } else { n });
        async move { (n, store.put(vec![Change::create(Record::Key(key))]).await) }
    });
    let mut revisions = BTreeSet::new();
    for (n, answer) in join_all(puts).await {
        if n % 2 == 0 {
            assert_conflict(answer);
        } else {
            assert!(revisions.insert(answer.unwrap()), "{n}");
        }
    }
    assert_eq!(list(store, "p").await.len(), 51);
}

#[tokio::test]
async fn erased_bytes_are_gone_from_the_files() {
    let fixture = InFile::new();
    let store = fixture.store();
    let mut random = Random(1);
    let mut live: Vec<KeyRecord> = Vec::new();
    let mut gone = BTreeSet::new();
    // Rows of many lengths come, grow, shrink and go, so that SQLite moves them about.
    for round in 0..60 {
        let mut changes = Vec::new();
        for _ in 0..random.below(live.len().min(24) + 1) {
            let mut key = live.swap_remove(random.below(live.len()));
            let revision = read(store, &key).await.revision;
            let fate = random.below(3);
            if fate == 0 {
                let mut next = key.versions.last().unwrap().clone();
                next.version = next.version.next().unwrap();
                next.sealed = marked(&mut random);
                key.versions.push(next);
            } else {
                for version in &mut key.versions {
                    gone.extend(marks(&version.sealed));
                    version.sealed = marked(&mut random);
                }
            }
            if fate == 1 {
                changes.push(Change::erase(address(&key), revision));
            } else {
                changes.push(Change::replace(Record::Key(key), revision));
            }
        }
        for _ in 0..random.below(16) {
            let mut key = key("p", 0);
            key.key_id = KeyId::from_random(random.bytes());
            key.versions[0].sealed = marked(&mut random);
            changes.push(Change::create(Record::Key(key)));
        }
        let records = changes.iter().filter_map(|change| change.record().cloned());
        live.extend(records.filter_map(|record| match record {
            Record::Key(key) => Some(key),
            _ => None,
        }));
        store.put(changes).await.unwrap();
        for name in names(fixture.directory.path()) {
            let file = fs::read(fixture.directory.path().join(&name)).unwrap();
            assert!(marks(&file).is_disjoint(&gone), "round {round}: in {name}");
        }
    }
    assert!(
        live.len() > 20 && gone.len() > 100,
        "the test does something"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_the_store_as_of_its_end_and_holds_up_nobody() {
    let fixture = InFile::new();
    let store = fixture.store.as_ref().unwrap();
    let mut random = Random(1);
    // Enough for many steps.
    let mut keys = Vec::new();
    for _ in 0..15 {
        let mut changes = Vec::new();
        for _ in 0..100 {
            let mut key = key("p", 0);
            key.key_id = KeyId::from_random(random.bytes());
            let mark = marked(&mut random);
            key.versions[0].sealed = mark.into_iter().cycle().take(3000).collect();
            changes.push(Change::create(Record::Key(key.clone())));
            keys.push(key);
        }
        store.put(changes).await.unwrap();
    }
    let mut gone = BTreeSet::new();
    // A machine that is busy elsewhere may make a copy before anybody comes to put.
    let mut rounds = 0..50;
    let (mut backup, made) = loop {
        rounds.next().expect("puts while a copy is made");
        let done = Cell::new(false);
        let backup = async {
            let backup = store.back_up().await.unwrap();
            done.set(true);
            backup
        };
        // Meanwhile keys are erased and made, from both ends of the file.
        let erasing = async {
            let mut made = Vec::new();
            while !done.get() {
                let key = keys.swap_remove(random.below(keys.len()));
                let revision = read(store, &key).await.revision;
                let mut new = key.clone();
                new.key_id = KeyId::from_random(random.bytes());
                new.versions[0].sealed = marked(&mut random);
                let changes = vec![
                    Change::erase(address(&key), revision),
                    Change::create(Record::Key(new.clone())),
                ];
                store.put(changes).await.unwrap();
                if !done.get() {
                    gone.extend(marks(&key.versions[0].sealed));
                    made.push(new);
                }
            }
            made
        };
        let (backup, made) = tokio::join!(backup, erasing);
        if made.len() >= 5 {
            break (backup, made);
        }
    };

    let mut bytes = Vec::new();
    backup.read_to_end(&mut bytes).unwrap();
    assert!(marks(&bytes).is_disjoint(&gone), "erased before the end");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    fs::write(&path, &bytes).unwrap();
    let restored = Sqlite::open(&path, codec(7)).unwrap();
    for made in &made[..made.len() - 1] {
        let found = restored.get(&address(made)).await.unwrap();
        let found = found.map(|found| found.record);
        assert_eq!(found, Some(Record::Key(made.clone())));
    }
    drop(restored);
    let found = Sqlite::check(
        &path,
        codec(7),
        &RootKeys::new(RootKeyId([1; 8]), Vec::new()),
    )
    .unwrap();
    let structure = found
        .wrong
        .iter()
        .find(|wrong| wrong.starts_with("the file"));
    assert_eq!(structure, None);
    let names = names(fixture.directory.path());
    assert_eq!(names, ["keys.db", "keys.db-lock", "keys.db-wal"]);
}

#[tokio::test]
async fn a_file_is_not_sound_without_a_root_key_that_it_needs() {
    let mut fixture = InFile::new();
    let (one, other) = (RootKeyId([1; 8]), RootKeyId([2; 8]));
    let needed = Record::RootKeys(RootKeysRecord {
        root_keys: BTreeMap::from([(one, true), (other, false)]),
    });
    fixture
        .store()
        .put(vec![Change::create(needed)])
        .await
        .unwrap();
    fixture.close();
    let check = |previous| {
        let found = Sqlite::check(&fixture.path(), codec(7), &RootKeys::new(one, previous));
        found.unwrap().wrong
    };
    assert_eq!(check(vec![other]), Vec::<String>::new());
    let [wrong] = &check(Vec::new())[..] else {
        panic!("one key is missing");
    };
    assert!(wrong.contains(&other.to_string()), "{wrong}");
}

#[tokio::test]
async fn one_backup_is_made_at_a_time() {
    let fixture = InFile::new();
    let store = fixture.store.as_ref().unwrap();
    create(store, &key("p", 1)).await;
    let answers = join_all((0..3).map(|_| store.back_up())).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(!made.is_empty());
    for refused in refused {
        let why = match refused {
            Err(StoreError::Unavailable(why)) => why.to_string(),
            answer => panic!("{answer:?}"),
        };
        assert!(why.contains("a copy of it is being made already"), "{why}");
    }
    store.back_up().await.unwrap();
}

#[tokio::test]
async fn what_is_left_of_a_backup_that_was_being_made_is_removed() {
    let mut fixture = InFile::new();
    fixture.close();
    fs::write(fixture.directory.path().join("keys.db-backup"), b"half").unwrap();
    fixture.reopen();
    let names = names(fixture.directory.path());
    assert_eq!(names, ["keys.db", "keys.db-lock", "keys.db-wal"]);
}

/// What SQLite moves from page to page it may leave copies of, and it moves nothing that is on an
/// overflow page.
#[tokio::test]
async fn sealed_bytes_lie_on_overflow_pages_alone() {
    let mut fixture = InFile::new();
    let mut random = Random(1);
    for n in 0..100 {
        let mut key = key("p", n);
        key.versions[0].sealed = marked(&mut random);
        create(fixture.store(), &key).await;
    }
    fixture.close();

    let file = rusqlite::Connection::open(fixture.path()).unwrap();
    let size: usize = file
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap();
    let mut pages = file
        .prepare("SELECT pagetype FROM dbstat ORDER BY pageno")
        .unwrap();
    let kinds = pages.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let bytes = fs::read(fixture.path()).unwrap();
    let mut found = 0;
    for (kind, page) in kinds.zip(bytes.chunks(size)) {
        let marks = marks(page).len();
        assert!(marks == 0 || kind.as_deref() == Ok("overflow"), "{kind:?}");
        found += marks;
    }
    assert!(found >= 100, "the test finds {found}");
}

fn codec(seed: u8) -> Codec {
    Codec::new(MacKey::new(vec![seed; 32]))
}

fn refusal(path: &Path) -> String {
    match Sqlite::open(path, codec(7)) {
        Err(StoreError::Unavailable(why)) => why.to_string(),
        answer => panic!("{answer:?}"),
    }
}

/// The names of the files in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_conflict<T: fmt::Debug>(answer: Result<T, StoreError>) {
    match answer {
        Err(StoreError::Conflict) => {}
        answer => panic!("{answer:?}"),
    }
}

#[track_caller]
fn assert_corrupt<T: fmt::Debug>(answer: Result<T, StoreError>, place: &Address) {
    match answer {
        Err(StoreError::Corrupt(at)) => assert_eq!(at, place.to_string()),
        answer => panic!("{place}: {answer:?}"),
    }
}

async fn create(store: &dyn KeyStore, key: &KeyRecord) -> Revision {
    let change = Change::create(Record::Key(key.clone()));
    store.put(vec![change]).await.unwrap()
}

async fn read(store: &dyn KeyStore, key: &KeyRecord) -> Versioned {
    store.get(&address(key)).await.unwrap().unwrap()
}

async fn list(store: &dyn KeyStore, name: &str) -> Vec<Versioned> {
    let prefix = Prefix::Keys(project(name));
    store.list(&prefix, None, 100).await.unwrap()
}

fn addresses(page: &[Versioned]) -> Vec<Address> {
    page.iter().map(|read| read.record.address()).collect()
}

fn address(key: &KeyRecord) -> Address {
    Record::Key(key.clone()).address()
}

fn project(name: &str) -> ProjectId {
    name.parse().unwrap()
}

fn versioned(record: Record, revision: Revision) -> Versioned {
    Versioned {
        record,
        revision,
        current: true,
    }
}

fn one_of_each() -> [Record; 6] {
    [
        Record::Key(key("p", 1)),
        alias("p", 1),
        deletion("p", 1),
        clock(),
        root_keys(),
        Record::Copy,
    ]
}

fn key(name: &str, n: u8) -> KeyRecord {
    KeyRecord {
        project: project(name),
        key_id: KeyId::from_random([n; 16]),
        alias: format!("alias/{n}").parse().unwrap(),
        description: "a description".parse().unwrap(),
        spec: KeySpec::Aes256,
        usage: KeyUsage::EncryptDecrypt,
        state: KeyState::Enabled,
        created: Timestamp(1_700_000_000_000),
        deletion: None,
        versions: vec![VersionRecord {
            version: KeyVersion::FIRST,
            created: Timestamp(1_700_000_000_000),
            sealed: vec![n; 100],
        }],
    }
}

fn alias(name: &str, n: u8) -> Record {
    Record::Alias(AliasRecord {
        project: project(name),
        alias: format!("alias/{n}").parse().unwrap(),
        key_id: KeyId::from_random([n; 16]),
    })
}

fn deletion(name: &str, n: u8) -> Record {
    Record::Deletion(DeletionRecord {
        project: project(name),
        key_id: KeyId::from_random([n; 16]),
        due: Timestamp(1_700_000_000_000),
    })
}

fn root_keys() -> Record {
    let (one, other) = (RootKeyId([1; 8]), RootKeyId([2; 8]));
    Record::RootKeys(RootKeysRecord {
        root_keys: BTreeMap::from([(one, false), (other, true)]),
    })
}

fn clock() -> Record {
    Record::Clock(ClockRecord {
        seen: Timestamp(1_700_000_000_000),
    })
}

/// 60 to 1559 bytes, mostly few, in which every twelve name the same random number.
fn marked(random: &mut Random) -> Vec<u8> {
    let mark = [&MARK[..], &random.next().to_be_bytes()].concat();
    let most = [50, 200, 1500][random.below(3)];
    let length = 60 + random.below(most);
    mark.into_iter().cycle().take(length).collect()
}

/// The numbers of all marks in `bytes`.
fn marks(bytes: &[u8]) -> BTreeSet<u64> {
    let after_mark = |rest: &[u8]| {
        let number = rest.strip_prefix(&MARK[1..])?.first_chunk()?;
        Some(u64::from_be_bytes(*number))
    };
    let places = bytes
        .split_inclusive(|byte| *byte == MARK[0])
        .scan(0, |at, piece| {
            *at += piece.len();
            Some(*at)
        });
    places.filter_map(|at| after_mark(&bytes[at..])).collect()
}

const MARK: [u8; 4] = *b"\xf1SK\xf2";

/// Waits for all of the futures at once.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    future::poll_fn(move |context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(done) = future.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if outputs.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(outputs.iter_mut().filter_map(Option::take).collect())
    })
    .await
}

/// Repeatable disorder (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn bytes(&mut self) -> [u8; 16] {
        let halves = [self.next().to_le_bytes(), self.next().to_le_bytes()];
        halves.concat().try_into().unwrap()
    }
}
