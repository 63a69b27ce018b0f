//! Human-readable numbers, tables, and paragraphs, formatted the same way everywhere.
//!
//! [`duration()`] and [`bytes()`] format amounts, [`Table`] formats tables as text and Markdown, and
//! [`wrapped`] breaks paragraphs.
//!
//! ```
//! use mixdistill::text::{Table, bytes, duration};
//!
//! let mut table = Table::new(["step", "time", "memory"]);
//! table.row(["100".to_owned(), duration(89.0), bytes(1.46 * 1024f64.powi(3))]);
//! assert_eq!(table.to_text(80), "step      time    memory\n100   1:29 min  1.46 GiB");
//! ```

mod bytes;
mod duration;
mod table;

pub use bytes::bytes;
pub use duration::duration;
pub use table::Table;
pub(crate) use table::markdown_escaped;

use unicode_width::UnicodeWidthChar;

/// Default line width of tables and paragraphs, if the terminal's width is unknown.
pub const DISPLAY_WIDTH: usize = 100;

/// Returns the number of terminal columns of a text. Control characters have no width.
pub fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Returns the bytes as hexadecimal digits.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the number of terminal columns of a character.
pub(crate) fn columns_of(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// Returns the text unchanged, or its first and last characters with the number of characters left out
/// between them.
///
/// ```
/// use mixdistill::text::with_middle_left_out;
/// assert_eq!(with_middle_left_out("0123456789", [3, 2]), "012 ... 5 characters left out ... 89");
/// assert_eq!(with_middle_left_out("01234", [3, 2]), "01234");
/// ```
pub fn with_middle_left_out(text: &str, [first, last]: [usize; 2]) -> String {
    let count = text.chars().count();
    let Some(between) = count.checked_sub(first.saturating_add(last)).filter(|n| *n > 0) else {
        return text.to_owned();
    };
    let head: String = text.chars().take(first).collect();
    let tail: String = text.chars().skip(count - last).collect();
    format!("{head} ... {between} characters left out ... {tail}")
}

/// Returns the text unchanged, or, if it is wider than `room`, its beginning and end, since names often
/// differ in one of the two. `width` gives the width of a character.
pub(crate) fn shortened(text: &str, room: f64, width: impl Fn(char) -> f64) -> String {
    if text.chars().map(&width).sum::<f64>() <= room {
        return text.to_owned();
    }
    let (mut head, mut tail) = (String::new(), vec![]);
    let mut left = room - width('…');
    let mut characters = text.chars();
    for at_head in [true, false].into_iter().cycle() {
        let next = if at_head { characters.next() } else { characters.next_back() };
        let Some(c) = next else { break };
        left -= width(c);
        if left < 0.0 {
            break;
        }
        if at_head { head.push(c) } else { tail.push(c) }
    }
    head.push('…');
    head.extend(tail.into_iter().rev());
    head
}

/// Wraps a paragraph at spaces into lines of at most `width` columns. Every line but the first is indented by
/// two spaces. A word longer than a line is kept whole, so that paths and addresses remain usable.
///
/// ```
/// let text = mixdistill::text::wrapped("long: 12 rows that cannot be used", 20);
/// assert_eq!(text, "long: 12 rows that\n  cannot be used");
/// ```
pub fn wrapped(paragraph: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for word in paragraph.split_whitespace() {
        let needed = columns(word);
        match used {
            0 => {}
            _ if used + 1 + needed <= width => {
                out.push(' ');
                used += 1;
            }
            _ => {
                out.push_str("\n  ");
                used = 2;
            }
        }
        out.push_str(word);
        used += needed;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_parted_between_words() {
        assert_eq!(wrapped("", 10), "");
        assert_eq!(wrapped("  one   two ", 10), "one two");
        assert_eq!(wrapped("one two three", 7), "one two\n  three");
        // A word that is too long is kept whole, on its own line.
        assert_eq!(wrapped("a /a/very/long/path b", 8), "a\n  /a/very/long/path\n  b");
        // Characters with a width of two columns.
        assert_eq!(wrapped("答案 答案", 8), "答案\n  答案");
        for width in 0..40 {
            let text = wrapped("what became of every record and of every problem", width);
            let fits = |line: &str| columns(line) <= width.max(9);
            assert!(text.lines().all(fits), "{width}: {text}");
        }
    }

    #[test]
    fn names_are_shortened_in_their_middle() {
        let cut = |text: &str, room: usize| shortened(text, room as f64, |c| columns_of(c) as f64);
        assert_eq!(cut("a long name", 11), "a long name");
        assert_eq!(cut("a long name", 8), "a lo…ame");
        assert_eq!(cut("a long name", 1), "…");
        assert_eq!(cut("答案答案", 5), "答…案");
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        assert_eq!(["", "abc", "é", "答案", "e\u{301}"].map(columns), [0, 3, 1, 4, 1]);
    }
}
