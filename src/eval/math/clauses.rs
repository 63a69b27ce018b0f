//! The parts of a sentence that states an answer: words before the value that can be dropped, and words after
//! it, which are a reason or add another value, a negation, or a condition.

use super::extract::is_answer;
use super::formulas::formulas;
use super::notes::{compares_at_end, is_connective, tells_natively};
use super::numerals::leading_number;
use super::statement::{WRAPPERS, answer_in, is_value};
use super::words::plain_word;

/// Returns whether a comparison or a negation comes right before a value: "at least 18", "not 18".
pub(super) fn compares(clause: &str) -> bool {
    let Some(at) = clause.find(|c: char| c.is_ascii_digit() || "$\\".contains(c)) else {
        return false;
    };
    let before = clause[..at].to_lowercase();
    let before = before.trim_end_matches(|c: char| !c.is_alphabetic());
    compares_at_end(before)
}

/// Returns the text after a label at the start of a sentence: `Total: 18`.
pub(super) fn without_label(sentence: &str) -> &str {
    let Some((label, value)) = sentence.split_once(':') else { return sentence };
    let label = label.trim_matches(WRAPPERS);
    let words = label.chars().all(|c| c.is_alphabetic() || c == ' ')
        && label.split(' ').any(|word| word.chars().count() > 2);
    let value = value.trim_start_matches(|c: char| c.is_whitespace() || WRAPPERS.contains(&c));
    let begins = || leading_value(value).is_some() || is_answer(value) && is_value(value);
    if words && begins() { value } else { sentence }
}

/// Returns the answer that a sentence states in words: "yes, it is", "negative 5", "not 4 but 5".
pub(super) fn in_words(sentence: &str) -> Option<String> {
    const VERDICTS: [&str; 8] = ["yes", "no", "true", "false", "ja", "nein", "oui", "да"];
    let begins = |text: &str| text.starts_with(|c: char| c.is_ascii_digit() || "$\\".contains(c));
    if let Some((word, behind)) = sentence.split_once(", ")
        && VERDICTS.contains(&word.to_lowercase().as_str())
        && !["if", "but", "unless", "when", "or", "only"].iter().any(|c| behind.starts_with(c))
        && !begins(behind)
    {
        return Some(word.to_owned());
    }
    let negative = ["negative ", "minus "].iter().find_map(|sign| sentence.strip_prefix(sign));
    if let Some(value) = negative.filter(|value| value.starts_with(|c: char| c.is_ascii_digit())) {
        return answer_in(&format!("-{value}"));
    }
    let (_, right) = sentence.strip_prefix("not ")?.split_once(" but ")?;
    if begins(right) { answer_in(right) } else { None }
}

/// Returns a sentence without the noun for the kind of its value: "the interval (2, 3)".
pub(super) fn without_noun(sentence: &str) -> &str {
    const NOUNS: [&str; 14] = [
        "interval ",
        "point ",
        "set ",
        "pair ",
        "ordered pair ",
        "ordered triple ",
        "triple ",
        "vector ",
        "matrix ",
        "number ",
        "integer ",
        "value ",
        "fraction ",
        "expression ",
    ];
    let bare = ["the ", "a ", "an "].iter().find_map(|article| sentence.strip_prefix(article));
    let Some(bare) = bare else { return sentence };
    let value = NOUNS.iter().find_map(|noun| bare.strip_prefix(noun));
    let begins =
        |text: &&str| text.starts_with(|c: char| c.is_ascii_digit() || "({[$\\-".contains(c));
    value.map(str::trim_start).filter(begins).unwrap_or(sentence)
}

/// Returns a sentence without an adverb at its start: "therefore 5", "simply 5".
pub(super) fn without_adverb(sentence: &str) -> &str {
    const ADVERBS: [&str; 8] =
        ["therefore", "thus", "hence", "then", "simply", "just", "indeed", "clearly"];
    let found = ADVERBS.iter().find_map(|adverb| sentence.strip_prefix(adverb));
    match found.map(|rest| rest.strip_prefix(',').unwrap_or(rest)) {
        Some(rest) if rest.starts_with(' ') => rest.trim_start(),
        _ => sentence,
    }
}

