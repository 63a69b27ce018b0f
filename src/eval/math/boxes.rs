//! Answers in `\boxed{}` and similar commands. Boxes that belong together are one answer, a box that never
//! closes states no answer and ends the search, and an empty box does not count.

use super::extract::is_answer;
use super::formulas::formulas;
use super::notes::is_connective;
use super::numerals::leading_number;

/// Maximum number of boxes to examine from the end. Each may need a pass over the whole text.
const MAX_BOXES: usize = 64;

/// The boxes of a text.
pub(super) enum Boxes {
    /// There is no box.
    None,
    /// The last box never closes.
    CutOff,
    /// The answer.
    Found(String),
}

/// Returns the last boxes that belong together.
pub(super) fn boxed(text: &str) -> Boxes {
    let mut answers: Vec<String> = vec![];
    let mut end = text.len();
    let mut behind = end;
    let mut between: Option<Vec<(usize, usize)>> = None;
    for _ in 0..MAX_BOXES {
        let before = &text[..end];
        let Some((start, command)) = ["\\boxed", "\\fbox", "\\framebox"]
            .into_iter()
            .filter_map(|command| Some((before.rfind(command)?, command)))
            .max()
        else {
            break;
        };
        let content = content(text, start + command.len());
        end = start;
        match content {
            Content::Closed(inside, close) => {
                let answer = text[inside..close].trim();
                if is_placeholder(answer) {
                    // Boxes around an empty box are empty, too.
                    continue;
                }
                let formulas = between.get_or_insert_with(|| formulas(text));
                // Among nested boxes, the innermost comes last.
                let belongs = answers.is_empty()
                    || close < behind
                        && (text.get(close + 1..behind).is_some_and(joins)
                            || formulas.iter().any(|(from, to)| *from <= start && behind < *to));
                if !belongs {
                    break;
                }
                if !answers.iter().any(|other| other == answer) {
                    answers.push(answer.to_owned());
                }
            }
            Content::Open if answers.is_empty() => return Boxes::CutOff,
            // Without content, the text only mentions the command: "put it in \\boxed".
            Content::Nothing if answers.is_empty() => {}
            _ => break,
        }
        behind = start;
    }
    answers.reverse();
    if answers.is_empty() { Boxes::None } else { Boxes::Found(answers.join(", ")) }
}

/// The content of a box command.
enum Content {
    /// The start and the end of the content. With braces, the end is the position of the closing one.
    Closed(usize, usize),
    /// A brace that does not close.
    Open,
    /// Nothing that could be boxed.
    Nothing,
}

fn content(text: &str, from: usize) -> Content {
    let opened = text[from..].trim_start();
    let start = text.len() - opened.len();
    if opened.starts_with('{') {
        return match closing_brace(text, start + 1) {
            Some(close) => Content::Closed(start + 1, close),
            None => Content::Open,
        };
    }
    // `\boxed 2`: up to the end of the formula, as in the MATH dataset's own grader.
    const LONGEST: usize = 256;
    let line = opened.lines().next().unwrap_or_default();
    let formula_end = ["$", "\\)", "\\]"].iter().filter_map(|end| line.find(end)).min();
    if let Some(end) = formula_end.filter(|end| *end <= LONGEST) {
        let inside = line[..end].trim_end();
        let prose = inside.split_whitespace().filter(|w| w.chars().all(char::is_alphabetic));
        if is_answer(inside) && prose.filter(|word| word.len() > 1).count() == 0 {
            return Content::Closed(start, start + inside.len());
        }
    }
    match leading_number(line) {
        Some((from, to)) => Content::Closed(start + from, start + to),
        None => Content::Nothing,
    }
}

/// Returns whether a box is a placeholder from a repeated instruction.
fn is_placeholder(answer: &str) -> bool {
    if answer.len() > 64 || answer.contains("\\{") {
        return false;
    }
    let mut plain = answer.to_ascii_lowercase();
    for command in [
        "\\boxed", "\\fbox", "\\text", "\\ldots", "\\dots", "\\cdots", "\\quad", "\\mathrm", "\\_",
        "\\ ",
    ] {
        plain = plain.replace(command, " ");
    }
    let words = plain.trim_matches(|c: char| c.is_whitespace() || "{}.…_?<>[]()*$\\~".contains(c));
    matches!(
        words,
        "" | "answer"
            | "your answer"
            | "final answer"
            | "the answer"
            | "your final answer"
            | "the final answer"
            | "your answer here"
            | "answer here"
            | "final_answer"
            | "your_answer"
    )
}

/// Returns the end of the group that is open at `from`. An escaped brace does not count.
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

/// Returns whether only "and", "or", commas, and delimiters separate two boxes or formulas.
pub(super) fn joins(between: &str) -> bool {
    if between.len() > 128 {
        return false;
    }
    let mut words = between.split(|c: char| c.is_whitespace() || "$,;\\()[]{}.，、；*".contains(c));
    let mut connectives = 0;
    words.all(|word| {
        let connective = is_connective(word);
        connectives += usize::from(connective);
        connectives <= 1
            && (connective
                || connectives > 0 && matches!(word, "maybe" | "perhaps" | "possibly" | "also")
                || matches!(word, "" | "text" | "quad" | "qquad" | "mbox"))
    })
}
