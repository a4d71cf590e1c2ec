//! Keys past their deletion date are destroyed, and by no clock that cannot be believed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tempfile::TempDir;

use kmsgate::audit::{Event, Outcome, Sink};
use kmsgate::auth::policy::Policy;
use kmsgate::crypto::Providers;
use kmsgate::crypto::pool::Pool;
use kmsgate::crypto::root::{Root, RootKey};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::domain::algorithm::EncryptionAlgorithm;
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::key::{KeyDescription, KeyId, KeySpec, KeyState, PendingDays, ProjectId};
use kmsgate::domain::request::{Aad, RequestId};
use kmsgate::domain::secret::Plaintext;
use kmsgate::domain::time::{Clock, Timestamp};
use kmsgate::error::{Error, Kind};
use kmsgate::service::keyring::Keyring;
use kmsgate::service::limits::Limits;
use kmsgate::service::{Call, Context, Decrypt, Encrypt, Kms, Listings, NewKey, Sweep};
use kmsgate::store::codec::Codec;
use kmsgate::store::root_keys::RootKeys;
use kmsgate::store::sqlite::Sqlite;
use kmsgate::store::{Address, Change, Record};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

#[tokio::test]
async fn a_key_is_destroyed_when_its_time_has_come_and_not_before() {
    let house = House::new();
    let key = house.create("k").await;
    let sealed = house.encrypt(key).await.unwrap();
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(0));
    house.schedule(key, 7).await.unwrap();
    for hour in 1..7 * 24 {
        house.clock.pass(HOUR);
        assert_eq!(
            house.kms.sweep().await.unwrap(),
            Sweep::Destroyed(0),
            "after {hour} hours"
        );
    }
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
    house.clock.pass(HOUR);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(1));

    assert_eq!(
        house.state(key).await.unwrap_err().kind(),
        Kind::KeyNotFound
    );
    assert_eq!(
        house.encrypt(key).await.unwrap_err().kind(),
        Kind::KeyNotFound
    );
    // Of a ciphertext it is not told that there was a key once.
    assert_eq!(
        house.decrypt(sealed).await.unwrap_err().kind(),
        Kind::InvalidCiphertext
    );
    assert_eq!(house.audit.destroyed.load(Ordering::Relaxed), 1);
    house.create("k").await;
}

#[tokio::test]
async fn nothing_of_a_destroyed_key_is_left_in_the_files() {
    let house = House::new();
    let key = house.create("kept").await;
    let doomed = house.create("doomed").await;
    let blob = house.sealed(doomed).await;
    let kept = house.sealed(key).await;
    house.schedule(doomed, 7).await.unwrap();
    assert!(
        holds(house.dir.path(), &blob),
        "it is looked for where it is"
    );
    house.let_pass(7 * DAY).await;
    let House { kms, dir, .. } = house;
    let gone = |when| {
        for part in blob[33..].windows(16) {
            assert!(!holds(dir.path(), part), "while the server {when}");
        }
    };
    gone("runs");
    drop(kms);
    gone("is down");
    assert!(holds(dir.path(), &kept), "the other key is where it was");
}

#[tokio::test]
async fn a_clock_that_jumps_destroys_nothing_until_it_is_confirmed() {
    let house = House::new();
    let key = house.create("k").await;
    house.kms.sweep().await.unwrap();
    house.schedule(key, 7).await.unwrap();
    let jump = 400 * DAY;
    house.clock.pass(jump);
    for _ in 0..3 {
        assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(jump));
        house.clock.pass(0);
    }
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);

    house.confirm_clock().await;
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(1));
    assert_eq!(
        house.state(key).await.unwrap_err().kind(),
        Kind::KeyNotFound
    );
}

