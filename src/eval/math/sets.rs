//! Sets of real numbers: intervals, unions, and conditions such as `x < 3`. Two sets are compared by
//! membership rather than by solving. They are the same if they agree at every number that either of them
//! mentions, right next to these numbers, between them, far out, and on a fixed grid.

use super::complex::Complex;
use super::evaluate::{Point, evaluate};
use super::expression::{Bracket, Constant, Expression, Joiner, Relation};
use super::limits::Steps;

/// Returns whether an expression stands for a set of real numbers, judging by its form.
pub fn is_region(expression: &Expression) -> bool {
    match expression {
        Expression::Bracketed(_, items, _) => {
            items.len() == 2 && items.iter().all(Expression::is_scalar)
        }
        Expression::Set(items) => items.iter().all(Expression::is_scalar),
        Expression::Union(parts) | Expression::Intersection(parts) => parts.iter().all(is_region),
        Expression::Without(all, some) => is_region(all) && is_region(some),
        Expression::Variable(name) => name == "ℝ",
        Expression::SetWhere(_, condition) => is_condition(condition),
        other => is_condition(other),
    }
}

/// Returns whether an expression is one or several inequalities in one variable.
pub fn is_condition(expression: &Expression) -> bool {
    match expression {
        Expression::Chain(sides, relations) => {
            let inequality = |relation: &Relation| {
                !matches!(
                    relation,
                    Relation::Equal | Relation::Approximately | Relation::Congruent | Relation::In
                )
            };
            let belongs = relations == &[Relation::In] && is_region(&sides[1]);
            (relations.iter().all(inequality) && sides.iter().all(Expression::is_scalar) || belongs)
                && condition_variables(expression) == 1
        }
        Expression::List(parts, _) => {
            parts.iter().all(is_condition) && condition_variables(expression) == 1
        }
        _ => false,
    }
}

fn condition_variables(expression: &Expression) -> usize {
    expression.variables().into_iter().filter(|name| *name != "ℝ").count()
}

/// Returns whether two sets of real numbers are the same; `None` if that is unknown.
pub fn same_region(a: &Expression, b: &Expression, steps: &mut Steps) -> Option<bool> {
    let names = |set: &Expression| -> Vec<String> {
        set.variables().into_iter().filter(|name| *name != "ℝ").map(str::to_owned).collect()
    };
    let (name_a, name_b) = (names(a), names(b));
    if let (Some(a), Some(b)) = (name_a.first(), name_b.first())
        && a != b
    {
        return Some(false);
    }
    let mut numbers = vec![0.0];
    landmarks(a, &mut numbers, steps)?;
    landmarks(b, &mut numbers, steps)?;
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    let furthest = numbers.iter().fold(1.0f64, |most, number| most.max(number.abs()));
    let mut probes = numbers.clone();
    probes.extend(numbers.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0));
    for number in &numbers {
        let beside = 1e-5 * number.abs().max(1e-3);
        probes.extend([number - beside, number + beside]);
    }
    const GRID: i32 = 101;
    probes.extend((-GRID..=GRID).map(|at| f64::from(at) / f64::from(GRID) * 2.037 * furthest));
    for probe in probes {
        if contains(a, probe, steps)? != contains(b, probe, steps)? {
            return Some(false);
        }
    }
    Some(true)
}

/// Returns the numbers at which a set may begin or end: those that it mentions, their negatives, and their
/// roots.
fn landmarks(set: &Expression, numbers: &mut Vec<f64>, steps: &mut Steps) -> Option<()> {
    const MOST: usize = 512;
    if set.is_scalar() && set.variables().is_empty() {
        if let Some(value) = evaluate(set, &Point::new(), steps).and_then(Complex::real) {
            numbers.extend([value, -value, value.abs().sqrt(), -value.abs().sqrt()]);
        }
        return (numbers.len() <= MOST).then_some(());
    }
    set.parts().into_iter().try_for_each(|part| landmarks(part, numbers, steps))
}

fn contains(set: &Expression, number: f64, steps: &mut Steps) -> Option<bool> {
    steps.take(1)?;
    match set {
        Expression::Bracketed(open, items, close) => {
            let [low, high] = items.as_slice() else { return None };
            let (low, high) = (end(low, steps)?, end(high, steps)?);
            Some(
                after(low, number, *open == Bracket::Square)
                    && after(number, high, *close == Bracket::Square),
            )
        }
        Expression::Set(items) => {
            for item in items {
                let value = end(item, steps)?;
                if after(value, number, true) && after(number, value, true) {
                    return Some(true);
                }
            }
            Some(false)
        }
        Expression::Variable(_) => Some(true),
        Expression::Union(parts) | Expression::List(parts, Joiner::Or) => {
            any(parts, number, true, steps)
        }
        Expression::Intersection(parts) | Expression::List(parts, Joiner::And) => {
            Some(!any(parts, number, false, steps)?)
        }
        Expression::Without(all, some) => {
            Some(contains(all, number, steps)? && !contains(some, number, steps)?)
        }
        Expression::SetWhere(_, condition) => contains(condition, number, steps),
        Expression::Chain(sides, relations) => {
            let names = set.variables();
            let name = names.iter().copied().find(|name| *name != "ℝ")?;
            let point = Point::from([(name, Complex::new(number, 0.0))]);
            for (pair, relation) in sides.windows(2).zip(relations) {
                if *relation == Relation::In {
                    return contains(&pair[1], number, steps);
                }
                let left = side(&pair[0], &point, steps);
                let right = side(&pair[1], &point, steps);
                // If a side has no real value, the condition does not hold.
                let (Some(left), Some(right)) = (left, right) else { return Some(false) };
                let holds = match relation {
                    Relation::Less => after(left, right, false),
                    Relation::LessEqual => after(left, right, true),
                    Relation::Greater => after(right, left, false),
                    Relation::GreaterEqual => after(right, left, true),
                    Relation::NotEqual => after(left, right, false) || after(right, left, false),
                    _ => return None,
                };
                if !holds {
                    return Some(false);
                }
            }
            Some(true)
        }
        _ => None,
    }
}

/// Returns whether any of the parts contains the number as `wanted` says.
fn any(parts: &[Expression], number: f64, wanted: bool, steps: &mut Steps) -> Option<bool> {
    for part in parts {
        if contains(part, number, steps)? == wanted {
            return Some(true);
        }
    }
    Some(false)
}

/// Returns whether `high` is greater than `low` or, if `same`, equal to it.
fn after(low: f64, high: f64, same: bool) -> bool {
    let scale = low.abs().max(high.abs()).max(1e-3);
    let near = low == high || scale.is_finite() && (high - low).abs() <= 1e-9 * scale;
    if near { same } else { low < high }
}

fn side(side: &Expression, point: &Point, steps: &mut Steps) -> Option<f64> {
    match infinite(side) {
        Some(value) => Some(value),
        None => evaluate(side, point, steps)?.real(),
    }
}

/// Returns an end of an interval.
fn end(expression: &Expression, steps: &mut Steps) -> Option<f64> {
    side(expression, &Point::new(), steps)
}

/// Returns ∞ or its negative.
pub fn infinite(expression: &Expression) -> Option<f64> {
    match expression {
        Expression::Constant(Constant::Infinity) => Some(f64::INFINITY),
        Expression::Negative(inner) => infinite(inner).map(|value| -value),
        _ => None,
    }
}
