//! Parses tokens to an [`Expression`] by recursive descent, from lists of answers down to products; the
//! factors of products are in `primary.rs`. Unlike formulas, answers have lists with "and", chains of
//! relations, ratios, mixed numbers, and units after a value.

use super::expression::{Expression, Function, Joiner, Relation};
use super::lexer::{Kind, Reading, Token, tokens};
use super::limits::{MAX_DEPTH, Steps};
use super::notes::joiner;
use super::primary::label;
use super::text::is_unit;
use super::words::Meaning;

/// Parses a whole answer; `None` if it is not mathematics.
pub fn parse(text: &str, reading: Reading) -> Option<Expression> {
    let tokens = tokens(text, reading)?;
    let mut parser =
        Parser { tokens, at: 0, depth: 0, bars: 0, colon_ends: false, steps: Steps::new() };
    // `= 5` and `\approx 5` without a name before them.
    if let Some(Kind::Sign(Meaning::Relation(first))) = parser.peek()
        && matches!(first, Relation::Equal | Relation::Approximately)
    {
        parser.at += 1;
    }
    let answer = parser.list()?;
    (parser.at == parser.tokens.len()).then_some(answer)
}

/// The state of the parser.
pub(crate) struct Parser {
    pub(crate) tokens: Vec<Token>,
    pub(crate) at: usize,
    pub(crate) depth: usize,
    /// Number of open `|`. Inside of them, a `|` closes.
    pub(crate) bars: usize,
    /// Whether a colon comes before the condition of a set rather than in a ratio.
    pub(crate) colon_ends: bool,
    /// The remaining steps for long numbers.
    pub(crate) steps: Steps,
}

/// A separator of two items.
#[derive(Clone, Copy, PartialEq)]
enum Separator {
    Comma,
    Semicolon,
    Joined(Joiner),
}

impl Parser {
    pub(crate) fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(crate) fn peek_ahead(&self, ahead: usize) -> Option<&Kind> {
        self.tokens.get(self.at + ahead).map(|token| &token.kind)
    }

