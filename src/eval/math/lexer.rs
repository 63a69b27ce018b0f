//! Splits text into tokens. Only the digits around a comma tell whether it groups thousands, is a decimal
//! comma, or separates items of a list. The lexer therefore takes one [`Reading`] at a time, and the
//! comparison tries both.

use super::expression::Joiner;
use super::limits::{MAX_BYTES, MAX_TOKENS};
use super::notes::{announces, joiner};
use super::numerals::leading_number;
use super::scripts::plain_character;
use super::words::{self, Meaning};

/// How to read a comma between digits outside of brackets. Inside brackets, it always separates items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As a part of the number, if the digits allow it: `1,234` is 1234.
    Number,
    /// As a separator of two numbers: `1,234` is 1 and 234.
    List,
}

/// The kind of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Digits with an optional point, the repeating digits, and the power of ten.
    Number {
        digits: String,
        repeating: String,
        exponent: i32,
    },
    /// One or several letters without another meaning.
    Word(String),
    /// Anything with its own meaning.
    Sign(Meaning),
    /// The words of a `\text{}`.
    Text(String),
    /// A decoration such as `\vec`, by name.
    Mark(String),
    /// `{` and `}`, `[` and `]`.
    GroupOpen,
    GroupClose,
    SquareOpen,
    SquareClose,
    Comma,
    Semicolon,
    Power,
    Subscript,
    Factorial,
    Column,
    Row,
    Begin(String),
    End(String),
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The kind.
    pub kind: Kind,
    /// Whether white space precedes the token.
    pub spaced: bool,
}

/// Returns the tokens of a text; `None` if a character has no meaning or the text is too long.
pub fn tokens(text: &str, reading: Reading) -> Option<Vec<Token>> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let characters: Vec<char> = text.chars().map(plain_character).collect();
    let ends = |c: &char| c.is_whitespace() || "$.。".contains(*c);
    let mut lexer = Lexer {
        ending: characters.iter().rposition(|c| !ends(c)).map_or(0, |last| last + 1),
        characters,
        at: 0,
        reading,
        brackets: 0,
        environments: 0,
        aligned: 0,
        doubled: false,
        spaced: false,
        list_until: 0,
        tokens: Vec::new(),
    };
    while lexer.at < lexer.characters.len() {
        lexer.step()?;
        if lexer.tokens.len() > MAX_TOKENS {
            return None;
        }
    }
    turn_brackets(&mut lexer.tokens);
    Some(lexer.tokens)
}

/// Converts intervals with outward brackets at open ends, as in French: `]1, 2[` is `(1, 2)`.
fn turn_brackets(tokens: &mut [Token]) {
    let is_open = |kind: &Kind| {
        matches!(kind, Kind::SquareOpen | Kind::Sign(Meaning::Open | Meaning::SetOpen))
    };
    let is_close = |kind: &Kind| {
        matches!(kind, Kind::SquareClose | Kind::Sign(Meaning::Close | Meaning::SetClose))
    };
    // For each open bracket, whether it could belong to an interval and has two items by now.
    let mut open: Vec<Option<bool>> = vec![];
    for at in 0..tokens.len() {
        let next = tokens.get(at + 1).map(|token| &token.kind);
        let ends = next.is_none_or(|next| {
            is_close(next)
                || matches!(
                    next,
                    Kind::Comma
                        | Kind::Semicolon
                        | Kind::Text(_)
                        | Kind::Sign(
                            Meaning::Union | Meaning::Intersection | Meaning::And | Meaning::Or
                        )
                )
        });
        let turned_end = tokens[at].kind == Kind::SquareOpen && open.last() == Some(&Some(true));
        if turned_end && ends {
            tokens[at].kind = Kind::Sign(Meaning::Close);
            open.pop();
        } else if tokens[at].kind == Kind::SquareClose && open.is_empty() && !ends {
            tokens[at].kind = Kind::Sign(Meaning::Open);
            open.push(Some(false));
        } else if is_open(&tokens[at].kind) {
            open.push((tokens[at].kind == Kind::SquareOpen).then_some(false));
        } else if is_close(&tokens[at].kind) {
            open.pop();
        } else if matches!(tokens[at].kind, Kind::Comma | Kind::Semicolon)
            && let Some(Some(two)) = open.last_mut()
        {
            *two = true;
        }
    }
}

pub(crate) struct Lexer {
    pub(crate) characters: Vec<char>,
    pub(crate) at: usize,
    pub(crate) reading: Reading,
    pub(crate) brackets: usize,
    environments: usize,
    /// Number of environments that align equations, in which `&` separates nothing.
    aligned: usize,
    /// Whether the text has `\\frac` for `\frac`, as in text that was escaped twice.
    doubled: bool,
    spaced: bool,
    /// From here on, there are only periods, delimiters, and white space.
    ending: usize,
    /// Up to here, commas separate items, since the digits do not allow another reading.
    pub(crate) list_until: usize,
    tokens: Vec<Token>,
}

