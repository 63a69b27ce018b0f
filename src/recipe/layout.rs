//! The layout of a run's prompts and answers.

use super::config::RunConfig;
use crate::data::{ChatFormat, ChatTemplate, PromptTemplate, TextTokenizer};
use crate::error::{Error, Result};
use crate::model::ModelFolder;
use std::path::Path;
use std::sync::Arc;

/// How prompts and answers are laid out.
pub(super) struct TemplateChoice {
    pub template: Arc<dyn PromptTemplate>,
    pub name: String,
    /// The same as the source of a chat template; `None` for the built-in layout.
    pub source: Option<String>,
}

/// The chat template that the configuration names, else the base model's, else the built-in layout.
pub(super) fn layout(
    config: &RunConfig,
    base: Option<&ModelFolder>,
    tokenizer: &TextTokenizer,
) -> Result<TemplateChoice> {
    let data = &config.data;
    let plain = |name: &str| {
        if data.system_prompt.is_some() {
            let what = "there is no chat template to put it into";
            let hint = "Name one with data.chat_template, or use data.template.before";
            return Err(Error::config("data.system_prompt", what, hint));
        }
        let (template, name) = (Arc::new(data.template.clone()), name.to_owned());
        Ok(TemplateChoice { template, name, source: None })
    };
    let own = data.chat_template.as_deref();
    let chat = match (own, base) {
        (Some("none"), _) => return plain("the built-in layout"),
        (Some(path), base) => {
            let beside = data.tokenizer.as_deref().and_then(Path::parent);
            let folder = base.map(ModelFolder::path).or(beside).unwrap_or(Path::new(""));
            Some(ChatTemplate::from_file(Path::new(path), folder)?)
        }
        (None, Some(base)) => base.chat_template()?,
        (None, None) => None,
    };
    let Some(mut chat) = chat else {
        return plain("the built-in layout, since the model has no chat template");
    };
    for (name, value) in &data.template_variables {
        chat.set(name, value);
    }
    if let Some(date) = data.date.as_ref().and_then(|date| date.parse().ok()) {
        chat.set_date(date);
    }
    let (name, source) = (chat.name().to_owned(), Some(chat.source().to_owned()));
    let mut format = ChatFormat::new(chat, tokenizer, data.system_prompt.clone())?;
    if data.end_token.is_some() {
        format = format.with_end_token(tokenizer.end_token());
    }
    Ok(TemplateChoice { template: Arc::new(format), name, source })
}
