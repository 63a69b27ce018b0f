//! The letter of an option in an answer to a multiple-choice problem.

use super::notes::joiner;
use super::phrases::statements;

/// Returns the letter of a choice, from the first of these that exists: the letter after "answer is"; the
/// letter at the start of the answer (`(C) Paris`, `B, because`), unless the answer repeats the options; the
/// last letter in brackets; the last letter on its own line; the only letter that labels lines; the last
/// letter that stands alone and is not a word. Letters that the answer rules out ("not A", "A is wrong") do
/// not count, and an answer that states two letters has none.
pub(super) fn choice(text: &str, letters: &[char]) -> Option<char> {
    let labels: Vec<Label> = text.lines().filter_map(|line| Label::of(line, letters)).collect();
    let restated = matches!(&labels[..], [a, b, ..] if a.letter == 'A' && b.letter == 'B');
    match stated(text, letters, restated) {
        Stated::One(letter) => return Some(letter),
        Stated::Several => return None,
        Stated::None => {}
    }
    // A single lower-case letter.
    const SHORT: usize = 16;
    if text.len() <= SHORT
        && let Some((letter, rest)) = small_letter(text, letters)
        && !rest.contains(char::is_alphanumeric)
    {
        return Some(letter);
    }
    let begins = text.lines().find(|line| !line.trim().is_empty()).filter(|_| !restated);
    let last = |counts: &dyn Fn(&str, char, &str) -> bool| {
        const MOST: usize = 256;
        let places = text.char_indices().rev().filter(|(_, letter)| letters.contains(letter));
        let found = places.take(MOST).find(|(at, letter)| {
            let (before, rest) = (&text[..*at], &text[at + letter.len_utf8()..]);
            counts(before, *letter, rest) && !ruled_out(before, rest)
        });
        found.map(|(_, letter)| letter)
    };
    let alone = |before: &str| !before.ends_with(|c: char| c.is_ascii_alphanumeric());
    // "P(A)" is not a letter in brackets.
    let bracketed = |before: &str, rest: &str| {
        before.strip_suffix('(').is_some_and(alone) && rest.starts_with(')')
    };
    let only = |labels: &[Label]| {
        let first = labels.first()?.letter;
        labels.iter().all(|label| label.letter == first).then_some(first)
    };
    let correct = |_: &str, _: char, rest: &str| {
        const VERDICTS: [&str; 8] = [
            "is correct",
            "is right",
            "is the correct",
            "is the right",
            "is the answer",
            "is the best",
            "must be correct",
            "是正确",
        ];
        let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || ")]}*$\"".contains(c));
        VERDICTS.iter().any(|verdict| rest.starts_with(verdict))
    };
    last(&|before, letter, rest| alone(before) && correct(before, letter, rest))
        .or_else(|| begins.and_then(|line| beginning(line, letters)))
        .or_else(|| last(&|before, _, rest| bracketed(before, rest)))
        .or_else(|| labels.iter().rev().find(|label| label.is_all).map(|label| label.letter))
        .or_else(|| only(&labels))
        .or_else(|| {
            let found = last(&|before, letter, rest| {
                alone(before) && is_whole(rest) && !is_word(before, letter, rest)
            });
            found.filter(|letter| !is_second(text, *letter, letters))
        })
}

/// Returns whether the last occurrence of a letter follows another letter and "or" or "and": "either A or B".
fn is_second(text: &str, letter: char, letters: &[char]) -> bool {
    let whole = |at: usize, letter: char| {
        let before = &text[..at];
        !before.ends_with(|c: char| c.is_alphanumeric())
            && is_whole(&text[at + letter.len_utf8()..])
    };
    let mut places = text.rmatch_indices(letter).map(|(at, _)| at);
    let Some(at) = places.find(|at| whole(*at, letter)) else { return false };
    let before = text[..at].trim_end_matches(|c: char| c.is_whitespace() || "([*".contains(c));
    let word = before.rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    if joiner(word).is_none() || word.len() < 2 {
        return false;
    }
    let before = before[..before.len() - word.len()]
        .trim_end_matches(|c: char| c.is_whitespace() || ")]*,".contains(c));
    let first = before.chars().next_back().filter(|first| letters.contains(first));
    first.is_some_and(|first| first != letter && whole(before.len() - first.len_utf8(), first))
}

