//! The range, ticks, and labels of an axis.

/// Larger numbers have no place on an axis, because their differences may not be finite.
const LARGEST: f64 = 1e300;

/// Smaller numbers count as 0, because steps between them would have no finite inverse.
const SMALLEST: f64 = 1e-300;

/// Values with a smaller relative range count as equal, because their digits are indistinguishable.
const FLAT: f64 = 1e-12;

/// The kind of numbers on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Any numbers.
    Linear,
    /// Any numbers, always including 0, which a line marks.
    AroundZero,
    /// Whole numbers, such as steps.
    Whole,
    /// Shares from 0 to 1.
    Share,
    /// Positive numbers on a logarithmic scale.
    Logarithmic,
}

impl Scale {
    /// Returns the number to place on the axis, or `None` if it has no place there.
    pub(super) fn usable(self, value: f64) -> Option<f64> {
        match value.abs() {
            size if size.is_nan() || size > LARGEST => None,
            size if size < SMALLEST => (self != Self::Logarithmic).then_some(0.0),
            _ => (self != Self::Logarithmic || value > 0.0).then_some(value),
        }
    }
}

/// The direction of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From left to right. The data fill the axis.
    Across,
    /// From bottom to top. The axis has a tick at each end.
    Up,
}

/// The distance between ticks: `factor` times ten to the power of `exponent`. Stored as two integers, so
/// that the value of a tick is exactly the number in its label.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    factor: i32,
    exponent: i32,
}

impl Step {
    /// Returns a step of 1, 2 or 5 times a power of ten that divides `span` into about `count` parts.
    fn new(span: f64, count: usize) -> Self {
        let wanted = span / count.max(1) as f64;
        let exponent = wanted.log10().floor() as i32;
        let power = 10f64.powi(exponent);
        let factor = [1, 2, 5].into_iter().find(|f| f64::from(*f) * power >= wanted * 0.999_999);
        match factor {
            Some(factor) => Self { factor, exponent },
            None => Self { factor: 1, exponent: exponent + 1 },
        }
    }

    fn whole(self) -> Self {
        if self.exponent < 0 { Self { factor: 1, exponent: 0 } } else { self }
    }

    /// Returns the value of a tick.
    fn value(self, number: f64) -> f64 {
        let times = number * f64::from(self.factor);
        match self.exponent {
            0.. => times * 10f64.powi(self.exponent),
            _ => times / 10f64.powi(-self.exponent),
        }
    }

    /// Returns the index of the last tick that is not above a value.
    fn below(self, value: f64) -> f64 {
        (value / self.value(1.0) + 1e-6).floor()
    }

    /// Returns the index of the first tick that is not below a value.
    fn above(self, value: f64) -> f64 {
        (value / self.value(1.0) - 1e-6).ceil()
    }

    fn ticks(self, low: f64, high: f64) -> Vec<f64> {
        /// More than any axis asks for.
        const MOST: f64 = 60.0;
        let (first, last) = (self.above(low), self.below(high));
        let count = (last - first + 1.0).clamp(0.0, MOST) as usize;
        // Adding 0 turns -0 into 0.
        (0..count).map(|i| self.value(first + i as f64) + 0.0).collect()
    }
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    /// The value at the tick.
    pub value: f64,
    /// The label next to it.
    pub label: String,
}

/// An axis with its range and ticks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ruler {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<Tick>,
    logarithmic: bool,
}

impl Ruler {
    /// Creates an axis for [`usable`](Scale::usable) values, with about `count` ticks.
    pub(super) fn new(
        scale: Scale,
        direction: Direction,
        values: impl Iterator<Item = f64>,
        count: usize,
    ) -> Self {
        let range = values.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        let logarithmic = scale == Scale::Logarithmic;
        let (low, high) = widened(scale, direction, range);
        if logarithmic {
            let ticks = logarithmic_ticks(low, high, count);
            return Self { low, high, ticks, logarithmic };
        }
        let mut step = Step::new(high - low, count);
        if scale == Scale::Whole {
            step = step.whole();
        }
        let (low, high) = match direction {
            Direction::Across => (low, high),
            // Rounding must not exclude a value.
            Direction::Up => {
                (step.value(step.below(low)).min(low), step.value(step.above(high)).max(high))
            }
        };
        let values = step.ticks(low, high);
        let largest = values.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        let tick = |value: f64| Tick { value, label: label(value, largest, step.exponent) };
        Self { low, high, ticks: values.into_iter().map(tick).collect(), logarithmic }
    }

