//! Marks after a value: powers, factorials, percent, degrees, units, and notes. Units are recognized in
//! `\text{}` and in plain words. A single letter is a unit only in `\text{}`, since it is a variable in a
//! formula.

use super::expression::{Expression, Function};
use super::lexer::Kind;
use super::limits::MAX_MARKS;
use super::notes::{adds_nothing, is_connective};
use super::number;
use super::parser::{Parser, negated};
use super::primary::label;
use super::text::is_time;
use super::units::canonical;
use super::words::{self, Meaning};

impl Parser {
    pub(crate) fn marks_behind(&mut self, mut value: Expression) -> Option<Expression> {
        for _ in 0..MAX_MARKS {
            match self.peek() {
                Some(Kind::Power) => {
                    self.at += 1;
                    value = self.power_of(value)?;
                }
                Some(Kind::Factorial) => {
                    self.at += 1;
                    value = Expression::Function(Function::Factorial, vec![value]);
                }
                Some(Kind::Sign(Meaning::Percent)) => {
                    self.at += 1;
                    value = Expression::Percent(Box::new(value));
                }
                Some(Kind::Sign(Meaning::Degree)) => {
                    self.at += 1;
                    value = self.degrees(value);
                }
                Some(Kind::Sign(Meaning::Prime)) => {
                    self.at += 1;
                    // After a number, a prime means minutes or feet: only a name can be primed.
                    let Expression::Variable(name) = value else { return None };
                    value = Expression::Variable(name + "'");
                }
                _ => match self.unit_behind()? {
                    Some(unit) => {
                        let value = Box::new(value);
                        return Some(match words::plain_word(&unit) {
                            Some(Meaning::Percent) => Expression::Percent(value),
                            Some(Meaning::Degree) => Expression::Degrees(value),
                            _ => Expression::Unit(value, unit),
                        });
                    }
                    None => return Some(value),
                },
            }
        }
        None
    }

    /// Degrees of an angle, or of a scale of temperature.
    fn degrees(&mut self, value: Expression) -> Expression {
        let scale = match self.peek() {
            Some(Kind::Word(scale)) => scale.trim().to_owned(),
            Some(Kind::Text(scale)) => scale.trim().to_owned(),
            _ => String::new(),
        };
        let value = Box::new(value);
        match scale.as_str() {
            "C" | "Celsius" | "F" | "Fahrenheit" => {
                self.at += 1;
                Expression::Unit(value, format!("°{}", &scale[..1]))
            }
            _ => Expression::Degrees(value),
        }
    }

    fn power_of(&mut self, base: Expression) -> Option<Expression> {
        let grouped = self.peek() == Some(&Kind::GroupOpen);
        let first = self.peek_ahead(usize::from(grouped)).cloned();
        match first {
            // `^\circ` and `^{\circ}`.
            Some(Kind::Sign(meaning @ (Meaning::Degree | Meaning::Prime))) => {
                self.at += 1 + usize::from(grouped);
                if grouped && !self.take(&Kind::GroupClose) {
                    return None;
                }
                return match (meaning, base) {
                    (Meaning::Degree, base) => Some(self.degrees(base)),
                    (_, Expression::Variable(name)) => Some(Expression::Variable(name + "'")),
                    _ => None,
                };
            }
            // `12^{\text{th}}` counts.
            Some(Kind::Text(text)) if ["th", "st", "nd", "rd"].contains(&text.trim()) => {
                self.at += 1 + usize::from(grouped);
                if grouped && !self.take(&Kind::GroupClose) {
                    return None;
                }
                return Some(Expression::Unit(Box::new(base), "th".into()));
            }
            _ => {}
        }
        let mut negative = false;
        while let Some(Kind::Sign(sign @ (Meaning::Minus | Meaning::Plus))) = self.peek() {
            negative ^= *sign == Meaning::Minus;
            self.at += 1;
        }
        // Towers are built from the top: the factor takes the powers after it.
        let exponent = self.factor()?;
        let power = |exponent: Expression| {
            let exponent = if negative { negated(exponent) } else { exponent };
            Box::new(Expression::Power(Box::new(base), Box::new(exponent)))
        };
        // In `2^{10}\%`, the sign belongs to the power.
        Some(match exponent {
            Expression::Percent(exponent) => Expression::Percent(power(*exponent)),
            Expression::Degrees(exponent) => Expression::Degrees(power(*exponent)),
            Expression::Unit(exponent, unit) => Expression::Unit(power(*exponent), unit),
            exponent => *power(exponent),
        })
    }

    /// Returns whether letters form a unit together: `m/s`.
    fn is_rate(&self, word: &str) -> bool {
        let per = |kind: Option<&Kind>| matches!(kind, Some(Kind::Word(time)) if ["s", "h", "min"].contains(&time.as_str()));
        ["m", "L", "l", "g", "J"].contains(&word)
            && self.peek_ahead(1) == Some(&Kind::Sign(Meaning::Divide))
            && per(self.peek_ahead(2))
    }

    /// Returns the modulus after a residue: `\pmod{10}`, `(mod 10)`, `\text{ mod } 10`.
    fn modulus(&mut self) -> Option<Option<String>> {
        let bracketed = self.peek() == Some(&Kind::Sign(Meaning::Open));
        let word = self.peek_ahead(usize::from(bracketed));
        if !matches!(word, Some(Kind::Word(word)) if word == "mod") {
            return Some(None);
        }
        self.at += 1 + usize::from(bracketed);
        let modulus = self.factor()?;
        if bracketed && !self.take_sign(Meaning::Close) {
            return None;
        }
        Some(Some(format!("mod {}", label(&modulus))))
    }

