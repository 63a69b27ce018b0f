//! Trains your own model: `CausalLm` makes it trainable, and `Generate` lets it answer and be graded.
//!
//! ```text
//! cargo run --example own_model
//! ```
//!
//! The model is the classic neural language model of Bengio et al. (2003): it concatenates the
//! embeddings of the last tokens and has one hidden layer. The library knows nothing about it.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::{log_softmax, relu};
use mixdistill::context::Accuracy;
use mixdistill::data::{Batch, Packing};
use mixdistill::eval::ask;
use mixdistill::model::TokenLimits;
use mixdistill::prelude::*;
use mixdistill::recipe::Prepared;
use mixdistill::terminal::Terminal;

/// The number of tokens that the model sees, including the last one.
const WINDOW: usize = 16;

#[derive(Module, Debug)]
struct WindowLm {
    embedding: Embedding,
    hidden: Linear,
    head: Linear,
    vocabulary: usize,
}

impl WindowLm {
    fn new(vocabulary: usize, width: usize, device: &Device) -> Self {
        Self {
            // The extra embedding pads the window at the start of a row.
            embedding: EmbeddingConfig::new(vocabulary + 1, width).init(device),
            hidden: LinearConfig::new(WINDOW * width, 4 * width).init(device),
            head: LinearConfig::new(4 * width, vocabulary).init(device),
            vocabulary,
        }
    }
}

/// What graders, benchmarks, and distillation need from a model.
impl Generate for WindowLm {
    fn limits(&self) -> TokenLimits {
        TokenLimits { vocabulary: self.vocabulary, context: usize::MAX }
    }

    fn device(&self) -> Device {
        self.head.weight.device()
    }

    /// Maps `[rows, length]` tokens to `[rows, length, vocabulary]` scores of each next token.
    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [rows, length] = ids.dims();
        let before = Tensor::full([rows, WINDOW - 1], self.vocabulary as i32, &ids.device());
        let padded = Tensor::cat(vec![before, ids], 1);
        let columns = (0..WINDOW).map(|at| padded.clone().narrow(1, at, length)).collect();
        let windows: Tensor<3, Int> = Tensor::stack(columns, 2);
        let embedded = self.embedding.forward(windows.reshape([rows * length, WINDOW]));
        let hidden = relu(self.hidden.forward(embedded.flatten::<2>(1, 2)));
        self.head.forward(hidden).reshape([rows, length, self.vocabulary])
    }
}

/// What the learner needs from a model.
impl CausalLm for WindowLm {
    fn vocabulary_size(&self) -> usize {
        self.vocabulary
    }

    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1> {
        // Without packing, each row of the batch is one example, padded on the right. The weight of a
        // target is 1 if it is trained (the answer) and 0 if not (the prompt).
        let shape = [batch.rows, batch.length];
        let ints = |values: &[u32]| {
            let values: Vec<i32> = values.iter().map(|value| *value as i32).collect();
            Tensor::<2, Int>::from_data(TensorData::new(values, shape), &self.device())
        };
        let weights = TensorData::new(batch.weights.clone(), shape);
        let weights = Tensor::<2>::from_data(weights, &self.device());
        let log_probabilities = log_softmax(self.logits(ints(&batch.ids)), 2);
        let targets = ints(&batch.targets).unsqueeze_dim::<3>(2);
        let of_targets = log_probabilities.gather(2, targets).squeeze_dim::<2>(2);
        // Return a sum. The learner divides it by the trained tokens of the whole step.
        (of_targets * weights).sum() * -scale
    }
}

fn main() -> Result<()> {
    // The data and settings of the toy run, with short answers only. This model cannot handle packed
    // rows, so packing is off.
    let mut config = RunConfig::toy();
    let problems = std::env::var("PROBLEMS").ok().and_then(|count| count.parse().ok());
    config.data.toy_problems = problems.unwrap_or(4000);
    config.set_share(0.0)?;
    config.train.packing = Packing::Off;
    config.evaluation.questions = 50;
    config.generate.max_new_tokens = 64;
    let context = Context::new(Terminal::default(), &StopFlag::default());
    let data = Prepared::new(&config, &context)?;

    let device = mixdistill::device::by_name("auto")?.autodiff();
    device.seed(config.seed);
    let model = WindowLm::new(data.tokenizer.vocabulary_size(), 48, &device);
    println!("{} parameters", model.num_params());
    let mut learner = Learner::new(model, config.train.clone())?;
    let options = FitOptions { observer: Some(&mut &context), ..FitOptions::default() };
    learner.fit(&mut data.rows(), options)?;

    // Grade it like any other model. This needs no gradients, so leave the autodiff device.
    let model = learner.into_model().valid();
    let (text, kind) = (data.text_interface(), config.evaluation.kind);
    let answers = ask(&model, &text, &data.questions, kind, &config.generate, &context)?;
    println!("{}", Accuracy::of(&answers));
    Ok(())
}
