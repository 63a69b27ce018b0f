//! The items of a JSON array, one by one. Brackets and quotes alone determine where an item begins and ends,
//! so that an invalid item can be skipped.

use std::io::{self, BufRead, ErrorKind};

/// Maximum nesting depth of the JSON parser.
const DEEPEST: usize = 127;

/// A position in the text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) line: usize,
    /// In bytes.
    pub(super) column: usize,
}

impl Spot {
    /// Returns the position of a line and column in a text that begins here.
    pub(super) fn within(self, line: usize, column: usize) -> Self {
        match line {
            0 | 1 => Self { line: self.line, column: self.column + column.max(1) - 1 },
            _ => Self { line: self.line + line - 1, column },
        }
    }
}

/// Why there is no next item.
pub(super) enum Broken {
    Io(io::Error),
    /// The array's syntax is invalid here.
    Syntax(Spot, &'static str),
    /// The text ends inside the array.
    Ended(Spot),
    /// The text ends inside an item with deeper nesting than the parser supports.
    TooDeep(Spot),
    /// The item is longer than the limit.
    TooLong,
}

/// Reads the items of an array.
pub(super) struct ArrayItems<R> {
    reader: R,
    at: Spot,
    items: usize,
    limit: usize,
}

impl<R: BufRead> ArrayItems<R> {
    /// Starts to read an array. `at` is the position of the `[`, which `reader` has not returned yet.
    pub(super) fn new(reader: R, at: Spot, limit: usize) -> Self {
        Self { reader, at, items: 0, limit }
    }

    fn peek(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            match self.reader.fill_buf() {
                Ok(buffer) => return Ok(buffer.first().copied()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::Io(error)),
            }
        }
    }

    fn skip(&mut self, byte: u8) {
        self.reader.consume(1);
        self.at = after(self.at, byte);
    }

    fn skip_space(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            match self.peek()? {
                Some(byte) if byte.is_ascii_whitespace() => self.skip(byte),
                next => return Ok(next),
            }
        }
    }

    /// Reads the next item into `item` and returns its position. `None` at the end of the array, if only
    /// white space follows.
    pub(super) fn next(&mut self, item: &mut Vec<u8>) -> Result<Option<Spot>, Broken> {
        if self.items == 0 && self.peek()? == Some(b'[') {
            self.skip(b'[');
        }
        let mut next = self.skip_space()?;
        if self.items > 0 {
            match next {
                Some(b',') => {
                    let comma = self.at;
                    self.skip(b',');
                    next = self.skip_space()?;
                    if next == Some(b']') {
                        return Err(Broken::Syntax(comma, "trailing comma"));
                    }
                }
                Some(b']') => {}
                Some(_) => return Err(Broken::Syntax(self.at, "expected `,` or `]`")),
                None => return Err(Broken::Ended(self.at)),
            }
        }
        match next {
            None => return Err(Broken::Ended(self.at)),
            Some(b']') => {
                self.skip(b']');
                return match self.skip_space()? {
                    None => Ok(None),
                    Some(_) => Err(Broken::Syntax(self.at, "trailing characters")),
                };
            }
            Some(_) => {}
        }
        let start = self.at;
        self.items += 1;
        self.take(item)?;
        Ok(Some(start))
    }

    /// Reads one item: up to its closing bracket, or up to a comma for a bare value.
    fn take(&mut self, item: &mut Vec<u8>) -> Result<(), Broken> {
        item.clear();
        let (mut depth, mut deepest) = (0usize, 0);
        let (mut quoted, mut escaped) = (false, false);
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok([]) if deepest > DEEPEST => return Err(Broken::TooDeep(self.at)),
                Ok([]) => return Err(Broken::Ended(self.at)),
                Ok(buffer) => buffer,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Broken::Io(error)),
            };
            let mut at = self.at;
            let (mut end, mut done) = (buffer.len(), false);
            for (index, &byte) in buffer.iter().enumerate() {
                if !quoted && depth == 0 && (byte == b',' || byte == b']') {
                    (end, done) = (index, true);
                    break;
                }
                at = after(at, byte);
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    _ if quoted => {}
                    b'{' | b'[' => {
                        depth += 1;
                        deepest = deepest.max(depth);
                    }
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                let is_whole = !quoted && depth == 0 && matches!(byte, b'}' | b']' | b'"');
                if is_whole {
                    (end, done) = (index + 1, true);
                    break;
                }
            }
            if item.len() + end > self.limit {
                return Err(Broken::TooLong);
            }
            item.extend_from_slice(&buffer[..end]);
            self.reader.consume(end);
            self.at = at;
            if done {
                return Ok(());
            }
        }
    }
}

/// Returns whether an invalid item may have swallowed others. After an extra quote, text and structure are
/// swapped up to the next such quote. Some "string" then contains a line break, or nothing but the
/// punctuation between strings.
pub(super) fn may_hold_others(item: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    let mut start = 0;
    for (at, &byte) in item.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if quoted => {
                let text = &item[start..at];
                let punctuation = |byte: &u8| b",:{}[] \t\r\n".contains(byte);
                let between = text.iter().any(|byte| b",:".contains(byte));
                if text.contains(&b'\n') || between && text.iter().all(punctuation) {
                    return true;
                }
                quoted = false;
            }
            b'"' => (quoted, start) = (true, at + 1),
            _ => {}
        }
    }
    quoted
}

fn after(at: Spot, byte: u8) -> Spot {
    match byte {
        b'\n' => Spot { line: at.line + 1, column: 1 },
        _ => Spot { column: at.column + 1, ..at },
    }
}
