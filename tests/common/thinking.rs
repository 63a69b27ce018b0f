//! Rows formatted by templates, as text.

use super::chat_folder::ChatFolder;
use mixdistill::data::{ChatFormat, ChatTemplate, PromptTemplate, TextTokenizer};
use serde_json::{Value, json};

/// Special tokens of the templates in these tests.
pub const SPECIAL: [&str; 6] = [
    "<|im_start|>",
    "<|im_end|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
];

/// A tokenizer in which the marks around reasoning are tokens, but not special ones, as in published models.
pub fn tokenizer() -> TextTokenizer {
    let settings = json!({"eos_token": "<|im_end|>"});
    ChatFolder::new(&SPECIAL, &["<think>", "</think>"], false, settings).tokenizer()
}

pub fn format(source: &str, variables: Value) -> mixdistill::Result<ChatFormat> {
    let mut template = ChatTemplate::new("test", source)?;
    template.set("bos_token", "<｜begin▁of▁sentence｜>");
    for (name, value) in variables.as_object().into_iter().flatten() {
        template.set(name, value);
    }
    ChatFormat::new(template, &tokenizer(), None)
}

/// The text of a row's prompt, which must equal the generation prompt, and of its trained tokens.
pub fn row(format: &ChatFormat, solution: &str) -> mixdistill::Result<(String, String)> {
    let tokenizer = tokenizer();
    let row = format.row(&tokenizer, "1+1?".into(), solution)?;
    let (prompt, trained) = row.tokens.split_at(row.prompt);
    assert_eq!(prompt, format.prompt(&tokenizer, "1+1?".into())?);
    let together = format.rows(&tokenizer, &[("1+1?".into(), solution), ("2?".into(), "2")]);
    assert_eq!(together[0].as_ref().unwrap(), &row);
    Ok((tokenizer.decode_all(prompt)?, tokenizer.decode_all(trained)?))
}

/// An answer with reasoning.
pub const REASONED: &str = "<think>\nOne and one.\n</think>\n\nTwo.";
