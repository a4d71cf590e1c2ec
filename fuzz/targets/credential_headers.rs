//! Headers as they come: a name and a value a line, then a body. Nobody is let in who does not send
//! the one token that is known, and a signature is found before the body is read exactly if one is
//! checked after.
#![no_main]

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use kmsgate::auth::aksk::AccessKeys;
use kmsgate::auth::token::{Entry, Tokens};
use kmsgate::auth::{AuthError, Authenticator, Chain, Evidence, Peer};
use kmsgate_fuzz::{Scratch, Still, now};
use libfuzzer_sys::fuzz_target;

const TOKEN: &[u8] = b"known-token";

static PEER: Peer = Peer::unix(0);

static CHAIN: LazyLock<Chain> = LazyLock::new(|| {
    let file = Scratch::new();
    file.write(
        b"[[access_key]]\naccess_key = \"AK\"\nsecret_key = \"unknown to the fuzzer: 60a1c28\"\nproject = \"p\"\nactions = [\"kms:*\"]\n",
    );
    let access_keys = AccessKeys::load(file.path(), Arc::new(Still)).unwrap();
    let entry = Entry {
        name: "n",
        project: "p",
        expires: None,
        actions: &["kms:*"],
    };
    file.write(entry.render(TOKEN).unwrap().as_bytes());
    let tokens = Tokens::load(file.path(), Arc::new(Still)).unwrap();
    let both: [Arc<dyn Authenticator>; 2] = [Arc::new(access_keys), Arc::new(tokens)];
    Chain::new(both.into())
});

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    let mut lines = data.split(|byte| *byte == b'\n');
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let body = lines.next().unwrap_or_default();
    let method = Method::POST;
    let uri = Uri::from_static("/v1.0/p/kms/list-keys");
    let evidence = |body| Evidence {
        method: &method,
        uri: &uri,
        headers: &headers,
        body,
        peer: &PEER,
    };
    let signs = CHAIN.signs_body(&headers);
    for body in [None, Some(body)] {
        match now(CHAIN.authenticate(&evidence(body))) {
            Ok(_) => {
                assert!(data.windows(TOKEN.len()).any(|window| window == TOKEN));
                assert!(!signs);
            }
            Err(AuthError::BadSignature(_)) => {}
            Err(_) => assert!(!signs),
        }
    }
});
