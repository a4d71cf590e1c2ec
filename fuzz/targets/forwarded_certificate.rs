//! What a proxy says of its client's certificate in `x-forwarded-client-cert`. Its last element alone
//! tells who the client is, whatever stands before it, and as it stands there.
#![no_main]

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderValue, Method, Uri};
use kmsgate::auth::mtls::{Forwarded, Neighbour, Rule, Rules};
use kmsgate::auth::{AuthError, Authenticator, Evidence, Peer};
use kmsgate::domain::caller::{Action, Actions};
use kmsgate_fuzz::{PROJECT, Still, byte, now, part};
use libfuzzer_sys::fuzz_target;

const BILLING: &str = "spiffe://example.org/billing";
const SHOP: &str = "dns:shop.example.org";

static PEER: Peer = Peer::unix(0);

static FORWARDED: LazyLock<Forwarded> = LazyLock::new(|| {
    let rule = |identity: &str| Rule {
        identity: identity.parse().unwrap(),
        project: PROJECT.parse().unwrap(),
        roles: Arc::default(),
        actions: Actions::from_iter([Action::EncryptData]),
    };
    let rules = Rules::new(vec![rule(BILLING), rule(SHOP)]);
    Forwarded::new(Arc::new(rules), vec![Neighbour::Unix], Arc::new(Still))
});

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    match byte(&mut rest) {
        b'!' => written(rest),
        _ => read(data),
    }
});

/// Whom a header stands for; none if it cannot be one.
fn told(header: &[u8]) -> Option<Result<Option<String>, AuthError>> {
    let mut headers = HeaderMap::new();
    headers.insert(
        "x-forwarded-client-cert",
        HeaderValue::from_bytes(header).ok()?,
    );
    let evidence = Evidence {
        method: &Method::POST,
        uri: &Uri::from_static("/"),
        headers: &headers,
        body: None,
        peer: &PEER,
    };
    let answer = now(FORWARDED.authenticate(&evidence));
    Some(answer.map(|caller| caller.map(|caller| caller.name.to_string())))
}

/// Any header, and what becomes of it with another element.
fn read(header: &[u8]) {
    let Some(answer) = told(header) else {
        return;
    };
    if let Ok(Some(name)) = &answer {
        let text = String::from_utf8_lossy(header).to_ascii_lowercase();
        assert!(text.contains(name.trim_start_matches("dns:")));
    }
    for (element, whom) in [
        (format!("Hash=1;URI={BILLING}"), Some(BILLING)),
        ("uri=spiffe://example.org/other".to_owned(), None),
    ] {
        let longer = [header, b",", element.as_bytes()].concat();
        let Some(longer) = told(&longer) else {
            unreachable!("a comma and an element are fit for a header");
        };
        match &answer {
            Ok(_) => assert_eq!(longer.unwrap().as_deref(), whom),
            // A quote that was open may end in the element, which can then be no pair.
            Err(_) => assert!(longer.is_err()),
        }
    }
}

/// A header of elements that are written as proxies write them, and whom its last stands for.
fn written(mut data: &[u8]) {
    let mut elements = Vec::new();
    let mut last = (Vec::new(), Vec::new());
    while !data.is_empty() {
        let (mut pairs, mut uris, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..=byte(&mut data) % 4 {
            let key = ["By", "Hash", "Subject", "URI", "dNs"][usize::from(byte(&mut data)) % 5];
            let value = match byte(&mut data) % 4 {
                0 => BILLING.to_owned(),
                1 => "Shop.example.org".to_owned(),
                _ => {
                    let printable = part(&mut data).iter().map(|byte| byte % 95 + 32);
                    printable.map(char::from).collect()
                }
            };
            let quoted = value.replace('\\', r"\\").replace('"', "\\\"");
            pairs.push(format!("{key}=\"{quoted}\""));
            match key {
                "URI" => uris.push(value),
                "dNs" => names.push(value.to_ascii_lowercase()),
                _ => {}
            }
        }
        elements.push(pairs.join(";"));
        last = (uris, names);
    }
    let (uris, names) = last;
    let whom = if uris == [BILLING] {
        Some(BILLING)
    } else if names.iter().any(|name| format!("dns:{name}") == SHOP) {
        Some(SHOP)
    } else {
        None
    };
    if let Some(answer) = told(elements.join(",").as_bytes()) {
        // Nothing at all is no element.
        assert_eq!(
            answer.ok(),
            (!elements.is_empty()).then(|| whom.map(str::to_owned))
        );
    }
}
