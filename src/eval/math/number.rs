//! Exact arithmetic on fractions of big integers, for expressions without variables. Operations whose result
//! would be too long are not performed, and every operation takes steps in proportion to the length of its
//! numbers, so towers of powers are cheap.

use super::expression::{Expression, Function};
use super::limits::{MAX_BITS, Steps};
use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// Returns the value of the digits of a number, and the number of its decimals.
pub fn read(
    digits: &str,
    repeating: &str,
    exponent: i32,
    steps: &mut Steps,
) -> Option<(BigRational, u32)> {
    const DIGITS: usize = (MAX_BITS as usize) * 3 / 10;
    let length = digits.len() + repeating.len() + exponent.unsigned_abs() as usize;
    if length > DIGITS {
        return None;
    }
    steps.take(4 * cost(4 * length as u64))?;
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let ten = |power: usize| BigInt::from(10).pow(power);
    let integer = |text: &str| -> Option<BigInt> {
        if text.is_empty() { Some(BigInt::zero()) } else { text.parse().ok() }
    };
    let mut value = BigRational::new(integer(&format!("{whole}{decimals}"))?, ten(decimals.len()));
    let mut places = decimals.len() as u32;
    if !repeating.is_empty() {
        let nines = ten(repeating.len()) - 1;
        value += BigRational::new(integer(repeating)?, nines * ten(decimals.len()));
        // The number is exact, regardless of how many decimals are written.
        places = 0;
    }
    let scale = BigRational::from_integer(ten(exponent.unsigned_abs() as usize));
    let value = if exponent < 0 { value / scale } else { value * scale };
    Some((value, places))
}

/// Returns the value of an expression if it is a small integer.
pub fn small_integer(expression: &Expression) -> Option<i64> {
    match expression {
        Expression::Number(value, 0) if value.is_integer() => value.to_integer().to_i64(),
        Expression::Negative(inner) => small_integer(inner).map(|value| -value),
        _ => None,
    }
}

fn bits(value: &BigRational) -> u64 {
    value.numer().bits().max(value.denom().bits())
}

/// Returns the steps of an operation on numbers with this many binary digits.
fn cost(bits: u64) -> u64 {
    1 + (bits / 64) * (bits / 64)
}

fn checked(value: BigRational, steps: &mut Steps) -> Option<BigRational> {
    let bits = bits(&value);
    steps.take(cost(bits))?;
    (bits <= MAX_BITS).then_some(value)
}

/// Returns the exact value of an expression; `None` if it is irrational, has variables, is undefined, or is
/// too long.
pub fn exact(expression: &Expression, steps: &mut Steps) -> Option<BigRational> {
    steps.take(1)?;
    match expression {
        Expression::Number(value, _) => Some(value.clone()),
        Expression::Negative(inner) => Some(-exact(inner, steps)?),
        Expression::Sum(terms) => {
            let mut sum = BigRational::zero();
            for term in terms {
                sum = checked(sum + exact(term, steps)?, steps)?;
            }
            Some(sum)
        }
        Expression::Product(factors) => {
            let mut product = BigRational::one();
            for factor in factors {
                product = checked(product * exact(factor, steps)?, steps)?;
            }
            Some(product)
        }
        Expression::Quotient(over, under) => {
            let (over, under) = (exact(over, steps)?, exact(under, steps)?);
            if under.is_zero() { None } else { checked(over / under, steps) }
        }
        Expression::Power(base, exponent) => {
            let exponent = exact(exponent, steps)?;
            let base = exact(base, steps)?;
            let root = u32::try_from(exponent.denom()).ok()?;
            let power = i32::try_from(exponent.numer()).ok()?;
            steps.take(8 * cost(bits(&base)))?;
            power_of(&root_of(&base, root)?, power, steps)
        }
        Expression::Root(radicand, index) => {
            let index = u32::try_from(small_integer(index)?).ok()?;
            let radicand = exact(radicand, steps)?;
            steps.take(8 * cost(bits(&radicand)))?;
            root_of(&radicand, index)
        }
        Expression::Percent(inner) => {
            Some(exact(inner, steps)? / BigRational::from_integer(100.into()))
        }
        Expression::Degrees(inner) | Expression::Unit(inner, _) => exact(inner, steps),
        Expression::Function(function, arguments) => {
            let first = exact(arguments.first()?, steps)?;
            match function {
                Function::Absolute => Some(first.abs()),
                Function::Floor => Some(first.floor()),
                Function::Ceiling => Some(first.ceil()),
                Function::Factorial if first.is_integer() => {
                    falling(&first.to_integer(), first.to_integer().to_u64()?, steps)
                        .map(BigRational::from_integer)
                }
                Function::Binomial if first.is_integer() => {
                    let all = first.to_integer();
                    let some = exact(arguments.get(1)?, steps)?;
                    if !some.is_integer() || all.is_negative() {
                        return None;
                    }
                    let other = &all - some.to_integer();
                    let some = some.to_integer().min(other).to_u64()?;
                    let ordered = falling(&all, some, steps)?;
                    let orders = falling(&some.into(), some, steps)?;
                    Some(BigRational::new(ordered, orders))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Returns the falling factorial: the product of `count` numbers from `from` down.
fn falling(from: &BigInt, count: u64, steps: &mut Steps) -> Option<BigInt> {
    let mut product = BigInt::one();
    for below in 0..count {
        product *= from - below;
        steps.take(1 + product.bits() / 64)?;
        if product.bits() > MAX_BITS {
            return None;
        }
    }
    Some(product)
}

fn power_of(base: &BigRational, power: i32, steps: &mut Steps) -> Option<BigRational> {
    if power == 0 {
        // 0^0 is left undefined.
        return (!base.is_zero()).then(BigRational::one);
    }
    if base.is_zero() {
        return (power > 0).then(BigRational::zero);
    }
    if base.abs().is_one() {
        let negative = base.is_negative() && power % 2 != 0;
        return Some(if negative { -BigRational::one() } else { BigRational::one() });
    }
    let bits = bits(base).saturating_mul(power.unsigned_abs().into());
    if bits > MAX_BITS + 64 {
        return None;
    }
    steps.take(cost(bits))?;
    Some(Pow::pow(base, power))
}

/// Returns the root, if it is rational.
fn root_of(value: &BigRational, index: u32) -> Option<BigRational> {
    if index == 1 {
        return Some(value.clone());
    }
    if index == 0 || index > 64 || value.is_negative() && index.is_even() {
        return None;
    }
    let root = |integer: &BigInt| {
        let root = integer.nth_root(index);
        (Pow::pow(&root, index) == *integer).then_some(root)
    };
    Some(BigRational::new(root(value.numer())?, root(value.denom())?))
}
