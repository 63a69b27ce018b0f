//! The form in which a template expects a model to write reasoning and answer, learned from its output on
//! samples.
//!
//! ```text
//! <|im_start|>assistant\n <think>\n R \n</think>\n\n A <|im_end|>\n
//! header                  open       close          after
//! ```
//!
//! A prompt ends with the header and may include more: the opening tag, if the model should reason, or empty
//! reasoning with both tags, if it should not. The model writes the rest.

use super::chat_template::ChatTemplate;
use super::message::{Beside, Message, ReasoningPlace};
use super::reasoning::{CLOSE, MARKS, OPEN, REASONING, with_reasoning};
use crate::error::Result;

/// The texts around reasoning and answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AnswerForm {
    /// The text before the reasoning, starting with its tag.
    open: String,
    /// The text between reasoning and answer.
    close: String,
    /// Where the template takes reasoning separately from the text, if it does.
    pub(super) place: Option<ReasoningPlace>,
    /// Whether the template showed these texts. False if it writes others around the reasoning at `place`.
    pub(super) is_known: bool,
}

/// The part of the form at the end of a prompt, with the white space after the last tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written<'a> {
    /// Nothing: the model writes everything.
    Nothing,
    /// The opening tag.
    Opened(&'a str),
    /// The closing tag: the model should not reason.
    Closed(&'a str),
}

impl AnswerForm {
    /// Learns the form from the output of `template` for samples after the messages `asked`, the last of
    /// which is the user's. If the template does not show it, uses the usual form with the tags at the end of
    /// `prompt`.
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
            // Each must occur once.
            let Some((before, rest)) = turn.split_once(REASONED) else { return Ok(None) };
            let Some((close, after)) = rest.split_once(ANSWERED) else { return Ok(None) };
            let again = [REASONED, ANSWERED]
                .iter()
                .any(|text| [before, close, after].iter().any(|part| part.contains(text)));
            let behind = whole[..problem_ends + before.len()].strip_prefix(prompt);
            let form = Self::around(before, behind, close, prompt);
            let is_block = !matches!(place, None | Some(ReasoningPlace::Key(_)));
            // A list that appears verbatim in the text is not supported by the template.
            let is_list = turn.contains("'type'") || turn.contains("\"type\"");
            let refused = again || is_block && (is_list || !form.is_known);
            Ok((!refused).then_some(Self { place, ..form }))
        };
        let keys = REASONING.map(ReasoningPlace::Key);
        let places = keys.into_iter().chain([ReasoningPlace::Block, ReasoningPlace::NestedBlock]);
        let apart = places.map(|place| shown(ANSWERED.into(), Some(place)));
        let within = std::iter::once_with(|| shown(with_reasoning(REASONED, ANSWERED), None));
        // A template that rejects such a message reveals nothing about the form.
        let found = apart.chain(within).find_map(|form| form.ok().flatten());
        found.unwrap_or_else(|| Self::usual(prompt))
    }

    /// Returns the form by the text before a sample's reasoning and between it and the answer. `behind` is
    /// the text between the prompt and the reasoning, if the whole text starts with the prompt.
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

    /// Returns the form of most models.
    fn usual(prompt: &str) -> Self {
        let end = prompt.trim_end().to_ascii_lowercase();
        let ends = |(open, close): &&(&str, &str)| end.ends_with(open) || end.ends_with(close);
        let (open, close) = MARKS.iter().find(ends).unwrap_or(&(OPEN, CLOSE));
        let (open, close) = (format!("{open}\n"), format!("\n{close}\n\n"));
        Self { open, close, place: None, is_known: true }
    }

    /// Returns whether the template's tags are the ones used in rows.
    pub(super) fn is_usual(&self) -> bool {
        self.is_known && self.open.trim() == OPEN && self.close.trim() == CLOSE
    }

    /// Returns whether the template's text for a row's `solution`, after the prompt, opens and closes
    /// reasoning no more often than the row does.
    pub(super) fn is_once(&self, written: Written<'_>, text: &str, solution: &str) -> bool {
        let opens = |text: &str| text.matches(OPEN).count();
        let before = usize::from(matches!(written, Written::Opened(_)));
        let closes = |text: &str| text.matches(CLOSE).count();
        before + opens(text) <= opens(solution).max(1) && closes(text) <= closes(solution)
    }

    /// Returns whether `text` has reasoning and answer in this order, and no more often than a text of this
    /// form that ends with `after`.
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

    /// Returns the part of the form that `prompt` has after `problem`, and its offset.
    pub(super) fn written<'a>(&self, prompt: &'a str, problem: &str) -> (usize, Written<'a>) {
        let (turn, space) = prompt.split_at(prompt.trim_end().len());
        // A tag at the end of the problem does not count unless something follows it.
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

    /// Returns the text that a model writes after its prompt. `None` for reasoning after a prompt that closed
    /// it.
    pub(super) fn rest(
        &self,
        written: Written<'_>,
        reasoning: Option<&str>,
        answer: &str,
    ) -> Option<String> {
        // White space after a tag, without what is already there.
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
        // Tags in the problem are not the prompt's. Letters of the problem may occur in the prompt.
        assert_eq!(form.written("user: a <think>", "a <think>").1, Written::Nothing);
        assert_eq!(form.written("<think></think>1+1?", "1+1?").1, Written::Nothing);
        assert_eq!(form.written("user: n bot: <think>\n", "n").1, Written::Opened("\n"));
        assert_eq!(
            form.written("user: <think> bot: <think>", "<think>"),
            (19, Written::Opened(""))
        );
    }
}