#[tokio::test]
async fn a_jump_is_more_than_a_day() {
    let house = House::new();
    let key = house.create("k").await;
    house.kms.sweep().await.unwrap();
    house.schedule(key, 7).await.unwrap();
    house.clock.pass(DAY);
    assert_eq!(
        house.kms.sweep().await.unwrap(),
        Sweep::Destroyed(0),
        "a day may pass"
    );
    house.clock.pass(DAY + 1);
    assert_eq!(
        house.kms.sweep().await.unwrap(),
        Sweep::Held(DAY + 1),
        "25 hours may not"
    );
    house.clock.pass(-HOUR);
    assert_eq!(
        house.kms.sweep().await.unwrap(),
        Sweep::Destroyed(0),
        "it was set right"
    );
}

#[tokio::test]
async fn a_jump_with_nothing_to_destroy_asks_nobody() {
    let house = House::new();
    house.kms.sweep().await.unwrap();
    house.clock.pass(400 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(0));
    // And the new time is trusted, so that a deletion that is scheduled now is not held up later.
    let key = house.create("k").await;
    house.schedule(key, 7).await.unwrap();
    house.let_pass(7 * DAY).await;
    assert_eq!(
        house.state(key).await.unwrap_err().kind(),
        Kind::KeyNotFound
    );
}

#[tokio::test]
async fn a_restart_does_not_make_a_jump_believable() {
    let house = House::new();
    let key = house.create("k").await;
    house.kms.sweep().await.unwrap();
    house.schedule(key, 7).await.unwrap();
    let house = house.restart();
    house.clock.pass(8 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(8 * DAY));
    let house = house.restart();
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(8 * DAY));
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
}

#[tokio::test]
async fn a_cancelled_deletion_is_off() {
    let house = House::new();
    let key = house.create("k").await;
    house.schedule(key, 7).await.unwrap();
    house.let_pass(6 * DAY).await;
    house.cancel(key).await.unwrap();
    house.let_pass(30 * DAY).await;
    assert_eq!(house.state(key).await.unwrap(), KeyState::Disabled);

    // A deletion that is scheduled anew has a time of its own.
    house.schedule(key, 10).await.unwrap();
    house.let_pass(10 * DAY - HOUR).await;
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
    house.let_pass(HOUR).await;
    assert_eq!(
        house.state(key).await.unwrap_err().kind(),
        Kind::KeyNotFound
    );
}

#[tokio::test]
async fn a_place_in_the_queue_that_was_put_back_destroys_nothing() {
    let house = House::new();
    let key = house.create("k").await;
    house.schedule(key, 7).await.unwrap();
    let place = Address::Deletion(project(), key);
    let old = house.kms.store.get(&place).await.unwrap().unwrap();
    house.cancel(key).await.unwrap();
    // As who can write the store may do with what it had before.
    let put_back = vec![Change::create(old.record)];
    house.kms.store.put(put_back).await.unwrap();
    house.let_pass(8 * DAY).await;
    assert_eq!(house.state(key).await.unwrap(), KeyState::Disabled);
    // Neither when the key is to be destroyed later.
    let found = house.kms.store.get(&place).await.unwrap().unwrap();
    let erased = vec![Change::erase(place.clone(), found.revision)];
    house.kms.store.put(erased).await.unwrap();
    house.schedule(key, 30).await.unwrap();
    let later = house.kms.store.get(&place).await.unwrap().unwrap();
    let put_back = vec![Change::replace(found.record, later.revision)];
    house.kms.store.put(put_back).await.unwrap();
    house.let_pass(8 * DAY).await;
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
}

#[tokio::test]
async fn a_clock_that_goes_backwards_destroys_nothing() {
    let house = House::new();
    let key = house.create("k").await;
    house.kms.sweep().await.unwrap();
    house.schedule(key, 7).await.unwrap();
    house.clock.pass(-30 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(-30 * DAY));
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
    // The way back is a jump like any other, if someone trusted the wrong time.
    house.confirm_clock().await;
    house.clock.pass(30 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(30 * DAY));
}

