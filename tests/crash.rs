//! What was acknowledged survives `kill -9`, at any moment, and a full disk.
//!
//! The tests run this very program again as the process that dies: with [`STORE`] in its
//! environment the test [`writer`] writes to that store and says on its standard output what was
//! acknowledged.
//!
//! A killed process leaves the page cache to the kernel, so this proves nothing about a loss of
//! power. For that, `tests/interop/sync_before_ack.sh` watches the system calls of the same writer.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kmsgate::domain::key::{KeyAlias, KeyId, KeySpec, KeyState, KeyUsage, KeyVersion, ProjectId};
use kmsgate::domain::secret::MacKey;
use kmsgate::domain::time::Timestamp;
use kmsgate::store::codec::Codec;
use kmsgate::store::sqlite::Sqlite;
use kmsgate::store::{
    Address, AliasRecord, Change, KeyRecord, KeyStore, Prefix, Record, Revision, StoreError,
    VersionRecord,
};

/// Names the file that [`writer`] writes to. Without it the test does nothing.
const STORE: &str = "KMSGATE_TEST_STORE";

/// How many writers there are at a time, 4 unless it is set.
const WRITERS: &str = "KMSGATE_TEST_WRITERS";

/// How many keys each writer makes; if it is not set, they go on until they are killed.
const KEYS: &str = "KMSGATE_TEST_KEYS";

#[tokio::test]
async fn what_was_acknowledged_survives_200_kills() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let mut known = Known::default();
    for kill in 0..200 {
        let mut child = spawn(&path);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        // Half of the kills come at any time from the start, half of them among the writes.
        while kill % 2 == 1 && !said.contains("made") {
            assert_ne!(output.read_line(&mut said).unwrap(), 0, "the writer ended");
        }
        thread::sleep(Duration::from_micros(random_below(30_000)));
        end(&mut child);
        output.read_to_string(&mut said).unwrap();
        let said = Known::parse(&said);

        let store = open(&path);
        for (&id, fate) in &said.keys {
            fate.check(&store, id).await;
        }
        known.keys.extend(said.keys);
        if kill % 50 == 49 {
            check_all(&store, &known).await;
        }
    }
    let count = |which: fn(&Fate) -> bool| known.keys.values().filter(|fate| which(fate)).count();
    assert!(count(|fate| matches!(fate, Fate::Kept { .. })) > 200);
    assert!(count(|fate| matches!(fate, Fate::Erased)) > 20);
}

#[tokio::test]
async fn a_store_whose_making_was_killed_is_whole_or_made_anew() {
    for _ in 0..40 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.db");
        let mut child = spawn(&path);
        let mut output = child.stdout.take().unwrap();
        // A process takes about as long to get to its first write.
        thread::sleep(Duration::from_micros(random_below(15_000)));
        end(&mut child);
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        check_all(&open(&path), &Known::parse(&said)).await;
    }
}

#[test]
fn a_second_process_is_let_in_once_the_first_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let mut child = spawn(&path);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("made") {
        assert_ne!(output.read_line(&mut said).unwrap(), 0, "the writer ended");
    }
    match Sqlite::open(&path, codec()) {
        Err(StoreError::Unavailable(why)) => {
            let why = why.to_string();
            assert!(why.contains("another process has the store open"), "{why}");
        }
        answer => panic!("{answer:?}"),
    }
    end(&mut child);
    open(&path);
}

#[test]
fn a_full_disk_is_unavailable_and_the_store_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    // A limit on the size of files stands for the disk's. The shell has the writer ignore the
    // signal that comes with it.
    let script = "trap '' XFSZ; ulimit -S -f 400; exec \"$0\" --exact on_a_small_disk --nocapture";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(env::current_exe().unwrap())
        .env(STORE, directory.path().join("keys.db"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("went on"), "{said}");
}

