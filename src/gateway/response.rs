//! Responses: the fields of a message to the members of a JSON body (contract, sections 1.1, 1.2, 5
//! and 5.2).
//!
//! Members come in the order of the documented samples. All are text, save `total`.

use std::fmt::Display;

use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde::{Serialize, Serializer};
use zeroize::Zeroize;

use crate::gateway::base64;
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
        let cipher_text = (!self.cipher_text.is_empty()).then_some(&self.cipher_text)?;
        let json = Object::with_room(base64::length(cipher_text.len()))
            .text("key_id", filled(&self.key_id)?)?
            .base64("cipher_text", cipher_text)?;
        Some(json.end())
    }
}

impl IntoJson for pb::DecryptDataResponse {
    fn into_json(mut self) -> Option<Vec<u8>> {
        let same = self.plain_text.is_empty() || self.plain_text.as_bytes() == self.plain_bytes;
        let body = filled(&self.key_id).filter(|_| same).and_then(|key_id| {
            // Escapes may need more; then the buffer grows.
            let room = base64::length(self.plain_bytes.len()) + self.plain_text.len() * 5 / 3;
            let json = Object::with_room(room)
                .text("key_id", key_id)?
                .text("plain_text", &self.plain_text)?
                .base64("plain_text_base64", &self.plain_bytes)?;
            Some(json.end())
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

/// A JSON object of text, written member by member into one buffer: a serializer would look at
/// each character of Base64 for something to escape.
struct Object(Vec<u8>);

impl Object {
    /// An object with room for a key id, and for values of this many bytes.
    fn with_room(values: usize) -> Self {
        Self(Vec::with_capacity(FRAME + values))
    }

    /// Adds text.
    fn text(mut self, name: &'static str, text: &str) -> Option<Self> {
        self.name(name);
        serde_json::to_writer(&mut self.0, text).ok()?;
        Some(self)
    }

    /// Adds bytes as standard Base64 (RFC 4648, section 4), in which nothing needs an escape.
    fn base64(mut self, name: &'static str, bytes: &[u8]) -> Option<Self> {
        self.name(name);
        self.0.push(b'"');
        let begin = self.0.len();
        self.0.resize(begin + base64::length(bytes.len()), 0);
        let room = self.0.get_mut(begin..)?;
        base64::encode(bytes, room).ok()?;
        self.0.push(b'"');
        Some(self)
    }

    /// Begins a member. Its name needs no escape.
    fn name(&mut self, name: &'static str) {
        let before: &[u8] = if self.0.is_empty() { b"{\"" } else { b",\"" };
        self.0.extend_from_slice(before);
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// The whole object.
    fn end(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
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

#[cfg(test)]
mod tests {
    use ::base64::Engine;
    use ::base64::engine::general_purpose::STANDARD;
    use proptest::prelude::any;
    use proptest::{prop_assert_eq, proptest};
    use serde_json::{Value, json};

    use super::*;

    // What serde_json's own writer makes of the same values is what a reader must find.
    proptest! {
        #[test]
        fn an_encryption_is_told_whatever_its_bytes(
            key_id in "\\PC{1,40}",
            cipher_text in proptest::collection::vec(any::<u8>(), 1..5000),
        ) {
            let expected = json!({
                "key_id": key_id,
                "cipher_text": STANDARD.encode(&cipher_text),
            });
            let message = pb::EncryptDataResponse { key_id, cipher_text };
            prop_assert_eq!(read(message), expected);
        }

        #[test]
        fn a_decryption_is_told_whatever_its_text(plain_text in any::<String>()) {
            let expected = json!({
                "key_id": "k",
                "plain_text": plain_text,
                "plain_text_base64": STANDARD.encode(&plain_text),
            });
            let message = pb::DecryptDataResponse {
                key_id: "k".to_owned(),
                plain_bytes: plain_text.clone().into_bytes(),
                plain_text,
            };
            prop_assert_eq!(read(message), expected);
        }
    }

    #[test]
    fn members_come_in_the_order_of_the_documented_samples() {
        let message = pb::DecryptDataResponse {
            key_id: "k".to_owned(),
            plain_text: "foobar".to_owned(),
            plain_bytes: b"foobar".to_vec(),
        };
        // The Base64 is RFC 4648's, section 10.
        let expected = r#"{"key_id":"k","plain_text":"foobar","plain_text_base64":"Zm9vYmFy"}"#;
        assert_eq!(message.into_json().unwrap(), expected.as_bytes());
    }

    #[test]
    fn an_answer_without_what_the_contract_promises_is_none() {
        let without_key = pb::EncryptDataResponse {
            key_id: String::new(),
            cipher_text: vec![1],
        };
        let without_text = pb::EncryptDataResponse {
            key_id: "k".to_owned(),
            cipher_text: Vec::new(),
        };
        assert!(without_key.into_json().is_none());
        assert!(without_text.into_json().is_none());
    }

    fn read(message: impl IntoJson) -> Value {
        serde_json::from_slice(&message.into_json().unwrap()).unwrap()
    }
}
