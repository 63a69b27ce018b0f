//! Questions with reference answers.

use crate::data::{EarlierTurn, Prompt};
use serde::{Deserialize, Serialize};

/// A problem and its reference answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The system message, if the problem comes with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The earlier turns of a conversation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTurn>,
    /// The problem.
    pub problem: String,
    /// The reference answer, in the form that [`final_answer`](super::final_answer) returns.
    pub reference: String,
}

impl Question {
    /// Returns the prompt of the question.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), earlier: &self.earlier, problem: &self.problem }
    }
}
