//! The digits of numbers: groups of thousands in all spellings, decimal points and commas, repeating
//! decimals, and powers of ten. The rules for commas are in [`Lexer::more_groups`].

use super::lexer::{Kind, Lexer, Reading};

impl Lexer {
    fn take_digits(&mut self) -> String {
        let start = self.at;
        while self.digit(0) {
            self.at += 1;
        }
        self.characters[start..self.at].iter().collect()
    }

    pub(crate) fn number(&mut self) -> Option<()> {
        let mut digits = self.take_digits();
        self.more_groups(&mut digits);
        let (mut repeating, mut exponent) = (String::new(), 0);
        // `5{,}08`: a comma that does not group thousands is a decimal comma.
        if [Some('{'), Some(','), Some('}')] == [0, 1, 2].map(|ahead| self.peek(ahead))
            && self.digit(3)
        {
            self.at += 3;
            digits.push('.');
            digits.push_str(&self.take_digits());
        }
        let overlined = |lexer: &Self, ahead: usize| {
            let mark = ["\\overline{", "\\bar{", "\\dot{"].into_iter().find(|mark| {
                mark.chars().enumerate().all(|(at, c)| lexer.peek(ahead + at) == Some(c))
            });
            mark.map(str::len)
        };
        let point = self.peek(0) == Some('.') && !digits.contains('.');
        // `1./3`, as programs write it.
        if point && matches!(self.peek(1), Some('/' | '*')) {
            self.at += 1;
        } else if let Some(period) = self.period_in_brackets().filter(|_| point) {
            // `0.(3)`.
            self.at += period.len() + 3;
            digits.push('.');
            repeating = period;
        } else if point && (self.digit(1) || overlined(self, 1).is_some()) {
            self.at += 1;
            digits.push('.');
            digits.push_str(&self.take_digits());
            if let Some((length, period)) = self.goes_on_for_ever(&digits) {
                self.at += length;
                repeating = period;
            } else if let Some(length) = overlined(self, 0) {
                self.at += length;
                repeating = self.take_digits();
                if repeating.is_empty() || self.peek(0) != Some('}') {
                    return None;
                }
                self.at += 1;
            }
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let signed = matches!(self.peek(1), Some('+' | '-' | '−'));
            let first = 1 + usize::from(signed);
            let length = (0..7).take_while(|more| self.digit(first + more)).count();
            let letter_behind = self.peek(first + length).is_some_and(char::is_alphabetic);
            if length > 0 && !letter_behind {
                let power: String =
                    self.characters[self.at + first..self.at + first + length].iter().collect();
                let power: i32 = power.parse().ok()?;
                exponent = if signed && self.peek(1) != Some('+') { -power } else { power };
                self.at += first + length;
            }
        }
        self.push(Kind::Number { digits, repeating, exponent });
        Some(())
    }

    /// Returns the digits of `.(3)`.
    fn period_in_brackets(&self) -> Option<String> {
        const MOST: usize = 64;
        let digits: String =
            (2..MOST).map_while(|at| self.peek(at)).take_while(char::is_ascii_digit).collect();
        let closed = self.peek(1) == Some('(') && self.peek(2 + digits.len()) == Some(')');
        (closed && !digits.is_empty()).then_some(digits)
    }

    /// Returns the length of the dots after repeating decimals, and the repeating digits: `0.333...`,
    /// `0.1666\ldots`.
    fn goes_on_for_ever(&self, digits: &str) -> Option<(usize, String)> {
        const DOTS: [&str; 5] = ["...", "…", "\\ldots", "\\dots", "\\cdots"];
        let dots = DOTS
            .iter()
            .find(|dots| dots.chars().enumerate().all(|(at, c)| self.peek(at) == Some(c)))?;
        let (_, decimals) = digits.split_once('.')?;
        let period = (1..=decimals.len() / 2).find(|length| {
            let (start, last) = decimals.split_at(decimals.len() - length);
            let again = start.ends_with(last);
            let thrice = start.strip_suffix(last).is_some_and(|start| start.ends_with(last));
            again && (thrice || *length > 1 && *length * 2 == decimals.len() || decimals.len() == 2)
        })?;
        Some((dots.chars().count(), decimals[decimals.len() - period..].to_owned()))
    }

