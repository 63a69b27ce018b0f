//! The differences between the arms of a comparison: which ones are tested, with what certainty.

use super::arms::ArmKind;
use super::config::ComparisonConfig;
use crate::eval::{Arm, Bootstrap, Estimate, Hits, holm, score};
use serde::{Deserialize, Serialize};

/// A difference between two arms of one student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmDifference {
    /// The arm whose score is the minuend.
    pub arm: ArmKind,
    /// The arm whose score is subtracted.
    pub other: ArmKind,
    /// The names of both, such as `by RSR − short alone`.
    pub name: String,
    /// The difference of the scores with its interval.
    pub estimate: Estimate,
    /// Two-sided p-value of the paired bootstrap.
    pub p: f64,
    /// The p-value after Holm's correction over all differences of the comparison, for all students.
    pub p_holm: f64,
    /// Standard error of the difference.
    pub standard_error: f64,
    /// The smallest true difference that 80% of studies with these seeds and problems would detect in a
    /// test at 5%, before the correction. `None` if the answers do not vary.
    pub shown_in_most: Option<f64>,
    /// The difference in each seed.
    pub by_seed: Vec<f64>,
}

impl ArmDifference {
    /// Returns whether the corrected p-value is below 5%.
    pub fn is_significant(&self) -> bool {
        self.p_holm < LEVEL
    }
}

/// The accepted probability of at least one false positive in a family of tests.
pub(super) const LEVEL: f64 = 0.05;

/// The share of Mix Distillation (arXiv 2502.12143, section 4).
const PAPER_SHARE: f64 = 0.2;

/// Returns the pairs of arms that a comparison tests, most decisive first.
pub(super) fn pairs(comparison: &ComparisonConfig) -> Vec<(ArmKind, ArmKind)> {
    let (weak, strong) = (ArmKind::Share(0.0), ArmKind::Share(1.0));
    let shares = comparison.shares();
    let mut pairs = vec![];
    for (number, choice) in comparison.choices.iter().enumerate() {
        let chosen = ArmKind::Choice(number);
        pairs.extend(choice.control.then_some((chosen, ArmKind::Control(number))));
        pairs.extend([(chosen, weak), (chosen, strong)]);
        // Not the best mixture: that one would be picked after the fact.
        let has_paper = shares.contains(&PAPER_SHARE);
        pairs.extend(has_paper.then_some((chosen, ArmKind::Share(PAPER_SHARE))));
        pairs.extend(choice.inverse.then_some((chosen, ArmKind::Inverse(number))));
    }
    pairs.push((strong, weak));
    for share in shares.into_iter().filter(|share| *share > 0.0 && *share < 1.0) {
        pairs.extend([(ArmKind::Share(share), weak), (ArmKind::Share(share), strong)]);
    }
    // The effect of training on an arm: even the best arm can do harm.
    pairs.extend(comparison.arms().into_iter().map(|arm| (arm, ArmKind::Untuned)));
    pairs
}

/// Returns the differences of one student, before correction.
pub(super) fn of(
    comparison: &ComparisonConfig,
    bootstrap: &Bootstrap,
    hits: impl Fn(ArmKind) -> Vec<Hits>,
) -> Vec<ArmDifference> {
    let difference = |(arm, other): (ArmKind, ArmKind)| {
        let (first, second) = (hits(arm), hits(other));
        let arms: [Arm; 2] = [first.iter().collect(), second.iter().collect()];
        let test = bootstrap.test(&arms[0], &arms[1]);
        ArmDifference {
            arm,
            other,
            name: format!("{} − {}", comparison.title(arm), comparison.title(other)),
            estimate: test.estimate,
            p: test.p,
            p_holm: 1.0,
            standard_error: test.standard_error,
            shown_in_most: test.shown_in_most(),
            by_seed: first.iter().zip(&second).map(|(a, b)| score(a) - score(b)).collect(),
        }
    };
    pairs(comparison).into_iter().map(difference).collect()
}

/// Corrects the p-values of a family of tests.
pub(super) fn correct<'a>(family: impl Iterator<Item = &'a mut ArmDifference>) {
    let mut family: Vec<&mut ArmDifference> = family.collect();
    let p_values: Vec<f64> = family.iter().map(|difference| difference.p).collect();
    for (difference, p) in family.iter_mut().zip(holm(&p_values)) {
        difference.p_holm = p;
    }
}
