//! A client for chat completions (vLLM, llama.cpp, Ollama, paid services).
//!
//! Special here: every answer is bounded in size and time; what may pass by itself (a busy server, a
//! connection that breaks, an answer that is no JSON) is tried again after a pause that grows, is
//! spread by chance, and is at least what the server asks for; a busy server is left alone by all
//! threads at once; the key is read from an environment variable and stands in no message.

use super::pace::Pace;
use super::reply::{ChatReply, Sample};
use super::{Failure, server_error};
use crate::error::{Error, Result};
use crate::eval::{Judge, judge_prompt, judge_verdict};
use crate::random::Stream;
use crate::train::StopFlag;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Largest answer that is read, in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// First pause before another try, and the longest without a server's wish.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server gets by asking for it.
const LONGEST_WISH: Duration = Duration::from_secs(600);

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatConfig {
    /// Its address up to `/chat/completions`, such as `http://localhost:8000/v1`.
    pub url: String,
    /// The model's name there; where it is empty, the one that the server has.
    pub model: String,
    /// The environment variable that holds the key; without such a variable none is sent.
    pub key_variable: String,
    /// Message of the system; none where it is empty.
    pub system: String,
    /// Length limit of an answer in tokens, reasoning included; 0 leaves it to the server.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Tokens are drawn among the likeliest whose probabilities sum to this.
    pub top_p: f64,
    /// Seconds to wait for an answer.
    pub timeout: u64,
    /// Tries after the first.
    pub retries: usize,
    /// Requests that are begun in a minute, at most; 0 sets no limit.
    pub requests_per_minute: f64,
    /// What else the request holds, such as `chat_template_kwargs`.
    pub extra: Map<String, Value>,
}

impl Default for ChatConfig {
    fn default() -> Self {
        Self {
            url: "http://localhost:8000/v1".into(),
            model: String::new(),
            key_variable: "OPENAI_API_KEY".into(),
            system: String::new(),
            max_tokens: 8192,
            temperature: 0.0,
            top_p: 1.0,
            timeout: 600,
            retries: 4,
            requests_per_minute: 0.0,
            extra: Map::new(),
        }
    }
}

impl ChatConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
        let host = ["http://", "https://"].iter().find_map(|scheme| self.url.strip_prefix(scheme));
        let Some(host) = host else {
            let what = format!("it is \"{}\"", self.url);
            return refuse("url", what, "Give http://HOST/v1 or https://HOST/v1");
        };
        // Whatever stands in an address is written to files and messages.
        if host.contains(['@', '?', '#']) {
            let what = "it holds more than a host and a path".into();
            return refuse("url", what, "Put the key into the environment variable");
        }
        if !(0.0..=100.0).contains(&self.temperature) {
            let what = format!("it is {}", self.temperature);
            return refuse("temperature", what, "Give a number from 0 to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let what = format!("it is {}", self.top_p);
            return refuse("top_p", what, "Give a number above 0, at most 1");
        }
        if !(0.0..=1e9).contains(&self.requests_per_minute) {
            let what = format!("it is {}", self.requests_per_minute);
            return refuse(
                "requests_per_minute",
                what,
                "Give a positive number, or 0 for no limit",
            );
        }
        for key in ["model", "messages", "n", "seed", "stream", "temperature", "top_p"] {
            if self.extra.contains_key(key) {
                let what = format!("`{key}` is in it");
                return refuse("extra", what, "It has a setting of its own, or none");
            }
        }
        Ok(())
    }
}

/// What one request asks for beside its messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    /// Answers to the same messages, 0 and 1 are one; not every server gives more.
    pub n: usize,
    /// Seed of the draws, for servers that know one.
    pub seed: Option<u64>,
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

/// A client of one server; threads may share it.
#[derive(Clone, Debug)]
pub struct ChatClient {
    config: ChatConfig,
    agent: ureq::Agent,
    pace: Arc<Pace>,
    /// Pauses made, which the next one's length depends on.
    pauses: Arc<AtomicU64>,
}

/// What became of one try.
enum Attempt {
    Answer(ChatReply),
    /// It may go well later; the pause is the server's wish.
    Again(String, Option<Duration>),
    Failed(Failure),
}

