//! Base64 as bodies have it: RFC 4648, section 4, padded, and nothing else accepted.
//!
//! A call with 4096 bytes spends more on Base64 than on encryption unless the vector instructions of
//! the machine do it. They also look up nothing in a table by the bytes of a plaintext.

use std::sync::LazyLock;

use base64::engine::general_purpose::PAD;
use base64::{DecodeError, EncodeSliceError, Engine};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static ENGINE: LazyLock<base64::engine::simd::Simd> =
    LazyLock::new(|| base64::engine::simd::Simd::standard(PAD));

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static ENGINE: LazyLock<base64::engine::GeneralPurpose> =
    LazyLock::new(|| base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, PAD));

/// How many characters `bytes` bytes take.
pub(super) const fn length(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Writes `bytes` into `room`, which has their [`length`].
pub(super) fn encode(bytes: &[u8], room: &mut [u8]) -> Result<(), EncodeSliceError> {
    ENGINE.encode_slice(bytes, room).map(|_| ())
}

/// The bytes that `text` stands for.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, DecodeError> {
    ENGINE.decode(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_those_of_rfc_4648_section_10() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(written(bytes.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), bytes.as_bytes());
        }
    }

    proptest! {
        // The vector instructions take over at some length.
        #[test]
        fn texts_are_the_scalar_engines_at_every_length(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            prop_assert_eq!(&written(&bytes), &text);
            prop_assert_eq!(decode(&text).unwrap(), bytes);
        }

        #[test]
        fn what_the_scalar_engine_refuses_is_refused(
            bytes in proptest::collection::vec(any::<u8>(), 1..600),
            place in any::<prop::sample::Index>(),
            other in "[ -~\n\u{7f}-\u{ff}]",
        ) {
            let mut text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            let at = place.index(text.len());
            text.replace_range(at..=at, &other);
            let expected = base64::engine::general_purpose::STANDARD.decode(&text);
            prop_assert_eq!(decode(&text).ok(), expected.ok());
        }
    }

    fn written(bytes: &[u8]) -> String {
        let mut room = vec![0; length(bytes.len())];
        encode(bytes, &mut room).unwrap();
        String::from_utf8(room).unwrap()
    }
}
