//! How a problem and its answer become text.

use serde::{Deserialize, Serialize};

/// Lays out a prompt and an answer; the end token is added after the answer by the encoding.
pub trait PromptTemplate: Send + Sync {
    /// The text before the answer. Never trained.
    fn prompt(&self, problem: &str) -> String;

    /// The text of the answer. Trained.
    fn answer(&self, solution: &str) -> String;
}

/// The built-in template, for models without a chat template of their own.
///
/// ```
/// use mixdistill::data::{PlainTemplate, PromptTemplate};
/// let template = PlainTemplate::default();
/// assert_eq!(template.prompt("1 + 1?"), "Problem:\n1 + 1?\n\nSolution:\n");
/// assert_eq!(template.answer(" 2\n"), "2");
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

impl PromptTemplate for PlainTemplate {
    fn prompt(&self, problem: &str) -> String {
        format!("{}{}{}", self.before, problem.trim(), self.between)
    }

    fn answer(&self, solution: &str) -> String {
        solution.trim().to_owned()
    }
}
