//! Server responses, and the forms in which reasoning models return their reasoning.

use crate::data::chat::reasoning::{divided, with_reasoning};
use crate::data::reading::{lenient_json, part_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;

/// One answer of a teacher, with its reasoning separate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherSample {
    /// The reasoning, if the teacher is a reasoning model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The answer.
    pub content: String,
    /// Why the answer ended, such as `stop` or `length`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
}

/// How reasoning and answer form the training text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningForm {
    /// The reasoning between `<think>` and `</think>`, then the answer.
    #[default]
    Think,
    /// The reasoning, an empty line, and the answer.
    Plain,
    /// Only the answer. The reasoning is dropped.
    Omit,
}

impl TeacherSample {
    /// Splits a text into reasoning, if any, and answer.
    ///
    /// ```
    /// use mixdistill::teacher::TeacherSample;
    /// let sample = TeacherSample::of_text("<think>\n2 and 2\n</think>\n\nIt is 4.", Some("stop".into()));
    /// assert_eq!(sample.reasoning.as_deref(), Some("2 and 2"));
    /// assert_eq!(sample.content, "It is 4.");
    /// ```
    pub fn of_text(text: &str, finish_reason: Option<String>) -> Self {
        let (reasoning, content) = divided(text);
        let reasoning = reasoning.filter(|text| !text.is_empty()).map(str::to_owned);
        Self { reasoning, content: content.to_owned(), finish_reason }
    }

    /// Returns the training text.
    pub fn joined(&self, form: ReasoningForm) -> String {
        match (&self.reasoning, form) {
            (Some(reasoning), ReasoningForm::Think) => with_reasoning(reasoning, &self.content),
            (Some(reasoning), ReasoningForm::Plain) => format!("{reasoning}\n\n{}", self.content),
            _ => self.content.clone(),
        }
    }

    /// Returns whether the length limit truncated the answer. Servers have several words for that.
    pub fn is_cut(&self) -> bool {
        let reason = self.finish_reason.as_deref().unwrap_or_default().to_lowercase();
        reason.contains("length") || reason.contains("max_tok")
    }

    /// Returns whether the answer ended normally, as far as the response shows, and not because of a filter
    /// or a limit.
    pub fn is_whole(&self) -> bool {
        let reason = self.finish_reason.as_deref().unwrap_or("stop").to_lowercase();
        ["stop", "eos", "eos_token", "end_turn", "stop_sequence"].contains(&reason.as_str())
    }
}

/// A parsed chat completion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ChatReply {
    pub samples: Vec<TeacherSample>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// Whether it contained broken characters, which were replaced by U+FFFD.
    pub had_broken_characters: bool,
}

/// The fields of a completion that are used. All others are ignored.
#[derive(Deserialize)]
struct Body {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Value,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
    #[serde(default)]
    reasoning_content: Value,
    #[serde(default)]
    reasoning: Value,
    #[serde(default)]
    thinking: Value,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
}

/// Returns a token count; `None` if the value is not a valid count.
fn count(value: &Value) -> Option<u64> {
    let count = value.as_f64().filter(|count| (0.0..1e15).contains(count));
    count.map(|count| count as u64)
}

impl ChatReply {
    /// Parses a response body. The error describes the problem. Incomplete characters, which servers send if
    /// the length limit splits one, and non-finite numbers are accepted.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(body);
        let is_mended = matches!(text, Cow::Owned(_));
        let (json, repairs) = lenient_json::parse(text.trim_start_matches('\u{feff}').as_bytes())
            .map_err(|_| "its response is not JSON".to_owned())?;
        let body: Body = serde_json::from_value(json)
            .map_err(|error| format!("its response is not a chat completion ({error})"))?;
        if body.choices.is_empty() {
            return Err("its response has no message".into());
        }
        let usage = body.usage.as_ref();
        Ok(Self {
            samples: body.choices.into_iter().map(Choice::sample).collect(),
            prompt_tokens: usage.and_then(|usage| count(&usage.prompt_tokens)),
            completion_tokens: usage.and_then(|usage| count(&usage.completion_tokens)),
            had_broken_characters: is_mended || repairs.surrogates > 0,
        })
    }
}

