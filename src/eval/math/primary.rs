//! The factors of products: numbers, names, groups, fractions, roots, tuples, and sets, including mixed
//! numbers, numbers in other bases, and `\frac12`, whose arguments are single digits.

use super::expression::{Bracket, Constant, Expression, Function};
use super::lexer::Kind;
use super::number;
use super::parser::Parser;
use super::spoken;
use super::words::{self, Meaning};

impl Parser {
    /// Parses a primary and the marks after it.
    pub(crate) fn factor(&mut self) -> Option<Expression> {
        self.deeper(|parser| {
            let primary = parser.primary()?;
            parser.marks_behind(primary)
        })
    }

    pub(crate) fn primary(&mut self) -> Option<Expression> {
        let kind = self.peek()?.clone();
        self.at += 1;
        match kind {
            Kind::Number { digits, repeating, exponent } => {
                if self.peek() == Some(&Kind::Subscript) {
                    return self.based(digits);
                }
                let (value, decimals) =
                    number::read(&digits, &repeating, exponent, &mut self.steps)?;
                let whole = decimals == 0 && exponent == 0;
                let value = Expression::Number(value, decimals);
                Some(if whole { self.mixed_number(value)? } else { value })
            }
            Kind::Word(word) => self.name(word),
            Kind::Text(text) => self.text(&text),
            Kind::Mark(name) => {
                let marked = self.factor()?;
                self.subscripted(format!("{name}({})", label(&marked)))
            }
            Kind::GroupOpen => self.group(),
            Kind::SquareOpen => self.brackets(Bracket::Square),
            Kind::Begin(environment) => self.matrix(&environment),
            Kind::Sign(meaning) => self.sign(meaning),
            _ => None,
        }
    }

    fn sign(&mut self, meaning: Meaning) -> Option<Expression> {
        match meaning {
            Meaning::Letter("pi") => Some(Expression::Constant(Constant::Pi)),
            Meaning::Letter(name) => self.subscripted(name.to_owned()),
            Meaning::Infinity => Some(Expression::Constant(Constant::Infinity)),
            Meaning::EmptySet => Some(Expression::Set(vec![])),
            Meaning::Kind => self.factor(),
            Meaning::Open => self.brackets(Bracket::Round),
            Meaning::SetOpen => self.set(Kind::Sign(Meaning::SetClose)),
            Meaning::Fraction => {
                let over = self.argument()?;
                let under = self.argument()?;
                Some(Expression::Quotient(Box::new(over), Box::new(under)))
            }
            Meaning::Binomial => {
                let all = self.argument()?;
                let some = self.argument()?;
                Some(Expression::Function(Function::Binomial, vec![all, some]))
            }
            Meaning::Root => {
                let index = if self.take(&Kind::SquareOpen) {
                    let index = self.sum()?;
                    self.take(&Kind::SquareClose).then_some(index)?
                } else {
                    Expression::integer(2)
                };
                let radicand = self.argument()?;
                Some(Expression::Root(Box::new(radicand), Box::new(index)))
            }
            Meaning::Bar => {
                let inside = self.with_bars(self.bars + 1, Self::sum)?;
                self.take_sign(Meaning::Bar)
                    .then(|| Expression::Function(Function::Absolute, vec![inside]))
            }
            Meaning::FloorOpen => self.enclosed(Meaning::FloorClose, Function::Floor),
            Meaning::CeilingOpen => self.enclosed(Meaning::CeilingClose, Function::Ceiling),
            Meaning::Function(function) => self.function(function),
            _ => None,
        }
    }

    fn enclosed(&mut self, close: Meaning, function: Function) -> Option<Expression> {
        let inside = self.with_bars(0, Self::sum)?;
        self.take_sign(close).then(|| Expression::Function(function, vec![inside]))
    }

    /// Parses an argument of `\frac` or `\sqrt`: a group, a single token, or a single digit of a number.
    pub(crate) fn argument(&mut self) -> Option<Expression> {
        if let Some(Kind::Number { digits, repeating, exponent }) = self.peek().cloned()
            && repeating.is_empty()
            && exponent == 0
            && digits.len() > 1
            && digits.starts_with(|c: char| c.is_ascii_digit())
        {
            let rest = Kind::Number { digits: digits[1..].to_owned(), repeating, exponent };
            self.tokens[self.at].kind = rest;
            self.tokens[self.at].spaced = false;
            return number::read(&digits[..1], "", 0, &mut self.steps)
                .map(|(value, _)| Expression::Number(value, 0));
        }
        self.deeper(Self::primary)
    }