#[tokio::test]
async fn a_deletion_that_is_scheduled_while_the_clock_is_behind_waits_its_whole_time() {
    let house = House::new();
    let key = house.create("k").await;
    house.kms.sweep().await.unwrap();
    house.clock.pass(-30 * DAY);
    house.schedule(key, 7).await.unwrap();
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(-30 * DAY));
    house.clock.pass(30 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(0));
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
    house.let_pass(7 * DAY).await;
    assert_eq!(
        house.state(key).await.unwrap_err().kind(),
        Kind::KeyNotFound
    );
}

#[tokio::test]
async fn a_clock_that_was_ahead_before_there_was_anything_to_destroy_is_not_forgotten() {
    let house = House::new();
    let key = house.create("k").await;
    house.kms.sweep().await.unwrap();
    house.clock.pass(100 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(0));
    house.clock.pass(-100 * DAY);
    house.schedule(key, 7).await.unwrap();
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(-100 * DAY));
    house.clock.pass(50 * DAY);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Held(-50 * DAY));
    assert_eq!(house.state(key).await.unwrap(), KeyState::PendingDeletion);
}

#[tokio::test]
async fn one_sweep_destroys_every_key_that_is_due() {
    let house = House::new();
    let mut keys = Vec::new();
    for (alias, days) in [("a", 7), ("b", 8), ("c", 7), ("d", 1096)] {
        let key = house.create(alias).await;
        house.schedule(key, days).await.unwrap();
        keys.push(key);
    }
    house.let_pass(7 * DAY - HOUR).await;
    house.clock.pass(HOUR);
    assert_eq!(house.kms.sweep().await.unwrap(), Sweep::Destroyed(2));
    for (key, there) in keys.into_iter().zip([false, true, false, true]) {
        assert_eq!(house.state(key).await.is_ok(), there, "{key}");
    }
}

/// A service on a store in a directory, at a time that the test tells.
struct House {
    kms: Kms,
    clock: Arc<TestClock>,
    audit: Arc<Count>,
    root: Arc<RootKey>,
    dir: TempDir,
}

impl House {
    fn new() -> Self {
        let root = Arc::new(RootKey::generate().unwrap());
        let clock = Arc::new(TestClock(AtomicI64::new(1_500_000_000_000)));
        Self::open(TempDir::new().unwrap(), root, clock)
    }

    fn open(dir: TempDir, root: Arc<RootKey>, clock: Arc<TestClock>) -> Self {
        let store = Sqlite::open(&dir.path().join("keys.db"), Codec::new(root.mac_key())).unwrap();
        let audit = Arc::new(Count::default());
        let provider = RustCrypto::new(root.clone());
        let kms = Kms {
            store: Arc::new(store),
            providers: Arc::new(Providers::from(provider)),
            root_keys: Arc::new(RootKeys::new(Root::id(&*root), Vec::new())),
            backup: None,
            keyring: Arc::new(Keyring::new(100)),
            listings: Listings::default(),
            pool: Arc::new(Pool::new(1, 8).unwrap()),
            policy: Policy::default(),
            limits: Limits::default(),
            audit: Arc::<Count>::clone(&audit),
            clock: Arc::<TestClock>::clone(&clock),
            new_key_id: || Ok(KeyId::from_random(kmsgate::server::random().unwrap())),
        };
        Self {
            kms,
            clock,
            audit,
            root,
            dir,
        }
    }

    /// The same store in another process, as it were.
    fn restart(self) -> Self {
        let Self {
            kms,
            clock,
            root,
            dir,
            ..
        } = self;
        drop(kms);
        Self::open(dir, root, clock)
    }

    /// Lets time pass as it does, with a sweep every hour.
    async fn let_pass(&self, millis: i64) {
        for _ in 0..millis / HOUR {
            self.clock.pass(HOUR);
            self.kms.sweep().await.unwrap();
        }
    }

