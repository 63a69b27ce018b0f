//! A server as a teacher.

use super::{ChatClient, ChatConfig, CompletionOptions, Failure, Response, Teacher, TeacherPrompt};
use crate::context::{Context, StopFlag};
use crate::error::Result;
use serde_json::Value;

/// A server with the threads that ask it.
#[derive(Clone, Debug)]
pub struct ServerTeacher {
    client: ChatClient,
    concurrency: usize,
}

impl ServerTeacher {
    /// A server that is asked by so many threads; where its settings name no model, it is asked for
    /// the one that it has.
    ///
    /// # Errors
    /// As [`ChatConfig::validate`]; [`Error::Server`](crate::Error::Server) where it has not exactly
    /// one model; [`Error::Stopped`](crate::Error::Stopped).
    pub fn new(config: ChatConfig, concurrency: usize, context: &Context<'_>) -> Result<Self> {
        Ok(Self { client: ChatClient::new(config)?.with_served_model(context)?, concurrency })
    }

    /// The server with the pace of another one that is asked at the same address.
    pub(super) fn with_pace_of(mut self, other: &Self) -> Self {
        self.client = self.client.with_pace_of(&other.client);
        self
    }

    /// Whether a key goes over the network for all to read.
    pub(super) fn shows_key(&self) -> bool {
        self.client.shows_key()
    }

    /// How it is asked, the model's name included.
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
        // Without draws a seed means nothing, and some servers do not take one.
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
