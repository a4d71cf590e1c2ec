//! The file of tokens. One that loads is TOML that says nothing but entries, each with a hash; and
//! the entry that is made for a token lets that token in, as whom it names.
#![no_main]

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderValue, Method, Uri};
use kmsgate::auth::token::{Entry, Tokens};
use kmsgate::auth::{Authenticator, Evidence, Peer};
use kmsgate_fuzz::{Scratch, Still, byte, now, part};
use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};

static FILE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    match byte(&mut rest) {
        b'!' => made(part(&mut rest), part(&mut rest), part(&mut rest), rest),
        _ => read(data),
    }
});

fn load() -> Option<Tokens> {
    Tokens::load(FILE.path(), Arc::new(Still)).ok()
}

fn read(text: &[u8]) {
    FILE.write(text);
    if load().is_none() {
        return;
    }
    let table: Table = std::str::from_utf8(text).unwrap().parse().unwrap();
    assert!(table.keys().all(|key| key == "token"));
    for entry in table
        .get("token")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let hash = entry["sha256"].as_str().unwrap();
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        for name in ["name", "project"] {
            let text = entry[name].as_str().unwrap();
            assert!((1..=64).contains(&text.len()) && text.is_ascii());
        }
        assert!(entry.get("actions").or(entry.get("roles")).is_some());
    }
}

fn made(name: &[u8], project: &[u8], action: &[u8], token: &[u8]) {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let (Some(name), Some(project), Some(action)) = (text(name), text(project), text(action))
    else {
        return;
    };
    let entry = Entry {
        name,
        project,
        expires: None,
        actions: &[action],
    };
    let Ok(rendered) = entry.render(token) else {
        return;
    };
    FILE.write(rendered.as_bytes());
    let tokens = load().unwrap();
    let Ok(value) = HeaderValue::from_bytes(token) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-auth-token", value);
    let evidence = Evidence {
        method: &Method::POST,
        uri: &Uri::from_static("/"),
        headers: &headers,
        body: None,
        peer: &Peer::unix(0),
    };
    if token.is_empty() {
        assert!(now(tokens.authenticate(&evidence)).is_err());
        return;
    }
    let caller = now(tokens.authenticate(&evidence)).unwrap().unwrap();
    assert_eq!((&*caller.name, caller.project.as_str()), (name, project));
}
