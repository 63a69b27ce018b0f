//! Teachers: long and short answers to problems with known answers, asked of servers that speak
//! OpenAI's chat completions or of models in folders, and kept where they are correct. Also a judge of
//! answers behind such a server.
//!
//! ```text
//! problems --sieve--> asked of both teachers, sample by sample --grade--> pairs --> training
//!                               |           ^
//!                               v           |
//!                         responses.jsonl: what was answered once is not asked again
//! ```

mod card;
mod chat_config;
mod client;
mod collect;
mod config;
mod local;
mod make;
mod pace;
mod parts;
mod reply;
mod report;
mod round;
mod server;
mod sieve;
mod store;

pub use chat_config::ChatConfig;
pub use client::{ChatClient, Completion, CompletionOptions};
pub use config::{Keep, MakePairsConfig, Pick, TeacherConfig};
pub use local::{LocalConfig, LocalTeacher};
pub use make::{PairsDirectory, make_pairs, make_pairs_with};
pub use parts::join_pairs;
pub use reply::{ReasoningForm, TeacherSample};
pub use report::{AnswerCounts, LengthStatistics, PairsReport, ProblemCounts};
pub use server::ServerTeacher;

use crate::context::StopFlag;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a teacher is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeacherPrompt {
    /// The system's text that comes with the problem; the teacher's own setting replaces it.
    pub system: Option<String>,
    /// The problem, with the instruction that follows it.
    pub prompt: String,
    /// Seed of the draws.
    pub seed: u64,
    /// Answers that are asked for at once.
    pub n: usize,
}

impl TeacherPrompt {
    /// What a model in a folder is asked.
    pub(crate) fn prompt(&self) -> crate::data::Prompt<'_> {
        crate::data::Prompt { system: self.system.as_deref(), ..(&self.prompt).into() }
    }
}

/// What a teacher answers to one question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Its answers, as many as were asked for, or fewer.
    pub samples: Vec<TeacherSample>,
    /// Tokens of the question, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens of all answers, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
}

/// Who answers questions: a server, or a model in a folder.
pub trait Teacher: Send + Sync {
    /// Its name, such as the model's.
    fn name(&self) -> String;

    /// Where it is: an address or a folder.
    fn place(&self) -> String;

    /// All that its answer to a question depends on; equal requests are asked once.
    fn request(&self, question: &TeacherPrompt) -> Value;

    /// Questions that it is asked at a time by one thread.
    fn batch(&self) -> usize {
        1
    }

    /// Threads that ask it.
    fn threads(&self) -> usize {
        1
    }

    /// What it waits for, in words for a user, if it does and this was not said yet.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What is to be said of its answers as a whole, once all are there.
    fn notice(&self) -> Option<String> {
        None
    }

    /// Answers to questions, in their order.
    ///
    /// # Errors
    /// Says whom the failure concerns. Of several questions then none is answered.
    fn ask(&self, questions: &[TeacherPrompt], stop: &StopFlag) -> Result<Vec<Response>, Failure>;
}

/// Why a teacher did not answer.
#[derive(Debug)]
pub enum Failure {
    /// A stop was asked for.
    Stopped,
    /// This question it refuses, others it may answer.
    One(Error),
    /// It did not answer now, however often it was asked; it may do so later.
    Busy(Error),
    /// It will answer no question, as with a wrong key.
    All(Error),
}

impl Failure {
    /// What happened; after a stop [`Error::Stopped`].
    pub fn into_error(self) -> Error {
        match self {
            Self::Stopped => Error::stopped("nothing is lost"),
            Self::One(error) | Self::Busy(error) | Self::All(error) => error,
        }
    }
}

fn server_error(url: &str, what: impl Into<String>, hint: &str) -> Error {
    Error::Server { url: url.to_owned(), what: what.into(), hint: hint.into() }
}
