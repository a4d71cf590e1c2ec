//! Records as bytes, authenticated.
//!
//! ```text
//! offset    size  field
//! 0         1     01            format
//! 1         8     MAC key id    names the key of the MAC, so that root keys can be replaced
//! 9         n     payload       the record as a protobuf message, every attribute inside
//! 9+n       32    MAC           HMAC-SHA-256 of all that stands before
//! ```
//!
//! The MAC key id is the first 8 bytes of the HMAC-SHA-256 of a fixed label. No record begins with
//! that label's first byte, so the id says nothing about any record's MAC. Records are written under one
//! key, and read under that one and those of previous root keys.
//!
//! The messages are private to this file and their field numbers are never reused. A payload must
//! be exactly what this codec would write for what it read: a field of a newer writer makes the
//! record unreadable here rather than being dropped, because this writer would put the record back
//! without it, and the field may be a restriction on the key.

use std::collections::HashSet;

use hmac::digest::Key as BlockKey;
use hmac::{Hmac, KeyInit, Mac};
use prost::Message;
use sha2::Sha256;
use zeroize::Zeroize;

use crate::domain::key::{KeyState, KeyVersion, RootKeyId};
use crate::domain::secret::MacKey;
use crate::domain::time::Timestamp;
use crate::store::{
    Address, AliasRecord, Change, ClockRecord, DeletionRecord, Effect, KeyRecord, Record, Revision,
    RootKeysRecord, StoreError, VersionRecord, Versioned,
};

/// Writes and reads records.
#[derive(Debug)]
pub struct Codec {
    current: Authenticator,
    previous: Vec<Authenticator>,
}

impl Codec {
    /// A codec that authenticates under `mac_key`.
    pub fn new(mac_key: MacKey) -> Self {
        Self {
            current: Authenticator::new(mac_key),
            previous: Vec::new(),
        }
    }

    /// The same codec, which also reads what was written under these keys.
    #[must_use]
    pub fn reading(mut self, previous: impl IntoIterator<Item = MacKey>) -> Self {
        self.previous
            .extend(previous.into_iter().map(Authenticator::new));
        self
    }

    /// Writes a record.
    pub fn encode(&self, record: &Record) -> Vec<u8> {
        let payload = wire::Payload::from(record);
        let mut bytes = Vec::with_capacity(1 + KEY_ID + payload.encoded_len() + MAC);
        bytes.push(FORMAT);
        bytes.extend(self.current.key_id);
        bytes.extend(payload.encode_to_vec());
        let mac = self.current.mac(&bytes).finalize().into_bytes();
        bytes.extend(mac);
        bytes
    }

    /// Reads the record that [`encode`](Self::encode) wrote and that belongs at `address`.
    ///
    /// The bytes come from a file that others may have written: anything may arrive here, and all
    /// that is wrong fails with [`StoreError::Corrupt`]. Nothing is parsed before the MAC is found
    /// right.
    pub fn decode(&self, address: &Address, bytes: &[u8]) -> Result<Record, StoreError> {
        self.decode_at(&address.to_string(), bytes)
    }

    /// [`decode`](Self::decode) for an address in its written form, which names one address only.
    pub(super) fn decode_at(&self, address: &str, bytes: &[u8]) -> Result<Record, StoreError> {
        Ok(self.read(address, bytes, Revision(0))?.record)
    }

    /// [`decode_at`](Self::decode_at) for a record that was written at `revision`.
    pub(super) fn read(
        &self,
        address: &str,
        bytes: &[u8],
        revision: Revision,
    ) -> Result<Versioned, StoreError> {
        let (record, current) = self
            .open(bytes)
            .filter(|(record, _)| record.address().to_string() == address)
            .ok_or_else(|| StoreError::Corrupt(address.to_owned()))?;
        Ok(Versioned {
            record,
            revision,
            current,
        })
    }