impl Lexer {
    pub(crate) fn peek(&self, ahead: usize) -> Option<char> {
        self.characters.get(self.at + ahead).copied()
    }

    pub(crate) fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, spaced: std::mem::take(&mut self.spaced) });
    }

    pub(crate) fn digit(&self, ahead: usize) -> bool {
        self.peek(ahead).is_some_and(|c| c.is_ascii_digit())
    }

    fn step(&mut self) -> Option<()> {
        let character = self.peek(0)?;
        if character.is_ascii_digit() || character == '.' && self.digit(1) {
            return self.number();
        }
        self.at += 1;
        match character {
            '\\' => return self.backslash(),
            '{' if self.peek(0) == Some(',')
                || self.peek(0) == Some(' ') && self.peek(1) == Some(',') =>
            {
                // `{,}` outside of a number.
                while self.peek(0)? != '}' {
                    self.at += 1;
                }
                self.at += 1;
                self.push(Kind::Comma);
            }
            '{' if self.peek(0) == Some(':') && self.peek(1) == Some('}') => {
                self.at += 2;
                self.push(Kind::Sign(Meaning::Colon));
            }
            '{' => self.push(Kind::GroupOpen),
            '}' => self.push(Kind::GroupClose),
            '[' => {
                self.brackets += 1;
                self.push(Kind::SquareOpen);
            }
            ']' => {
                self.brackets = self.brackets.saturating_sub(1);
                self.push(Kind::SquareClose);
            }
            ',' | '，' | '、' => self.push(Kind::Comma),
            ';' | '；' => self.push(Kind::Semicolon),
            '^' => self.push(Kind::Power),
            '_' => self.push(Kind::Subscript),
            '&' if self.aligned > 0 && self.aligned == self.environments => self.spaced = true,
            '&' => self.push(Kind::Column),
            '!' if self.peek(0) == Some('=') => {
                self.at += 1;
                self.push(Kind::Sign(Meaning::Relation(super::expression::Relation::NotEqual)));
            }
            '!' => self.push(Kind::Factorial),
            '*' if self.peek(0) == Some('*') => {
                self.at += 1;
                self.push(Kind::Power);
            }
            '<' | '>' if self.peek(0) == Some('=') => {
                self.at += 1;
                let relation = words::character(if character == '<' { '≤' } else { '≥' })?;
                self.push(Kind::Sign(relation));
            }
            '²' | '³' => {
                self.push(Kind::Power);
                let digits = if character == '²' { "2" } else { "3" };
                self.push_digits(digits);
            }
            'ℝ' | 'ℤ' | 'ℕ' | 'ℚ' | 'ℂ' => self.push(Kind::Word(character.to_string())),
            '½' | '¼' | '¾' | '⅓' | '⅔' => self.vulgar_fraction(character),
            // A period ends the answer. Elsewhere, a dot has no known meaning.
            '.' | '。' if self.at > self.ending => {
                self.spaced = true;
            }
            '"' | '“' | '”' => self.spaced = true,
            _ if character.is_whitespace() || character == '~' => self.spaced = true,
            _ => match words::character(character) {
                Some(Meaning::Currency) => self.spaced = true,
                Some(meaning) => self.sign(meaning),
                None if character.is_alphabetic() => {
                    self.at -= 1;
                    self.word();
                }
                None => return None,
            },
        }
        Some(())
    }

    fn vulgar_fraction(&mut self, character: char) {
        let (over, under) = match character {
            '½' => ("1", "2"),
            '¼' => ("1", "4"),
            '¾' => ("3", "4"),
            '⅓' => ("1", "3"),
            _ => ("2", "3"),
        };
        self.push(Kind::Sign(Meaning::Fraction));
        self.push_digits(over);
        self.push_digits(under);
    }

    fn sign(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Open | Meaning::SetOpen => self.brackets += 1,
            Meaning::Close | Meaning::SetClose => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.push(Kind::Sign(meaning));
    }

    fn push_digits(&mut self, digits: &str) {
        self.push(Kind::Number { digits: digits.into(), repeating: String::new(), exponent: 0 });
    }

    fn word(&mut self) {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_alphabetic() && words::character(c).is_none()) {
            self.at += 1;
        }
        let mut word: String = self.characters[start..self.at].iter().collect();
        // `1orW`: a connective right after a digit ends with the lower-case letters.
        let behind_digit = start > 0 && self.characters[start - 1].is_ascii_digit();
        for connective in ["and", "or"] {
            if behind_digit
                && word
                    .strip_prefix(connective)
                    .is_some_and(|rest| rest.starts_with(char::is_uppercase))
            {
                self.at = start + connective.len();
                word = connective.into();
            }
        }
        // In any language, but not between letters that may be variables.
        let joins = if word.chars().count() > 1 || !word.is_ascii() { joiner(&word) } else { None };
        if let Some(joiner) = joins.filter(|_| self.spaced || !word.is_ascii()) {
            return self.push(Kind::Sign(joining(joiner)));
        }
        match words::plain_word(&word) {
            Some(Meaning::Currency) => self.spaced = true,
            Some(meaning) => self.push(Kind::Sign(meaning)),
            None => self.push(Kind::Word(word)),
        }
    }

    /// Reads what follows a backslash.
    fn backslash(&mut self) -> Option<()> {
        let character = self.peek(0)?;
        if character.is_ascii_alphabetic() {
            return self.command();
        }
        self.at += 1;
        match character {
            '\\' => {
                let name: String = self.characters[self.at..]
                    .iter()
                    .take_while(|c| c.is_ascii_alphabetic())
                    .take(32)
                    .collect();
                let doubled = self.environments == 0 || self.doubled;
                if doubled && words::command(&name).is_some() || name == "end" && self.doubled {
                    self.doubled = true;
                    return self.command();
                }
                if self.doubled && self.peek(0) == Some('\\') {
                    while self.peek(0) == Some('\\') {
                        self.at += 1;
                    }
                }
                if self.aligned > 0 && self.continues_chain() {
                    self.spaced = true;
                } else if self.environments > 0 {
                    self.push(Kind::Row);
                } else {
                    self.spaced = true;
                }
            }
            '{' => self.sign(Meaning::SetOpen),
            '}' => self.sign(Meaning::SetClose),
            '|' => self.push(Kind::Sign(Meaning::Bar)),
            '%' => self.push(Kind::Sign(Meaning::Percent)),
            '$' | ',' | '!' | ';' | ':' | ' ' | '>' | '(' | ')' | '[' | ']' | '\n' | '&' | '#' => {
                self.spaced = true;
            }
            _ => return None,
        }
        Some(())
    }

    fn command(&mut self) -> Option<()> {
        let length = self.characters[self.at..]
            .iter()
            .take_while(|c| c.is_ascii_alphabetic())
            .take(32)
            .count();
        let name: String = self.characters[self.at..self.at + length].iter().collect();
        // For an unknown command, the longest known prefix counts: `\quadx` is `\quad x`.
        let (meaning, name) = (1..=length)
            .rev()
            .find_map(|end| words::command(&name[..end]).map(|meaning| (meaning, &name[..end])))?;
        let name = name.to_owned();
        self.at += name.len();
        match meaning {
            Meaning::Nothing => {
                self.spaced = true;
                if ["hspace", "color", "textcolor", "colorbox", "phantom", "hphantom"]
                    .contains(&name.as_str())
                {
                    self.argument()?;
                }
            }
            Meaning::Fence => {
                if self.peek(0) == Some('.') {
                    self.at += 1;
                }
            }
            Meaning::Text => {
                let text = self.argument()?;
                if is_formula(&text) {
                    self.tokens.extend(tokens(&text, self.reading)?);
                } else {
                    self.text(&text)?;
                }
            }
            Meaning::Font => {
                if name == "mathbb" {
                    let letter = self.argument()?;
                    let sets = [("R", "ℝ"), ("Z", "ℤ"), ("N", "ℕ"), ("Q", "ℚ"), ("C", "ℂ")];
                    let (_, set) = sets.into_iter().find(|(name, _)| *name == letter.trim())?;
                    self.push(Kind::Word(set.into()));
                }
            }
            Meaning::Modulo => self.push(Kind::Word("mod".into())),
            Meaning::Mark => self.push(Kind::Mark(name)),
            Meaning::Begin => {
                let environment = self.argument()?;
                self.environments += 1;
                self.aligned += usize::from(lines_up(&environment));
                if environment == "array" {
                    self.argument()?;
                }
                self.push(Kind::Begin(environment));
            }
            Meaning::End => {
                let environment = self.argument()?;
                self.environments = self.environments.saturating_sub(1);
                if lines_up(&environment) {
                    self.aligned = self.aligned.saturating_sub(1);
                }
                self.push(Kind::End(environment));
            }
            Meaning::Currency => self.spaced = true,
            meaning => self.sign(meaning),
        }
        Some(())
    }

    /// Reads the words of a `\text{}`. A connective at its beginning or end joins both sides:
    /// `3 \text{ hours and } 20 \text{ minutes}`.
    fn text(&mut self, text: &str) -> Option<()> {
        if self.tokens.is_empty() && (text.trim().is_empty() || announces(text)) {
            self.spaced = true;
            return Some(());
        }
        // `\text{The answer is 3}`.
        if self.tokens.is_empty()
            && let Some(at) =
                text.find(|c: char| c.is_ascii_digit() || c == '-').filter(|at| *at > 0)
            && announces(&text[..at])
        {
            return match is_formula(&text[at..]) {
                true => tokens(&text[at..], self.reading).map(|found| self.tokens.extend(found)),
                false => self.text(&text[at..]),
            };
        }
        const LONGEST_MODULUS: usize = 64;
        let inside = text.trim().trim_start_matches('(');
        if let Some(modulus) = inside.strip_prefix("mod").map(|rest| rest.trim_start_matches("ulo"))
            && !modulus.starts_with(char::is_alphabetic)
            && modulus.len() <= LONGEST_MODULUS
        {
            self.push(Kind::Word("mod".into()));
            self.tokens.extend(tokens(modulus.trim_end().trim_end_matches(')'), self.reading)?);
            return Some(());
        }
        let trimmed = text.trim();
        // The ratio `3 \text{ to } 5`.
        if trimmed == "to" {
            self.push(Kind::Sign(Meaning::Colon));
            return Some(());
        }
        // `\text{12 cm}`.
        if let Some((0, end)) = leading_number(trimmed)
            && let note = trimmed[end..].trim_start()
            && note.starts_with(char::is_alphabetic)
        {
            self.tokens.extend(tokens(&trimmed[..end], self.reading)?);
            return self.text(note);
        }
        let (first, last) = (trimmed.split_once(' '), trimmed.rsplit_once(' '));
        let part = |text: &str| Kind::Text(format!(" {} ", text.trim()));
        match (first, last) {
            (Some((word, rest)), _) if joiner(word).is_some() => {
                self.push(Kind::Sign(joiner(word).map(joining)?));
                self.push(part(rest));
            }
            (_, Some((rest, word))) if joiner(word).is_some() => {
                self.push(part(rest));
                self.push(Kind::Sign(joiner(word).map(joining)?));
            }
            _ => self.push(Kind::Text(text.to_owned())),
        }
        Some(())
    }

    /// Returns whether a line of an aligned chain begins with a relation: `x &= 1 + 2 \\\\ &= 3`.
    fn continues_chain(&self) -> bool {
        const MOST: usize = 32;
        let behind = &self.characters[self.at..];
        let next = behind.iter().take(MOST).find(|c| !(c.is_whitespace() || "&{}".contains(**c)));
        next.is_some_and(|c| "=≈".contains(*c))
    }

    /// Returns the text of the next group, or the next character.
    fn argument(&mut self) -> Option<String> {
        while self.peek(0).is_some_and(char::is_whitespace) {
            self.at += 1;
        }
        let first = self.peek(0)?;
        self.at += 1;
        if first != '{' {
            return Some(first.into());
        }
        let start = self.at;
        let mut depth = 1usize;
        loop {
            // The answer may be truncated.
            let Some(character) = self.peek(0) else {
                return Some(self.characters[start..self.at].iter().collect());
            };
            self.at += 1;
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(self.characters[start..self.at - 1].iter().collect());
            }
        }
    }
}

/// Returns whether an environment aligns equations.
pub(crate) fn lines_up(environment: &str) -> bool {
    let name = environment.trim_end_matches('*');
    ["align", "aligned", "split", "gather", "gathered", "eqnarray", "alignedat"].contains(&name)
}

fn joining(joiner: Joiner) -> Meaning {
    match joiner {
        Joiner::And => Meaning::And,
        Joiner::Or => Meaning::Or,
    }
}

/// Returns whether a `\text{}` contains a formula: digits or single capital letters, and no words except
/// "and" and "or".
fn is_formula(text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let known = ["and", "or", "am", "pm", "AM", "PM"];
    if text.contains(|c: char| c.is_ascii_digit()) {
        // `\text{x = 3}`.
        let equation = text.contains('=');
        return words.all(|word| known.contains(&word) || equation && word.len() == 1);
    }
    // `\text{A and C}`, `\text{A, C}`.
    let mut words = words.peekable();
    let joined = text.contains(',') || text.contains(" and ") || text.contains(" or ");
    let letter = |word: &str| word.len() == 1 && word.starts_with(|c: char| c.is_ascii_uppercase());
    joined
        && words.peek().is_some_and(|first| letter(first))
        && words.all(|word| letter(word) || known[..2].contains(&word))
}
