//! Where to look for the final answers to a benchmark's problems.

use super::extract::{Extractor, STATED, extract};
use super::reasoning::after_reasoning;
use serde::{Deserialize, Serialize};

/// Where to look for the final answer in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// An explicitly stated answer: in a box, after `####`, or after a phrase such as "the final answer is".
    #[default]
    Stated,
    /// A stated answer, or else the last number of the text, as is usual for word problems.
    LastNumber,
    /// The letter of a multiple-choice option, A to J: in a box, after `####`, or else the letter that the
    /// text chooses.
    Choice,
}

impl AnswerKind {
    /// Returns the final answer of a text, if there is one. Only the text after the reasoning counts; see
    /// [`after_reasoning`].
    pub fn answer(self, text: &str) -> Option<String> {
        self.answer_after(text, false)
    }

    /// Same as [`AnswerKind::answer`]; `opened_by_prompt` says whether the prompt ended with an opening
    /// `<think>`. If that reasoning does not end in the text, there is no final answer.
    ///
    /// ```
    /// use mixdistill::eval::AnswerKind;
    /// let answer = |text| AnswerKind::Stated.answer_after(text, true);
    /// assert_eq!(answer(r"Perhaps \boxed{11}.</think>So \boxed{12}."), Some("12".into()));
    /// assert_eq!(answer(r"Perhaps \boxed{11}."), None);
    /// ```
    pub fn answer_after(self, text: &str, opened_by_prompt: bool) -> Option<String> {
        let text = after_reasoning(text, opened_by_prompt)?;
        let stated = || extract(text, &STATED);
        match self {
            Self::Stated => stated(),
            Self::LastNumber => {
                let number = || extract(text, &[Extractor::LastNumber]);
                if let Some(boxed) = extract(text, &[Extractor::Boxed]) {
                    return Some(boxed);
                }
                match stated() {
                    // "The answer is in the table" and "#### Thanks!" state no number.
                    Some(words) if !words.contains(char::is_numeric) && !words.contains('\\') => {
                        number().or(Some(words))
                    }
                    stated => stated.or_else(number),
                }
            }
            Self::Choice => {
                let letters = || Extractor::Choice(('A'..='J').collect());
                let letter = |text: &str| extract(text, &[letters()]);
                // "(B) 7" in a box is the letter B, and "A as shown" is A: in a box, "A" is not an article.
                let of_stated =
                    |stated: String| letter(&format!("answer: {stated}")).unwrap_or(stated);
                // "The answer is B) 12" is B: the letter after a phrase comes before its text.
                let boxed = extract(text, &[Extractor::Boxed, Extractor::Gsm8k]);
                boxed.map(of_stated).or_else(|| letter(text)).or_else(stated)
            }
        }
    }
}
