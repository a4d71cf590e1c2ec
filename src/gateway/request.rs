//! Requests: the members of a JSON body to the fields of a message (contract, sections 1.1, 1.2 and
//! 5).
//!
//! A member that is absent, `null` or `""` leaves its field as protobuf does, and the service says
//! whether that is enough. A plaintext alone is given where it is `""`, and refused as too short. A
//! name that is not documented becomes a number that no enumeration has, so that the service refuses
//! it with the row that gRPC callers get.

use std::ops::RangeInclusive;

use crate::error::{Error, Kind};
use crate::gateway::base64;
use crate::gateway::json::{Text, members};
use crate::grpc::pb;
use crate::grpc::pb::encrypt_data_request::Plaintext;

/// How long a `cipher_text` may be, in characters (contract, section 1.2).
const CIPHER_TEXT: RangeInclusive<usize> = 128..=5648;

/// The number for an enumeration's name that is not documented.
const UNKNOWN: i32 = -1;

/// A message that a body and the path make.
pub(super) trait FromJson: Sized {
    /// Takes the body apart.
    fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error>;
}

impl FromJson for pb::EncryptDataRequest {
    fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error> {
        let [key_id, plain_text, plain_bytes, algorithm, aad, sequence] = members(
            body,
            [
                "key_id",
                "plain_text",
                "plain_text_base64",
                "encryption_algorithm",
                "additional_authenticated_data",
                "sequence",
            ],
        )?;
        let plaintext = match (plain_text, plain_bytes) {
            (Some(text), None) => Some(Plaintext::PlainText(text.into_string())),
            (None, Some(bytes)) => {
                let bytes = base64::decode(&bytes);
                let bytes = bytes.map_err(|_| Error::from(Kind::InvalidPlaintext))?;
                Some(Plaintext::PlainBytes(bytes))
            }
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(Error::from(Kind::InvalidParameter)
                    .detail("plain_text and plain_text_base64 exclude each other."));
            }
        };
        Ok(Self {
            project_id,
            key_id: text(key_id),
            plaintext,
            encryption_algorithm: algorithm_number(algorithm.as_deref()),
            additional_authenticated_data: text(aad),
            sequence: text(sequence),
        })
    }
}

impl FromJson for pb::DecryptDataRequest {
    fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error> {
        let [key_id, cipher_text, algorithm, aad, sequence] = members(
            body,
            [
                "key_id",
                "cipher_text",
                "encryption_algorithm",
                "additional_authenticated_data",
                "sequence",
            ],
        )?;
        let cipher_text = match cipher_text.as_deref() {
            None | Some("") => Vec::new(),
            Some(text) if CIPHER_TEXT.contains(&text.len()) => {
                base64::decode(text).map_err(|_| Error::from(Kind::InvalidCiphertext))?
            }
            Some(_) => return Err(Kind::InvalidCiphertext.into()),
        };
        Ok(Self {
            project_id,
            key_id: text(key_id),
            cipher_text,
            encryption_algorithm: algorithm_number(algorithm.as_deref()),
            additional_authenticated_data: text(aad),
            sequence: text(sequence),
        })
    }
}

impl FromJson for pb::CreateKeyRequest {
    fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error> {
        let [
            alias,
            spec,
            usage,
            description,
            sequence,
            origin,
            keystore_id,
        ] = members(
            body,
            [
                "key_alias",
                "key_spec",
                "key_usage",
                "key_description",
                "sequence",
                "origin",
                "keystore_id",
            ],
        )?;
        Ok(Self {
            project_id,
            key_alias: text(alias),
            key_spec: spec_number(spec.as_deref()),
            key_usage: number(usage.as_deref(), pb::KeyUsage::from_str_name),
            key_description: text(description),
            sequence: text(sequence),
            origin: text(origin),
            keystore_id: text(keystore_id),
        })
    }
}

impl FromJson for pb::ListKeysRequest {
    fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error> {
        let [limit, marker, state, spec, sequence] = members(
            body,
            ["limit", "marker", "key_state", "key_spec", "sequence"],
        )?;
        Ok(Self {
            project_id,
            limit: digits(limit.as_deref(), Kind::InvalidLimit)?,
            marker: digits(marker.as_deref(), Kind::InvalidMarker)?.unwrap_or_default(),
            key_state: number(state.as_deref(), state_of_code),
            key_spec: match spec.as_deref() {
                // REST lists AES_256 keys unless it is told otherwise (contract, section 2.2).
                None | Some("") => pb::KeySpec::Aes256.into(),
                Some("ALL") => pb::KeySpec::Unspecified.into(),
                name => spec_number(name),
            },
            sequence: text(sequence),
        })
    }
}

impl FromJson for pb::ScheduleKeyDeletionRequest {
    fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error> {
        let [key_id, pending_days, sequence] =
            members(body, ["key_id", "pending_days", "sequence"])?;
        Ok(Self {
            project_id,
            key_id: text(key_id),
            pending_days: digits(pending_days.as_deref(), Kind::InvalidPendingDays)?,
            sequence: text(sequence),
        })
    }
}

/// Reads messages whose fields are the project and text.
macro_rules! texts {
    ($( $message:ident { $( $field:ident ),+ } )+) => {
        $( impl FromJson for pb::$message {
            fn from_json(project_id: String, body: &[u8]) -> Result<Self, Error> {
                let [$( $field ),+] = members(body, [$( stringify!($field) ),+])?;
                Ok(Self { project_id, $( $field: text($field) ),+ })
            }
        } )+
    };
}

texts! {
    DescribeKeyRequest { key_id, sequence }
    EnableKeyRequest { key_id, sequence }
    DisableKeyRequest { key_id, sequence }
    CancelKeyDeletionRequest { key_id, sequence }
    GetPublicKeyRequest { key_id, sequence }
    UpdateKeyAliasRequest { key_id, key_alias, sequence }
    UpdateKeyDescriptionRequest { key_id, key_description, sequence }
    RotateOnDemandRequest { key_id, sequence }
}

/// A field of text.
fn text(member: Option<Text<'_>>) -> String {
    member.map(Text::into_string).unwrap_or_default()
}

/// A field of a number, which REST writes in decimal digits: no sign, no space. What else it says
/// fails as `kind`.
fn digits(member: Option<&str>, kind: Kind) -> Result<Option<i32>, Error> {
    match member {
        None | Some("") => Ok(None),
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            let number = text.parse().map_err(|_| Error::from(kind))?;
            Ok(Some(number))
        }
        Some(_) => Err(kind.into()),
    }
}

/// A field of an enumeration. The names of the zero values are protobuf's alone.
fn number<E: Into<i32>>(member: Option<&str>, value: impl Fn(&str) -> Option<E>) -> i32 {
    match member {
        None | Some("") => 0,
        Some(name) => value(name)
            .map(Into::into)
            .filter(|&number| number != 0)
            .unwrap_or(UNKNOWN),
    }
}

fn algorithm_number(member: Option<&str>) -> i32 {
    number(member, pb::EncryptionAlgorithm::from_str_name)
}

fn spec_number(member: Option<&str>) -> i32 {
    number(member, pb::KeySpec::from_str_name)
}

/// The state with this documented code (contract, section 2.3).
fn state_of_code(code: &str) -> Option<pb::KeyState> {
    Some(match code {
        "1" => pb::KeyState::PendingActivation,
        "2" => pb::KeyState::Enabled,
        "3" => pb::KeyState::Disabled,
        "4" => pb::KeyState::PendingDeletion,
        "5" => pb::KeyState::PendingImport,
        "7" => pb::KeyState::Frozen,
        _ => return None,
    })
}
