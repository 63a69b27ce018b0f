//! What a model is asked.

use crate::data::{EarlierTurn, Prompt};
use serde::{Deserialize, Serialize};

/// A problem and its reference answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The system's text, where the problem comes with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The exchanges before the problem, in a conversation of several turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTurn>,
    /// The problem.
    pub problem: String,
    /// The reference answer, as [`final_answer`](super::final_answer) gives it.
    pub reference: String,
}

impl Question {
    /// What a model is asked.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), earlier: &self.earlier, problem: &self.problem }
    }
}
