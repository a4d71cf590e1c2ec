//! The DER of an SM2 ciphertext (GM/T 0009, section 7.2), strict on input.
//!
//! ```text
//! SEQUENCE {
//!   x   INTEGER,                  -- of C1
//!   y   INTEGER,                  -- of C1
//!   c3  OCTET STRING (SIZE(32)),
//!   c2  OCTET STRING              -- 1 to 4096 bytes
//! }
//! ```
//!
//! One value has one encoding (X.690, sections 8.3 and 10.1): a ciphertext cannot be changed into
//! another one that decrypts too. The input comes from the network: any bytes may arrive here.

use crate::domain::algorithm::MAX_PLAINTEXT;

/// The parts of an SM2 ciphertext. That the point is on the curve is not checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// The x coordinate of C1.
    pub(super) x: [u8; 32],
    /// The y coordinate of C1.
    pub(super) y: [u8; 32],
    /// The hash.
    pub(super) c3: &'a [u8; 32],
    /// The masked message.
    pub(super) c2: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Takes a ciphertext apart, if it is as it would have been written.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let (body, rest) = element(SEQUENCE, der)?;
        let (x, body) = element(INTEGER, body)?;
        let (y, body) = element(INTEGER, body)?;
        let (c3, body) = element(OCTET_STRING, body)?;
        let (c2, body) = element(OCTET_STRING, body)?;
        let whole = rest.is_empty() && body.is_empty();
        let fits = whole && (1..=MAX_PLAINTEXT).contains(&c2.len());
        fits.then_some(Self {
            x: unsigned(x)?,
            y: unsigned(y)?,
            c3: c3.try_into().ok()?,
            c2,
        })
    }
}

/// Everything before the content of C2, with room reserved for that.
pub(super) fn before_c2(x: &[u8; 32], y: &[u8; 32], c3: &[u8; 32], c2: usize) -> Vec<u8> {
    let (x, y) = (minimal(x), minimal(y));
    let (x_sign, y_sign) = (sign(x), sign(y));
    let x_length = x_sign.len() + x.len();
    let y_length = y_sign.len() + y.len();
    let body = whole(x_length) + whole(y_length) + whole(c3.len()) + whole(c2);

    let mut der = Vec::with_capacity(whole(body));
    header(SEQUENCE, body, &mut der);
    header(INTEGER, x_length, &mut der);
    der.extend_from_slice(x_sign);
    der.extend_from_slice(x);
    header(INTEGER, y_length, &mut der);
    der.extend_from_slice(y_sign);
    der.extend_from_slice(y);
    header(OCTET_STRING, c3.len(), &mut der);
    der.extend_from_slice(c3);
    header(OCTET_STRING, c2, &mut der);
    der
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Splits off one element with the given tag: its content, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    // A length takes as few bytes as it can (X.690, section 10.1). No ciphertext needs three.
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk::<1>()?;
            (
                Some(usize::from(length)).filter(|length| *length >= 0x80)?,
                rest,
            )
        }
        0x82 => {
            let (&length, rest) = rest.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(length));
            (Some(length).filter(|length| *length >= 0x100)?, rest)
        }
        _ => return None,
    };
    if found != tag {
        return None;
    }
    rest.split_at_checked(length)
}

/// The value of an INTEGER that is not negative, has no needless leading zero (X.690, section
/// 8.3.2) and fits 32 bytes.
fn unsigned(content: &[u8]) -> Option<[u8; 32]> {
    let digits = match content {
        [] | [0x80..=0xff, ..] | [0, 0..=0x7f, ..] => return None,
        [0, digits @ ..] if !digits.is_empty() => digits,
        digits => digits,
    };
    let mut value = [0; 32];
    let zeros = value.len().checked_sub(digits.len())?;
    let (_, tail) = value.split_at_mut_checked(zeros)?;
    tail.copy_from_slice(digits);
    Some(value)
}

/// A number's bytes without leading zeros; zero itself keeps one.
fn minimal(mut number: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = number
        && !rest.is_empty()
    {
        number = rest;
    }
    number
}

/// The zero that keeps a number's first bit from making it negative.
fn sign(number: &[u8]) -> &'static [u8] {
    match number {
        [0x80..=0xff, ..] => &[0],
        _ => &[],
    }
}

/// The length of an element with `content` bytes of content.
const fn whole(content: usize) -> usize {
    match content {
        0..0x80 => 2 + content,
        0x80..0x100 => 3 + content,
        _ => 4 + content,
    }
}

