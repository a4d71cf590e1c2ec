//! A change whose caller goes away meanwhile is made whole or not at all.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use kmsgate::audit::{Event, Sink};
use kmsgate::auth::policy::Policy;
use kmsgate::crypto::Providers;
use kmsgate::crypto::pool::Pool;
use kmsgate::crypto::root::{Root, RootKey};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::domain::algorithm::EncryptionAlgorithm;
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::key::{KeyDescription, KeyId, KeySpec};
use kmsgate::domain::request::{Aad, RequestId};
use kmsgate::domain::secret::Plaintext;
use kmsgate::domain::time::{Clock, Timestamp};
use kmsgate::error::{Error, Kind};
use kmsgate::service::keyring::Keyring;
use kmsgate::service::limits::Limits;
use kmsgate::service::{Call, Context, Encrypt, Kms, Listings, NewKey};
use kmsgate::store::codec::Codec;
use kmsgate::store::memory::Memory;
use kmsgate::store::root_keys::RootKeys;
use kmsgate::store::{Address, Change, KeyStore, Prefix, Revision, StoreError, Versioned};

#[tokio::test]
async fn a_key_whose_disabling_was_interrupted_is_disabled_for_data_calls_too() {
    let root = Arc::new(RootKey::generate().unwrap());
    let store = Arc::new(Slow {
        inner: Memory::new(Codec::new(root.mac_key())),
        written: Semaphore::new(0),
        // The root key is noted before the first change.
        answer: Semaphore::new(2),
    });
    let kms = kms(root, Arc::<Slow>::clone(&store));
    let key = create(&kms).await;
    store.written.acquire_many(2).await.unwrap().forget();
    encrypt(&kms, key).await.unwrap();

    let call = begin(&kms, Action::DisableKey);
    tokio::select! {
        biased;
        _ = kms.disable(&call, key) => panic!("the store has not answered"),
        written = store.written.acquire() => written.unwrap().forget(),
    }
    drop(call);
    store.answer.add_permits(1);

    let disabled = async {
        while encrypt(&kms, key).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), disabled).await;
    in_time.expect("the opened key goes on");
    let refused = encrypt(&kms, key).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::KeyDisabled);
}

/// A store that makes a change at once and answers when it is let.
#[derive(Debug)]
struct Slow {
    inner: Memory,
    written: Semaphore,
    answer: Semaphore,
}

#[async_trait]
impl KeyStore for Slow {
    async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError> {
        self.inner.get(address).await
    }

    async fn put(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        let put = self.inner.put(changes).await;
        self.written.add_permits(1);
        self.answer.acquire().await.unwrap().forget();
        put
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Address>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }
}

fn kms(root: Arc<RootKey>, store: Arc<Slow>) -> Kms {
    Kms {
        store,
        root_keys: Arc::new(RootKeys::new(Root::id(&*root), Vec::new())),
        backup: None,
        providers: Arc::new(Providers::from(RustCrypto::new(root))),
        keyring: Arc::new(Keyring::new(8)),
        listings: Listings::default(),
        pool: Arc::new(Pool::new(1, 8).unwrap()),
        policy: Policy::default(),
        limits: Limits::default(),
        audit: Arc::new(Silent),
        clock: Arc::new(Silent),
        new_key_id: || Ok(KeyId::from_random([7; 16])),
    }
}

async fn create(kms: &Kms) -> KeyId {
    let mut call = begin(kms, Action::CreateKey);
    let new = NewKey {
        alias: "k".parse().unwrap(),
        description: KeyDescription::default(),
        spec: KeySpec::Aes256,
        usage: None,
        key_id: None,
    };
    let made = kms.create(&mut call, new).await;
    call.end(made).unwrap().key_id
}

async fn encrypt(kms: &Kms, key_id: KeyId) -> Result<Vec<u8>, Error> {
    let call = begin(kms, Action::EncryptData);
    let ask = Encrypt {
        key_id,
        plaintext: Plaintext::new(b"x".to_vec()),
        algorithm: EncryptionAlgorithm::SymmetricDefault,
        aad: Aad::default(),
    };
    let encrypted = kms.encrypt(&call, ask).await;
    call.end(encrypted).map(|encrypted| encrypted.ciphertext)
}

fn begin(kms: &Kms, action: Action) -> Call<'_> {
    let context = Arc::new(Context {
        request_id: RequestId::new(1),
        caller: Arc::new(Caller {
            name: "test".into(),
            project: "p".parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::ALL,
        }),
        told: AtomicBool::new(false),
    });
    kms.begin(Some(&context), action).unwrap()
}

#[derive(Debug)]
struct Silent;

impl Sink for Silent {
    fn record(&self, _: &Event<'_>) {}
}

impl Clock for Silent {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }
}
