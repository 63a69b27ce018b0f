//! A preview of rows as they will be trained.

use super::config::RunConfig;
use super::directory::RunMode;
use super::pilots::tell_unknown;
use super::prepare::Prepared;
use super::run::dated;
use crate::context::Context;
use crate::data::{Example, SourceLedger, TextTokenizer};
use crate::error::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// A part of a row's text, including the names of special tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreviewPart {
    /// The text.
    pub text: String,
    /// Whether its tokens are trained.
    pub trained: bool,
}

/// A row as it will be trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreviewRow {
    /// Source and position of the row.
    pub label: String,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of trained tokens.
    pub trained_tokens: usize,
    /// The text of the row.
    pub parts: Vec<PreviewPart>,
}

/// Rows of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PreviewSource {
    /// The source's name.
    pub name: String,
    /// Chat template variables for the source.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// Number of its answers to the training problems, including those that the mixture does not use.
    pub answers: usize,
    /// The first of these answers, as rows.
    pub rows: Vec<PreviewRow>,
}

/// Rows of each source of a run, and the prompt of a held-out problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preview {
    /// The layout of prompts and answers.
    pub template: String,
    /// The sources, in order.
    pub sources: Vec<PreviewSource>,
    /// The prompt of the first held-out question, if there is one. The model continues it.
    pub question: Option<PreviewRow>,
}

impl Preview {
    /// Reads the data of a run and shows the first `rows` rows of each source. Reads no weights and writes
    /// nothing.
    ///
    /// # Errors
    /// See [`Prepared::new`].
    pub fn new(config: &RunConfig, rows: usize, context: &Context<'_>) -> Result<Self> {
        let config = &dated(config, RunMode::New);
        tell_unknown(config, context)?;
        // The preview does not depend on the choice of answers.
        let prepared = Prepared::new(&config.unscored().0, context)?;
        let mut left_out = prepared.ledger.sources.iter().filter_map(SourceLedger::left_out_line);
        left_out.try_for_each(|line| context.notice(line))?;
        let tokenizer = &prepared.tokenizer;
        let pairs = prepared.mixture.pairs();
        let sources = pairs.sources().iter().enumerate().map(|(index, source)| {
            let answered =
                (0..pairs.len()).filter(|problem| pairs.record_index(*problem, index).is_some());
            let shown = answered.take(rows).filter_map(|problem| prepared.answer(problem, index));
            let shown = shown.map(|row| PreviewRow {
                label: row.label.clone(),
                tokens: row.tokens.len(),
                trained_tokens: row.example().trained(),
                parts: parts(tokenizer, &row.example()),
            });
            PreviewSource {
                name: source.name().to_owned(),
                template_variables: config.laid_out_with(source.name()),
                answers: pairs.available(index),
                rows: shown.collect(),
            }
        });
        let sources = sources.collect();
        let question = prepared.questions.first().map(|question| -> Result<PreviewRow> {
            let tokens = prepared.template.prompt(tokenizer, question.prompt())?;
            let prompt = Example { tokens: &tokens, prompt: tokens.len(), ..Example::default() };
            let parts = parts(tokenizer, &prompt);
            let label = "held-out problem".into();
            Ok(PreviewRow { label, tokens: tokens.len(), trained_tokens: 0, parts })
        });
        let question = question.transpose()?;
        Ok(Self { template: prepared.template_name.clone(), sources, question })
    }
}

/// Returns the text of a row, split at the boundaries of the trained parts.
fn parts(tokenizer: &TextTokenizer, row: &Example<'_>) -> Vec<PreviewPart> {
    // Tokens that cannot be decoded become the replacement character.
    let text = |tokens: &[u32]| {
        tokenizer.decode_all(tokens).unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string())
    };
    let gaps = row.untrained.iter().flat_map(|gap| [gap.start as usize, gap.end as usize]);
    let ends = std::iter::once(row.prompt).chain(gaps).chain([row.tokens.len()]);
    let (mut start, mut before, mut trained, mut parts) = (0, String::new(), false, vec![]);
    for end in ends {
        let so_far = text(&row.tokens[..end]);
        // Some tokenizers strip the space at the start of a text, so parts are cut from the whole text.
        let part = match so_far.strip_prefix(&before) {
            Some(part) => part.to_owned(),
            None => text(&row.tokens[start..end]),
        };
        if !part.is_empty() {
            parts.push(PreviewPart { text: part, trained });
        }
        (start, before, trained) = (end, so_far, !trained);
    }
    parts
}
