//! Identities that a certificate tells, and patterns of them.
//!
//! An identity is one text, the same in rules, in policies, in logs and in the audit: the SPIFFE ID
//! as it is, or `dns:` and a DNS name in lower case.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most bytes of a SPIFFE ID (SPIFFE ID specification, section 2.3).
const MAX_SPIFFE: usize = 2048;

/// The most bytes of a trust domain (section 2.1) and of a DNS name (RFC 1035, section 2.3.4).
const MAX_DNS: usize = 255;

/// Who a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Arc<str>);

impl Identity {
    /// The identity that a SPIFFE ID is: `spiffe://`, a trust domain, and a path of one segment or
    /// more (SPIFFE ID specification, sections 2.1 and 2.2). Nothing is normalised: what is not
    /// written as the specification wants it is none.
    pub fn spiffe(uri: &str) -> Option<Self> {
        let (domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let fits = uri.len() <= MAX_SPIFFE && is_domain(domain) && path.split('/').all(is_segment);
        fits.then(|| Self(uri.into()))
    }

    /// The identity that a DNS name is. A wildcard is none: whoever has its certificate could be
    /// anyone of many.
    pub fn dns(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        is_domain(&name).then(|| Self(format!("dns:{name}").into()))
    }

    /// The text, as rules and logs have it.
    pub const fn text(&self) -> &Arc<str> {
        &self.0
    }
}

/// Identities that a rule is for: one, or all SPIFFE IDs below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPattern {
    text: String,
    /// Whether it is for all that begin with `text`.
    below: bool,
}

impl IdentityPattern {
    /// Whether the pattern is for `identity`.
    pub fn matches(&self, identity: &Identity) -> bool {
        if self.below {
            identity.0.starts_with(&self.text)
        } else {
            *identity.0 == self.text
        }
    }
}

/// The text is no pattern of identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected spiffe://TRUST-DOMAIN/PATH, where the path may end with /*, or dns:NAME in lower case"
)]
pub struct InvalidIdentity;

impl FromStr for IdentityPattern {
    type Err = InvalidIdentity;

    /// A `*` stands at the end and after a `/` alone, so that nobody's name is the beginning of
    /// another's.
    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let below = text.strip_suffix('*').filter(|text| text.ends_with('/'));
        if let Some(text) = below {
            // What stands before the star is the beginning of an identity if a segment makes it one.
            Identity::spiffe(&format!("{text}x")).ok_or(InvalidIdentity)?;
            return Ok(Self {
                text: text.to_owned(),
                below: true,
            });
        }
        let known = match text.strip_prefix("dns:") {
            Some(name) => Identity::dns(name).filter(|identity| *identity.0 == *text),
            None => Identity::spiffe(text),
        };
        known.ok_or(InvalidIdentity)?;
        Ok(Self {
            text: text.to_owned(),
            below: false,
        })
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*" } else { "" };
        write!(f, "{}{star}", self.text)
    }
}

/// Lower-case letters, digits, dots, hyphens and underscores. Neither specification lets a trust
/// domain or a host name have others.
fn is_domain(text: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    (1..=MAX_DNS).contains(&text.len()) && text.bytes().all(fits)
}

/// Letters, digits, dots, hyphens and underscores, and no name that means another place.
fn is_segment(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !["", ".", ".."].contains(&text) && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_written_as_the_specification_has_it() {
        for good in [
            "spiffe://example.org/ns/shop/sa/billing",
            "spiffe://td_1-a/x",
            "spiffe://10.0.0.1/A.b_c-D",
        ] {
            assert_eq!(&**Identity::spiffe(good).unwrap().text(), good);
        }
        let long = format!("spiffe://a/{}", "x".repeat(MAX_SPIFFE - 11));
        assert!(Identity::spiffe(&long).is_some());
        for bad in [
            "",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///x",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a/",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/./b",
            "spiffe://Example.org/a",
            "SPIFFE://example.org/a",
            "spiffe://example.org:443/a",
            "spiffe://user@example.org/a",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org/a%2fb",
            "spiffe://example.org/\u{430}",
            "https://example.org/a",
            &format!("{long}x"),
            &format!("spiffe://{}/a", "d".repeat(MAX_DNS + 1)),
        ] {
            assert_eq!(Identity::spiffe(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_dns_name_has_no_case_and_no_wildcard() {
        let name = Identity::dns("Billing.Shop.svc").unwrap();
        assert_eq!(&**name.text(), "dns:billing.shop.svc");
        for bad in ["", "*.shop.svc", "a b", "a/b", "b\u{fc}cher.example"] {
            assert_eq!(Identity::dns(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_pattern_is_for_one_identity_or_for_all_below_a_path() {
        let billing = Identity::spiffe("spiffe://example.org/ns/shop/sa/billing").unwrap();
        let host = Identity::dns("billing.shop.svc").unwrap();
        for (pattern, spiffe, dns) in [
            ("spiffe://example.org/ns/shop/sa/billing", true, false),
            ("spiffe://example.org/ns/shop/*", true, false),
            ("spiffe://example.org/*", true, false),
            ("spiffe://example.org/ns/shop/sa/bill", false, false),
            ("spiffe://example.org/ns/sho/*", false, false),
            ("spiffe://example.or/*", false, false),
            ("dns:billing.shop.svc", false, true),
            ("dns:billing.shop", false, false),
        ] {
            let parsed: IdentityPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&billing), spiffe, "{pattern}");
            assert_eq!(parsed.matches(&host), dns, "{pattern}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn a_pattern_that_could_match_more_than_it_says_is_refused() {
        for bad in [
            "",
            "*",
            "spiffe://*",
            "spiffe://example*",
            "spiffe://example.org/ns/sho*",
            "spiffe://example.org/*/sa/billing",
            "spiffe://example.org",
            "dns:*",
            "dns:*.svc",
            "dns:svc/*",
            "dns:Billing",
            "dns:",
            "billing",
        ] {
            assert!(bad.parse::<IdentityPattern>().is_err(), "{bad}");
        }
    }
}
