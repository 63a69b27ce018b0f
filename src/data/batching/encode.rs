//! From records to tokens with a loss mask.
//!
//! ```text
//! tokens    P P P P P A A A A E       P prompt, A answer, E end token
//! trained   . . . . . x x x x x       by position, never by token: the answer and its end
//! ```
//!
//! If several answers of a conversation are trained, the text between them is not.

use super::top_tokens::TopTokens;
use super::turns::{LaidOut, TrainedTurns, with_turns};
use crate::context::{Context, Task, TaskProgress};
use crate::data::chat::TextTokenizer;
use crate::data::chat::{Prompt, PromptTemplate};
use crate::data::mixing::{Ledger, Length, Lengths, Pairs, Source};
use crate::data::reading::CotRecord;
use crate::error::{Error, Result};
use crate::text::hex;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;

/// What happens to a row above the length limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// Leave the row out and count it.
    #[default]
    Drop,
    /// Stop with an error.
    Error,
    /// Cut the answer at the limit, without its end token, and count it.
    Cut,
}

/// The length limit of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthLimit {
    /// Maximum tokens of a row: prompt, answer, and end token.
    pub tokens: usize,
    /// What happens to longer rows.
    pub too_long: TooLong,
}

impl LengthLimit {
    /// Returns a limit above which rows are left out and counted.
    pub fn drop_beyond(tokens: usize) -> Self {
        Self { tokens, too_long: TooLong::Drop }
    }
}

/// The tokens of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Example<'a> {
    /// Prompt, answer, and end token.
    pub tokens: &'a [u32],
    /// Number of prompt tokens. The tokens after them are trained.
    pub prompt: usize,
    /// Tokens after the prompt that are not trained, as ascending ranges.
    pub untrained: &'a [Range<u32>],
    /// The example's number in training order, if it has one, which seeds its random operations.
    pub number: u64,
    /// A teacher's likeliest tokens at the trained positions, if there is a teacher.
    pub teacher: Option<&'a TopTokens>,
}

impl Example<'_> {
    /// Returns the number of input tokens: all but the last.
    pub(super) fn inputs(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Returns the number of tokens trained as targets. Position p predicts token p + 1, so the first is at
    /// `prompt - 1`, and the first token of a row is never a target.
    pub(crate) fn targets(&self) -> usize {
        (self.inputs() - self.first_target()).saturating_sub(count(self.untrained))
    }

    /// Returns the first input whose target is trained.
    pub(super) fn first_target(&self) -> usize {
        self.prompt.saturating_sub(1).min(self.inputs())
    }

    /// Returns the ranges of tokens that are trained as targets, in ascending order.
    pub(crate) fn trained_ranges(&self) -> Vec<Range<usize>> {
        let mut start = self.prompt.max(1);
        let mut ranges = vec![];
        for gap in self.untrained {
            ranges.push(start..(gap.start as usize).min(self.tokens.len()));
            start = start.max(gap.end as usize);
        }
        ranges.push(start..self.tokens.len());
        ranges.retain(|range| !range.is_empty());
        ranges
    }

    /// Returns the number of trained tokens.
    pub fn trained(&self) -> usize {
        (self.tokens.len() - self.prompt).saturating_sub(count(self.untrained))
    }
}

/// Returns the number of tokens in ranges.
fn count(ranges: &[Range<u32>]) -> usize {
    ranges.iter().map(|range| range.len()).sum()
}

/// Adds ranges to a hash. Without ranges, the hash is the same as in earlier versions.
pub(crate) fn hash_ranges(hash: &mut Sha256, ranges: &[Range<u32>]) {
    for range in ranges {
        hash.update(range.start.to_le_bytes());
        hash.update(range.end.to_le_bytes());
    }
}