impl Choice {
    /// Returns the sample. Its content is empty if the message has none, for example because the reasoning
    /// used up the length limit or because the model refused.
    fn sample(self) -> TeacherSample {
        let Message { content, reasoning_content, reasoning, thinking } = self.message;
        let mut thought = String::new();
        let content = match &content {
            Value::String(text) => text.clone(),
            // A list of parts. Parts with text count; reasoning parts are kept separate.
            Value::Array(parts) => {
                let parts: Vec<(bool, String)> = parts.iter().filter_map(part_text).collect();
                let of = |reasoning: bool| {
                    parts.iter().filter(move |part| part.0 == reasoning).map(|part| part.1.as_str())
                };
                thought = of(true).collect();
                of(false).collect()
            }
            _ => String::new(),
        };
        let finish_reason = self.finish_reason.as_str().map(str::to_owned);
        let apart = [&reasoning_content, &reasoning, &thinking].map(|text| text.as_str());
        let apart = apart.into_iter().flatten().chain([thought.as_str()]).map(str::trim);
        let mut apart = apart.filter(|text| !text.is_empty());
        match apart.next() {
            Some(reasoning) => {
                // Some servers leave the reasoning, or its empty tags, in the content as well.
                let content = match divided(&content) {
                    (Some(inner), answer) if inner.is_empty() || inner == reasoning => answer,
                    _ => content.trim(),
                };
                let (reasoning, content) = (Some(reasoning.to_owned()), content.to_owned());
                TeacherSample { reasoning, content, finish_reason }
            }
            None => TeacherSample::of_text(&content, finish_reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn broken_characters_and_numbers_are_no_reason_to_refuse() {
        let parse = |content: &[u8]| {
            let parts = [
                br#"{"logprobs": [NaN, -Infinity], "choices": [{"message": {"content": ""#,
                content,
                br#""}}], "id": 123456789012345678901234, "usage": {"prompt_tokens": 3}}"#,
            ];
            let reply = ChatReply::parse(&parts.concat()).unwrap();
            assert_eq!(reply.prompt_tokens, Some(3));
            (reply.samples[0].content.clone(), reply.had_broken_characters)
        };
        assert_eq!(parse(br"4 \ud83d"), ("4 \u{fffd}".into(), true));
        assert_eq!(parse(br"4 \ud83d\ude00"), ("4 😀".into(), false));
        // Bytes of half a character.
        assert_eq!(parse(b"4 \xf0\x9f"), ("4 \u{fffd}".into(), true));
        assert_eq!(parse("4 \u{fffd}".as_bytes()), ("4 \u{fffd}".into(), false));
        // A body that ends inside a character is not valid JSON.
        assert!(
            ChatReply::parse(b"{\"choices\": [{\"message\": {\"content\": \"\xf0\x9f").is_err()
        );
    }

    #[test]
    fn reasoning_is_found_in_every_form_that_servers_have() {
        let parse = |message: Value| {
            let body = json!({ "choices": [{ "message": message, "finish_reason": "stop" }] });
            ChatReply::parse(body.to_string().as_bytes()).map(|reply| {
                let sample = reply.samples.into_iter().next().unwrap();
                (sample.reasoning.unwrap_or("-".into()), sample.content)
            })
        };
        let is = |message: Value, reasoning: &str, content: &str| {
            assert_eq!(parse(message), Ok((reasoning.to_owned(), content.to_owned())));
        };
        is(json!({ "content": "4", "reasoning_content": " 2+2 " }), "2+2", "4");
        is(json!({ "content": "4", "reasoning": "2+2" }), "2+2", "4");
        is(json!({ "content": "<think>2+2</think>4", "reasoning": "2+2" }), "2+2", "4");
        is(json!({ "content": "<think>\n</think>\n4", "reasoning": "2+2" }), "2+2", "4");
        is(json!({ "content": "4", "thinking": "2+2" }), "2+2", "4");
        is(json!({ "content": "4", "reasoning_content": "", "thinking": "2+2" }), "2+2", "4");
        is(
            json!({ "content": [{ "type": "thinking", "thinking": [{ "type": "text", "text": "2+2" }] },
                                { "type": "text", "text": "4" }] }),
            "2+2",
            "4",
        );
        is(json!({ "content": "4", "reasoning": null, "reasoning_content": null }), "-", "4");
        is(json!({ "content": "<think>2+2</think>4" }), "2+2", "4");
        is(json!({ "content": "2+2\n</think>\n4" }), "2+2", "4");
        is(json!({ "content": "<think>2+2" }), "2+2", "");
        is(json!({ "content": "<think>\n\n</think>\n\n4" }), "-", "4");
        is(json!({ "content": "I think <think> is a tag" }), "-", "I think <think> is a tag");
        is(json!({ "content": null, "reasoning_content": "2+2" }), "2+2", "");
        is(json!({ "content": [{ "type": "text", "text": "4" }] }), "-", "4");
        is(json!({ "content": null, "refusal": "no" }), "-", "");
        is(json!({ "role": "assistant" }), "-", "");
        let odd = r#"{"choices": [{"message": {"content": "4"}, "finish_reason": 7}],
                      "usage": {"prompt_tokens": 3.0, "completion_tokens": -1}}"#;
        let reply = ChatReply::parse(odd.as_bytes()).unwrap();
        assert_eq!((reply.prompt_tokens, reply.completion_tokens), (Some(3), None));
        assert!(reply.samples[0].is_whole());
        for (reason, cut) in [("length", true), ("MAX_TOKENS", true), ("model_length", true)] {
            let sample =
                TeacherSample { finish_reason: Some(reason.into()), ..TeacherSample::default() };
            assert_eq!((sample.is_cut(), sample.is_whole()), (cut, false));
        }
        assert!(
            ChatReply::parse(b"{\"choices\": 3}").unwrap_err().contains("not a chat completion")
        );
    }

    #[test]
    fn what_is_divided_can_be_joined_again() {
        let sample = TeacherSample::of_text("<think>\na\nb\n</think>\n\nc", None);
        assert_eq!(sample.joined(ReasoningForm::Think), "<think>\na\nb\n</think>\n\nc");
        assert_eq!(sample.joined(ReasoningForm::Plain), "a\nb\n\nc");
        assert_eq!(sample.joined(ReasoningForm::Omit), "c");
        assert_eq!(TeacherSample::of_text("c", None).joined(ReasoningForm::Think), "c");
    }
}
