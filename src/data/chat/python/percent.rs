//! Support for `'%s' % value` in templates: the engine's `%` only supports numbers and cannot be extended.
//! Therefore the operator is rewritten as a call, `__percent__('%s', value)`, with the operands that the
//! engine's grammar gives it. Nothing else in the template changes, and lines stay in place.
//!
//! ```text
//! 'a' ~ x * y % z | lower == 1     the operand to the left: the products before it, from `x` on
//!       ^^^^^   ^^^^^^^^^          to the right: one value with its filters and tests
//! ```

/// The function that replaces the operator.
pub(in crate::data::chat) const FUNCTION: &str = "__percent__";

/// Maximum number of operators in a template. Templates in use have a few.
const MOST: usize = 1000;

/// Keywords after which an operand begins.
const BETWEEN: [&str; 7] = ["and", "or", "not", "in", "if", "else", "elif"];

/// Rewrites the operators of a template as calls. `None` if it has none, or cannot be parsed.
pub(in crate::data::chat) fn with_calls(source: &str) -> Option<String> {
    let mut out = String::with_capacity(source.len());
    let mut count = 0;
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let kind = rest.as_bytes().get(1);
        match kind {
            Some(b'#') => {
                let end = rest.find("#}")? + 2;
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            Some(b'{' | b'%') => {
                let is_block = kind == Some(&b'%');
                if is_block && first_word(&rest[2..]) == "raw" {
                    let end = raw_end(rest)?;
                    out.push_str(&rest[..end]);
                    rest = &rest[end..];
                    continue;
                }
                let mut tag = Tag { rest: &rest[2..], out: rest[..2].to_owned(), count };
                tag.rewrite(is_block)?;
                count = tag.count;
                out.push_str(&tag.out);
                rest = tag.rest;
            }
            _ => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    (count > 0).then_some(out)
}

/// Returns the first word of a tag.
fn first_word(tag: &str) -> &str {
    let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
    &tag[..tag.find(|c: char| !is_name(c)).unwrap_or(tag.len())]
}

/// Returns the end of the raw block that starts here.
fn raw_end(source: &str) -> Option<usize> {
    let mut at = 2;
    loop {
        at += source[at..].find("{%")? + 2;
        if first_word(&source[at..]) == "endraw" {
            return Some(at + source[at..].find("%}")? + 2);
        }
    }
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// The content of a pair of brackets, or of a tag outside of brackets.
#[derive(Default)]
struct Level {
    /// The offset in `out` at which the left operand of the next operator begins.
    start: usize,
    /// Whether an operand precedes this position.
    has_operand: bool,
    /// Whether a call waits for the end of its second operand.
    is_open: bool,
    /// After `is`: the name of a test comes next, or possibly its argument.
    test: Test,
}

#[derive(Default, PartialEq)]
enum Test {
    #[default]
    None,
    Name,
    Argument,
}

/// A tag being rewritten.
struct Tag<'a> {
    rest: &'a str,
    out: String,
    /// Number of operators so far, in this tag and earlier ones.
    count: usize,
}

impl Tag<'_> {
    fn take(&mut self, bytes: usize) -> &str {
        let (token, rest) = self.rest.split_at(bytes);
        self.out.push_str(token);
        self.rest = rest;
        token
    }

    /// Rewrites a whole tag, including its end.
    fn rewrite(&mut self, is_block: bool) -> Option<()> {
        if self.rest.starts_with(['-', '+']) {
            self.take(1);
        }
        let ends: [&str; 3] = match is_block {
            true => ["-%}", "+%}", "%}"],
            false => ["-}}", "+}}", "}}"],
        };
        let mut levels = vec![Level { start: self.out.len(), ..Level::default() }];
        // The keyword of a statement is not an operand.
        let mut is_first = is_block;
        loop {
            let spaces = self.rest.len() - self.rest.trim_start().len();
            let end = ends.iter().find(|end| self.rest[spaces..].starts_with(**end));
            if let Some(end) = end.filter(|_| levels.len() == 1) {
                self.close(levels.last_mut()?);
                self.take(spaces + end.len());
                return Some(());
            }
            let c = self.rest[spaces..].chars().next()?;
            self.token(c, spaces, &mut levels, std::mem::take(&mut is_first))?;
        }
    }

    /// Ends a call whose second operand ends here, before the following spaces.
    fn close(&mut self, level: &mut Level) {
        if std::mem::take(&mut level.is_open) {
            self.out.push(')');
        }
    }

    /// Ends the current operand; what follows this token belongs to another expression.
    fn divide(&mut self, level: &mut Level, bytes: usize) {
        self.close(level);
        self.take(bytes);
        *level = Level { start: self.out.len(), ..Level::default() };
    }

    /// Processes one token, whose first character is `c`, after some spaces.
    fn token(
        &mut self,
        c: char,
        spaces: usize,
        levels: &mut Vec<Level>,
        is_first: bool,
    ) -> Option<()> {
        let level = levels.last_mut()?;
        let token = &self.rest[spaces..];
        if is_name(c) || c == '"' || c == '\'' {
            return self.operand(c, spaces, level, is_first);
        }
        match c {
            '(' | '[' | '{' => {
                // After an operand this is a call or index, otherwise a value.
                level.begins_value();
                self.take(spaces + 1);
                levels.push(Level { start: self.out.len(), ..Level::default() });
            }
            ')' | ']' | '}' => {
                self.close(level);
                levels.pop();
                let level = levels.last_mut()?;
                level.has_operand = true;
                self.take(spaces + 1);
            }
            '.' | '|' => {
                if !level.has_operand {
                    return None;
                }
                // The following name is part of the operand, even if it is a keyword.
                level.test = Test::None;
                self.take(spaces + 1);
                let inner = self.rest.len() - self.rest.trim_start().len();
                let name = self.rest[inner..].find(|c| !is_name(c));
                let name = name.unwrap_or(self.rest.len() - inner);
                self.take(inner + name);
            }
            '*' | '/' => {
                let bytes = if token.starts_with("**") || token.starts_with("//") { 2 } else { 1 };
                if !token.starts_with("**") {
                    self.close(level);
                }
                level.next_factor();
                self.take(spaces + bytes);
            }
            '%' => {
                if !level.has_operand {
                    return None;
                }
                self.close(level);
                self.count += 1;
                if self.count > MOST {
                    return None;
                }
                self.out.insert_str(level.start, &format!(" {FUNCTION}("));
                self.rest = &self.rest[spaces + 1..];
                self.out.push_str(&" ".repeat(spaces.min(1)));
                self.out.push(',');
                level.next_factor();
                level.is_open = true;
            }
            // A sign.
            '-' | '+' if !level.has_operand || level.test == Test::Argument => {
                level.has_operand = false;
                self.take(spaces + 1);
            }
            '-' | '+' | '~' | ',' | ':' | '=' | '!' | '<' | '>' => {
                let is_double =
                    token.len() > 1 && c != ',' && c != ':' && token[1..].starts_with('=');
                self.divide(level, spaces + 1 + usize::from(is_double));
            }
            _ => return None,
        }
        Some(())
    }

    /// Processes a name, number, or text.
    fn operand(&mut self, c: char, spaces: usize, level: &mut Level, is_first: bool) -> Option<()> {
        let token = &self.rest[spaces..];
        if c == '"' || c == '\'' {
            level.begins_value();
            let length = text_length(token, c)?;
            self.take(spaces + length);
            return Some(());
        }
        let length = match c.is_ascii_digit() {
            true => number_length(token),
            false => token.find(|c| !is_name(c)).unwrap_or(token.len()),
        };
        let word = &token[..length];
        match word {
            "is" if level.has_operand => level.test = Test::Name,
            "not" if level.test == Test::Name => {}
            _ if level.test == Test::Name => level.test = Test::Argument,
            _ if is_first || BETWEEN.contains(&word) => {
                self.divide(level, spaces + length);
                return Some(());
            }
            // If two operands follow each other, the second is a keyword of the statement.
            _ if level.has_operand && level.test != Test::Argument => {
                self.divide(level, spaces + length);
                return Some(());
            }
            _ => level.begins_value(),
        }
        self.take(spaces + length);
        Some(())
    }
}

impl Level {
    fn begins_value(&mut self) {
        self.has_operand = true;
        self.test = Test::None;
    }

    fn next_factor(&mut self) {
        self.has_operand = false;
        self.test = Test::None;
    }
}

/// Returns the length of a quoted text.
fn text_length(token: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in token.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Returns the length of a number. A point belongs to it only if a digit follows.
fn number_length(token: &str) -> usize {
    let bytes = token.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let is_part = match byte {
            b'.' => is_digit(at + 1),
            b'+' | b'-' => matches!(bytes[at - 1], b'e' | b'E') && is_digit(at + 1),
            byte => *byte == b'_' || byte.is_ascii_alphanumeric(),
        };
        if !is_part {
            break;
        }
        at += 1;
    }
    at
}
