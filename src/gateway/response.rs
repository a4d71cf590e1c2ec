//! Responses: the fields of a message to the members of a JSON body (contract, sections 1.1, 1.2, 5
//! and 5.2).
//!
//! Members come in the order of the documented samples. All are text, save `total`.

use std::fmt::Display;

use axum::body::Body;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde::{Serialize, Serializer};
use zeroize::Zeroize;

use crate::grpc::pb;

/// The media type of every answer.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Room for the names of members and for a key id.
const FRAME: usize = 128;

/// Wraps a body that tells of a success.
pub(super) fn found(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A message that can be told as JSON.
pub(super) trait IntoJson {
    /// The body; none if the message lacks what the contract promises, which only a broken service
    /// sends.
    fn into_json(self) -> Option<Vec<u8>>;
}

impl IntoJson for pb::EncryptDataResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
            cipher_text: Base64<'a>,
        }

        let json = Json {
            key_id: filled(&self.key_id)?,
            cipher_text: Base64((!self.cipher_text.is_empty()).then_some(&self.cipher_text)?),
        };
        write(&json, FRAME + self.cipher_text.len() * 4 / 3)
    }
}

impl IntoJson for pb::DecryptDataResponse {
    fn into_json(mut self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
            plain_text: &'a str,
            plain_text_base64: Base64<'a>,
        }

        let same = self.plain_text.is_empty() || self.plain_text.as_bytes() == self.plain_bytes;
        let body = filled(&self.key_id).filter(|_| same).and_then(|key_id| {
            let json = Json {
                key_id,
                plain_text: &self.plain_text,
                plain_text_base64: Base64(&self.plain_bytes),
            };
            // Escapes may need more; then the buffer grows.
            write(&json, FRAME + self.plain_bytes.len() * 3)
        });
        self.plain_text.zeroize();
        self.plain_bytes.zeroize();
        body
    }
}

impl IntoJson for pb::CreateKeyResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
            domain_id: &'a str,
        }

        let info = self.key_info?;
        wrap(Json {
            key_id: filled(&info.key_id)?,
            domain_id: &info.domain_id,
        })
    }
}

impl IntoJson for pb::DescribeKeyResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        wrap(Details::new(&self.key_info?)?)
    }
}

impl IntoJson for pb::ListKeysResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            keys: &'a [String],
            key_details: Vec<Details<'a>>,
            next_marker: Text<i32>,
            truncated: Text<bool>,
            total: i32,
        }

        let details = self.key_details.iter().map(Details::new);
        let json = Json {
            keys: &self.keys,
            key_details: details.collect::<Option<_>>()?,
            next_marker: Text(self.next_marker),
            truncated: Text(Some(self.truncated)),
            total: self.total,
        };
        write(&json, FRAME)
    }
}

/// Writes what a change of state answers, flat or wrapped.
macro_rules! states {
    ($( $message:ident: $shape:ident; )+) => {
        $( impl IntoJson for pb::$message {
            fn into_json(self) -> Option<Vec<u8>> {
                states!(@$shape self)
            }
        } )+
    };
    (@flat $message:expr) => { write(&State::new(&$message.key_id, $message.key_state)?, FRAME) };
    (@wrapped $message:expr) => {{
        let info = $message.key_info?;
        wrap(State::new(&info.key_id, info.key_state)?)
    }};
}

states! {
    EnableKeyResponse: wrapped;
    DisableKeyResponse: wrapped;
    ScheduleKeyDeletionResponse: flat;
    CancelKeyDeletionResponse: flat;
}

impl IntoJson for pb::GetPublicKeyResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
            public_key: &'a str,
        }

        let json = Json {
            key_id: filled(&self.key_id)?,
            public_key: filled(&self.public_key)?,
        };
        write(&json, FRAME + self.public_key.len())
    }
}