    fn mixed_number(&mut self, whole: Expression) -> Option<Expression> {
        let start = self.at;
        // Reading an argument may split a number into its digits.
        let end = (start + 7).min(self.tokens.len());
        let copy = self.tokens[start..end].to_vec();
        let fraction = if self.peek() == Some(&Kind::Sign(Meaning::Fraction)) {
            self.at += 1;
            self.integer_fraction()
        } else if let (
            Some(Kind::Number { .. }),
            Some(Kind::Sign(Meaning::Divide)),
            Some(Kind::Number { .. }),
        ) = (self.peek(), self.peek_ahead(1), self.peek_ahead(2))
            && self.tokens[self.at].spaced
        {
            let over = self.deeper(Self::primary)?;
            self.at += 1;
            let under = self.deeper(Self::primary)?;
            Some(Expression::Quotient(Box::new(over), Box::new(under)))
        } else {
            None
        };
        // Only a proper fraction of integers forms a mixed number. Other fractions multiply.
        if let Some(Expression::Quotient(over, under)) = &fraction
            && let (Some(a), Some(b)) = (number::small_integer(over), number::small_integer(under))
            && 0 < a
            && a < b
            && !matches!(**over, Expression::Negative(_))
        {
            return Some(Expression::Sum(vec![whole, fraction?]));
        }
        self.at = start;
        self.tokens.splice(start..end, copy);
        Some(whole)
    }

    /// Parses the arguments of `\frac`, if both are integers.
    fn integer_fraction(&mut self) -> Option<Expression> {
        let mut arguments = vec![];
        for _ in 0..2 {
            let grouped = self.peek() == Some(&Kind::GroupOpen);
            let closed = !grouped || self.peek_ahead(2) == Some(&Kind::GroupClose);
            let integer =
                matches!(self.peek_ahead(usize::from(grouped)), Some(Kind::Number { .. }));
            if !(closed && integer) {
                return None;
            }
            arguments.push(self.argument()?);
        }
        let (under, over) = (arguments.pop()?, arguments.pop()?);
        Some(Expression::Quotient(Box::new(over), Box::new(under)))
    }

    /// Parses a number with a base: `4210_5`.
    fn based(&mut self, digits: String) -> Option<Expression> {
        self.at += 1;
        let base = match self.factor()? {
            // `1011_{\text{two}}`.
            Expression::Variable(name) => u32::try_from(spoken::number(&[&name])?).ok()?,
            base => u32::try_from(number::small_integer(&base)?).ok()?,
        };
        let valid =
            (2..=36).contains(&base) && digits.chars().all(|c| c == '.' || c.is_digit(base));
        let digits = digits.trim_start_matches('0').to_owned();
        valid.then_some(Expression::Based(digits, base))
    }

    /// Parses a run of letters: a word if it has at least four letters, else a product of variables.
    fn name(&mut self, word: String) -> Option<Expression> {
        let mut letters = word.chars();
        let first = letters.next()?;
        let count = word.chars().count();
        if count > 3 {
            return self.subscripted(word);
        }
        if count > 1 {
            // A run of letters followed by a space and another run or a number is prose: `it is 5`.
            if self.tokens.get(self.at).is_some_and(|next| {
                next.spaced
                    && (matches!(&next.kind, Kind::Word(other) if other.chars().count() > 1)
                        || matches!(next.kind, Kind::Number { .. }))
            }) {
                return None;
            }
            // Leaves the other letters to be read: a power after them belongs to the last one.
            self.at -= 1;
            self.tokens[self.at].kind = Kind::Word(letters.collect());
            self.tokens[self.at].spaced = false;
            return Some(letter(first));
        }
        if self.peek() == Some(&Kind::Subscript) {
            return self.subscripted(word);
        }
        Some(letter(first))
    }

    fn subscripted(&mut self, mut name: String) -> Option<Expression> {
        if self.take(&Kind::Subscript) {
            let subscript = match self.peek()?.clone() {
                Kind::Text(text) => {
                    self.at += 1;
                    text.trim().to_owned()
                }
                _ => label(&self.argument()?),
            };
            name = format!("{name}_{subscript}");
        }
        Some(Expression::Variable(name))
    }

