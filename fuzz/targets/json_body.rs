//! Bodies of REST requests, for every operation. A body is refused as no JSON of ours exactly if
//! `serde_json` refuses it, a name stands twice in one object, or a member that is known is no text;
//! one that makes a message says the same to `serde_json`, and written again by it, makes the same
//! message.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex};

use axum::Router;
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use kmsgate::gateway::router;
use kmsgate::grpc::pb::crypto_service_server::CryptoService;
use kmsgate::grpc::pb::key_service_server::KeyService;
use kmsgate::grpc::pb::{self, encrypt_data_request};
use kmsgate_fuzz::{PROJECT, byte, now};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde_json::{Map, Value};
use tonic::{Response, Status};
use tower::ServiceExt;

/// Each operation, and its members.
const OPERATIONS: &[(&str, &[&str])] = &[
    (
        "encrypt-data",
        &[
            "key_id",
            "plain_text",
            "plain_text_base64",
            "encryption_algorithm",
            "additional_authenticated_data",
            "sequence",
        ],
    ),
    (
        "decrypt-data",
        &[
            "key_id",
            "cipher_text",
            "encryption_algorithm",
            "additional_authenticated_data",
            "sequence",
        ],
    ),
    (
        "create-key",
        &[
            "key_alias",
            "key_spec",
            "key_usage",
            "key_description",
            "sequence",
            "origin",
            "keystore_id",
        ],
    ),
    (
        "list-keys",
        &["limit", "marker", "key_state", "key_spec", "sequence"],
    ),
    (
        "schedule-key-deletion",
        &["key_id", "pending_days", "sequence"],
    ),
    ("describe-key", &["key_id", "sequence"]),
    ("enable-key", &["key_id", "sequence"]),
    ("disable-key", &["key_id", "sequence"]),
    ("cancel-key-deletion", &["key_id", "sequence"]),
    ("get-publickey", &["key_id", "sequence"]),
    ("update-key-alias", &["key_id", "key_alias", "sequence"]),
    (
        "update-key-description",
        &["key_id", "key_description", "sequence"],
    ),
    ("rotate-on-demand", &["key_id", "sequence"]),
];

static STUB: LazyLock<Arc<Stub>> = LazyLock::new(Arc::default);
static ROUTER: LazyLock<Router> = LazyLock::new(|| router(Arc::clone(&*STUB), Arc::clone(&*STUB)));

fuzz_target!(|data: &[u8]| {
    let mut body = data;
    let number = usize::from(byte(&mut body)) % OPERATIONS.len();
    let (operation, members) = OPERATIONS[number];
    let read = serde_json::from_slice::<Map<String, Value>>(body);
    let made = post(operation, body);
    let Ok(object) = read else {
        assert_eq!(made.err().as_deref(), Some("KMS.0202"), "{operation}");
        return;
    };
    let again = post(operation, &serde_json::to_vec(&object).unwrap());
    let sound = |name: &&str| {
        matches!(
            object.get(*name),
            None | Some(Value::Null | Value::String(_))
        )
    };
    let sound = members.iter().all(sound);
    assert_eq!(
        again.as_ref().err().map(String::as_str) != Some("KMS.0202"),
        sound
    );
    // Of two members with one name the other reader keeps one.
    let kept = object.len() + object.values().map(members_within).sum::<usize>();
    let refused = made.as_ref().err().map(String::as_str) == Some("KMS.0202");
    assert_eq!(refused, !sound || members_written(body) != kept);
    if refused {
        return;
    }
    assert_eq!(made, again);
    let Ok(made) = made else { return };
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    for (name, said) in made.texts {
        assert_eq!(said, text(name), "{name}");
    }
});

/// How many members a body that is JSON writes in all its objects: there is a colon to each.
fn members_written(body: &[u8]) -> usize {
    let (mut in_text, mut escaped, mut members) = (false, false, 0);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            b':' if !in_text => members += 1,
            _ => {}
        }
    }
    members
}

