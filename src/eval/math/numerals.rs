//! Numbers in prose. The end of a number is less certain there than in a formula: commas, points,
//! apostrophes, and spaces group thousands, and digits inside a word or a code are not a number. The lexer
//! parses what is found, like any other answer.

/// Thousands separators in prose. A plain space can also be one; see [`end`].
pub(super) const GROUPS: [&str; 8] =
    [",", "'", "’", "\u{a0}", "\u{202f}", "\u{2009}", "\\,", "{,}"];
/// Currency symbols.
const CURRENCIES: [char; 6] = ['$', '€', '£', '¥', '₹', '₽'];
/// Names of currencies that come right before the amount.
const CODES: [&str; 10] = ["usd", "eur", "gbp", "inr", "rs", "cad", "aud", "us", "chf", "rmb"];

/// Returns the position of the last number.
pub(super) fn last_number(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut found = None;
    let mut at = 0;
    while at < bytes.len() {
        if !begins(text, at) {
            at += 1;
            continue;
        }
        let end = end(text, at);
        if !within_word(text, at) {
            let (start, end) = extended(text, at, end);
            let shown = text[start..end].trim_start_matches(CURRENCIES);
            found = Some((end - shown.len(), end));
            at = end;
        } else {
            at = end;
        }
    }
    found
}

/// Returns the position of a number at the start of a text, after a sign and a currency at most. Its sign and
/// its percent sign are part of it.
pub(super) fn leading_number(text: &str) -> Option<(usize, usize)> {
    const MOST: usize = 6;
    let (mut at, mut sign) = (0, None);
    for _ in 0..MOST {
        if begins(text, at) {
            let mut end = fraction_end(text, end(text, at));
            end += usize::from(text[end..].starts_with('%'));
            return Some((sign.unwrap_or(at), end));
        }
        let first = text[at..].chars().next()?;
        match first {
            '-' | '−' | '+' if sign.is_none() => sign = Some(at),
            '\\' if !text[at + 1..].starts_with('$') => return None,
            '\\' | ' ' | '~' => {}
            _ if CURRENCIES.contains(&first) => {}
            _ => return None,
        }
        at += first.len_utf8();
    }
    None
}

/// Returns a number in prose. Replaces a decimal comma with a point, since a single number is not a list.
pub(super) fn numeral(number: &str) -> String {
    match number.split_once(',') {
        Some((whole, decimals))
            if whole.bytes().any(|b| b.is_ascii_digit())
                && !whole.contains('.')
                && decimals.len() != 3
                && decimals.trim_end_matches('%').bytes().all(|b| b.is_ascii_digit()) =>
        {
            format!("{whole}.{decimals}")
        }
        _ => number.to_owned(),
    }
}

fn digit(text: &str, at: usize) -> bool {
    text.as_bytes().get(at).is_some_and(u8::is_ascii_digit)
}

/// Returns whether a number begins at a byte.
fn begins(text: &str, at: usize) -> bool {
    let point = || text.as_bytes().get(at) == Some(&b'.') && digit(text, at + 1);
    // In "No.7", the point ends a word.
    digit(text, at) || point() && !text[..at].ends_with(char::is_alphanumeric)
}

fn digits_end(text: &str, mut at: usize) -> usize {
    while digit(text, at) {
        at += 1;
    }
    at
}

/// Returns whether exactly three digits start at a byte.
fn three(text: &str, at: usize) -> bool {
    digits_end(text, at) == at + 3
}

/// Returns the end of the number that begins at a byte, with its groups and decimals.
fn end(text: &str, start: usize) -> usize {
    let mut end = digits_end(text, start);
    let few = (1..=3).contains(&(end - start)) && !text[start..end].starts_with('0');
    if few {
        let rest = &text[end..];
        let mut separator = GROUPS.into_iter().find(|s| rest.starts_with(s));
        // A plain space groups thousands unless the digits before it are the end of a longer series of
        // numbers: "1 000", but not "2 300 400" items of "1 2 300".
        let before = text[..start].trim_end_matches(' ');
        let in_row = before.len() < start && before.ends_with(|c: char| c.is_ascii_digit());
        if separator.is_none() && rest.starts_with(' ') && !in_row {
            separator = Some(" ");
        }
        // `1.234.567` and `1.234,5`.
        if rest.starts_with('.') && three(text, end + 1) {
            let (mut groups, mut last) = (0, end);
            while text[last..].starts_with('.') && three(text, last + 1) {
                (groups, last) = (groups + 1, last + 4);
            }
            let decimals = text[last..].starts_with(',') && digit(text, last + 1);
            if groups > 1 && !text[last..].starts_with('.') || decimals {
                return if decimals { digits_end(text, last + 1) } else { last };
            }
        }
        if let Some(separator) = separator {
            while text[end..].starts_with(separator) && three(text, end + separator.len()) {
                end += separator.len() + 3;
            }
        }
    }
    if text[end..].starts_with(['.', ',']) && digit(text, end + 1) {
        end = digits_end(text, end + 1);
    }
    end
}