    /// Returns the position of a value, from 0 at the start of the axis to 1 at its end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = match self.logarithmic {
            true => (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
            false => (value - self.low) / (self.high - self.low),
        };
        share.clamp(0.0, 1.0)
    }
}

/// Returns the range to draw for a range of data. It has a width, and includes 0 if the scale requires it or
/// if 0 is near.
fn widened(scale: Scale, direction: Direction, range: Option<(f64, f64)>) -> (f64, f64) {
    let Some((mut low, mut high)) = range else {
        return if scale == Scale::Logarithmic { (1.0, 10.0) } else { (0.0, 1.0) };
    };
    match scale {
        Scale::Share => (low, high) = (low.min(0.0), high.max(1.0)),
        Scale::AroundZero => (low, high) = (low.min(0.0), high.max(0.0)),
        Scale::Linear | Scale::Whole | Scale::Logarithmic => {}
    }
    let is_flat = high - low <= FLAT * low.abs().max(high.abs()) || high - low < SMALLEST;
    if is_flat {
        let pad = 0.5 * high.abs();
        (low, high) = match scale {
            Scale::Logarithmic => (low / 2.0, high * 2.0),
            Scale::Whole if low == 0.0 => (0.0, 1.0),
            Scale::Whole => {
                // Large numbers equal their neighbors in floating point.
                let pad = (10.0 * FLAT * high.abs()).ceil().max(1.0);
                (low - pad, high + pad)
            }
            Scale::AroundZero if pad == 0.0 => (-1.0, 1.0),
            _ if pad == 0.0 => (0.0, 1.0),
            _ => (low - pad, high + pad),
        };
    }
    let near = match direction {
        Direction::Across => 0.1,
        Direction::Up => 0.4,
    };
    if scale != Scale::Logarithmic {
        if low > 0.0 && low <= near * high {
            low = 0.0;
        }
        if high < 0.0 && high >= near * low {
            high = 0.0;
        }
    }
    (low, high)
}

/// Ticks at 1, 2, and 5 times the powers of ten, or only at powers of ten if there are many.
fn logarithmic_ticks(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let decades = high.log10() - low.log10();
    if decades < 1.0 {
        let step = Step::new(high - low, count);
        let of = |value: f64| Tick { value, label: label(value, high, step.exponent) };
        return step.ticks(low, high).into_iter().map(of).collect();
    }
    let factors: &[i32] = match 3.0 * decades <= count as f64 {
        true => &[1, 2, 5],
        false => &[1],
    };
    let every = ((decades / count.max(1) as f64).ceil() as i32).max(1);
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let steps = (first..=last)
        .filter(|exponent| exponent.rem_euclid(every) == 0)
        .flat_map(|exponent| factors.iter().map(move |factor| Step { factor: *factor, exponent }));
    let within = |value: f64| value >= low * (1.0 - 1e-9) && value <= high * (1.0 + 1e-9);
    let tick = |step: Step| {
        let value = step.value(1.0);
        within(value).then(|| Tick { value, label: label(value, value, step.exponent) })
    };
    steps.filter_map(tick).collect()
}

