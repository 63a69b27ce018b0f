//! From records to tokens with a loss mask.
//!
//! ```text
//! tokens    P P P P P A A A A E       P prompt, A answer, E end token
//! trained   . . . . . x x x x x       by position, never by token: the answer and its end
//! ```

use super::top_tokens::TopTokens;
use crate::context::{Context, Task, TaskProgress};
use crate::data::chat::TextTokenizer;
use crate::data::chat::{Prompt, PromptTemplate, RowTokens};
use crate::data::mixing::{Ledger, Length, Lengths, Pairs};
use crate::data::reading::CotRecord;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What happens to a row that exceeds the length limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It is left out and counted.
    #[default]
    Drop,
    /// It is an error.
    Error,
    /// Its answer is cut at the limit and loses its end token; counted.
    Cut,
}

/// The length limit of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthLimit {
    /// Most tokens of a row: prompt, answer and end token.
    pub tokens: usize,
    /// What happens to longer rows.
    pub too_long: TooLong,
}

impl LengthLimit {
    /// A limit beyond which rows are left out and counted.
    pub fn drop_beyond(tokens: usize) -> Self {
        Self { tokens, too_long: TooLong::Drop }
    }
}

/// Tokens of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Example<'a> {
    /// Prompt, answer and end token.
    pub tokens: &'a [u32],
    /// Tokens of the prompt; those after it are trained.
    pub prompt: usize,
    /// Its number in training order, where it has one; what is random about it depends on that.
    pub number: u64,
    /// What a teacher finds likely at its trained tokens, where there is a teacher.
    pub teacher: Option<&'a TopTokens>,
}

impl Example<'_> {
    /// Tokens that are inputs: all but the last.
    pub(super) fn inputs(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Tokens that are trained as the target of another: position p predicts token p + 1, so the
    /// first is at `prompt - 1`, and a row's first token is none.
    pub(crate) fn targets(&self) -> usize {
        self.inputs() - self.prompt.saturating_sub(1).min(self.inputs())
    }

    /// Tokens that are trained.
    pub fn trained(&self) -> usize {
        self.tokens.len() - self.prompt
    }
}

/// Records of one source as tokens, in one buffer.
#[derive(Clone, Debug, Default)]
struct EncodedSource {
    tokens: Vec<u32>,
    /// For each record: where its tokens start, how many, and how many of them are prompt. All 0
    /// for a record that was not encoded or does not fit.
    rows: Vec<(usize, u32, u32)>,
    too_long: Vec<bool>,
    cut: Vec<bool>,
    /// Tokens of the shortest record that exceeds the limit.
    shortest_too_long: Option<usize>,
}

impl EncodedSource {
    /// Takes in one record.
    fn put(
        &mut self,
        record: usize,
        row: RowFit,
        limit: LengthLimit,
        label: &dyn Fn() -> String,
    ) -> Result<()> {
        match row {
            RowFit::Fits { tokens, prompt, cut } => {
                self.cut[record] = cut;
                self.rows[record] = (self.tokens.len(), tokens.len() as u32, prompt as u32);
                self.tokens.extend(tokens);
            }
            RowFit::TooLong(length) if limit.too_long == TooLong::Error => {
                return Err(Error::config(
                    "data.max_length",
                    format!("{} has {length} tokens, the limit is {}", label(), limit.tokens),
                    "Raise the limit, or choose `too_long = \"drop\"` or \"cut\"",
                ));
            }
            RowFit::TooLong(length) => {
                let shortest = self.shortest_too_long.map_or(length, |old| old.min(length));
                self.shortest_too_long = Some(shortest);
                self.too_long[record] = true;
            }
        }
        Ok(())
    }
}

/// What all rows of a source are encoded with.
struct With<'a> {
    tokenizer: &'a TextTokenizer,
    template: &'a dyn PromptTemplate,
    limit: LengthLimit,
}

/// The answers of one source that are in `pairs`.
fn encode_source(
    pairs: &Pairs,
    index: usize,
    with: &With<'_>,
    progress: &mut TaskProgress<'_, '_>,
) -> Result<EncodedSource> {
    /// Records encoded between two reports of progress.
    const CHUNK: usize = 512;
    /// Records that a task lays out together.
    const TOGETHER: usize = 16;
    let source = &pairs.sources()[index];
    let mut wanted: Vec<usize> =
        (0..pairs.len()).filter_map(|p| pairs.record_index(p, index)).collect();
    wanted.sort_unstable();
    let records = source.records();
    let mut encoded = EncodedSource {
        rows: vec![(0, 0, 0); records.len()],
        too_long: vec![false; records.len()],
        cut: vec![false; records.len()],
        ..Default::default()
    };
    let mut done = progress.progress().done;
    for chunk in wanted.chunks(CHUNK) {
        let rows: Vec<Vec<Result<RowFit>>> = chunk
            .par_chunks(TOGETHER)
            .map(|part| {
                let answer = |&index: &usize| {
                    let CotRecord { system, problem, solution, .. } = &records[index];
                    (Prompt { system: system.as_deref(), problem }, solution.as_str())
                };
                let answers: Vec<(Prompt<'_>, &str)> = part.iter().map(answer).collect();
                let rows = with.template.rows(with.tokenizer, &answers).into_iter().zip(part);
                rows.map(|(row, &index)| {
                    let row = row.map_err(|error| error.within(&source.label(index)))?;
                    Ok(within_limit(row, with.limit))
                })
                .collect()
            })
            .collect();
        for (&record, row) in chunk.iter().zip(rows.into_iter().flatten()) {
            encoded.put(record, row?, with.limit, &|| source.label(record))?;
        }
        done += chunk.len() as u64;
        progress.update(done)?;
    }
    Ok(encoded)
}

/// All answers of all pairs as tokens.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    sources: Vec<EncodedSource>,
}