/// Returns a sentence without the words in parentheses after its value: `42 (forty-two)`.
pub(super) fn without_remark(sentence: &str) -> &str {
    let Some((value, remark)) = sentence.rsplit_once(" (") else { return sentence };
    let inside = remark.trim_end_matches([')', '.', '*']);
    let word = |word: &str| word.chars().count() > 2 && word.chars().all(char::is_alphabetic);
    let value = value.trim_end();
    // No product continues after a noun: "64 dollars (40 + 24)".
    let noun = || value.rsplit(' ').next().is_some_and(word) && leading_number(value).is_some();
    let words = inside.len() < remark.len()
        && !inside.contains(['(', '\\', '$'])
        && (inside.split([' ', '-']).any(word) || noun());
    if words && is_reason(&remark_of(inside)) && is_answer(value) { value } else { sentence }
}

fn remark_of(inside: &str) -> String {
    format!("({inside})")
}

/// Returns whether the text after a value continues a calculation with it.
pub(super) fn calculates(behind: &str) -> bool {
    let next = behind.trim_start();
    behind.contains(['=', '≈'])
        || next.starts_with(['+', '*', '/', '×', '·', '÷', '^'])
        || ["times", "plus", "minus", "divided", "multiplied", "out of", "x "]
            .iter()
            .any(|word| next.starts_with(word))
}

/// Words after "and" and "or" that change the value before them.
const MORE: &[&str] = &[
    "more", "less", "fewer", "above", "below", "up", "over", "a", "half", "possibly", "maybe",
    "perhaps", "even", "also", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "ten", "none", "not", "greater", "larger", "smaller", "pi",
];

/// Returns whether the text after a value in a sentence adds another value, a negation, or a condition. Prose
/// continues more freely than a formula: "18 eggs for breakfast" is 18.
pub(super) fn tells(behind: &str) -> bool {
    const TELLING: &[&str] = &[
        "if",
        "unless",
        "when",
        "whenever",
        "except",
        "but",
        "maybe",
        "perhaps",
        "possibly",
        "to",
        "through",
        "not",
        "otherwise",
        "minus",
        "plus",
        "remainder",
        "where",
        "provided",
        "wenn",
        "falls",
        "si",
        "если",
        "squared",
        "cubed",
        "factorial",
        "base",
    ];
    if behind.contains(" at most") || behind.contains(" at least") {
        return true;
    }
    if behind.contains(['<', '>', '=', '≤', '≥', '≠', '±', '&']) || tells_natively(behind) {
        return true;
    }
    const KINDS: [&str; 9] =
        ["even", "odd", "all", "any", "every", "each", "positive", "negative", "integer"];
    let words: Vec<&str> = behind
        .split(|c: char| c.is_whitespace() || ".,;:!?()*\"".contains(c))
        .filter(|word| !word.is_empty())
        .collect();
    for (at, word) in words.iter().copied().enumerate() {
        let next = words.get(at + 1).copied().unwrap_or_default();
        let after_next = words.get(at + 2).copied().unwrap_or_default();
        let of_kind =
            KINDS.contains(&next) && (after_next.len() == 1 || after_next.starts_with('$'));
        let value = next.starts_with(|c: char| c.is_ascii_digit() || "$\\-−(".contains(c));
        let variable = next.chars().count() == 1 && next.chars().all(char::is_alphabetic);
        let joins = is_connective(word) && word.chars().count() > 1;
        if TELLING.contains(&word)
            || joins && (value || variable || MORE.contains(&next))
            || word == "for" && of_kind
            || word == "for" && (variable && next != "a" || next.starts_with(['$', '\\']))
        {
            return true;
        }
    }
    false
}

/// Returns whether the text after "or" repeats the value in another form.
pub(super) fn restates(behind: &str) -> bool {
    const WAYS: [&str; 7] =
        ["about", "approximately", "roughly", "equivalently", "simply", "\\approx", "≈"];
    let behind = behind.trim_start_matches([' ', '$', ',']);
    WAYS.iter().any(|way| behind.starts_with(way))
}

