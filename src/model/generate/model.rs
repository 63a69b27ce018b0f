//! What is asked of a model that answers, grades and teaches.

use super::answer::{Generation, StopConditions, TokenObserver};
use super::config::GenerateConfig;
use super::limits::TokenLimits;
use super::rows::answer_prompts;
use super::whole_rows::{WholeModel, WholeRows};
use crate::data::{Batch, TopTokens};
use crate::error::Result;
use burn::tensor::{Device, Int, Tensor};

/// A model that can be asked: it answers prompts, and tells which tokens it finds likely.
///
/// Beside [`CausalLm`](crate::model::CausalLm), which is all that training needs, this is all that
/// [`ask`](crate::eval::ask), [`evaluate`](crate::eval::evaluate) and
/// [`ModelTeacher`](crate::train::ModelTeacher) need. A model of your own says how many tokens it knows
/// and gives scores; whole rows are then computed for each new token. [`DecoderLm`] keeps keys and
/// values instead.
///
/// [`DecoderLm`]: crate::model::DecoderLm
///
/// ```
/// use burn::nn::{Embedding, EmbeddingConfig};
/// use burn::tensor::{Device, Int, Tensor};
/// use mixdistill::data::TextTokenizer;
/// use mixdistill::model::{Generate, GenerateConfig, StopConditions, TokenLimits};
/// use std::ops::ControlFlow;
///
/// /// The next token depends on the last one alone.
/// struct Bigrams(Embedding);
///
/// impl Generate for Bigrams {
///     fn limits(&self) -> TokenLimits {
///         TokenLimits { vocabulary: self.0.weight.dims()[0], context: usize::MAX }
///     }
///
///     fn device(&self) -> Device {
///         self.0.weight.device()
///     }
///
///     fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
///         self.0.forward(ids)
///     }
/// }
///
/// # fn main() -> mixdistill::Result<()> {
/// let device = mixdistill::device::by_name("auto")?;
/// let tokenizer = TextTokenizer::builtin([" one", " two"])?;
/// let tokens = tokenizer.vocabulary_size();
/// let model = Bigrams(EmbeddingConfig::new(tokens, tokens).init(&device));
/// let stop = StopConditions { tokens: &[tokenizer.end_token()], tokenizer: &tokenizer };
/// let config = GenerateConfig { max_new_tokens: 4, ..GenerateConfig::default() };
/// let prompts = [tokenizer.encode(" one two")?];
/// let answers = model.generate(&prompts, stop, &config, &mut |_| ControlFlow::Continue(()))?;
/// assert!(answers[0].tokens.len() <= 4);
/// # Ok(())
/// # }
/// ```
pub trait Generate {
    /// The tokens that it can be asked with.
    fn limits(&self) -> TokenLimits;

    /// The device that it takes tokens on.
    fn device(&self) -> Device;

    /// Scores of every next token: those after `ids[row, i]` depend on `ids[row, ..=i]` alone.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right with token 0; result:
    /// `[rows, length, vocabulary]`.
    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// Answers prompts, in their order.
    ///
    /// `observe` is called with every new token; where it breaks, all unfinished answers end as
    /// they are.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for settings out of range or an empty prompt; [`Error::Training`](crate::Error::Training) where
    /// the device fails.
    fn generate(
        &self,
        prompts: &[Vec<u32>],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        let numbers: Vec<u64> = (0..prompts.len() as u64).collect();
        self.generate_as(prompts, &numbers, stop_conditions, config, observe)
    }

    /// As [`Generate::generate`], with a number for each prompt, which its random draws depend on:
    /// the same number and prompt have the same draws in any call.
    ///
    /// # Errors
    /// As [`Generate::generate`]; [`Error::Config`](crate::Error::Config) where numbers and prompts are not as many.
    fn generate_as(
        &self,
        prompts: &[Vec<u32>],
        numbers: &[u64],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        let (limits, device) = (self.limits(), self.device());
        let model = WholeModel { logits: &|ids| self.logits(ids), limits, device: &device };
        let begin = |texts| WholeRows { model, texts };
        answer_prompts(limits, prompts, numbers, stop_conditions, config, observe, begin)
    }

    /// The `k` likeliest of the first `vocabulary` tokens at each trained target of a batch, with
    /// the logarithms of their probabilities when the logits are divided by `temperature`. Among
    /// equals the lower token comes first. Logits beyond the `vocabulary`, which pad an embedding's
    /// size, count for nothing. The scores of one example are there at a time.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a `k` that is 0 or above the vocabulary, or a vocabulary that the model
    /// does not have; [`Error::Training`](crate::Error::Training) where the device cannot be read or a logit is not a
    /// number.
    fn top_tokens(
        &self,
        batch: &Batch,
        k: usize,
        temperature: f64,
        vocabulary: usize,
    ) -> Result<TopTokens> {
        let (limits, device) = (self.limits(), self.device());
        let model = WholeModel { logits: &|ids| self.logits(ids), limits, device: &device };
        model.top_tokens(batch, k, temperature, vocabulary)
    }
}
