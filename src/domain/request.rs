//! What any request may carry beside its operation's own fields.

use std::fmt;
use std::str::FromStr;

/// The caller's own name for a request: `^[0-9A-Za-z-]{36}$`. The only request text that is ever
/// logged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sequence([u8; 36]);

impl Sequence {
    /// The sequence as text.
    pub fn as_str(&self) -> &str {
        // The bytes are ASCII: `from_str` is the only way in.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for Sequence {
    type Err = InvalidSequence;

    fn from_str(text: &str) -> Result<Self, InvalidSequence> {
        let bytes: [u8; 36] = text.as_bytes().try_into().map_err(|_| InvalidSequence)?;
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        if bytes.iter().all(fits) {
            Ok(Self(bytes))
        } else {
            Err(InvalidSequence)
        }
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a sequence")]
pub struct InvalidSequence;

/// The server's name for a request, unique: 32 hexadecimal digits. Sent as `X-Request-Id` with
/// every answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId(u128);

impl RequestId {
    /// The id with these bits.
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// The id as ASCII, to be put into an answer as it is.
    pub fn digits(self) -> [u8; 32] {
        let mut digits = [0; 32];
        let (pairs, _) = digits.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(self.0.to_be_bytes()) {
            *pair = [byte >> 4, byte & 0xf].map(|digit| match digit {
                0..=9 => b'0' + digit,
                _ => b'a' - 10 + digit,
            });
        }
        digits
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Additional authenticated data: at most 128 bytes of text, bound to a ciphertext and not stored
/// in it. Empty is the same as absent.
#[derive(Default)]
pub struct Aad(Box<str>);

impl Aad {
    /// The most bytes it may have.
    pub const MAX: usize = 128;

    /// The bytes to bind.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<String> for Aad {
    type Error = InvalidAad;

    fn try_from(text: String) -> Result<Self, InvalidAad> {
        if text.len() > Self::MAX {
            Err(InvalidAad)
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl fmt::Debug for Aad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aad({} bytes)", self.0.len())
    }
}

/// The text is too long to be bound to a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("additional authenticated data is too long")]
pub struct InvalidAad;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_36_letters_digits_and_hyphens() {
        let text = "919c82d4-8046-4722-9094-35c3c6524cff";
        let sequence: Sequence = text.parse().unwrap();
        assert_eq!(
            (sequence.as_str(), format!("{sequence:?}")),
            (text, text.into())
        );
        assert!("A".repeat(36).parse::<Sequence>().is_ok());
        for bad in [
            "",
            "919c82d4",
            &"a".repeat(37),
            &"a\n".repeat(18),
            &"é".repeat(18),
        ] {
            assert!(bad.parse::<Sequence>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_id_is_32_hexadecimal_digits() {
        for bits in [0, 1, 0x0123_4567_89ab_cdef << 64 | 0xfedc_ba98, u128::MAX] {
            let id = RequestId::new(bits);
            let digits = format!("{bits:032x}");
            assert_eq!(
                (id.to_string(), format!("{id:?}")),
                (digits.clone(), digits)
            );
        }
    }

    #[test]
    fn additional_data_is_counted_in_bytes_and_not_printed() {
        assert!(Aad::try_from("é".repeat(64)).is_ok());
        assert!(Aad::try_from("é".repeat(64) + "x").is_err());
        let aad = Aad::try_from("tenant=7".to_owned()).unwrap();
        assert_eq!(format!("{aad:?}"), "Aad(8 bytes)");
        assert_eq!((aad.as_bytes(), aad.is_empty()), (&b"tenant=7"[..], false));
        assert!(Aad::default().is_empty());
    }
}
