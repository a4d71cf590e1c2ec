//! The file of rules. One that loads as rules loads as what a server decides by, which then says of
//! any caller, operation and key what the rules say one by one.
#![no_main]

use std::sync::LazyLock;

use kmsgate::auth::policy::{Key, Operation, Policy, Rules};
use kmsgate::domain::algorithm::EncryptionAlgorithm;
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::key::KeyId;
use kmsgate_fuzz::{PROJECT, Scratch, byte, part};
use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};

static FILE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let name = String::from_utf8_lossy(part(&mut rest)).into_owned();
    let role = String::from_utf8_lossy(part(&mut rest)).into_owned();
    let id = KeyId::from_bytes(part(&mut rest)).ok();
    let alias = std::str::from_utf8(part(&mut rest)).unwrap_or_default();
    let alias = alias.parse().ok();
    let operation = Operation {
        action: Action::ALL[usize::from(byte(&mut rest)) % Action::ALL.len()],
        algorithm: EncryptionAlgorithm::ALL[usize::from(byte(&mut rest)) % 3],
    };
    let own = byte(&mut rest) & 1 == 1;
    FILE.write(rest);
    let rules = Rules::load(FILE.path());
    let policy = Policy::load(FILE.path());
    assert_eq!(rules.is_ok(), policy.is_ok());
    let (Ok(rules), Ok(policy)) = (rules, policy) else {
        return;
    };
    let table: Table = std::str::from_utf8(rest).unwrap().parse().unwrap();
    assert!(table.keys().all(|key| key == "rule"));
    let listed = table.get("rule").and_then(Value::as_array);
    for rule in listed.into_iter().flatten() {
        assert!(["allow", "deny"].contains(&rule["effect"].as_str().unwrap()));
        assert!(!rule["actions"].as_array().unwrap().is_empty());
        assert!(rule.get("callers").or(rule.get("roles")).is_some());
    }
    let caller = Caller {
        name: name.into(),
        project: PROJECT.parse().unwrap(),
        roles: [role.into()].into(),
        actions: own
            .then_some(operation.action)
            .into_iter()
            .collect::<Actions>(),
    };
    let key = Key {
        id,
        alias: alias.as_ref(),
    };
    let decided = policy.decide(&caller, operation, key);
    assert_eq!(decided, rules.explain(&caller, operation, key).verdict);
});
