//! Takes the samples.

use std::hint::black_box;
use std::time::Instant;

use crate::welch::Samples;

/// How many inputs each class has in a round.
pub(crate) const POOL: usize = 64;

/// How many samples of a round are dropped: caches and predictors settle.
const SETTLING: usize = 64;

/// Times `work` over inputs of two classes, in an order drawn at random.
///
/// An input has a time of its own: by where it lies in memory, which cache lines that shares, what its digits do to a branch
/// predictor. So no input stays: each round of `round` samples has new ones, made by `make`, in a random order in memory.
///
/// `ready` makes of an input what `work` is timed with. It is done for every sample anew, so that both classes lie in the
/// same memory, as freshly written. `work` says whether it refused, which it must.
pub(crate) fn measure<C, I: Clone, P>(
    count: usize,
    round: usize,
    mut make: impl FnMut() -> (C, [Vec<I>; 2]),
    ready: impl Fn(&I) -> P,
    work: impl Fn(&C, &P) -> bool,
) -> Samples {
    let mut taken = Vec::with_capacity(count + round);
    let mut order = vec![0; SETTLING + round];
    while taken.len() < count {
        let (context, classes) = make();
        let inputs = shuffled(&classes);
        getrandom::fill(&mut order).expect("randomness");
        for (at, number) in order.iter().enumerate() {
            // Nothing between here and the end of the measurement branches on the class.
            let (class, input) = &inputs[usize::from(*number) % (2 * POOL)];
            let input = black_box(ready(input));
            let began = Instant::now();
            let refused = black_box(work(&context, &input));
            let took = began.elapsed();
            assert!(refused, "this must be refused");
            if at >= SETTLING {
                let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                taken.push((*class, nanoseconds));
            }
        }
    }
    taken.truncate(count);
    Samples { taken }
}

/// Both classes copied in one random order.
fn shuffled<I: Clone>(classes: &[Vec<I>; 2]) -> Vec<(bool, I)> {
    let [one, other] = classes;
    assert_eq!((one.len(), other.len()), (POOL, POOL));
    let one = one.iter().map(|input| (false, input));
    let mut inputs: Vec<(bool, &I)> = one.chain(other.iter().map(|input| (true, input))).collect();
    let mut places = [0; 2 * POOL * 4];
    getrandom::fill(&mut places).expect("randomness");
    let mut places = places.chunks(4);
    inputs.sort_by_cached_key(|_| places.next());
    let copy = |(class, input): (bool, &I)| (class, input.clone());
    inputs.into_iter().map(copy).collect()
}
