//! The field of the curve: integers modulo `p = 2^256 - 2^224 - 2^96 + 2^64 - 1`.
//!
//! The arithmetic is that of the crate `fiat-crypto`, which was generated together with a proof
//! that it computes what it should, without branches or places in memory that depend on values.
//! The crate `sm2` computes with it too, but keeps the words of an element to itself, without
//! which one point of several is slow to [select](Field::conditional_select), and inverts in
//! twice the time.

use std::ops::{Add, Mul, Neg, Sub};

use fiat_crypto::sm2_64 as fiat;
use fiat_crypto::sm2_64::fiat_sm2_montgomery_domain_field_element as Montgomery;
use fiat_crypto::sm2_64::fiat_sm2_non_montgomery_domain_field_element as Canonical;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroize;

/// An element: the words of its Montgomery form, least significant first, always below `p`.
#[derive(Clone, Copy, Zeroize)]
pub(super) struct Field([u64; 4]);

impl Field {
    pub(super) const ZERO: Self = Self([0; 4]);
    pub(super) const ONE: Self = Self::new([1, 0, 0, 0]);

    /// The element with these words, least significant first. They must be below `p`.
    pub(super) const fn new(words: [u64; 4]) -> Self {
        let mut element = Montgomery([0; 4]);
        fiat::fiat_sm2_to_montgomery(&mut element, &Canonical(words));
        Self(element.0)
    }

    /// Reads a big-endian number, if it is below `p`. Takes variable time.
    pub(super) fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        /// `p`, big-endian.
        const P: [u8; 32] = {
            let mut p = [0xff; 32];
            p[3] = 0xfe;
            p[20] = 0;
            p[21] = 0;
            p[22] = 0;
            p[23] = 0;
            p
        };
        let mut little_endian = *bytes;
        little_endian.reverse();
        let mut words = [0; 4];
        fiat::fiat_sm2_from_bytes(&mut words, &little_endian);
        (*bytes < P).then_some(Self::new(words))
    }

    /// The number, big-endian.
    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut number = Canonical([0; 4]);
        fiat::fiat_sm2_from_montgomery(&mut number, &Montgomery(self.0));
        let mut bytes = [0; 32];
        fiat::fiat_sm2_to_bytes(&mut bytes, &number.0);
        bytes.reverse();
        bytes
    }

    pub(super) fn square(self) -> Self {
        let mut square = Montgomery([0; 4]);
        fiat::fiat_sm2_square(&mut square, &Montgomery(self.0));
        Self(square.0)
    }

    pub(super) fn double(self) -> Self {
        self + self
    }

    /// The inverse; zero for zero. It is the power `p - 2` (Fermat).
    pub(super) fn invert(self) -> Self {
        // The power of 2^n - 1 is named after n. The exponent p - 2 in binary: 31 ones, a zero,
        // 128 ones, 32 zeros, 62 ones, a zero, a one.
        let x1 = self;
        let x2 = x1.shift(1) * x1;
        let x4 = x2.shift(2) * x2;
        let x6 = x4.shift(2) * x2;
        let x12 = x6.shift(6) * x6;
        let x24 = x12.shift(12) * x12;
        let x30 = x24.shift(6) * x6;
        let x31 = x30.shift(1) * x1;
        let x32 = x31.shift(1) * x1;
        let mut power = x31.shift(1);
        for _ in 0..4 {
            power = power.shift(32) * x32;
        }
        power = power.shift(32);
        for _ in 0..2 {
            power = power.shift(31) * x31;
        }
        power.shift(2) * x1
    }

    /// The power `2^bits`: moves the exponent to the left.
    fn shift(self, bits: u32) -> Self {
        (0..bits).fold(self, |power, _| power.square())
    }

    pub(super) fn is_zero(&self) -> Choice {
        self.0.ct_eq(&[0; 4])
    }
}

impl Add for Field {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let mut sum = Montgomery([0; 4]);
        fiat::fiat_sm2_add(&mut sum, &Montgomery(self.0), &Montgomery(other.0));
        Self(sum.0)
    }
}

