//! Settings for requests to a server with chat completions: URL, model, sampling, limits, and rate.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The usual request field for the length limit, and that of newer OpenAI models.
pub(super) const MAX_TOKENS: &str = "max_tokens";
pub(super) const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";

/// Request fields that are set by other settings, or not at all, and so cannot be in `extra`.
const OWN_FIELDS: [&str; 7] = ["model", "messages", "n", "seed", "stream", "temperature", "top_p"];

/// Settings for requests to a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatConfig {
    /// Base URL of the server, without `/chat/completions`, such as `http://localhost:8000/v1`. Any server
    /// with OpenAI-compatible chat completions works. The URL must not contain a user name, a key, or a
    /// query.
    pub url: String,
    /// Model name to request. If empty, the server is asked for its models and must list exactly one.
    pub model: String,
    /// Name of the environment variable that holds the API key. If empty, `OPENAI_API_KEY` is used for
    /// api.openai.com, and no key for other servers.
    pub key_variable: String,
    /// System message of every request. It replaces system messages that come with the problems. If empty,
    /// those are sent, if any.
    pub system: String,
    /// Maximum length of an answer in tokens, including the reasoning. 0 leaves the limit to the server.
    /// Truncated answers are never kept, so raise it if the report counts many of them.
    pub max_tokens: usize,
    /// Request field that carries `max_tokens`. Set it to `max_completion_tokens` for models that reject
    /// `max_tokens`, such as newer OpenAI models.
    pub max_tokens_field: String,
    /// Sampling temperature, 0 to 100. 0 always takes the most likely token. More than one answer per problem
    /// (`samples`) requires a value above 0.
    pub temperature: f64,
    /// Nucleus sampling: samples only from the most likely tokens whose probabilities sum to this value,
    /// above 0 and at most 1. 1 samples from all tokens and is not sent.
    pub top_p: f64,
    /// Seconds to wait for the response to one request.
    pub timeout: u64,
    /// Number of retries after temporary failures, such as a broken connection or a server error. The pause
    /// before a retry doubles each time, up to a minute. Waiting as long as a rate limit asks for does not
    /// count as a retry.
    pub retries: usize,
    /// Maximum number of requests to start per minute, retries included, over all connections. 0 sets no
    /// limit. If both teachers have the same `url`, the limit of the long teacher applies to both together.
    pub requests_per_minute: f64,
    /// Additional fields of the request body, such as `chat_template_kwargs`. They are saved in the output
    /// directory and shown in its card, so put no secrets in them.
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
    /// Validates the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
        let host = ["http://", "https://"].iter().find_map(|scheme| self.url.strip_prefix(scheme));
        // The URL appears in files and messages, so it must not contain secrets.
        let hint =
            "Use http://HOST/v1 or https://HOST/v1, and put the key in an environment variable";
        if self.url.contains(['@', '?', '#']) {
            return refuse("url", "it contains more than a host and a path".into(), hint);
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
            let hint = "Set the field of the length limit: max_tokens or max_completion_tokens";
            return refuse("max_tokens_field", what, hint);
        }
        // `extra` may contain the default name. The setting then takes precedence.
        let limit = Some(field).filter(|field| *field != MAX_TOKENS);
        for key in OWN_FIELDS.into_iter().chain(limit) {
            if self.extra.contains_key(key) {
                let what = format!("it contains `{key}`");
                return refuse("extra", what, "Remove it; use its own setting if there is one");
            }
        }
        Ok(())
    }
}
