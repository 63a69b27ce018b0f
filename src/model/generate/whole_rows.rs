//! Generation without a cache: whole rows are recomputed for each new token.

use super::limits::TokenLimits;
use super::rows::RowScores;
use crate::data::{Batch, TopTokens};
use crate::error::{Error, Result};
use crate::model::tensors::host;
use crate::model::top_tokens::{check_finite, check_request, likeliest};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Maximum number of logits at a time, over all positions of the rows that are computed together.
const MOST_SCORES: usize = 1 << 26;

/// A model that computes the logits of all positions.
#[derive(Clone, Copy)]
pub(super) struct WholeModel<'a> {
    pub logits: &'a dyn Fn(Tensor<2, Int>) -> Tensor<3>,
    pub limits: TokenLimits,
    pub device: &'a Device,
}

impl WholeModel<'_> {
    /// Returns the logits of rows, `[rows, length, vocabulary]`.
    fn scores(&self, rows: &[&[u32]]) -> Result<Tensor<3>> {
        let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut ids = vec![0i32; rows.len() * length];
        for (line, row) in ids.chunks_mut(length.max(1)).zip(rows) {
            line.iter_mut().zip(row.iter()).for_each(|(id, token)| *id = *token as i32);
        }
        let ids = TensorData::new(ids, [rows.len(), length]);
        let scores = (self.logits)(Tensor::from_data(ids, self.device));
        let (found, expected) = (scores.dims(), [rows.len(), length, self.limits.vocabulary]);
        if found != expected {
            return Err(Error::Training {
                what: format!("the model returned logits of shape {found:?} instead of {expected:?}"),
                hint:
                    "Return [rows, length, vocabulary] from `Generate::logits`, with the vocabulary \
                       of `limits`"
                        .into(),
            });
        }
        Ok(scores)
    }

    /// See [`Generate::top_tokens`](super::Generate::top_tokens).
    pub(super) fn top_tokens(
        &self,
        batch: &Batch,
        k: usize,
        temperature: f64,
        vocabulary: usize,
    ) -> Result<TopTokens> {
        check_request(k, vocabulary, self.limits.vocabulary)?;
        let mut top = TopTokens { k, ..TopTokens::default() };
        let mut place = 0;
        while place < batch.ids.len() {
            // Padding has length 0.
            let length = batch.lengths[place] as usize;
            let example = place..place + length;
            place += length.max(1);
            let trained = |at: &usize| batch.weights[*at] != 0.0;
            let targets: Vec<usize> = example.clone().filter(trained).collect();
            let (Some(first), Some(last)) = (targets.first(), targets.last()) else { continue };
            let scores = self.scores(&[&batch.ids[example.clone()]])?;
            let scores = scores.narrow(1, first - example.start, last - first + 1);
            let scores = host(scores)?.values;
            check_finite(&scores)?;
            for at in &targets {
                let of_target = &scores[(at - first) * self.limits.vocabulary..][..vocabulary];
                let (tokens, log_probs) = likeliest(of_target, k, temperature);
                top.tokens.extend(tokens);
                top.log_probs.extend(log_probs);
            }
        }
        Ok(top)
    }
}

/// Rows that are recomputed for each token.
pub(super) struct WholeRows<'a> {
    pub model: WholeModel<'a>,
    /// The rows so far, prompts included.
    pub texts: Vec<Vec<u32>>,
}

impl RowScores for WholeRows<'_> {
    fn next(&mut self, new: Option<&[u32]>) -> Result<Tensor<2>> {
        for (text, token) in self.texts.iter_mut().zip(new.unwrap_or_default()) {
            text.push(*token);
        }
        self.last_scores(&(0..self.texts.len()).collect::<Vec<_>>())
    }

    /// Returns true, because a finished row costs as much as any other and would outgrow the context.
    fn drops(&self, active: usize, rows: usize) -> bool {
        active < rows
    }

    fn keep(&mut self, rows: &[usize]) {
        self.texts = rows.iter().map(|row| std::mem::take(&mut self.texts[*row])).collect();
    }

    fn fits(&self, _tokens: usize) -> bool {
        true
    }

    fn replace(&mut self, rows: &[usize], prompts: Vec<Vec<u32>>) -> Result<Tensor<2>> {
        for (row, prompt) in rows.iter().zip(prompts) {
            self.texts[*row] = prompt;
        }
        self.last_scores(rows)
    }
}

impl WholeRows<'_> {
    /// Returns the logits of the next token of each of these rows, `[rows, vocabulary]`.
    fn last_scores(&self, rows: &[usize]) -> Result<Tensor<2>> {
        let texts: Vec<&[u32]> = rows.iter().map(|row| self.texts[*row].as_slice()).collect();
        let vocabulary = self.model.limits.vocabulary;
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let together = (MOST_SCORES / (longest * vocabulary).max(1)).max(1);
        let mut last = Vec::with_capacity(texts.len());
        for rows in texts.chunks(together) {
            let scores = self.model.scores(rows)?;
            for (index, row) in rows.iter().enumerate() {
                let of_row = scores.clone().narrow(0, index, 1).narrow(1, row.len() - 1, 1);
                last.push(of_row.reshape([1, vocabulary]));
            }
        }
        Ok(Tensor::cat(last, 0))
    }
}
