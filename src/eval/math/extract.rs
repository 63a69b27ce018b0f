//! Finds the final answer in a solution. Each way of stating an answer is an [`Extractor`] that can be used
//! on its own. The weak ways (the last formula, the last number) check with the parser that they found
//! mathematics. A box that never closes ends the search, since a truncated solution states no answer.

use super::boxes::{Boxes, boxed};
use super::choice::choice;
use super::clauses::without_label;
use super::expression::Expression;
use super::lexer::Reading;
use super::limits::MAX_BYTES;
use super::numerals::{last_number, numeral};
use super::parser::parse;
use super::reasoning::after_reasoning;
use super::scripts::plain;
use super::statement::{last, last_formula, marker, phrase, with_point};
use super::words::greek;

/// A way of stating the final answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extractor {
    /// The last `\boxed{}` or `\fbox{}`, with nested braces. Other boxes belong to it if only "and", "or",
    /// commas, or math delimiters separate them from it, or if they are in the same formula. They are joined
    /// with commas. `\boxed 2` extends to the end of its formula. An empty box, as in the instruction, does
    /// not count. If the last box never closes, no other extractor is tried.
    Boxed,
    /// The answer after the last `####` that something like an answer follows. A Markdown heading (`#### Step
    /// 1`, `#### 2. Count`) does not count unless it names the answer: `#### Final Answer: 18`, or `####
    /// Final Answer` with the answer on the next line.
    Gsm8k,
    /// The text after the last "final answer is", `<answer>`, "answer is", "answer:", or, at the start of a
    /// line, `A:`, in several languages. A reason after the answer is left out.
    FinalAnswerPhrase,
    /// The whole text, if all of it is one mathematical answer.
    Whole,
    /// The last formula in `$…$`, `$$…$$`, `\(…\)`, or `\[…\]` that can be parsed. As in Markdown, an inline
    /// formula (`\(…\)`, `$…$`) ends on the line that it starts on, and a `$` before an amount of money
    /// starts none. Formulas that only "and" or "or" separates from it belong to it.
    Formula,
    /// The last [`Extractor::Formula`], or the [`Extractor::LastNumber`] if that comes after it.
    Last,
    /// The last number, the usual rule for GSM8K. A fraction counts as one number, and digits inside a word
    /// (`AZYUK2A`) do not count.
    LastNumber,
    /// The letter of a multiple-choice answer, one of the given letters. Letters that the answer rules out
    /// ("it cannot be A") do not count.
    Choice(Vec<char>),
}

/// The ways to state an answer explicitly, in the order in which [`final_answer`] tries them.
pub const STATED: [Extractor; 3] =
    [Extractor::Boxed, Extractor::Gsm8k, Extractor::FinalAnswerPhrase];

/// [`STATED`], then the weak ways: the whole text, and the last formula or number.
pub const ANY: [Extractor; 5] = [
    Extractor::Boxed,
    Extractor::Gsm8k,
    Extractor::FinalAnswerPhrase,
    Extractor::Whole,
    Extractor::Last,
];

/// Returns the final answer that a solution states explicitly: the content of its last `\boxed{}` or
/// `\fbox{}`, else the text after its last `####` (GSM8K), else the text after "the final answer is". `None`
/// if it states none. Only the text after the reasoning counts; see [`after_reasoning`].
///
/// ```
/// use mixdistill::eval::final_answer;
/// assert_eq!(final_answer(r"So \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}".into()));
/// assert_eq!(final_answer("5 + 5 = 10\n#### 10"), Some("10".into()));
/// assert_eq!(final_answer(r"It is \boxed{7"), None);
/// assert_eq!(final_answer("The final answer is $7$. I hope it is correct."), Some("7".into()));
/// assert_eq!(final_answer(r"\boxed{1} and \boxed{-2}"), Some("1, -2".into()));
/// assert_eq!(final_answer("#### Step 1\n9 + 9\n#### Final Answer: 18"), Some("18".into()));
/// assert_eq!(final_answer(r"<think>\boxed{11}?</think>The answer is 12."), Some("12".into()));
/// ```
pub fn final_answer(solution: &str) -> Option<String> {
    extract(after_reasoning(solution, false)?, &STATED)
}

