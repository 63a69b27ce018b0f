//! Decides whether two answers are mathematically equal. The rules depend on the kinds of both: `x = 5`
//! equals `5`, a list matches a set in any order, a percentage matches the number before its sign, and a
//! decimal matches a fraction only if it has enough decimals.

use super::dates::date;
use super::evaluate::{Point, agree, evaluate, proportion};
use super::expression::{Bracket, Constant, Expression, Function, Joiner, Relation};
use super::lexer::Reading;
use super::limits::{MAX_BYTES, Steps};
use super::matrix::folded;
use super::names::{Assigned, assigned, is_function_name, last_of_chain, same_name};
use super::notes::scale;
use super::number::{exact, read};
use super::parser::parse;
use super::sets::{infinite, is_condition, is_region, same_region};
use super::signs::expanded;
use super::text::{
    compatible_units, is_time, is_unit, labeled, lone_letter, only_words, same_text, same_words,
    spoken,
};
use super::units::currency;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive, Zero};

/// Number of decimals from which a decimal number counts as an approximation of an exact one.
pub const DECIMALS: u32 = 6;

/// Compares two answers as mathematics.
pub(crate) fn mathematically_equal(a: &str, b: &str, decimals: u32) -> bool {
    match compared(a, b, decimals, &mut Steps::new()) {
        Verdict::Same => true,
        Verdict::Different => false,
        Verdict::Unread => same_text(a, b),
    }
}

/// The parser's verdict on two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are the same.
    Same,
    /// Both can be parsed, and they differ.
    Different,
    /// One of them cannot be parsed, or comparing them takes too much work.
    Unread,
}

/// Compares two answers as mathematics, words, dates, or letters of choices.
pub(crate) fn compared(a: &str, b: &str, decimals: u32, steps: &mut Steps) -> Verdict {
    let verdict = |same: bool| if same { Verdict::Same } else { Verdict::Different };
    if a == b {
        return Verdict::Same;
    }
    if a.len().max(b.len()) > MAX_BYTES {
        return Verdict::Different;
    }
    let (date_a, date_b) = (date(a), date(b));
    if date_a.is_some() || date_b.is_some() {
        return verdict(date_a == date_b);
    }
    // Dollars are not cents.
    if let (Some(a), Some(b)) = (currency(a), currency(b))
        && a != b
    {
        return Verdict::Different;
    }
    if let Some(verdict) = of_spoken(a, b, decimals, steps) {
        return verdict;
    }
    // The letter of a choice against a letter with its text: `B` and `(B) twelve`.
    for (letter, choice) in [(a, b), (b, a)] {
        if let (Some(letter), Some(label)) = (lone_letter(letter), labeled(choice)) {
            return verdict(letter == label);
        }
    }
    if only_words(a) || only_words(b) {
        return verdict(same_words(a, b));
    }
    let readings = |text: &str| {
        let number = parse(text, Reading::Number);
        let list = if text.contains([',', '，']) { parse(text, Reading::List) } else { None };
        let list = list.filter(|list| number.as_ref() != Some(list));
        let number = number.or_else(|| parse(last_side(text)?, Reading::Number));
        [number, list].into_iter().flatten().map(folded).collect::<Vec<_>>()
    };
    let (readings_a, readings_b) = (readings(a), readings(b));
    if readings_a.is_empty() || readings_b.is_empty() {
        return Verdict::Unread;
    }
    let mut comparison = Comparison { steps, decimals };
    if readings_a.iter().any(|a| readings_b.iter().any(|b| comparison.same(a, b))) {
        return Verdict::Same;
    }
    // A comparison that takes too much work counts as unread.
    if steps.take(1).is_none() { Verdict::Unread } else { Verdict::Different }
}

/// Returns the text after the equals sign in `\lim_{x \to 0} f(x) = 5`, if the left side is only something
/// that the parser does not know.
fn last_side(text: &str) -> Option<&str> {
    const UNREAD: [&str; 9] =
        ["\\lim", "\\gcd", "\\sum", "\\int", "\\prod", "\\max", "\\min", "\\Pr", "\\operatorname"];
    let (left, right) = text.rsplit_once('=')?;
    let left = left.replace("\\,", " ");
    let mut depth = 0i32;
    let plain = left.trim().trim_start_matches('$').chars().all(|c| {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        depth > 0 || !",;<>=!≠≤≥".contains(c)
    });
    let known = UNREAD.iter().any(|command| left.trim_start().starts_with(command));
    let telling = ["\\text", "\\ne", "\\le", "\\ge", "\\mbox"]
        .iter()
        .any(|c| left.match_indices(c).any(|(at, _)| !left[at + c.len()..].starts_with("ft")));
    (plain && known && !telling && depth == 0).then_some(right)
}

