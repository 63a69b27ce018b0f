//! The interface of a model that generates answers.

use super::answer::{Generation, StopConditions, TokenObserver};
use super::config::GenerateConfig;
use super::limits::TokenLimits;
use super::rows::answer_prompts;
use super::whole_rows::{WholeModel, WholeRows};
use crate::data::{Batch, TopTokens};
use crate::error::Result;
use burn::tensor::{Device, Int, Tensor};

/// A model that answers prompts and reports its most likely tokens.
///
/// [`ask`](crate::eval::ask), [`evaluate`](crate::eval::evaluate), and
/// [`ModelTeacher`](crate::train::ModelTeacher) require this trait; training requires
/// [`CausalLm`](crate::model::CausalLm). For your own model, implement the limits, the device, and the
/// logits. The default methods then recompute whole rows for each new token. [`DecoderLm`] uses caches
/// instead.
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
/// /// The next token depends only on the last one.
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
    /// Returns the limits of the model's input.
    fn limits(&self) -> TokenLimits;

    /// Returns the device on which the model expects its input.
    fn device(&self) -> Device;

    /// Returns the logits of all positions. Those after `ids[row, i]` must depend only on `ids[row, ..=i]`.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right with token 0; result:
    /// `[rows, length, vocabulary]`.
    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// Answers prompts and returns the answers in the order of the prompts.
    ///
    /// Calls `observe` with every new token. If it breaks, all unfinished answers end as
    /// [`Interrupted`](super::EndReason::Interrupted).
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if settings are out of range, or a prompt is empty, too long,
    /// or has unknown tokens; [`Error::Training`](crate::Error::Training) if the device fails.
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

    /// Like [`Generate::generate`], with a number for each prompt that selects its random stream. The same
    /// number and seed give the same stream in any call.
    ///
    /// # Errors
    /// See [`Generate::generate`]. [`Error::Config`](crate::Error::Config) if there are not as many numbers
    /// as prompts.
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

    /// Returns the `k` most likely of the first `vocabulary` tokens at each trained target of a batch, with
    /// their log-probabilities after the logits are divided by `temperature`. Ties go to the lower token ID.
    /// Logits beyond `vocabulary`, which pad the embedding, are ignored. Only the logits of one example are
    /// in memory at a time.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if `k` is 0 or above `vocabulary`, or `vocabulary` exceeds the
    /// model's; [`Error::Training`](crate::Error::Training) if the device cannot be read or a logit is not
    /// finite.
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
