//! How a template has a model write reasoning and answer, learned from what it makes of samples.
//!
//! ```text
//! <|im_start|>assistant\n <think>\n R \n</think>\n\n A <|im_end|>\n
//! header                  open       close          after
//! ```
//!
//! A prompt ends with the header, and may have written more: the mark that opens the reasoning, where
//! the model is to reason, or an empty reasoning with both marks, where it is not. The model writes
//! the rest.

use super::chat_template::ChatTemplate;
use super::message::{Beside, Message, ReasoningPlace};
use super::reasoning::{CLOSE, MARKS, OPEN, REASONING, with_reasoning};
use crate::error::Result;

/// The texts around reasoning and answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AnswerForm {
    /// Before the reasoning, from its mark on.
    open: String,
    /// Between reasoning and answer.
    close: String,
    /// Where the template takes reasoning apart from the text, if it does.
    pub(super) place: Option<ReasoningPlace>,
    /// Whether the template showed these texts, or writes others around what stands at `place`.
    pub(super) is_known: bool,
}

/// What of the form stands at the end of a prompt, with the white space behind the last mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written<'a> {
    /// Nothing: the model writes all of it.
    Nothing,
    /// The mark that opens the reasoning.
    Opened(&'a str),
    /// The mark that closes it: the model is not to reason.
    Closed(&'a str),
}

impl AnswerForm {
    /// The form by what `template` makes of samples after the messages `asked`, the last of which is
    /// the user's. Where it shows none, the usual one, in the marks that `prompt` ends with.
    pub(super) fn learned(template: &ChatTemplate, asked: &[Message], prompt: &str) -> Self {
        const REASONED: &str = "Some thoughts";
        const ANSWERED: &str = "First answer";
        let problem = asked.last().map_or("", |message| message.content.as_str());
        let shown = |content: String, place: Option<ReasoningPlace>| -> Result<Option<Self>> {
            let beside = place.map(|place| Beside { place, text: REASONED.into() });
            let answer = Message { beside, ..Message::new("assistant", content) };
            let messages: Vec<Message> = asked.iter().cloned().chain([answer]).collect();
            let whole = template.render(&messages, false)?;
            let Some(at) = whole.rfind(problem) else { return Ok(None) };
            let problem_ends = at + problem.len();
            let turn = &whole[problem_ends..];
            // Each is there once.
            let Some((before, rest)) = turn.split_once(REASONED) else { return Ok(None) };
            let Some((close, after)) = rest.split_once(ANSWERED) else { return Ok(None) };
            let again = [REASONED, ANSWERED]
                .iter()
                .any(|text| [before, close, after].iter().any(|part| part.contains(text)));
            let behind = whole[..problem_ends + before.len()].strip_prefix(prompt);
            let form = Self::around(before, behind, close, prompt);
            let is_block = !matches!(place, None | Some(ReasoningPlace::Key(_)));
            // A list that is written as such is not taken apart.
            let is_list = turn.contains("'type'") || turn.contains("\"type\"");
            let refused = again || is_block && (is_list || !form.is_known);
            Ok((!refused).then_some(Self { place, ..form }))
        };
        let keys = REASONING.map(ReasoningPlace::Key);
        let places = keys.into_iter().chain([ReasoningPlace::Block, ReasoningPlace::NestedBlock]);
        let apart = places.map(|place| shown(ANSWERED.into(), Some(place)));
        let within = std::iter::once_with(|| shown(with_reasoning(REASONED, ANSWERED), None));
        // A template that refuses such a message says nothing of the form.
        let found = apart.chain(within).find_map(|form| form.ok().flatten());
        found.unwrap_or_else(|| Self::usual(prompt))
    }

    /// The form by what stands before a sample's reasoning and between it and the answer; `behind` is
    /// what stands before the reasoning behind the prompt, where the text begins with that.
    fn around(before: &str, behind: Option<&str>, close: &str, prompt: &str) -> Self {
        let lower = before.to_ascii_lowercase();
        let start = MARKS.iter().filter_map(|(open, _)| lower.rfind(open)).max();
        let own = || behind.filter(|open| !open.trim().is_empty());
        let open = start.map(|start| &before[start..]).or_else(own);
        match open.filter(|_| !close.trim().is_empty()) {
            Some(open) => {
                Self { open: open.to_owned(), close: close.to_owned(), place: None, is_known: true }
            }
            None => Self { is_known: false, ..Self::usual(prompt) },
        }
    }

    /// The form that most models use.
    fn usual(prompt: &str) -> Self {
        let end = prompt.trim_end().to_ascii_lowercase();
        let ends = |(open, close): &&(&str, &str)| end.ends_with(open) || end.ends_with(close);
        let (open, close) = MARKS.iter().find(ends).unwrap_or(&(OPEN, CLOSE));
        let (open, close) = (format!("{open}\n"), format!("\n{close}\n\n"));
        Self { open, close, place: None, is_known: true }
    }

    /// Whether reasoning stands in the texts of rows in the marks that the template has for it.
    pub(super) fn is_usual(&self) -> bool {
        self.is_known && self.open.trim() == OPEN && self.close.trim() == CLOSE
    }

    /// Whether the text that a template makes of a row's `solution`, behind what the prompt has
    /// written, opens and closes no more reasoning than that does.
    pub(super) fn is_once(&self, written: Written<'_>, text: &str, solution: &str) -> bool {
        let opens = |text: &str| text.matches(OPEN).count();
        let before = usize::from(matches!(written, Written::Opened(_)));
        let closes = |text: &str| text.matches(CLOSE).count();
        before + opens(text) <= opens(solution).max(1) && closes(text) <= closes(solution)
    }

    /// Whether reasoning and answer stand in `text`, in this order and no more often than in a text of
    /// this form that ends with `after`.
    pub(super) fn holds_once(
        &self,
        text: &str,
        reasoning: &str,
        answer: &str,
        after: &str,
    ) -> bool {
        let Some((_, behind)) = text.split_once(reasoning) else { return false };
        let formed = format!("{}{reasoning}{}{answer}{after}", self.open, self.close);
        let no_more = |part: &str| text.matches(part).count() <= formed.matches(part).count();
        let is_once = [reasoning, answer].iter().all(|part| part.is_empty() || no_more(part));
        behind.contains(answer) && is_once
    }

    /// What of the form `prompt` has written behind `problem`, and where that begins.
    pub(super) fn written<'a>(&self, prompt: &'a str, problem: &str) -> (usize, Written<'a>) {
        let (turn, space) = prompt.split_at(prompt.trim_end().len());
        // A mark that the problem ends with is none of the prompt's, where nothing follows it.
        let problem = problem.trim_end();
        let behind = |text: &'a str, mark: &str| {
            let before = text.strip_suffix(problem).filter(|_| problem.ends_with(mark));
            let is_own = before.is_some_and(|before| !before.contains(problem));
            text.strip_suffix(mark).filter(|_| !is_own)
        };
        let (open, close) = (self.open.trim(), self.close.trim());
        if let Some(header) = behind(turn, open) {
            return (header.len(), Written::Opened(space));
        }
        match behind(turn, close) {
            Some(inner) => {
                let header = behind(inner.trim_end(), open).unwrap_or(inner);
                (header.len(), Written::Closed(space))
            }
            None => (prompt.len(), Written::Nothing),
        }
    }

    /// What a model writes behind what its prompt has written; `None` for reasoning behind a prompt
    /// that has closed it.
    pub(super) fn rest(
        &self,
        written: Written<'_>,
        reasoning: Option<&str>,
        answer: &str,
    ) -> Option<String> {
        // White space behind a mark, without what is there.
        let missing = |text: &str, mark: &str, there: &str| {
            let space = &text[text.find(mark).map_or(0, |at| at + mark.len())..];
            space.strip_prefix(there).unwrap_or_default().to_owned()
        };
        let close = match answer.is_empty() {
            true => self.close.trim_end(),
            false => &self.close,
        };
        Some(match (written, reasoning) {
            (Written::Nothing, None) => answer.to_owned(),
            (Written::Nothing, Some(reasoning)) => {
                format!("{}{reasoning}{close}{answer}", self.open)
            }
            (Written::Opened(space), reasoning) => {
                let space = missing(&self.open, self.open.trim(), space);
                format!("{space}{}{close}{answer}", reasoning.unwrap_or_default())
            }
            (Written::Closed(_), Some(reasoning)) if !reasoning.is_empty() => return None,
            (Written::Closed(space), _) => {
                format!("{}{answer}", missing(&self.close, self.close.trim(), space))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_prompt_has_written_is_not_written_again() {
        let form = AnswerForm::usual("");
        let written = |prompt| form.written(prompt, "1+1?").1;
        let rest = |prompt, reasoning, answer| form.rest(written(prompt), reasoning, answer);
        assert_eq!(written("1+1?<bot>"), Written::Nothing);
        assert_eq!(rest("1+1?<bot>", Some("R"), "A").unwrap(), "<think>\nR\n</think>\n\nA");
        assert_eq!(rest("1+1?<bot>", None, "A").unwrap(), "A");
        assert_eq!(rest("1+1?<bot><think>", Some("R"), "A").unwrap(), "\nR\n</think>\n\nA");
        assert_eq!(rest("1+1?<bot><think>\n", Some("R"), "A").unwrap(), "R\n</think>\n\nA");
        assert_eq!(rest("1+1?<bot><think>\n", None, "A").unwrap(), "\n</think>\n\nA");
        assert_eq!(rest("1+1?<think>\n\n</think>\n\n", None, "A").unwrap(), "A");
        assert_eq!(rest("1+1?<think></think>", Some(""), "A").unwrap(), "\n\nA");
        assert_eq!(rest("1+1?<think></think>", Some("R"), "A"), None);
        assert_eq!(rest("1+1?<bot></think>", Some("R"), "A"), None);
        assert_eq!(rest("1+1?<think>\n", Some("R"), "").unwrap(), "R\n</think>");
        // Marks of the problem are none of the prompt's; letters of it may be in the prompt's.
        assert_eq!(form.written("user: a <think>", "a <think>").1, Written::Nothing);
        assert_eq!(form.written("<think></think>1+1?", "1+1?").1, Written::Nothing);
        assert_eq!(form.written("user: n bot: <think>\n", "n").1, Written::Opened("\n"));
        assert_eq!(
            form.written("user: <think> bot: <think>", "<think>"),
            (19, Written::Opened(""))
        );
    }
}
