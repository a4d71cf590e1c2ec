//! The load: callers of every operation at every replica, who note what they are told.
//!
//! A few keys live at a time. Each is worked with at every replica, and goes through random changes
//! and looks at random replicas, two of them at once now and then. Then its history is checked, and
//! another key takes its place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use kmsgate::error::Kind;
use kmsgate::grpc::pb;
use kmsgate::grpc::pb::crypto_service_client::CryptoServiceClient;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;
use kmsgate::grpc::pb::key_service_client::KeyServiceClient;
use kmsgate::grpc::pb::operator_service_client::OperatorServiceClient;

use crate::checker::{Act, Key, Life, Moment, Seen};
use crate::history::{Book, Calls, Sealed, Spec, Track};
use crate::processes::{Replica, TOKEN};
use crate::random::Random;

/// How many keys live at a time.
const KEYS: usize = 6;

/// What is asked for, by the names under which it is counted.
const OPERATIONS: [&str; 15] = [
    "cancel deletion",
    "confirm clock",
    "create",
    "decrypt",
    "describe",
    "describe anew",
    "disable",
    "enable",
    "encrypt",
    "list",
    "public key",
    "rename",
    "rotate",
    "rotate root key",
    "schedule deletion",
];

/// The same where the store is a file.
const OF_A_FILE: &str = "back up";

/// How long a caller waits for an answer.
const LIMIT: Duration = Duration::from_secs(3);

/// How long those wait who ask again and again.
const SOON: Duration = Duration::from_secs(1);

/// How long callers wait who wait as long as it takes.
const LONG: Duration = Duration::from_secs(20);

/// Every operation that the load asks for.
pub(crate) fn operations(sqlite: bool) -> impl Iterator<Item = &'static str> {
    OPERATIONS.into_iter().chain(sqlite.then_some(OF_A_FILE))
}

/// The callers' side of every replica.
#[derive(Clone, Debug)]
pub(crate) struct Callers {
    clients: Vec<Client>,
    pub(crate) book: Arc<Book>,
    /// The last number that a name or a description got.
    numbers: Arc<AtomicU64>,
    /// How long they wait for an answer.
    limit: Duration,
}

#[derive(Clone, Debug)]
struct Client {
    crypto: CryptoServiceClient<Channel>,
    keys: KeyServiceClient<Channel>,
    operator: OperatorServiceClient<Channel>,
    token: AsciiMetadataValue,
}

/// How a call ended.
enum Outcome<A> {
    Done(A),
    /// With a row that says why.
    Refused(Kind),
    /// Nobody knows whether what was asked for was done.
    Unknown,
}

/// A call that ended, and when it was sent and ended.
struct Ended<A> {
    when: (Moment, Moment),
    outcome: Outcome<A>,
}

/// What a caller knows of a change afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Done,
    Refused,
    Nothing,
}

/// What came of making a key.
enum Created {
    Key(Arc<Track>),
    /// Another key has the alias.
    Taken,
    Unknown,
}

/// What callers do to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Enable,
    Disable,
    Schedule,
    Cancel,
    Rotate,
    /// To the name of this number, which no key has had.
    Rename(u64),
    /// To the description of this number.
    Redescribe(u64),
}

