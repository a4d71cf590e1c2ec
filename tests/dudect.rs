//! The statistics by which `benches/dudect` tells two classes of times apart. Nothing is timed here.

#[path = "../benches/dudect/welch.rs"]
mod welch;

use welch::{Moments, Samples, verdict, welch};

#[test]
fn t_is_the_one_of_the_published_example() {
    // Wikipedia, "Welch's t-test", example 1: t = -2.46.
    let one = [
        27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4,
    ];
    let other = [
        27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4,
    ];
    let t = welch([one, other].map(|values| {
        let mut moments = Moments::default();
        values.into_iter().for_each(|value| moments.add(value));
        moments
    }));
    assert_eq!(format!("{t:.2}"), "-2.46");
}

#[test]
fn a_class_that_takes_a_tenth_of_the_scatter_longer_is_found() {
    let found = verdict(times(|class| u64::from(class) * 2));
    assert!(found.leaks(), "{found:?}");
    assert_eq!((found.samples, found.median), (40_000, 111));
}

#[test]
fn a_difference_that_the_slow_samples_hide_is_found_by_cropping() {
    // Every hundredth sample is interrupted for long.
    let mut number = 0;
    let found = verdict(times(|class| {
        number += 1;
        match number % 100 {
            0 => 1_000_000 * (number % 7),
            _ => u64::from(class) * 2,
        }
    }));
    assert!(
        found.leaks() && found.place.starts_with("the fastest"),
        "{found:?}"
    );
}

#[test]
fn a_class_that_scatters_more_is_found() {
    let mut number = 0_i64;
    let found = verdict(times(|class| {
        number += 1;
        match (class, number % 4 < 2) {
            (true, true) => 20,
            (true, false) => 0,
            (false, _) => 10,
        }
    }));
    assert!(found.leaks(), "{found:?}");
}

#[test]
fn classes_that_are_the_same_are_not_told_apart() {
    let found = verdict(times(|_| 0));
    assert!(!found.leaks(), "{found:?}");
}

/// 40,000 samples, in turn of either class, between 100 and 120, and what `more` adds.
fn times(mut more: impl FnMut(bool) -> u64) -> Samples {
    let mut state = 1_u64;
    let mut next = || {
        // The generator of Knuth's MMIX.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let taken = (0..40_000).map(|_| {
        let class = next() % 2 == 1;
        (class, 100 + next() % 21 + more(class))
    });
    Samples {
        taken: taken.collect(),
    }
}