/// The letter that the phrases of a text state.
enum Stated {
    None,
    One(char),
    Several,
}

/// Returns the letter after the last phrase that states one.
fn stated(text: &str, letters: &[char], restated: bool) -> Stated {
    const PHRASES: [&str; 24] = [
        "must be",
        "has to be",
        "i'd say",
        "i would say",
        "choice is",
        "option is",
        "letter is",
        "choice would be",
        "option would be",
        "i choose",
        "i'd choose",
        "i pick",
        "i select",
        "go with",
        "correct is",
        "one is",
        "choice:",
        "option:",
        "\\boxed{",
        "\\fbox{",
        "选择",
        "选",
        "選",
        "选项",
    ];
    const MOST: usize = 32;
    let lower = text.to_ascii_lowercase();
    let mut places = statements(text);
    for phrase in PHRASES {
        let found = lower.rmatch_indices(phrase).take(MOST).map(|(at, _)| at + phrase.len());
        places.extend(found);
    }
    places.sort_unstable_by(|a, b| b.cmp(a));
    for at in places {
        let (before, behind) = text.split_at(at);
        let behind = without_noun(behind);
        // "Let me look at each option:", and then all of them.
        if restated && behind.trim_start_matches([' ', '*', ':']).starts_with(['\n', '\r']) {
            let line = behind.lines().find(|line| !line.trim_matches([' ', '*', ':']).is_empty());
            let first = line.and_then(|line| Label::of(line, letters));
            if first.is_some_and(|label| label.letter == 'A' && !label.is_all) {
                continue;
            }
        }
        let found = leading_letter(behind, letters)
            .filter(|(letter, rest)| !is_word(before, *letter, rest))
            .or_else(|| small_letter(behind, letters));
        let Some((letter, rest)) = found.filter(|(_, rest)| !ruled_out_behind(rest)) else {
            continue;
        };
        return match goes_on_with_letter(rest, letters) {
            true => Stated::Several,
            false => Stated::One(letter),
        };
    }
    Stated::None
}

/// Returns the text after a noun before a letter: "option C" and "la opción C".
fn without_noun(behind: &str) -> &str {
    const NOUNS: [&str; 8] =
        ["option ", "choice ", "letter ", "opción ", "opção ", "l'option ", "вариант ", "Option "];
    let rest = behind.trim_start();
    let rest = ["the ", "la ", "a "].iter().find_map(|a| rest.strip_prefix(a)).unwrap_or(rest);
    NOUNS.iter().find_map(|noun| rest.strip_prefix(noun)).unwrap_or(behind)
}

/// Returns whether another letter follows that is also an answer: "A and C", "A/C".
fn goes_on_with_letter(rest: &str, letters: &[char]) -> bool {
    let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || ")]}*.$\"".contains(c));
    let word = rest.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    let comma = rest.strip_prefix(',').filter(|rest| rest.starts_with(' '));
    let behind = if let Some(behind) = comma {
        behind
    } else if joiner(word).is_some() && word.len() > 1 {
        &rest[word.len()..]
    } else if let Some(behind) = rest.strip_prefix(['/', '&', '、']) {
        behind
    } else {
        return false;
    };
    leading_letter(behind, letters).is_some_and(|(_, rest)| {
        let next = rest.trim_start_matches([')', '}', '*', ' ', '.']);
        !ruled_out_behind(rest) && !next.starts_with(char::is_alphabetic)
    })
}

