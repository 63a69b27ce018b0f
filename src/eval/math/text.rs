//! Answers that are words or the letter of a choice, and the units behind values.

use super::words;

/// The words of an answer without the commands that wrap them; `None` where there is anything else.
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

/// Whether an answer is nothing but words: one of at least three letters that means nothing in
/// mathematics, or several in `\text{}`.
pub fn only_words(answer: &str) -> bool {
    let Some(words) = plain_words(answer) else { return false };
    let prose = |word: &String| word.chars().count() > 2 && words::plain_word(word).is_none();
    match words.as_slice() {
        [] => false,
        [word] => prose(word) || word.chars().count() > 1 && answer.contains("\\text"),
        several => {
            several.iter().any(prose)
                && several
                    .iter()
                    .all(|word| words::plain_word(word).is_none() || word == "and" || word == "or")
                && !answer.contains(',')
        }
    }
}

/// Whether two answers are the same words.
pub fn same_words(a: &str, b: &str) -> bool {
    let (a, b) = (plain_words(a), plain_words(b));
    a.is_some() && a == b
}

/// The letter of an answer that is nothing but a letter: `B`, `(B)`, `\text{(B)}`.
pub fn lone_letter(answer: &str) -> Option<char> {
    let (letter, rest) = leading_letter(answer)?;
    rest.trim_matches(|c: char| c.is_whitespace() || ").}$:".contains(c))
        .is_empty()
        .then_some(letter)
}

/// The letter that labels an answer: that of `(B) 12` or `B. twelve`.
pub fn labelled(answer: &str) -> Option<char> {
    let (letter, rest) = leading_letter(answer)?;
    let bracketed = rest.starts_with(')') || rest.starts_with(". ") || rest.starts_with(": ");
    let more = rest.trim_matches(|c: char| c.is_whitespace() || ").}$:".contains(c));
    let formula = more.starts_with(|c: char| "+-*/^=<>_!({[".contains(c));
    (bracketed && !more.is_empty() && !formula).then_some(letter)
}

/// A capital from A to J at the start, behind brackets and wrappers at most, and what follows.
fn leading_letter(answer: &str) -> Option<(char, &str)> {
    let mut rest = answer.trim_start();
    for wrapper in ["\\boxed{", "\\text{", "\\textbf{", "\\mathrm{", "\\mbox{", "(", "$"] {
        rest = rest.strip_prefix(wrapper).unwrap_or(rest);
    }
    let letter = rest.chars().next().filter(|letter| ('A'..='J').contains(letter))?;
    Some((letter, &rest[1..]))
}

/// Whether it is a unit of measurement and no mere note.
pub fn is_unit(unit: &str) -> bool {
    unit.split(' ').all(|word| words::unit(word).is_some() || word.starts_with('^') || word == "/")
}

/// Whether values with these units may be the same: the units are, or one of them is a mere note.
pub fn compatible_units(a: &str, b: &str) -> bool {
    a == b || !is_unit(a) || !is_unit(b)
}