/// Compares a number or a set in words, such as "eight" or "no solution", with one in symbols.
fn of_spoken(a: &str, b: &str, decimals: u32, steps: &mut Steps) -> Option<Verdict> {
    let (said_a, said_b) = (spoken(a), spoken(b));
    if said_a.is_none() && said_b.is_none() || only_words(a) && only_words(b) && same_words(a, b) {
        return None;
    }
    let (said_a, said_b) = (said_a.as_deref().unwrap_or(a), said_b.as_deref().unwrap_or(b));
    Some(compared(said_a, said_b, decimals, steps))
}

/// The state of one comparison.
struct Comparison<'a> {
    steps: &'a mut Steps,
    decimals: u32,
}

impl Comparison<'_> {
    fn same(&mut self, a: &Expression, b: &Expression) -> bool {
        // The code below visits every part a few times.
        if self.steps.take(2 + a.size() + b.size()).is_none() {
            return false;
        }
        if a == b {
            return true;
        }
        if let Some(verdict) = self.chains(a, b) {
            return verdict;
        }
        let (values_a, values_b) = (expanded(a), expanded(b));
        if values_a.is_some() || values_b.is_some() {
            let list = |values: Option<Vec<Expression>>, whole: &Expression| {
                values.map_or_else(|| whole.clone(), |values| Expression::List(values, Joiner::And))
            };
            let (a, b) = (list(values_a, a), list(values_b, b));
            return self.lists(&a, &b).unwrap_or(false);
        }
        self.marked(a, b)
            .or_else(|| self.lists(a, b))
            .or_else(|| self.structures(a, b))
            .unwrap_or_else(|| a.is_scalar() && b.is_scalar() && self.scalars(a, b))
    }

    /// Compares equations, inequalities, and assignments.
    fn chains(&mut self, a: &Expression, b: &Expression) -> Option<bool> {
        let (chain_a, chain_b) =
            (matches!(a, Expression::Chain(..)), matches!(b, Expression::Chain(..)));
        if !chain_a && !chain_b {
            let condition = is_condition(a) || is_condition(b);
            return (condition && is_region(a) && is_region(b))
                .then(|| same_region(a, b, self.steps).unwrap_or(false));
        }
        match (assigned(a), assigned(b)) {
            (Some(a), Some(b)) if same_name(a.name, b.name) => {
                return Some(self.same(a.value, b.value));
            }
            (
                Some(Assigned { name: Some(one), value: a }),
                Some(Assigned { name: Some(other), value: b }),
            ) if is_function_name(one) && is_function_name(other) && !a.variables().is_empty() => {
                return Some(self.same(a, b));
            }
            (Some(a), None) if !chain_b => return Some(self.same(a.value, b)),
            (None, Some(b)) if !chain_a => return Some(self.same(a, b.value)),
            _ => {}
        }
        match (last_of_chain(a), last_of_chain(b)) {
            (Some(last), _) if !chain_b => return Some(self.same(last, b)),
            (_, Some(last)) if !chain_a => return Some(self.same(a, last)),
            _ => {}
        }
        if let (Expression::Chain(sides_a, relations_a), Expression::Chain(sides_b, relations_b)) =
            (a, b)
            && self.same_chain((sides_a, relations_a), (sides_b, relations_b))
        {
            return Some(true);
        }
        // A solution set may be given as a condition or as intervals.
        if is_region(a) && is_region(b) {
            return Some(same_region(a, b, self.steps).unwrap_or(false));
        }
        Some(false)
    }

    fn same_chain(
        &mut self,
        (sides_a, relations_a): (&[Expression], &[Relation]),
        (sides_b, relations_b): (&[Expression], &[Relation]),
    ) -> bool {
        if relations_a.len() != relations_b.len() {
            return false;
        }
        let reversed: Vec<Relation> = relations_b.iter().rev().map(|r| r.mirrored()).collect();
        let straight = relations_a == relations_b;
        if straight && sides_a.iter().zip(sides_b).all(|(a, b)| self.same(a, b)) {
            return true;
        }
        if relations_a == reversed
            && sides_a.iter().zip(sides_b.iter().rev()).all(|(a, b)| self.same(a, b))
        {
            return true;
        }
        let [relation] = relations_a else { return false };
        if *relation == Relation::In || !sides_a.iter().chain(sides_b).all(Expression::is_scalar) {
            return false;
        }
        // Everything moved to one side: equal up to a factor, whose sign flips an inequality.
        let difference = |sides: &[Expression]| {
            Expression::Sum(vec![
                sides[0].clone(),
                Expression::Negative(Box::new(sides[1].clone())),
            ])
        };
        let (a, b) = (difference(sides_a), difference(sides_b));
        if a.variables() != b.variables() || a.variables().is_empty() {
            return false;
        }
        match proportion(&a, &b, self.steps) {
            Some(factor) if factor > 0.0 => straight,
            Some(_) => relations_a == reversed,
            None => false,
        }
    }

    /// Compares values with units, percent, or degrees.
    fn marked(&mut self, a: &Expression, b: &Expression) -> Option<bool> {
        use Expression::{Degrees, Percent, Unit};
        Some(match (a, b) {
            (Unit(x, u), Unit(y, v)) if scale(u) == scale(v) => {
                compatible_units(u, v) && self.same(x, y)
            }
            // 5 million is 5,000,000, and the answer to "how many million" is 5.
            (Unit(x, u), Unit(y, v)) => {
                let one_says = scale(u).is_none() || scale(v).is_none();
                one_says && self.same(x, y) || self.same(&scaled(x, u), &scaled(y, v))
            }
            (Unit(x, u), y) | (y, Unit(x, u)) if scale(u).is_some() => {
                self.same(x, y) || self.same(&scaled(x, u), y)
            }
            (Unit(_, unit), Degrees(_) | Percent(_)) | (Degrees(_) | Percent(_), Unit(_, unit))
                if is_unit(unit) =>
            {
                false
            }
            (Unit(x, _), y) => self.same(x, y),
            (x, Unit(y, _)) => self.same(x, y),
            (Degrees(x), Degrees(y)) | (Percent(x), Percent(y)) => self.same(x, y),
            (Degrees(x), y) => self.same(x, y),
            (x, Degrees(y)) => self.same(x, y),
            // 50% is a half, and the answer to "how many percent" is 50.
            (Percent(x), y) if y.is_scalar() => self.same(x, y) || self.scalars(a, b),
            (x, Percent(y)) if x.is_scalar() => self.same(x, y) || self.scalars(a, b),
            _ => return None,
        })
    }

    /// Lists and sets, in any order.
    fn lists(&mut self, a: &Expression, b: &Expression) -> Option<bool> {
        let items = |answer: &Expression| match answer {
            Expression::List(items, _) | Expression::Set(items) => {
                // The range of a parameter is a note: `k \in \mathbb{Z}`.
                let answers = items.iter().filter(|item| !is_range_of_parameter(item, items));
                Some(
                    answers
                        .flat_map(|item| expanded(item).unwrap_or_else(|| vec![item.clone()]))
                        .collect::<Vec<_>>(),
                )
            }
            _ => None,
        };
        let (list_a, list_b) = (items(a), items(b));
        if list_a.is_none() && list_b.is_none() {
            return None;
        }
        // A solution of a system, named one by one, is the tuple of its values.
        if let Some(verdict) = self.system(a, b).or_else(|| self.system(b, a)) {
            return Some(verdict);
        }
        if matches!((a, b), (Expression::Set(_), other) | (other, Expression::Set(_)) if !matches!(other, Expression::Set(_) | Expression::List(..)) && !other.is_scalar())
        {
            return None;
        }
        let mut list_a = list_a.unwrap_or_else(|| vec![a.clone()]);
        let mut list_b = list_b.unwrap_or_else(|| vec![b.clone()]);
        if list_a.len() != list_b.len() {
            // The longer list may contain an answer twice.
            let longer = if list_a.len() > list_b.len() { &mut list_a } else { &mut list_b };
            self.without_repeats(longer);
            if list_a.len() != list_b.len() {
                return Some(false);
            }
        }
        // The same order is the usual case and the cheapest.
        if list_a.iter().zip(&list_b).all(|(a, b)| self.same(a, b)) {
            return Some(true);
        }
        let keys_a: Vec<Option<f64>> = list_a.iter().map(|item| self.key(item)).collect();
        let mut keys_b: Vec<Option<f64>> = list_b.iter().map(|item| self.key(item)).collect();
        for (item, key) in list_a.iter().zip(keys_a) {
            self.steps.take(1 + list_b.len() as u64 / 16)?;
            let at = (0..list_b.len())
                .find(|at| may_match(key, keys_b[*at]) && self.same(item, &list_b[*at]));
            let Some(at) = at else { return Some(false) };
            list_b.swap_remove(at);
            keys_b.swap_remove(at);
        }
        Some(true)
    }

    /// Returns the value of a plain number, which quickly rules out most pairs of two lists.
    fn key(&mut self, item: &Expression) -> Option<f64> {
        let plain =
            !matches!(item, Expression::Percent(_) | Expression::Degrees(_) | Expression::Unit(..));
        let value = if plain { evaluate(item, &Point::new(), self.steps) } else { None };
        value.map(|value| value.norm())
    }

    fn without_repeats(&mut self, list: &mut Vec<Expression>) {
        let mut kept: Vec<(Expression, Option<f64>)> = vec![];
        for item in list.drain(..) {
            let key = self.key(&item);
            let repeats = |(other, other_key): &(Expression, Option<f64>)| {
                may_match(key, *other_key) && self.same(other, &item)
            };
            if !kept.iter().any(repeats) {
                kept.push((item, key));
            }
        }
        *list = kept.into_iter().map(|(item, _)| item).collect();
    }

    fn system(&mut self, list: &Expression, tuple: &Expression) -> Option<bool> {
        let (
            Expression::List(items, _),
            Expression::Bracketed(Bracket::Round, values, Bracket::Round),
        ) = (list, tuple)
        else {
            return None;
        };
        let named: Option<Vec<Assigned>> =
            items.iter().map(|item| assigned(item).filter(|item| item.name.is_some())).collect();
        let named = named?;
        let distinct = named
            .iter()
            .enumerate()
            .all(|(at, one)| named[..at].iter().all(|other| one.name != other.name));
        if !distinct {
            return None;
        }
        Some(
            named.len() == values.len()
                && named.iter().zip(values).all(|(a, b)| self.same(a.value, b)),
        )
    }

    /// Compares everything else that is not a number or a formula.
    fn structures(&mut self, a: &Expression, b: &Expression) -> Option<bool> {
        use Expression as X;
        Some(match (a, b) {
            (X::Bracketed(open_a, items_a, close_a), X::Bracketed(open_b, items_b, close_b)) => {
                let pointlike = items_a.len() > 2;
                ((open_a, close_a) == (open_b, close_b) || pointlike)
                    && self.all_same(items_a, items_b)
            }
            (X::Matrix(a), X::Matrix(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.all_same(a, b))
            }
            // `A(3, -4)` is the point.
            (X::Product(factors), point @ X::Bracketed(Bracket::Round, ..))
            | (point @ X::Bracketed(Bracket::Round, ..), X::Product(factors))
                if is_named_point(factors) =>
            {
                self.same(&factors[1], point)
            }
            // Rows in brackets: `[[1, 2], [3, 4]]`.
            (X::Matrix(rows), X::Bracketed(Bracket::Square, items, Bracket::Square))
            | (X::Bracketed(Bracket::Square, items, Bracket::Square), X::Matrix(rows))
                if rows.len() > 1 && items.iter().all(|item| matches!(item, X::Bracketed(..))) =>
            {
                rows.len() == items.len()
                    && rows.iter().zip(items).all(|(row, item)| {
                        let X::Bracketed(_, cells, _) = item else { return false };
                        self.all_same(row, cells)
                    })
            }
            // A vector is a column, a row or a tuple.
            (X::Matrix(rows), X::Bracketed(_, items, _))
            | (X::Bracketed(_, items, _), X::Matrix(rows)) => {
                let line = rows.len() == 1 || rows.iter().all(|row| row.len() == 1);
                let cells: Vec<Expression> = rows.iter().flatten().cloned().collect();
                line && self.all_same(&cells, items)
            }
            (X::Ratio(a), X::Ratio(b)) if is_clock(a) || is_clock(b) => self.all_same(a, b),
            (X::Ratio(a), X::Ratio(b)) => a.len() == b.len() && self.same_ratio(a, b),
            (X::Ratio(parts), other) | (other, X::Ratio(parts))
                if parts.len() == 2 && other.is_scalar() && !is_clock(parts) =>
            {
                let quotient = X::Quotient(Box::new(parts[0].clone()), Box::new(parts[1].clone()));
                quotient.is_scalar() && self.scalars(&quotient, other)
            }
            (X::Based(digits, 10), other) | (other, X::Based(digits, 10)) => {
                let value = read(digits, "", 0, self.steps).map(|(value, _)| X::Number(value, 0));
                value.is_some_and(|value| self.same(&value, other))
            }
            _ if is_region(a) && is_region(b) => same_region(a, b, self.steps).unwrap_or(false),
            _ => return None,
        })
    }

    fn all_same(&mut self, a: &[Expression], b: &[Expression]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.same(a, b))
    }

    fn same_ratio(&mut self, a: &[Expression], b: &[Expression]) -> bool {
        let product =
            |x: &Expression, y: &Expression| Expression::Product(vec![x.clone(), y.clone()]);
        a.iter().chain(b).all(Expression::is_scalar)
            && (1..a.len()).all(|at| self.scalars(&product(&a[0], &b[at]), &product(&b[0], &a[at])))
    }

    /// Numbers and formulas.
    fn scalars(&mut self, a: &Expression, b: &Expression) -> bool {
        if infinite_within(a) || infinite_within(b) {
            return match (infinite(a), infinite(b)) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            };
        }
        if !a.variables().is_empty() || !b.variables().is_empty() {
            return agree(a, b, self.steps);
        }
        let rounded = a.decimals().max(b.decimals()) >= self.decimals;
        let (exact_a, exact_b) = (exact(a, self.steps), exact(b, self.steps));
        if let (Some(a), Some(b)) = (&exact_a, &exact_b) {
            return a == b || rounded && self.near(a, b);
        }
        let point = Point::new();
        let (Some(value_a), Some(value_b)) =
            (evaluate(a, &point, self.steps), evaluate(b, &point, self.steps))
        else {
            return false;
        };
        let zero = |value: &Option<BigRational>| value.as_ref().is_some_and(Zero::is_zero);
        if zero(&exact_a) || zero(&exact_b) {
            return (value_a - value_b).norm() < 1e-12;
        }
        let tolerance = 0.5 * 0.1f64.powi(self.decimals as i32) * (10.0 * value_a.norm()).min(1.0);
        let same = (value_a - value_b).norm() <= 1e-12 * value_a.norm().max(value_b.norm());
        same || rounded && (value_a - value_b).norm() <= tolerance
    }

    /// Returns whether two numbers differ by no more than half of the last decimal that counts.
    fn near(&self, a: &BigRational, b: &BigRational) -> bool {
        let difference = (a - b).abs().to_f64();
        let scale = (10.0 * a.abs().to_f64().unwrap_or(1.0)).min(1.0);
        difference.is_some_and(|d| d <= 0.5 * 0.1f64.powi(self.decimals as i32) * scale * 1.000_001)
    }
}