impl Callers {
    pub(crate) fn new(replicas: &[Replica]) -> Self {
        let client = |replica: &Replica| {
            let endpoint = Endpoint::from_shared(format!("http://{}", replica.proxy)).unwrap();
            // A connection that hears nothing is given up, as clients do who have been told to.
            let channel = endpoint
                .connect_timeout(Duration::from_secs(1))
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true)
                .connect_lazy();
            Client {
                crypto: CryptoServiceClient::new(channel.clone()),
                keys: KeyServiceClient::new(channel.clone()),
                operator: OperatorServiceClient::new(channel),
                token: TOKEN.parse().unwrap(),
            }
        };
        Self {
            clients: replicas.iter().map(client).collect(),
            book: Arc::new(Book::new()),
            numbers: Arc::default(),
            limit: LIMIT,
        }
    }

    /// The same, who ask again and again, and do not wait long.
    pub(crate) fn impatient(&self) -> Self {
        self.who_wait(SOON)
    }

    /// The same, who wait as long as it takes.
    pub(crate) fn patient(&self) -> Self {
        self.who_wait(LONG)
    }

    fn who_wait(&self, limit: Duration) -> Self {
        let same = self.clone();
        Self { limit, ..same }
    }

    pub(crate) const fn replicas(&self) -> usize {
        self.clients.len()
    }

    /// Makes a key, if the replica does.
    pub(crate) async fn create(&self, replica: usize, made_of: Spec) -> Option<Arc<Track>> {
        match self.create_as(replica, made_of, self.number()).await {
            Created::Key(key) => Some(key),
            Created::Taken => {
                self.wrong(replica, "create: a new alias is taken");
                None
            }
            Created::Unknown => None,
        }
    }

    /// Makes a key at two replicas at once under one alias, which one of them may have.
    async fn create_twice(&self, replicas: [usize; 2], made_of: Spec) -> Option<Arc<Track>> {
        let alias = self.number();
        let [one, other] = replicas;
        let both = tokio::join!(
            self.create_as(one, made_of, alias),
            self.create_as(other, made_of, alias),
        );
        match both {
            (Created::Key(_), Created::Key(_)) => {
                self.wrong(
                    one,
                    &format!("create: replica {other} made {} too", name(alias)),
                );
                None
            }
            (Created::Taken, Created::Taken) => {
                self.wrong(
                    one,
                    &format!("create: neither it nor {other} made {}", name(alias)),
                );
                None
            }
            (Created::Key(key), _) | (_, Created::Key(key)) => Some(key),
            (Created::Taken | Created::Unknown, Created::Taken | Created::Unknown) => None,
        }
    }

    async fn create_as(&self, replica: usize, made_of: Spec, alias: u64) -> Created {
        let message = pb::CreateKeyRequest {
            key_alias: name(alias),
            key_spec: match made_of {
                Spec::Aes256 => pb::KeySpec::Aes256,
                Spec::Rsa2048 => pb::KeySpec::Rsa2048,
                Spec::Sm2 => pb::KeySpec::Sm2,
            }
            .into(),
            key_usage: pb::KeyUsage::EncryptDecrypt.into(),
            ..pb::CreateKeyRequest::default()
        };
        let mut client = self.clients[replica].clone();
        let call = async move |request| client.keys.create_key(request).await;
        let ended = self.ask("create", replica, message, call).await;
        match ended.outcome {
            Outcome::Done(answer) => {
                let id = answer.key_info.unwrap().key_id;
                Created::Key(self.book.add(&id, made_of, alias, ended.when))
            }
            Outcome::Refused(Kind::DuplicateAlias) => Created::Taken,
            Outcome::Refused(kind) => {
                self.wrong(replica, &format!("create: {kind:?}"));
                Created::Unknown
            }
            Outcome::Unknown => Created::Unknown,
        }
    }

    /// A number that nothing has.
    fn number(&self) -> u64 {
        1 + self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// What a replica's wall clock says, in milliseconds since 1970, if it tells.
    pub(crate) async fn wall_clock(&self, replica: usize) -> Option<i64> {
        let message = pb::ConfirmClockRequest {};
        let mut client = self.clients[replica].clone();
        let call = async move |request| client.keys.confirm_clock(request).await;
        let ended = self.ask("confirm clock", replica, message, call).await;
        match ended.outcome {
            Outcome::Done(answer) => Some(answer.now),
            Outcome::Refused(kind) => {
                self.wrong(replica, &format!("confirm clock: {kind:?}"));
                None
            }
            Outcome::Unknown => None,
        }
    }

    /// Encrypts. Tells the key's version that did, if that succeeded.
    pub(crate) async fn encrypt(&self, replica: usize, key: &Track, plain: Vec<u8>) -> Option<u32> {
        let message = pb::EncryptDataRequest {
            key_id: key.id.clone(),
            plaintext: Some(Plaintext::PlainBytes(plain.clone())),
            encryption_algorithm: algorithm(key.made_of).into(),
            ..pb::EncryptDataRequest::default()
        };
        let mut client = self.clients[replica].clone();
        let ended = self
            .ask("encrypt", replica, message, async move |request| {
                client.crypto.encrypt_data(request).await
            })
            .await;
        match ended.outcome {
            Outcome::Done(answer) => {
                let cipher_text = answer.cipher_text;
                let version = match key.made_of {
                    // docs/ciphertext.md: the key's version, in the head of the frame.
                    Spec::Aes256 => u32::from_be_bytes(cipher_text[4..8].try_into().unwrap()),
                    Spec::Rsa2048 | Spec::Sm2 => 1,
                };
                key.worked(ended.when, Seen::EncryptsWith(version));
                key.keep(Sealed {
                    plain,
                    cipher_text,
                    version,
                    made: ended.when,
                });
                Some(version)
            }
            Outcome::Refused(kind) => {
                self.refused(replica, "encrypt", key, ended.when, kind);
                None
            }
            Outcome::Unknown => None,
        }
    }

    /// Decrypts. Tells whether that succeeded.
    pub(crate) async fn decrypt(&self, replica: usize, key: &Track, sealed: &Sealed) -> bool {
        let asymmetric = key.made_of != Spec::Aes256;
        let message = pb::DecryptDataRequest {
            key_id: if asymmetric {
                key.id.clone()
            } else {
                String::new()
            },
            cipher_text: sealed.cipher_text.clone(),
            encryption_algorithm: algorithm(key.made_of).into(),
            ..pb::DecryptDataRequest::default()
        };
        let mut client = self.clients[replica].clone();
        let ended = self
            .ask("decrypt", replica, message, async move |request| {
                client.crypto.decrypt_data(request).await
            })
            .await;
        match ended.outcome {
            Outcome::Done(answer) => {
                key.worked(ended.when, Seen::Has(sealed.version));
                let right = answer.plain_bytes == sealed.plain && answer.key_id == key.id;
                if !right {
                    self.wrong(
                        replica,
                        &format!("decrypt: another plaintext of {}", key.id),
                    );
                }
                right
            }
            // A ciphertext names its key, and who may not know that there is none is told no more.
            Outcome::Refused(Kind::InvalidCiphertext) if !asymmetric => {
                if !key.gone(sealed, &self.book.restorations()) {
                    key.saw(ended.when, Seen::Lacks(sealed.version));
                }
                false
            }
            Outcome::Refused(kind) => {
                self.refused(replica, "decrypt", key, ended.when, kind);
                false
            }
            Outcome::Unknown => false,
        }
    }

    /// Changes a key.
    pub(crate) async fn change(&self, replica: usize, key: &Track, change: Change) -> Told {
        let mut client = self.clients[replica].clone();
        let key_id = key.id.clone();
        // What was answered, as an act.
        let ended: Ended<Act> = match change {
            Change::Enable => {
                let message = pb::EnableKeyRequest {
                    key_id,
                    ..pb::EnableKeyRequest::default()
                };
                let call = async move |request| client.keys.enable_key(request).await;
                let ended = self.ask("enable", replica, message, call).await;
                ended.map(|_| Act::Enable)
            }
            Change::Disable => {
                let message = pb::DisableKeyRequest {
                    key_id,
                    ..pb::DisableKeyRequest::default()
                };
                let call = async move |request| client.keys.disable_key(request).await;
                let ended = self.ask("disable", replica, message, call).await;
                ended.map(|_| Act::Disable)
            }
            Change::Schedule => {
                let message = pb::ScheduleKeyDeletionRequest {
                    key_id,
                    pending_days: Some(7),
                    ..pb::ScheduleKeyDeletionRequest::default()
                };
                let call = async move |request| client.keys.schedule_key_deletion(request).await;
                let ended = self.ask("schedule deletion", replica, message, call).await;
                ended.map(|_| Act::Schedule)
            }
            Change::Cancel => {
                let message = pb::CancelKeyDeletionRequest {
                    key_id,
                    ..pb::CancelKeyDeletionRequest::default()
                };
                let call = async move |request| client.keys.cancel_key_deletion(request).await;
                let ended = self.ask("cancel deletion", replica, message, call).await;
                ended.map(|_| Act::Cancel)
            }
            Change::Rotate => {
                let message = pb::RotateOnDemandRequest {
                    key_id,
                    ..pb::RotateOnDemandRequest::default()
                };
                let call = async move |request| client.keys.rotate_on_demand(request).await;
                let ended = self.ask("rotate", replica, message, call).await;
                ended.map(|answer| Act::Rotate(Some(answer.key_version)))
            }
            Change::Rename(alias) => {
                let message = pb::UpdateKeyAliasRequest {
                    key_id,
                    key_alias: name(alias),
                    ..pb::UpdateKeyAliasRequest::default()
                };
                let call = async move |request| client.keys.update_key_alias(request).await;
                let ended = self.ask("rename", replica, message, call).await;
                ended.map(|_| Act::Rename(alias))
            }
            Change::Redescribe(description) => {
                let message = pb::UpdateKeyDescriptionRequest {
                    key_id,
                    key_description: description.to_string(),
                    ..pb::UpdateKeyDescriptionRequest::default()
                };
                let call = async move |request| client.keys.update_key_description(request).await;
                let ended = self.ask("describe anew", replica, message, call).await;
                ended.map(|_| Act::Redescribe(description))
            }
        };
        match ended.outcome {
            Outcome::Done(act) => {
                key.did(ended.when, act);
                Told::Done
            }
            Outcome::Refused(kind) => {
                let name = format!("{change:?}");
                let seen = match (change, kind) {
                    (Change::Enable, Kind::KeyNotDisabled) => Seen::IsNot(Life::Disabled),
                    (Change::Disable, Kind::KeyNotEnabled) => Seen::IsNot(Life::Enabled),
                    (Change::Schedule, Kind::AlreadyPendingDeletion) => Seen::Is(Life::Pending),
                    (Change::Cancel, Kind::NotPendingDeletion) => Seen::IsNot(Life::Pending),
                    _ => {
                        self.refused(replica, &name, key, ended.when, kind);
                        return Told::Refused;
                    }
                };
                key.saw(ended.when, seen);
                Told::Refused
            }
            Outcome::Unknown => {
                let act = match change {
                    Change::Enable => Act::Enable,
                    Change::Disable => Act::Disable,
                    Change::Schedule => Act::Schedule,
                    Change::Cancel => Act::Cancel,
                    Change::Rotate => Act::Rotate(None),
                    Change::Rename(alias) => Act::Rename(alias),
                    Change::Redescribe(description) => Act::Redescribe(description),
                };
                key.may_have(ended.when.0, act);
                Told::Nothing
            }
        }
    }

    /// Asks what a key is.
    pub(crate) async fn describe(&self, replica: usize, key: &Track) -> Option<Key> {
        let message = pb::DescribeKeyRequest {
            key_id: key.id.clone(),
            ..pb::DescribeKeyRequest::default()
        };
        let mut client = self.clients[replica].clone();
        let call = async move |request| client.keys.describe_key(request).await;
        let ended = self.ask("describe", replica, message, call).await;
        match ended.outcome {
            Outcome::Done(answer) => {
                let seen = told(&answer.key_info.unwrap());
                key.saw(ended.when, Seen::Exactly(seen));
                Some(seen)
            }
            Outcome::Refused(Kind::KeyNotFound) => {
                key.saw(ended.when, Seen::Is(Life::Absent));
                Some(Key::NONE)
            }
            Outcome::Refused(kind) => {
                self.wrong(replica, &format!("describe: {kind:?}"));
                None
            }
            Outcome::Unknown => None,
        }
    }

    /// Lists a page of keys.
    async fn list(&self, replica: usize, marker: i32) {
        let message = pb::ListKeysRequest {
            limit: Some(50),
            marker,
            ..pb::ListKeysRequest::default()
        };
        let mut client = self.clients[replica].clone();
        let call = async move |request| client.keys.list_keys(request).await;
        let ended = self.ask("list", replica, message, call).await;
        match ended.outcome {
            Outcome::Done(page) => {
                for details in &page.key_details {
                    if let Some(key) = self.book.key(&details.key_id) {
                        key.saw(ended.when, Seen::Exactly(told(details)));
                    }
                }
            }
            Outcome::Refused(kind) => self.wrong(replica, &format!("list: {kind:?}")),
            Outcome::Unknown => {}
        }
    }

    async fn public_key(&self, replica: usize, key: &Track) {
        let message = pb::GetPublicKeyRequest {
            key_id: key.id.clone(),
            ..pb::GetPublicKeyRequest::default()
        };
        let mut client = self.clients[replica].clone();
        let call = async move |request| client.keys.get_public_key(request).await;
        let ended = self.ask("public key", replica, message, call).await;
        match ended.outcome {
            Outcome::Done(answer) => {
                if key.made_of == Spec::Aes256 || !key.same_public_key(&answer.public_key) {
                    self.wrong(replica, &format!("another public key of {}", key.id));
                }
            }
            Outcome::Refused(Kind::SymmetricKey) if key.made_of == Spec::Aes256 => {}
            Outcome::Refused(kind) => self.refused(replica, "public key", key, ended.when, kind),
            Outcome::Unknown => {}
        }
    }

    /// Puts every record under the replica's first root key.
    async fn rotate_root_key(&self, replica: usize) {
        let mut client = self.clients[replica].operator.clone();
        let call = async move |request| {
            let mut told = client.rotate_root_key(request).await?.into_inner();
            let mut last = pb::RotateRootKeyResponse::default();
            while let Some(next) = told.message().await? {
                last = next;
            }
            Ok(Response::new(last))
        };
        let message = pb::RotateRootKeyRequest {};
        let ended = self.ask("rotate root key", replica, message, call).await;
        match ended.outcome {
            Outcome::Done(last) if last.done < last.total => {
                self.wrong(replica, &format!("a rotation ended with {last:?}"));
            }
            Outcome::Refused(kind) => {
                self.wrong(replica, &format!("a rotation is refused: {kind:?}"));
            }
            Outcome::Done(_) | Outcome::Unknown => {}
        }
    }

    /// Copies the store and throws the copy away.
    async fn back_up(&self, replica: usize) {
        let mut client = self.clients[replica].operator.clone();
        let call = async move |request| {
            let mut parts = client.back_up_store(request).await?.into_inner();
            let (mut size, mut had) = (0, 0);
            while let Some(part) = parts.message().await? {
                had += part.data.len() as u64;
                size = part.size;
            }
            Ok(Response::new((size, had)))
        };
        let message = pb::BackUpStoreRequest {};
        match self.ask(OF_A_FILE, replica, message, call).await.outcome {
            Outcome::Done((size, had)) if size == had && size > 0 => {}
            Outcome::Done((size, had)) => {
                self.wrong(replica, &format!("a copy of {size} bytes had {had}"));
            }
            Outcome::Refused(kind) => self.wrong(replica, &format!("a copy is refused: {kind:?}")),
            Outcome::Unknown => {}
        }
    }

    /// Notes a refusal for the state of a key, which the store must stand behind. Any other is wrong.
    fn refused(&self, replica: usize, what: &str, key: &Track, when: (Moment, Moment), kind: Kind) {
        let life = match kind {
            Kind::KeyDisabled => Life::Disabled,
            Kind::KeyPendingDeletion => Life::Pending,
            Kind::KeyNotFound => Life::Absent,
            _ => return self.wrong(replica, &format!("{what}: {kind:?} for {}", key.id)),
        };
        key.saw(when, Seen::Is(life));
    }

    fn wrong(&self, replica: usize, what: &str) {
        self.book.wrong(&format!("replica {replica}: {what}"));
    }

    async fn ask<M, A>(
        &self,
        operation: &'static str,
        replica: usize,
        message: M,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<A>, Status>,
    ) -> Ended<A> {
        let mut request = Request::new(message);
        let token = self.clients[replica].token.clone();
        request.metadata_mut().insert("x-auth-token", token);
        request.set_timeout(self.limit);
        let from = self.book.now();
        let answer = tokio::time::timeout(self.limit, call(request)).await;
        let when = (from, self.book.now());
        let count = |how: fn(&mut Calls) -> &mut u64| self.book.count(operation, how);
        let outcome = match answer {
            Ok(Ok(answer)) => {
                count(|calls| &mut calls.done);
                Outcome::Done(answer.into_inner())
            }
            Ok(Err(status)) => match row(&status) {
                Some(Kind::Unavailable) => {
                    count(|calls| &mut calls.unavailable);
                    Outcome::Unknown
                }
                None | Some(Kind::DeadlineExceeded) => {
                    count(|calls| &mut calls.lost);
                    if !transport(&status) {
                        self.wrong(replica, &format!("{operation}: {status:?}"));
                    }
                    Outcome::Unknown
                }
                Some(kind) => {
                    count(|calls| &mut calls.refused);
                    Outcome::Refused(kind)
                }
            },
            Err(_) => {
                count(|calls| &mut calls.lost);
                Outcome::Unknown
            }
        };
        Ended { when, outcome }
    }
}

