//! From records to tokens with a loss mask.
//!
//! ```text
//! tokens    P P P P P A A A A E       P prompt, A answer, E end token
//! trained   . . . . . x x x x x       by position, never by token: the answer and its end
//! ```

use super::ledger::Ledger;
use super::pairs::Pairs;
use super::record::CotRecord;
use super::template::{Prompt, PromptTemplate, RowTokens};
use super::tokenizer::TextTokenizer;
use super::top_tokens::TopTokens;
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

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

/// Length of one row in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// All tokens of the row.
    pub tokens: u32,
    /// Those that are trained.
    pub trained: u32,
}

/// Lengths of all encoded records, by source and record number.
#[derive(Clone, Debug, Default)]
pub struct Lengths(Vec<Vec<Option<Length>>>);

impl Lengths {
    /// Lengths computed elsewhere: for each source, for each of its records.
    pub fn new(lengths: Vec<Vec<Option<Length>>>) -> Self {
        Self(lengths)
    }

    /// The length of a record, if it was encoded and fits the limit.
    pub fn get(&self, source: usize, record: usize) -> Option<Length> {
        *self.0.get(source)?.get(record)?
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
}

/// All answers of all pairs as tokens.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    sources: Vec<EncodedSource>,
}

/// One record after tokenizing.
enum Row {
    Fits { tokens: Vec<u32>, prompt: usize, cut: bool },
    TooLong(usize),
}

impl Encoded {
    /// Encodes every answer of `pairs`, in parallel; the result does not depend on the threads.
    ///
    /// `progress` is called from time to time with the number of answers encoded so far.
    ///
    /// # Errors
    /// What `template` and `tokenizer` give; [`Error::Config`] with key `max_length` where no row fits, or where
    /// one does not and `too_long` is [`TooLong::Error`].
    pub fn encode(
        pairs: &Pairs,
        tokenizer: &TextTokenizer,
        template: &dyn PromptTemplate,
        max_length: usize,
        too_long: TooLong,
        progress: &dyn Fn(usize),
    ) -> Result<Self> {
        /// Records encoded between two reports of progress.
        const CHUNK: usize = 512;
        /// Records that a task lays out together.
        const TOGETHER: usize = 16;
        let mut sources = vec![];
        let mut done = 0;
        let mut shortest = usize::MAX;
        let mut any = false;
        for (index, source) in pairs.sources().iter().enumerate() {
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
            for chunk in wanted.chunks(CHUNK) {
                let rows: Vec<Vec<Result<Row>>> = chunk
                    .par_chunks(TOGETHER)
                    .map(|part| {
                        let answer = |&index: &usize| {
                            let CotRecord { system, problem, solution, .. } = &records[index];
                            (Prompt { system: system.as_deref(), problem }, solution.as_str())
                        };
                        let answers: Vec<(Prompt<'_>, &str)> = part.iter().map(answer).collect();
                        let rows = template.rows(tokenizer, &answers).into_iter().zip(part);
                        rows.map(|(row, &index)| {
                            let row = row.map_err(|error| error.within(&source.label(index)))?;
                            Ok(within_limit(row, max_length, too_long))
                        })
                        .collect()
                    })
                    .collect();
                for (&record, row) in chunk.iter().zip(rows.into_iter().flatten()) {
                    match row? {
                        Row::Fits { tokens, prompt, cut } => {
                            any = true;
                            encoded.cut[record] = cut;
                            encoded.rows[record] =
                                (encoded.tokens.len(), tokens.len() as u32, prompt as u32);
                            encoded.tokens.extend(tokens);
                        }
                        Row::TooLong(length) if too_long == TooLong::Error => {
                            return Err(Error::config(
                                "max_length",
                                format!(
                                    "{} has {length} tokens, the limit is {max_length}",
                                    source.label(record)
                                ),
                                "Raise the limit, or choose `too_long = \"drop\"` or \"cut\"",
                            ));
                        }
                        Row::TooLong(length) => {
                            shortest = shortest.min(length);
                            encoded.too_long[record] = true;
                        }
                    }
                }
                done += chunk.len();
                progress(done);
            }
            sources.push(encoded);
        }
        if !any {
            return Err(Error::config(
                "max_length",
                format!("no row fits {max_length} tokens; the shortest has {shortest}"),
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
        Lengths(self.sources.iter().map(|s| s.rows.iter().map(length).collect()).collect())
    }

    /// The pairs without the answers that do not fit, which are entered in the ledger.
    pub fn fitting(&self, pairs: &Pairs, ledger: &mut Ledger) -> Pairs {
        for (index, line) in ledger.sources.iter_mut().enumerate() {
            let records = (0..pairs.len()).filter_map(|p| pairs.record_index(p, index));
            let encoded = &self.sources[index];
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
fn within_limit(row: RowTokens, max_length: usize, too_long: TooLong) -> Row {
    let RowTokens { mut tokens, prompt } = row;
    let length = tokens.len();
    let cut = length > max_length;
    // An empty prompt would leave the first trained token without anything before it, and a prompt
    // that fills the limit leaves nothing to train.
    if prompt == 0 || (cut && (too_long != TooLong::Cut || prompt >= max_length)) {
        return Row::TooLong(length);
    }
    tokens.truncate(max_length);
    Row::Fits { tokens, prompt, cut }
}
