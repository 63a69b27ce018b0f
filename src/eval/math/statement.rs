//! Extracts the answer from a sentence that states it: all of the sentence, the value at its start, or its
//! last formula or number. A reason after the value is dropped, but not a second value, a negation, or a
//! condition.

use super::boxes::joins;
use super::clauses::{
    calculates, clause, compares, first_clause, in_words, is_reason, leading_value, restates,
    tells, without_adverb, without_label, without_noun, without_remark,
};
use super::extract::is_answer;
use super::formulas::formulas;
use super::notes::is_connective;
use super::numerals::{last_number, numeral};
use super::phrases::{has_decimal_comma, labeled, statements};
use super::words::plain_word;

/// Marks of emphasis and quotation around an answer.
pub(super) const WRAPPERS: [char; 8] = ['*', '_', '"', '`', '“', '”', '「', '」'];

/// Returns the text after the last phrase that states an answer and has something like an answer after it,
/// else the words after the last phrase.
pub(super) fn phrase(text: &str) -> Option<String> {
    const MOST: usize = 16;
    let places = statements(text);
    let of = |start: &usize| {
        let rest = text[*start..].trim_start_matches(|c: char| {
            c.is_whitespace() || c == ':' || c == '：' || WRAPPERS.contains(&c)
        });
        // "**42**입니다": the marks that close the emphasis are not a power.
        let opened =
            rest.starts_with(|c: char| c != ' ') && text[..text.len() - rest.len()].ends_with("**");
        let closed = rest.lines().next().and_then(|line| line.find("**")).filter(|_| opened);
        let unmarked = closed.map(|at| format!("{} {}", &rest[..at], &rest[at + 2..]));
        let found = stated(unmarked.as_deref().unwrap_or(rest))?;
        Some(if has_decimal_comma(&text[..*start]) { with_point(found) } else { found })
    };
    let mut words = None;
    for found in places.iter().take(MOST).filter_map(of) {
        if is_value(&found) {
            return Some(found);
        }
        words = words.or(Some(found));
    }
    // "I hope the final answer is correct" states no answer.
    words.filter(|words| !is_comment(words))
}

/// Replaces the decimal comma of a single number, with or without a unit, by a point.
pub(super) fn with_point(answer: String) -> String {
    let Some((whole, rest)) = answer.split_once(',') else { return answer };
    let whole_digits = whole.trim_start_matches(['-', '−']);
    let decimals = rest.bytes().take_while(u8::is_ascii_digit).count();
    let number = !whole_digits.is_empty()
        && whole_digits.bytes().all(|b| b.is_ascii_digit())
        && matches!(decimals, 1 | 2)
        && !rest[decimals..].contains(|c: char| c.is_numeric() || c == ',');
    if number { format!("{whole}.{rest}") } else { answer }
}

/// Returns whether an answer is more than words.
pub(super) fn is_value(answer: &str) -> bool {
    answer.contains(|c: char| c.is_numeric() || "\\$={(".contains(c)) || answer.chars().count() == 1
}

fn is_comment(words: &str) -> bool {
    const COMMENTS: [&str; 10] = [
        "correct",
        "right",
        "wrong",
        "incorrect",
        "as follows",
        "below",
        "above",
        "clear",
        "found",
        "given",
    ];
    let words = words.trim().to_ascii_lowercase();
    COMMENTS.iter().any(|comment| words.starts_with(comment))
}

/// Returns the answer at the start of a text: a formula, which may span lines, or its first sentence.
fn stated(rest: &str) -> Option<String> {
    if let Some((first, last)) = formulas(rest).first().copied()
        && rest[..first].trim_end_matches(['$', '\\', '(', '[']).trim().is_empty()
        && (is_answer(&rest[first..last]) || is_latex(&rest[first..last]))
    {
        let behind = rest[last..].trim_start_matches(['$', '\\', ')', ']']).trim_start();
        let next = behind.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let restated = is_connective(next) && restates(&behind[next.len()..]);
        let goes_on = behind.starts_with([',', '$']) || is_connective(next) && !restated;
        let clause = clause(behind);
        let clause = clause.trim_matches(|c: char| c.is_whitespace() || ".*\"。".contains(c));
        let ends = rest[last..]
            .trim_start_matches(['$', '\\', ')', ']', ' ', '*'])
            .starts_with(['.', '。', '!', '\n', '\r']);
        if !goes_on && (ends || restated || clause.is_empty() || is_reason(clause)) {
            return Some(rest[first..last].trim().to_owned());
        }
    }
    let line = rest.lines().next()?;
    // Tags, and the marks that end a turn of a chat.
    let line =
        ["</", "<|", "<｜"].iter().fold(line, |line, mark| line.split(mark).next().unwrap_or(line));
    let end = line
        .match_indices(['.', '。', '．'])
        .find(|(at, stop)| {
            let behind = &line[at + stop.len()..];
            *stop != "." || behind.is_empty() || behind.starts_with([' ', '<', '*'])
        })
        .map_or(line.len(), |(at, _)| at);
    answer_in(line[..end].trim_end_matches(WRAPPERS))
}