/// Returns a lower-case letter in brackets, or at the end of its sentence.
fn small_letter<'a>(text: &'a str, letters: &[char]) -> Option<(char, &'a str)> {
    let rest = text.trim_start_matches(|c: char| c.is_whitespace() || "*:{[$\"`".contains(c));
    let rest = ["\\text{", "\\textbf{", "\\mathrm{", "\\boxed{"]
        .iter()
        .fold(rest, |rest, wrapper| rest.strip_prefix(wrapper).unwrap_or(rest));
    let (bracketed, rest) = match rest.strip_prefix('(') {
        Some(inside) => (true, inside),
        None => (false, rest),
    };
    let small = rest.chars().next().filter(|c| c.is_ascii_lowercase())?;
    let letter = small.to_ascii_uppercase();
    let behind = &rest[1..];
    let closed = bracketed && behind.starts_with(')');
    let after = behind.trim_start_matches(['*', '}', '$', '"', '`', ']', ')']);
    let ends = after.is_empty()
        || after.starts_with(['\n', '\r'])
        || after.starts_with(['.', ',', ';', '!'])
            && after[1..].chars().next().is_none_or(char::is_whitespace)
        || behind.starts_with(") ");
    (letters.contains(&letter) && (closed || ends)).then_some((letter, behind))
}

/// Returns whether the answer rules out a letter between these texts.
fn ruled_out(before: &str, rest: &str) -> bool {
    const NEGATIONS: [&str; 16] = [
        "not",
        "cannot",
        "never",
        "neither",
        "nor",
        "except",
        "unlike",
        "eliminate",
        "exclude",
        "reject",
        "nicht",
        "non",
        "pas",
        "не",
        "isn't",
        "can't",
    ];
    const PAIRS: [&str; 4] = ["rather than", "instead of", "rule out", "ruled out"];
    const NATIVE: [&str; 6] = ["不是", "不选", "不能", "排除", "而非", "不可能"];
    const LONGEST: usize = 200;
    let ends = [',', '.', ';', '!', '?', '\n', '，', '。', '；', ':', '：'];
    let start = before.char_indices().rev().take(LONGEST).last().map_or(0, |(at, _)| at);
    let clause = before[start..].rsplit(ends).next().unwrap_or_default();
    let clause = clause.to_lowercase().replace('’', "'");
    // "not B but C" rules out only B.
    let turns = [" but ", " so ", " hence ", " thus ", " leaves ", " leaving "];
    let turn = turns.iter().filter_map(|turn| Some(clause.rfind(turn)? + turn.len())).max();
    let clause = &clause[turn.unwrap_or(0)..];
    let mut words = clause.split(|c: char| !(c.is_alphabetic() || c == '\''));
    let negated = words.any(|word| NEGATIONS.contains(&word) || word.ends_with("n't"));
    negated
        || PAIRS.iter().chain(&NATIVE).any(|phrase| clause.contains(phrase))
        || ruled_out_behind(rest)
}

/// Returns whether the text after a letter rules it out: "A is wrong", "A cannot be".
fn ruled_out_behind(rest: &str) -> bool {
    const VERDICTS: [&str; 14] = [
        "is wrong",
        "is incorrect",
        "is false",
        "is not",
        "isn't",
        "is too",
        "is out",
        "cannot",
        "can't",
        "fails",
        "does not",
        "doesn't",
        "would need",
        "are wrong",
    ];
    const NATIVE: [&str; 7] = ["不对", "不正确", "错", "是错", "不是", "不符", "ではありません"];
    let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || ")]}*$\".".contains(c));
    VERDICTS.iter().chain(&NATIVE).any(|verdict| rest.starts_with(verdict))
}

/// A letter that labels a line: `B.`, `(B) twelve`, `**C**`.
struct Label {
    letter: char,
    /// Whether the line contains nothing else.
    is_all: bool,
}

