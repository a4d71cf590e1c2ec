//! The canonical form of a request: what an AK/SK signature covers (contract, sections 6.3 and
//! 6.4).
//!
//! ```text
//! METHOD
//! path, every segment percent-encoded anew, with a slash at the end
//! query, every name and value percent-encoded anew, sorted
//! name:value          for every signed header
//!
//! names of the signed headers, joined with ";"
//! SHA-256 of the body
//! ```
//!
//! All of it comes from the network. Nothing here decides: whatever the form says, the signature
//! must be over it.

use std::fmt::Write;

use http::{HeaderMap, Method, Uri};

use crate::auth::Evidence;
use crate::auth::hex;

/// The most headers that a signature may cover.
const MAX_HEADERS: usize = 64;

/// How values of headers are trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spaces {
    /// None at the ends.
    Trimmed,
    /// None at the ends, and one for each run of them within.
    Collapsed,
}

/// The names of the headers that a signature covers: lower-case, sorted, each once. So no two lists
/// cover the same headers.
#[derive(Clone, Copy)]
pub(super) struct SignedHeaders<'a>(&'a str);

impl<'a> SignedHeaders<'a> {
    /// Reads the names, joined with semicolons.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let names = || text.split(';');
        let lower = |name: &str| !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase());
        let sorted = names().is_sorted_by(|one, next| one < next);
        let fits = names().count() <= MAX_HEADERS && names().all(lower) && sorted;
        fits.then_some(Self(text))
    }

    /// Whether the signature covers the header.
    pub(super) fn contains(self, name: &str) -> bool {
        self.0.split(';').any(|signed| signed == name)
    }
}

/// The canonical form of `request`; none if a signed header is absent, or is there twice, for then
/// it is not said which of the two was signed. `payload` is the body's hash as the client wrote it.
pub(super) fn request(
    request: &Evidence<'_>,
    signed: SignedHeaders<'_>,
    payload: &str,
    spaces: Spaces,
) -> Option<Vec<u8>> {
    let Evidence {
        method,
        uri,
        headers,
        body: _,
        peer: _,
    } = request;
    let mut form = head(method, uri).into_bytes();
    for name in signed.0.split(';') {
        form.extend_from_slice(name.as_bytes());
        form.push(b':');
        push_value(&mut form, value(headers, uri, name)?, spaces);
        form.push(b'\n');
    }
    form.push(b'\n');
    form.extend_from_slice(signed.0.as_bytes());
    form.push(b'\n');
    form.extend_from_slice(payload.as_bytes());
    Some(form)
}

/// The lines above the headers.
fn head(method: &Method, uri: &Uri) -> String {
    let path = path(uri.path());
    let query = query(uri.query().unwrap_or_default());
    format!("{method}\n{path}\n{query}\n")
}

/// The one value of a header. Over HTTP/2 the host stands in the target and not in a header.
fn value<'a>(headers: &'a HeaderMap, uri: &'a Uri, name: &str) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        (None, _) if name == "host" => Some(uri.authority()?.as_str().as_bytes()),
        _ => None,
    }
}

fn push_value(form: &mut Vec<u8>, value: &[u8], spaces: Spaces) {
    match spaces {
        Spaces::Trimmed => form.extend_from_slice(value.trim_ascii()),
        Spaces::Collapsed => {
            let words = value.split(u8::is_ascii_whitespace);
            for (index, word) in words.filter(|word| !word.is_empty()).enumerate() {
                if index > 0 {
                    form.push(b' ');
                }
                form.extend_from_slice(word);
            }
        }
    }
}

/// The path with every segment percent-encoded anew, and a slash at the end.
fn path(raw: &str) -> String {
    let mut path = String::with_capacity(raw.len() + 1);
    for (index, segment) in raw.split('/').enumerate() {
        if index > 0 {
            path.push('/');
        }
        push_encoded(&mut path, &decode(segment));
    }
    if !path.ends_with('/') {
        path.push('/');
    }
    path
}

/// The query with every name and value percent-encoded anew, sorted as they were before they were
/// encoded, which is how Huawei's SDKs sort. A plus sign stands for itself.
fn query(raw: &str) -> String {
    let pairs = raw.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<_> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect();
    pairs.sort_unstable();
    let mut query = String::with_capacity(raw.len());
    for (name, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        push_encoded(&mut query, &name);
        query.push('=');
        push_encoded(&mut query, &value);
    }
    query
}

/// Appends `bytes`, percent-encoded save what RFC 3986, section 2.3, calls unreserved.
fn push_encoded(to: &mut String, bytes: &[u8]) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) {
            to.push(char::from(*byte));
        } else {
            // Writing to a `String` does not fail.
            let _ = write!(to, "%{byte:02X}");
        }
    }
}

