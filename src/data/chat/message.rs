//! Conversation messages, as chat templates see them.

use crate::error::Result;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::json;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, or `assistant`.
    pub role: String,
    /// The message text.
    pub content: String,
    /// Reasoning separate from the text.
    pub(super) beside: Option<Beside>,
}

/// Reasoning separate from a message's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) place: ReasoningPlace,
    pub(super) text: String,
}

/// Where a template expects reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReasoningPlace {
    /// In a field with this name, next to the content.
    Key(&'static str),
    /// In the content, as a list with a thinking block before the text block.
    Block,
    /// Like `Block`, if the thinking block contains a list of blocks.
    NestedBlock,
}

impl Message {
    /// Creates a message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), beside: None }
    }

    /// Returns the size of its texts in bytes.
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