    /// Readies the changes of one put, in their order.
    ///
    /// What could not be read back is refused here as corrupt, so it is never stored: a record at
    /// another's address, or one with impossible values. A second change of one address is refused
    /// as a conflict with the first.
    pub(super) fn encode_changes<'a>(
        &self,
        changes: &'a [Change],
    ) -> Result<Vec<Encoded<'a>>, StoreError> {
        let mut seen = HashSet::new();
        let encode = |change: &'a Change| {
            let address = change.address.to_string();
            if !seen.insert(address.clone()) {
                return Err(StoreError::Conflict);
            }
            let write = match &change.effect {
                Effect::Put(record) => {
                    let value = self.encode(record);
                    self.decode_at(&address, &value)?;
                    Write::Put(value)
                }
                Effect::Erase => Write::Erase,
                Effect::Keep => Write::Nothing,
            };
            Ok(Encoded {
                change,
                address,
                write,
            })
        };
        changes.iter().map(encode).collect()
    }

    /// The record, and whether it is under the key that new ones are under.
    fn open(&self, bytes: &[u8]) -> Option<(Record, bool)> {
        let (authentic, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC)?)?;
        let (key_id, payload) = authentic
            .strip_prefix(&[FORMAT])?
            .split_first_chunk::<KEY_ID>()?;
        let mut keys = [&self.current].into_iter().chain(&self.previous);
        let key = keys.find(|key| key.key_id == *key_id)?;
        key.mac(authentic).verify_slice(mac).ok()?;
        let message = wire::Payload::decode(payload).ok()?;
        let canonical = message.encode_to_vec() == payload;
        let record = message.record().filter(|_| canonical)?;
        Some((record, key.key_id == self.current.key_id))
    }
}

/// A key under which records are authenticated, and its name.
#[derive(Debug)]
struct Authenticator {
    mac_key: MacKey,
    key_id: [u8; KEY_ID],
}

impl Authenticator {
    fn new(mac_key: MacKey) -> Self {
        let mut key = Self {
            mac_key,
            key_id: [0; KEY_ID],
        };
        let name = key.mac(KEY_ID_LABEL).finalize().into_bytes();
        for (to, from) in key.key_id.iter_mut().zip(name) {
            *to = from;
        }
        key
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        // HMAC fills a key that is shorter than a block up with zeros (RFC 2104, section 2).
        let mut block = BlockKey::<Hmac<Sha256>>::default();
        for (to, from) in block.iter_mut().zip(self.mac_key.expose()) {
            *to = *from;
        }
        let mac = Hmac::new(&block).chain_update(bytes);
        block.as_mut_slice().zeroize();
        mac
    }
}

/// A change ready to be stored.
#[derive(Debug)]
pub(super) struct Encoded<'a> {
    /// The change.
    pub(super) change: &'a Change,
    /// Its address in the written form.
    pub(super) address: String,
    /// What is to be done there, if all is as expected.
    pub(super) write: Write,
}

/// What is to be done at an address.
#[derive(Debug)]
pub(super) enum Write {
    /// Store these bytes, with the revision of the put.
    Put(Vec<u8>),
    /// Erase what is there.
    Erase,
    /// Leave what is there, with the revision that it has.
    Nothing,
}

impl Encoded<'_> {
    /// The revision that must be stored now, if any.
    pub(super) fn expected(&self) -> Option<u64> {
        self.change.expected.map(|revision| revision.0)
    }
}

const FORMAT: u8 = 1;
const KEY_ID: usize = 8;
const KEY_ID_LABEL: &[u8] = b"kmsgate record MAC key id";
const MAC: usize = 32;

/// The payload's messages. Names and states are written as the contract writes them.
mod wire {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Payload {
        #[prost(oneof = "Content", tags = "1, 2, 3, 4, 5, 6")]
        content: Option<Content>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    enum Content {
        #[prost(message, tag = "1")]
        Key(Key),
        #[prost(message, tag = "2")]
        Alias(Alias),
        #[prost(message, tag = "3")]
        Deletion(Deletion),
        #[prost(message, tag = "4")]
        Clock(Clock),
        #[prost(message, tag = "5")]
        RootKeys(RootKeys),
        #[prost(message, tag = "6")]
        Copy(Copy),
    }