/// Returns the label of a tick, with as many digits as a step of ten to the power of `exponent` needs.
/// `largest` is the largest number on the axis, so that all labels have the same form.
fn label(value: f64, largest: f64, exponent: i32) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let (power, suffix) = match largest {
        l if !(1e-4..1e15).contains(&l) => {
            let power = l.log10().floor() as i32;
            (power, format!("e{power}"))
        }
        l if l >= 1e12 => (12, "T".into()),
        l if l >= 1e9 => (9, "B".into()),
        l if l >= 1e6 => (6, "M".into()),
        l if l >= 1e4 => (3, "k".into()),
        _ => (0, String::new()),
    };
    let digits = (power - exponent).clamp(0, 17) as usize;
    let scaled = match power {
        0.. => value / 10f64.powi(power),
        _ => value * 10f64.powi(-power),
    };
    format!("{scaled:.digits$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, direction: Direction, values: &[f64]) -> Vec<String> {
        let values = values.iter().filter_map(|value| scale.usable(*value));
        let ruler = Ruler::new(scale, direction, values, 6);
        ruler.ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn labels_are_round_and_have_as_many_digits_as_they_need() {
        use Direction::{Across, Up};
        use Scale::{AroundZero, Linear, Logarithmic, Share, Whole};
        for (scale, direction, values, expected) in [
            (Linear, Up, &[0.0, 6.3][..], &["0", "2", "4", "6", "8"][..]),
            (Linear, Up, &[2.1, 2.2], &["2.10", "2.12", "2.14", "2.16", "2.18", "2.20"]),
            (Linear, Up, &[3.0], &["0", "1", "2", "3", "4", "5"]),
            (Linear, Up, &[0.0, 0.0], &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (Linear, Up, &[-3.0, -1.0], &["-3.0", "-2.5", "-2.0", "-1.5", "-1.0", "-0.5", "0"]),
            (
                Linear,
                Up,
                &[0.0, 3e-9],
                &["0", "0.5e-9", "1.0e-9", "1.5e-9", "2.0e-9", "2.5e-9", "3.0e-9"],
            ),
            (Linear, Up, &[0.0, 3.1e18], &["0", "1e18", "2e18", "3e18", "4e18"]),
            (Linear, Up, &[1e300, -1e300], &["-1.0e300", "-0.5e300", "0", "0.5e300", "1.0e300"]),
            (Linear, Up, &[1e-320, 0.0], &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (AroundZero, Up, &[0.0, 0.0], &["-1.0", "-0.5", "0", "0.5", "1.0"]),
            (AroundZero, Up, &[40.0, 60.0], &["0", "10", "20", "30", "40", "50", "60"]),
            (Whole, Across, &[1.0], &["0", "1", "2"]),
            (Whole, Across, &[1.0, 3.0], &["1", "2", "3"]),
            (Whole, Across, &[0.0], &["0", "1"]),
            (Whole, Across, &[1.0, 60.0], &["0", "10", "20", "30", "40", "50", "60"]),
            (Whole, Across, &[0.0, 1125.0], &["0", "200", "400", "600", "800", "1000"]),
            (Whole, Across, &[1.0, 31_000.0], &["0", "10k", "20k", "30k"]),
            (Share, Across, &[0.2], &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (Logarithmic, Across, &[978_816.0], &["0.5M", "1.0M", "1.5M"]),
            (Logarithmic, Across, &[1e6, 3e7, 0.0, -1.0], &["1M", "2M", "5M", "10M", "20M"]),
            (Logarithmic, Across, &[1e6, 1e9], &["1M", "10M", "100M", "1B"]),
        ] {
            assert_eq!(labels(scale, direction, values), expected, "{scale:?} {values:?}");
        }
    }

    #[test]
    fn every_range_has_ticks_within_it_that_differ() {
        let sizes = [0.0, 1e-320, 1e-300, 3e-9, 1e-4, 0.3, 1.0, 7.0, 99.5, 1e4, 2.5e9, 1e17, 1e300];
        let numbers = sizes.iter().flat_map(|size| [*size, -size]);
        let numbers: Vec<f64> = numbers.chain([1.0 + 1e-9, 1.0 + 1e-11, 1e9 + 1e-3]).collect();
        for (a, b) in numbers.iter().flat_map(|a| numbers.iter().map(move |b| (*a, *b))) {
            use Scale::{AroundZero, Linear, Logarithmic, Share, Whole};
            for scale in [Linear, AroundZero, Whole, Share, Logarithmic] {
                for direction in [Direction::Across, Direction::Up] {
                    let values: Vec<f64> =
                        [a, b].into_iter().filter_map(|v| scale.usable(v)).collect();
                    let ruler = Ruler::new(scale, direction, values.iter().copied(), 6);
                    let what = format!("{scale:?} {direction:?} {a:e} {b:e}: {ruler:?}");
                    assert!(ruler.low < ruler.high, "{what}");
                    assert!(values.iter().all(|v| (ruler.low..=ruler.high).contains(v)), "{what}");
                    let places = ruler.ticks.iter().map(|tick| ruler.place(tick.value));
                    let places: Vec<f64> = places.collect();
                    assert!((1..=14).contains(&places.len()), "{what}");
                    assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{what}");
                    let labels: std::collections::BTreeSet<&String> =
                        ruler.ticks.iter().map(|tick| &tick.label).collect();
                    assert_eq!(labels.len(), ruler.ticks.len(), "{what}");
                    assert!(
                        !labels.iter().any(|label| label.trim_matches(['-', '.', '0']).is_empty()
                            && label.as_str() != "0"),
                        "{what}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_has_no_place() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e301, -1e301] {
            assert_eq!(Scale::Linear.usable(value), None);
        }
        assert_eq!(Scale::Logarithmic.usable(0.0), None);
        assert_eq!(Scale::Logarithmic.usable(-1.0), None);
    }
}