    fn call(&self, action: Action) -> Call<'_> {
        let context = Arc::new(Context {
            request_id: RequestId::new(1),
            caller: Arc::new(Caller {
                name: "operator".into(),
                project: project(),
                roles: Arc::default(),
                actions: Actions::ALL,
            }),
            told: AtomicBool::new(false),
        });
        self.kms.begin(Some(&context), action).unwrap()
    }

    async fn create(&self, alias: &str) -> KeyId {
        let new = NewKey {
            alias: alias.parse().unwrap(),
            description: KeyDescription::default(),
            spec: KeySpec::Aes256,
            usage: None,
            key_id: None,
        };
        let mut call = self.call(Action::CreateKey);
        let made = self.kms.create(&mut call, new).await;
        call.end(made).unwrap().key_id
    }

    async fn schedule(&self, key: KeyId, days: i32) -> Result<(), Error> {
        let call = self.call(Action::ScheduleKeyDeletion);
        let scheduled = self
            .kms
            .schedule_deletion(&call, key, PendingDays::new(days).unwrap())
            .await;
        call.end(scheduled).map(|_| ())
    }

    async fn cancel(&self, key: KeyId) -> Result<(), Error> {
        let call = self.call(Action::CancelKeyDeletion);
        let cancelled = self.kms.cancel_deletion(&call, key).await;
        call.end(cancelled).map(|_| ())
    }

    async fn state(&self, key: KeyId) -> Result<KeyState, Error> {
        let call = self.call(Action::DescribeKey);
        let described = self.kms.describe(&call, key).await;
        call.end(described).map(|key| key.state)
    }

    async fn confirm_clock(&self) {
        let call = self.call(Action::ConfirmClock);
        let confirmed = self.kms.confirm_clock(&call).await;
        call.end(confirmed).unwrap();
    }

    async fn encrypt(&self, key_id: KeyId) -> Result<Vec<u8>, Error> {
        let ask = Encrypt {
            key_id,
            plaintext: Plaintext::new(b"x".to_vec()),
            algorithm: EncryptionAlgorithm::SymmetricDefault,
            aad: Aad::default(),
        };
        let call = self.call(Action::EncryptData);
        let encrypted = self.kms.encrypt(&call, ask).await;
        call.end(encrypted).map(|answer| answer.ciphertext)
    }

    async fn decrypt(&self, ciphertext: Vec<u8>) -> Result<(), Error> {
        let ask = Decrypt {
            key_id: None,
            ciphertext,
            algorithm: EncryptionAlgorithm::SymmetricDefault,
            aad: Aad::default(),
        };
        let mut call = self.call(Action::DecryptData);
        let decrypted = self.kms.decrypt(&mut call, ask).await;
        call.end(decrypted).map(|_| ())
    }

    /// The sealed material of a key, as it is stored.
    async fn sealed(&self, key: KeyId) -> Vec<u8> {
        let address = Address::Key(project(), key);
        let found = self.kms.store.get(&address).await.unwrap().unwrap();
        let Record::Key(key) = found.record else {
            panic!("not a key")
        };
        key.versions[0].sealed.clone()
    }
}

fn project() -> ProjectId {
    "53d1aefc533f4ce9a59c26b01667cbcf".parse().unwrap()
}

/// Whether any file of a directory holds the bytes.
fn holds(dir: &Path, bytes: &[u8]) -> bool {
    let files = std::fs::read_dir(dir).unwrap();
    let mut contents = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    contents.any(|content| content.windows(bytes.len()).any(|part| part == bytes))
}

/// A clock that stands still until the test moves it.
#[derive(Debug)]
struct TestClock(AtomicI64);

impl TestClock {
    fn pass(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// Counts the keys of the project that the audit was told are destroyed.
#[derive(Debug, Default)]
struct Count {
    destroyed: AtomicI64,
}

impl Sink for Count {
    fn record(&self, event: &Event<'_>) {
        if event.outcome == Outcome::Destroyed && event.project == Some(&project()) {
            self.destroyed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