    /// Returns a fraction of units in `\text{}`, and its end.
    fn fraction_of_units(&self) -> Option<(String, usize)> {
        let mut at = self.at + 1;
        let mut sides = vec![];
        for _ in 0..2 {
            let grouped = self.tokens.get(at)?.kind == Kind::GroupOpen;
            at += usize::from(grouped);
            let Kind::Text(text) = &self.tokens.get(at)?.kind else { return None };
            let mut unit = text.clone();
            at += 1;
            if grouped && self.tokens.get(at)?.kind == Kind::Power {
                let Kind::Number { digits, .. } = &self.tokens.get(at + 1)?.kind else {
                    return None;
                };
                unit += &format!("^{digits}");
                at += 2;
            }
            if grouped && self.tokens.get(at)?.kind != Kind::GroupClose {
                return None;
            }
            at += usize::from(grouped);
            sides.push(unit);
        }
        let unit = sides.join("/");
        canonical(&unit).map(|unit| (unit, at))
    }

    /// Returns whether a plain word after a value and other words is a unit or a note; `None` if it changes
    /// the value.
    fn is_note(&self, word: &str, names: &[String], behind_number: bool) -> Option<bool> {
        // `2am` is a product of three.
        let spaced = self.tokens[self.at].spaced;
        let parted = spaced || !is_time(words::unit(word).unwrap_or(""));
        let known = word.len() > 1 && canonical(word).is_some() && parted;
        // Longer words without another meaning are notes: `5 apples`. Other scripts write them without a
        // space.
        let foreign = !word.is_ascii() && !word.chars().all(|c| "ℝℤℕℚℂ".contains(c));
        let note = foreign || spaced && word.chars().count() > 3;
        let per = names.last().is_some_and(|name| name == "/" || name == "per")
            || word == "per" && !names.is_empty();
        let rate = spaced && self.is_rate(word);
        let ordinal = !spaced && ["th", "st", "nd", "rd"].contains(&word);
        if !(known || note || per || rate || ordinal) || names.is_empty() && !behind_number {
            return Some(false);
        }
        (known || adds_nothing(word)).then_some(true)
    }

    /// Returns a unit or another note after a value, in `\text{}` or in plain words.
    fn unit_behind(&mut self) -> Option<Option<String>> {
        let behind_number = self.at > 0
            && matches!(
                self.tokens[self.at - 1].kind,
                Kind::Number { .. }
                    | Kind::GroupClose
                    | Kind::Sign(Meaning::Close | Meaning::Letter(_))
            );
        let mut names: Vec<String> = vec![];
        if let Some(modulus) = self.modulus()? {
            return Some(Some(modulus));
        }
        loop {
            match self.peek() {
                Some(Kind::Text(text)) => {
                    let text = text.replace(['~', '\\', ',', '.'], " ");
                    let words = text.trim();
                    let letter = words.len() == 1 && words::unit(words).is_none();
                    if is_connective(words) || words.is_empty() || names.is_empty() && letter {
                        break;
                    }
                    // `k\pi \text{ for } k \in \mathbb{Z}`.
                    if self.range_ahead(1) {
                        break;
                    }
                    // A second value, a negation, or a condition is not a note.
                    if canonical(words).is_none() && !adds_nothing(words) {
                        return None;
                    }
                    names.push(words.to_owned());
                }
                Some(Kind::Word(word)) => {
                    let word = word.clone();
                    match self.is_note(&word, &names, behind_number) {
                        Some(false) => break,
                        Some(true) => {}
                        None => return None,
                    }
                    names.push(word);
                }
                // `20\,\Omega`: ohms.
                Some(Kind::Sign(Meaning::Letter("Omega")))
                    if behind_number && self.at + 1 == self.tokens.len() && self.at == 1 =>
                {
                    names.push("Ω".into());
                }
                // `\frac{\text{km}}{\text{h}}`.
                Some(Kind::Sign(Meaning::Fraction)) if behind_number => {
                    let Some((unit, end)) = self.fraction_of_units() else { break };
                    names.push(unit);
                    self.at = end - 1;
                }
                // In `5 sec`, it is not the secant, since there is no argument.
                Some(Kind::Sign(Meaning::Function(Function::Sec)))
                    if behind_number && self.at + 1 == self.tokens.len() =>
                {
                    names.push("s".into());
                }
                _ => break,
            }
            self.at += 1;
            // Square and cubic units, and one unit per another.
            if self.peek() == Some(&Kind::Power) {
                self.at += 1;
                let power = self.factor()?;
                let power = number::small_integer(&power)?;
                names.push(format!("^{power}"));
            }
            if self.peek() == Some(&Kind::Sign(Meaning::Divide))
                && matches!(self.peek_ahead(1), Some(Kind::Word(_) | Kind::Text(_)))
            {
                self.at += 1;
                names.push("/".into());
            }
        }
        Some((!names.is_empty()).then(|| unit_name(&names)))
    }
}

/// Returns the canonical name of a unit, or the unchanged note.
fn unit_name(names: &[String]) -> String {
    if let Some(unit) = canonical(&names.join(" ")) {
        return unit;
    }
    let known = |word: &str| words::unit(word).map_or_else(|| word.to_lowercase(), str::to_owned);
    let words: Vec<String> =
        names.iter().flat_map(|name| name.split_whitespace()).map(known).collect();
    if let [half @ ("a" | "p"), "m"] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return format!("{half}m");
    }
    words.join(" ")
}