/// One record after tokenizing.
enum RowFit {
    Fits { tokens: Vec<u32>, prompt: usize, cut: bool },
    TooLong(usize),
}

impl Encoded {
    /// Encodes every answer of `pairs`, in parallel; the result does not depend on the threads.
    ///
    /// # Errors
    /// What `template` and `tokenizer` give; [`Error::Config`] with key `data.max_length` where no
    /// row fits, or where one does not and the limit refuses it; [`Error::Stopped`].
    pub fn encode(
        pairs: &Pairs,
        tokenizer: &TextTokenizer,
        template: &dyn PromptTemplate,
        limit: LengthLimit,
        context: &Context<'_>,
    ) -> Result<Self> {
        let templates = vec![template; pairs.sources().len()];
        Self::encode_by_source(pairs, tokenizer, &templates, limit, context)
    }

    /// As [`Encoded::encode`], each source with a template of its own: `templates` has one for each,
    /// in the order of [`Pairs::sources`].
    ///
    /// # Errors
    /// As [`Encoded::encode`].
    ///
    /// # Panics
    /// If there is not a template for each source.
    pub fn encode_by_source(
        pairs: &Pairs,
        tokenizer: &TextTokenizer,
        templates: &[&dyn PromptTemplate],
        limit: LengthLimit,
        context: &Context<'_>,
    ) -> Result<Self> {
        let count = pairs.sources().len();
        assert_eq!(templates.len(), count, "a template for each source");
        let answers: usize = (0..count).map(|s| pairs.available(s)).sum();
        let mut progress = context.task(Task::Encode, answers as u64);
        let sources = templates
            .iter()
            .enumerate()
            .map(|(index, &template)| {
                let with = With { tokenizer, template, limit };
                encode_source(pairs, index, &with, &mut progress)
            })
            .collect::<Result<Vec<_>>>()?;
        let any = sources.iter().flat_map(|source| &source.rows).any(|row| row.1 > 0);
        if !any {
            let shortest = sources.iter().filter_map(|source| source.shortest_too_long).min();
            return Err(Error::config(
                "data.max_length",
                format!(
                    "no row fits {} tokens; the shortest has {}",
                    limit.tokens,
                    shortest.unwrap_or_default()
                ),
                "Raise the limit",
            ));
        }
        Ok(Self { sources })
    }

    /// The tokens of a record, if it was encoded and fits the limit.
    pub fn example(&self, source: usize, record: usize) -> Option<Example<'_>> {
        let encoded = self.sources.get(source)?;
        let &(start, length, prompt) = encoded.rows.get(record)?;
        let tokens = &encoded.tokens[start..start + length as usize];
        (length > 0).then_some(Example { tokens, prompt: prompt as usize, ..Example::default() })
    }

    /// The lengths of all records.
    pub fn lengths(&self) -> Lengths {
        let length = |&(_, tokens, prompt): &(usize, u32, u32)| {
            (tokens > 0).then_some(Length { tokens, trained: tokens - prompt })
        };
        Lengths::new(self.sources.iter().map(|s| s.rows.iter().map(length).collect()).collect())
    }

    /// The pairs without the answers that do not fit, which are entered in the ledger.
    pub fn fitting(&self, pairs: &Pairs, ledger: &mut Ledger) -> Pairs {
        for (index, line) in ledger.sources.iter_mut().enumerate() {
            let records = (0..pairs.len()).filter_map(|p| pairs.record_index(p, index));
            let encoded = &self.sources[index];
            line.shortest_too_long = encoded.shortest_too_long;
            (line.too_long, line.usable, line.cut) =
                records.fold((0, 0, 0), |(long, usable, cut), record| {
                    let too_long = encoded.too_long[record];
                    (
                        long + usize::from(too_long),
                        usable + usize::from(!too_long),
                        cut + usize::from(encoded.cut[record]),
                    )
                });
        }
        let (kept, dropped) = pairs.retain(|s, r| self.example(s, r).is_some());
        ledger.without_answer = dropped;
        ledger.training = kept.len();
        kept
    }
}

/// Holds a row to the length limit.
fn within_limit(row: RowTokens, limit: LengthLimit) -> RowFit {
    let LengthLimit { tokens: max_length, too_long } = limit;
    let RowTokens { mut tokens, prompt } = row;
    let length = tokens.len();
    let cut = length > max_length;
    // An empty prompt would leave the first trained token without anything before it, and a prompt
    // that fills the limit leaves nothing to train.
    if prompt == 0 || (cut && (too_long != TooLong::Cut || prompt >= max_length)) {
        return RowFit::TooLong(length);
    }
    tokens.truncate(max_length);
    RowFit::Fits { tokens, prompt, cut }
}

/// A row's tokens and prompt in 32 hexadecimal digits (half of a SHA-256), by which files know it.
pub(crate) fn row_key(example: &Example) -> String {
    let mut hash = Sha256::new();
    hash.update((example.prompt as u64).to_le_bytes());
    example.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
