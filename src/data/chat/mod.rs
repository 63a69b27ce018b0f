//! Chat: lays out prompts and answers as tokens with a model's template.

mod answer_form;
mod chat_format;
mod chat_template;
mod message;
mod python;
pub(crate) mod reasoning;
mod template;
pub(crate) mod tokenizer;

pub use chat_format::ChatFormat;
pub use chat_template::ChatTemplate;
pub(crate) use chat_template::TokenizerConfig;
pub use message::Message;
pub use template::{EarlierTurn, PlainTemplate, Prompt, PromptTemplate, RowTokens};
pub use tokenizer::TextTokenizer;