/// Returns whether a text between delimiters looks like mathematics, even if it cannot be parsed.
fn is_latex(formula: &str) -> bool {
    formula.contains(['^', '_', '{'])
        || formula.contains('\\')
            && formula.split('\\').skip(1).any(|c| c.starts_with(char::is_alphabetic))
}

/// Returns the answer in a sentence: all of it, the value at its start, or its last formula or number.
pub(super) fn answer_in(sentence: &str) -> Option<String> {
    let sentence = sentence.trim();
    if sentence.is_empty() {
        return None;
    }
    let sentence = without_noun(without_label(without_remark(without_adverb(sentence))));
    if let Some(answer) = in_words(sentence) {
        return Some(answer);
    }
    let up_to_mark = clause(sentence);
    let clause = first_clause(up_to_mark).trim();
    let cut_at_and = clause.len() < up_to_mark.trim().len();
    // "5, he says" can be parsed as a list of 5 and a product of letters.
    let behind = sentence[clause.len()..].strip_prefix(", ").unwrap_or_default();
    let behind = behind.strip_prefix("a ").unwrap_or(behind);
    let word = behind.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    let small = word.chars().count() > 1 && word.chars().all(char::is_lowercase);
    let prose = word == "I" || small && plain_word(word).is_none();
    let cut = (prose || cut_at_and) && is_answer(clause) && is_value(clause);
    if !cut && is_answer(sentence) {
        return Some(sentence.to_owned());
    }
    let letters = |clause: &str| {
        clause.split(|c: char| !c.is_alphabetic()).all(|word| word.chars().count() < 2)
    };
    if is_answer(clause) && (is_value(clause) || letters(clause)) {
        return Some(clause.to_owned());
    }
    // In `-1./3`, the number is part of something that cannot be parsed.
    let mathematics = |(_, end): &(usize, usize)| {
        let mut next = clause[*end..].chars();
        let first = next.next().is_some_and(|c| "./^_(\\{*!".contains(c));
        first && next.next().is_some_and(|c| c.is_alphanumeric() || "{(\\/".contains(c))
    };
    let leading = leading_value(clause)
        .filter(|place| clause[..place.0].ends_with(['$', '(', '[']) || !mathematics(place));
    if let Some((start, end)) = leading {
        let behind = clause[end..].trim_start_matches(['$', '\\', ')', ']']);
        let reason = behind.trim_start_matches(WRAPPERS);
        if !calculates(reason) {
            return Some(match is_reason(reason) || !tells(reason) {
                true => clause[start..end].to_owned(),
                // A second value, a negation, or a condition.
                false => clause.to_owned(),
            });
        }
    }
    if compares(clause) || !sentence.contains(char::is_whitespace) {
        return Some(clause.to_owned());
    }
    Some(last(clause).or_else(|| last(sentence)).unwrap_or_else(|| sentence.to_owned()))
}

/// Maximum number of formulas to examine from the end.
const MOST_FORMULAS: usize = 256;

/// Returns the last formulas that can be parsed and that only "and", "or", and commas separate, or the last
/// number if it comes after them.
pub(super) fn last(text: &str) -> Option<String> {
    let (place, formula) = match last_formula(text) {
        Some((place, formula)) => (place, Some(formula)),
        None => ((0, 0), None),
    };
    let number = last_number(text);
    // A number inside a formula that cannot be parsed is part of the formula.
    if let Some((number, _)) = number
        && number >= place.1
        && let Some((start, end)) = formulas(text).into_iter().find(|(_, end)| number < *end)
        && start <= number
        && is_latex(&text[start..end])
    {
        return Some(text[start..end].trim().to_owned());
    }
    match (formula, number) {
        (Some(_), Some((start, end))) if start >= place.1 => Some(numeral(&text[start..end])),
        (None, Some((start, end))) => Some(numeral(&text[start..end])),
        (formula, _) => formula,
    }
}