    pub(crate) fn take(&mut self, kind: &Kind) -> bool {
        let found = self.peek() == Some(kind);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn take_sign(&mut self, meaning: Meaning) -> bool {
        self.take(&Kind::Sign(meaning))
    }

    /// Runs `read` one level deeper, if that level is allowed.
    pub(crate) fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Runs `read` with the given number of open `|`.
    pub(crate) fn with_bars<T>(
        &mut self,
        bars: usize,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let outside = std::mem::replace(&mut self.bars, bars);
        let result = read(self);
        self.bars = outside;
        result
    }

    fn separator(&mut self) -> Option<Separator> {
        let mut found = None;
        loop {
            let next = match self.peek() {
                Some(Kind::Comma) => Separator::Comma,
                Some(Kind::Semicolon) => Separator::Semicolon,
                Some(Kind::Sign(Meaning::And)) => Separator::Joined(Joiner::And),
                Some(Kind::Sign(Meaning::Or)) => Separator::Joined(Joiner::Or),
                Some(Kind::Text(text)) => {
                    let word = text.trim().trim_matches([',', '/', ';']).trim();
                    match joiner(word) {
                        Some(joiner) => Separator::Joined(joiner),
                        None if word == "and/or" => Separator::Joined(Joiner::Or),
                        None if word.is_empty() && !text.is_empty() => Separator::Comma,
                        None => return found,
                    }
                }
                _ => return found,
            };
            self.at += 1;
            // In `a, b, and c`, the word takes precedence over the comma.
            if found.is_none() || found == Some(Separator::Comma) {
                found = Some(next);
            }
        }
    }

    /// Parses one answer or several.
    fn list(&mut self) -> Option<Expression> {
        let (mut groups, joiner) = self.items()?;
        if groups.len() > 1 {
            // `p=5,q=2; p=7,q=2`: the semicolon separates groups that the commas join.
            let one = |mut group: Vec<Expression>| match group.len() {
                1 => group.remove(0),
                _ => Expression::List(group, Joiner::And),
            };
            return Some(Expression::List(groups.into_iter().map(one).collect(), joiner));
        }
        let mut items = groups.pop()?;
        Some(if items.len() == 1 { items.remove(0) } else { Expression::List(items, joiner) })
    }

    /// Items between separators, in groups between semicolons.
    pub(crate) fn items(&mut self) -> Option<(Vec<Vec<Expression>>, Joiner)> {
        let mut groups = vec![vec![self.relation()?]];
        let mut joiner = Joiner::And;
        loop {
            let before = self.at;
            let separator = match self.separator() {
                Some(separator) => separator,
                // `2k\pi \quad (k \in \mathbb{Z})` and `2k\pi \text{ for } k \in \mathbb{Z}`.
                None if self.range_ahead(0) => Separator::Joined(Joiner::And),
                None if matches!(self.peek(), Some(Kind::Text(_))) && self.range_ahead(1) => {
                    self.at += 1;
                    Separator::Joined(Joiner::And)
                }
                // `3 hours 20 minutes`.
                None if self.follows_unit(groups.last()?.last()?) => Separator::Joined(Joiner::And),
                None => break,
            };
            if self.peek().is_none() && separator == Separator::Comma {
                break;
            }
            let Some(item) = self.relation() else {
                self.at = before;
                return None;
            };
            match separator {
                Separator::Semicolon => groups.push(vec![]),
                Separator::Joined(joined) => joiner = joined,
                Separator::Comma => {}
            }
            groups.last_mut()?.push(item);
        }
        Some((groups, joiner))
    }

    /// Returns whether the range of a variable comes next: `k \in \mathbb{Z}`.
    pub(crate) fn range_ahead(&self, ahead: usize) -> bool {
        let bracketed = self.peek_ahead(ahead) == Some(&Kind::Sign(Meaning::Open));
        let first = ahead + usize::from(bracketed);
        let closed = || self.peek_ahead(first + 3) == Some(&Kind::Sign(Meaning::Close));
        matches!(self.peek_ahead(first), Some(Kind::Word(_)))
            && self.peek_ahead(first + 1) == Some(&Kind::Sign(Meaning::Relation(Relation::In)))
            && matches!(self.peek_ahead(first + 2), Some(Kind::Word(_)))
            && if bracketed { closed() } else { self.tokens.len() == self.at + first + 3 }
    }

    /// Returns whether another number comes right after a value with a unit of measurement.
    fn follows_unit(&self, item: &Expression) -> bool {
        matches!(item, Expression::Unit(_, unit) if is_unit(unit) && !unit.starts_with("mod"))
            && matches!(self.peek(), Some(Kind::Number { .. }))
    }

    /// Sides and the relations between them.
    pub(crate) fn relation(&mut self) -> Option<Expression> {
        let mut sides = vec![self.ratio()?];
        let mut relations = vec![];
        while let Some(Kind::Sign(Meaning::Relation(relation))) = self.peek() {
            let mut relation = *relation;
            self.at += 1;
            // `= <`, `=>`, and similar signs are not relations.
            if let Some(Kind::Sign(Meaning::Relation(next))) = self.peek() {
                match (relation, next) {
                    (Relation::Equal, Relation::Less) => relation = Relation::LessEqual,
                    _ => return None,
                }
                self.at += 1;
            }
            relations.push(relation);
            sides.push(self.ratio()?);
        }
        Some(if relations.is_empty() {
            sides.remove(0)
        } else {
            Expression::Chain(sides, relations)
        })
    }

    fn ratio(&mut self) -> Option<Expression> {
        let mut parts = vec![self.sets()?];
        while !self.colon_ends && self.take_sign(Meaning::Colon) {
            parts.push(self.sets()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expression::Ratio(parts) })
    }

    /// Parses unions, intersections, and differences of sets.
    fn sets(&mut self) -> Option<Expression> {
        let mut first = self.sum()?;
        if self.take_sign(Meaning::Over) {
            first = Expression::Quotient(Box::new(first), Box::new(self.sum()?));
        }
        if self.take_sign(Meaning::Choose) {
            first = Expression::Function(Function::Binomial, vec![first, self.sum()?]);
        }
        let mut turns = 0;
        loop {
            turns += 1;
            let united = match self.peek() {
                Some(Kind::Sign(Meaning::Union)) => true,
                Some(Kind::Sign(Meaning::Intersection)) => false,
                // In plain text, a capital U between brackets is a union.
                Some(Kind::Word(word)) if word == "U" && is_set(&first) => true,
                Some(Kind::Sign(Meaning::SetMinus)) if turns < MAX_DEPTH => {
                    self.at += 1;
                    let other = self.sum()?;
                    first = Expression::Without(Box::new(first), Box::new(other));
                    continue;
                }
                _ => return Some(first),
            };
            self.at += 1;
            let other = self.sum()?;
            match (&mut first, united) {
                (Expression::Union(parts), true) | (Expression::Intersection(parts), false) => {
                    parts.push(other);
                }
                _ if turns >= MAX_DEPTH => return None,
                (_, true) => first = Expression::Union(vec![first, other]),
                (_, false) => first = Expression::Intersection(vec![first, other]),
            }
        }
    }

    /// Terms with their signs.
    pub(crate) fn sum(&mut self) -> Option<Expression> {
        let mut terms = vec![];
        loop {
            let (mut negative, mut uncertain, mut signs) = (false, None, 0);
            while let Some(Kind::Sign(sign)) = self.peek() {
                match sign {
                    Meaning::Plus => {}
                    Meaning::Minus => negative = !negative,
                    Meaning::PlusMinus => uncertain = Some(false),
                    Meaning::MinusPlus => uncertain = Some(true),
                    _ => break,
                }
                signs += 1;
                self.at += 1;
            }
            if signs == 0 && !terms.is_empty() {
                break;
            }
            let mut term = self.product()?;
            if negative {
                term = negated(term);
            }
            if let Some(opposite) = uncertain {
                term = Expression::PlusMinus(opposite, Box::new(term));
            }
            terms.push(term);
            if terms.len() > 1 && matches!(terms.last(), Some(Expression::Unit(..))) {
                // In `3 + 4 cm`, the unit belongs to the sum.
                let Some(Expression::Unit(inner, unit)) = terms.pop() else { return None };
                terms.push(*inner);
                return Some(Expression::Unit(Box::new(Expression::Sum(terms)), unit));
            }
        }
        // `\mathbb{R} - \{1\}`.
        if let [all, Expression::Negative(some)] = terms.as_slice()
            && (is_set(all) || matches!(all, Expression::Variable(name) if name == "ℝ"))
            && matches!(**some, Expression::Set(_))
        {
            return Some(Expression::Without(Box::new(all.clone()), some.clone()));
        }
        Some(if terms.len() == 1 { terms.remove(0) } else { Expression::Sum(terms) })
    }

    fn product(&mut self) -> Option<Expression> {
        let first = self.factor()?;
        let (mut over, mut under, mut unit) = (vec![], vec![], None);
        let mut divide = false;
        let (mut multiplied, mut percent) = (false, false);
        let mut next = first;
        loop {
            let whole = !multiplied && (!over.is_empty() || divide);
            if let Some(inner) = self.percent_of_all(&next, whole) {
                next = inner;
                percent = true;
            }
            if let Expression::Unit(inner, name) = next {
                next = *inner;
                unit = Some(name);
            }
            if divide {
                under.push(next)
            } else {
                over.push(next)
            }
            if unit.is_some() {
                break;
            }
            divide = match self.peek() {
                Some(Kind::Sign(Meaning::Times)) => {
                    self.at += 1;
                    multiplied = true;
                    false
                }
                Some(Kind::Sign(Meaning::Divide)) => {
                    self.at += 1;
                    true
                }
                // `4.4 x 10^7`: an x between a number and a power of ten is a multiplication sign.
                Some(Kind::Word(word)) if word == "x" && self.is_power_of_ten(1) => {
                    self.at += 1;
                    false
                }
                // The range of a parameter in brackets is not a factor.
                Some(Kind::Sign(Meaning::Open)) if self.range_ahead(0) => break,
                // A word is not a factor: `Answer 9` is prose.
                Some(kind) if self.starts_factor(kind) && over.last().is_none_or(is_word) => {
                    return None;
                }
                Some(Kind::Sign(Meaning::Open)) if self.applied(over.last(), under.is_empty()) => {
                    // `I(0)` is a value of I, not 0.
                    let (name, argument) = (over.pop()?, self.factor()?);
                    next = Expression::Variable(format!("{}({})", label(&name), label(&argument)));
                    divide = false;
                    continue;
                }
                Some(kind) if self.starts_factor(kind) => {
                    // Two adjacent numbers are not a product.
                    let number = matches!(kind, Kind::Number { .. });
                    if number && !matches!(over.last(), Some(last) if !ends_in_number(last)) {
                        return None;
                    }
                    false
                }
                _ => break,
            };
            next = self.signed_factor()?;
        }
        let product = |mut factors: Vec<Expression>| match factors.len() {
            1 => factors.remove(0),
            _ => Expression::Product(factors),
        };
        let mut value = product(over);
        if !under.is_empty() {
            value = Expression::Quotient(Box::new(value), Box::new(product(under)));
        }
        if percent {
            value = Expression::Percent(Box::new(value));
        }
        Some(match unit {
            Some(unit) => Expression::Unit(Box::new(value), unit),
            None => value,
        })
    }

    /// Returns the last factor without its percent sign, if the sign belongs to the whole product, as in
    /// `2\sqrt{2}\%` and `22/7\%`, but not in `200 \cdot 10\%`.
    fn percent_of_all(&self, factor: &Expression, whole: bool) -> Option<Expression> {
        let Expression::Percent(inner) = factor else { return None };
        let ends = !self.peek().is_some_and(|kind| self.goes_on(kind));
        (whole && ends).then(|| (**inner).clone())
    }

    /// Returns whether a product continues here.
    fn goes_on(&self, kind: &Kind) -> bool {
        matches!(kind, Kind::Sign(Meaning::Times | Meaning::Divide)) || self.starts_factor(kind)
    }

    /// Returns whether a variable comes right before a number in brackets.
    fn applied(&self, last: Option<&Expression>, over: bool) -> bool {
        over && matches!(last, Some(Expression::Variable(_)))
            && !self.tokens[self.at].spaced
            && matches!(self.peek_ahead(1), Some(Kind::Number { .. }))
            && self.peek_ahead(2) == Some(&Kind::Sign(Meaning::Close))
    }

    /// Parses a factor after a multiplication sign, which may have a sign: `2 \cdot -3`.
    fn signed_factor(&mut self) -> Option<Expression> {
        if self.take_sign(Meaning::Minus) {
            return self.factor().map(negated);
        }
        self.factor()
    }

    fn is_power_of_ten(&self, ahead: usize) -> bool {
        matches!(self.peek_ahead(ahead), Some(Kind::Number { digits, .. }) if digits == "10")
            && self.peek_ahead(ahead + 1) == Some(&Kind::Power)
            && self.at > 0
            && matches!(self.tokens[self.at - 1].kind, Kind::Number { .. })
    }

    /// Returns whether a factor can begin here without a multiplication sign before it.
    pub(crate) fn starts_factor(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Number { .. }
            | Kind::GroupOpen
            | Kind::Begin(_)
            | Kind::Mark(_)
            | Kind::SquareOpen => true,
            Kind::Word(word) => word != "U",
            Kind::Sign(meaning) => match meaning {
                Meaning::Bar => self.bars == 0,
                Meaning::Function(_)
                | Meaning::Fraction
                | Meaning::Root
                | Meaning::Binomial
                | Meaning::Kind
                | Meaning::Letter(_)
                | Meaning::Infinity
                | Meaning::Open
                | Meaning::FloorOpen
                | Meaning::CeilingOpen => true,
                _ => false,
            },
            Kind::Text(text) => {
                let text = text.trim();
                text.chars().count() == 1 && text.chars().all(char::is_alphabetic)
            }
            _ => false,
        }
    }
}

fn ends_in_number(expression: &Expression) -> bool {
    matches!(expression, Expression::Number(..) | Expression::Based(..))
}

/// Returns whether it is a word rather than a variable.
fn is_word(expression: &Expression) -> bool {
    matches!(expression, Expression::Variable(name)
        if name.chars().count() > 3
            && name.chars().all(char::is_alphabetic)
            && super::words::greek(name).is_none())
}

/// Returns whether it can only be a set, or could be an interval.
fn is_set(expression: &Expression) -> bool {
    matches!(
        expression,
        Expression::Bracketed(..)
            | Expression::Set(_)
            | Expression::Union(_)
            | Expression::Intersection(_)
    )
}

/// Returns the negative, with the sign inside the unit.
pub(crate) fn negated(expression: Expression) -> Expression {
    match expression {
        Expression::Unit(inner, unit) => Expression::Unit(Box::new(negated(*inner)), unit),
        Expression::Percent(inner) => Expression::Percent(Box::new(negated(*inner))),
        Expression::Number(value, decimals) => Expression::Number(-value, decimals),
        other => Expression::Negative(Box::new(other)),
    }
}
