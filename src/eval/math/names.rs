//! Equations that only name a value. `x = 5`, `f(x) = 5`, `AB = 5`, `(p, q) = (1, 2)`, and `2 + 3 = 5` state
//! a value, whereas `x + y = 5` is an equation. This module draws the line between the two.

use super::expression::{Bracket, Expression, Relation};
use super::number::small_integer;

/// A value and its name, if any.
#[derive(Clone, Copy, Debug)]
pub struct Assigned<'a> {
    /// The left-hand side, if it is a name rather than a calculation.
    pub name: Option<&'a Expression>,
    /// The value.
    pub value: &'a Expression,
}

/// Interprets a chain of relations as a named value, if it is nothing more.
pub fn assigned(expression: &Expression) -> Option<Assigned<'_>> {
    let Expression::Chain(sides, relations) = expression else { return None };
    let name = is_name(&sides[0]).then_some(&sides[0]);
    match relations.as_slice() {
        // `x \in [0, 1]` names the set of its values.
        [Relation::In] => name.map(|_| Assigned { name, value: &sides[1] }),
        // `\frac13 \approx 0.333` states a third.
        [Relation::Approximately]
            if name.is_none()
                && sides[1].decimals() > 0
                && sides.iter().all(|side| side.is_scalar() && side.variables().is_empty()) =>
        {
            Some(Assigned { name: None, value: &sides[0] })
        }
        [Relation::Approximately | Relation::Congruent] => {
            name.map(|_| Assigned { name, value: &sides[1] })
        }
        _ => {
            // `x = 1/3 \approx 0.33` states 1/3.
            let equal = relations.iter().take_while(|r| **r == Relation::Equal).count();
            let rest = &relations[equal..];
            if equal == 0 || rest.iter().any(|r| *r != Relation::Approximately) {
                return None;
            }
            let closed = |side: &Expression| side.is_scalar() && side.variables().is_empty();
            let value = &sides[equal];
            if name.is_none() && closed(&sides[0]) && is_name(value) {
                return Some(Assigned { name: Some(value), value: &sides[0] });
            }
            // `35 + 70 = 105`, and the last two sides of `m + n = 35 + 70 = 105`.
            let calculation = closed(&sides[equal - 1]) && closed(value);
            // `1 = z = x = 0` states its last value.
            let all_named = || sides[..equal].iter().all(|side| is_name(side) || closed(side));
            let chain = equal > 1 && closed(value) && all_named();
            (name.is_some() || calculation || chain).then_some(Assigned { name, value })
        }
    }
}

/// Returns the last side of a chain of several equations, the result of such a calculation:
/// `x - p = (2 - p) - p = 2 - 2p`.
pub fn last_of_chain(expression: &Expression) -> Option<&Expression> {
    let Expression::Chain(sides, relations) = expression else { return None };
    let equal = relations.iter().take_while(|r| **r == Relation::Equal).count();
    let exact = relations[equal..].iter().all(|r| *r == Relation::Approximately);
    (equal > 1 && exact && sides.iter().all(Expression::is_scalar)).then(|| &sides[equal])
}

/// Returns whether an expression is only a name.
pub fn is_name(expression: &Expression) -> bool {
    match expression {
        Expression::Variable(_) => true,
        // `AB`, `f(x)`, `f(2)`, `f(x, y)`.
        Expression::Product(factors) => {
            // `f^{-1}(x)`.
            let inverse = |factor: &Expression| {
                let Expression::Power(base, exponent) = factor else { return false };
                matches!(&**base, Expression::Variable(_))
                    && small_integer(exponent) == Some(-1)
                    && matches!(&factors[1..], [Expression::Variable(_)])
            };
            factors.first().is_some_and(|f| matches!(f, Expression::Variable(_)) || inverse(f))
                && factors[1..].iter().all(|factor| match factor {
                    Expression::Variable(_) => true,
                    // `f(2)`, `P(X = 1)`.
                    Expression::Number(..) | Expression::Chain(..) => factors.len() == 2,
                    Expression::Bracketed(Bracket::Round, items, Bracket::Round) => {
                        factors.len() == 2
                            && items.iter().all(|i| {
                                matches!(i, Expression::Variable(_) | Expression::Number(..))
                            })
                    }
                    _ => false,
                })
        }
        Expression::Bracketed(Bracket::Round, items, Bracket::Round) | Expression::Ratio(items) => {
            items.iter().all(is_name)
        }
        Expression::Quotient(over, under) => is_name(over) && is_name(under),
        Expression::Function(_, arguments) => arguments.iter().all(is_name),
        _ => false,
    }
}

/// Returns whether it is the name of a function: `y` or `f(x)`.
pub fn is_function_name(name: &Expression) -> bool {
    match name {
        Expression::Variable(name) => name == "y",
        Expression::Product(factors) => {
            matches!(factors.as_slice(), [Expression::Variable(_), Expression::Variable(_)])
        }
        _ => false,
    }
}

/// Returns whether two names are the same. The argument of a function does not count, and a missing name
/// matches any.
pub fn same_name(a: Option<&Expression>, b: Option<&Expression>) -> bool {
    match (a, b) {
        (Some(Expression::Product(a)), Some(Expression::Product(b))) => a[0] == b[0] || a == b,
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}
