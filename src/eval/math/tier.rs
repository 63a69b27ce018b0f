//! How strictly two answers are compared, and the verdict on a whole solution.

use super::equal::{DECIMALS, compared, mathematically_equal};
use super::extract::{ANY, extract, final_answer};
use super::hendrycks::hendrycks_equal;
use super::limits::Steps;
use super::reasoning::after_reasoning;

/// How strictly two answers are compared, from the strictest tier to the most lenient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// The same text, except for white space around it.
    Exact,
    /// The same text after the normalization of Hendrycks et al. It drops everything after a `\text{ `, so
    /// on its own it treats `5 \text{ or } 7` as `5`.
    Hendrycks,
    /// The same mathematics.
    Mathematical,
}

impl Tier {
    /// All tiers, the strictest first.
    pub const ALL: [Self; 3] = [Self::Exact, Self::Hendrycks, Self::Mathematical];
}

/// Returns whether two answers are equal by the given tier alone.
///
/// ```
/// use mixdistill::eval::{Tier, equal};
/// assert!(equal(Tier::Exact, "7", " 7 "));
/// assert!(equal(Tier::Hendrycks, r"\dfrac34", r"\frac{3}{4}"));
/// assert!(equal(Tier::Mathematical, r"\{1, 2\}", "2, 1"));
/// assert!(!equal(Tier::Mathematical, "(1, 2)", "(2, 1)"));
/// ```
pub fn equal(tier: Tier, gold: &str, answer: &str) -> bool {
    match tier {
        Tier::Exact => gold.trim() == answer.trim(),
        Tier::Hendrycks => hendrycks_equal(gold, answer),
        Tier::Mathematical => mathematically_equal(gold, answer, DECIMALS),
    }
}

/// Compares by [`Tier::Mathematical`], with the number of decimals from which a decimal number counts as an
/// approximation. [`equal`] uses six.
///
/// ```
/// use mixdistill::eval::equal_to_decimals;
/// assert!(equal_to_decimals(r"\frac{1}{3}", "0.33", 2));
/// assert!(!equal_to_decimals(r"\frac{1}{3}", "0.33", 6));
/// ```
pub fn equal_to_decimals(gold: &str, answer: &str, decimals: u32) -> bool {
    mathematically_equal(gold, answer, decimals)
}

/// Returns whether two final answers are the same: lenient about form, but never about content. The parser
/// decides if it can read both answers. Otherwise, their texts are compared. The normalization of
/// [`Tier::Hendrycks`] alone never makes answers equal, because it drops content. Units, nouns, moduli, and
/// percent signs may be missing. A second value, a negation, a condition, or a comparison makes a different
/// answer.
///
/// ```
/// use mixdistill::eval::same_answer;
/// assert!(same_answer("1,234", "1234.0"));
/// assert!(same_answer(r"\frac{1}{2}", r"\frac {1} {2}"));
/// assert!(!same_answer("7", "70"));
/// assert!(!same_answer("1,2", "12"));
/// assert!(!same_answer("9007199254740993", "9007199254740992"));
/// assert!(same_answer("5", r"5 \text{ apples}"));
/// assert!(!same_answer("5", r"5 \text{ or } 7"));
/// assert!(!same_answer("5", r"5 \text{ if } n > 2"));
/// ```
pub fn same_answer(gold: &str, answer: &str) -> bool {
    first_tier(gold, answer).is_some()
}

/// Returns the strictest tier by which two answers are equal, if they are the same answer.
fn first_tier(gold: &str, answer: &str) -> Option<Tier> {
    if equal(Tier::Exact, gold, answer) {
        return Some(Tier::Exact);
    }
    mathematically_equal(gold, answer, DECIMALS).then(|| match hendrycks_equal(gold, answer) {
        true => Tier::Hendrycks,
        false => Tier::Mathematical,
    })
}

/// The grade of a solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// The final answer of the solution, if any.
    pub stated: Option<String>,
    /// Whether it equals the reference.
    pub correct: bool,
    /// The strictest tier by which it equals the reference.
    pub tier: Option<Tier>,
}

/// Grades a solution against a reference. Each may be a bare answer or a whole text. If the reference states
/// a final answer explicitly, that is used. In the solution, [`ANY`] finds the answer after the reasoning.
///
/// ```
/// use mixdistill::eval::{Tier, grade};
/// let grade = grade("72", "She sold 48 + 24 = 72 clips.");
/// assert_eq!((grade.stated.as_deref(), grade.tier), (Some("72"), Some(Tier::Exact)));
/// ```
pub fn grade(gold_text: &str, answer_text: &str) -> Grade {
    let gold = final_answer(gold_text).unwrap_or_else(|| gold_text.trim().to_owned());
    let stated = after_reasoning(answer_text, false).and_then(|text| extract(text, &ANY));
    let tier = stated.as_deref().and_then(|stated| first_tier(&gold, stated));
    Grade { stated, correct: tier.is_some(), tier }
}

/// Returns the number of steps that the mathematical comparison of two answers takes, at most
/// [`MAX_STEPS`](super::MAX_STEPS).
pub fn steps_of_comparison(gold: &str, answer: &str) -> u64 {
    let mut steps = Steps::new();
    compared(gold, answer, DECIMALS, &mut steps);
    steps.taken()
}