/// The bytes that `raw` stands for, percent-decoded once.
fn decode(raw: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((byte, after)) = decode_first(rest) {
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// The first byte that `raw` stands for, and what follows it. A percent sign that begins no escape
/// stands for itself.
fn decode_first(raw: &[u8]) -> Option<(u8, &[u8])> {
    if let [b'%', high, low, rest @ ..] = raw
        && let (Some(high), Some(low)) = (hex::digit(*high), hex::digit(*low))
    {
        return Some((high << 4 | low, rest));
    }
    raw.split_first().map(|(byte, rest)| (*byte, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::auth::Peer;

    #[test]
    fn the_form_is_the_one_of_the_published_example() {
        // Contract, section 6.3, vector 1.
        let headers = headers(&[
            ("content-type", "application/json"),
            ("host", "service.region.example.com"),
            ("x-sdk-date", "20191115T033655Z"),
        ]);
        let uri = "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs?limit=2&marker=13551d6b-755d-4757-b956-536f674975c0";
        let evidence = Evidence {
            method: &Method::GET,
            uri: &uri.parse().unwrap(),
            headers: &headers,
            body: Some(b""),
            peer: &Peer::unix(0),
        };
        let signed = SignedHeaders::parse("content-type;host;x-sdk-date").unwrap();
        let payload = hex::encode(&Sha256::digest(b"").into());
        let form = request(&evidence, signed, &payload, Spaces::Trimmed).unwrap();
        assert_eq!(
            hex::encode(&Sha256::digest(&form).into()),
            "b25362e603ee30f4f25e7858e8a7160fd36e803bb2dfe206278659d71a9bcd7a",
            "{}",
            String::from_utf8_lossy(&form)
        );
    }

    #[test]
    fn a_path_has_one_spelling() {
        let canonical = [
            ("/", "/"),
            ("/a/b", "/a/b/"),
            ("/a/b/", "/a/b/"),
            ("//a", "//a/"),
            ("/%7e%41-._~", "/~A-._~/"),
            ("/%7Bproject_id%7D/x", "/%7Bproject_id%7D/x/"),
            ("/a:b@c", "/a%3Ab%40c/"),
            ("/a%2fb", "/a%2Fb/"),
            ("/%2541", "/%2541/"),
            ("/%4", "/%254/"),
            ("/%zz%", "/%25zz%25/"),
            ("/..", "/../"),
        ];
        for (raw, form) in canonical {
            assert_eq!(path(raw), form, "{raw}");
        }
    }

    #[test]
    fn a_query_has_one_order_and_one_spelling() {
        let canonical = [
            ("", ""),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1", "a=1&a=2"),
            ("a-b=1&a=2", "a=2&a-b=1"),
            ("a", "a="),
            ("a=b=c", "a=b%3Dc"),
            ("a=%7e&&b=+", "a=~&b=%2B"),
            ("%61=1", "a=1"),
            ("a=%7c&a=z&a=%2a", "a=%2A&a=z&a=%7C"),
        ];
        for (raw, form) in canonical {
            assert_eq!(query(raw), form, "{raw}");
        }
    }

    #[test]
    fn signed_headers_are_lower_case_sorted_and_few() {
        let many = |count: usize| {
            let names: Vec<_> = (100..100 + count).map(|n| format!("x-{n}")).collect();
            names.join(";")
        };
        for good in ["host", "content-type;host;x-sdk-date", &many(64)] {
            assert!(SignedHeaders::parse(good).is_some(), "{good}");
        }
        let too_many = many(65);
        for bad in [
            "",
            "Host",
            "host;",
            ";host",
            "host;content-type",
            "host;host",
            &too_many,
        ] {
            assert!(SignedHeaders::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_signed_header_is_there_once() {
        let headers = headers(&[("a", "1"), ("b", "1"), ("b", "2")]);
        let uri = Uri::from_static("https://kms.example:8443/x");
        assert_eq!(value(&headers, &uri, "a"), Some(&b"1"[..]));
        for name in ["b", "c", "", "not a name", ":authority"] {
            assert_eq!(value(&headers, &uri, name), None, "{name:?}");
        }
    }

    #[test]
    fn the_host_may_stand_in_the_target() {
        let uri = Uri::from_static("https://kms.example:8443/x");
        assert_eq!(
            value(&HeaderMap::new(), &uri, "host"),
            Some(&b"kms.example:8443"[..])
        );
        let headers = headers(&[("host", "other")]);
        assert_eq!(value(&headers, &uri, "host"), Some(&b"other"[..]));
        assert_eq!(
            value(&HeaderMap::new(), &Uri::from_static("/x"), "host"),
            None
        );
    }

    #[test]
    fn spaces_are_trimmed_or_collapsed() {
        for (raw, trimmed, collapsed) in [
            ("a", "a", "a"),
            (" a \t b ", "a \t b", "a b"),
            (" ", "", ""),
        ] {
            let form = |spaces| {
                let mut form = Vec::new();
                push_value(&mut form, raw.as_bytes(), spaces);
                form
            };
            assert_eq!(form(Spaces::Trimmed), trimmed.as_bytes(), "{raw:?}");
            assert_eq!(form(Spaces::Collapsed), collapsed.as_bytes(), "{raw:?}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_path_is_its_own_form(raw in "(/|%|%[0-9a-fA-F]{2}|[ -~]|\\PC){0,40}") {
            let form = path(&raw);
            prop_assert_eq!(path(&form), form);
        }

        #[test]
        fn a_canonical_query_is_its_own_form(raw in "([&=]|%|%[0-9a-fA-F]{2}|[ -~]|\\PC){0,40}") {
            let form = query(&raw);
            prop_assert_eq!(query(&form), form);
        }
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }
}
