//! Multiplying points of the curve `y² = x³ - 3x + b` by secret scalars.
//!
//! A scalar `k` is written with 51 signed odd digits. One of `k` and `n - k` is odd, as the order
//! `n` is; call it `k'`, and let `b_i` be the five bits of `k'` from bit `5i + 1` on. Then
//!
//! ```text
//! k' = 2^255 + Σ d_i · 32^i        d_i = 2·b_i - 31, one of ±1, ±3, … ±31        0 <= i < 51
//! ```
//!
//! for the digits alone add up to `2·⌊k'/2⌋ - (2^255 - 1)`. No digit is zero, so that each is one
//! addition; which of 16 points is added is [selected](select) by looking at all of them, and its
//! sign by a mask. No branch and no place in memory depends on the scalar.
//!
//! A key that encrypts keeps the [`Multiples`] of its point, with which `k·P` takes 51 additions
//! and no doubling. Without them, [`mul`] takes 255 doublings more.
//!
//! **The additions need not be complete.** The digits are added from the highest down. Before
//! digit `i` the sum stands for `s = 2^255 + Σ_{j>i} d_j·32^j >= 32^(i+1) > |d_i|·32^i`, and
//! `s + |d_i|·32^i < 2^256 < 2n`. So a sum of the two, or a difference, is infinity only if it
//! is `n` exactly. It is a multiple of `32^i` and `n` is odd, hence only for `i = 0`. There the sum
//! is `k'`, which is less than `n`; but the difference `s - d_0` is `n` for one scalar, `k' = n - 6`:
//! both are then the same point. The addition of the last digit therefore
//! [doubles](Jacobian::add_or_double) if it must.

use std::collections::VecDeque;
use std::sync::LazyLock;

use sm2::elliptic_curve::PrimeField;
use sm2::{NonZeroScalar, Scalar};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::rustcrypto::sm2::field::Field;

/// The digits of a scalar, beside the highest, which is always one.
const DIGITS: usize = 51;

/// The odd multiples of a point, from the point itself to 31 times it.
type Row = [Affine; 16];

/// A point of the curve other than infinity.
#[derive(Clone, Copy, Zeroize)]
pub(super) struct Affine {
    x: Field,
    y: Field,
}

impl Affine {
    /// The base point.
    const G: Self = Self {
        x: Field::new([
            0x715a_4589_334c_74c7,
            0x8fe3_0bbf_f266_0be1,
            0x5f99_0446_6a39_c994,
            0x32c4_ae2c_1f19_8119,
        ]),
        y: Field::new([
            0x02df_32e5_2139_f0a0,
            0xd0a9_877c_c62a_4740,
            0x59bd_cee3_6b69_2153,
            0xbc37_36a2_f4f6_779c,
        ]),
    };

    /// The coefficient of the curve.
    const B: Field = Field::new([
        0xddbc_bd41_4d94_0e93,
        0xf397_89f5_15ab_8f92,
        0x4d5a_9e4b_cf65_09a7,
        0x28e9_fa9e_9d9f_5e34,
    ]);

    /// Not a point: room for one.
    const ROOM: Self = Self {
        x: Field::ZERO,
        y: Field::ZERO,
    };

    /// The point with these coordinates, if they are below `p` and it is on the curve. Takes
    /// variable time.
    pub(super) fn from_coordinates(x: &[u8; 32], y: &[u8; 32]) -> Option<Self> {
        let (x, y) = (Field::from_bytes(x)?, Field::from_bytes(y)?);
        let three = Field::ONE.double() + Field::ONE;
        let on_curve = y.square().ct_eq(&((x.square() - three) * x + Self::B));
        bool::from(on_curve).then_some(Self { x, y })
    }

    pub(super) fn x(&self) -> [u8; 32] {
        self.x.to_bytes()
    }

    pub(super) fn y(&self) -> [u8; 32] {
        self.y.to_bytes()
    }

    /// Its opposite, if it is to be so.
    fn negate(&mut self, negative: Choice) {
        self.y.conditional_assign(&-self.y, negative);
    }
}

