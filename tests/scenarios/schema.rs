//! Operations in face-neutral form, and their protobuf form, found by name in the compiled schema.
//!
//! A field is text or bytes under its REST name. Numbers and enumerations are text, as REST has
//! them, so one description of a call and one expectation of its answer serve both faces.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut};
use kmsgate::grpc::DESCRIPTORS;
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

/// One call of one operation.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The operation's REST name.
    pub(crate) operation: &'static str,
    fields: Vec<(&'static str, Field)>,
}

/// What a field holds.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    /// Text; of a number, its digits; of an enumeration, a value's name, or a state's code.
    Text(String),
    /// Bytes, which REST writes in Base64.
    Bytes(Vec<u8>),
}

/// A number that no enumeration has.
const UNKNOWN: u64 = 99;

/// The service and the method of each operation.
pub(crate) const OPERATIONS: [(&str, &str, &str); 13] = [
    ("encrypt-data", "CryptoService", "EncryptData"),
    ("decrypt-data", "CryptoService", "DecryptData"),
    ("create-key", "KeyService", "CreateKey"),
    ("describe-key", "KeyService", "DescribeKey"),
    ("list-keys", "KeyService", "ListKeys"),
    ("enable-key", "KeyService", "EnableKey"),
    ("disable-key", "KeyService", "DisableKey"),
    ("schedule-key-deletion", "KeyService", "ScheduleKeyDeletion"),
    ("cancel-key-deletion", "KeyService", "CancelKeyDeletion"),
    ("get-publickey", "KeyService", "GetPublicKey"),
    ("update-key-alias", "KeyService", "UpdateKeyAlias"),
    (
        "update-key-description",
        "KeyService",
        "UpdateKeyDescription",
    ),
    ("rotate-on-demand", "KeyService", "RotateOnDemand"),
];

impl Call {
    /// A call without fields.
    pub(crate) fn new(operation: &'static str) -> Self {
        Self {
            operation,
            fields: Vec::new(),
        }
    }

    /// The same call with this field too, or with this value instead of the one it had.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Field>) -> Self {
        self.fields.retain(|(had, _)| *had != name);
        self.fields.push((name, value.into()));
        self
    }

    /// The same call without this field.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(had, _)| *had != name);
        self
    }

    /// The JSON body.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let members = self.fields.iter().map(|(name, field)| {
            let text = match field {
                Field::Text(text) => text.clone(),
                Field::Bytes(bytes) => STANDARD.encode(bytes),
            };
            ((*name).to_owned(), Value::from(text))
        });
        serde_json::to_vec(&members.collect::<Map<_, _>>()).unwrap()
    }

    /// The protobuf message, in `project` if there is one.
    pub(crate) fn to_message(&self, project: Option<&str>) -> Vec<u8> {
        let message = SCHEMA.message(method(self.operation).1, "Request");
        let mut bytes = Vec::new();
        let project = project.map(|project| ("project_id", Field::from(project)));
        for (name, value) in project.iter().chain(&self.fields) {
            let mut named = message
                .field
                .iter()
                .filter(|field| field.json_name() == *name);
            let field = named.next().unwrap_or_else(|| panic!("no field {name}"));
            put(&mut bytes, field, value);
        }
        bytes
    }
}

/// The service and the method of an operation.
pub(crate) fn method(operation: &str) -> (&'static str, &'static str) {
    let mut all = OPERATIONS.iter();
    let found = all.find(|(name, _, _)| *name == operation);
    let (_, service, method) = found.unwrap_or_else(|| panic!("no operation {operation}"));
    (service, method)
}