impl<A> Ended<A> {
    fn map<B>(self, with: impl FnOnce(A) -> B) -> Ended<B> {
        let outcome = match self.outcome {
            Outcome::Done(answer) => Outcome::Done(with(answer)),
            Outcome::Refused(kind) => Outcome::Refused(kind),
            Outcome::Unknown => Outcome::Unknown,
        };
        Ended {
            when: self.when,
            outcome,
        }
    }
}

/// The row of the catalogue, if it is an answer of kmsgate's.
fn row(status: &Status) -> Option<Kind> {
    let info = status.get_details_error_info()?;
    Kind::from_name(&info.reason)
}

/// Whether this is what a client says by itself of a connection that is gone, or of time that is over.
fn transport(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

const fn algorithm(spec: Spec) -> pb::EncryptionAlgorithm {
    match spec {
        Spec::Aes256 => pb::EncryptionAlgorithm::SymmetricDefault,
        Spec::Rsa2048 => pb::EncryptionAlgorithm::RsaesOaepSha256,
        Spec::Sm2 => pb::EncryptionAlgorithm::Sm2Encrypt,
    }
}

fn told(details: &pb::KeyDetails) -> Key {
    let life = match details.key_state() {
        pb::KeyState::Enabled => Life::Enabled,
        pb::KeyState::Disabled => Life::Disabled,
        pb::KeyState::PendingDeletion => Life::Pending,
        other => panic!("no key here is {other:?}"),
    };
    let number = |text: &str| text.trim_start_matches(NAME).parse();
    let description = match &*details.key_description {
        "" => Ok(0),
        text => number(text),
    };
    Key {
        life,
        version: details.key_version,
        alias: number(&details.key_alias).unwrap(),
        description: description.unwrap(),
    }
}

/// What every name begins with.
const NAME: &str = "key-";

/// The name of this number.
fn name(alias: u64) -> String {
    format!("{NAME}{alias}")
}

/// One key that is never changed, asked for at every replica all the time: how long does a replica not
/// answer?
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Of each replica: encryption, and a description, which is read from the store.
    beats: Vec<[Mutex<Beat>; 2]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Beat {
    last: Moment,
    longest: Moment,
}

impl Pulse {
    pub(crate) fn start(callers: &Callers, key: &Arc<Track>) -> Arc<Self> {
        let now = callers.book.now();
        let beat = |_| {
            let (last, longest) = (now, 0);
            [0, 1].map(|_| Mutex::new(Beat { last, longest }))
        };
        let pulse = Arc::new(Self {
            beats: (0..callers.replicas()).map(beat).collect(),
        });
        for replica in 0..callers.replicas() {
            for of in 0..2 {
                let (callers, key) = (callers.impatient(), Arc::clone(key));
                let pulse = Arc::downgrade(&pulse);
                tokio::spawn(async move {
                    loop {
                        let answered = match of {
                            0 => callers.encrypt(replica, &key, vec![1]).await.is_some(),
                            _ => callers.describe(replica, &key).await.is_some(),
                        };
                        let Some(pulse) = pulse.upgrade() else {
                            return;
                        };
                        if answered {
                            pulse.beats[replica][of]
                                .lock()
                                .unwrap()
                                .beat(callers.book.now());
                        }
                        drop(pulse);
                        tokio::time::sleep(Duration::from_millis(30)).await;
                    }
                });
            }
        }
        pulse
    }

    /// Waits until everyone has been heard again.
    pub(crate) async fn heard(&self, now: Moment) {
        for beat in self.beats.iter().flatten() {
            while beat.lock().unwrap().last < now {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Forgets how long anything took until now.
    pub(crate) fn begin(&self) {
        for beat in self.beats.iter().flatten() {
            beat.lock().unwrap().longest = 0;
        }
    }

    /// How long one of the replicas did not encrypt, and how long one did not describe.
    pub(crate) fn longest(&self) -> [Duration; 2] {
        [0, 1].map(|of| {
            let beats = self.beats.iter();
            let longest = beats.map(|beats| beats[of].lock().unwrap().longest);
            Duration::from_micros(longest.max().unwrap_or_default())
        })
    }
}

impl Beat {
    fn beat(&mut self, now: Moment) {
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

/// The load, while it goes on.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    lives: Vec<JoinHandle<usize>>,
    operator: JoinHandle<()>,
}

impl Load {
    pub(crate) fn start(callers: &Callers, sqlite: bool, random: &mut Random) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        // Some of each kind at once, whatever comes later.
        let first = [Spec::Rsa2048, Spec::Sm2, Spec::Aes256];
        let operator = operate(callers.patient(), sqlite, random.fork(), Arc::clone(&stop));
        let lives = first.iter().cycle().take(KEYS).map(|&first| {
            let lives = lives(callers.clone(), first, random.fork(), Arc::clone(&stop));
            tokio::spawn(lives)
        });
        Self {
            lives: lives.collect(),
            operator: tokio::spawn(operator),
            stop,
        }
    }

    /// Lets the keys that live come to their end, and tells how many there were.
    pub(crate) async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut keys = 0;
        for life in self.lives {
            keys += life.await.unwrap();
        }
        self.operator.await.unwrap();
        keys
    }
}

/// Replaces the root key at one replica after the other, and copies a store that is a file.
async fn operate(callers: Callers, sqlite: bool, mut random: Random, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let replica = random.below(callers.replicas());
        callers.rotate_root_key(replica).await;
        if sqlite {
            callers.back_up(replica).await;
        }
        tokio::time::sleep(random.millis(500..3000)).await;
    }
}

/// One key after another.
async fn lives(callers: Callers, first: Spec, mut random: Random, stop: Arc<AtomicBool>) -> usize {
    let mut made_of = first;
    let mut keys = 0;
    while !stop.load(Ordering::Relaxed) {
        let replica = random.below(callers.replicas());
        let other = random.below(callers.replicas());
        let made = if random.percent(25) {
            callers.create_twice([replica, other], made_of).await
        } else {
            callers.create(replica, made_of).await
        };
        let Some(key) = made else {
            tokio::time::sleep(random.millis(50..200)).await;
            continue;
        };
        keys += 1;
        live(&callers, &key, &mut random, &stop).await;
        if let Err(wrong) = key.check(&callers.book.restorations()) {
            callers.book.wrong(&wrong);
        }
        made_of = match random.below(10) {
            0 => Spec::Rsa2048,
            1 | 2 => Spec::Sm2,
            _ => Spec::Aes256,
        };
    }
    keys
}

/// The life of a key, until it has seen enough or the store has lost it.
async fn live(callers: &Callers, key: &Arc<Track>, random: &mut Random, stop: &AtomicBool) {
    /// So that a history stays short enough to read.
    const STEPS: usize = 40;
    /// Each call of unknown outcome allows more.
    const UNKNOWN: usize = 15;
    if key.made_of != Spec::Aes256 {
        callers
            .public_key(random.below(callers.replicas()), key)
            .await;
    }
    let ended = Arc::new(AtomicBool::new(false));
    let works = (0..callers.replicas()).map(|replica| {
        let (callers, key) = (callers.clone(), Arc::clone(key));
        let (random, ended) = (random.fork(), Arc::clone(&ended));
        tokio::spawn(async move { work(&callers, replica, &key, random, &ended).await })
    });
    let works: Vec<_> = works.collect();
    let mut unknown = 0;
    for _ in 0..STEPS {
        if stop.load(Ordering::Relaxed) || unknown > UNKNOWN {
            break;
        }
        let mut other = random.fork();
        let (one, two) = if random.percent(20) {
            tokio::join!(step(callers, key, random), step(callers, key, &mut other))
        } else {
            (step(callers, key, random).await, false)
        };
        unknown += usize::from(one) + usize::from(two);
        // Long enough, now and then, that what a replica knows becomes too old.
        let pause = match random.below(10) {
            0 => random.millis(3200..4500),
            _ => random.millis(20..600),
        };
        tokio::time::sleep(pause).await;
    }
    enable(callers, key, random, Duration::from_secs(20)).await;
    ended.store(true, Ordering::Relaxed);
    for work in works {
        work.await.unwrap();
    }
}

/// Does one thing with a key at some replica. Tells whether it may have changed it, and nobody knows.
async fn step(callers: &Callers, key: &Track, random: &mut Random) -> bool {
    let replica = random.below(callers.replicas());
    let change = match random.below(100) {
        0..30 => Change::Enable,
        30..44 => Change::Disable,
        44..62 if key.made_of == Spec::Aes256 => Change::Rotate,
        62..67 => Change::Schedule,
        67..76 => Change::Cancel,
        76..79 => Change::Rename(callers.number()),
        79..81 => Change::Redescribe(callers.number()),
        81..86 => {
            let marker = i32::try_from(random.below(100)).unwrap();
            callers.list(replica, marker).await;
            return false;
        }
        86..90 => {
            callers.public_key(replica, key).await;
            return false;
        }
        _ => {
            callers.describe(replica, key).await;
            return false;
        }
    };
    let told = callers.change(replica, key, change).await;
    if told == Told::Done {
        at_once(callers, replica, key, change, random).await;
    }
    told == Told::Nothing
}

/// Asks every replica for what has just become possible: nobody may be refused because it has not been
/// heard there.
async fn at_once(
    callers: &Callers,
    replica: usize,
    key: &Track,
    change: Change,
    random: &mut Random,
) {
    let mut replicas: Vec<_> = (0..callers.replicas()).collect();
    random.shuffle(&mut replicas);
    match change {
        Change::Enable => {
            for replica in replicas {
                callers.encrypt(replica, key, b"enabled".to_vec()).await;
            }
        }
        Change::Rotate => {
            callers.encrypt(replica, key, b"rotated".to_vec()).await;
            let sealed = key.sealed(&callers.book.restorations());
            let Some(newest) = sealed.iter().max_by_key(|sealed| sealed.version) else {
                return;
            };
            for replica in replicas {
                callers.decrypt(replica, key, newest).await;
            }
        }
        Change::Rename(_) | Change::Redescribe(_) => {
            for replica in replicas {
                callers.describe(replica, key).await;
            }
        }
        Change::Disable | Change::Schedule | Change::Cancel => {}
    }
}

/// Encrypts and decrypts at one replica until the key's life has ended.
async fn work(
    callers: &Callers,
    replica: usize,
    key: &Track,
    mut random: Random,
    ended: &AtomicBool,
) {
    while !ended.load(Ordering::Relaxed) {
        let sealed = key.sealed(&callers.book.restorations());
        if sealed.is_empty() || random.percent(50) {
            let length = 1 + random.below(150);
            let plain = (0..length).map(|_| random.next().to_le_bytes()[0]);
            callers.encrypt(replica, key, plain.collect()).await;
        } else {
            callers.decrypt(replica, key, random.pick(&sealed)).await;
        }
        let pause = match key.made_of {
            Spec::Aes256 => random.millis(20..80),
            Spec::Rsa2048 | Spec::Sm2 => random.millis(50..200),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Sees to it that a key is enabled, unless there is none or the time is over. Tells whether it is.
pub(crate) async fn enable(
    callers: &Callers,
    key: &Track,
    random: &mut Random,
    time: Duration,
) -> bool {
    let over = callers.book.now() + crate::history::micros(time);
    while callers.book.now() < over {
        let replica = random.below(callers.replicas());
        match callers.describe(replica, key).await.map(|key| key.life) {
            Some(Life::Enabled) => return true,
            Some(Life::Absent) => {
                // Long enough to see that no replica goes on with what it knew.
                tokio::time::sleep(Duration::from_secs(4)).await;
                return false;
            }
            Some(Life::Disabled) => {
                callers.change(replica, key, Change::Enable).await;
            }
            Some(Life::Pending) => {
                callers.change(replica, key, Change::Cancel).await;
            }
            None => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}
