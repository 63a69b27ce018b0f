//! Conversations with several turns: which answers are trained.
//!
//! ```text
//! turns     user 1 | answer 1 | user 2 | answer 2
//! last      . . . . . . . . . . . . . .  x x x x      what comes before is prompt
//! all       . . .    x x x x    . . .    x x x x      what is between two answers is not trained
//! ```

use crate::data::chat::{Prompt, PromptTemplate, RowTokens, TextTokenizer};
use crate::data::reading::CotRecord;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which answers of a conversation with several turns are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainedTurns {
    /// Train only the last answer.
    #[default]
    Last,
    /// Train every answer. The chat template must keep earlier answers the way a model writes them, including
    /// their reasoning.
    All,
}

/// A row, and which tokens are trained.
pub(super) struct LaidOut {
    pub(super) tokens: Vec<u32>,
    pub(super) prompt: usize,
    /// Tokens after the prompt that are not trained.
    pub(super) untrained: Vec<Range<u32>>,
}

impl From<RowTokens> for LaidOut {
    fn from(RowTokens { tokens, prompt }: RowTokens) -> Self {
        Self { tokens, prompt, untrained: vec![] }
    }
}

/// Marks the trained answers of a conversation, according to `turns`. An earlier answer is trained as it
/// would be on its own: after the prompt that the model sees, and with its end token.
pub(super) fn with_turns(
    row: RowTokens,
    record: &CotRecord,
    turns: TrainedTurns,
    tokenizer: &TextTokenizer,
    template: &dyn PromptTemplate,
    label: &dyn Fn() -> String,
) -> Result<LaidOut> {
    if turns == TrainedTurns::Last || record.earlier.is_empty() {
        return Ok(row.into());
    }
    let mut trained: Vec<Range<usize>> = vec![];
    for (index, turn) in record.earlier.iter().enumerate() {
        let earlier = &record.earlier[..index];
        let prompt = Prompt { system: record.system.as_deref(), earlier, problem: &turn.problem };
        let alone = template.row(tokenizer, prompt, &turn.solution);
        let alone = alone.map_err(|error| error.within(&label()))?;
        if !row.tokens.starts_with(&alone.tokens) {
            return Err(rewritten(index, &alone, &row, tokenizer, &label()));
        }
        trained.push(alone.prompt..alone.tokens.len());
    }
    trained.push(row.prompt..row.tokens.len());
    let gap = |pair: &[Range<usize>]| pair[0].end as u32..pair[1].start as u32;
    Ok(LaidOut {
        prompt: trained[0].start,
        untrained: trained.windows(2).map(gap).collect(),
        tokens: row.tokens,
    })
}

/// Returns the error for an earlier answer that the template changes.
fn rewritten(
    turn: usize,
    alone: &RowTokens,
    row: &RowTokens,
    tokenizer: &TextTokenizer,
    label: &str,
) -> Error {
    /// Tokens shown, starting at the first difference.
    const SHOWN: usize = 100;
    let same = alone.tokens.iter().zip(&row.tokens).take_while(|(a, b)| a == b).count();
    // Include some of the preceding text for orientation.
    let from = same.saturating_sub(SHOWN / 5);
    let shown = |tokens: &[u32]| {
        let tokens = &tokens[from.min(tokens.len())..tokens.len().min(same + SHOWN)];
        tokenizer.decode_all(tokens).unwrap_or_default()
    };
    Error::config(
        "data.trained_turns",
        format!(
            "{label}: the chat template changes answer {} of the conversation. A model writes: \
             \"{}\". The conversation has: \"{}\"",
            turn + 1,
            shown(&alone.tokens),
            shown(&row.tokens)
        ),
        "Train only the last answer (`last`), or give a template that keeps earlier answers \
         complete, including their reasoning",
    )
}