/// An operation's answer in the form in which REST tells it: every field, all of them text save
/// `total`.
pub(crate) fn read_answer(operation: &str, message: &[u8]) -> Value {
    read(SCHEMA.message(method(operation).1, "Response"), message)
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Field {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Vec<u8>> for Field {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Field {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<&Vec<u8>> for Field {
    fn from(bytes: &Vec<u8>) -> Self {
        Self::Bytes(bytes.clone())
    }
}

/// The compiled schema, by name.
struct Schema {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut schema = Schema {
        messages: HashMap::new(),
        enums: HashMap::new(),
    };
    for file in set.file {
        let full = |name: &str| format!(".{}.{name}", file.package());
        for message in &file.message_type {
            schema
                .messages
                .insert(full(message.name()), message.clone());
        }
        for kind in &file.enum_type {
            schema.enums.insert(full(kind.name()), kind.clone());
        }
    }
    schema
});

impl Schema {
    fn message(&self, method: &str, suffix: &str) -> &DescriptorProto {
        &self.messages[&format!(".kmsgate.v1.{method}{suffix}")]
    }
}

fn put(out: &mut Vec<u8>, field: &FieldDescriptorProto, value: &Field) {
    let number = field.number().unsigned_abs();
    let (bytes, text) = match value {
        Field::Text(text) => (text.as_bytes(), text.as_str()),
        Field::Bytes(bytes) => (bytes.as_slice(), ""),
    };
    match field.r#type() {
        Type::String | Type::Bytes => {
            encode_key(number, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.put_slice(bytes);
        }
        Type::Int32 => {
            let value: i32 = text
                .parse()
                .expect("a number, or a scenario for REST alone");
            encode_key(number, WireType::Varint, out);
            encode_varint(i64::from(value) as u64, out);
        }
        Type::Enum => {
            let values = &SCHEMA.enums[field.type_name()].value;
            let mut named = values.iter().filter(|value| {
                value.name() == text || value.number().to_string() == text && value.number() != 0
            });
            let value = named.next().map_or(UNKNOWN, |value| value.number() as u64);
            encode_key(number, WireType::Varint, out);
            encode_varint(if text.is_empty() { 0 } else { value }, out);
        }
        other => panic!("no request has a {other:?}"),
    }
}

fn read(message: &DescriptorProto, mut bytes: &[u8]) -> Value {
    let mut object = Map::new();
    for field in &message.field {
        if let Some(absent) = absent(field) {
            object.insert(field.json_name().to_owned(), absent);
        }
    }
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).unwrap();
        let mut numbered = message.field.iter();
        let Some(field) = numbered.find(|field| field.number().unsigned_abs() == number) else {
            skip_field(wire, number, &mut bytes, DecodeContext::default()).unwrap();
            continue;
        };
        let varint = decode_varint(&mut bytes).unwrap();
        let value = match wire {
            WireType::Varint => number_as_text(field, varint),
            WireType::LengthDelimited => {
                let (value, rest) = bytes.split_at(usize::try_from(varint).unwrap());
                bytes = rest;
                delimited(field, value)
            }
            other => panic!("no answer has a {other:?}"),
        };
        let place = &mut object[field.json_name()];
        match place.as_array_mut() {
            Some(array) => array.push(value),
            None => *place = value,
        }
    }
    Value::Object(object)
}

/// What stands for a field that is not in the message; none for a message, which then is not there
/// either.
fn absent(field: &FieldDescriptorProto) -> Option<Value> {
    Some(match field.r#type() {
        _ if field.label() == Label::Repeated => json!([]),
        _ if field.proto3_optional() => json!(""),
        Type::Message => Value::Null,
        Type::String | Type::Bytes => json!(""),
        _ => number_as_text(field, 0),
    })
}

fn number_as_text(field: &FieldDescriptorProto, value: u64) -> Value {
    match field.r#type() {
        Type::Bool => json!((value != 0).to_string()),
        Type::Enum if !field.type_name().ends_with(".KeyState") => {
            let values = &SCHEMA.enums[field.type_name()].value;
            let mut numbered = values.iter().filter(|known| known.number() as u64 == value);
            json!(numbered.next().unwrap().name())
        }
        _ if field.json_name() == "total" => json!(value),
        _ => json!((value as i64).to_string()),
    }
}

fn delimited(field: &FieldDescriptorProto, value: &[u8]) -> Value {
    match field.r#type() {
        Type::String => json!(str::from_utf8(value).unwrap()),
        Type::Bytes => json!(STANDARD.encode(value)),
        Type::Message => read(&SCHEMA.messages[field.type_name()], value),
        other => panic!("no answer has a packed {other:?}"),
    }
}