impl Label {
    /// Parses a label. A line may begin with "A train" or "I think", so a label needs a mark or nothing after
    /// it. "I." numbers sections. Chinese has neither word and uses no spaces.
    fn of(line: &str, letters: &[char]) -> Option<Self> {
        let (letter, rest) = leading_letter(line, letters)?;
        let rest = unwrapped(rest);
        let marked = rest.starts_with([')', ']', '）'])
            || letter != 'I' && rest.starts_with(['.', ':', '。', '：', '、'])
            || rest.starts_with(|c: char| ('\u{4e00}'..='\u{9fff}').contains(&c));
        let is_all = rest.trim_start_matches([')', ']', '.']).trim().is_empty();
        (marked || is_all).then_some(Self { letter, is_all })
    }
}

/// Returns the letter at the start of an answer: a label, or before a reason (`B, because`, `B - Paris`,
/// `B is correct`).
fn beginning(line: &str, letters: &[char]) -> Option<char> {
    if let Some(label) = Label::of(line, letters) {
        return (!line_rules_out(line, letters)).then_some(label.letter);
    }
    let (letter, rest) = leading_letter(line, letters)?;
    let rest = unwrapped(rest);
    // "A, B and C are points", "A - B".
    let goes_on = |rest: &str| {
        let rest = rest.trim_start();
        rest.split(|c: char| !c.is_alphabetic()).next().is_some_and(|word| word.chars().count() > 1)
    };
    let parted = [",", "،", "，", " -", " –", " —"]
        .iter()
        .any(|mark| rest.strip_prefix(mark).is_some_and(goes_on));
    const VERDICTS: [&str; 8] = [
        "because",
        "since",
        "is correct",
        "is right",
        "is true",
        "is the correct",
        "is the right",
        "is the answer",
    ];
    let rest = rest.trim_start();
    (parted || VERDICTS.iter().any(|verdict| rest.starts_with(verdict))).then_some(letter)
}

fn line_rules_out(line: &str, letters: &[char]) -> bool {
    leading_letter(line, letters).is_some_and(|(_, rest)| ruled_out_behind(rest))
}

/// Returns the text after a letter and the wrappers around it.
fn unwrapped(rest: &str) -> &str {
    rest.trim_start_matches(['*', '}', '$', '"'])
}

/// Returns the letter at the start of a text, after brackets and wrappers at most, and the rest.
fn leading_letter<'a>(text: &'a str, letters: &[char]) -> Option<(char, &'a str)> {
    let rest = text.trim_start_matches(|c: char| c.is_whitespace() || "*:({[$\"".contains(c));
    let rest = ["\\text{", "\\textbf{", "\\mathrm{", "\\boxed{"]
        .iter()
        .fold(rest, |rest, wrapper| rest.strip_prefix(wrapper).unwrap_or(rest))
        .trim_start_matches(['(', ' ']);
    let letter = rest.chars().next().filter(|c| letters.contains(c))?;
    let behind = &rest[letter.len_utf8()..];
    is_whole(behind).then_some((letter, behind))
}

/// Returns whether a letter before this text is not the start of a word, such as "Bob" and "I'm".
fn is_whole(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "'’".contains(c))
}

/// Returns whether a letter is an English word: the pronoun "I", or the article "A" at the start of a
/// sentence. Neither comes before "is", "because", or "since".
fn is_word(before: &str, letter: char, rest: &str) -> bool {
    let starts_sentence = || {
        let before = before.trim_end_matches([' ', '\t', '*', '_', '#', '>', '-', '"', '“']);
        before.is_empty() || before.ends_with(['.', '!', '?', '\n'])
    };
    let next = rest.trim_start_matches(' ');
    let word = next.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    // "A train", "A 45-year-old", "A $k$-coloring".
    let goes_on = next.len() < rest.len()
        && next.starts_with(|c: char| c.is_lowercase() || c.is_ascii_digit() || "$\\".contains(c))
        && !["is", "because", "since"].contains(&word);
    goes_on && (letter == 'I' || letter == 'A' && starts_sentence())
}
