//! Welch's t-test over the times of two classes, cropped as dudect crops.

/// The times of a run, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// The class and the time of each measurement, in the order in which they were made.
    pub(crate) taken: Vec<(Class, u64)>,
}

/// Which of the two kinds of input it was.
pub(crate) type Class = bool;

/// What the samples say.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// How many were looked at.
    pub(crate) samples: usize,
    /// The median time of all.
    pub(crate) median: u64,
    /// The largest |t|.
    pub(crate) t: f64,
    /// Which part of the samples gave it.
    pub(crate) place: String,
}

/// Over this, two classes take different times (the bound of the TVLA methodology, which dudect takes over).
const BOUND: f64 = 4.5;

/// The fewest samples that a cropped test is made of, as in dudect.
const ENOUGH: f64 = 10_000.0;

impl Verdict {
    /// Whether the classes take different times.
    pub(crate) fn leaks(&self) -> bool {
        self.t > BOUND
    }
}

/// The largest |t| of 102 tests: over all samples, over those under each of 100 percentiles, which stand closer towards
/// the slow end, and over the squared distances from the mean, which tell classes apart that scatter differently.
pub(crate) fn verdict(samples: Samples) -> Verdict {
    let mut sorted = samples.taken;
    sorted.sort_unstable_by_key(|(_, time)| *time);
    let median = sorted.get(sorted.len() / 2).map_or(0, |(_, time)| *time);
    // Near the middle, so that squares stay small beside what tells them apart.
    let centred = |time: u64| time as f64 - median as f64;

    let mut best = (0.0, "all".to_owned());
    let mut offer = |t: f64, place: String| {
        if t.abs() > best.0 {
            best = (t.abs(), place);
        }
    };
    let mut both = [Moments::default(); 2];
    let mut rest = sorted.iter().peekable();
    for number in 1..=100 {
        let share = 1.0 - 0.5_f64.powf(10.0 * f64::from(number) / 100.0);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length"
        )]
        let at = (share * sorted.len() as f64) as usize;
        let Some(&(_, threshold)) = sorted.get(at) else {
            break;
        };
        while let Some((class, time)) = rest.next_if(|(_, time)| *time < threshold) {
            both[usize::from(*class)].add(centred(*time));
        }
        if both[0].count + both[1].count >= ENOUGH {
            offer(welch(both), format!("the fastest {:.1} %", share * 100.0));
        }
    }
    for (class, time) in rest {
        both[usize::from(*class)].add(centred(*time));
    }
    offer(welch(both), "all".to_owned());
    let means = both.map(|moments| moments.mean());
    let mut second = [Moments::default(); 2];
    for (class, time) in &sorted {
        let class = usize::from(*class);
        second[class].add((centred(*time) - means[class]).powi(2));
    }
    offer(welch(second), "the scatter of all".to_owned());
    let (t, place) = best;
    Verdict {
        samples: sorted.len(),
        median,
        t,
        place,
    }
}

/// How many numbers, their sum, and the sum of their squares.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moments {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Moments {
    /// Takes in one more.
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }

    fn variance(&self) -> f64 {
        (self.squares - self.sum * self.sum / self.count) / (self.count - 1.0)
    }
}

/// Welch's t: how far the means are from each other, in standard errors. Zero if there is nothing to tell by.
pub(crate) fn welch([one, other]: [Moments; 2]) -> f64 {
    let error = (one.variance() / one.count + other.variance() / other.count).sqrt();
    let t = (one.mean() - other.mean()) / error;
    if t.is_finite() { t } else { 0.0 }
}