impl IntoJson for pb::UpdateKeyAliasResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
            key_alias: &'a str,
        }

        let info = self.key_info?;
        wrap(Json {
            key_id: filled(&info.key_id)?,
            key_alias: &info.key_alias,
        })
    }
}

impl IntoJson for pb::UpdateKeyDescriptionResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
            key_description: &'a str,
        }

        let info = self.key_info?;
        wrap(Json {
            key_id: filled(&info.key_id)?,
            key_description: &info.key_description,
        })
    }
}

impl IntoJson for pb::RotateOnDemandResponse {
    fn into_json(self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            key_id: &'a str,
        }

        let json = Json {
            key_id: filled(&self.key_id)?,
        };
        write(&json, FRAME)
    }
}

/// What describe-key and list-keys tell of a key. The constants are what holds for every key of
/// this service: none is a cloud service's default key, expires, is imported or rotates by itself,
/// and there is one keystore.
#[derive(Serialize)]
struct Details<'a> {
    key_id: &'a str,
    domain_id: &'a str,
    key_alias: &'a str,
    realm: &'a str,
    key_description: &'a str,
    creation_date: Text<i64>,
    scheduled_deletion_date: Text<i64>,
    key_spec: &'static str,
    key_usage: &'static str,
    key_state: Text<i32>,
    default_key_flag: &'static str,
    key_type: &'static str,
    expiration_time: &'static str,
    origin: &'static str,
    key_rotation_enabled: &'static str,
    sys_enterprise_project_id: &'static str,
    keystore_id: &'static str,
    partition_type: &'static str,
}

impl<'a> Details<'a> {
    fn new(key: &'a pb::KeyDetails) -> Option<Self> {
        Some(Self {
            key_id: filled(&key.key_id)?,
            domain_id: &key.domain_id,
            key_alias: &key.key_alias,
            realm: &key.realm,
            key_description: &key.key_description,
            creation_date: Text(Some(key.creation_date)),
            scheduled_deletion_date: Text(key.scheduled_deletion_date),
            key_spec: known::<pb::KeySpec>(key.key_spec)?.as_str_name(),
            key_usage: known::<pb::KeyUsage>(key.key_usage)?.as_str_name(),
            key_state: state(key.key_state)?,
            default_key_flag: "0",
            key_type: "1",
            expiration_time: "",
            origin: "kms",
            key_rotation_enabled: "false",
            sys_enterprise_project_id: "0",
            keystore_id: "0",
            partition_type: "1",
        })
    }
}

/// A key and its state after a change.
#[derive(Serialize)]
struct State<'a> {
    key_id: &'a str,
    key_state: Text<i32>,
}

impl<'a> State<'a> {
    fn new(key_id: &'a str, key_state: i32) -> Option<Self> {
        Some(Self {
            key_id: filled(key_id)?,
            key_state: state(key_state)?,
        })
    }
}

/// Text that must not be empty.
fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The value with this number, if it has one and is specified.
fn known<E: TryFrom<i32> + Default + PartialEq>(number: i32) -> Option<E> {
    let value = E::try_from(number).ok();
    value.filter(|value| *value != E::default())
}

/// The documented code of a state, which is its number (contract, section 2.3).
fn state(number: i32) -> Option<Text<i32>> {
    known::<pb::KeyState>(number).map(|state| Text(Some(state.into())))
}

/// Writes `{"key_info":{…}}`.
fn wrap(key_info: impl Serialize) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    struct Json<T> {
        key_info: T,
    }

    write(&Json { key_info }, FRAME)
}

/// Writes JSON into a buffer that begins with this much room.
fn write(json: &impl Serialize, room: usize) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(room);
    serde_json::to_writer(&mut body, json).ok()?;
    Some(body)
}

/// Bytes, told as standard Base64 (RFC 4648, section 4), written without a copy between.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// A value, told as text; none is `""`.
struct Text<T>(Option<T>);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => output.collect_str(value),
            None => output.serialize_str(""),
        }
    }
}
