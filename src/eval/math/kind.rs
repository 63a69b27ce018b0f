//! Where the answers to a benchmark's problems are looked for.

use super::extract::{Extractor, STATED, extract};
use super::reasoning::after_reasoning;
use serde::{Deserialize, Serialize};

/// Where the answer to a problem is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Where it is stated: in a box, after `####`, after "the final answer is".
    #[default]
    Stated,
    /// There, or else the last number of the text, as is usual for word problems.
    LastNumber,
    /// There, or else the letter of an option.
    Choice,
}

impl AnswerKind {
    /// The final answer of a text, if there is one. A text that begins with its reasoning states it
    /// after the end of that, see [`after_reasoning`].
    pub fn answer(self, text: &str) -> Option<String> {
        self.answer_after(text, false)
    }

    /// The final answer of a text whose prompt ended with an opening `<think>`, where
    /// `opened_by_prompt` says so: a text in which that reasoning does not end has none.
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
                    // "The answer is in the table" and "#### Thanks!" state none.
                    Some(words) if !words.contains(char::is_numeric) && !words.contains('\\') => {
                        number().or(Some(words))
                    }
                    stated => stated.or_else(number),
                }
            }
            Self::Choice => {
                let letters = || Extractor::Choice(('A'..='J').collect());
                let letter = |text: &str| extract(text, &[letters()]);
                // "(B) 7" in a box is the letter B, and "A as shown" is A: there it is no article.
                let of_stated =
                    |stated: String| letter(&format!("answer: {stated}")).unwrap_or(stated);
                // "The answer is B) 12" is B: what follows a phrase is looked at for its letter
                // first.
                let boxed = extract(text, &[Extractor::Boxed, Extractor::Gsm8k]);
                boxed.map(of_stated).or_else(|| letter(text)).or_else(stated)
            }
        }
    }
}