/// Returns whether the text after a value is a reason or a repetition in parentheses.
pub(super) fn is_reason(behind: &str) -> bool {
    const REASONS: &[&str] = &[
        "because",
        "since",
        "as",
        "so",
        "which",
        "due",
        "thus",
        "hence",
        "therefore",
        "giving",
        "car",
        "puisque",
        "parce",
        "denn",
        "weil",
        "da",
        "porque",
        "pois",
        "ya",
        "pues",
        "perché",
        "poiché",
        "want",
        "omdat",
        "так",
        "потому",
        "поскольку",
        "bo",
        "ponieważ",
        "eftersom",
        "fordi",
        "çünkü",
        "vì",
        "karena",
        "kerana",
        "क्योंकि",
        "कारण",
        "কারণ",
        "لأن",
        "لان",
        "зато",
        "です",
        "입니다",
        "이다",
        "である",
        "だ",
        "因为",
        "因為",
        "由于",
    ];
    let next = behind.trim_start();
    if next.is_empty() {
        return true;
    }
    let word: String = next
        .chars()
        .take_while(|c| c.is_alphanumeric() || !c.is_ascii() && !c.is_whitespace())
        .collect();
    if REASONS.iter().any(|r| word == *r || !r.is_ascii() && word.starts_with(r)) {
        return true;
    }
    // "18 (nine times two)".
    let Some(inside) = next.strip_prefix('(') else { return false };
    let inside = inside.split(')').next().unwrap_or_default();
    if ["that is", "i.e.", "because", "since"].iter().any(|reason| inside.starts_with(reason)) {
        return !inside.contains(" or ");
    }
    const DOUBTS: [&str; 9] =
        ["or", "but", "not", "maybe", "perhaps", "if", "and", "possibly", "base"];
    let mut words = inside.split(|c: char| !c.is_alphanumeric());
    !words.any(|word| DOUBTS.contains(&word))
}

/// Returns a sentence up to "and", if a clause rather than a value follows.
pub(super) fn first_clause(sentence: &str) -> &str {
    let ends = sentence.match_indices(" and ").find(|(at, and)| {
        let next = &sentence[at + and.len()..];
        let word = next.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
        let prose = word.chars().count() > 1 && !MORE.contains(&word) && plain_word(word).is_none();
        prose && next.starts_with(char::is_alphabetic) && !next.contains(['=', '$', '\\'])
    });
    ends.map_or(sentence, |(at, _)| &sentence[..at])
}

/// Returns a sentence up to a comma, semicolon, or dash after which words follow that add no other value.
pub(super) fn clause(sentence: &str) -> &str {
    let ends = sentence.match_indices([',', ';', '，', '；', '、', '–', '—', '-']);
    for (at, mark) in ends {
        let behind = &sentence[at + mark.len()..];
        let dash = matches!(mark, "–" | "—" | "-");
        let wide = !mark.is_ascii() && !dash;
        if !(behind.starts_with(' ') || wide) || dash && !sentence[..at].ends_with(' ') {
            continue;
        }
        let next = behind.trim_start();
        let word = next.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
        let conditions = [
            "if",
            "provided",
            "assuming",
            "otherwise",
            "whenever",
            "plus",
            "minus",
            "when",
            "for",
            "where",
            "unless",
            "but",
            "except",
            "wenn",
            "si",
            "maybe",
            "perhaps",
        ];
        let article = word == "a"
            && next.starts_with("a ")
            && next[2..].starts_with(char::is_lowercase)
            && next[2..].chars().take_while(|c| c.is_alphabetic()).count() > 1;
        let prose = word.chars().count() > 1
            || word == "I"
            || article
            || wide && word.chars().next().is_some_and(|c| !c.is_ascii());
        // "18 marbles, 9 of them red".
        let number = leading_number(next).map_or(0, |(_, end)| end);
        if number > 0 && next[number..].starts_with(" of ") {
            return &sentence[..at];
        }
        if prose && !is_connective(word) && !conditions.contains(&word) && !next.contains("= ") {
            return &sentence[..at];
        }
    }
    sentence
}

/// Returns the value at the start of a sentence: a number, or a formula without its delimiters.
pub(super) fn leading_value(sentence: &str) -> Option<(usize, usize)> {
    let formula = formulas(sentence).first().copied().filter(|(start, end)| {
        let before = sentence[..*start].trim_end_matches(['$', '\\', '(', '[']);
        before.trim_matches(WRAPPERS).trim().is_empty() && is_answer(&sentence[*start..*end])
    });
    formula.or_else(|| leading_number(sentence))
}
