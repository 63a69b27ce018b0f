//! Evaluates expressions at points in double precision, and compares two expressions at random points. The
//! points are of three kinds, since each kind alone lets other false equalities pass: positive numbers,
//! numbers of both signs, and integers. Their seed is fixed.

use super::complex::Complex;
use super::expression::{Constant, Expression, Function};
use super::limits::Steps;
use num_traits::ToPrimitive;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::{E, PI};

/// Values of variables, by name.
pub type Point<'a> = BTreeMap<&'a str, Complex>;

/// Returns the value of an expression at a point; `None` if it has none.
pub fn evaluate(expression: &Expression, point: &Point, steps: &mut Steps) -> Option<Complex> {
    steps.take(1)?;
    let value = match expression {
        Expression::Number(value, _) => Complex::new(value.to_f64()?, 0.0),
        Expression::Constant(Constant::Pi) => Complex::new(PI, 0.0),
        Expression::Constant(Constant::Euler) => Complex::new(E, 0.0),
        Expression::Constant(Constant::Imaginary) => Complex::I,
        Expression::Variable(name) => *point.get(name.as_str())?,
        Expression::Sum(terms) => {
            let mut sum = Complex::new(0.0, 0.0);
            for term in terms {
                sum = sum + evaluate(term, point, steps)?;
            }
            sum
        }
        Expression::Product(factors) => {
            let mut product = Complex::ONE;
            for factor in factors {
                product = product * evaluate(factor, point, steps)?;
            }
            product
        }
        Expression::Quotient(over, under) => {
            evaluate(over, point, steps)? / evaluate(under, point, steps)?
        }
        Expression::Negative(inner) => -evaluate(inner, point, steps)?,
        Expression::Power(base, exponent) => {
            evaluate(base, point, steps)?.pow(evaluate(exponent, point, steps)?)
        }
        Expression::Root(radicand, index) => {
            let radicand = evaluate(radicand, point, steps)?;
            let index = evaluate(index, point, steps)?;
            // The odd root of a negative number is the real one.
            let odd = index.im == 0.0 && index.re.rem_euclid(2.0) == 1.0;
            if odd && radicand.im == 0.0 && radicand.re < 0.0 {
                -(-radicand).pow(Complex::ONE / index)
            } else {
                radicand.pow(Complex::ONE / index)
            }
        }
        Expression::Percent(inner) => evaluate(inner, point, steps)? / Complex::new(100.0, 0.0),
        Expression::Degrees(inner) | Expression::Unit(inner, _) => evaluate(inner, point, steps)?,
        Expression::Function(function, arguments) => {
            let values = arguments
                .iter()
                .map(|argument| {
                    let value = evaluate(argument, point, steps)?;
                    let degrees = argument.any(&|part| matches!(part, Expression::Degrees(_)));
                    Some(if degrees { value * Complex::new(PI / 180.0, 0.0) } else { value })
                })
                .collect::<Option<Vec<_>>>()?;
            apply(*function, &values)?
        }
        _ => return None,
    };
    value.is_finite().then_some(value)
}

fn apply(function: Function, values: &[Complex]) -> Option<Complex> {
    let x = *values.first()?;
    let real = |value: f64| Complex::new(value, 0.0);
    Some(match function {
        Function::Sin => x.sin(),
        Function::Cos => x.cos(),
        Function::Tan => x.sin() / off_pole(x.cos())?,
        Function::Cot => x.cos() / off_pole(x.sin())?,
        Function::Sec => Complex::ONE / off_pole(x.cos())?,
        Function::Csc => Complex::ONE / off_pole(x.sin())?,
        Function::Arcsin => x.asin(),
        Function::Arccos => x.acos(),
        Function::Arctan => x.atan(),
        Function::Sinh => (x.exp() - (-x).exp()) / real(2.0),
        Function::Cosh => (x.exp() + (-x).exp()) / real(2.0),
        Function::Tanh => (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        Function::Exp => x.exp(),
        Function::Ln => x.ln(),
        Function::CommonLog => x.ln() / real(std::f64::consts::LN_10),
        Function::Log => x.ln() / values.get(1)?.ln(),
        Function::Absolute => real(x.norm()),
        // Rounding errors must not push an integer over the edge.
        Function::Floor => real((with_fraction(x)? + 1e-9).floor()),
        Function::Ceiling => real((with_fraction(x)? - 1e-9).ceil()),
        Function::Factorial => real(gamma(x.real()? + 1.0)),
        Function::Binomial => {
            let (all, some) = (x.real()?, values.get(1)?.real()?);
            real(gamma(all + 1.0) / gamma(some + 1.0) / gamma(all - some + 1.0))
        }
        Function::Determinant => return None,
    })
}

/// Returns a denominator, unless it is zero within rounding error.
fn off_pole(denominator: Complex) -> Option<Complex> {
    (denominator.norm() > 1e-12).then_some(denominator)
}

/// Returns a real number that is small enough to have a fractional part.
fn with_fraction(x: Complex) -> Option<f64> {
    x.real().filter(|x| x.abs() < 1e12)
}

/// Returns the gamma function (Lanczos' approximation with g = 7 and nine terms).
fn gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        return PI / ((PI * x).sin() * gamma(1.0 - x));
    }
    let x = x - 1.0;
    let sum = TERMS
        .iter()
        .enumerate()
        .fold(0.999_999_999_999_809_9, |sum, (at, term)| sum + term / (x + at as f64 + 1.0));
    let t = x + 7.5;
    (2.0 * PI).sqrt() * t.powf(x + 0.5) * (-t).exp() * sum
}

