//! How a server with chat completions is asked: address, model, draws, limits, pace.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What most servers call the length limit, and what OpenAI's newer models do.
pub(super) const MAX_TOKENS: &str = "max_tokens";
pub(super) const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";

/// Fields of a request that have settings of their own, or none.
const OWN_FIELDS: [&str; 7] = ["model", "messages", "n", "seed", "stream", "temperature", "top_p"];

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatConfig {
    /// Its address up to `/chat/completions`, such as `http://localhost:8000/v1`.
    pub url: String,
    /// The model's name there; where it is empty, the one that the server has.
    pub model: String,
    /// The environment variable that holds the key; where it is empty, OPENAI_API_KEY for
    /// api.openai.com, and no key for others.
    pub key_variable: String,
    /// Message of the system; none where it is empty.
    pub system: String,
    /// Length limit of an answer in tokens, reasoning included; 0 leaves it to the server.
    pub max_tokens: usize,
    /// The request's field for `max_tokens`: newer models take it as `max_completion_tokens` only.
    pub max_tokens_field: String,
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
    /// What else the request holds, such as `chat_template_kwargs`; it is written to files as it is.
    pub extra: Map<String, Value>,
}

impl Default for ChatConfig {
    fn default() -> Self {
        Self {
            url: "http://localhost:8000/v1".into(),
            model: String::new(),
            key_variable: String::new(),
            system: String::new(),
            max_tokens: 8192,
            max_tokens_field: MAX_TOKENS.into(),
            temperature: 0.0,
            top_p: 1.0,
            timeout: 600,
            retries: 6,
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
        // Whatever stands in an address is written to files and messages.
        let hint = "Give http://HOST/v1 or https://HOST/v1, the key in an environment variable";
        if self.url.contains(['@', '?', '#']) {
            return refuse("url", "it holds more than a host and a path".into(), hint);
        }
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            return refuse("url", format!("it is \"{}\"", self.url), hint);
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
        let field = self.max_tokens_field.as_str();
        let is_name = field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || !(1..=64).contains(&field.len()) || OWN_FIELDS.contains(&field) {
            let what = format!("it is {field:?}");
            let hint = "Name the field for the length limit: max_tokens or max_completion_tokens";
            return refuse("max_tokens_field", what, hint);
        }
        // As it is called by default it may be there too; the setting then counts.
        let limit = Some(field).filter(|field| *field != MAX_TOKENS);
        for key in OWN_FIELDS.into_iter().chain(limit) {
            if self.extra.contains_key(key) {
                let what = format!("`{key}` is in it");
                return refuse("extra", what, "It has a setting of its own, or none");
            }
        }
        Ok(())
    }
}