impl Sub for Field {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let mut difference = Montgomery([0; 4]);
        fiat::fiat_sm2_sub(&mut difference, &Montgomery(self.0), &Montgomery(other.0));
        Self(difference.0)
    }
}

impl Mul for Field {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let mut product = Montgomery([0; 4]);
        fiat::fiat_sm2_mul(&mut product, &Montgomery(self.0), &Montgomery(other.0));
        Self(product.0)
    }
}

impl Neg for Field {
    type Output = Self;

    fn neg(self) -> Self {
        let mut opposite = Montgomery([0; 4]);
        fiat::fiat_sm2_opp(&mut opposite, &Montgomery(self.0));
        Self(opposite.0)
    }
}

impl ConditionallySelectable for Field {
    #[inline]
    fn conditional_select(a: &Self, b: &Self, choice: Choice) -> Self {
        Self(<[u64; 4]>::conditional_select(&a.0, &b.0, choice))
    }
}

impl ConstantTimeEq for Field {
    fn ct_eq(&self, other: &Self) -> Choice {
        // An element has one form.
        self.0.ct_eq(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sm2::elliptic_curve::PrimeField;
    use sm2::elliptic_curve::hazmat::FieldArithmetic;

    /// The field as the crate `sm2` has it.
    type Theirs = <sm2::Sm2 as FieldArithmetic>::FieldElement;

    const P: &str = "fffffffeffffffffffffffffffffffffffffffff00000000ffffffffffffffff";

    #[test]
    fn a_number_is_read_if_it_is_below_p() {
        for below in 1..=3 {
            let bytes = near_p(-below);
            assert_eq!(Field::from_bytes(&bytes).unwrap().to_bytes(), bytes);
        }
        for above in 0..=3 {
            assert!(Field::from_bytes(&near_p(above)).is_none(), "p + {above}");
        }
        assert!(Field::from_bytes(&[0xff; 32]).is_none());
    }

    #[test]
    fn the_arithmetic_is_that_of_the_crate_at_the_edges() {
        let small = (0..=3u8).map(|n| {
            let mut bytes = [0; 32];
            bytes[31] = n;
            bytes
        });
        let edges: Vec<[u8; 32]> = small.chain((-3..0).map(near_p)).collect();
        for a in &edges {
            for b in &edges {
                agrees(a, b);
            }
        }
    }

    proptest! {
        #[test]
        fn the_arithmetic_is_that_of_the_crate(a: [u8; 32], b: [u8; 32]) {
            agrees(&a, &b);
        }
    }

    fn agrees(a: &[u8; 32], b: &[u8; 32]) {
        let theirs = [a, b].map(|bytes| Theirs::from_repr((*bytes).into()).into_option());
        let ours = [a, b].map(Field::from_bytes);
        assert_eq!(theirs.map(|x| x.is_some()), ours.map(|x| x.is_some()));
        let ([Some(a), Some(b)], [Some(x), Some(y)]) = (theirs, ours) else {
            return;
        };
        let same = |theirs: Theirs, ours: Field| assert_eq!(theirs.to_bytes(), ours.to_bytes());
        same(a + b, x + y);
        same(a - b, x - y);
        same(a * b, x * y);
        same(-a, -x);
        same(a.square(), x.square());
        same(a.double(), x.double());
        same(a.invert().unwrap_or(Theirs::ZERO), x.invert());
        assert_eq!(bool::from(a.is_zero()), bool::from(x.is_zero()));
        assert_eq!(a == b, bool::from(x.ct_eq(&y)));
        for choice in [0, 1].map(Choice::from) {
            let chosen = Field::conditional_select(&x, &y, choice);
            same(Theirs::conditional_select(&a, &b, choice), chosen);
        }
    }

    /// `p + distance`.
    fn near_p(distance: i8) -> [u8; 32] {
        let p = sm2::U256::from_be_hex(P);
        let amount = sm2::U256::from_u8(distance.unsigned_abs());
        let number = if distance < 0 {
            p.wrapping_sub(&amount)
        } else {
            p.wrapping_add(&amount)
        };
        number.to_be_bytes().into()
    }
}