impl ConditionallySelectable for Affine {
    #[inline]
    fn conditional_select(a: &Self, b: &Self, choice: Choice) -> Self {
        Self {
            x: Field::conditional_select(&a.x, &b.x, choice),
            y: Field::conditional_select(&a.y, &b.y, choice),
        }
    }
}

/// Multiples of a point, which make it quick to multiply: 51 rows of 16 points, 52 KB.
pub(super) struct Multiples {
    /// `2^255` times the point.
    top: Affine,
    /// The odd multiples of `32^i` times the point.
    rows: Box<[Row; DIGITS]>,
}

impl Multiples {
    /// Computes them, as long as ten or twenty multiplications take.
    pub(super) fn of(point: &Affine) -> Self {
        let mut power = Jacobian::from(*point);
        let mut powers = vec![power];
        for _ in 0..DIGITS {
            power = (0..5).fold(power, |power, _| power.double());
            powers.push(power);
        }
        let mut bases = [Affine::ROOM; DIGITS + 1];
        normalize(&powers, &mut bases);

        let [bases @ .., top] = bases;
        let multiples: Vec<Jacobian> = bases.iter().flat_map(odd_multiples).collect();
        let mut rows = Box::new([[Affine::ROOM; 16]; DIGITS]);
        normalize(&multiples, rows.as_flattened_mut());
        Self { top, rows }
    }

    /// `k'` times the point.
    fn mul(&self, digits: &Digits) -> Jacobian {
        let ([last, rest @ ..], [row, rows @ ..]) = (&digits.digits, &*self.rows);
        let mut sum = Jacobian::from(self.top);
        for (digit, row) in rest.iter().zip(rows).rev() {
            sum = sum.add(&select(row, *digit));
        }
        sum.add_or_double(&select(row, *last))
    }
}

/// `k·G` and `k·P`, of which `multiples` are.
pub(super) fn mul_both(k: &NonZeroScalar, multiples: &Multiples) -> Zeroizing<[Affine; 2]> {
    static G: LazyLock<Multiples> = LazyLock::new(|| Multiples::of(&Affine::G));
    let digits = Digits::new(k);
    let products = Zeroizing::new([G.mul(&digits), multiples.mul(&digits)]);
    let mut points = Zeroizing::new([Affine::ROOM; 2]);
    normalize(&*products, &mut *points);
    for point in &mut *points {
        point.negate(digits.negative);
    }
    points
}

/// `k` times the point.
pub(super) fn mul(k: &NonZeroScalar, point: &Affine) -> Zeroizing<Affine> {
    let digits = Digits::new(k);
    let mut row = [Affine::ROOM; 16];
    normalize(&odd_multiples(point), &mut row);

    let [last, rest @ ..] = &digits.digits;
    let mut sum = Zeroizing::new(Jacobian::from(*point));
    for digit in rest.iter().rev() {
        *sum = (0..5).fold(*sum, |sum, _| sum.double());
        *sum = sum.add(&select(&row, *digit));
    }
    *sum = (0..5).fold(*sum, |sum, _| sum.double());
    *sum = sum.add_or_double(&select(&row, *last));

    let mut product = Zeroizing::new([Affine::ROOM]);
    normalize(&[*sum], &mut *product);
    let [product] = &mut *product;
    product.negate(digits.negative);
    Zeroizing::new(*product)
}

/// A scalar, written as the head of the file says.
struct Digits {
    /// `b_i`, below 32.
    digits: [u8; DIGITS],
    /// Whether they are those of `n - k`.
    negative: Choice,
}

impl Digits {
    fn new(k: &NonZeroScalar) -> Self {
        let negative = !k.is_odd();
        let odd = Zeroizing::new(Scalar::conditional_select(k, &-**k, negative));
        let mut bytes = Zeroizing::new(<[u8; 32]>::from(odd.to_repr()));
        bytes.reverse();
        let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
        let mut digits = [0; DIGITS];
        for (bit, digit) in (1..).step_by(5).zip(&mut digits) {
            let [low, _] =
                (u16::from_le_bytes([byte(bit / 8), byte(bit / 8 + 1)]) >> (bit % 8)).to_le_bytes();
            *digit = low & 31;
        }
        Self { digits, negative }
    }
}

