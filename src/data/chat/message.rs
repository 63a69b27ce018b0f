//! Messages of a conversation, as chat templates see them.

use crate::error::Result;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::json;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Its reasoning, where that stands beside the text.
    pub(super) beside: Option<Beside>,
}

/// Reasoning apart from a message's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) place: ReasoningPlace,
    pub(super) text: String,
}

/// Where a template takes reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReasoningPlace {
    /// Beside the content, under this name.
    Key(&'static str),
    /// In the content, a list of blocks: one of thinking before that of the text.
    Block,
    /// The same, where a block of thinking holds a list of blocks.
    NestedBlock,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), beside: None }
    }

    /// Bytes of its texts.
    pub(super) fn bytes(&self) -> usize {
        self.content.len() + self.beside.as_ref().map_or(0, |beside| beside.text.len())
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use ReasoningPlace::{Block, Key, NestedBlock};
        let fields = 2 + usize::from(self.beside.is_some());
        let mut message = serializer.serialize_struct("Message", fields)?;
        message.serialize_field("role", &self.role)?;
        let text_block = |text: &str| json!({"type": "text", "text": text});
        let blocks = |thinking: serde_json::Value| {
            [json!({"type": "thinking", "thinking": thinking}), text_block(&self.content)]
        };
        match &self.beside {
            None => message.serialize_field("content", &self.content)?,
            Some(Beside { place: Key(key), text }) => {
                message.serialize_field("content", &self.content)?;
                message.serialize_field(key, text)?;
            }
            Some(Beside { place: Block, text }) => {
                message.serialize_field("content", &blocks(text.as_str().into()))?;
            }
            Some(Beside { place: NestedBlock, text }) => {
                message.serialize_field("content", &blocks(json!([text_block(text)])))?;
            }
        }
        message.end()
    }
}
