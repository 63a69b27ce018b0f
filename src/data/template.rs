//! How a problem and its answer become tokens.

use super::tokenizer::TextTokenizer;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// Tokens of a prompt and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowTokens {
    /// Prompt, answer and end token.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt; those after it are trained.
    pub prompt: usize,
}

/// Lays out a prompt and an answer.
pub trait PromptTemplate: Send + Sync {
    /// The tokens before the answer, as they are when the model is asked.
    ///
    /// # Errors
    /// Where the problem cannot be laid out.
    fn prompt(&self, tokenizer: &TextTokenizer, problem: &str) -> Result<Vec<u32>>;

    /// The tokens of [`PromptTemplate::prompt`], then those of the answer and of its end.
    ///
    /// # Errors
    /// Where the problem or the answer cannot be laid out.
    fn row(&self, tokenizer: &TextTokenizer, problem: &str, solution: &str) -> Result<RowTokens>;

    /// The rows of several problems and answers, in their order: the same as
    /// [`PromptTemplate::row`] gives for each, where that is faster together.
    fn rows(&self, tokenizer: &TextTokenizer, answers: &[(&str, &str)]) -> Vec<Result<RowTokens>> {
        let row = |(problem, solution): &(&str, &str)| self.row(tokenizer, problem, solution);
        answers.iter().map(row).collect()
    }

    /// The token that ends an answer.
    fn end_token(&self, tokenizer: &TextTokenizer) -> u32 {
        tokenizer.end_token()
    }
}

/// The built-in template, for models without a chat template of their own.
///
/// ```
/// use mixdistill::data::PlainTemplate;
/// let template = PlainTemplate::default();
/// assert_eq!(template.prompt_text("1 + 1?"), "Problem:\n1 + 1?\n\nSolution:\n");
/// assert_eq!(template.answer_text(" 2\n"), "2");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlainTemplate {
    /// Before the problem.
    pub before: String,
    /// Between the problem and the answer.
    pub between: String,
}

impl Default for PlainTemplate {
    fn default() -> Self {
        Self { before: "Problem:\n".into(), between: "\n\nSolution:\n".into() }
    }
}

impl PlainTemplate {
    /// The text before the answer.
    pub fn prompt_text(&self, problem: &str) -> String {
        format!("{}{}{}", self.before, problem.trim(), self.between)
    }

    /// The layout as a chat template, for tools that read the model's folder; such tools put no BOS
    /// token before what a template gives, so it stands in there where the tokenizer has one. The
    /// system's messages have no place in it.
    pub fn to_jinja(&self, tokenizer: &TextTokenizer) -> String {
        // A JSON text is a text in Jinja too.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let begin = tokenizer.bos_text();
        let begin = match begin.is_empty() {
            true => begin,
            false => format!("{{{{- {} }}}}\n", quoted(&begin)),
        };
        format!(
            "{begin}{{%- for message in messages %}}\n\
             {{%- if message.role == 'user' %}}{{{{ {} + message.content | trim + {} }}}}\n\
             {{%- elif message.role == 'assistant' %}}{{{{ message.content | trim + eos_token }}}}\n\
             {{%- endif %}}\n\
             {{%- endfor %}}",
            quoted(&self.before),
            quoted(&self.between)
        )
    }

    /// The text of the answer.
    pub fn answer_text<'a>(&self, solution: &'a str) -> &'a str {
        solution.trim()
    }
}

impl PromptTemplate for PlainTemplate {
    fn prompt(&self, tokenizer: &TextTokenizer, problem: &str) -> Result<Vec<u32>> {
        Ok(tokenizer.with_bos(tokenizer.encode(&self.prompt_text(problem))?))
    }

    fn row(&self, tokenizer: &TextTokenizer, problem: &str, solution: &str) -> Result<RowTokens> {
        let mut tokens = self.prompt(tokenizer, problem)?;
        let prompt = tokens.len();
        tokens.extend(tokenizer.encode(self.answer_text(solution))?);
        tokens.push(tokenizer.end_token());
        Ok(RowTokens { tokens, prompt })
    }
}
