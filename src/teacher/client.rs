//! A client for OpenAI-compatible chat completions (vLLM, llama.cpp, Ollama, paid services).
//!
//! Responses are limited in size and time. Temporary failures (a busy server, a broken connection, a
//! response that is not JSON) are retried with exponential backoff and jitter, after at least the pause
//! of `Retry-After`. During a pause that the server asks for, no thread sends a request. The key is read
//! from an environment variable and appears in no message.

use super::chat_config::{ChatConfig, MAX_COMPLETION_TOKENS, MAX_TOKENS};
use super::pace::Pace;
use super::reply::{ChatReply, TeacherSample};
use super::{Failure, server_error};
use crate::context::{Context, StopFlag};
use crate::data::reading::lenient_json;
use crate::error::{Error, Result};
use crate::eval::{Judge, judge_prompt, judge_verdict};
use crate::random::Stream;
use crate::text::duration;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::RequestBuilder;

/// Maximum size of a response in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// First pause before a retry, and the longest one unless the server asks for more.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Maximum total time that a question waits because the server asks for pauses.
const LONGEST_WISH: Duration = Duration::from_secs(600);
/// Time limit for listing the models.
const MODELS_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two notices about waiting for a server.
pub(super) const TROUBLE_EVERY: Duration = Duration::from_secs(10);
/// The server that OPENAI_API_KEY belongs to.
const OPENAI: &str = "https://api.openai.com/";

/// Options of one request, besides its messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompletionOptions {
    /// Number of answers to the same messages. 0 counts as 1. Not every server supports more.
    pub n: usize,
    /// Random seed for sampling, for servers that support it.
    pub seed: Option<u64>,
}

/// A server's answer to a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Why the answer ended, such as `stop` or `length`.
    pub finish_reason: Option<String>,
    /// Number of tokens, if the server reports it.
    pub tokens: Option<u64>,
}

/// A client of one server. Clones share their request rate and can be used from several threads.
#[derive(Clone, Debug)]
pub struct ChatClient {
    config: ChatConfig,
    agent: ureq::Agent,
    pace: Arc<Pace>,
    /// Number of pauses so far, the counter of their jitter.
    pauses: Arc<AtomicU64>,
    /// What the client is waiting for, until it is reported.
    trouble: Arc<Mutex<Option<String>>>,
    /// Number of responses with broken characters.
    broken: Arc<AtomicU64>,
}

/// The result of one attempt.
enum Attempt {
    Answer(ChatReply),
    /// A temporary failure, with the pause that the server asks for.
    Again(String, Option<Duration>),
    /// A rate limit, with the pause that the server asks for.
    Slower(String, Duration),
    Failed(Failure),
}