/// Returns the last formulas that can be parsed, and their position.
pub(super) fn last_formula(text: &str) -> Option<((usize, usize), String)> {
    let formulas = formulas(text);
    let readable = |(start, end): &(usize, usize)| is_answer(&text[*start..*end]);
    let mut from_end = formulas.iter().rev().take(MOST_FORMULAS);
    let last = *from_end.find(|formula| readable(formula))?;
    let mut joined = vec![last];
    let mut before = last.0;
    for formula in from_end {
        let between = &text[formula.1..before];
        if !(joins(between) && between.contains(char::is_alphabetic)
            || joined.len() > 1 && joins(between))
            || !readable(formula)
        {
            break;
        }
        joined.push(*formula);
        before = formula.0;
    }
    let texts = joined.iter().rev().map(|(start, end)| text[*start..*end].trim());
    Some(((before, last.1), texts.collect::<Vec<_>>().join(", ")))
}

/// Returns the text after the last `####` that something like an answer follows. In Markdown, `####` also
/// starts a heading. A heading is not an answer unless it names the answer or announces one.
pub(super) fn marker(text: &str) -> Option<String> {
    const MOST: usize = 64;
    for (at, mark) in text.rmatch_indices("####").take(MOST) {
        let behind = &text[at + mark.len()..];
        if text[..at].ends_with('#') || behind.starts_with('#') {
            continue;
        }
        // The answer may be on the next line: `####\n18`.
        let behind = behind.trim_start();
        let line = behind.lines().next().unwrap_or_default();
        let is_last = behind[line.len()..].trim().is_empty();
        if let Some(answer) = of_heading(line.trim(), &behind[line.len()..], is_last) {
            return Some(answer);
        }
    }
    None
}

fn of_heading(line: &str, below: &str, is_last: bool) -> Option<String> {
    let line = line.trim_matches(|c: char| WRAPPERS.contains(&c) || c.is_whitespace());
    if let Some(labeled) = labeled(line) {
        if !labeled.is_empty() {
            return answer_in(labeled.trim_matches(WRAPPERS).trim_end_matches('.'));
        }
        let next = below.lines().map(str::trim).find(|line| !line.is_empty())?;
        let next = next.trim_matches(|c: char| WRAPPERS.contains(&c));
        let begins = leading_value(next).is_some() || is_answer(next);
        return if begins { answer_in(next.trim_end_matches('.')) } else { None };
    }
    if is_numbered(line) && !is_last || is_heading(line) {
        return None;
    }
    let words = !is_value(line) && line.chars().count() > 1;
    if leading_value(line).is_some() || is_answer(line) && !words || is_last && !line.is_empty() {
        return answer_in(line.trim_end_matches('.'));
    }
    None
}

/// Returns whether a heading is numbered: `2. Count`, `3) Add`, `1: Setup`.
fn is_numbered(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let marked = rest.len() < line.len()
        && (rest.starts_with([')', ':', ' ', '-', '–'])
            || line[..line.len() - rest.len()].ends_with('.'));
    let mark = line[..line.len() - rest.len()].ends_with('.') || rest.starts_with([')', ':']);
    let next = rest.trim_start_matches([')', ':', ' ', '-', '–', '*']);
    marked && mark && next.starts_with(char::is_alphabetic)
}

/// Returns whether a line is a heading by its first word.
fn is_heading(line: &str) -> bool {
    const HEADINGS: [&str; 24] = [
        "step",
        "part",
        "case",
        "section",
        "method",
        "approach",
        "question",
        "problem",
        "example",
        "chapter",
        "note",
        "notes",
        "summary",
        "explanation",
        "analysis",
        "verification",
        "check",
        "calculation",
        "calculations",
        "stage",
        "phase",
        "schritt",
        "étape",
        "paso",
    ];
    let word = line.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_lowercase();
    HEADINGS.contains(&word.as_str())
}