/// The process that is killed. Does nothing in an ordinary run.
#[tokio::test]
async fn writer() {
    let Some(path) = env::var_os(STORE) else {
        return;
    };
    let count = |name| env::var(name).ok().map(|count| count.parse().unwrap());
    let store = Arc::new(open(Path::new(&path)));
    let writers = (0..count(WRITERS).unwrap_or(4)).map(|_| {
        let store = Arc::clone(&store);
        let keys = count(KEYS).unwrap_or(u64::MAX);
        tokio::spawn(async move {
            for n in 0..keys {
                write_one(&*store, n % 3 == 0).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// The process on a small disk. Does nothing in an ordinary run.
#[tokio::test]
async fn on_a_small_disk() {
    let Some(path) = env::var_os(STORE) else {
        return;
    };
    let store = open(Path::new(&path));
    let mut kept = Vec::new();
    // A small write may still fit where a larger one did not, so the disk is full once ten have
    // failed on end.
    let mut failed = 0;
    while failed < 10 {
        let key = key();
        match create(&store, &key).await {
            Ok(revision) => {
                kept.push((key, revision));
                failed = 0;
            }
            Err(StoreError::Unavailable(_)) => failed += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(kept.len() < 10_000, "the disk has no end");
    }
    for (key, revision) in &kept {
        let got = store.get(&address(key)).await.unwrap().unwrap();
        assert_eq!(got.revision, *revision);
    }

    // Room is made from outside, as an operator would.
    let process = std::process::id().to_string();
    let status = Command::new("prlimit")
        .args(["--fsize=unlimited", "--pid", &process])
        .status();
    assert!(status.unwrap().success());
    let key = key();
    create(&store, &key).await.unwrap();
    let (first, revision) = &kept[0];
    let erase = Change::erase(address(first), *revision);
    store.put(vec![erase]).await.unwrap();

    drop(store);
    let store = open(Path::new(&path));
    assert!(store.get(&address(&key)).await.unwrap().is_some());
    assert!(store.get(&address(first)).await.unwrap().is_none());
    for (key, _) in &kept[1..] {
        assert!(store.get(&address(key)).await.unwrap().is_some());
    }
    say("went on");
}

/// Makes a key with its alias, rotates it, and perhaps erases both; says each when it is
/// acknowledged.
async fn write_one(store: &dyn KeyStore, erases: bool) {
    let mut key = key();
    let id = key.key_id;
    let alias = Record::Alias(alias(&key)).address();
    let first = create(store, &key).await.unwrap();
    say(&format!("made {id} 1"));
    let mut revision = first;
    for number in 2..=3 {
        key.versions.push(version(number));
        let change = Change::replace(Record::Key(key.clone()), revision);
        revision = store.put(vec![change]).await.unwrap();
        say(&format!("made {id} {number}"));
    }
    if erases {
        say(&format!("erasing {id} 3"));
        let erase = vec![
            Change::erase(address(&key), revision),
            Change::erase(alias, first),
        ];
        store.put(erase).await.unwrap();
        say(&format!("erased {id} 3"));
    }
}

/// Puts one line out at once. A test's `println!` would be kept until the test ends.
fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}

/// What the writers said of their keys.
#[derive(Default)]
struct Known {
    keys: BTreeMap<KeyId, Fate>,
}

enum Fate {
    /// Has at least this version, and was not told to go.
    Kept { version: u32 },
    /// Was told to go; nobody knows.
    Erasing,
    /// Is gone.
    Erased,
}

impl Known {
    /// Reads the writer's lines, among which the test harness writes its own.
    fn parse(said: &str) -> Self {
        let mut keys = BTreeMap::new();
        for line in said.lines() {
            let mut words = line.split(' ');
            let (Some(word), Some(id), Some(version)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let (Ok(id), Ok(version)) = (id.parse(), version.parse()) else {
                continue;
            };
            let fate = match word {
                "made" => Fate::Kept { version },
                "erasing" => Fate::Erasing,
                "erased" => Fate::Erased,
                _ => continue,
            };
            keys.insert(id, fate);
        }
        Self { keys }
    }
}

impl Fate {
    async fn check(&self, store: &dyn KeyStore, id: KeyId) {
        let key = store.get(&Address::Key(project(), id)).await.unwrap();
        let alias = Address::Alias(project(), alias_of(id));
        let alias = store.get(&alias).await.unwrap();
        assert_eq!(
            key.is_some(),
            alias.is_some(),
            "{id}: the alias goes with the key"
        );
        match (self, key.map(|read| read.record)) {
            (Self::Kept { version }, Some(Record::Key(key))) => {
                let newest = key.versions.last().unwrap().version.get();
                assert!(newest >= *version, "{id}: {newest}, said {version}");
            }
            (Self::Erasing, _) | (Self::Erased, None) => {}
            (_, found) => panic!("{id}: {found:?}"),
        }
    }
}

/// Checks all that was ever said, and that every key, acknowledged or not, has its alias.
async fn check_all(store: &dyn KeyStore, known: &Known) {
    for (&id, fate) in &known.keys {
        fate.check(store, id).await;
    }
    let mut last = None;
    loop {
        let prefix = Prefix::Keys(project());
        let page = store.list(&prefix, last.as_ref(), 500).await.unwrap();
        for read in &page {
            let Record::Key(key) = &read.record else {
                panic!("{read:?}");
            };
            Fate::Kept { version: 1 }.check(store, key.key_id).await;
        }
        match page.last() {
            Some(read) => last = Some(read.record.address()),
            None => return,
        }
    }
}

fn spawn(path: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(STORE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(9),
        "the writer ended by itself: {status}"
    );
}

fn open(path: &Path) -> Sqlite {
    Sqlite::open(path, codec()).unwrap()
}

fn codec() -> Codec {
    Codec::new(MacKey::new(vec![7; 32]))
}

async fn create(store: &dyn KeyStore, key: &KeyRecord) -> Result<Revision, StoreError> {
    let records = [Record::Key(key.clone()), Record::Alias(alias(key))];
    store.put(records.map(Change::create).into()).await
}

fn key() -> KeyRecord {
    let key_id = KeyId::from_random(random());
    KeyRecord {
        project: project(),
        key_id,
        alias: alias_of(key_id),
        description: "".parse().unwrap(),
        spec: KeySpec::Aes256,
        usage: KeyUsage::EncryptDecrypt,
        state: KeyState::Enabled,
        created: Timestamp(1_700_000_000_000),
        deletion: None,
        versions: vec![version(1)],
    }
}

fn version(number: u32) -> VersionRecord {
    VersionRecord {
        version: KeyVersion::new(number).unwrap(),
        created: Timestamp(1_700_000_000_000),
        sealed: random::<100>().to_vec(),
    }
}

fn alias(key: &KeyRecord) -> AliasRecord {
    AliasRecord {
        project: key.project.clone(),
        alias: key.alias.clone(),
        key_id: key.key_id,
    }
}

fn alias_of(id: KeyId) -> KeyAlias {
    format!("alias/{id}").parse().unwrap()
}

fn address(key: &KeyRecord) -> Address {
    Address::Key(key.project.clone(), key.key_id)
}

fn project() -> ProjectId {
    "p".parse().unwrap()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn random_below(bound: u64) -> u64 {
    u64::from_le_bytes(random()) % bound
}
