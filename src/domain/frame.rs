//! The symmetric ciphertext frame: its head, which says how to open the rest.
//!
//! ```text
//! offset  size  field
//! 0       2     03 00          format
//! 2       1     suite          1 = XAES-256-GCM
//! 3       1     flags          bit 0: there is additional authenticated data; others zero
//! 4       4     key version    big-endian, from 1
//! 8       36    key id         ASCII
//! 44      8     reserved       zero
//! ------------------------------------------------ the head ends; the provider writes what follows
//! 52      32    commitment     to the key
//! 84      24    nonce
//! 108     m     ciphertext     of the plaintext padded PKCS#7-style to a multiple of 16
//! 108+m   16    tag
//! ```
//!
//! Everything before the ciphertext, then the caller's additional authenticated data, is the
//! associated data of the AEAD; the part before has a fixed length, so the join is unambiguous. The
//! whole is 124 + (⌊n/16⌋ + 1)·16 bytes long, the length that Huawei documents for its own
//! ciphertexts, so columns sized for those fit.
//!
//! Heads are read from the network: any bytes may arrive here.

use crate::domain::key::{KeyId, KeyVersion};

/// The length of a head.
pub const HEAD: usize = 52;

/// The length of what lies around the padded plaintext: head, commitment, nonce and tag.
pub const OVERHEAD: usize = HEAD + 32 + 24 + 16;

/// The shortest and the longest frame, for plaintexts of 1 and of 4096 bytes.
pub const LENGTHS: std::ops::RangeInclusive<usize> = OVERHEAD + 16..=OVERHEAD + 4096 + 16;

const FORMAT: [u8; 2] = [3, 0];

/// How Huawei's own frames begin.
const HUAWEI_FORMAT: [u8; 2] = [2, 0];

/// The cipher that fills a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// XAES-256-GCM (C2SP).
    Xaes256Gcm,
}

impl Suite {
    /// The suite's number in a head.
    pub const fn number(self) -> u8 {
        match self {
            Self::Xaes256Gcm => 1,
        }
    }
}

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The cipher.
    pub suite: Suite,
    /// Whether the caller gave additional authenticated data.
    pub has_aad: bool,
    /// The version of the key that encrypted.
    pub version: KeyVersion,
    /// The key that encrypted.
    pub key_id: KeyId,
}

impl Head {
    /// The head as it stands at the start of a frame.
    pub fn to_bytes(self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let fields = FORMAT
            .into_iter()
            .chain([self.suite.number(), u8::from(self.has_aad)])
            .chain(self.version.get().to_be_bytes())
            .chain(*self.key_id.as_bytes());
        for (to, byte) in head.iter_mut().zip(fields) {
            *to = byte;
        }
        head
    }

    /// Reads the head of `frame`; returns it and what follows it.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), NotAFrame> {
        if frame.starts_with(&HUAWEI_FORMAT) {
            return Err(NotAFrame::MadeElsewhere);
        }
        let malformed = NotAFrame::Malformed;
        if !LENGTHS.contains(&frame.len()) || frame.len() % 16 != OVERHEAD % 16 {
            return Err(malformed);
        }
        let (head, body) = frame.split_first_chunk::<HEAD>().ok_or(malformed)?;
        let (&format, rest) = head.split_first_chunk::<2>().ok_or(malformed)?;
        let (&[suite, flags], rest) = rest.split_first_chunk::<2>().ok_or(malformed)?;
        let (&version, rest) = rest.split_first_chunk::<4>().ok_or(malformed)?;
        let (key_id, reserved) = rest
            .split_first_chunk::<{ KeyId::LEN }>()
            .ok_or(malformed)?;
        if format != FORMAT || suite != Suite::Xaes256Gcm.number() || flags > 1 {
            return Err(malformed);
        }
        if reserved.iter().any(|byte| *byte != 0) {
            return Err(malformed);
        }
        let head = Self {
            suite: Suite::Xaes256Gcm,
            has_aad: flags == 1,
            version: KeyVersion::new(u32::from_be_bytes(version)).ok_or(malformed)?,
            key_id: KeyId::from_bytes(key_id).map_err(|_| malformed)?,
        };
        Ok((head, body))
    }
}

/// Why bytes are no frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFrame {
    /// They begin as the frames of Huawei's own service do.
    #[error("the ciphertext was made by another service")]
    MadeElsewhere,
    /// They are of the wrong length, or a field holds what we never write.
    #[error("not a ciphertext frame")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";

    fn head() -> Head {
        Head {
            suite: Suite::Xaes256Gcm,
            has_aad: true,
            version: KeyVersion::new(0x0102_0304).unwrap(),
            key_id: ID.parse().unwrap(),
        }
    }

    fn frame(body: usize) -> Vec<u8> {
        let mut frame = head().to_bytes().to_vec();
        frame.resize(HEAD + body, 0xaa);
        frame
    }

    #[test]
    fn the_shortest_and_the_longest_frame_are_as_long_as_documented() {
        // ⌊n/16⌋ + 1 blocks of 16 bytes and 124 more, for 1 and 4096 bytes.
        assert_eq!(LENGTHS, 140..=4236);
    }

    #[test]
    fn a_head_is_laid_out_as_drawn() {
        let mut expected = vec![3, 0, 1, 1, 1, 2, 3, 4];
        expected.extend(ID.as_bytes());
        expected.extend([0; 8]);
        assert_eq!(head().to_bytes().to_vec(), expected);
    }

    #[test]
    fn a_head_reads_back_with_what_follows_it() {
        let frame = frame(88);
        let (read, body) = Head::parse(&frame).unwrap();
        assert_eq!((read, body.len()), (head(), 88));
    }

    #[test]
    fn every_changed_field_that_we_never_write_is_refused() {
        for at in (0..4).chain(44..52) {
            for value in 0..=255 {
                let mut changed = frame(88);
                if changed[at] == value || (at == 3 && value < 2) {
                    continue;
                }
                changed[at] = value;
                assert!(Head::parse(&changed).is_err(), "byte {at} = {value}");
            }
        }
        let mut version_0 = frame(88);
        version_0[4..8].fill(0);
        assert_eq!(Head::parse(&version_0), Err(NotAFrame::Malformed));
    }

    #[test]
    fn a_frame_has_one_of_the_lengths_that_we_write() {
        for length in 0..5000 {
            let mut bytes = frame(88);
            bytes.resize(length, 0);
            let written = LENGTHS.contains(&length) && (length - OVERHEAD).is_multiple_of(16);
            assert_eq!(Head::parse(&bytes).is_ok(), written, "{length}");
        }
    }

    #[test]
    fn a_frame_of_the_other_service_is_told_apart() {
        let mut frame = frame(88);
        frame[0] = 2;
        assert_eq!(Head::parse(&frame), Err(NotAFrame::MadeElsewhere));
    }

    proptest! {
        #[test]
        fn what_parses_is_what_would_be_written(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((head, body)) = Head::parse(&bytes) {
                prop_assert_eq!([&head.to_bytes()[..], body].concat(), bytes);
            }
        }

        #[test]
        fn every_head_reads_back(has_aad: bool, version in 1u32.., random: [u8; 16], blocks in 1usize..=257) {
            let head = Head {
                suite: Suite::Xaes256Gcm,
                has_aad,
                version: KeyVersion::new(version).unwrap(),
                key_id: KeyId::from_random(random),
            };
            let mut frame = head.to_bytes().to_vec();
            frame.resize(OVERHEAD + blocks * 16, 0);
            let (read, _) = Head::parse(&frame).unwrap();
            prop_assert_eq!(read, head);
        }
    }
}
