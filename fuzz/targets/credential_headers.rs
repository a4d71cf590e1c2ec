//! Headers as they come: a name and a value a line, then a body. The answer is the one that a second
//! reading of the same headers gives: who sends the one token that is known, once and in one of its
//! places, is let in as its caller, and everybody else is refused for the reason that is told. A body
//! is read first exactly if nothing but the body is missing to check a signature.
#![no_main]

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use kmsgate::auth::aksk::AccessKeys;
use kmsgate::auth::token::{Entry, Tokens};
use kmsgate::auth::{AuthError, Authenticator, Chain, Evidence, Peer};
use kmsgate::domain::caller::Caller;
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
    let mut kept = Vec::new();
    let mut lines = data.split(|byte| *byte == b'\n');
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            kept.push((name, value));
        }
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &kept {
        headers.append(name, value.clone());
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
    let values = |wanted: &str| -> Vec<&[u8]> {
        let wanted = kept.iter().filter(|(name, _)| name.as_str() == wanted);
        wanted.map(|(_, value)| value.as_bytes()).collect()
    };
    let expected = expected(&values("x-auth-token"), &values("authorization"));
    for body in [None, Some(body)] {
        let answer = now(CHAIN.authenticate(&evidence(body)));
        assert_eq!(said(&answer), expected);
        if body.is_none() {
            let lacks_body = matches!(
                answer,
                Err(AuthError::BadSignature(
                    "AK/SK signatures are for REST only"
                ))
            );
            assert_eq!(CHAIN.signs_body(&headers), lacks_body);
        }
    }
});

#[derive(Debug, PartialEq)]
enum Said {
    LetIn,
    Missing,
    InvalidToken,
    BadSignature,
}

fn said(answer: &Result<Arc<Caller>, AuthError>) -> Said {
    match answer {
        Ok(caller) => {
            assert_eq!((&*caller.name, caller.project.as_str()), ("n", "p"));
            Said::LetIn
        }
        Err(AuthError::Missing) => Said::Missing,
        Err(AuthError::InvalidToken) => Said::InvalidToken,
        Err(AuthError::BadSignature(_)) => Said::BadSignature,
        Err(error) => panic!("no header brings this about: {error}"),
    }
}

/// What the values of `x-auth-token` and of `authorization` deserve. No signature is good: the
/// secret key is nowhere in the corpus, and cannot be guessed.
fn expected(own: &[&[u8]], general: &[&[u8]]) -> Said {
    let is_signature = |value: &&[u8]| {
        let value = value.to_ascii_lowercase();
        value.starts_with(b"sdk-") || value.starts_with(b"v11-")
    };
    if general.iter().any(is_signature) {
        return Said::BadSignature;
    }
    let token = match (own, general) {
        ([], []) => return Said::Missing,
        ([token], []) => *token,
        ([], [value]) => match bearer(value) {
            Some(token) => token,
            None => return Said::Missing,
        },
        _ => return Said::InvalidToken,
    };
    if token == TOKEN {
        Said::LetIn
    } else {
        Said::InvalidToken
    }
}

/// What follows `Bearer`, which ends where the value does or at a space.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let lower = value.to_ascii_lowercase();
    let rest = lower.strip_prefix(b"bearer")?;
    if !rest.is_empty() && rest[0] != b' ' {
        return None;
    }
    let spaces = rest.iter().take_while(|byte| b" \t".contains(byte)).count();
    Some(&value[b"bearer".len() + spaces..])
}
