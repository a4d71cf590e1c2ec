//! The configuration. One that is accepted is TOML, names where credentials are, and is refused as
//! soon as any table in it holds a name that is not known; a duration that is accepted is digits and
//! a unit.
#![no_main]

use kmsgate::config::{Config, parse_duration};
use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if parse_duration(text).is_some() {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        assert!(unit.len() < text.len() && ["ms", "s", "m"].contains(&unit));
    }
    let Ok(config) = Config::parse(text) else {
        return;
    };
    let table: Table = text.parse().unwrap();
    // TOML's reader takes a list for a section too: its settings in their order, without names.
    if let Some(auth) = table["auth"].as_table() {
        let kinds = ["token_file", "access_key_file", "jwt", "iam", "mtls"];
        assert!(kinds.iter().any(|kind| auth.contains_key(*kind)));
    }
    assert!(Config::parse(text).unwrap() == config);
    for before in 0.. {
        let (mut misspelt, mut before) = (table.clone(), before);
        if !misspell(&mut misspelt, &mut before) {
            break;
        }
        let misspelt = misspelt.to_string();
        assert!(Config::parse(&misspelt).is_err(), "{misspelt}");
    }
});

/// Where lists of tables stand.
const LISTS: [&str; 4] = ["providers", "mtls", "jwt", "rules"];

/// Puts a name that is not known into the table that comes after so many others; false if there is
/// none. `claims`, whose names are free, takes no truth value.
fn misspell(table: &mut Table, before: &mut usize) -> bool {
    if *before == 0 {
        table.insert("no_such_name".into(), true.into());
        return true;
    }
    *before -= 1;
    table.iter_mut().any(|(name, value)| match value {
        Value::Table(table) => misspell(table, before),
        Value::Array(list) if LISTS.contains(&name.as_str()) => {
            let mut tables = list.iter_mut().filter_map(Value::as_table_mut);
            tables.any(|table| misspell(table, before))
        }
        _ => false,
    })
}
