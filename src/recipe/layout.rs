//! The prompt layouts of a run: one for each source, and one for the questions that the student answers.

use super::config::RunConfig;
use crate::context::Context;
use crate::data::chat::reasoning::divided;
use crate::data::{ChatFormat, ChatTemplate, Encoded, Pairs, PromptTemplate, TextTokenizer};
use crate::error::{Error, Result};
use crate::eval::opens_reasoning;
use crate::model::ModelFolder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Variables of a chat template.
type Variables = BTreeMap<String, Value>;

/// The prompt layouts of a run.
pub(super) struct Layouts {
    /// For held-out questions.
    pub asked: Arc<dyn PromptTemplate>,
    /// For each configured source, in order, or for both sources of the toy corpus.
    pub sources: Vec<Arc<dyn PromptTemplate>>,
    pub name: String,
    /// The source of the chat template; `None` for the built-in layout.
    pub source: Option<String>,
}

/// Returns the layouts of the configured chat template, or else of the base model's, or else the built-in
/// layout.
pub(super) fn layouts(
    config: &RunConfig,
    base: Option<&ModelFolder>,
    tokenizer: &TextTokenizer,
    context: &Context<'_>,
) -> Result<Layouts> {
    let Some(chat) = chat_template(config, base)? else {
        let name = match config.data.chat_template {
            Some(_) => "the built-in layout",
            None => "the built-in layout, since the model has no chat template",
        };
        return built_in(config, name);
    };
    for (key, name) in config.template_variables() {
        if !chat.source().contains(name) {
            context.notice(format!("{key}: the template does not use `{name}`"))?;
        }
    }
    let (name, source) = (chat.name().to_owned(), Some(chat.source().to_owned()));
    let mut made = Made { config, chat, tokenizer, formats: vec![] };
    let none = Variables::new();
    let mut of_sources: Vec<(Option<&str>, &Variables)> = config
        .data
        .sources
        .iter()
        .map(|source| (Some(source.name.as_str()), &source.template_variables))
        .collect();
    if of_sources.is_empty() {
        of_sources = vec![(None, &none); TOY_SOURCES];
    }
    let sources = of_sources.into_iter().map(|(source, variables)| {
        made.format(variables, true).map_err(|error| match source {
            Some(source) => error.within(&format!("source `{source}`")),
            None => error,
        })
    });
    let sources = sources.collect::<Result<_>>()?;
    let asked = made.format(&config.evaluation.template_variables, false)?;
    Ok(Layouts { asked, sources, name, source })
}

/// Number of sources of the toy corpus: long and short answers.
const TOY_SOURCES: usize = 2;

/// Returns the built-in layout, which takes neither variables nor a system prompt.
fn built_in(config: &RunConfig, name: &str) -> Result<Layouts> {
    let data = &config.data;
    if data.system_prompt.is_some() {
        let what = "there is no chat template to put it into";
        let hint = "Set data.chat_template, or use data.template.before";
        return Err(Error::config("data.system_prompt", what, hint));
    }
    let of_sources = data.sources.iter().map(|source| {
        (format!("data.sources.{}.template_variables", source.name), &source.template_variables)
    });
    let of_answers =
        ("evaluation.template_variables".to_owned(), &config.evaluation.template_variables);
    for (key, variables) in of_sources.chain([of_answers]) {
        if !variables.is_empty() {
            let what = "there is no chat template that could use them";
            return Err(Error::config(key, what, "Set data.chat_template"));
        }
    }
    let layout: Arc<dyn PromptTemplate> = Arc::new(data.template.clone());
    let count = match data.sources.len() {
        0 => TOY_SOURCES,
        count => count,
    };
    Ok(Layouts {
        sources: vec![layout.clone(); count],
        asked: layout,
        name: name.to_owned(),
        source: None,
    })
}

/// Returns the chat template with `data.template_variables`; `None` for the built-in layout.
fn chat_template(config: &RunConfig, base: Option<&ModelFolder>) -> Result<Option<ChatTemplate>> {
    let data = &config.data;
    let chat = match (data.chat_template.as_deref(), base) {
        (Some("none"), _) => None,
        (Some(path), base) => {
            let beside = data.tokenizer.as_deref().and_then(Path::parent);
            let folder = base.map(ModelFolder::path).or(beside).unwrap_or(Path::new(""));
            Some(ChatTemplate::from_file(Path::new(path), folder)?)
        }
        (None, Some(base)) => base.chat_template()?,
        (None, None) => None,
    };
    let Some(mut chat) = chat else { return Ok(None) };
    chat.set_all(&data.template_variables);
    if let Some(date) = data.date.as_ref().and_then(|date| date.parse().ok()) {
        chat.set_date(date);
    }
    Ok(Some(chat))
}

/// Warns about sources whose prompts open the reasoning but whose answers contain none.
pub(super) fn tell_empty_reasoning(
    pairs: &Pairs,
    encoded: &Encoded,
    tokenizer: &TextTokenizer,
    context: &Context<'_>,
) -> Result<()> {
    for (index, source) in pairs.sources().iter().enumerate() {
        let mut records = (0..pairs.len()).flat_map(|problem| pairs.candidates(problem, index));
        let Some(first) = records.next() else { continue };
        let Some(example) = encoded.example(index, first) else { continue };
        let reasons = |record: usize| {
            let (reasoning, _) = divided(&source.records()[record].solution);
            reasoning.is_some_and(|reasoning| !reasoning.is_empty())
        };
        let none = !reasons(first) && !records.any(reasons);
        if none && opens_reasoning(tokenizer, &example.tokens[..example.prompt])? {
            context.notice(format!(
                "source `{0}`: its prompts open the reasoning, but none of its answers has any, so the \
                 student learns to close it at once. Mark the reasoning in the answers (<think>), name \
                 its column, or turn thinking off with data.sources.{0}.template_variables",
                source.name()
            ))?;
        }
    }
    Ok(())
}

/// A cache of a template's formats with different variables.
struct Made<'a> {
    config: &'a RunConfig,
    chat: ChatTemplate,
    tokenizer: &'a TextTokenizer,
    formats: Vec<(&'a Variables, Arc<dyn PromptTemplate>)>,
}

impl<'a> Made<'a> {
    /// Returns the template with these variables, for rows to train on (`trained`) or for prompts only.
    fn format(
        &mut self,
        variables: &'a Variables,
        trained: bool,
    ) -> Result<Arc<dyn PromptTemplate>> {
        if let Some((_, format)) = self.formats.iter().find(|(known, _)| *known == variables) {
            return Ok(format.clone());
        }
        let (data, mut chat) = (&self.config.data, self.chat.clone());
        chat.set_all(variables);
        let make = if trained { ChatFormat::new } else { ChatFormat::for_prompts };
        let mut format = make(chat, self.tokenizer, data.system_prompt.clone())?;
        if data.end_token.is_some() {
            format = format.with_end_token(self.tokenizer.end_token());
        }
        let format: Arc<dyn PromptTemplate> = Arc::new(format);
        self.formats.push((variables, format.clone()));
        Ok(format)
    }
}