/// The encoded records of one source, in one buffer.
#[derive(Clone, Debug, Default)]
struct EncodedSource {
    tokens: Vec<u32>,
    /// For each record: the offset of its tokens, their number, and the number of prompt tokens. All 0 for a
    /// record that was not encoded or exceeds the limit.
    rows: Vec<(usize, u32, u32)>,
    /// Untrained ranges after the prompt, for records that have any.
    untrained: BTreeMap<usize, Vec<Range<u32>>>,
    too_long: Vec<bool>,
    cut: Vec<bool>,
    /// Length of the shortest record that exceeds the limit.
    shortest_too_long: Option<usize>,
}

impl EncodedSource {
    /// Adds one record.
    fn put(
        &mut self,
        record: usize,
        row: RowFit,
        limit: LengthLimit,
        label: &dyn Fn() -> String,
    ) -> Result<()> {
        match row {
            RowFit::Fits { row: LaidOut { tokens, prompt, untrained }, cut } => {
                self.cut[record] = cut;
                self.rows[record] = (self.tokens.len(), tokens.len() as u32, prompt as u32);
                if !untrained.is_empty() {
                    self.untrained.insert(record, untrained);
                }
                self.tokens.extend(tokens);
            }
            RowFit::TooLong(length) if limit.too_long == TooLong::Error => {
                return Err(Error::config(
                    "data.max_length",
                    format!("{} has {length} tokens, the limit is {}", label(), limit.tokens),
                    "Raise the limit, or set data.too_long to \"drop\" or \"cut\"",
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

/// Everything that is needed to encode the rows of a source.
struct With<'a> {
    tokenizer: &'a TextTokenizer,
    template: &'a dyn PromptTemplate,
    turns: TrainedTurns,
    limit: LengthLimit,
}

impl With<'_> {
    /// Encodes some records of a source.
    fn rows(&self, source: &Source, records: &[usize]) -> Vec<Result<RowFit>> {
        let answer = |&index: &usize| {
            let CotRecord { system, earlier, problem, solution, .. } = &source.records()[index];
            (Prompt { system: system.as_deref(), earlier, problem }, solution.as_str())
        };
        let answers: Vec<(Prompt<'_>, &str)> = records.iter().map(answer).collect();
        let rows = self.template.rows(self.tokenizer, &answers).into_iter().zip(records);
        rows.map(|(row, &index)| {
            let (record, label) = (&source.records()[index], || source.label(index));
            let row = row.map_err(|error| error.within(&label()))?;
            let row = with_turns(row, record, self.turns, self.tokenizer, self.template, &label)?;
            Ok(within_limit(row, self.limit))
        })
        .collect()
    }
}

/// Encodes the answers of one source in `pairs`.
fn encode_source(
    pairs: &Pairs,
    index: usize,
    with: &With<'_>,
    progress: &mut TaskProgress<'_, '_>,
) -> Result<EncodedSource> {
    /// Records encoded between two progress events.
    const CHUNK: usize = 512;
    /// Records that one task lays out together.
    const TOGETHER: usize = 16;
    let source = &pairs.sources()[index];
    let mut wanted: Vec<usize> =
        (0..pairs.len()).flat_map(|p| pairs.candidates(p, index)).collect();
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
        let rows: Vec<Vec<Result<RowFit>>> =
            chunk.par_chunks(TOGETHER).map(|part| with.rows(source, part)).collect();
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

/// A record after tokenizing.
enum RowFit {
    Fits { row: LaidOut, cut: bool },
    TooLong(usize),
}

impl Encoded {
    /// Encodes every answer of `pairs` in parallel. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// Errors of `template` and `tokenizer`; [`Error::Config`] with key `data.max_length` if no row fits, or
    /// if a row does not and the limit is [`TooLong::Error`]; [`Error::Stopped`].
    pub fn encode(
        pairs: &Pairs,
        tokenizer: &TextTokenizer,
        template: &dyn PromptTemplate,
        limit: LengthLimit,
        context: &Context<'_>,
    ) -> Result<Self> {
        let templates = vec![template; pairs.sources().len()];
        let turns = TrainedTurns::Last;
        Self::encode_by_source(pairs, tokenizer, &templates, turns, limit, context)
    }

    /// Like [`Encoded::encode`], with a template for each source, in the order of [`Pairs::sources`]. `turns`
    /// says which answers of conversations with several turns are trained.
    ///
    /// # Errors
    /// See [`Encoded::encode`]; [`Error::Config`] with key `data.trained_turns` if an earlier answer to train
    /// on is changed by its template.
    ///
    /// # Panics
    /// If the number of templates differs from the number of sources.
    pub fn encode_by_source(
        pairs: &Pairs,
        tokenizer: &TextTokenizer,
        templates: &[&dyn PromptTemplate],
        turns: TrainedTurns,
        limit: LengthLimit,
        context: &Context<'_>,
    ) -> Result<Self> {
        let count = pairs.sources().len();
        assert_eq!(templates.len(), count, "a template for each source");
        let answers: usize = (0..count).map(|s| pairs.answers_of(s)).sum();
        let mut progress = context.task(Task::Encode, answers as u64);
        let sources = templates
            .iter()
            .enumerate()
            .map(|(index, &template)| {
                let with = With { tokenizer, template, turns, limit };
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

    /// Returns the tokens of a record, or `None` if it was not encoded or exceeds the limit.
    pub fn example(&self, source: usize, record: usize) -> Option<Example<'_>> {
        let encoded = self.sources.get(source)?;
        let &(start, length, prompt) = encoded.rows.get(record)?;
        let tokens = &encoded.tokens[start..start + length as usize];
        let untrained = encoded.untrained.get(&record).map_or(&[][..], Vec::as_slice);
        let prompt = prompt as usize;
        (length > 0).then_some(Example { tokens, prompt, untrained, ..Example::default() })
    }

    /// Returns the lengths of all records.
    pub fn lengths(&self) -> Lengths {
        let length = |source, record| {
            let example = self.example(source, record)?;
            Some(Length { tokens: example.tokens.len() as u32, trained: example.trained() as u32 })
        };
        let of = |(index, source): (usize, &EncodedSource)| {
            (0..source.rows.len()).map(|record| length(index, record)).collect()
        };
        Lengths::new(self.sources.iter().enumerate().map(of).collect())
    }

    /// Removes the answers that do not fit from the pairs, and updates the ledger.
    pub fn fitting(&self, pairs: &Pairs, ledger: &mut Ledger) -> Pairs {
        for (index, line) in ledger.sources.iter_mut().enumerate() {
            let records = (0..pairs.len()).flat_map(|p| pairs.candidates(p, index));
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

/// Applies the length limit to a row.
fn within_limit(mut row: LaidOut, limit: LengthLimit) -> RowFit {
    let LengthLimit { tokens: max_length, too_long } = limit;
    let LaidOut { tokens, prompt, untrained } = &mut row;
    let (length, prompt) = (tokens.len(), *prompt);
    let cut = length > max_length;
    // Refuse an empty prompt, which leaves no context for the first trained token, and a prompt that fills
    // the limit, which leaves nothing to train.
    if prompt == 0 || (cut && (too_long != TooLong::Cut || prompt >= max_length)) {
        return RowFit::TooLong(length);
    }
    tokens.truncate(max_length);
    // Only the remaining tokens are trained.
    let most = tokens.len() as u32;
    untrained.retain(|range| range.start < most);
    untrained.iter_mut().for_each(|range| range.end = range.end.min(most));
    RowFit::Fits { row, cut }
}

/// Returns a key for a row's tokens and prompt in files: 32 hexadecimal digits (half of a SHA-256).
pub(crate) fn row_key(example: &Example) -> String {
    let mut hash = Sha256::new();
    hash.update((example.prompt as u64).to_le_bytes());
    hash_ranges(&mut hash, example.untrained);
    example.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hex(&hash.finalize()[..16])
}