impl Drop for Digits {
    fn drop(&mut self) {
        self.digits.zeroize();
    }
}

/// `2·digit - 31` times the point whose odd multiples are given.
fn select(row: &Row, digit: u8) -> Affine {
    // The fifth bit is the sign. Below it the multiples go up for a positive digit, and down for a
    // negative one.
    let negative = (digit >> 4) ^ 1;
    let wanted = (digit ^ negative.wrapping_neg()) & 15;
    let mut point = Affine::ROOM;
    for (index, multiple) in (0u8..).zip(row) {
        point.conditional_assign(multiple, index.ct_eq(&wanted));
    }
    point.negate(Choice::from(negative));
    point
}

/// A point other than infinity in Jacobian coordinates: `x/z²`, `y/z³`.
#[derive(Clone, Copy, Zeroize)]
struct Jacobian {
    x: Field,
    y: Field,
    z: Field,
}

impl Jacobian {
    /// Twice the point. Never infinity, for the order of the group is odd.
    ///
    /// "dbl-2001-b" of the Explicit-Formulas Database, where `z` is squared less.
    fn double(&self) -> Self {
        let delta = self.z.square();
        let gamma2 = self.y.square().double();
        let beta4 = (self.x * gamma2).double();
        let alpha = (self.x - delta) * (self.x + delta);
        let alpha = alpha.double() + alpha;
        let x = alpha.square() - beta4.double();
        Self {
            x,
            y: alpha * (beta4 - x) - gamma2.square().double(),
            z: (self.y * self.z).double(),
        }
    }

    /// The sum of two points that are neither the same nor opposite. Of the same, `z` is zero.
    ///
    /// "madd" of the Explicit-Formulas Database.
    fn add(&self, other: &Affine) -> Self {
        let zz = self.z.square();
        let h = other.x * zz - self.x;
        let r = other.y * zz * self.z - self.y;
        let hh = h.square();
        let hhh = h * hh;
        let v = self.x * hh;
        let x = r.square() - hhh - v.double();
        Self {
            x,
            y: r * (v - x) - self.y * hhh,
            z: self.z * h,
        }
    }

    /// The sum of two points that are not opposite.
    fn add_or_double(&self, other: &Affine) -> Self {
        let (sum, double) = (self.add(other), self.double());
        let same = sum.z.is_zero();
        Self {
            x: Field::conditional_select(&sum.x, &double.x, same),
            y: Field::conditional_select(&sum.y, &double.y, same),
            z: Field::conditional_select(&sum.z, &double.z, same),
        }
    }
}

impl From<Affine> for Jacobian {
    fn from(Affine { x, y }: Affine) -> Self {
        Self {
            x,
            y,
            z: Field::ONE,
        }
    }
}

/// The odd multiples of a point, from the point itself to 31 times it.
fn odd_multiples(point: &Affine) -> Vec<Jacobian> {
    let once = Jacobian::from(*point);
    let mut odd = vec![once];
    // All multiples in their order, those taken off that have been doubled.
    let mut multiples = VecDeque::from([once]);
    while odd.len() < 16
        && let Some(multiple) = multiples.pop_front()
    {
        let even = multiple.double();
        let next = even.add(point);
        multiples.extend([even, next]);
        odd.push(next);
    }
    odd
}