/// Random points per comparison.
const POINTS: usize = 9;

/// The numbers that the variables of a formula stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Numbers of both signs.
    Real,
    /// Positive numbers.
    Positive,
    /// Positive integers.
    Integer,
}

/// Returns random points for the variables.
pub fn points<'a>(names: &BTreeSet<&'a str>, domain: Domain) -> Vec<Point<'a>> {
    let mut random = ChaCha8Rng::seed_from_u64(20_250_217);
    let mut unit = move || f64::from(random.next_u32()) / f64::from(u32::MAX);
    (0..POINTS)
        .map(|number| {
            names
                .iter()
                .map(|name| {
                    let sign = if domain == Domain::Real && unit() < 0.5 { -1.0 } else { 1.0 };
                    let value = match if domain == Domain::Integer { 2 } else { number % 3 } {
                        0 => 0.2 + 1.5 * unit(),
                        1 => sign * (0.3 + 2.5 * unit()),
                        _ => (1.0 + 11.0 * unit()).floor(),
                    };
                    (*name, Complex::new(value, 0.0))
                })
                .collect()
        })
        .collect()
}

/// Returns whether variables occur in roots, in logarithms, or with fractional exponents. Such formulas are
/// meant for positive values.
pub fn wants_positive(expression: &Expression) -> bool {
    expression.any(&|part| match part {
        Expression::Root(inner, _) => !inner.variables().is_empty(),
        Expression::Function(Function::Ln | Function::CommonLog | Function::Log, inner) => {
            inner.iter().any(|inner| !inner.variables().is_empty())
        }
        Expression::Power(base, exponent) => {
            !base.variables().is_empty()
                && exponent.any(&|e| {
                    matches!(e, Expression::Quotient(..))
                        || matches!(e, Expression::Number(value, _) if !value.is_integer())
                })
        }
        _ => false,
    })
}

/// Returns whether an expression rounds something with variables. Such formulas are meant for integers.
fn has_steps(expression: &Expression) -> bool {
    expression.any(&|part| {
        matches!(part, Expression::Function(Function::Floor | Function::Ceiling, inner)
            if inner.iter().any(|inner| !inner.variables().is_empty()))
    })
}

/// Returns whether an expression has an absolute value of something with variables.
fn has_absolute(expression: &Expression) -> bool {
    expression.any(&|part| matches!(part, Expression::Function(Function::Absolute, _)))
}

/// Returns whether two values at a random point are equal within rounding error.
pub fn close(a: Complex, b: Complex) -> bool {
    let scale = a.norm().max(b.norm());
    (a - b).norm() <= 1e-9 * scale || scale <= 1e-11
}

/// Returns whether two expressions agree at every random point where both have a value, with enough such
/// points.
pub fn agree(a: &Expression, b: &Expression, steps: &mut Steps) -> bool {
    let names: BTreeSet<&str> = a.variables().union(&b.variables()).copied().collect();
    let domain = if has_steps(a) && has_steps(b) {
        Domain::Integer
    } else if wants_positive(a) && wants_positive(b) && !has_absolute(a) && !has_absolute(b) {
        Domain::Positive
    } else {
        Domain::Real
    };
    let mut shared = 0;
    if steps.take(POINTS as u64 * names.len() as u64).is_none() {
        return false;
    }
    for point in points(&names, domain) {
        match (evaluate(a, &point, steps), evaluate(b, &point, steps)) {
            (Some(a), Some(b)) => {
                let near = close(a, b) || a.norm().max(b.norm()) < 1e-7 && (a - b).norm() < 1e-11;
                if !near {
                    return false;
                }
                shared += 1;
            }
            // A value on one side only: a removable pole, or a different expression.
            (None, None) => {}
            _ => {}
        }
    }
    shared >= 3
}

/// Returns whether `a` is a constant multiple of `b` at random points, with the sign of the constant if it is
/// real.
pub fn proportion(a: &Expression, b: &Expression, steps: &mut Steps) -> Option<f64> {
    let names: BTreeSet<&str> = a.variables().union(&b.variables()).copied().collect();
    let mut ratio: Option<Complex> = None;
    let mut shared = 0;
    steps.take(POINTS as u64 * names.len() as u64)?;
    for point in points(&names, Domain::Real) {
        let (Some(a), Some(b)) = (evaluate(a, &point, steps), evaluate(b, &point, steps)) else {
            continue;
        };
        if a.norm() < 1e-9 && b.norm() < 1e-9 {
            continue;
        }
        if a.norm() < 1e-9 || b.norm() < 1e-9 {
            return None;
        }
        let here = a / b;
        if ratio.is_some_and(|ratio| !close(ratio, here)) {
            return None;
        }
        ratio = Some(here);
        shared += 1;
    }
    ratio.filter(|_| shared >= 3)?.real()
}
