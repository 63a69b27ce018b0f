//! Answers that are words or the letter of a choice, and the units after values.

use super::hendrycks::{slash_as_fraction, with_braced_fractions, with_braced_roots};
use super::limits::MAX_BYTES;
use super::notes::{adds_nothing, is_connective};
use super::spoken::{essential, symbol};
use super::units::{canonical, opposite};
use super::words;

/// Returns the words of an answer without the commands that wrap them; `None` if there is anything else.
fn plain_words(answer: &str) -> Option<Vec<String>> {
    let wrappers =
        ["text", "mbox", "textbf", "textit", "textnormal", "textrm", "mathrm", "boxed", "fbox"];
    let mut words = vec![];
    let mut rest = answer;
    while let Some(first) = rest.chars().next() {
        if first.is_alphabetic() {
            let end = rest.find(|c: char| !c.is_alphabetic() && c != '\'').unwrap_or(rest.len());
            words.push(rest[..end].to_lowercase());
            rest = &rest[end..];
        } else if let Some(command) = rest.strip_prefix('\\') {
            let end = command.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(command.len());
            if end > 0 && !wrappers.contains(&&command[..end]) {
                return None;
            }
            rest = if end > 0 { &command[end..] } else { command.get(1..).unwrap_or_default() };
        } else if first.is_whitespace() || " {}$.,-~".contains(first) {
            rest = &rest[first.len_utf8()..];
        } else {
            return None;
        }
    }
    Some(words)
}

/// Returns whether an answer consists only of words: one word of at least three letters without a
/// mathematical meaning, or several words in `\text{}`.
pub fn only_words(answer: &str) -> bool {
    let Some(words) = plain_words(answer) else { return false };
    let prose = |word: &String| word.chars().count() > 2 && words::plain_word(word).is_none();
    match words.as_slice() {
        [] => false,
        [word] => prose(word) || word.chars().count() > 1 && answer.contains("\\text"),
        // `x \text{ apples}` is a value and its unit.
        several if several[0].chars().count() == 1 && value_with_note(answer) => false,
        several => {
            several.iter().any(prose)
                && several
                    .iter()
                    .all(|word| words::plain_word(word).is_none() || word == "and" || word == "or")
                && (!answer.contains(',') || several.iter().all(|w| prose(w) || is_connective(w)))
        }
    }
}

/// Returns whether it begins with a single letter outside of `\text{}` and continues in `\text{}`.
fn value_with_note(answer: &str) -> bool {
    let mut characters = answer.trim().trim_start_matches('$').chars();
    characters.next().is_some_and(char::is_alphabetic)
        && ["\\text", "\\mbox", "\\mathrm"]
            .iter()
            .any(|command| characters.as_str().trim_start().starts_with(command))
}

/// Returns whether two answers are the same words: "Alice and Bob" are "Bob and Alice".
pub fn same_words(a: &str, b: &str) -> bool {
    let (Some(words_a), Some(words_b)) = (plain_words(a), plain_words(b)) else { return false };
    let (words_a, words_b) = (essential(&words_a), essential(&words_b));
    words_a == words_b || parts(a).is_some_and(|a| Some(a) == parts(b))
}

/// Returns the parts that commas and connectives join, sorted, with the connective last.
fn parts(answer: &str) -> Option<Vec<String>> {
    let joiner = if answer.contains(" or ") { " or " } else { " and " };
    let words = plain_words(&answer.replace(',', joiner))?;
    let words = essential(&words);
    let joiner = joiner.trim();
    let parts: Vec<&[&str]> =
        words.split(|word| *word == joiner).filter(|part| !part.is_empty()).collect();
    // Words such as "both" and "not" apply to all parts.
    if parts.len() < 2 || parts.iter().any(|part| part.iter().any(|word| !adds_nothing(word))) {
        return None;
    }
    let mut parts: Vec<String> = parts.iter().map(|part| part.join(" ")).collect();
    parts.sort();
    parts.push(joiner.to_owned());
    Some(parts)
}

/// Returns the mathematical form of an answer in words.
pub fn spoken(answer: &str) -> Option<String> {
    const LONGEST: usize = 128;
    if answer.len() > LONGEST || answer.contains(',') {
        return None;
    }
    symbol(&plain_words(answer)?)
}

/// Returns the letter of an answer that is only a letter: `B`, `(B)`, `\text{(B)}`.
pub fn lone_letter(answer: &str) -> Option<char> {
    let (letter, rest) = leading_letter(answer)?;
    rest.trim_matches(|c: char| c.is_whitespace() || ").}$:".contains(c))
        .is_empty()
        .then_some(letter)
}

/// Returns the letter that labels an answer: that of `(B) 12` or `B. twelve`.
pub fn labeled(answer: &str) -> Option<char> {
    let (letter, rest) = leading_letter(answer)?;
    let bracketed = rest.starts_with(')') || rest.starts_with(". ") || rest.starts_with(": ");
    let more = rest.trim_matches(|c: char| c.is_whitespace() || ").}$:".contains(c));
    let formula = more.starts_with(|c: char| "+-*/^=<>_!({[".contains(c));
    // "(B) or (C)" is two letters.
    let first = more.split(|c: char| !c.is_alphabetic()).find(|word| !word.is_empty());
    let another = more.starts_with([',', ';', '/', '&']) || first.is_some_and(is_connective);
    let telling = first.is_some_and(|word| word.eq_ignore_ascii_case("not"));
    (bracketed && !more.is_empty() && !formula && !another && !telling).then_some(letter)
}