/// Returns the answer by the first of `extractors` that finds one.
///
/// ```
/// use mixdistill::eval::{Extractor, extract};
/// let text = "He has 3 + 4 = 7 apples, which is $\\frac{7}{10}$ of them.";
/// assert_eq!(extract(text, &[Extractor::Formula]), Some(r"\frac{7}{10}".into()));
/// assert_eq!(extract("He has 3 + 4 = 7 apples.", &[Extractor::LastNumber]), Some("7".into()));
/// assert_eq!(extract("(C) Paris", &[Extractor::Choice("ABCD".chars().collect())]), Some("C".into()));
/// ```
pub fn extract(text: &str, extractors: &[Extractor]) -> Option<String> {
    let text = &*plain(text);
    for extractor in extractors {
        let found = match extractor {
            Extractor::Boxed => match boxed(text) {
                Boxes::None => None,
                Boxes::CutOff => return None,
                Boxes::Found(answer) => Some(answer),
            },
            Extractor::Gsm8k => marker(text),
            Extractor::FinalAnswerPhrase => phrase(text),
            Extractor::Whole => whole(text),
            Extractor::Formula => last_formula(text).map(|(_, formula)| formula),
            Extractor::Last => last(text),
            Extractor::LastNumber => {
                last_number(text).map(|(start, end)| numeral(&text[start..end]))
            }
            Extractor::Choice(letters) => choice(text, letters).map(String::from),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Returns the whole text, without a label (`Total: 18`) and a list marker, if it is an answer rather than
/// prose that happens to parse as a product of letters.
fn whole(text: &str) -> Option<String> {
    let text = text.trim();
    let text = ["- ", "* ", "• "].iter().find_map(|mark| text.strip_prefix(mark)).unwrap_or(text);
    let text = without_label(text);
    // "So $x = 3$", "It's 5".
    let word: String =
        text.chars().take_while(|c| c.is_alphabetic() || "'’".contains(*c)).collect();
    let behind = text[word.len()..].trim_start();
    let sentence = word.chars().nth(1).is_some_and(|c| c.is_lowercase() || "'’".contains(c))
        && word.starts_with(char::is_uppercase)
        && behind
            .starts_with(|c: char| c.is_ascii_digit() || c.is_alphabetic() || "$\\-−".contains(c))
        && text.contains(|c: char| c.is_ascii_digit() || "$\\".contains(c));
    // "12,5 kg" and "0,5": one number with a decimal comma.
    let one = text.starts_with("0,") || text.ends_with(|c: char| c.is_alphabetic());
    let stated = || if one { with_point(text.to_owned()) } else { text.to_owned() };
    (!sentence && is_answer(text) && !mixes_words(text)).then(stated)
}

/// Returns whether it parses as words multiplied by numbers: "forty-two (42)".
fn mixes_words(text: &str) -> bool {
    let Some(expression) = parse(text, Reading::Number) else { return false };
    let is_word = |part: &Expression| {
        let Expression::Variable(name) = part else { return false };
        let letters = name.chars().all(char::is_alphabetic);
        let long = name.chars().count() > if name.is_ascii() { 3 } else { 1 };
        letters && long && greek(name).is_none()
    };
    let equation = expression.any(&|part| matches!(part, Expression::Chain(..)));
    !equation
        && expression.any(&|part| matches!(part, Expression::Number(..)))
        && expression.any(&is_word)
}

/// Returns whether a text can be parsed as an answer.
pub(super) fn is_answer(text: &str) -> bool {
    let text = text.trim();
    text.len() <= MAX_BYTES
        && !text.is_empty()
        && (parse(text, Reading::Number).is_some() || parse(text, Reading::List).is_some())
}
