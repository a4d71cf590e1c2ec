//! Bodies, read strictly: one JSON object whose members are text.
//!
//! Every member of every request is a JSON string, numbers and enumerations too (contract, section
//! 5), so one reader serves every operation. `null` is the same as absent. Members that are not
//! known are ignored, but they must be sound: text that is not UTF-8, half of a surrogate pair, a
//! repeated name or absurd nesting is refused wherever it stands, lest another reader of the same
//! bytes sees another request.
//!
//! Nearly all bodies are plain: known names and texts without an escape. Those are read here, with
//! vector instructions, in half the time that serde_json takes; it judges all others, and a plain body
//! says the same to both.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::ops::Deref;

use memchr::memchr;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use zeroize::Zeroize;

use crate::error::{Error, Kind};

/// The members of `body` with these names, in this order.
pub(super) fn members<'b, const N: usize>(
    body: &'b [u8],
    names: [&str; N],
) -> Result<[Option<Text<'b>>; N], Error> {
    match plain(body, names) {
        Some(members) => Ok(members),
        None => general(body, names),
    }
}

/// The members of a body that is plain: one object whose members are asked for, each once, with texts
/// that hold no escape.
fn plain<'b, const N: usize>(body: &'b [u8], names: [&str; N]) -> Option<[Option<Text<'b>>; N]> {
    let body = str::from_utf8(body).ok()?;
    let mut found = [const { None::<Text<'b>> }; N];
    let mut rest = after_space(body).strip_prefix('{')?;
    loop {
        let (name, after_name) = plain_text(after_space(rest))?;
        let after_colon = after_space(after_name).strip_prefix(':')?;
        let (value, after_value) = plain_text(after_space(after_colon))?;
        let mut slots = names.iter().zip(&mut found);
        let (_, slot) = slots.find(|(known, _)| **known == name)?;
        if slot.replace(Text(Cow::Borrowed(value))).is_some() {
            return None;
        }
        let after_value = after_space(after_value);
        match after_value.strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                let end = after_space(after_value.strip_prefix('}')?);
                return end.is_empty().then_some(found);
            }
        }
    }
}

/// The text that `input` begins with, quoted and without an escape, and what comes after it.
fn plain_text(input: &str) -> Option<(&str, &str)> {
    let input = input.strip_prefix('"')?;
    let (text, rest) = input.split_at_checked(memchr(b'"', input.as_bytes())?)?;
    // Without a way out of the loop, so that many bytes are looked at together.
    let escapes = text
        .bytes()
        .fold(false, |found, byte| found | (byte < b' ') | (byte == b'\\'));
    (!escapes).then_some((text, rest.strip_prefix('"')?))
}

/// What comes after the white space that `input` begins with (RFC 8259, section 2).
fn after_space(input: &str) -> &str {
    input.trim_start_matches([' ', '\t', '\n', '\r'])
}

/// The members of any body.
fn general<'b, const N: usize>(
    body: &'b [u8],
    names: [&str; N],
) -> Result<[Option<Text<'b>>; N], Error> {
    let mut input = serde_json::Deserializer::from_slice(body);
    let found = Members(names).deserialize(&mut input);
    found
        .and_then(|members| input.end().map(|()| members))
        // The reader's own error quotes the body, so it goes nowhere.
        .map_err(|_| Kind::InvalidJson.into())
}

/// The text of a member: a part of the body, or unescaped from it and then wiped.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Text<'b>(Cow<'b, str>);

impl Text<'_> {
    /// The text as a value of its own.
    pub(super) fn into_string(mut self) -> String {
        mem::take(&mut self.0).into_owned()
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(text) = &mut self.0 {
            text.zeroize();
        }
    }
}

impl<'b> Deserialize<'b> for Text<'b> {
    fn deserialize<D: Deserializer<'b>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'b> Visitor<'b> for Reader {
            type Value = Text<'b>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'b str) -> Result<Text<'b>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'b>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        input.deserialize_str(Reader)
    }
}

/// Reads the members with these names out of an object.
struct Members<'n, const N: usize>([&'n str; N]);

