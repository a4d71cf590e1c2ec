//! Records as a store returns them. The input is what the MAC covers, so that fuzzing reaches the
//! parser behind it; the MAC is made here, as the format has it. A record that is read is written
//! again as it was, and is found at its own address alone; with a byte changed it is corrupt.
#![no_main]

use std::sync::LazyLock;

use hmac::{Hmac, KeyInit, Mac};
use kmsgate::domain::key::ProjectId;
use kmsgate::domain::secret::MacKey;
use kmsgate::domain::time::Timestamp;
use kmsgate::store::codec::Codec;
use kmsgate::store::{Address, ClockRecord, Record, StoreError};
use kmsgate_fuzz::{KEY_ID, PROJECT, byte};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;

const KEY: [u8; 32] = [7; 32];

static CODEC: LazyLock<Codec> = LazyLock::new(|| Codec::new(MacKey::new(KEY.to_vec())));

/// Format and MAC key id, with which every record begins.
static HEAD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let any = Record::Clock(ClockRecord { seen: Timestamp(0) });
    CODEC.encode(&any)[..9].to_vec()
});

fuzz_target!(|data: &[u8]| {
    let mut payload = data;
    let place = byte(&mut payload);
    let mut bytes = [&HEAD[..], payload].concat();
    let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).unwrap();
    mac.update(&bytes);
    bytes.extend(mac.finalize().into_bytes());

    let project: ProjectId = PROJECT.parse().unwrap();
    let places = [
        Address::Key(project.clone(), KEY_ID.parse().unwrap()),
        Address::Alias(project.clone(), "alias".parse().unwrap()),
        Address::Deletion(project, KEY_ID.parse().unwrap()),
        Address::Clock,
        Address::RootKeys,
        Address::Copy,
    ];
    for address in &places {
        match CODEC.decode(address, &bytes) {
            Ok(record) => {
                assert_eq!(record.address(), *address);
                assert_eq!(CODEC.encode(&record), bytes);
                let others = places.iter().filter(|other| *other != address);
                others.for_each(|other| refuses(other, &bytes));
                let at = usize::from(place) * bytes.len() / 256;
                bytes[at] ^= place.max(1);
                refuses(address, &bytes);
                return;
            }
            Err(error) => assert!(matches!(error, StoreError::Corrupt(_)), "{error}"),
        }
    }
    refuses(&Address::Clock, payload);
});

fn refuses(address: &Address, bytes: &[u8]) {
    let refused = CODEC.decode(address, bytes);
    assert!(matches!(refused, Err(StoreError::Corrupt(_))));
}
