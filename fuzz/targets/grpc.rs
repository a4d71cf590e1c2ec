//! Calls over gRPC: one after another on a fresh server with keys in memory, each a method and the
//! bytes of its message, or a whole body of EncryptData in pieces. None fails as our own fault does; what is
//! encrypted is decrypted again; a body is one message behind five bytes, as gRPC has it, or it is refused.
#![no_main]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::task::{self, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use kmsgate::audit::{Event, Sink};
use kmsgate::auth::policy::Policy;
use kmsgate::crypto::pool::Pool;
use kmsgate::crypto::root::Root;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{Providers, SealedKey};
use kmsgate::domain::caller::{Actions, Caller};
use kmsgate::domain::key::{KeyDescription, KeyId, KeySpec, KeyState, KeyUsage, KeyVersion};
use kmsgate::domain::request::RequestId;
use kmsgate::domain::secret::Material;
use kmsgate::domain::time::{Clock, Timestamp};
use kmsgate::error::{Error, Kind};
use kmsgate::grpc::pb::crypto_service_server::CryptoService;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;
use kmsgate::grpc::pb::key_service_server::KeyService;
use kmsgate::grpc::unary::Unary;
use kmsgate::grpc::{Place, Server, pb};
use kmsgate::service::keyring::Keyring;
use kmsgate::service::limits::Limits;
use kmsgate::service::{Context, Kms, Listings};
use kmsgate::store::codec::Codec;
use kmsgate::store::memory::Memory;
use kmsgate::store::root_keys::RootKeys;
use kmsgate::store::{AliasRecord, Change, KeyRecord, KeyStore, Record, VersionRecord};
use kmsgate_fuzz::{PROJECT, RSA_2048, SM2, Still, byte, der, name, part, root};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{Code, Request, Response, Status};

/// The longest message of a body.
const LIMIT: usize = 200;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap()
});
static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Arc::new(Pool::new(1, 64).unwrap()));
static PROVIDERS: LazyLock<Arc<Providers>> = LazyLock::new(|| {
    let provider = RustCrypto::new(Arc::new(root()));
    Arc::new(Providers::from(provider))
});
static SEALED: LazyLock<Vec<(KeySpec, SealedKey)>> = LazyLock::new(|| {
    let keys = [
        (KeySpec::Aes256, vec![1; 32]),
        (KeySpec::Rsa2048, der(RSA_2048)),
        (KeySpec::Sm2, der(SM2)),
    ];
    let seal = |(spec, material)| {
        let provider = PROVIDERS.maker(spec).unwrap();
        let name = name_of(spec);
        (
            spec,
            provider.seal(&name, &Material::new(material)).unwrap(),
        )
    };
    keys.into_iter().map(seal).collect()
});

fuzz_target!(|data: &[u8]| {
    RUNTIME.block_on(async {
        let server = server().await;
        let mut rest = data;
        for _ in 0..16 {
            if rest.is_empty() {
                break;
            }
            let method = byte(&mut rest);
            call(&server, method, part(&mut rest)).await;
        }
    });
});

/// Each key has an id of its own, that ends in the number of its spec.
fn key_id(spec: KeySpec) -> KeyId {
    let number = KeySpec::ALL.iter().position(|one| *one == spec).unwrap();
    let id = format!("0d0466b0-e727-4d9c-b35d-f84bb474a37{number}");
    id.parse().unwrap()
}

fn name_of(spec: KeySpec) -> kmsgate::crypto::VersionName {
    kmsgate::crypto::VersionName {
        key_id: key_id(spec),
        ..name(spec)
    }
}

async fn server() -> Server {
    let store = Memory::new(Codec::new(root().mac_key()));
    let (project, created) = (name(KeySpec::Aes256).project, Still.now());
    let mut changes = Vec::new();
    for (spec, sealed) in &*SEALED {
        let alias = spec.name().parse().unwrap();
        changes.push(Change::create(Record::Alias(AliasRecord {
            project: project.clone(),
            alias,
            key_id: key_id(*spec),
        })));
        changes.push(Change::create(Record::Key(KeyRecord {
            project: project.clone(),
            key_id: key_id(*spec),
            alias: spec.name().parse().unwrap(),
            description: KeyDescription::default(),
            spec: *spec,
            usage: KeyUsage::EncryptDecrypt,
            state: KeyState::Enabled,
            created,
            deletion: None,
            versions: vec![VersionRecord {
                version: KeyVersion::FIRST,
                created,
                sealed: sealed.0.clone(),
            }],
        })));
    }
    store.put(changes).await.unwrap();
    let kms = Kms {
        store: Arc::new(store),
        providers: Arc::clone(&PROVIDERS),
        root_keys: Arc::new(RootKeys::new(Root::id(&root()), Vec::new())),
        backup: None,
        keyring: Arc::new(Keyring::new(16)),
        listings: Listings::default(),
        pool: Arc::clone(&POOL),
        policy: Policy::default(),
        limits: Limits::default(),
        audit: Arc::new(Nobody),
        clock: Arc::new(Still),
        new_key_id,
    };
    let place = Place {
        domain_id: None,
        realm: "local".into(),
    };
    Server::new(Arc::new(kms), place)
}

