//! The style shift: tokens that the untuned student would not have generated.
//!
//! The untuned student ranks each token that a trained student generated, at the same position: 0 if it is
//! the most likely token, higher if others are more likely. Tokens with a high mean rank were learned in
//! training. In the paper, those of long answers are words such as "wait" and "Alternatively".

use crate::context::{Context, Task};
use crate::data::{Batch, Row};
use crate::error::Result;
use crate::eval::Answer;
use crate::model::DecoderLm;
use crate::recipe::Prepared;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A token and its mean rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenShift {
    /// The token's text.
    pub token: String,
    /// How often it was generated.
    pub count: usize,
    /// Its mean rank under the untuned student.
    pub mean_rank: f64,
}

/// The style shift of one student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StyleShift {
    /// The student.
    pub student: String,
    /// The source or choice that it was trained on.
    pub source: String,
    /// The number of tokens in its answers.
    pub tokens: usize,
    /// The share of them that the untuned student ranks first.
    pub first: f64,
    /// Their mean rank.
    pub mean_rank: f64,
    /// The tokens with the highest mean rank, among those generated at least three times.
    pub largest: Vec<TokenShift>,
}

/// The text and rank of each generated token.
pub(super) type Ranks = Vec<(String, u32)>;

/// Ranks each token of the answers under `untuned`.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); errors of ranking.
pub(super) fn ranks(
    untuned: &DecoderLm,
    prepared: &Prepared,
    answers: &[Answer],
    context: &Context<'_>,
) -> Result<Ranks> {
    let mut all = vec![];
    let mut progress = context.task(Task::RankTokens, answers.len() as u64);
    progress.update(0)?;
    for answer in answers {
        let mut tokens = prepared.template.prompt(&prepared.tokenizer, answer.prompt())?;
        let prompt = tokens.len();
        tokens.extend(prepared.tokenizer.encode(&answer.text)?);
        let row = Row { tokens, prompt, ..Row::default() };
        let ranks = untuned.target_ranks(&Batch::new([row.example()], 1))?;
        for (token, rank) in row.tokens[prompt..].iter().zip(ranks) {
            all.push((prepared.tokenizer.token_text(*token).unwrap_or_default(), rank));
        }
        progress.advance()?;
    }
    Ok(all)
}

impl StyleShift {
    pub(super) fn new(student: &str, source: &str, ranks: Ranks) -> Self {
        /// A token that occurs less often is ignored.
        const LEAST: usize = 3;
        const LISTED: usize = 12;
        let count = ranks.len().max(1) as f64;
        let mut tokens: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
        for (token, rank) in &ranks {
            let (count, sum) = tokens.entry(token).or_default();
            *count += 1;
            *sum += f64::from(*rank);
        }
        let mut largest: Vec<TokenShift> = tokens
            .into_iter()
            .filter(|(_, (count, _))| *count >= LEAST)
            .map(|(token, (count, sum))| TokenShift {
                token: token.to_owned(),
                count,
                mean_rank: sum / count as f64,
            })
            .collect();
        largest.sort_by(|a, b| b.mean_rank.total_cmp(&a.mean_rank));
        largest.truncate(LISTED);
        Self {
            student: student.to_owned(),
            source: source.to_owned(),
            tokens: ranks.len(),
            first: ranks.iter().filter(|(_, rank)| *rank == 0).count() as f64 / count,
            mean_rank: ranks.iter().map(|(_, rank)| f64::from(*rank)).sum::<f64>() / count,
            largest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::StyleShift;

    #[test]
    fn tokens_that_were_unlikely_are_listed_first() {
        let ranks = [("wait", 90), ("the", 0), ("wait", 110), ("the", 1), ("wait", 100)]
            .into_iter()
            .chain([("the", 2), ("rare", 1000)])
            .map(|(token, rank)| (token.to_owned(), rank))
            .collect();
        let shift = StyleShift::new("student", "long", ranks);
        assert_eq!((shift.tokens, shift.largest.len()), (7, 2));
        assert_eq!(shift.largest[0].token, "wait");
        assert_eq!((shift.largest[0].count, shift.largest[0].mean_rank), (3, 100.0));
        assert_eq!(shift.largest[1].mean_rank, 1.0);
        assert!((shift.first - 1.0 / 7.0).abs() < 1e-12);
    }
}
