//! A server as a teacher.

use super::{ChatClient, ChatConfig, CompletionOptions, Failure, Response, Teacher, TeacherPrompt};
use crate::context::{Context, StopFlag};
use crate::error::Result;
use serde_json::Value;

/// A server as a teacher, asked by several threads.
#[derive(Clone, Debug)]
pub struct ServerTeacher {
    client: ChatClient,
    concurrency: usize,
}

impl ServerTeacher {
    /// Returns a teacher with `concurrency` simultaneous requests. If the settings name no model, asks the
    /// server for its only one.
    ///
    /// # Errors
    /// Same as [`ChatConfig::validate`]; [`Error::Server`](crate::Error::Server) if the server does not
    /// list exactly one model; [`Error::Stopped`](crate::Error::Stopped).
    pub fn new(config: ChatConfig, concurrency: usize, context: &Context<'_>) -> Result<Self> {
        Ok(Self { client: ChatClient::new(config)?.with_served_model(context)?, concurrency })
    }

    /// Shares the request rate of another teacher at the same URL.
    pub(super) fn with_pace_of(mut self, other: &Self) -> Self {
        self.client = self.client.with_pace_of(&other.client);
        self
    }

    /// Returns whether the key is sent unencrypted over a network.
    pub(super) fn shows_key(&self) -> bool {
        self.client.shows_key()
    }

    /// Returns the settings, including the name of the model.
    pub fn config(&self) -> &ChatConfig {
        self.client.config()
    }
}

impl Teacher for ServerTeacher {
    fn name(&self) -> String {
        self.config().model.clone()
    }

    fn place(&self) -> String {
        self.config().url.clone()
    }

    fn request(&self, question: &TeacherPrompt) -> Value {
        // Greedy decoding needs no seed, and some servers reject one.
        let seed = Some(question.seed).filter(|_| self.config().temperature > 0.0);
        let own = self.config().system.is_empty();
        let system = question.system.as_deref().filter(|_| own).map(|text| ("system", text));
        let messages: Vec<(&str, &str)> =
            system.into_iter().chain([("user", question.prompt.as_str())]).collect();
        self.client.request(&messages, CompletionOptions { n: question.n, seed })
    }

    fn threads(&self) -> usize {
        self.concurrency
    }

    fn trouble(&self) -> Option<String> {
        self.client.trouble()
    }

    fn notice(&self) -> Option<String> {
        self.client.notice()
    }

    fn ask(&self, questions: &[TeacherPrompt], stop: &StopFlag) -> Result<Vec<Response>, Failure> {
        let ask = |question| {
            let reply = self.client.send(&self.request(question), stop)?;
            Ok(Response {
                samples: reply.samples,
                prompt_tokens: reply.prompt_tokens,
                completion_tokens: reply.completion_tokens,
            })
        };
        questions.iter().map(ask).collect()
    }
}