    fn text(&mut self, text: &str) -> Option<Expression> {
        let trimmed = text.trim();
        let bare = trimmed.trim_start_matches('(').trim_end_matches([')', '.']);
        let mut letters = bare.chars();
        match (letters.next(), letters.next()) {
            // `\mathrm{e}`, `\text{(B)}`.
            (Some(first), None) if first.is_alphabetic() && trimmed.len() <= 4 => {
                Some(letter(first))
            }
            _ => words::function(trimmed)
                .map(|function| self.function(function))
                .unwrap_or_else(|| self.subscripted(trimmed.to_lowercase())),
        }
    }

    fn group(&mut self) -> Option<Expression> {
        if self.is_set_by_condition() {
            return self.set(Kind::GroupClose);
        }
        let (groups, joiner) = self.with_bars(0, Self::items)?;
        // A truncated group is closed at the end.
        if !self.take(&Kind::GroupClose) && self.at < self.tokens.len() {
            return None;
        }
        let mut items: Vec<Expression> = groups.into_iter().flatten().collect();
        Some(if items.len() == 1 { items.remove(0) } else { Expression::List(items, joiner) })
    }

    /// Reads what follows `(` or `[`.
    fn brackets(&mut self, open: Bracket) -> Option<Expression> {
        let (groups, _) = self.with_bars(0, Self::items)?;
        let close = match self.peek()? {
            Kind::Sign(Meaning::Close) => Bracket::Round,
            Kind::SquareClose => Bracket::Square,
            _ => return None,
        };
        self.at += 1;
        let mut items: Vec<Expression> = groups.into_iter().flatten().collect();
        match items.len() {
            // `(1011)_2`.
            1 if open == Bracket::Round
                && close == open
                && self.peek() == Some(&Kind::Subscript)
                && matches!(items[0], Expression::Number(_, 0)) =>
            {
                self.based(label(&items[0]))
            }
            1 if open == close => Some(items.remove(0)),
            1 => None,
            _ => Some(Expression::Bracketed(open, items, close)),
        }
    }

    /// Returns whether plain braces contain a variable, a bar, and a condition. Bars around something come in
    /// pairs.
    fn is_set_by_condition(&self) -> bool {
        let variable = matches!(self.peek(), Some(Kind::Word(word)) if word.chars().count() == 1);
        let bar = Kind::Sign(Meaning::Bar);
        if !variable || self.peek_ahead(1) != Some(&bar) {
            return false;
        }
        let inside = self.tokens[self.at..].iter().take_while(|t| t.kind != Kind::GroupClose);
        inside.filter(|token| token.kind == bar).count() % 2 == 1
    }

    /// Parses a set up to its closing brace.
    fn set(&mut self, close: Kind) -> Option<Expression> {
        if self.take(&close) {
            return Some(Expression::Set(vec![]));
        }
        // A system of equations behind one brace.
        if let Some(Kind::Begin(_)) = self.peek() {
            self.at += 1;
            let system = self.matrix("cases")?;
            self.take(&close);
            return Some(system);
        }
        // A `|` in a set comes before the condition.
        let outside = std::mem::replace(&mut self.colon_ends, true);
        let elements = self.with_bars(1, Self::items);
        self.colon_ends = outside;
        let (groups, _) = elements?;
        let mut items: Vec<Expression> = groups.into_iter().flatten().collect();
        let mut set = None;
        if self.take_sign(Meaning::Bar) || self.take_sign(Meaning::Colon) {
            let (groups, joiner) = self.with_bars(0, Self::items)?;
            let mut conditions: Vec<Expression> = groups.into_iter().flatten().collect();
            let condition = match conditions.len() {
                1 => conditions.remove(0),
                _ => Expression::List(conditions, joiner),
            };
            let element = if items.len() == 1 { items.remove(0) } else { return None };
            set = Some(Expression::SetWhere(Box::new(element), Box::new(condition)));
        }
        self.take(&close).then(|| set.unwrap_or(Expression::Set(items)))
    }
}

/// Returns the name of a subscript or a marked expression.
pub(crate) fn label(expression: &Expression) -> String {
    match expression {
        Expression::Number(value, _) => value.to_string(),
        Expression::Variable(name) => name.clone(),
        Expression::Constant(constant) => format!("{constant:?}"),
        Expression::Negative(inner) => format!("-{}", label(inner)),
        Expression::Product(_) => expression.parts().into_iter().map(label).collect(),
        other => other.parts().into_iter().map(label).collect::<Vec<_>>().join("+"),
    }
}

fn letter(letter: char) -> Expression {
    match letter {
        'e' => Expression::Constant(Constant::Euler),
        'i' => Expression::Constant(Constant::Imaginary),
        _ => Expression::Variable(letter.into()),
    }
}