/// How many members all objects in a value have.
fn members_within(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.len() + object.values().map(members_within).sum::<usize>(),
        Value::Array(list) => list.iter().map(members_within).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The message that a body makes, or the code of the refusal.
fn post(operation: &str, body: &[u8]) -> Result<Made, String> {
    *STUB.0.lock().unwrap() = None;
    let request = Request::post(format!("/v1.0/{PROJECT}/kms/{operation}"));
    let request = request.body(Body::from(body.to_vec())).unwrap();
    let answer = now(ROUTER.clone().oneshot(request)).unwrap();
    if let Some(made) = STUB.0.lock().unwrap().take() {
        return Ok(made);
    }
    let told = now(answer.into_body().collect()).unwrap().to_bytes();
    let told: Value = serde_json::from_slice(&told).unwrap();
    let code = ["/error_code", "/error/error_code"];
    let code = code.iter().find_map(|place| told.pointer(place));
    Err(code.unwrap().as_str().unwrap().to_owned())
}

/// A message: its bytes, and fields of it that are the text of a member.
#[derive(Debug, PartialEq)]
struct Made {
    bytes: Vec<u8>,
    texts: Vec<(&'static str, String)>,
}

/// Notes the message of the last request, and refuses it.
#[derive(Default)]
struct Stub(Mutex<Option<Made>>);

macro_rules! notes {
    ($( $trait:ident { $( $method:ident: $request:ident { $($field:ident)* } -> $answer:ident; )+ } )+) => { $(
        #[async_trait::async_trait]
        impl $trait for Stub { $(
            async fn $method(
                &self,
                request: tonic::Request<pb::$request>,
            ) -> Result<Response<pb::$answer>, Status> {
                let message = request.into_inner();
                *self.0.lock().unwrap() = Some(Made {
                    bytes: message.encode_to_vec(),
                    texts: vec![$( (stringify!($field), message.$field.clone()) ),*],
                });
                Err(Status::unimplemented(""))
            }
        )+ }
    )+ };
}

notes! {
    KeyService {
        create_key: CreateKeyRequest { key_alias key_description sequence origin keystore_id } -> CreateKeyResponse;
        describe_key: DescribeKeyRequest { key_id sequence } -> DescribeKeyResponse;
        list_keys: ListKeysRequest { sequence } -> ListKeysResponse;
        enable_key: EnableKeyRequest { key_id sequence } -> EnableKeyResponse;
        disable_key: DisableKeyRequest { key_id sequence } -> DisableKeyResponse;
        schedule_key_deletion: ScheduleKeyDeletionRequest { key_id sequence } -> ScheduleKeyDeletionResponse;
        cancel_key_deletion: CancelKeyDeletionRequest { key_id sequence } -> CancelKeyDeletionResponse;
        get_public_key: GetPublicKeyRequest { key_id sequence } -> GetPublicKeyResponse;
        update_key_alias: UpdateKeyAliasRequest { key_id key_alias sequence } -> UpdateKeyAliasResponse;
        update_key_description: UpdateKeyDescriptionRequest { key_id key_description sequence } -> UpdateKeyDescriptionResponse;
        rotate_on_demand: RotateOnDemandRequest { key_id sequence } -> RotateOnDemandResponse;
        confirm_clock: ConfirmClockRequest { } -> ConfirmClockResponse;
    }
}

#[async_trait::async_trait]
impl CryptoService for Stub {
    async fn encrypt_data(
        &self,
        request: tonic::Request<pb::EncryptDataRequest>,
    ) -> Result<Response<pb::EncryptDataResponse>, Status> {
        let message = request.into_inner();
        let mut texts = vec![
            ("key_id", message.key_id.clone()),
            (
                "additional_authenticated_data",
                message.additional_authenticated_data.clone(),
            ),
            ("sequence", message.sequence.clone()),
        ];
        if let Some(encrypt_data_request::Plaintext::PlainText(text)) = &message.plaintext {
            texts.push(("plain_text", text.clone()));
        }
        let bytes = message.encode_to_vec();
        *self.0.lock().unwrap() = Some(Made { bytes, texts });
        Err(Status::unimplemented(""))
    }

    async fn decrypt_data(
        &self,
        request: tonic::Request<pb::DecryptDataRequest>,
    ) -> Result<Response<pb::DecryptDataResponse>, Status> {
        let message = request.into_inner();
        let texts = vec![
            ("key_id", message.key_id.clone()),
            (
                "additional_authenticated_data",
                message.additional_authenticated_data.clone(),
            ),
            ("sequence", message.sequence.clone()),
        ];
        let bytes = message.encode_to_vec();
        *self.0.lock().unwrap() = Some(Made { bytes, texts });
        Err(Status::unimplemented(""))
    }
}