impl ChatClient {
    /// Creates a client without sending a request.
    ///
    /// # Errors
    /// Same as [`ChatConfig::validate`].
    pub fn new(config: ChatConfig) -> Result<Self> {
        config.validate()?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(config.timeout)))
            .http_status_as_error(false)
            .build()
            .new_agent();
        let pace = Arc::new(Pace::new(config.requests_per_minute));
        let (pauses, trouble, broken) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { config, agent, pace, pauses, trouble, broken })
    }

    /// Shares the request rate of another client of the same server.
    pub(super) fn with_pace_of(mut self, other: &Self) -> Self {
        self.pace = other.pace.clone();
        self
    }

    /// Returns what the client is waiting for, if it is and this was not reported yet.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns a message about the responses as a whole, for after the last one.
    pub fn notice(&self) -> Option<String> {
        let count = self.broken.load(Ordering::Relaxed);
        (count > 0).then(|| {
            let replies = if count == 1 { "reply" } else { "replies" };
            format!(
                "{count} {replies} of {} contained broken Unicode, which was replaced by U+FFFD",
                self.config.url
            )
        })
    }

    /// Returns the client's settings.
    pub fn config(&self) -> &ChatConfig {
        &self.config
    }

    fn failed(&self, what: impl Into<String>, hint: &str) -> Error {
        server_error(&self.config.url, what, hint)
    }

    /// Returns the body of a request.
    pub(super) fn request(&self, messages: &[(&str, &str)], ask: CompletionOptions) -> Value {
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
        // Settings at their neutral value are not sent, since not every server supports them.
        if self.config.max_tokens > 0 && !request.contains_key(MAX_COMPLETION_TOKENS) {
            request.insert(self.config.max_tokens_field.clone(), self.config.max_tokens.into());
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

    /// Sends a conversation of `(role, content)` and returns the answer. Waiting for the server is reported
    /// to the context. A stop returns without waiting for the answer.
    ///
    /// # Errors
    /// [`Error::Server`] if the server cannot be reached, refuses, or does not return a chat completion;
    /// [`Error::Stopped`].
    pub fn complete(&self, messages: &[(&str, &str)], context: &Context<'_>) -> Result<Completion> {
        let request = self.request(messages, CompletionOptions::default());
        let (client, stop) = (self.clone(), context.stop_flag().clone());
        let mut said: Option<Instant> = None;
        let reply = context.aside(move || client.send(&request, &stop), &mut || match said
            .is_none_or(|at| at.elapsed() > TROUBLE_EVERY)
        {
            true => self.trouble().map_or(Ok(()), |trouble| {
                said = Some(Instant::now());
                context.notice(trouble)
            }),
            false => Ok(()),
        })?;
        let reply = reply.map_err(Failure::into_error)?;
        let tokens = reply.completion_tokens;
        let TeacherSample { content, finish_reason, .. } =
            reply.samples.into_iter().next().unwrap_or_default();
        Ok(Completion { text: content, finish_reason, tokens })
    }

    /// Sends a request until it is answered, the retries are used up, or a stop is requested.
    pub(super) fn send(&self, request: &Value, stop: &StopFlag) -> Result<ChatReply, Failure> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        let mut waited = Duration::ZERO;
        loop {
            self.pace.wait(stop)?;
            // Jitter, so that threads that failed together do not retry together.
            let number = self.pauses.fetch_add(1, Ordering::Relaxed);
            let spread = pause.mul_f64(0.5 + Stream::new(0, "pause", number).unit());
            let (what, wait) = match self.attempt(request) {
                Attempt::Answer(reply) => return Ok(reply),
                Attempt::Failed(failure) => return Err(failure),
                Attempt::Slower(what, wish) => {
                    // A rate limit is not a failure until the waiting takes too long.
                    waited += wish.max(spread);
                    if waited > LONGEST_WISH {
                        let wait = duration(wish.as_secs_f64());
                        let what = format!("{what}, and asks to wait {wait}");
                        return Err(Failure::Busy(self.failed(what, "Try again later")));
                    }
                    self.pace.hold_back(wish);
                    (what, wish + spread)
                }
                Attempt::Again(what, _) if tries >= self.config.retries => {
                    let what = format!("{what}, {} times", tries + 1);
                    let hint = "Check that the server is running and not overloaded";
                    return Err(Failure::Busy(self.failed(what, hint)));
                }
                Attempt::Again(what, wish) => {
                    tries += 1;
                    (what, wish.unwrap_or_default().min(LONGEST_WISH).max(spread))
                }
            };
            let again = duration(wait.as_secs_f64());
            let what = format!("{}: {what}; retrying in {again}", self.config.url);
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
            super::pace::sleep(wait, stop)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns the variable of the key and the key, if there is one.
    fn key(&self) -> Option<(&str, String)> {
        let variable = match self.config.key_variable.as_str() {
            "" if self.config.url.starts_with(OPENAI) => "OPENAI_API_KEY",
            variable => variable,
        };
        // A variable must have a name.
        let key = if variable.is_empty() { None } else { std::env::var(variable).ok() };
        Some((variable, key?.trim().to_owned())).filter(|(_, key)| !key.is_empty())
    }

    /// Returns whether the key is sent unencrypted over a network.
    pub(super) fn shows_key(&self) -> bool {
        let host = self.config.url.strip_prefix("http://");
        let is_here =
            |host: &str| ["localhost", "127.", "[::1]"].iter().any(|name| host.starts_with(name));
        self.key().is_some() && host.is_some_and(|host| !is_here(host))
    }

    /// Returns the request with its key.
    fn with_key<B>(&self, request: RequestBuilder<B>) -> Result<RequestBuilder<B>, Failure> {
        match self.key() {
            None => Ok(request),
            Some((_, key)) if key.chars().all(|c| c.is_ascii_graphic()) => {
                Ok(request.header("Authorization", &format!("Bearer {key}")))
            }
            Some((variable, _)) => Err(Failure::All(self.failed(
                format!("the key in {variable} contains an invalid character"),
                "Set it without spaces and line breaks",
            ))),
        }
    }

    /// Returns the server's text, shortened and without the key.
    fn quoted(&self, body: &str) -> String {
        const SHOWN: usize = 200;
        let said = match self.key() {
            Some((_, key)) => body.replace(&key, "***"),
            None => body.to_owned(),
        };
        let said: String = said.chars().take(8 * SHOWN).collect();
        let words = said.split(|c: char| c.is_whitespace() || c.is_control());
        let said = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        said.chars().take(SHOWN).collect()
    }

    /// Describes a status, with the server's text.
    fn status(&self, status: u16, body: &Result<Vec<u8>, ureq::Error>) -> String {
        let said = body.as_ref().map(|body| self.quoted(&String::from_utf8_lossy(body)));
        let said = said.unwrap_or_default();
        let colon = if said.is_empty() { "" } else { ": " };
        format!("it returned status {status}{colon}{said}")
    }

    /// Returns the hint for a rejected request.
    fn hint(&self, body: &Result<Vec<u8>, ureq::Error>, otherwise: &str) -> String {
        let body = body.as_ref().map(|body| String::from_utf8_lossy(body)).unwrap_or_default();
        let field = self.config.max_tokens_field.as_str();
        // Neither name contains the other.
        let names = [MAX_COMPLETION_TOKENS, MAX_TOKENS];
        let mut others = names.into_iter().filter(|name| *name != field);
        if let Some(wanted) = others.clone().find(|name| body.contains(name)) {
            return format!("Set max_tokens_field = \"{wanted}\" in the server's settings");
        }
        match others.next().filter(|_| body.contains(field)) {
            None => otherwise.to_owned(),
            Some(other) => format!(
                "Check max_tokens, and whether the server expects another field name for it \
                 (max_tokens_field = \"{other}\")"
            ),
        }
    }

    fn refuses_access(&self, status: u16) -> Failure {
        let hint = match (self.key(), self.config.key_variable.as_str()) {
            (Some((variable, _)), _) => format!("Set {variable} to a valid key"),
            (None, "") => "Give the name of the environment variable that holds the key".to_owned(),
            (None, variable) => format!("Set {variable} to the key; it is not set"),
        };
        Failure::All(self.failed(format!("it refuses access (status {status})"), &hint))
    }

    fn attempt(&self, request: &Value) -> Attempt {
        let url = format!("{}/chat/completions", self.config.url.trim_end_matches('/'));
        let post = match self.with_key(self.agent.post(&url)) {
            Ok(post) => post,
            Err(failure) => return Attempt::Failed(failure),
        };
        let mut response = match post.send_json(request) {
            Ok(response) => response,
            Err(error) => {
                return Attempt::Again(
                    format!("the request failed: {}", self.quoted(&error.to_string())),
                    None,
                );
            }
        };
        let status = response.status().as_u16();
        let wish = response.headers().get("retry-after").and_then(|wish| wish.to_str().ok());
        let wish = wish.and_then(wished_pause);
        // Bytes, since a server may truncate its response inside a character.
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        match (status, body) {
            (200..=299, Ok(body)) => match ChatReply::parse(&body) {
                Ok(reply) => {
                    self.broken
                        .fetch_add(u64::from(reply.had_broken_characters), Ordering::Relaxed);
                    Attempt::Answer(reply)
                }
                Err(what) => {
                    let said = self.quoted(&String::from_utf8_lossy(&body));
                    Attempt::Again(format!("{what}: {said}"), wish)
                }
            },
            (200..=299, Err(ureq::Error::BodyExceedsLimit(_))) => {
                let what = format!("its response is larger than {} MiB", MOST_BYTES >> 20);
                let hint = "Set a length limit (max_tokens)";
                Attempt::Failed(Failure::One(self.failed(what, hint)))
            }
            (200..=299, Err(error)) => {
                let said = self.quoted(&error.to_string());
                Attempt::Again(format!("its response broke off: {said}"), wish)
            }
            (401 | 403, _) => Attempt::Failed(self.refuses_access(status)),
            (429, body) => match wish {
                Some(wish) => Attempt::Slower(self.status(status, &body), wish),
                None => Attempt::Again(self.status(status, &body), None),
            },
            (408 | 425 | 500..=599, body) => Attempt::Again(self.status(status, &body), wish),
            // For example, the prompt is too long.
            (400 | 413 | 422, body) => Attempt::Failed(Failure::One(self.failed(
                self.status(status, &body),
                &self.hint(&body, "Check the settings and the problem"),
            ))),
            (_, body) => Attempt::Failed(Failure::All(self.failed(
                self.status(status, &body),
                &self.hint(&body, "Check the URL and the model name"),
            ))),
        }
    }

    /// Asks the server for the name of its only model if the settings name none.
    ///
    /// # Errors
    /// [`Error::Server`] if the request fails or the server does not list exactly one model;
    /// [`Error::Stopped`].
    pub fn with_served_model(mut self, context: &Context<'_>) -> Result<Self> {
        if self.config.model.is_empty() {
            let client = self.clone();
            let served = context.aside(move || client.served_model(), &mut || Ok(()))?;
            self.config.model = served.map_err(Failure::into_error)?;
        }
        Ok(self)
    }

    fn served_model(&self) -> Result<String, Failure> {
        const TRIES: usize = 3;
        let hint = "Check that the server is running, or set the model's name";
        let url = format!("{}/models", self.config.url.trim_end_matches('/'));
        let mut tries = 0;
        let (status, body) = loop {
            tries += 1;
            let get = self.with_key(self.agent.get(&url))?;
            let get = get.config().timeout_global(Some(MODELS_TIMEOUT)).build();
            match get.call() {
                Err(error) if tries >= TRIES => {
                    let said = self.quoted(&error.to_string());
                    let what = format!("listing its models failed: {said}");
                    return Err(Failure::All(self.failed(what, hint)));
                }
                Ok(mut response)
                    if tries >= TRIES || !matches!(response.status().as_u16(), 429 | 500..=599) =>
                {
                    let status = response.status().as_u16();
                    let body = response.body_mut().with_config().limit(MOST_BYTES);
                    break (status, body.read_to_vec());
                }
                _ => std::thread::sleep(2 * FIRST_PAUSE),
            }
        };
        if matches!(status, 401 | 403) {
            return Err(self.refuses_access(status));
        }
        let json = body.as_ref().ok().and_then(|body| lenient_json::parse(body).ok());
        let json = json.map(|(json, _)| json).unwrap_or_default();
        let models = json["data"].as_array().filter(|_| (200..300).contains(&status));
        let Some(models) = models else {
            let what = format!("it does not list its models; {}", self.status(status, &body));
            return Err(Failure::All(self.failed(what, hint)));
        };
        let models: Vec<&str> = models.iter().filter_map(|model| model["id"].as_str()).collect();
        match models[..] {
            [model] => Ok(model.to_owned()),
            _ => {
                let named = self.quoted(&models.join(", "));
                let what = format!("it has {} models ({named})", models.len());
                Err(Failure::All(self.failed(what, "Set the name of the model to ask")))
            }
        }
    }
}

/// Parses the pause of a `Retry-After` header: seconds or a date.
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
    fn name(&self) -> &str {
        &self.config.model
    }

    fn agrees(
        &mut self,
        problem: &str,
        reference: &str,
        stated: &str,
        context: &Context<'_>,
    ) -> Result<Option<bool>> {
        let prompt = judge_prompt(problem, reference, stated);
        let reply = self.complete(&[("user", &prompt)], context)?;
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
    fn the_length_limit_goes_by_the_name_that_is_set() {
        let request = |config: ChatConfig| {
            let client = ChatClient::new(config).unwrap();
            client.request(&[("user", "?")], CompletionOptions::default())
        };
        let config = ChatConfig { model: "m".into(), max_tokens: 7, ..ChatConfig::default() };
        // Exactly this text: its hash finds responses that earlier builds saved.
        let plain = json!({
            "model": "m",
            "messages": [{ "role": "user", "content": "?" }],
            "temperature": 0.0,
            "max_tokens": 7,
        });
        assert_eq!(request(config.clone()), plain);
        let hash = crate::teacher::store::request_hash("long", &plain);
        assert_eq!(hash[..4], [0x3b, 0x96, 0xca, 0x0b]);
        let named = |field: &str| ChatConfig { max_tokens_field: field.into(), ..config.clone() };
        let other = request(named("max_completion_tokens"));
        assert_eq!((&other["max_completion_tokens"], other.get("max_tokens")), (&json!(7), None));
        for bad in ["", "max tokens", "n", "messages", "temperature", &"x".repeat(65), "é"] {
            let error = named(bad).validate().unwrap_err().to_string();
            assert!(error.contains("max_tokens_field"), "{error}");
        }
        let mut both = named("max_completion_tokens");
        both.extra.insert("max_completion_tokens".into(), json!(3));
        assert!(both.validate().is_err());
        // As in earlier versions, the field in `extra` replaces the setting.
        let mut extra = config.clone();
        extra.extra.insert("max_completion_tokens".into(), json!(3));
        assert_eq!(request(extra).get("max_tokens"), None);
    }

    #[test]
    fn addresses_hold_no_secrets() {
        let with = |url: &str| ChatConfig { url: url.into(), ..ChatConfig::default() }.validate();
        assert!(with("https://api.example.com/v1").is_ok());
        let bad = ["http://me:secret@host/v1", "http://host/v1?key=secret", "me:secret@host/v1"];
        for bad in bad.into_iter().chain(["ftp://host", "host", "http://", "http://a b"]) {
            let error = with(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
