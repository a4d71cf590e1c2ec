//! The key derivation function of SM2 (GM/T 0003.4, section 5.4.3), over SM3 (GM/T 0004).
//!
//! `t = SM3(Z ‖ 1) ‖ SM3(Z ‖ 2) ‖ …`, with counters of 32 bits. `Z` fills one block of the hash and is
//! compressed once. What is left of each hash is one block that is the same but for the counter, so
//! four are compressed at a time, one in each lane of a vector. The crate `sm3` knows one at a time.

use std::slice;

use sm3::Sm3Core;
use sm3::digest::block_api::UpdateCore;
use sm3::digest::common::hazmat::SerializableState;
use wide::u32x4;
use zeroize::{Zeroize, Zeroizing};

/// The bytes of a hash, and how many are computed at a time.
const HASH: usize = 32;
const LANES: usize = 4;

/// The bits of `Z` and a counter, which end the padded message.
const BITS: u32 = 8 * (64 + 4);

/// Adds `t` to `data`, of less than 128 GiB; false if `t` is all zero.
pub(super) fn mask(z: &[u8; 64], data: &mut [u8]) -> bool {
    let seed = seed(z);
    let mut any = 0;
    let counters = (1u32..).step_by(LANES);
    for (first, chunk) in counters.zip(data.chunks_mut(HASH * LANES)) {
        let hashes = hashes(&seed, u32x4::new([first, first + 1, first + 2, first + 3]));
        for (hash, part) in hashes.iter().zip(chunk.chunks_mut(HASH)) {
            for (byte, mask) in part.iter_mut().zip(hash) {
                *byte ^= mask;
                any |= mask;
            }
        }
    }
    any != 0
}

/// The state of the hash after `z`.
fn seed(z: &[u8; 64]) -> Zeroizing<[u32; 8]> {
    let mut hash = Sm3Core::default();
    hash.update_blocks(slice::from_ref(z.into()));
    let mut state = hash.serialize();
    let mut words = Zeroizing::new([0; 8]);
    for (word, bytes) in words.iter_mut().zip(state.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    state.as_mut_slice().zeroize();
    words
}

/// The hashes of what gave `seed` and each of these counters.
fn hashes(seed: &[u32; 8], counters: u32x4) -> Zeroizing<[[u8; HASH]; LANES]> {
    let mut block = [u32x4::ZERO; 16];
    block[0] = counters;
    block[1] = u32x4::splat(1 << 31);
    block[15] = u32x4::splat(BITS);
    let after = compress(seed.map(u32x4::splat), &block);
    let mut hashes = Zeroizing::new([[0; HASH]; LANES]);
    for (place, word) in after.iter().enumerate() {
        let lanes = Zeroizing::new(word.to_array());
        for (hash, lane) in hashes.iter_mut().zip(lanes.iter()) {
            if let Some(bytes) = hash.as_chunks_mut().0.get_mut(place) {
                *bytes = lane.to_be_bytes();
            }
        }
    }
    hashes
}

/// The compression function (GM/T 0004, section 5.3), in each lane by itself.
fn compress(state: [u32x4; 8], block: &[u32x4; 16]) -> [u32x4; 8] {
    let mut words = [u32x4::ZERO; 68];
    for (word, given) in words.iter_mut().zip(block) {
        *word = *given;
    }
    for place in 16..words.len() {
        let (before, after) = words.split_at_mut(place);
        if let (&mut [.., w16, _, _, w13, _, _, _, w9, _, _, w6, _, _, w3, _, _], [word, ..]) =
            (before, after)
        {
            let x = w16 ^ w9 ^ turned(w3, 15);
            let p1 = x ^ turned(x, 15) ^ turned(x, 23);
            *word = p1 ^ turned(w13, 7) ^ w6;
        }
    }
    let mut after = state;
    let mut rounds = words.array_windows();
    let mut constant: u32 = 0x79cc_4519;
    for window in rounds.by_ref().take(16) {
        let [a, b, c, _, e, f, g, _] = after;
        after = round(after, a ^ b ^ c, e ^ f ^ g, constant, window);
        constant = constant.rotate_left(1);
    }
    constant = 0x7a87_9d8a_u32.rotate_left(16);
    for window in rounds {
        let [a, b, c, _, e, f, g, _] = after;
        let (ff, gg) = ((a & b) | ((a | b) & c), ((f ^ g) & e) ^ g);
        after = round(after, ff, gg, constant, window);
        constant = constant.rotate_left(1);
    }
    for (after, before) in after.iter_mut().zip(state) {
        *after ^= before;
    }
    after
}

/// One round, with the values of its boolean functions and its constant, turned as far as it must be.
#[inline(always)]
fn round(
    [a, b, c, d, e, f, g, h]: [u32x4; 8],
    ff: u32x4,
    gg: u32x4,
    constant: u32,
    [word, _, _, _, word4]: &[u32x4; 5],
) -> [u32x4; 8] {
    let a12 = turned(a, 12);
    let ss1 = turned(a12 + e + u32x4::splat(constant), 7);
    let tt1 = ff + d + (ss1 ^ a12) + (*word ^ *word4);
    let tt2 = gg + h + ss1 + *word;
    let p0 = tt2 ^ turned(tt2, 9) ^ turned(tt2, 17);
    [tt1, a, turned(b, 9), c, p0, e, turned(f, 19), g]
}

/// Each lane turned to the left.
#[inline(always)]
fn turned(lanes: u32x4, bits: u32) -> u32x4 {
    lanes << bits | lanes >> (32 - bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sm3::{Digest, Sm3};

    /// The standard's own words, with the crate's hash.
    fn by_the_standard(z: &[u8; 64], length: usize) -> Vec<u8> {
        let hashes = (1u32..).flat_map(|counter| {
            let hash = Sm3::new_with_prefix(z).chain_update(counter.to_be_bytes());
            hash.finalize()
        });
        hashes.take(length).collect()
    }

    #[test]
    fn a_mask_of_any_length_is_the_standards() {
        let mut z = [11; 64];
        for place in 1..64 {
            z[place] = u8::wrapping_add(z[place - 1], 37);
        }
        let expected = by_the_standard(&z, 4096);
        for length in (0..=300).chain([4095, 4096]) {
            let mut data = vec![0; length];
            assert_eq!(mask(&z, &mut data), length > 0);
            assert_eq!(data, expected[..length], "{length}");
        }
    }

    #[test]
    fn masks_of_other_secrets_are_the_standards() {
        for place in 0..64 {
            for bit in [0x01, 0x80] {
                let mut z = [0; 64];
                z[place] = bit;
                let mut data = [0xa5; 129];
                mask(&z, &mut data);
                let t = by_the_standard(&z, 129);
                assert!(t.iter().map(|byte| byte ^ 0xa5).eq(data), "{place} {bit}");
            }
        }
    }
}
