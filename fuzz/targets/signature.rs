//! AK/SK signatures over any request. The canonical form is written a second time here, from the
//! contract (sections 6.3 and 6.4): what is signed by it is let in, whatever the path, the query,
//! the signed header and the body; and once a byte of any of them or of the method has changed, it is
//! exactly if the canonical form is still the same.
#![no_main]

use std::sync::LazyLock;

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Method, Uri};
use kmsgate::auth::aksk::AccessKeys;
use kmsgate::auth::{Authenticator, Evidence, Peer};
use kmsgate_fuzz::{Scratch, Still, byte, now, part};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

const DATE: &str = "20191115T033655Z";
const SECRET: &str = "SKEXAMPLEsecretsecretsecretsecretsecret";

static KEYS: LazyLock<AccessKeys> = LazyLock::new(|| {
    let file = Scratch::new();
    let text = format!(
        "[[access_key]]\naccess_key = \"AK\"\nsecret_key = \"{SECRET}\"\nproject = \"p\"\nactions = [\"kms:*\"]\n"
    );
    file.write(text.as_bytes());
    AccessKeys::load(file.path(), std::sync::Arc::new(Still)).unwrap()
});

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let kind = byte(&mut rest);
    let flip = byte(&mut rest);
    let at = usize::from(u16::from_be_bytes([byte(&mut rest), byte(&mut rest)]));
    let (target, value) = (part(&mut rest), part(&mut rest));
    // What no HTTP parser lets through need not be looked at.
    let Some(uri) = uri(target) else { return };
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    let request = Asked {
        method: if kind & 1 == 0 {
            Method::POST
        } else {
            Method::PUT
        },
        uri,
        value,
        body: rest.to_vec(),
    };
    let sign = if kind & 2 == 0 { layout_a } else { layout_b };
    let authorization = sign(&request);
    assert!(request.is_let_in(&authorization), "{authorization}");

    // Not the change of nothing.
    let bit = if flip == 0 { 1 } else { flip };
    let flipped = |bytes: &[u8]| flipped(bytes, at, bit);
    let mut changed = request;
    match kind >> 2 & 3 {
        0 => changed.body = flipped(&changed.body),
        1 => {
            let method = Method::from_bytes(&flipped(changed.method.as_str().as_bytes()));
            let Ok(method) = method else { return };
            changed.method = method;
        }
        2 => {
            let value = HeaderValue::from_bytes(&flipped(changed.value.as_bytes()));
            let Ok(value) = value else { return };
            changed.value = value;
        }
        _ => {
            let uri = self::uri(&flipped(target));
            let Some(uri) = uri else { return };
            changed.uri = uri;
        }
    }
    // The change may be one that the canonical form does not show, such as of spaces.
    let same = sign(&changed) == authorization;
    assert_eq!(changed.is_let_in(&authorization), same);
});

/// The bytes with one of them changed; with one more if there are none.
fn flipped(bytes: &[u8], at: usize, bit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % bytes.len().max(1);
    match bytes.get_mut(at) {
        Some(byte) => *byte ^= bit,
        None => bytes.push(bit),
    }
    bytes
}

fn uri(target: &[u8]) -> Option<Uri> {
    let uri = Uri::try_from(target).ok()?;
    (uri.scheme().is_none() && uri.authority().is_none() && uri.path().starts_with('/'))
        .then_some(uri)
}

/// A request as it is sent, without its signature.
struct Asked {
    method: Method,
    uri: Uri,
    value: HeaderValue,
    body: Vec<u8>,
}

impl Asked {
    fn is_let_in(&self, authorization: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("x-sdk-date", HeaderValue::from_static(DATE));
        headers.insert("x-any", self.value.clone());
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        let evidence = Evidence {
            method: &self.method,
            uri: &self.uri,
            headers: &headers,
            body: Some(&self.body),
            peer: &Peer::unix(0),
        };
        assert!(KEYS.signs_body(&headers));
        now(KEYS.authenticate(&evidence)).is_ok_and(|caller| caller.is_some())
    }

    fn canonical_hash(&self, value: &[u8]) -> String {
        let mut form = format!(
            "{}\n{}\n{}\nx-any:",
            self.method,
            path(self.uri.path()),
            query(self.uri.query().unwrap_or_default()),
        )
        .into_bytes();
        form.extend(value);
        let end = format!(
            "\nx-sdk-date:{DATE}\n\nx-any;x-sdk-date\n{}",
            hex(&Sha256::digest(&self.body))
        );
        form.extend(end.into_bytes());
        hex(&Sha256::digest(form))
    }
}

fn layout_a(request: &Asked) -> String {
    let hash = request.canonical_hash(request.value.as_bytes().trim_ascii());
    let text = format!("SDK-HMAC-SHA256\n{DATE}\n{hash}");
    let signature = hex(&hmac(SECRET.as_bytes(), &text));
    format!("SDK-HMAC-SHA256 Access=AK, SignedHeaders=x-any;x-sdk-date, Signature={signature}")
}

fn layout_b(request: &Asked) -> String {
    let words = request.value.as_bytes().split(|byte| b" \t".contains(byte));
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let hash = request.canonical_hash(&words.join(&b' '));
    let day = &DATE[..8];
    let scope = format!("{day}/local/kms/sdk_request");
    let key = hmac(format!("SDK{SECRET}").as_bytes(), day);
    let key = hmac(&hmac(&hmac(&key, "local"), "kms"), "sdk_request");
    let text = format!("SDK-HMAC-SHA256\n{DATE}\n{scope}\n{hash}");
    let signature = hex(&hmac(&key, &text));
    format!(
        "SDK-HMAC-SHA256 Credential=AK/{scope}, SignedHeaders=x-any;x-sdk-date, Signature={signature}"
    )
}

/// The path encoded anew. Decoding and encoding byte for byte leaves the slashes where they are,
/// save that an encoded one stays encoded.
fn path(raw: &str) -> String {
    let segments: Vec<_> = raw.split('/').map(|part| encoded(&decoded(part))).collect();
    let path = segments.join("/");
    if path.ends_with('/') {
        path
    } else {
        path + "/"
    }
}

fn query(raw: &str) -> String {
    let mut pairs = Vec::new();
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = match pair.find('=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, ""),
        };
        pairs.push((decoded(name), decoded(value)));
    }
    pairs.sort();
    let pairs = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn decoded(text: &str) -> Vec<u8> {
    let (text, mut bytes, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < text.len() {
        let escape = text.get(at + 1..at + 3).filter(|_| text[at] == b'%');
        let digits = escape.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match digits {
            Some(digits) => {
                let digits = std::str::from_utf8(digits).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                at += 3;
            }
            None => {
                bytes.push(text[at]);
                at += 1;
            }
        }
    }
    bytes
}

fn encoded(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    let encode = |byte: &u8| match plain(byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    bytes.iter().map(encode).collect()
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