    /// Reads what follows the first digits of a number: groups of three, or decimals after a comma.
    fn more_groups(&mut self, digits: &mut String) {
        if (1..=3).contains(&digits.len()) && *digits != "0" {
            if self.pointed_groups(digits) {
                return;
            }
            // Separators that nobody writes between the items of a list, and thin spaces.
            while let Some(separator) = self.separator() {
                self.at += separator;
                digits.push_str(&self.take_digits());
            }
        }
        if self.reading == Reading::List || self.brackets > 0 || self.at < self.list_until {
            return;
        }
        let run = self.characters[self.at..]
            .iter()
            .enumerate()
            .take_while(|(at, c)| c.is_ascii_digit() || **c == ',' && self.digit(at + 1))
            .count();
        let rest: String = self.characters[self.at..self.at + run].iter().collect();
        let Some(groups) = rest.strip_prefix(',') else { return };
        let groups: Vec<&str> = groups.split(',').collect();
        let thousands = digits.len() <= 3 && *digits != "0" && groups.iter().all(|g| g.len() == 3);
        // `1000,99` and `0,25`. With one decimal, it is usually a list: `1,2`, `0,1`.
        let decimals = groups.len() == 1
            && self.characters.get(self.at + run) != Some(&'.')
            && (digits.len() > 3 || *digits == "0" && groups[0].len() > 1 || groups[0].len() == 2);
        if thousands {
            digits.push_str(&groups.concat());
            self.at += run;
        } else if decimals {
            digits.push('.');
            digits.push_str(groups[0]);
            self.at += run;
        } else {
            self.list_until = self.at + run;
        }
    }

    /// Reads groups of thousands that points separate: `1.234.567`, `1.234,5`. A single point is a decimal
    /// point.
    fn pointed_groups(&mut self, digits: &mut String) -> bool {
        let group = |at: usize| {
            self.peek(at) == Some('.')
                && (1..4).all(|ahead| self.digit(at + ahead))
                && !self.digit(at + 4)
        };
        let length = (0..).map(|count| 4 * count).find(|at| !group(*at)).unwrap_or(0);
        let decimals = match self.peek(length) {
            Some(',') if self.reading == Reading::Number && self.brackets == 0 => {
                (1..).take_while(|ahead| self.digit(length + ahead)).count()
            }
            _ => 0,
        };
        let behind = length + decimals + usize::from(decimals > 0);
        let goes_on = matches!(self.peek(behind), Some('.' | ',')) && self.digit(behind + 1);
        if goes_on || !(length > 4 || length > 0 && decimals > 0) {
            return false;
        }
        let taken = &self.characters[self.at..self.at + behind];
        digits.extend(taken[..length].iter().filter(|c| **c != '.'));
        if decimals > 0 {
            digits.push('.');
            digits.extend(&taken[length + 1..]);
        }
        self.at += behind;
        true
    }

    /// Returns the length of a thousands separator other than a plain comma, if exactly three digits follow
    /// it.
    fn separator(&self) -> Option<usize> {
        const SEPARATORS: [&str; 16] = [
            "{,}", "{, }", "{ ,}", ",\\!", "\\,", "\\ ", "\\!", " ", "\u{a0}", "\u{202f}",
            "\u{2009}", "'", "’", "\\;", "\\:", "~",
        ];
        let separator = SEPARATORS
            .iter()
            .find(|s| s.chars().enumerate().all(|(at, c)| self.peek(at) == Some(c)))?;
        let mut length = separator.chars().count();
        // `32,\! 349` and `14 {, }916`.
        if *separator == " " && self.peek(1) == Some('{') {
            length +=
                "{,}".len() + usize::from(self.peek(2) == Some(' ') || self.peek(3) == Some(' '));
            if self.peek(length - 1) != Some('}') {
                return None;
            }
        } else if *separator == ",\\!" && self.peek(length) == Some(' ') {
            length += 1;
        }
        let three = (0..3).all(|at| self.digit(length + at)) && !self.digit(length + 3);
        // A space separates only thousands, never an integer and a fraction after it.
        let fraction = self.peek(length + 3) == Some('/');
        (three && !(fraction && separator.trim().is_empty())).then_some(length)
    }
}