/// Gives the points their affine form, by one inversion for all (Montgomery's trick).
fn normalize(points: &[Jacobian], to: &mut [Affine]) {
    let mut product = Field::ONE;
    for (point, affine) in points.iter().zip(&mut *to) {
        // Kept until it is needed: the product of all z before.
        affine.x = product;
        product = product * point.z;
    }
    let mut inverse = product.invert();
    for (point, affine) in points.iter().zip(to).rev() {
        let z = inverse * affine.x;
        inverse = inverse * point.z;
        let zz = z.square();
        affine.x = point.x * zz;
        affine.y = point.y * zz * z;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sm2::elliptic_curve::Group;
    use sm2::elliptic_curve::ops::Reduce;
    use sm2::elliptic_curve::point::AffineCoordinates;
    use sm2::{AffinePoint, ProjectivePoint, U256};

    #[test]
    fn the_products_are_those_of_the_crate_for_every_kind_of_scalar() {
        let multiples = Multiples::of(&ours(&point()));
        // 6 is the one whose last addition doubles.
        let small = (1..=8u64).map(Scalar::from);
        let powers = (4..256).step_by(25);
        let powers = powers.map(|n| Scalar::from(2u64).pow_vartime(&U256::from_u32(n)));
        // One digit many times.
        let digits = (0..32u8).map(|digit| {
            let place = |sum, _| sum * Scalar::from(32u64) + Scalar::ONE;
            let ones = (0..DIGITS).fold(Scalar::ZERO, place);
            ones * Scalar::from(u64::from(digit) * 2) + Scalar::ONE
        });
        for k in small.chain(powers).chain(digits) {
            for k in [k, -k] {
                agree(&NonZeroScalar::new(k).unwrap(), &point(), &multiples);
            }
        }
    }

    #[test]
    fn the_digits_are_the_scalar() {
        for k in [1u64, 2, 3, 6, 31, 32, 33, u64::MAX].map(Scalar::from) {
            for k in [k, -k] {
                let digits = Digits::new(&NonZeroScalar::new(k).unwrap());
                let value = |digit: u8| Scalar::from(u64::from(digit) * 2) - Scalar::from(31u64);
                let places = digits.digits.iter().rev();
                let sum = places.fold(Scalar::ONE, |sum, digit| {
                    sum * Scalar::from(32u64) + value(*digit)
                });
                let negative = bool::from(digits.negative);
                assert_eq!(if negative { -sum } else { sum }, k);
                assert!(digits.digits.iter().all(|digit| *digit < 32));
            }
        }
    }

    #[test]
    fn a_point_is_on_the_curve() {
        let point = point().to_affine();
        let (x, y) = (<[u8; 32]>::from(point.x()), <[u8; 32]>::from(point.y()));
        let read = Affine::from_coordinates(&x, &y).unwrap();
        assert_eq!((read.x(), read.y()), (x, y));
        assert!(Affine::from_coordinates(&y, &x).is_none());
        assert!(Affine::from_coordinates(&x, &x).is_none());
        assert!(Affine::from_coordinates(&[0; 32], &[0; 32]).is_none());
        assert!(Affine::from_coordinates(&[0xff; 32], &y).is_none());
        for bit in 0..256 {
            let mut off = y;
            off[bit / 8] ^= 1 << (bit % 8);
            assert!(Affine::from_coordinates(&x, &off).is_none(), "bit {bit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn the_products_are_those_of_the_crate(k: [u8; 32], p: [u8; 32]) {
            let scalar = |bytes: [u8; 32]| Scalar::reduce(&U256::from_be_slice(&bytes));
            let k = NonZeroScalar::new(scalar(k)).into_option();
            let p = NonZeroScalar::new(scalar(p)).into_option();
            if let (Some(k), Some(p)) = (k, p) {
                let p = ProjectivePoint::mul_by_generator(&*p);
                agree(&k, &p, &Multiples::of(&ours(&p)));
            }
        }
    }

    /// All our ways to multiply give what the crate's multiplication gives.
    fn agree(k: &NonZeroScalar, p: &ProjectivePoint, multiples: &Multiples) {
        let [by_g, by_p] = *mul_both(k, multiples);
        same(&by_g, &(ProjectivePoint::GENERATOR * **k), k);
        same(&by_p, &(*p * **k), k);
        same(&mul(k, &ours(p)), &(*p * **k), k);
    }

    fn same(ours: &Affine, theirs: &ProjectivePoint, k: &NonZeroScalar) {
        let theirs = theirs.to_affine();
        let expected = (theirs.x().into(), theirs.y().into());
        assert_eq!((ours.x(), ours.y()), expected, "{k:?}");
    }

    fn ours(point: &ProjectivePoint) -> Affine {
        let point: AffinePoint = point.to_affine();
        Affine::from_coordinates(&point.x().into(), &point.y().into()).unwrap()
    }

    fn point() -> ProjectivePoint {
        ProjectivePoint::mul_by_generator(&Scalar::from(0x1234_5678_9abc_def1u64))
    }
}