async fn call(server: &Server, method: u8, bytes: &[u8]) {
    macro_rules! methods {
        ($( $number:literal => $method:ident, )+) => {
            match method {
                $( $number => if let Ok(message) = Message::decode(bytes) {
                    sound(server.$method(ask(message)).await);
                }, )+
                _ => {}
            }
        };
    }
    match method {
        0 => {
            if let Ok(message) = pb::EncryptDataRequest::decode(bytes) {
                encrypt(server, message).await;
            }
        }
        1 => {
            // Making RSA keys takes seconds.
            if let Ok(mut message) = pb::CreateKeyRequest::decode(bytes) {
                if (2..=4).contains(&message.key_spec) {
                    message.key_spec = pb::KeySpec::Sm2.into();
                }
                sound(server.create_key(ask(message)).await);
            }
        }
        12 => {
            // Nor are keys made by rotation other than the AES key.
            if let Ok(message) = pb::RotateOnDemandRequest::decode(bytes)
                && message.key_id != key_id(KeySpec::Rsa2048).as_str()
            {
                sound(server.rotate_on_demand(ask(message)).await);
            }
        }
        14 => body(server, bytes).await,
        _ => {
            methods! {
                2 => decrypt_data,
                3 => describe_key,
                4 => list_keys,
                5 => enable_key,
                6 => disable_key,
                7 => schedule_key_deletion,
                8 => cancel_key_deletion,
                9 => get_public_key,
                10 => update_key_alias,
                11 => update_key_description,
                13 => confirm_clock,
            }
        }
    }
}

/// A body of EncryptData. Its first byte says how long the pieces are in which it comes.
async fn body(server: &Server, mut bytes: &[u8]) {
    let size = usize::from(byte(&mut bytes)).max(1);
    let pieces = Pieces(bytes.chunks(size).map(Bytes::copy_from_slice).collect());
    let context = context();
    let answer = Unary::Encrypt.answer(server, Some(&context), pieces, LIMIT);
    let answer = answer.await.map_err(|error| error.kind());

    let message = match bytes.split_first_chunk::<5>() {
        Some(([0, length @ ..], message))
            if u32::from_be_bytes(*length) as usize == message.len() && message.len() <= LIMIT =>
        {
            pb::EncryptDataRequest::decode(message).ok()
        }
        _ => None,
    };
    let Some(message) = message else {
        let refused = answer.err();
        assert!(matches!(
            refused,
            Some(Kind::InvalidFormat | Kind::MessageTooLong)
        ));
        return;
    };
    let same = sound(server.encrypt_data(ask(message)).await);
    let Some(same) = same else {
        let refused = answer.err().expect("what a method refuses is refused");
        assert_ne!(refused, Kind::MessageTooLong);
        return;
    };
    let answer = answer.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    let answer = answer.to_bytes();
    let (prefix, answer) = answer.split_first_chunk::<5>().unwrap();
    assert_eq!(prefix[0], 0);
    assert_eq!(
        prefix[1..],
        u32::try_from(answer.len()).unwrap().to_be_bytes()
    );
    let answer = pb::EncryptDataResponse::decode(answer).unwrap();
    assert_eq!(answer.key_id, same.key_id);
}

/// A body that comes in pieces.
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

async fn encrypt(server: &Server, message: pb::EncryptDataRequest) {
    let pb::EncryptDataRequest {
        project_id,
        key_id,
        encryption_algorithm,
        additional_authenticated_data,
        sequence,
        plaintext,
    } = message.clone();
    let Some(encrypted) = sound(server.encrypt_data(ask(message)).await) else {
        return;
    };
    assert_eq!(encrypted.key_id, key_id);
    let decrypt = pb::DecryptDataRequest {
        project_id,
        key_id,
        cipher_text: encrypted.cipher_text,
        encryption_algorithm,
        additional_authenticated_data,
        sequence,
    };
    let decrypted = sound(server.decrypt_data(ask(decrypt)).await).unwrap();
    let given = match plaintext.unwrap() {
        Plaintext::PlainText(text) => text.into_bytes(),
        Plaintext::PlainBytes(bytes) => bytes,
    };
    assert!(decrypted.plain_bytes == given);
}

/// The answer, if there is one. A refusal must be the caller's fault.
fn sound<A>(answer: Result<Response<A>, Status>) -> Option<A> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            let ours = [
                Code::Internal,
                Code::Unknown,
                Code::Unavailable,
                Code::DataLoss,
            ];
            assert!(!ours.contains(&status.code()), "{status:?}");
            None
        }
    }
}

fn ask<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(context());
    request
}

fn context() -> Arc<Context> {
    Arc::new(Context {
        request_id: RequestId::new(1),
        caller: Arc::new(Caller {
            name: "fuzzer".into(),
            project: PROJECT.parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::ALL,
        }),
        told: AtomicBool::new(false),
    })
}

fn new_key_id() -> Result<KeyId, Error> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Ok(KeyId::from_random(u128::from(next).to_be_bytes()))
}

/// Keeps no audit.
#[derive(Debug)]
struct Nobody;

impl Sink for Nobody {
    fn record(&self, event: &Event<'_>) {
        assert!(event.time >= Timestamp(0));
    }
}