    #[derive(Clone, PartialEq, Message)]
    struct Key {
        #[prost(string, tag = "1")]
        project: String,
        #[prost(string, tag = "2")]
        key_id: String,
        #[prost(string, tag = "3")]
        alias: String,
        #[prost(string, tag = "4")]
        description: String,
        #[prost(string, tag = "5")]
        spec: String,
        #[prost(string, tag = "6")]
        usage: String,
        #[prost(uint32, tag = "7")]
        state: u32,
        #[prost(int64, tag = "8")]
        created: i64,
        #[prost(int64, optional, tag = "9")]
        deletion: Option<i64>,
        #[prost(message, repeated, tag = "10")]
        versions: Vec<Version>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Version {
        #[prost(uint32, tag = "1")]
        version: u32,
        #[prost(int64, tag = "2")]
        created: i64,
        #[prost(bytes = "vec", tag = "3")]
        sealed: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Alias {
        #[prost(string, tag = "1")]
        project: String,
        #[prost(string, tag = "2")]
        alias: String,
        #[prost(string, tag = "3")]
        key_id: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Deletion {
        #[prost(string, tag = "1")]
        project: String,
        #[prost(string, tag = "2")]
        key_id: String,
        #[prost(int64, tag = "3")]
        due: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Clock {
        #[prost(int64, tag = "1")]
        seen: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct RootKeys {
        #[prost(message, repeated, tag = "1")]
        root_keys: Vec<RootKey>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct RootKey {
        #[prost(fixed64, tag = "1")]
        id: u64,
        #[prost(bool, tag = "2")]
        seals: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Copy {}

    impl From<&Record> for Payload {
        fn from(record: &Record) -> Self {
            let content = match record {
                Record::Key(key) => Content::Key(key.into()),
                Record::Alias(AliasRecord {
                    project,
                    alias,
                    key_id,
                }) => Content::Alias(Alias {
                    project: project.to_string(),
                    alias: alias.as_str().to_owned(),
                    key_id: key_id.to_string(),
                }),
                Record::Deletion(DeletionRecord {
                    project,
                    key_id,
                    due,
                }) => Content::Deletion(Deletion {
                    project: project.to_string(),
                    key_id: key_id.to_string(),
                    due: due.0,
                }),
                Record::Clock(ClockRecord { seen }) => Content::Clock(Clock { seen: seen.0 }),
                Record::RootKeys(RootKeysRecord { root_keys }) => {
                    let written = root_keys.iter().map(|(id, seals)| RootKey {
                        id: u64::from_be_bytes(id.0),
                        seals: *seals,
                    });
                    Content::RootKeys(RootKeys {
                        root_keys: written.collect(),
                    })
                }
                Record::Copy => Content::Copy(Copy {}),
            };
            Self {
                content: Some(content),
            }
        }
    }

    impl From<&KeyRecord> for Key {
        fn from(key: &KeyRecord) -> Self {
            let KeyRecord {
                project,
                key_id,
                alias,
                description,
                spec,
                usage,
                state,
                created,
                deletion,
                versions,
            } = key;
            Self {
                project: project.to_string(),
                key_id: key_id.to_string(),
                alias: alias.as_str().to_owned(),
                description: description.as_str().to_owned(),
                spec: spec.name().to_owned(),
                usage: usage.name().to_owned(),
                state: state.code().into(),
                created: created.0,
                deletion: deletion.map(|due| due.0),
                versions: versions.iter().map(Version::from).collect(),
            }
        }
    }

    impl From<&VersionRecord> for Version {
        fn from(version: &VersionRecord) -> Self {
            let VersionRecord {
                version,
                created,
                sealed,
            } = version;
            Self {
                version: version.get(),
                created: created.0,
                sealed: sealed.clone(),
            }
        }
    }

    impl Payload {
        /// The record, if its values are valid.
        pub(super) fn record(self) -> Option<Record> {
            Some(match self.content? {
                Content::Key(key) => Record::Key(key.record()?),
                Content::Alias(Alias {
                    project,
                    alias,
                    key_id,
                }) => Record::Alias(AliasRecord {
                    project: project.parse().ok()?,
                    alias: alias.parse().ok()?,
                    key_id: key_id.parse().ok()?,
                }),
                Content::Deletion(Deletion {
                    project,
                    key_id,
                    due,
                }) => Record::Deletion(DeletionRecord {
                    project: project.parse().ok()?,
                    key_id: key_id.parse().ok()?,
                    due: Timestamp(due),
                }),
                Content::Clock(Clock { seen }) => Record::Clock(ClockRecord {
                    seen: Timestamp(seen),
                }),
                Content::RootKeys(RootKeys { root_keys }) => {
                    Record::RootKeys(root_keys_record(&root_keys)?)
                }
                Content::Copy(Copy {}) => Record::Copy,
            })
        }
    }

    /// The record, if its root keys are in their order, each is there once, and one seals.
    fn root_keys_record(written: &[RootKey]) -> Option<RootKeysRecord> {
        let ordered = written.is_sorted_by(|one, next| one.id < next.id);
        let seals = written.iter().any(|key| key.seals);
        let root_keys = written
            .iter()
            .map(|key| (RootKeyId(key.id.to_be_bytes()), key.seals));
        (ordered && seals).then(|| RootKeysRecord {
            root_keys: root_keys.collect(),
        })
    }

    impl Key {
        fn record(self) -> Option<KeyRecord> {
            let key = KeyRecord {
                project: self.project.parse().ok()?,
                key_id: self.key_id.parse().ok()?,
                alias: self.alias.parse().ok()?,
                description: self.description.parse().ok()?,
                spec: self.spec.parse().ok()?,
                usage: self.usage.parse().ok()?,
                state: KeyState::from_code(self.state.try_into().ok()?)?,
                created: Timestamp(self.created),
                deletion: self.deletion.map(Timestamp),
                versions: (1..)
                    .zip(self.versions)
                    .map(|(number, version)| version.record(number))
                    .collect::<Option<_>>()?,
            };
            let dated = key.deletion.is_some() == (key.state == KeyState::PendingDeletion);
            let valid = dated && key.spec.allows(key.usage) && !key.versions.is_empty();
            valid.then_some(key)
        }
    }

    impl Version {
        /// The record, if it is that of version `number`: versions are kept without gaps, from 1.
        fn record(self, number: u32) -> Option<VersionRecord> {
            let version =
                KeyVersion::new(self.version).filter(|version| version.get() == number)?;
            Some(VersionRecord {
                version,
                created: Timestamp(self.created),
                sealed: self.sealed,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::key::{KeyId, KeySpec, KeyUsage, ProjectId};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_record_round_trips(record in record()) {
            let bytes = codec(7).encode(&record);
            prop_assert_eq!(codec(7).decode(&record.address(), &bytes).unwrap(), record);
        }

        #[test]
        fn any_changed_byte_is_refused(record in record(), mask in 1..=u8::MAX) {
            let bytes = codec(7).encode(&record);
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= mask;
                prop_assert!(refuses(&record.address(), &changed), "byte {}", at);
            }
        }

        #[test]
        fn any_truncation_or_extension_is_refused(record in record(), more in any::<u8>()) {
            let mut bytes = codec(7).encode(&record);
            for length in 0..bytes.len() {
                prop_assert!(refuses(&record.address(), &bytes[..length]), "{} bytes", length);
            }
            bytes.push(more);
            prop_assert!(refuses(&record.address(), &bytes));
        }

        #[test]
        fn a_record_at_another_address_is_refused(one in record(), other in record()) {
            prop_assume!(one.address() != other.address());
            prop_assert!(refuses(&one.address(), &codec(7).encode(&other)));
        }

        #[test]
        fn no_bytes_cause_a_panic(record in record(), payload in vec(any::<u8>(), 0..200)) {
            prop_assert!(refuses(&record.address(), &payload));
            // Garbage that someone who has the key has authenticated.
            prop_assert!(refuses(&record.address(), &sealed(&payload)));
        }
    }

    #[test]
    fn a_record_under_another_mac_key_is_refused() {
        let record = clock();
        let bytes = codec(8).encode(&record);
        assert!(refuses(&record.address(), &bytes));
    }

    #[test]
    fn a_record_under_a_previous_key_is_read_and_told_apart() {
        let both = codec(7).reading([MacKey::new(vec![8; 32])]);
        for (seed, current) in [(7, true), (8, false)] {
            let bytes = codec(seed).encode(&clock());
            let read = both.read("clock", &bytes, Revision(3)).unwrap();
            assert_eq!(
                read,
                Versioned {
                    record: clock(),
                    revision: Revision(3),
                    current
                }
            );
        }
        let other = codec(9).encode(&clock());
        assert!(both.decode(&Address::Clock, &other).is_err());
        assert_eq!(both.encode(&clock()), codec(7).encode(&clock()));
        // The name of one key before the MAC of the other.
        let mut renamed = codec(8).encode(&clock());
        renamed[1..9].copy_from_slice(&codec(7).current.key_id);
        assert!(both.decode(&Address::Clock, &renamed).is_err());
    }

    #[test]
    fn root_keys_out_of_order_twice_or_none_that_seals_are_refused() {
        let id = |n: u8| [0x09, 0, 0, 0, 0, 0, 0, 0, n];
        let entry = |n: u8, seals: bool| {
            let mut entry = id(n).to_vec();
            if seals {
                entry.extend([0x10, 1]);
            }
            let length = u8::try_from(entry.len()).unwrap();
            [&[0x0a, length][..], &entry].concat()
        };
        let record = |entries: &[Vec<u8>]| {
            let entries = entries.concat();
            let length = u8::try_from(entries.len()).unwrap();
            sealed(&[&[0x2a, length][..], &entries].concat())
        };
        let good = record(&[entry(1, false), entry(2, true)]);
        assert!(!refuses(&Address::RootKeys, &good));
        for bad in [
            vec![],
            vec![entry(1, false)],
            vec![entry(2, true), entry(1, false)],
            vec![entry(1, true), entry(1, true)],
        ] {
            assert!(refuses(&Address::RootKeys, &record(&bad)), "{bad:?}");
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        // The payload is field 4 (tag 0x22) of 2 bytes: field 1 (tag 0x08) with the value 5.
        let payload = [0x22, 2, 0x08, 5];
        let bytes = codec(7).encode(&clock());
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[9..13], payload);
        assert_eq!(bytes.len(), 13 + 32);
        assert_eq!(bytes, sealed(&payload));
        assert_ne!(bytes[1..9], codec(8).encode(&clock())[1..9], "the key id");
    }

    #[test]
    fn the_mac_is_hmac_sha_256() {
        // RFC 4231, test case 2; its key, "Jefe", is shorter than a block, as ours is.
        let codec = Codec::new(MacKey::new(b"Jefe".to_vec()));
        let mac = codec
            .current
            .mac(b"what do ya want for nothing?")
            .finalize();
        let expected = [
            0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95,
            0x75, 0xc7, 0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9,
            0x64, 0xec, 0x38, 0x43,
        ];
        assert_eq!(mac.into_bytes()[..], expected);
    }

    #[test]
    fn a_field_of_a_newer_writer_makes_the_record_unreadable() {
        let known = [0x22, 2, 0x08, 5];
        assert!(!refuses(&Address::Clock, &sealed(&known)));
        // Field 9 (tag 0x48), inside the message and beside it.
        assert!(refuses(
            &Address::Clock,
            &sealed(&[0x22, 4, 0x08, 5, 0x48, 1])
        ));
        assert!(refuses(
            &Address::Clock,
            &sealed(&[0x22, 2, 0x08, 5, 0x48, 1])
        ));
    }

    #[test]
    fn impossible_values_are_refused() {
        let wrong: [fn(&mut KeyRecord); 7] = [
            |key| key.versions.clear(),
            |key| key.versions[0].version = KeyVersion::new(2).unwrap(),
            |key| key.versions.push(key.versions[0].clone()),
            |key| key.state = KeyState::PendingDeletion,
            |key| key.deletion = Some(Timestamp(9)),
            |key| key.usage = KeyUsage::SignVerify,
            |key| {
                let mut gap = key.versions[0].clone();
                gap.version = KeyVersion::new(3).unwrap();
                key.versions.push(gap);
            },
        ];
        let address = Record::Key(key()).address();
        assert!(!refuses(&address, &codec(7).encode(&Record::Key(key()))));
        for (which, spoil) in wrong.iter().enumerate() {
            let mut key = key();
            spoil(&mut key);
            let record = Record::Key(key);
            assert!(refuses(&address, &codec(7).encode(&record)), "{which}");
            let changes = [Change::create(record)];
            let put = codec(7).encode_changes(&changes);
            assert!(matches!(put, Err(StoreError::Corrupt(_))), "{which}");
        }
    }

    fn codec(seed: u8) -> Codec {
        Codec::new(MacKey::new(vec![seed; 32]))
    }

    fn refuses(address: &Address, bytes: &[u8]) -> bool {
        match codec(7).decode(address, bytes) {
            Ok(_) => false,
            Err(StoreError::Corrupt(at)) => at == address.to_string(),
            Err(error) => panic!("{error}"),
        }
    }

    /// `payload` with everything around it right.
    fn sealed(payload: &[u8]) -> Vec<u8> {
        let codec = codec(7);
        let bytes = [&[FORMAT][..], &codec.current.key_id, payload].concat();
        let mac = codec.current.mac(&bytes).finalize().into_bytes();
        [&bytes[..], &mac].concat()
    }

    fn clock() -> Record {
        Record::Clock(ClockRecord { seen: Timestamp(5) })
    }

    fn key() -> KeyRecord {
        KeyRecord {
            project: "p".parse().unwrap(),
            key_id: KeyId::from_random([1; 16]),
            alias: "a".parse().unwrap(),
            description: "".parse().unwrap(),
            spec: KeySpec::Aes256,
            usage: KeyUsage::EncryptDecrypt,
            state: KeyState::Enabled,
            created: Timestamp(1),
            deletion: None,
            versions: vec![VersionRecord {
                version: KeyVersion::FIRST,
                created: Timestamp(1),
                sealed: vec![3; 60],
            }],
        }
    }

    fn record() -> impl Strategy<Value = Record> {
        let deletion = (project(), key_id(), any::<i64>()).prop_map(|(project, key_id, due)| {
            Record::Deletion(DeletionRecord {
                project,
                key_id,
                due: Timestamp(due),
            })
        });
        let alias =
            (project(), "[a-zA-Z0-9:_-]{1,40}", key_id()).prop_map(|(project, alias, key_id)| {
                Record::Alias(AliasRecord {
                    project,
                    alias: alias.parse().unwrap(),
                    key_id,
                })
            });
        let clock = any::<i64>().prop_map(|seen| {
            Record::Clock(ClockRecord {
                seen: Timestamp(seen),
            })
        });
        let root_keys = (
            btree_map(any::<[u8; 8]>().prop_map(RootKeyId), any::<bool>(), 0..4),
            any::<[u8; 8]>(),
        )
            .prop_map(|(mut root_keys, sealing)| {
                root_keys.insert(RootKeyId(sealing), true);
                Record::RootKeys(RootKeysRecord { root_keys })
            });
        prop_oneof![
            2 => key_record().prop_map(Record::Key),
            1 => alias,
            1 => deletion,
            1 => clock,
            1 => root_keys,
            1 => Just(Record::Copy),
        ]
    }

    fn key_record() -> impl Strategy<Value = KeyRecord> {
        let offers: Vec<(KeySpec, KeyUsage)> = KeySpec::ALL
            .iter()
            .flat_map(|&spec| KeyUsage::ALL.iter().map(move |&usage| (spec, usage)))
            .filter(|(spec, usage)| spec.allows(*usage))
            .collect();
        (
            (project(), key_id(), "[a-zA-Z0-9:/_-]{1,40}x", "\\PC{0,40}"),
            proptest::sample::select(offers),
            proptest::sample::select(KeyState::ALL),
            (any::<i64>(), any::<i64>()),
            vec((any::<i64>(), vec(any::<u8>(), 0..80)), 1..4),
        )
            .prop_map(|(names, (spec, usage), state, (created, due), versions)| {
                let (project, key_id, alias, description) = names;
                let deletion = (state == KeyState::PendingDeletion).then_some(Timestamp(due));
                let versions =
                    (1..)
                        .zip(versions)
                        .map(|(number, (created, sealed))| VersionRecord {
                            version: KeyVersion::new(number).unwrap(),
                            created: Timestamp(created),
                            sealed,
                        });
                KeyRecord {
                    project,
                    key_id,
                    alias: alias.parse().unwrap(),
                    description: description.parse().unwrap(),
                    spec,
                    usage,
                    state,
                    created: Timestamp(created),
                    deletion,
                    versions: versions.collect(),
                }
            })
    }

    fn project() -> impl Strategy<Value = ProjectId> {
        "[a-zA-Z0-9_-]{1,20}".prop_map(|text| text.parse().unwrap())
    }

    fn key_id() -> impl Strategy<Value = KeyId> {
        any::<[u8; 16]>().prop_map(KeyId::from_random)
    }
}