impl ChatClient {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// As [`ChatConfig::validate`].
    pub fn new(config: ChatConfig) -> Result<Self> {
        config.validate()?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(config.timeout.max(1))))
            .http_status_as_error(false)
            .build()
            .new_agent();
        let pace = Arc::new(Pace::new(config.requests_per_minute));
        Ok(Self { config, agent, pace, pauses: Arc::default() })
    }

    /// How it asks.
    pub fn config(&self) -> &ChatConfig {
        &self.config
    }

    fn failed(&self, what: impl Into<String>, hint: &str) -> Error {
        server_error(&self.config.url, what, hint)
    }

    /// The body of a request.
    pub(super) fn request(&self, messages: &[(&str, &str)], ask: Ask) -> Value {
        let system = Some(("system", self.config.system.as_str())).filter(|m| !m.1.is_empty());
        let messages: Vec<Value> = system
            .iter()
            .chain(messages)
            .map(|(role, content)| json!({ "role": role, "content": content }))
            .collect();
        let mut request = self.config.extra.clone();
        request.insert("model".into(), self.config.model.clone().into());
        request.insert("messages".into(), messages.into());
        request.insert("temperature".into(), self.config.temperature.into());
        // Settings that change nothing are not sent: not every server knows them.
        if self.config.max_tokens > 0 {
            request.insert("max_tokens".into(), self.config.max_tokens.into());
        }
        if self.config.top_p < 1.0 {
            request.insert("top_p".into(), self.config.top_p.into());
        }
        if ask.n > 1 {
            request.insert("n".into(), ask.n.into());
        }
        if let Some(seed) = ask.seed {
            request.insert("seed".into(), seed.into());
        }
        Value::Object(request)
    }

    /// The answer to a conversation of `(role, content)`.
    ///
    /// # Errors
    /// [`Error::Server`]: it cannot be reached, refuses, or answers with what is no chat completion.
    pub fn complete(&self, messages: &[(&str, &str)]) -> Result<Completion> {
        let reply = self.send(&self.request(messages, Ask::default()), &StopFlag::default());
        let reply = reply.map_err(|failure| match failure.into_error() {
            Some(error) => error,
            None => self.failed("it was not asked to the end", "Ask again"),
        })?;
        let tokens = reply.completion_tokens;
        let Sample { content, finish_reason, .. } =
            reply.samples.into_iter().next().unwrap_or_default();
        Ok(Completion { text: content, finish_reason, tokens })
    }

    /// Sends a request until it is answered, the tries are used up, or a stop is asked for.
    pub(super) fn send(&self, request: &Value, stop: &StopFlag) -> Result<ChatReply, Failure> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            self.pace.wait(stop)?;
            match self.attempt(request) {
                Attempt::Answer(reply) => return Ok(reply),
                Attempt::Failed(failure) => return Err(failure),
                Attempt::Again(what, Some(wish)) if wish > LONGEST_WISH => {
                    let what = format!("{what}, and asks to wait {} s", wish.as_secs());
                    return Err(Failure::All(self.failed(what, "Go on later")));
                }
                Attempt::Again(what, _) if tries >= self.config.retries => {
                    let what = format!("{what}, {} times", tries + 1);
                    let hint = "Check that the server runs and is not overloaded";
                    return Err(Failure::Busy(self.failed(what, hint)));
                }
                Attempt::Again(_, wish) => {
                    // By chance, so that threads which failed together do not come back together.
                    let number = self.pauses.fetch_add(1, Ordering::Relaxed);
                    let share = 0.5 + Stream::new(0, "pause", number).unit();
                    let spread = pause.mul_f64(share);
                    match wish {
                        // The wish is for all threads.
                        Some(wish) => self.pace.hold_back(wish + spread.mul_f64(0.1)),
                        None => super::pace::sleep(spread, stop)?,
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    tries += 1;
                }
            }
        }
    }

    /// The key, if there is one.
    fn key(&self) -> Option<String> {
        std::env::var(&self.config.key_variable).ok().filter(|key| !key.trim().is_empty())
    }

    /// What the server said, shortened and without the key.
    fn quoted(&self, body: &str) -> String {
        const SHOWN: usize = 200;
        let said: String = body.chars().take(4 * SHOWN).collect();
        let said = match self.key() {
            Some(key) => said.replace(key.trim(), "***"),
            None => said,
        };
        said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect()
    }

    fn attempt(&self, request: &Value) -> Attempt {
        let url = format!("{}/chat/completions", self.config.url.trim_end_matches('/'));
        let mut post = self.agent.post(&url);
        if let Some(key) = self.key() {
            post = post.header("Authorization", &format!("Bearer {}", key.trim()));
        }
        let mut response = match post.send_json(request) {
            Ok(response) => response,
            Err(error) => {
                return Attempt::Again(
                    format!("it cannot be asked: {}", self.quoted(&error.to_string())),
                    None,
                );
            }
        };
        let status = response.status().as_u16();
        let wish = response.headers().get("retry-after").and_then(|wish| wish.to_str().ok());
        let wish = wish.and_then(wished_pause);
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_string();
        let refused = |body: Result<String, ureq::Error>| {
            let said = self.quoted(&body.unwrap_or_default());
            format!("it answered with status {status}: {said}")
        };
        match (status, body) {
            (200..=299, Ok(body)) => match ChatReply::parse(&body) {
                Ok(reply) => Attempt::Answer(reply),
                Err(what) => Attempt::Again(format!("{what}: {}", self.quoted(&body)), wish),
            },
            (200..=299, Err(error)) => {
                Attempt::Again(format!("its answer broke off: {error}"), wish)
            }
            (401 | 403, _) => Attempt::Failed(Failure::All(self.failed(
                format!("it refuses access (status {status})"),
                &format!("Put the right key into {}", self.config.key_variable),
            ))),
            (408 | 425 | 429 | 500..=599, _) => {
                Attempt::Again(format!("it answered with status {status}"), wish)
            }
            // A prompt that is too long, say.
            (400 | 413 | 422, body) => Attempt::Failed(Failure::One(
                self.failed(refused(body), "Check the settings and the problem"),
            )),
            (_, body) => {
                Attempt::Failed(Failure::All(self.failed(refused(body), "Check address and model")))
            }
        }
    }

    /// The client with the name of the server's model, where the settings name none.
    ///
    /// # Errors
    /// [`Error::Server`] where it cannot be asked, or has not exactly one model.
    pub fn with_served_model(mut self) -> Result<Self> {
        if !self.config.model.is_empty() {
            return Ok(self);
        }
        let hint = "Check that the server runs, and name its model";
        let url = format!("{}/models", self.config.url.trim_end_matches('/'));
        let mut get = self.agent.get(&url);
        if let Some(key) = self.key() {
            get = get.header("Authorization", &format!("Bearer {}", key.trim()));
        }
        let mut response = get.call().map_err(|error| {
            let said = self.quoted(&error.to_string());
            self.failed(format!("its models cannot be listed: {said}"), hint)
        })?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_string();
        let json: Value =
            body.ok().and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default();
        let models: Vec<&str> = match json["data"].as_array() {
            Some(models) => models.iter().filter_map(|model| model["id"].as_str()).collect(),
            None => {
                let what = format!("it does not list its models (status {status})");
                return Err(self.failed(what, hint));
            }
        };
        match models[..] {
            [model] => self.config.model = model.to_owned(),
            _ => {
                let named: Vec<&str> = models.iter().copied().take(8).collect();
                let what = format!("it has {} models ({})", models.len(), named.join(", "));
                return Err(self.failed(what, "Name the one to ask"));
            }
        }
        Ok(self)
    }
}

/// The pause that a `Retry-After` asks for: seconds, or a date.
fn wished_pause(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let seconds = until.duration_since(jiff::Timestamp::now()).as_secs_f64();
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

impl Judge for ChatClient {
    fn agrees(&mut self, problem: &str, reference: &str, stated: &str) -> Result<Option<bool>> {
        let prompt = judge_prompt(problem, reference, stated);
        let reply = self.complete(&[("user", &prompt)])?;
        Ok(judge_verdict(&reply.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_in_seconds_or_a_date() {
        assert_eq!(wished_pause("3"), Some(Duration::from_secs(3)));
        assert_eq!(wished_pause("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(wished_pause("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for bad in ["", "soon", "-1", "NaN", "inf", "1e300"] {
            assert_eq!(wished_pause(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_hold_no_secrets() {
        let with = |url: &str| ChatConfig { url: url.into(), ..ChatConfig::default() }.validate();
        assert!(with("https://api.example.com/v1").is_ok());
        for bad in ["http://me:secret@host/v1", "http://host/v1?key=secret", "ftp://host", "host"] {
            let error = with(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
