//! The configuration. One that is accepted is TOML, names where credentials are, and is refused as
//! soon as it holds a name that is not known; a duration that is accepted is digits and a unit.
#![no_main]

use kmsgate::config::{Config, parse_duration};
use libfuzzer_sys::fuzz_target;
use toml::Table;

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
    let auth = table["auth"].as_table().unwrap();
    let kinds = ["token_file", "access_key_file", "jwt", "iam", "mtls"];
    assert!(kinds.iter().any(|kind| auth.contains_key(*kind)));
    assert!(Config::parse(text).unwrap() == config);
    for place in ["", "auth"] {
        let mut misspelt = table.clone();
        let inside = match place {
            "" => &mut misspelt,
            place => misspelt[place].as_table_mut().unwrap(),
        };
        inside.insert("no_such_name".into(), true.into());
        assert!(Config::parse(&misspelt.to_string()).is_err());
    }
});
