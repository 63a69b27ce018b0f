//! A client for chat completions (vLLM, llama.cpp, Ollama, paid services).
//!
//! Special here: every answer is bounded in size and time; what may pass by itself (a busy server, a
//! connection that breaks) is tried again after a pause that grows or that the server asks for; the
//! key is read from an environment variable and stands in no message.

use crate::error::{Error, Result};
use crate::eval::{Judge, judge_prompt, judge_verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// Largest answer that is read, in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// Longest pause before another try.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatConfig {
    /// Its address up to `/chat/completions`, such as `http://localhost:8000/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The environment variable that holds the key; without such a variable none is sent.
    pub key_variable: String,
    /// Length limit of an answer in tokens.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Seconds to wait for an answer.
    pub timeout: u64,
    /// Tries after the first.
    pub retries: usize,
}

impl Default for ChatConfig {
    fn default() -> Self {
        Self {
            url: "http://localhost:8000/v1".into(),
            model: String::new(),
            key_variable: "OPENAI_API_KEY".into(),
            max_tokens: 1024,
            temperature: 0.0,
            timeout: 120,
            retries: 4,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its text.
    pub text: String,
    /// Why it ended, such as `stop` or `length`.
    pub finish_reason: Option<String>,
    /// Its tokens, where the server tells.
    pub tokens: Option<u64>,
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct ChatClient {
    config: ChatConfig,
    agent: ureq::Agent,
}

/// What became of one try.
enum Attempt {
    Answer(String),
    /// It may go well later; the pause is the server's wish.
    Again(String, Option<Duration>),
    Failed(String, &'static str),
}

impl ChatClient {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Config`] for an address that is none.
    pub fn new(config: ChatConfig) -> Result<Self> {
        if !config.url.starts_with("http://") && !config.url.starts_with("https://") {
            let what = format!("it is \"{}\"", config.url);
            return Err(Error::config("url", what, "Give http://HOST/v1 or https://HOST/v1"));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(config.timeout.max(1))))
            .http_status_as_error(false)
            .build()
            .new_agent();
        Ok(Self { config, agent })
    }

    fn failed(&self, what: impl Into<String>, hint: &str) -> Error {
        Error::Server { url: self.config.url.clone(), what: what.into(), hint: hint.into() }
    }

    /// The answer to a conversation of `(role, content)`.
    ///
    /// # Errors
    /// [`Error::Server`]: it cannot be reached, refuses, or answers with what is no chat completion.
    pub fn complete(&self, messages: &[(&str, &str)]) -> Result<Completion> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|(role, content)| json!({ "role": role, "content": content }))
            .collect();
        let request = json!({
            "model": self.config.model,
            "messages": messages,
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        });
        let mut pause = Duration::from_millis(500);
        let mut tries = 0;
        loop {
            match self.attempt(&request) {
                Attempt::Answer(body) => return self.read(&body),
                Attempt::Failed(what, hint) => return Err(self.failed(what, hint)),
                Attempt::Again(what, _) if tries >= self.config.retries => {
                    let what = format!("{what}, {} times", tries + 1);
                    return Err(
                        self.failed(what, "Check that the server runs and is not overloaded")
                    );
                }
                Attempt::Again(_, wish) => {
                    std::thread::sleep(wish.unwrap_or(pause).min(LONGEST_PAUSE));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    tries += 1;
                }
            }
        }
    }

    fn attempt(&self, request: &Value) -> Attempt {
        let url = format!("{}/chat/completions", self.config.url.trim_end_matches('/'));
        let mut post = self.agent.post(&url);
        if let Ok(key) = std::env::var(&self.config.key_variable) {
            post = post.header("Authorization", &format!("Bearer {key}"));
        }
        let mut response = match post.send_json(request) {
            Ok(response) => response,
            Err(error) => return Attempt::Again(format!("it cannot be asked: {error}"), None),
        };
        let status = response.status().as_u16();
        let wish = response
            .headers()
            .get("retry-after")
            .and_then(|wish| wish.to_str().ok()?.trim().parse().ok().map(Duration::from_secs));
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_string();
        match (status, body) {
            (200..=299, Ok(body)) => Attempt::Answer(body),
            (200..=299, Err(error)) => {
                Attempt::Again(format!("its answer broke off: {error}"), wish)
            }
            (401 | 403, _) => Attempt::Failed(
                format!("it refuses access (status {status})"),
                "Put the right key into the environment variable",
            ),
            (408 | 429 | 500..=599, _) => {
                Attempt::Again(format!("it answered with status {status}"), wish)
            }
            (status, body) => {
                let said: String = body.unwrap_or_default().chars().take(200).collect();
                Attempt::Failed(
                    format!("it answered with status {status}: {said}"),
                    "Check address and model",
                )
            }
        }
    }

    fn read(&self, body: &str) -> Result<Completion> {
        let wrong = |what: &str| {
            let said: String = body.chars().take(200).collect();
            self.failed(format!("{what}: {said}"), "Check that it speaks OpenAI's chat completions")
        };
        let json: Value =
            serde_json::from_str(body).map_err(|_| wrong("its answer is not JSON"))?;
        let choice = &json["choices"][0];
        let text = choice["message"]["content"].as_str();
        Ok(Completion {
            text: text.ok_or_else(|| wrong("its answer has no message"))?.to_owned(),
            finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
            tokens: json["usage"]["completion_tokens"].as_u64(),
        })
    }
}

impl Judge for ChatClient {
    fn agrees(&mut self, problem: &str, reference: &str, stated: &str) -> Result<Option<bool>> {
        let prompt = judge_prompt(problem, reference, stated);
        let reply = self.complete(&[("user", &prompt)])?;
        Ok(judge_verdict(&reply.text))
    }
}
