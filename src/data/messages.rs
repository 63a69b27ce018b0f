//! Conversations: lists of `{role, content}` (OpenAI, TRL) or of `{from, value}` (ShareGPT).

use serde_json::Value;

use super::collect::described;

/// What is wrong with a conversation, and what to do.
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) hint: &'static str,
}

/// Who speaks a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    User,
    Assistant,
}

impl Speaker {
    /// The speaker by the names of both conventions.
    fn parse(role: &str) -> Option<Self> {
        match role {
            "system" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" => Some(Self::Assistant),
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

/// One question and its reply; a text is `None` where the turn's content is null.
pub(super) struct Exchange {
    pub(super) problem: Option<String>,
    pub(super) solution: Option<String>,
    pub(super) system_turns: usize,
}

struct Turn<'v> {
    speaker: Speaker,
    text: Option<&'v str>,
}

const SPLIT: &str = "A record takes one user turn and the assistant turn that follows: split longer \
     conversations into one record for each exchange, or leave them out";
const FORM: &str = "Write every turn as {\"role\": \"user\", \"content\": \"...\"} or {\"from\": \"human\", \
     \"value\": \"...\"} with the roles user or human, assistant or gpt, and system";

/// Whether a list can be one of messages at all.
pub(super) fn is_conversation(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(Value::is_object)
}

/// The one exchange of a conversation.
pub(super) fn exchange(list: &[Value]) -> Result<Exchange, Fault> {
    let (turns, system_turns) = turns(list)?;
    match turns.as_slice() {
        [
            Turn { speaker: Speaker::User, text: problem },
            Turn { speaker: Speaker::Assistant, text: solution },
        ] => Ok(Exchange {
            problem: problem.map(str::to_owned),
            solution: solution.map(str::to_owned),
            system_turns,
        }),
        [] => fault("the conversation has neither a user turn nor an assistant turn", SPLIT),
        turns if turns.iter().all(|turn| turn.speaker == Speaker::User) => {
            fault("the conversation has no assistant turn", SPLIT)
        }
        [Turn { speaker: Speaker::Assistant, .. }, ..] => {
            fault("the conversation begins with an assistant turn, expected a user turn", SPLIT)
        }
        turns => fault(
            format!(
                "the conversation has more than one exchange ({}), expected one user turn and \
                 one assistant turn",
                listed(turns)
            ),
            SPLIT,
        ),
    }
}

/// The one turn of a list that holds only a prompt or only a completion (TRL), with the number of
/// system turns beside it.
pub(super) fn lone_turn(
    list: &[Value],
    speaker: Speaker,
) -> Result<(Option<String>, usize), Fault> {
    let (turns, system_turns) = turns(list)?;
    match turns.as_slice() {
        [turn] if turn.speaker == speaker => Ok((turn.text.map(str::to_owned), system_turns)),
        [] => fault(format!("the list of messages has no {} turn", speaker.name()), SPLIT),
        turns => fault(
            format!(
                "the list of messages holds {}, expected one {} turn",
                listed(turns),
                speaker.name()
            ),
            SPLIT,
        ),
    }
}

/// All turns but the system's, and how many those are.
fn turns(list: &[Value]) -> Result<(Vec<Turn<'_>>, usize), Fault> {
    let mut turns = Vec::with_capacity(list.len().min(2));
    let mut system_turns = 0;
    for (index, message) in list.iter().enumerate() {
        let turn = turn(message)
            .map_err(|what| Fault { what: format!("message {}: {what}", index + 1), hint: FORM })?;
        match turn.speaker {
            Speaker::System => system_turns += 1,
            _ => turns.push(turn),
        }
    }
    Ok((turns, system_turns))
}

fn turn(message: &Value) -> Result<Turn<'_>, String> {
    let Value::Object(message) = message else {
        return Err(format!("found {}, expected an object", described(message)));
    };
    let (role_key, text_key) =
        if message.contains_key("role") { ("role", "content") } else { ("from", "value") };
    let role = match message.get(role_key) {
        Some(Value::String(role)) => role,
        Some(other) => {
            return Err(format!("`{role_key}`: found {}, expected text", described(other)));
        }
        None => return Err("it has neither `role` nor `from`".to_owned()),
    };
    let Some(speaker) = Speaker::parse(role) else {
        return Err(format!("unknown role {}", described(&Value::String(role.clone()))));
    };
    match message.get(text_key) {
        Some(Value::String(text)) => Ok(Turn { speaker, text: Some(text) }),
        Some(Value::Null) => Ok(Turn { speaker, text: None }),
        Some(other) => Err(format!("`{text_key}`: found {}, expected text", described(other))),
        None => Err(format!("it has `{role_key}` but no `{text_key}`")),
    }
}

/// `user, assistant, user and 5 more`.
fn listed(turns: &[Turn<'_>]) -> String {
    const SHOWN: usize = 4;
    let names: Vec<_> = turns.iter().take(SHOWN).map(|turn| turn.speaker.name()).collect();
    let mut text = names.join(", ");
    if turns.len() > SHOWN {
        text.push_str(&format!(" and {} more", turns.len() - SHOWN));
    }
    text
}

fn fault<T>(what: impl Into<String>, hint: &'static str) -> Result<T, Fault> {
    Err(Fault { what: what.into(), hint })
}
