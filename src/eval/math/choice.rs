//! The letter of an option in an answer to a multiple-choice problem.

/// The letter of a choice, by the first of these that there is: the one behind "answer is"; one that the
/// answer begins with (`(C) Paris`, `B, because`), unless it writes the options out again; the last one in
/// brackets; the last one on a line of its own; the only one that labels lines; the last one that stands
/// alone and is no word.
pub(super) fn choice(text: &str, letters: &[char]) -> Option<char> {
    const PHRASES: [&str; 9] = [
        "answer is",
        "answer:",
        "choice is",
        "option is",
        "i choose",
        "\\boxed{",
        "\\fbox{",
        "答案是",
        "答案：",
    ];
    let lower = text.to_ascii_lowercase();
    let phrase =
        PHRASES.iter().filter_map(|phrase| Some(lower.rfind(phrase)? + phrase.len())).max();
    let stated = phrase.and_then(|at| {
        let (letter, rest) = leading_letter(&text[at..], letters)?;
        (!is_word(&text[..at], letter, rest)).then_some(letter)
    });
    let labels: Vec<Label> = text.lines().filter_map(|line| Label::of(line, letters)).collect();
    let restated = matches!(&labels[..], [a, b, ..] if a.letter == 'A' && b.letter == 'B');
    let begins = text.lines().find(|line| !line.trim().is_empty()).filter(|_| !restated);
    let last = |counts: &dyn Fn(&str, char, &str) -> bool| {
        let mut places = text.char_indices().rev().filter(|(_, letter)| letters.contains(letter));
        let found = places
            .find(|(at, letter)| counts(&text[..*at], *letter, &text[at + letter.len_utf8()..]));
        found.map(|(_, letter)| letter)
    };
    let alone = |before: &str| !before.ends_with(|c: char| c.is_ascii_alphanumeric());
    // "P(A)" is no bracket of a letter.
    let bracketed = |before: &str, rest: &str| {
        before.strip_suffix('(').is_some_and(alone) && rest.starts_with(')')
    };
    let only = |labels: &[Label]| {
        let first = labels.first()?.letter;
        labels.iter().all(|label| label.letter == first).then_some(first)
    };
    stated
        .or_else(|| begins.and_then(|line| beginning(line, letters)))
        .or_else(|| last(&|before, _, rest| bracketed(before, rest)))
        .or_else(|| labels.iter().rev().find(|label| label.is_all).map(|label| label.letter))
        .or_else(|| only(&labels))
        .or_else(|| {
            last(&|before, letter, rest| {
                alone(before) && is_whole(rest) && !is_word(before, letter, rest)
            })
        })
}

/// A letter that labels a line: `B.`, `(B) twelve`, `**C**`.
struct Label {
    letter: char,
    /// Whether the line has nothing else.
    is_all: bool,
}

impl Label {
    /// A line may begin with "A train" or "I think": a label has a mark behind it, or nothing. "I." counts
    /// sections. Chinese has neither word and puts no space.
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

/// The letter that an answer begins with: as a label, or before a reason (`B, because`, `B - Paris`,
/// `B is correct`).
fn beginning(line: &str, letters: &[char]) -> Option<char> {
    if let Some(label) = Label::of(line, letters) {
        return Some(label.letter);
    }
    let (letter, rest) = leading_letter(line, letters)?;
    let rest = unwrapped(rest);
    // "A, B and C are points", "A - B".
    let goes_on = |rest: &str| {
        let rest = rest.trim_start();
        rest.split(|c: char| !c.is_alphabetic()).next().is_some_and(|word| word.chars().count() > 1)
    };
    let parted =
        [",", " -", " –", " —"].iter().any(|mark| rest.strip_prefix(mark).is_some_and(goes_on));
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

/// What follows a letter and the wrappers around it.
fn unwrapped(rest: &str) -> &str {
    rest.trim_start_matches(['*', '}', '$', '"'])
}

/// The letter at the start of a text, behind brackets and wrappers at most, and what follows it.
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

/// Whether a letter that this follows is not the first of a word, as in "Bob" and "I'm".
fn is_whole(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "'’".contains(c))
}

/// Whether a letter is an English word: the pronoun, or the article at the start of a sentence.
/// Neither comes before "is", "because" or "since".
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
