//! The file of access keys, with a secret in as many places as the input likes. One that loads is TOML
//! that says nothing but entries, each with a secret; neither it nor what refuses it tells a secret.
#![no_main]

use std::sync::{Arc, LazyLock};

use kmsgate::auth::aksk::AccessKeys;
use kmsgate_fuzz::{Scratch, Still, part};
use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};

static FILE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

/// How every secret begins and ends, so that one which was told in part or with escapes is found too.
const ENDS: [&str; 2] = ["7f3a91c0", "e08d4b62"];

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let secret = String::from_utf8_lossy(part(&mut rest));
    let secret = ENDS.join(&*secret);
    // A sign in its place, because a change of the input would break the secret itself.
    let text: Vec<_> = rest.split(|byte| *byte == b'@').collect();
    let text = text.join(secret.as_bytes());
    FILE.write(&text);
    let told = match AccessKeys::load(FILE.path(), Arc::new(Still)) {
        Ok(keys) => {
            let table: Table = std::str::from_utf8(&text).unwrap().parse().unwrap();
            assert!(table.keys().all(|key| key == "access_key"));
            let entries = table.get("access_key").and_then(Value::as_array);
            // TOML's reader takes a list for an entry too: its settings in their order.
            for entry in entries.into_iter().flatten().filter_map(Value::as_table) {
                let key = entry["access_key"].as_str().unwrap();
                assert!(!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()));
                assert!(!entry["secret_key"].as_str().unwrap().is_empty());
                assert!(entry.get("actions").or(entry.get("roles")).is_some());
            }
            format!("{keys:?}")
        }
        Err(error) => format!("{error:?} {error}"),
    };
    assert!(!ENDS.iter().any(|end| told.contains(*end)), "{told}");
});