/// Writes a tag and a length, which is at most that of a ciphertext.
fn header(tag: u8, length: usize, der: &mut Vec<u8>) {
    let [.., high, low] = length.to_be_bytes();
    match length {
        0..0x80 => der.extend([tag, low]),
        0x80..0x100 => der.extend([tag, 0x81, low]),
        _ => der.extend([tag, 0x82, high, low]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_written_as_short_as_they_can_be() {
        let number = |byte: u8, at: usize| {
            let mut number = [0; 32];
            number[at] = byte;
            number
        };
        for (x, expected) in [
            (number(0, 31), vec![2, 1, 0]),
            (number(1, 31), vec![2, 1, 1]),
            (number(0x7f, 31), vec![2, 1, 0x7f]),
            (number(0x80, 31), vec![2, 2, 0, 0x80]),
            (number(1, 30), vec![2, 2, 1, 0]),
            (number(0x80, 30), vec![2, 3, 0, 0x80, 0]),
        ] {
            let der = before_c2(&x, &[1; 32], &[0; 32], 1);
            assert_eq!(der[2..2 + expected.len()], expected);
        }
        let full = before_c2(&[0x80; 32], &[1; 32], &[0; 32], 1);
        assert_eq!(full[2..5], [2, 33, 0]);
    }

    #[test]
    fn every_other_way_to_write_a_ciphertext_is_refused() {
        let parts = |x: &[u8], y: &[u8], c3: &[u8], c2: &[u8]| {
            tlv(
                0x30,
                &[tlv(2, x), tlv(2, y), tlv(4, c3), tlv(4, c2)].concat(),
            )
        };
        let good = parts(&[1; 32], &[2; 32], &[3; 32], &[4; 5]);
        assert!(Parts::parse(&good).is_some());

        for (bad, why) in [
            (parts(&[], &[2], &[3; 32], &[4]), "no digits"),
            (parts(&[0x80], &[2], &[3; 32], &[4]), "negative"),
            (parts(&[0xff; 32], &[2], &[3; 32], &[4]), "negative"),
            (parts(&[0, 1], &[2], &[3; 32], &[4]), "needless zero"),
            (parts(&[0, 0], &[2], &[3; 32], &[4]), "needless zero"),
            (parts(&[1], &[0, 0, 0x80], &[3; 32], &[4]), "needless zero"),
            (parts(&[1; 33], &[2], &[3; 32], &[4]), "over-long number"),
            (parts(&[1], &[2; 33], &[3; 32], &[4]), "over-long number"),
            (parts(&[1], &[2], &[3; 31], &[4]), "short hash"),
            (parts(&[1], &[2], &[3; 33], &[4]), "long hash"),
            (parts(&[1], &[2], &[3; 32], &[]), "empty C2"),
            (parts(&[1], &[2], &[3; 32], &[4; 4097]), "over-long C2"),
            ([&good[..], &[0]].concat(), "trailing byte"),
            (tlv(0x31, &good[2..]), "a SET"),
            (
                tlv(0x30, &[&good[2..], &[5, 0]].concat()),
                "trailing element",
            ),
            (tlv(0x30, &good[2..good.len() - 7]), "missing element"),
            ([&[0x30, 0x80], &good[2..], &[0, 0]].concat(), "BER"),
            (
                [&[0x30, 0x81, good[1]], &good[2..]].concat(),
                "needlessly long length",
            ),
            (
                [&[0x30, 0x82, 0, good[1]], &good[2..]].concat(),
                "needlessly long length",
            ),
            (
                [&[0x30, 0x84, 0, 0, 0, good[1]], &good[2..]].concat(),
                "needlessly long length",
            ),
            (
                [&[0x30, 0x88], &[0xff; 8][..], &good[2..]].concat(),
                "enormous length",
            ),
        ] {
            assert_eq!(Parts::parse(&bad), None, "{why}");
        }
        for cut in 0..good.len() {
            assert_eq!(Parts::parse(&good[..cut]), None, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_parses(x: [u8; 32], y: [u8; 32], zeros in 0usize..32, c3: [u8; 32], c2 in 1usize..=4096) {
            let mut x = x;
            x[..zeros].fill(0);
            let mut der = before_c2(&x, &y, &c3, c2);
            let room = der.capacity();
            der.resize(der.len() + c2, 9);
            prop_assert_eq!(der.capacity(), room);
            let c2 = vec![9; c2];
            prop_assert_eq!(Parts::parse(&der), Some(Parts { x, y, c3: &c3, c2: &c2 }));
        }

        #[test]
        fn what_parses_is_what_would_be_written(flips in proptest::collection::vec((0usize..120, any::<u8>()), 0..4)) {
            let mut der = before_c2(&[0x90; 32], &[1; 32], &[3; 32], 8);
            der.extend([4; 8]);
            for (at, byte) in flips {
                if let Some(to) = der.get_mut(at) {
                    *to = byte;
                }
            }
            if let Some(parts) = Parts::parse(&der) {
                let mut again = before_c2(&parts.x, &parts.y, parts.c3, parts.c2.len());
                again.extend_from_slice(parts.c2);
                prop_assert_eq!(again, der);
            }
        }

        #[test]
        fn no_bytes_panic(der in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Parts::parse(&der);
        }
    }

    /// An element, its length written as it should be.
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut element = Vec::new();
        header(tag, content.len(), &mut element);
        element.extend_from_slice(content);
        element
    }
}