impl<'b, const N: usize> DeserializeSeed<'b> for Members<'_, N> {
    type Value = [Option<Text<'b>>; N];

    fn deserialize<D: Deserializer<'b>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'b, const N: usize> Visitor<'b> for Members<'_, N> {
    type Value = [Option<Text<'b>>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        // The outer option says whether the name was met, the inner one whether its value was null.
        let mut found = [const { None::<Option<Text<'b>>> }; N];
        let mut unknown = BTreeSet::new();
        while let Some(name) = object.next_key::<Text<'b>>()? {
            let mut slots = self.0.iter().zip(&mut found);
            let repeated = match slots.find(|(known, _)| **known == &*name) {
                Some((_, slot)) => slot.replace(object.next_value()?).is_some(),
                None => {
                    let Ignored = object.next_value()?;
                    !unknown.insert(name)
                }
            };
            if repeated {
                return Err(A::Error::custom("a repeated name"));
            }
        }
        Ok(found.map(Option::flatten))
    }
}

/// A value that no one asked for. Serde's own `IgnoredAny` passes over text unread and over nesting
/// of any depth.
struct Ignored;

impl<'b> Deserialize<'b> for Ignored {
    fn deserialize<D: Deserializer<'b>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Self)
    }
}

impl<'b> Visitor<'b> for Ignored {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut array: A) -> Result<Self, A::Error> {
        while array.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'b>>(self, mut object: A) -> Result<Self, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, _)) = object.next_entry::<Text<'b>, Self>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a repeated name"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::sample::Index;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    #[test]
    fn a_body_with_texts_that_hold_no_escape_is_plain() {
        for body in [
            r#"{"a":"1"}"#,
            r#"{"c":"","a":"1"}"#,
            "{\"b\" : \"2\" ,\r\n\t\"a\": \"é {\u{7f}\"} \n",
        ] {
            let members = plain(body.as_bytes(), NAMES);
            assert_eq!(members, read(body.as_bytes()), "{body}");
            assert!(members.is_some(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn a_body_says_the_same_to_both_readers_wherever_a_character_is_put_into_it(
            members in vec("[ \n]?\"[a-d]\" ?: ?\"[a-zé]{0,3}\"", 1..4),
            put in "[\"\\\\,:{}é0 \u{1}\u{b}]?",
            place in any::<Index>(),
        ) {
            let mut body = format!("{{{}}}", members.join(","));
            let places: Vec<usize> = body.char_indices().map(|(at, _)| at).collect();
            body.insert_str(places[place.index(places.len())], &put);
            let general = general(body.as_bytes(), NAMES).ok();
            match plain(body.as_bytes(), NAMES) {
                Some(members) => prop_assert_eq!(Some(members), general),
                // It reads what is sound, known and not repeated.
                None => prop_assert!(
                    general.is_none() || !put.is_empty() || body.contains('d'),
                    "{body}"
                ),
            }
        }
    }

    #[test]
    fn members_are_found_by_name_in_any_order() {
        let [a, b, c] = read(br#" { "c" : "3", "x": [{"a": 1.5e3}], "a" : "1" } "#).unwrap();
        assert_eq!(a.as_deref(), Some("1"));
        assert_eq!(b.as_deref(), None);
        assert_eq!(c.as_deref(), Some("3"));
    }

    #[test]
    fn a_null_member_is_absent() {
        let [a, b, c] = read(br#"{"a":null,"b":null,"c":""}"#).unwrap();
        assert!(a.is_none() && b.is_none());
        assert_eq!(c.as_deref(), Some(""));
    }

    #[test]
    fn escapes_are_read_as_rfc_8259_section_7_has_them() {
        let [a, b, _] =
            read(br#"{"\u0061":"\ud834\udd1e \"\\\/\b\f\n\r\t","b":"\u0000"}"#).unwrap();
        assert_eq!(a.as_deref(), Some("𝄞 \"\\/\u{8}\u{c}\n\r\t"));
        assert_eq!(b.as_deref(), Some("\0"));
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        for body in [
            "",
            " ",
            "null",
            "[]",
            r#"["1","2","3"]"#,
            r#""a""#,
            "1",
            "a",
            "{",
            "{]",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":"1",}"#,
            r#"{"a":"1"}}"#,
            r#"{"a":"1"}{}"#,
            r#"{"a":"1"} x"#,
            r#"{'a':"1"}"#,
            r#"{a:"1"}"#,
            r#"{"a":"1"/**/}"#,
            r#"{"x":01}"#,
            r#"{"x":NaN}"#,
            "\u{feff}{}",
            "{\"a\":\"\n\"}",
            "{\"x\":\"\n\"}",
            r#"{"a":"\x41"}"#,
        ] {
            assert!(read(body.as_bytes()).is_none(), "{body:?}");
        }
    }

    #[test]
    fn a_name_is_given_once_at_most() {
        for body in [
            r#"{"a":"1","a":"1"}"#,
            r#"{"a":"1","\u0061":"1"}"#,
            r#"{"a":null,"a":"1"}"#,
            r#"{"a":"1","a":null}"#,
            r#"{"x":1,"x":2}"#,
            r#"{"x":1,"\u0078":2}"#,
            r#"{"x":{"a":1,"a":2}}"#,
        ] {
            assert!(read(body.as_bytes()).is_none(), "{body}");
        }
        assert!(read(br#"{"x":1,"X":2,"y":{"x":1}}"#).is_some());
    }

    #[test]
    fn text_is_unicode_wherever_it_stands() {
        for bad in [
            &br"\ud834"[..],
            br"\udd1e",
            br"\udd1e\ud834",
            br"\ud834x",
            br"\ud834\n",
            br"\ud8",
            b"\xff",
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf5\x80\x80\x80",
        ] {
            for (before, after) in [
                ("{\"a\":\"", "\"}"),
                ("{\"x\":\"", "\"}"),
                ("{\"x\":[{\"y\":\"", "\"}]}"),
                ("{\"", "\":\"1\"}"),
                ("{\"x\":{\"", "\":1}}"),
            ] {
                let body = [before.as_bytes(), bad, after.as_bytes()].concat();
                assert!(read(&body).is_none(), "{body:?}");
            }
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |deep: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
        assert!(read(nested(100).as_bytes()).is_some());
        assert!(read(nested(200).as_bytes()).is_none());
        assert!(read(nested(32_000).as_bytes()).is_none());
    }

    fn read(body: &[u8]) -> Option<[Option<Text<'_>>; 3]> {
        match members(body, NAMES) {
            Ok(found) => {
                assert_eq!(Some(&found), general(body, NAMES).ok().as_ref());
                Some(found)
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::InvalidJson);
                assert_eq!(error.to_string(), Kind::InvalidJson.row().text);
                None
            }
        }
    }
}
