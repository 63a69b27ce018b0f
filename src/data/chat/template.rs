//! Layouts of problems and answers as tokens.

use super::tokenizer::TextTokenizer;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// The tokens of a prompt and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowTokens {
    /// Prompt, answer, and end token.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens. The tokens after them are trained.
    pub prompt: usize,
}

/// An earlier exchange of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierTurn {
    /// The question.
    pub problem: String,
    /// The answer, including reasoning in `<think>` tags.
    pub solution: String,
}

/// A prompt for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// The conversation's own system text, if any.
    pub system: Option<&'a str>,
    /// The earlier exchanges of a conversation with several turns.
    pub earlier: &'a [EarlierTurn],
    /// The problem.
    pub problem: &'a str,
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(problem: &'a str) -> Self {
        Self { system: None, earlier: &[], problem }
    }
}

impl<'a> From<&'a String> for Prompt<'a> {
    fn from(problem: &'a String) -> Self {
        problem.as_str().into()
    }
}

/// Lays out prompts and answers as tokens.
pub trait PromptTemplate: Send + Sync {
    /// Returns the tokens before the answer, as at inference.
    ///
    /// # Errors
    /// If the template does not support the prompt.
    fn prompt(&self, tokenizer: &TextTokenizer, prompt: Prompt<'_>) -> Result<Vec<u32>>;

    /// Returns the tokens of [`PromptTemplate::prompt`], followed by those of the answer and its end.
    ///
    /// # Errors
    /// If the template does not support the prompt or the answer.
    fn row(
        &self,
        tokenizer: &TextTokenizer,
        prompt: Prompt<'_>,
        solution: &str,
    ) -> Result<RowTokens>;

    /// Returns the rows of several prompts and answers, in order. The result equals that of
    /// [`PromptTemplate::row`] for each, but may be faster.
    fn rows(
        &self,
        tokenizer: &TextTokenizer,
        answers: &[(Prompt<'_>, &str)],
    ) -> Vec<Result<RowTokens>> {
        answers.iter().map(|(prompt, solution)| self.row(tokenizer, *prompt, solution)).collect()
    }

    /// Returns the token that ends an answer.
    fn end_token(&self, tokenizer: &TextTokenizer) -> u32 {
        tokenizer.end_token()
    }
}

/// The built-in template, for models without a chat template of their own.
///
/// ```
/// use mixdistill::data::PlainTemplate;
/// let template = PlainTemplate::default();
/// assert_eq!(template.prompt_text("1 + 1?".into()), "Problem:\n1 + 1?\n\nSolution:\n");
/// assert_eq!(template.answer_text(" 2\n"), "2");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlainTemplate {
    /// Text before the problem.
    pub before: String,
    /// Text between the problem and the answer.
    pub between: String,
}

impl Default for PlainTemplate {
    fn default() -> Self {
        Self { before: "Problem:\n".into(), between: "\n\nSolution:\n".into() }
    }
}

impl PlainTemplate {
    /// Returns the text before the answer, without earlier turns.
    pub fn prompt_text(&self, prompt: Prompt<'_>) -> String {
        let system = prompt.system.map_or(String::new(), |text| format!("{}\n\n", text.trim()));
        format!("{system}{}", self.problem_text(prompt.problem))
    }

    fn problem_text(&self, problem: &str) -> String {
        format!("{}{}{}", self.before, problem.trim(), self.between)
    }

    /// Converts the layout to a chat template for tools that read the model folder. Such tools do not prepend
    /// a BOS token to the template's text, so the template includes it if the tokenizer has one. With
    /// `systems`, the template supports system messages.
    pub fn to_jinja(&self, tokenizer: &TextTokenizer, systems: bool) -> String {
        // A JSON string is a valid Jinja string.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let begin = tokenizer.bos_text();
        let begin = match begin.is_empty() {
            true => begin,
            false => format!("{{{{- {} }}}}\n", quoted(&begin)),
        };
        let system = match systems {
            true => {
                "{%- if message.role == 'system' %}{{ message.content | trim + '\\n\\n' }}\n\
                 {%- elif "
            }
            false => "{%- if ",
        };
        format!(
            "{begin}{{%- for message in messages %}}\n\
             {system}message.role == 'user' %}}{{{{ {} + message.content | trim + {} }}}}\n\
             {{%- elif message.role == 'assistant' %}}{{{{ message.content | trim + eos_token }}}}\n\
             {{%- endif %}}\n\
             {{%- endfor %}}",
            quoted(&self.before),
            quoted(&self.between)
        )
    }

    /// Returns the text of an answer.
    pub fn answer_text<'a>(&self, solution: &'a str) -> &'a str {
        solution.trim()
    }
}

impl PromptTemplate for PlainTemplate {
    fn prompt(&self, tokenizer: &TextTokenizer, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        let first = prompt.earlier.first().map_or(prompt.problem, |turn| &turn.problem);
        let first = Prompt { problem: first, ..prompt };
        let mut tokens = tokenizer.with_bos(tokenizer.encode(&self.prompt_text(first))?);
        let next = prompt.earlier.iter().skip(1).map(|turn| turn.problem.as_str());
        for (turn, next) in prompt.earlier.iter().zip(next.chain([prompt.problem])) {
            tokens.extend(tokenizer.encode(self.answer_text(&turn.solution))?);
            tokens.push(tokenizer.end_token());
            tokens.extend(tokenizer.encode(&self.problem_text(next))?);
        }
        Ok(tokens)
    }

    fn row(
        &self,
        tokenizer: &TextTokenizer,
        prompt: Prompt<'_>,
        solution: &str,
    ) -> Result<RowTokens> {
        let mut tokens = self.prompt(tokenizer, prompt)?;
        let prompt = tokens.len();
        tokens.extend(tokenizer.encode(self.answer_text(solution))?);
        tokens.push(tokenizer.end_token());
        Ok(RowTokens { tokens, prompt })
    }
}