/// Returns the end of a number and its denominator, if any.
fn fraction_end(text: &str, number_end: usize) -> usize {
    const VULGAR: [char; 5] = ['½', '¼', '¾', '⅓', '⅔'];
    if let Some(sign) = text[number_end..].chars().next().filter(|c| VULGAR.contains(c)) {
        return number_end + sign.len_utf8();
    }
    // The fraction of a mixed number: `3 1/2`.
    if text[number_end..].starts_with(' ') && digit(text, number_end + 1) {
        let over = digits_end(text, number_end + 1);
        let under = digits_end(text, (over + 1).min(text.len()));
        let (a, b) = (&text[number_end + 1..over], text.get(over + 1..under).unwrap_or_default());
        let proper = a.len() <= 3 && b.len() <= 3 && (b.len(), b) > (a.len(), a);
        if text[over..].starts_with('/') && proper && !a.starts_with('0') {
            return under;
        }
    }
    match text.as_bytes().get(number_end) {
        Some(b'/') if digit(text, number_end + 1) => end(text, number_end + 1),
        _ => number_end,
    }
}

/// Returns whether digits at a byte belong to a word or a code: `AZYUK2A`. They do not after the name of a
/// currency or a command, or in scripts without spaces between words.
fn within_word(text: &str, at: usize) -> bool {
    let before = &text[..at];
    let spaced =
        |c: char| c.is_alphabetic() && (c.is_ascii() || ('\u{c0}'..='\u{52f}').contains(&c));
    if !before.ends_with(spaced) {
        return false;
    }
    let outside = before.trim_end_matches(spaced);
    let word = &before[outside.len()..];
    let command = outside.ends_with('\\');
    !(command || CODES.iter().any(|code| word.eq_ignore_ascii_case(code)))
}

/// Extends a number by its denominator, its `\frac`, its sign, and its percent sign.
fn extended(text: &str, mut start: usize, number_end: usize) -> (usize, usize) {
    let mut finish = fraction_end(text, number_end);
    // `\frac{2}{5}` outside of any formula.
    if let Some(command) = text[..start].strip_suffix("frac{") {
        let command = command
            .strip_suffix("\\d")
            .or(command.strip_suffix("\\t"))
            .or(command.strip_suffix('\\'));
        let under = finish + 2;
        if let Some(command) = command
            && text[finish..].starts_with("}{")
            && digit(text, under)
            && text.as_bytes().get(end(text, under)) == Some(&b'}')
        {
            start = command.len();
            finish = end(text, under) + 1;
        }
    }
    if text[finish..].starts_with('%') {
        finish += 1;
    }
    // A sign, but not a minus between two numbers.
    for _ in 0..2 {
        let head = &text[..start];
        let signs = |c: &char| "-+−".contains(*c) || CURRENCIES.contains(c);
        if let Some(sign) = head.chars().next_back().filter(signs) {
            let before = head[..head.len() - sign.len_utf8()].trim_end().chars().next_back();
            let gap = &head[head.trim_end_matches(sign).trim_end().len()..];
            // At the start of a line, it is not an operator.
            let begins_line = gap.contains('\n') && !text[start..].starts_with(' ');
            let operator =
                !begins_line && before.is_some_and(|c| c.is_alphanumeric() || c == ')' || c == '}');
            // "-5" after a word and a space has a sign; "3 - 5" and "x-5" have an operator.
            let parted = head[..head.len() - sign.len_utf8()].ends_with(' ')
                && !text[start..].starts_with(' ')
                && before.is_some_and(|c| c.is_alphabetic());
            if CURRENCIES.contains(&sign) || !operator || parted && signed_word(head) {
                start -= sign.len_utf8();
            }
        }
    }
    (start, finish)
}

/// Returns whether the word before a sign is prose rather than a variable: "is -5", but not "x -5".
fn signed_word(head: &str) -> bool {
    let before = head.trim_end_matches(|c: char| !c.is_alphanumeric());
    let letters = before.chars().rev().take_while(|c| c.is_alphabetic()).count();
    letters > 1
}
