//! The values of ±. `1 \pm 2` is two answers, and `\pm 1 \pm 2` is four. With ∓, all signs are coupled and
//! there are two.

use super::expression::Expression;
use super::limits::MAX_SIGNS;

/// Returns the values of an expression with ±; `None` if it has no ± or too many.
pub fn expanded(expression: &Expression) -> Option<Vec<Expression>> {
    if !expression.is_scalar() {
        return None;
    }
    let (mut signs, mut together) = (0, false);
    count(expression, &mut signs, &mut together);
    if signs == 0 || signs > MAX_SIGNS {
        return None;
    }
    let variants: u32 = if together { 2 } else { 1 << signs };
    let chosen = |variant: u32| {
        let mut at = 0;
        with_signs(expression, &mut |opposite| {
            let negative =
                if together { (variant == 1) != opposite } else { variant >> at & 1 == 1 };
            at += 1;
            negative
        })
    };
    Some((0..variants).map(chosen).collect())
}

fn count(expression: &Expression, signs: &mut u32, together: &mut bool) {
    if let Expression::PlusMinus(opposite, _) = expression {
        *signs += 1;
        *together |= *opposite;
    }
    for part in expression.parts() {
        count(part, signs, together);
    }
}

/// Returns the expression with each ± replaced according to `negative`.
fn with_signs(expression: &Expression, negative: &mut dyn FnMut(bool) -> bool) -> Expression {
    use Expression as X;
    let mut one = |part: &Expression| with_signs(part, negative);
    match expression {
        X::PlusMinus(opposite, inner) => {
            let minus = negative(*opposite);
            let inner = with_signs(inner, negative);
            if minus { X::Negative(Box::new(inner)) } else { inner }
        }
        X::Sum(parts) => X::Sum(parts.iter().map(one).collect()),
        X::Product(parts) => X::Product(parts.iter().map(one).collect()),
        X::Function(function, parts) => X::Function(*function, parts.iter().map(one).collect()),
        X::Quotient(a, b) => X::Quotient(Box::new(one(a)), Box::new(one(b))),
        X::Power(a, b) => X::Power(Box::new(one(a)), Box::new(one(b))),
        X::Root(a, b) => X::Root(Box::new(one(a)), Box::new(one(b))),
        X::Negative(a) => X::Negative(Box::new(one(a))),
        X::Percent(a) => X::Percent(Box::new(one(a))),
        X::Degrees(a) => X::Degrees(Box::new(one(a))),
        X::Unit(a, unit) => X::Unit(Box::new(one(a)), unit.clone()),
        other => other.clone(),
    }
}
