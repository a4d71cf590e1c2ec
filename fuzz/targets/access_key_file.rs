//! The file of access keys. One that loads is TOML that says nothing but entries, each with a
//! secret; what refuses it names no secret.
#![no_main]

use std::sync::{Arc, LazyLock};

use kmsgate::auth::aksk::AccessKeys;
use kmsgate_fuzz::{Scratch, Still};
use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};

static FILE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

/// Stands in the committed files as a secret key.
const SECRET: &str = "SKEXAMPLEsecretsecretsecretsecretsecret";

fuzz_target!(|text: &[u8]| {
    FILE.write(text);
    match AccessKeys::load(FILE.path(), Arc::new(Still)) {
        Ok(keys) => {
            assert!(!format!("{keys:?}").contains(SECRET));
            let table: Table = std::str::from_utf8(text).unwrap().parse().unwrap();
            assert!(table.keys().all(|key| key == "access_key"));
            let entries = table.get("access_key").and_then(Value::as_array);
            for entry in entries.into_iter().flatten() {
                let key = entry["access_key"].as_str().unwrap();
                assert!(!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()));
                assert!(!entry["secret_key"].as_str().unwrap().is_empty());
                assert!(entry.get("actions").or(entry.get("roles")).is_some());
            }
        }
        Err(error) => assert!(!format!("{error:?} {error}").contains(SECRET)),
    }
});
