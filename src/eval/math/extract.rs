//! Finds the final answer in a solution. Each way of stating one is an [`Extractor`] that can be
//! used alone; special is that the weak ways (the last formula, the last number) ask the parser
//! whether what they found is mathematics, and that a box which never closes ends the search: a
//! solution that was cut off states no answer.

use super::choice::choice;
use super::lexer::Reading;
use super::limits::MAX_BYTES;
use super::parser::parse;

/// A way of stating the final answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extractor {
    /// The last `\boxed{}` or `\fbox{}`, with nested braces. Boxes that only "and", "or", commas and
    /// mathematics delimiters part from it, and boxes in the same formula, are answers too; they are
    /// joined with commas.
    Boxed,
    /// The line behind the last `####`.
    Gsm8k,
    /// What follows the last "final answer is", "answer is", "answer:" or, at the start of a line,
    /// `A:`.
    FinalAnswerPhrase,
    /// The whole text, where all of it is one mathematical answer.
    Whole,
    /// The last formula in `$…$`, `$$…$$`, `\(…\)` or `\[…\]` that can be read. As in Markdown, an
    /// inline formula (`\(…\)`, `$…$`) ends on the line that it starts on.
    Formula,
    /// The last [`Extractor::Formula`], or the [`Extractor::LastNumber`] where that comes after it.
    Last,
    /// The last number, as the usual rule for GSM8K has it; fractions count as one number.
    LastNumber,
    /// The letter of a multiple-choice answer, one of those given.
    Choice(Vec<char>),
}

/// The ways that state an answer expressly, in the order in which [`final_answer`] tries them.
pub const STATED: [Extractor; 3] =
    [Extractor::Boxed, Extractor::Gsm8k, Extractor::FinalAnswerPhrase];

/// [`STATED`], then the weak ways: the whole text, the last formula or number.
pub const ANY: [Extractor; 5] = [
    Extractor::Boxed,
    Extractor::Gsm8k,
    Extractor::FinalAnswerPhrase,
    Extractor::Whole,
    Extractor::Last,
];

/// The final answer that a solution states expressly: what its last `\boxed{}` or `\fbox{}` holds,
/// else what follows its last `####` (GSM8K), else what follows "the final answer is". `None` where
/// it states none.
///
/// ```
/// use mixdistill::eval::final_answer;
/// assert_eq!(final_answer(r"So \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}".into()));
/// assert_eq!(final_answer("5 + 5 = 10\n#### 10"), Some("10".into()));
/// assert_eq!(final_answer(r"It is \boxed{7"), None);
/// assert_eq!(final_answer("The final answer is $7$. I hope it is correct."), Some("7".into()));
/// assert_eq!(final_answer(r"\boxed{1} and \boxed{-2}"), Some("1, -2".into()));
/// ```
pub fn final_answer(solution: &str) -> Option<String> {
    extract(solution, &STATED)
}

