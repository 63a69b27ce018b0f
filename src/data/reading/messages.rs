//! Conversations: lists of `{role, content}` (OpenAI, TRL) or `{from, value}` (ShareGPT) objects. Assistant
//! turns may have reasoning in a field of their own, and contents may be lists of parts.

use serde_json::{Map, Value};

use super::describe::{described, holds_text, shortened};
use crate::data::chat::reasoning::REASONING;

/// A problem with a conversation, and a hint.
pub(super) struct Fault {
    /// The kind of problem, by which rows are counted.
    pub(super) reason: &'static str,
    pub(super) what: String,
    pub(super) hint: &'static str,
}

/// The role of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    User,
    Assistant,
}

impl Speaker {
    /// Parses a role name of any convention.
    fn parse(role: &str) -> Option<Self> {
        match role {
            "system" | "developer" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" | "model" => Some(Self::Assistant),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Where to look for a turn's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReasoningKey<'a> {
    /// In fields with the usual names.
    Usual,
    /// In the field with this name.
    Named(&'a str),
    /// Nowhere: reasoning is ignored.
    LeftOut,
}

/// A question and its answer. A text is `None` if the turn's content is null.
#[derive(Default)]
pub(super) struct Exchange {
    pub(super) system: Option<String>,
    /// The earlier exchanges, without system texts.
    pub(super) earlier: Vec<Exchange>,
    pub(super) problem: Option<String>,
    pub(super) reasoning: Option<String>,
    pub(super) solution: Option<String>,
}

struct Turn {
    speaker: Speaker,
    text: Option<String>,
    reasoning: Option<String>,
}

const ALTERNATE: &str = "Alternate user and assistant turns, with a user turn first and the answer to \
     train on last, or remove the record";
const ONE_TURN: &str = "Give only that turn, or the whole conversation as one list of messages";
const FORM: &str = "Write every turn as {\"role\": \"user\", \"content\": \"...\"} or {\"from\": \"human\", \
     \"value\": \"...\"} with the roles user or human, assistant or gpt, and system";

/// Returns whether a field of a turn is used.
pub(super) fn is_read(field: &str, key: ReasoningKey<'_>) -> bool {
    ["role", "content", "from", "value"].contains(&field)
        || match key {
            ReasoningKey::Usual => REASONING.contains(&field),
            ReasoningKey::Named(name) => name == field,
            ReasoningKey::LeftOut => false,
        }
}

/// Returns whether a list may be a list of messages.
pub(super) fn is_conversation(list: &[Value]) -> bool {
    let has_role = |turn: &Value| turn.get("role").is_some() || turn.get("from").is_some();
    !list.is_empty() && list.iter().all(Value::is_object) && list.iter().any(has_role)
}

/// Returns whether a list contains the parts of a single message.
pub(super) fn is_parts(list: &[Value]) -> bool {
    let is_part = |part: &Value| part.get("type").is_some_and(Value::is_string);
    !list.is_empty() && list.iter().all(is_part) && !is_conversation(list)
}

/// Parses a JSON list in a text, as in data frames and CSV files.
pub(super) fn list_in(text: &str) -> Option<Vec<Value>> {
    list_with_repairs(text).map(|(list, _)| list)
}

/// Like [`list_in`], with the number of repaired surrogates.
pub(super) fn list_with_repairs(text: &str) -> Option<(Vec<Value>, usize)> {
    let text = text.trim();
    if !(text.starts_with('[') && text.ends_with(']')) {
        return None;
    }
    let (value, repairs) = super::lenient_json::parse(text.as_bytes()).ok()?;
    match value {
        Value::Array(list) => Some((list, repairs.surrogates)),
        _ => None,
    }
}

/// Reports the fields with text in the turns of a conversation.
pub(super) fn text_fields(turns: &Value, tell: &mut dyn FnMut(&str)) {
    let read;
    let list = match turns {
        Value::Array(list) => list,
        Value::String(text) => {
            read = list_in(text).unwrap_or_default();
            &read
        }
        _ => return,
    };
    for (name, value) in list.iter().filter_map(Value::as_object).flatten() {
        if holds_text(value, 3) {
            tell(name);
        }
    }
}

/// The user and assistant turns of a conversation.
struct Turns {
    turns: Vec<Turn>,
    /// The system text at the beginning.
    system: Option<String>,
    /// The index, counted from 1, of a system message after another turn.
    late_system: Option<usize>,
}

impl Turns {
    /// Refuses a system turn after another turn, since templates place it first.
    fn check_order(&self) -> Result<(), Fault> {
        let Some(message) = self.late_system else { return Ok(()) };
        Err(Fault {
            reason: "system turn inside a conversation",
            what: format!("message {message}: a system turn follows another turn"),
            hint: "Put the system turn first, or remove the record",
        })
    }
}

/// Returns the last exchange of a conversation, with the earlier ones.
pub(super) fn exchange(list: &[Value], key: ReasoningKey<'_>) -> Result<Exchange, Fault> {
    let all = turns(list, key)?;
    if !alternate(&all.turns) || all.turns.is_empty() || !all.turns.len().is_multiple_of(2) {
        return Err(no_exchange(&all.turns));
    }
    all.check_order()?;
    let Turns { turns, system, .. } = all;
    let mut earlier = exchanges(turns);
    let last = earlier.pop().unwrap_or_default();
    Ok(Exchange { system, earlier, ..last })
}

/// Returns the question at the end of a list of messages, with the earlier exchanges.
pub(super) fn question(list: &[Value], key: ReasoningKey<'_>) -> Result<Exchange, Fault> {
    let all = turns(list, key)?;
    if all.turns.len() < 2 || !alternate(&all.turns) || all.turns.len().is_multiple_of(2) {
        return lone_turn(list, Speaker::User, key);
    }
    all.check_order()?;
    let Turns { mut turns, system, .. } = all;
    let problem = turns.pop().and_then(|turn| turn.text);
    Ok(Exchange { system, earlier: exchanges(turns), problem, ..Exchange::default() })
}

/// Returns whether user and assistant turns alternate, starting with a user turn.
fn alternate(turns: &[Turn]) -> bool {
    let speakers = [Speaker::User, Speaker::Assistant].into_iter().cycle();
    turns.iter().zip(speakers).all(|(turn, speaker)| turn.speaker == speaker)
}

/// Returns the exchanges of alternating turns.
fn exchanges(turns: Vec<Turn>) -> Vec<Exchange> {
    let mut turns = turns.into_iter();
    let next = || {
        let (problem, solution) = (turns.next()?, turns.next()?);
        Some(Exchange {
            problem: problem.text,
            reasoning: solution.reasoning,
            solution: solution.text,
            ..Exchange::default()
        })
    };
    std::iter::from_fn(next).collect()
}

fn no_exchange(turns: &[Turn]) -> Fault {
    let (reason, what) = match turns {
        [] => (
            "conversation without an exchange",
            "the conversation has neither a user turn nor an assistant turn".to_owned(),
        ),
        turns if turns.iter().all(|turn| turn.speaker == Speaker::User) => {
            ("conversation without an answer", "the conversation has no assistant turn".to_owned())
        }
        [Turn { speaker: Speaker::Assistant, .. }, ..] => (
            "conversation that begins with an answer",
            "the conversation begins with an assistant turn, expected a user turn".to_owned(),
        ),
        turns if alternate(turns) => (
            "conversation that ends with a question",
            format!(
                "the conversation ends with a user turn ({}), expected an answer",
                listed(turns)
            ),
        ),
        turns => (
            "conversation whose turns do not alternate",
            format!("the conversation's turns do not alternate ({})", listed(turns)),
        ),
    };
    Fault { reason, what, hint: ALTERNATE }
}

/// Returns the only turn of a list with just a prompt or just a completion (TRL).
pub(super) fn lone_turn(
    list: &[Value],
    speaker: Speaker,
    key: ReasoningKey<'_>,
) -> Result<Exchange, Fault> {
    let all = turns(list, key)?;
    if all.turns.len() == 1 {
        all.check_order()?;
    }
    let Turns { turns, system, .. } = all;
    let (reason, what) = match <[Turn; 1]>::try_from(turns) {
        Ok([turn]) if turn.speaker == speaker => {
            let exchange = Exchange { system, ..Exchange::default() };
            return Ok(match speaker {
                Speaker::Assistant => {
                    Exchange { reasoning: turn.reasoning, solution: turn.text, ..exchange }
                }
                _ => Exchange { problem: turn.text, ..exchange },
            });
        }
        Err(turns) if turns.is_empty() => (
            "list of messages without the expected turn",
            format!("the list of messages has no {} turn", speaker.name()),
        ),
        Ok(turns) => ("list of unexpected messages", holds(&turns, speaker)),
        Err(turns) => ("list of several messages", holds(&turns, speaker)),
    };
    Err(Fault { reason, what, hint: ONE_TURN })
}

fn holds(turns: &[Turn], speaker: Speaker) -> String {
    let name = speaker.name();
    format!("the list of messages has {}, expected one {name} turn", listed(turns))
}

/// Returns all user and assistant turns, and the system text at the beginning.
fn turns(list: &[Value], key: ReasoningKey<'_>) -> Result<Turns, Fault> {
    let mut turns = Vec::with_capacity(list.len().min(2));
    let mut systems: Vec<String> = vec![];
    let mut late_system = None;
    for (index, message) in list.iter().enumerate() {
        let turn = turn(message, key).map_err(|(reason, what)| Fault {
            reason,
            what: format!("message {}: {what}", index + 1),
            hint: FORM,
        })?;
        match turn.speaker {
            Speaker::System if turns.is_empty() => systems.extend(turn.text),
            Speaker::System => late_system = late_system.or(Some(index + 1)),
            _ => turns.push(turn),
        }
    }
    systems.retain(|text| !text.trim().is_empty());
    let system = (!systems.is_empty()).then(|| systems.join("\n\n"));
    Ok(Turns { turns, system, late_system })
}

/// Parses a turn. The error is the kind of problem and what was found.
fn turn(message: &Value, key: ReasoningKey<'_>) -> Result<Turn, (&'static str, String)> {
    const BROKEN: &str = "malformed message";
    let Value::Object(message) = message else {
        return Err((BROKEN, format!("found {}, expected an object", described(message))));
    };
    let (role_key, text_key) =
        if message.contains_key("role") { ("role", "content") } else { ("from", "value") };
    let role = match message.get(role_key) {
        Some(Value::String(role)) => role,
        Some(other) => {
            let what = format!("`{role_key}`: found {}, expected text", described(other));
            return Err((BROKEN, what));
        }
        None => return Err((BROKEN, "it has neither `role` nor `from`".to_owned())),
    };
    let Some(speaker) = Speaker::parse(&role.trim().to_lowercase()) else {
        let what = format!("unknown role `{}`", shortened(role));
        return Err(("unknown role", what));
    };
    let beside = match speaker {
        Speaker::Assistant => reasoning_beside(message, key)?,
        _ => None,
    };
    let content = match message.get(text_key) {
        Some(value) => content(value).map_err(|what| (NO_TEXT, format!("`{text_key}`: {what}")))?,
        None if beside.is_some() => Content::default(),
        None => return Err((BROKEN, format!("it has `{role_key}` but no `{text_key}`"))),
    };
    let within = content.reasoning.filter(|_| key != ReasoningKey::LeftOut);
    Ok(Turn { speaker, text: content.text, reasoning: beside.or(within) })
}

const NO_TEXT: &str = "message that is not text";

/// Returns the reasoning in a separate field of a turn.
fn reasoning_beside(
    message: &Map<String, Value>,
    key: ReasoningKey<'_>,
) -> Result<Option<String>, (&'static str, String)> {
    let names: &[&str] = match &key {
        ReasoningKey::Usual => &REASONING,
        ReasoningKey::Named(name) => &[name],
        ReasoningKey::LeftOut => &[],
    };
    for name in names {
        let Some(value) = message.get(*name) else { continue };
        let content = content(value).map_err(|what| (NO_TEXT, format!("`{name}`: {what}")))?;
        let text = content.text.or(content.reasoning);
        if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The content of a message.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content {
    pub(super) text: Option<String>,
    /// The parts marked as thinking.
    pub(super) reasoning: Option<String>,
}

/// Parses a content: a string, null, or a list of parts with text.
pub(super) fn content(value: &Value) -> Result<Content, String> {
    match value {
        Value::Null => Ok(Content::default()),
        Value::String(text) => Ok(Content { text: Some(text.clone()), reasoning: None }),
        Value::Array(parts) => parts_text(parts),
        other => Err(format!("found {}, expected text", described(other))),
    }
}

fn parts_text(parts: &[Value]) -> Result<Content, String> {
    let mut content = Content::default();
    for (index, part) in parts.iter().enumerate() {
        let Some((is_reasoning, text)) = part_text(part) else {
            let kind = part.get("type").and_then(Value::as_str);
            let found = kind.map_or_else(|| described(part), |kind| format!("a part `{kind}`"));
            return Err(format!("part {}: found {found}, expected text", index + 1));
        };
        let slot = if is_reasoning { &mut content.reasoning } else { &mut content.text };
        slot.get_or_insert_default().push_str(&text);
    }
    Ok(content)
}

/// Returns whether a part of a content is reasoning, and its text. `None` for a part without text.
pub(crate) fn part_text(part: &Value) -> Option<(bool, String)> {
    if let Value::String(text) = part {
        return Some((false, text.clone()));
    }
    let kind = part.get("type").and_then(Value::as_str);
    let is_reasoning = matches!(kind, Some("thinking" | "reasoning"));
    let keys: &[&str] = if is_reasoning { &["thinking", "reasoning", "text"] } else { &["text"] };
    let text = keys.iter().find_map(|key| match part.get(*key)? {
        Value::String(text) => Some(text.clone()),
        // Mistral's form has a nested list of parts.
        Value::Array(parts) => {
            parts.iter().map(|part| part.get("text")?.as_str()).collect::<Option<String>>()
        }
        _ => None,
    });
    Some((is_reasoning, text?))
}

/// Formats roles as `user, assistant, user and 5 more`.
fn listed(turns: &[Turn]) -> String {
    const SHOWN: usize = 4;
    let names: Vec<_> = turns.iter().take(SHOWN).map(|turn| turn.speaker.name()).collect();
    let mut text = names.join(", ");
    if turns.len() > SHOWN {
        text.push_str(&format!(" and {} more", turns.len() - SHOWN));
    }
    text
}

/// Returns the system text and the problem of a prompt given as a list of messages, possibly as JSON text.
/// `None` for other values.
///
/// # Errors
/// A description of the problem with the messages.
pub(crate) fn prompt_text(value: &Value) -> Result<Option<(Option<String>, String)>, String> {
    let list = match value {
        Value::Array(list) => list.clone(),
        Value::String(text) => match list_in(text) {
            Some(list) => list,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    if !is_conversation(&list) {
        return Ok(None);
    }
    // Training data may be used as prompts; its answers are ignored.
    let answered = exchange(&list, ReasoningKey::Usual).ok().filter(|e| e.earlier.is_empty());
    let exchange = match answered {
        Some(answered) => answered,
        None => lone_turn(&list, Speaker::User, ReasoningKey::Usual).map_err(|f| f.what)?,
    };
    Ok(exchange.problem.map(|problem| (exchange.system, problem)))
}
