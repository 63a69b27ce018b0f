//! Teachers that write long and short answers to problems with known answers (feature `teacher`). Only
//! correct answers become training pairs.
//!
//! [`make_pairs`] asks two teachers and writes the rows to a [`PairsDirectory`]. A [`Teacher`] is a
//! [`ServerTeacher`] (any server with OpenAI-compatible chat completions), a [`LocalTeacher`] (a model that
//! runs in this process), or your own type, passed to [`make_pairs_with`]. [`join_pairs`] joins the parts of
//! several processes. [`ChatClient`] is the client of a server; it is also a [`Judge`](crate::eval::Judge).
//!
//! ```text
//! problems --sieve--> ask both teachers, sample by sample --grade--> pairs --> training
//!                               |           ^
//!                               v           |
//!                         responses.jsonl: saved responses are never requested again
//! ```
//!
//! A teacher of your own answers a batch of prompts:
//!
//! ```
//! use mixdistill::context::{Context, StopFlag};
//! use mixdistill::teacher::{
//!     Failure, MakePairsConfig, PairsDirectory, Response, Teacher, TeacherPrompt, TeacherSample,
//!     make_pairs_with,
//! };
//!
//! /// Gives the same answer to every problem.
//! struct Fixed(&'static str);
//!
//! impl Teacher for Fixed {
//!     fn name(&self) -> String {
//!         self.0.to_owned()
//!     }
//!
//!     fn place(&self) -> String {
//!         "this process".into()
//!     }
//!
//!     fn request(&self, question: &TeacherPrompt) -> serde_json::Value {
//!         serde_json::json!({ "teacher": self.0, "prompt": question.prompt, "seed": question.seed })
//!     }
//!
//!     fn ask(&self, questions: &[TeacherPrompt], _: &StopFlag) -> Result<Vec<Response>, Failure> {
//!         let sample = TeacherSample::of_text(self.0, Some("stop".into()));
//!         let response = Response { samples: vec![sample], ..Response::default() };
//!         Ok(vec![response; questions.len()])
//!     }
//! }
//!
//! # fn main() -> mixdistill::Result<()> {
//! let folder = tempfile::tempdir().unwrap();
//! let problems = folder.path().join("problems.jsonl");
//! std::fs::write(&problems, r#"{"problem": "What is 2 + 2?", "answer": "4"}"#).unwrap();
//!
//! let config = MakePairsConfig { problems, ..MakePairsConfig::default() };
//! let out = PairsDirectory::open(&folder.path().join("pairs"))?;
//! let (long, short) = (Fixed(r"Two and two make four: \boxed{4}."), Fixed(r"\boxed{4}"));
//! let report = make_pairs_with(&config, [&long, &short], &out, &Context::default())?;
//! assert_eq!((report.pairs, report.rows), (1, [1, 1]));
//! # Ok(())
//! # }
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

/// A question to a teacher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeacherPrompt {
    /// The system message that comes with the problem. The teacher's own setting replaces it.
    pub system: Option<String>,
    /// The problem, followed by the instruction if there is one.
    pub prompt: String,
    /// Random seed for sampling.
    pub seed: u64,
    /// Number of answers to give.
    pub n: usize,
}

impl TeacherPrompt {
    /// Returns the prompt of a local model.
    pub(crate) fn prompt(&self) -> crate::data::Prompt<'_> {
        crate::data::Prompt { system: self.system.as_deref(), ..(&self.prompt).into() }
    }
}

/// A teacher's response to one question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The answers: as many as requested, or fewer.
    pub samples: Vec<TeacherSample>,
    /// Number of prompt tokens, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Number of tokens of all answers, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
}

/// Answers questions, such as a server or a local model.
pub trait Teacher: Send + Sync {
    /// Returns the teacher's name, such as the name of its model.
    fn name(&self) -> String;

    /// Returns where the teacher runs: a URL or a folder.
    fn place(&self) -> String;

    /// Returns everything that the answer to a question depends on. Equal requests are asked only once.
    fn request(&self, question: &TeacherPrompt) -> Value;

    /// Returns the number of questions per call of [`Teacher::ask`].
    fn batch(&self) -> usize {
        1
    }

    /// Returns the number of threads that call [`Teacher::ask`].
    fn threads(&self) -> usize {
        1
    }

    /// Returns what the teacher is waiting for, as a message for the user. `None` if it is not waiting, or if
    /// this was already returned.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Returns a message about the answers as a whole, for after the last one.
    fn notice(&self) -> Option<String> {
        None
    }

    /// Answers questions. Returns one response per question, in order.
    ///
    /// # Errors
    /// A [`Failure`] that says which questions it concerns. None of the given questions is then answered.
    fn ask(&self, questions: &[TeacherPrompt], stop: &StopFlag) -> Result<Vec<Response>, Failure>;
}

/// Why a teacher did not answer.
#[derive(Debug)]
pub enum Failure {
    /// A stop was requested.
    Stopped,
    /// The teacher refuses this question, but may answer others.
    One(Error),
    /// The teacher does not answer now, even after retries, but may do so later.
    Busy(Error),
    /// The teacher will not answer any question, for example because of a wrong key.
    All(Error),
}

impl Failure {
    /// Returns the error. After a stop, [`Error::Stopped`].
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