/// The answer by the first of `extractors` that finds one.
///
/// ```
/// use mixdistill::eval::{Extractor, extract};
/// let text = "He has 3 + 4 = 7 apples, which is $\\frac{7}{10}$ of them.";
/// assert_eq!(extract(text, &[Extractor::Formula]), Some(r"\frac{7}{10}".into()));
/// assert_eq!(extract("He has 3 + 4 = 7 apples.", &[Extractor::LastNumber]), Some("7".into()));
/// assert_eq!(extract("(C) Paris", &[Extractor::Choice("ABCD".chars().collect())]), Some("C".into()));
/// ```
pub fn extract(text: &str, extractors: &[Extractor]) -> Option<String> {
    for extractor in extractors {
        let found = match extractor {
            Extractor::Boxed => match boxed(text) {
                Boxes::None => None,
                Boxes::CutOff => return None,
                Boxes::Found(answer) => Some(answer),
            },
            Extractor::Gsm8k => text.rsplit_once("####").and_then(|(_, after)| {
                let line = after.trim_start().lines().next()?.trim();
                (!line.is_empty()).then(|| line.to_owned())
            }),
            Extractor::FinalAnswerPhrase => phrase(text),
            Extractor::Whole => is_answer(text).then(|| text.trim().to_owned()),
            Extractor::Formula => formulas(text)
                .into_iter()
                .rev()
                .map(|(start, end)| text[start..end].trim())
                .find(|formula| is_answer(formula))
                .map(str::to_owned),
            Extractor::Last => last(text).map(|found| found.trim().to_owned()),
            Extractor::LastNumber => {
                last_number(text).map(|(start, end)| text[start..end].to_owned())
            }
            Extractor::Choice(letters) => choice(text, letters).map(String::from),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn is_answer(text: &str) -> bool {
    let text = text.trim();
    text.len() <= MAX_BYTES
        && !text.is_empty()
        && (parse(text, Reading::Number).is_some() || parse(text, Reading::List).is_some())
}

/// Most boxes looked at from the end; each look may go through the whole text.
const MAX_BOXES: usize = 64;

enum Boxes {
    None,
    CutOff,
    Found(String),
}

/// The boxes at the end of the chain of boxes.
fn boxed(text: &str) -> Boxes {
    let mut answers: Vec<String> = vec![];
    let mut end = text.len();
    let mut behind = end;
    let formulas = formulas(text);
    for _ in 0..MAX_BOXES {
        let before = &text[..end];
        let Some((start, command)) = ["\\boxed", "\\fbox", "\\framebox"]
            .into_iter()
            .filter_map(|command| Some((before.rfind(command)?, command)))
            .max()
        else {
            break;
        };
        let opened = text[start + command.len()..].trim_start();
        let inside = text.len() - opened.len() + 1;
        // Without braces the command is mere talk: "put it in \\boxed".
        let braced = opened.starts_with('{');
        let close = if braced { closing_brace(text, inside) } else { None };
        match close {
            // Of nested boxes the innermost is the last one.
            Some(close)
                if answers.is_empty()
                    || close < behind
                        && (joins(&text[close + 1..behind])
                            || formulas
                                .iter()
                                .any(|(from, to)| *from <= start && behind < *to)) =>
            {
                let answer = text[inside..close].trim().to_owned();
                if !answers.contains(&answer) {
                    answers.push(answer);
                }
            }
            None if answers.is_empty() && braced => return Boxes::CutOff,
            None if answers.is_empty() => {}
            _ => break,
        }
        end = start;
        behind = start;
    }
    answers.reverse();
    if answers.is_empty() { Boxes::None } else { Boxes::Found(answers.join(", ")) }
}

/// Where the group that is open at `from` closes; a brace behind a backslash does not count.
fn closing_brace(text: &str, from: usize) -> Option<usize> {
    let mut depth = 1usize;
    let mut escaped = false;
    for (at, character) in text[from..].char_indices() {
        match character {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth -= 1,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
        if depth == 0 {
            return Some(from + at);
        }
    }
    None
}

/// Whether nothing but "and", "or", commas and delimiters stands between two boxes.
fn joins(between: &str) -> bool {
    if between.len() > 128 {
        return false;
    }
    let mut words = between.split(|c: char| c.is_whitespace() || "$,;\\()[]{}.".contains(c));
    let mut connectives = 0;
    words.all(|word| {
        connectives += usize::from(matches!(word, "and" | "or"));
        connectives <= 1 && matches!(word, "" | "and" | "or" | "text" | "quad" | "qquad" | "mbox")
    })
}

/// What follows the last of the phrases that state an answer.
fn phrase(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let after = |phrase: &str| lower.rfind(phrase).map(|at| at + phrase.len());
    let line_start = lower
        .rmatch_indices("a:")
        .find(|(at, _)| {
            lower[..*at].trim_end_matches([' ', '*']).chars().next_back().is_none_or(|c| c == '\n')
        })
        .map(|(at, phrase)| at + phrase.len());
    let start = after("final answer is")
        .or_else(|| after("final answer:"))
        .or_else(|| after("answer is").max(after("answer:")))
        .or(line_start)
        .or_else(|| after("答案是").max(after("答案：")))?;
    let rest = text[start..].trim_start_matches([':', '*', ' ', '\n', '"']);
    // A formula may span lines; words end with their sentence or line.
    if let Some((first, last)) = formulas(rest).first().copied()
        && rest[..first].trim_end_matches(['$', '\\', '(', '[']).trim().is_empty()
        && is_answer(&rest[first..last])
    {
        let behind = rest[last..].trim_start_matches(['$', '\\', ')', ']']);
        let goes_on = behind.trim_start().starts_with([',', '$'])
            || behind.trim_start().starts_with("and ")
            || behind.trim_start().starts_with("or ");
        if !goes_on {
            return Some(rest[first..last].trim().to_owned());
        }
    }
    let line = rest.lines().next()?;
    let end = line
        .match_indices(['.', '。'])
        .find(|(at, stop)| {
            let behind = &line[at + stop.len()..];
            *stop == "。" || behind.is_empty() || behind.starts_with([' ', '<'])
        })
        .map_or(line.len(), |(at, _)| at);
    answer_in(line[..end].trim_end_matches(['*', '"']))
}

/// The answer in a sentence: all of it, or its last formula or number.
fn answer_in(sentence: &str) -> Option<String> {
    let sentence = sentence.trim();
    if sentence.is_empty() {
        return None;
    }
    if is_answer(sentence) {
        return Some(sentence.to_owned());
    }
    Some(last(sentence).unwrap_or(sentence).trim().to_owned())
}

/// The last formula that can be read, or the last number where that comes after it.
fn last(text: &str) -> Option<&str> {
    let formula =
        formulas(text).into_iter().rev().find(|(start, end)| is_answer(&text[*start..*end]));
    let number = last_number(text);
    let (start, end) = match (formula, number) {
        (Some(formula), Some(number)) if number.0 >= formula.1 => number,
        (formula, number) => formula.or(number)?,
    };
    Some(&text[start..end])
}

/// Where the formulas are, without their delimiters.
fn formulas(text: &str) -> Vec<(usize, usize)> {
    const DELIMITERS: [(&str, &str, bool); 4] =
        [("\\[", "\\]", false), ("$$", "$$", false), ("\\(", "\\)", true), ("$", "$", true)];
    // Up to where it is known that a formula does not close, so that no text is searched twice.
    let mut unclosed = [0; 4];
    let mut line_end = 0;
    let mut found = vec![];
    let mut at = 0;
    while let Some(offset) = text[at..].find(['$', '\\']) {
        at += offset;
        let rest = &text[at..];
        if rest.starts_with("\\$") {
            at += 2;
            continue;
        }
        let Some(kind) = DELIMITERS.iter().position(|(open, ..)| rest.starts_with(open)) else {
            at += 1;
            continue;
        };
        let (open, close, inline) = DELIMITERS[kind];
        let start = at + open.len();
        at = start;
        if start < unclosed[kind] {
            continue;
        }
        if inline && start > line_end {
            line_end = text[start..].find('\n').map_or(text.len(), |end| start + end);
        }
        let limit = if inline { line_end.max(start) } else { text.len() };
        let inside = &text[start..limit];
        let end = inside
            .match_indices(close)
            .find(|(end, _)| close.len() > 1 || !inside[..*end].ends_with('\\'));
        match end {
            Some((end, _)) => {
                found.push((start, start + end));
                at = start + end + close.len();
            }
            None => unclosed[kind] = limit.max(start + 1),
        }
    }
    found
}

/// Where the last number is.
fn last_number(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let digits = |mut at: usize| {
        while digit(at) {
            at += 1;
        }
        at
    };
    // One number from `at` on: groups, decimals, power of ten.
    let number = |at: usize| {
        let mut end = digits(at);
        while bytes.get(end) == Some(&b',') && digits(end + 1) == end + 4 {
            end += 4;
        }
        if matches!(bytes.get(end), Some(b'.' | b',')) && digit(end + 1) {
            end = digits(end + 1);
        }
        end
    };
    let mut found = None;
    let mut at = 0;
    while at < bytes.len() {
        if !(digit(at) || bytes[at] == b'.' && digit(at + 1)) {
            at += 1;
            continue;
        }
        let mut start = at;
        let mut end = number(at);
        if bytes.get(end) == Some(&b'/') && digit(end + 1) {
            end = number(end + 1);
        }
        // `\frac{2}{5}` outside of any formula.
        let head = &text[..start];
        if let Some(command) = head.strip_suffix("frac{") {
            let command = command
                .strip_suffix("\\d")
                .or(command.strip_suffix("\\t"))
                .or(command.strip_suffix('\\'));
            let under = end + 2;
            if let Some(command) = command
                && text[end..].starts_with("}{")
                && digit(under)
                && bytes.get(number(under)) == Some(&b'}')
            {
                start = command.len();
                end = number(under) + 1;
            }
        }
        if text[end..].starts_with('%') {
            end += 1;
        }
        // A sign, but not a minus between two numbers.
        for _ in 0..2 {
            let head = &text[..start];
            if let Some(sign) = head.chars().next_back().filter(|c| "-+−$€£".contains(*c)) {
                let before = head[..head.len() - sign.len_utf8()].trim_end().chars().next_back();
                let operator = before.is_some_and(|c| c.is_alphanumeric() || c == ')' || c == '}');
                if "$€£".contains(sign) || !operator {
                    start -= sign.len_utf8();
                }
            }
        }
        let shown = text[start..end].trim_start_matches(['$', '€', '£']);
        found = Some((end - shown.len(), end));
        at = end;
    }
    found
}