/// Returns a capital from A to J at the start, after brackets and wrappers at most, and the rest.
fn leading_letter(answer: &str) -> Option<(char, &str)> {
    let mut rest = answer.trim_start();
    for wrapper in ["\\boxed{", "\\text{", "\\textbf{", "\\mathrm{", "\\mbox{", "(", "$"] {
        rest = rest.strip_prefix(wrapper).unwrap_or(rest);
    }
    let letter = rest.chars().next().filter(|letter| ('A'..='J').contains(letter))?;
    Some((letter, &rest[1..]))
}

/// Returns whether it is a unit of measurement rather than a note.
pub fn is_unit(unit: &str) -> bool {
    canonical(unit).is_some()
}

/// Returns whether it is the half of the day of a time, such as `a.m.`.
pub fn is_time(unit: &str) -> bool {
    matches!(unit, "am" | "pm")
}

/// Returns whether values with these units may be the same: the units are the same, or one of them is only a
/// note.
pub fn compatible_units(a: &str, b: &str) -> bool {
    a == b || !(is_unit(a) && is_unit(b) || opposite(a, b))
}

/// Returns whether two answers have the same text, if one of them cannot be parsed. Uses the rules of
/// Hendrycks et al. about form, but drops only units and nouns.
pub fn same_text(a: &str, b: &str) -> bool {
    a.len().max(b.len()) <= MAX_BYTES && (a.trim() == b.trim() || plain_text(a) == plain_text(b))
}

fn plain_text(answer: &str) -> String {
    let mut text = without_wrappers(without_note(answer.trim()));
    for (from, to) in [
        ("\n", " "),
        ("\\!", ""),
        ("\\,", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("\\qquad", " "),
        ("\\quad", " "),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        (" remainder ", "R"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
        ("$", ""),
        ("\\%", ""),
        ("%", ""),
    ] {
        text = text.replace(from, to);
    }
    // `k = 5` is `5`.
    if let Some((name, value)) = text.split_once('=')
        && !value.contains('=')
        && name.trim().chars().count() == 1
        && name.trim().chars().all(char::is_alphabetic)
    {
        text = value.to_owned();
    }
    let text =
        with_braced_fractions(&without_spaces(&with_bare_scripts(&with_braced_roots(&text))));
    slash_as_fraction(&text).unwrap_or(text)
}

/// Writes `x^{2}` as `x^2`.
fn with_bare_scripts(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['^', '_']) {
        output.push_str(&rest[..at + 1]);
        rest = &rest[at + 1..];
        let mut inside = rest.strip_prefix('{').unwrap_or_default().chars();
        if let (Some(script), Some('}')) = (inside.next(), inside.next())
            && script != '{'
        {
            output.push(script);
            rest = inside.as_str();
        }
    }
    output + rest
}

/// Returns a text without its spaces, except between two digits or two words: `1 2` is not `12`.
fn without_spaces(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut pieces = text.split_whitespace();
    kept.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (last, first) = (kept.chars().next_back(), piece.chars().next());
        let digits = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        let letters = |c: Option<char>| c.is_some_and(char::is_alphabetic);
        if digits(last) && digits(first) || letters(last) && letters(first) {
            kept.push(' ');
        }
        kept.push_str(piece);
    }
    kept
}

/// Removes a unit or a noun in `\text{}` at the end.
fn without_note(text: &str) -> &str {
    let Some((left, right)) = text.rsplit_once("\\text{") else { return text };
    let note = right.trim_end().strip_suffix('}').filter(|note| !note.contains(['{', '}']));
    match note {
        Some(note) if !left.trim().is_empty() && adds_nothing(note) => left.trim_end(),
        _ => text,
    }
}

/// Returns a text in which `\text{}` and similar commands are replaced by their words.
fn without_wrappers(text: &str) -> String {
    const MOST: usize = 64;
    const WRAPPERS: [&str; 8] = [
        "\\text{",
        "\\mbox{",
        "\\textbf{",
        "\\textit{",
        "\\textrm{",
        "\\textnormal{",
        "\\mathrm{",
        "\\hbox{",
    ];
    let mut text = text.to_owned();
    let mut from = 0;
    for _ in 0..MOST {
        let next =
            WRAPPERS.iter().filter_map(|w| Some((from + text[from..].find(w)?, w.len()))).min();
        let Some((at, length)) = next else { break };
        let inside = at + length;
        let mut depth = 1usize;
        let close = text[inside..].char_indices().find(|(_, character)| {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        let Some((close, _)) = close else { break };
        let words = format!(" {} ", &text[inside..inside + close]);
        text.replace_range(at..inside + close + 1, &words);
        from = at;
    }
    text
}