/// Returns whether the values of two items, if both have one, do not rule out that they are the same.
fn may_match(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= 0.02 * a.max(b),
        _ => true,
    }
}

/// Returns whether an item only gives the range of a variable that another item has.
fn is_range_of_parameter(item: &Expression, items: &[Expression]) -> bool {
    let Expression::Chain(sides, relations) = item else { return false };
    let [Expression::Variable(name), Expression::Variable(set)] = &sides[..] else { return false };
    relations == &[Relation::In]
        && ("ℝℤℕℚℂ".contains(set) || ["Z", "N", "R", "Q"].contains(&set.as_str()))
        && items.iter().any(|other| other != item && other.variables().contains(name.as_str()))
}

/// Returns a value times the scale of its unit, such as a million.
fn scaled(value: &Expression, unit: &str) -> Expression {
    match scale(unit).and_then(|scale| i64::try_from(scale).ok()) {
        Some(scale) => Expression::Product(vec![value.clone(), Expression::integer(scale)]),
        None => value.clone(),
    }
}

/// Returns whether it is a point after its name, a capital letter: `A(3, -4)`.
fn is_named_point(factors: &[Expression]) -> bool {
    matches!(factors, [Expression::Variable(name), Expression::Bracketed(Bracket::Round, items, _)]
        if name.len() == 1
            && name.starts_with(|c: char| c.is_ascii_uppercase())
            && items.iter().all(|item| item.is_scalar()))
}

/// Returns whether it is a time of day with its half: `10:30 a.m.`.
fn is_clock(parts: &[Expression]) -> bool {
    matches!(parts.last(), Some(Expression::Unit(_, unit)) if is_time(unit))
}

fn infinite_within(expression: &Expression) -> bool {
    expression.any(&|part| {
        matches!(part, Expression::Constant(Constant::Infinity))
            || matches!(part, Expression::Function(Function::Determinant, _))
    })
}
