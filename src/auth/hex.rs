//! Hexadecimal digits, and SHA-256 values written in them.

/// The value in 64 lower-case digits.
pub(super) fn encode(value: &[u8; 32]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let nibbles = value.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles
        .filter_map(|nibble| DIGITS.get(usize::from(nibble)))
        .collect()
}

/// The value that 64 digits of either case stand for. Reads what comes from the network.
pub(super) fn decode(digits: &[u8]) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = digits.try_into().ok()?;
    let mut value = [0; 32];
    let (pairs, _) = digits.as_chunks();
    for (byte, &[high, low]) in value.iter_mut().zip(pairs) {
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(value)
}

/// What one digit stands for.
pub(super) const fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_back_as_they_went() {
        let value = std::array::from_fn(|index| u8::try_from(index * 37 % 256).unwrap());
        let digits = encode(&value);
        assert!(digits.starts_with("00254a6f94b9de"), "{digits}");
        assert_eq!(decode(digits.as_bytes()), Some(value));
        assert_eq!(decode(digits.to_uppercase().as_bytes()), Some(value));
    }

    #[test]
    fn what_is_not_64_digits_is_refused() {
        let digits = encode(&[7; 32]);
        let bad = [
            "",
            &digits[1..],
            &format!("{digits}0"),
            &digits.replace("07", "0g"),
        ];
        for bad in bad {
            assert_eq!(decode(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
