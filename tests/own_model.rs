//! Promise: a custom model works wherever the decoder does. It can be trained, graded, evaluated, and used as a
//! teacher, and its answers are sampled in the same way.

mod common;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use common::{devices, examples, ids, rows, shaken, tiny};
use mixdistill::context::{Context, GradedReport, SampleAnswer};
use mixdistill::data::{Batch, PlainTemplate, PromptTemplate, Row, RowStream, TextTokenizer};
use mixdistill::eval::{AnswerKind, Benchmark, EvaluateConfig, Question, ask, evaluate};
use mixdistill::model::{
    Architecture, CausalLm, DecoderConfig, DecoderLm, Generate, GenerateConfig, Generation,
    Objective, StopConditions, TextInterface, TokenLimits,
};
use mixdistill::ops::Distillation;
use mixdistill::train::{
    DistillationRows, FitOptions, Grader, Learner, ModelTeacher, TrainConfig, named_gradients,
    step_gradients,
};
use mixdistill::{Error, Result};
use std::ops::{ControlFlow, Range};

/// The next token depends on the last one alone.
#[derive(Module, Debug)]
struct Bigrams {
    /// Row by row the scores of what follows a token.
    scores: Embedding,
}

impl Bigrams {
    fn new(vocabulary: usize, device: &Device) -> Self {
        Self { scores: EmbeddingConfig::new(vocabulary, vocabulary).init(device) }
    }
}

impl CausalLm for Bigrams {
    fn vocabulary_size(&self) -> usize {
        self.limits().vocabulary
    }

    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1> {
        let (device, tokens) = (self.device(), batch.ids.len());
        let scores = self.scores.forward(ids(&batch.ids, [1, tokens], &device));
        let log_probs = log_softmax(scores.reshape([tokens, self.limits().vocabulary]), 1);
        let targets = ids(&batch.targets, [tokens, 1], &device);
        let weights = TensorData::new(batch.weights.clone(), [tokens, 1]);
        let weights = Tensor::<2>::from_data(weights, &device);
        (log_probs.gather(1, targets) * weights).sum() * -scale
    }
}

impl Generate for Bigrams {
    fn limits(&self) -> TokenLimits {
        TokenLimits { vocabulary: self.scores.weight.dims()[0], context: 40 }
    }

    fn device(&self) -> Device {
        self.scores.weight.device()
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.scores.forward(ids)
    }
}

#[derive(Clone)]
struct Rows(Vec<Row>);

impl RowStream for Rows {
    fn rows_per_epoch(&self) -> usize {
        self.0.len()
    }

    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
        Ok(range.map(|n| self.0[n as usize % self.0.len()].clone()).collect())
    }
}

/// Three problems, all answered alike, which is the most that bigrams can learn.
fn rows_of_text(tokenizer: &TextTokenizer) -> Rows {
    let row = |(number, problem): (u64, &str)| {
        let laid_out =
            PlainTemplate::default().row(tokenizer, problem.into(), "\\boxed{7}").unwrap();
        let (tokens, prompt) = (laid_out.tokens, laid_out.prompt);
        Row { tokens, prompt, label: problem.into(), number, ..Row::default() }
    };
    Rows((0..3).zip(["3 + 4", "9 - 2", "1 + 6"]).map(row).collect())
}

fn questions() -> Vec<Question> {
    let question = |(problem, reference): (&str, &str)| Question {
        problem: problem.into(),
        reference: reference.into(),
        ..Question::default()
    };
    [("2 + 5", "7"), ("8 - 1", "7"), ("1 + 1", "2")].map(question).to_vec()
}

/// Asks the questions while training goes on.
struct Asks<'a> {
    text: TextInterface<'a>,
    config: GenerateConfig,
    correct: Vec<usize>,
}

impl<M: Generate> Grader<M> for Asks<'_> {
    fn grade(
        &mut self,
        model: &M,
        step: usize,
        context: &Context<'_>,
    ) -> Result<(GradedReport, Vec<SampleAnswer>)> {
        let questions = questions();
        let kind = AnswerKind::Stated;
        let answers = ask(model, &self.text, &questions, kind, &self.config, context)?;
        let correct = answers.iter().filter(|answer| answer.correct).count();
        self.correct.push(correct);
        let (questions, mean_tokens, hit_limit, seconds) = (questions.len(), 0.0, 0.0, 0.0);
        let report = GradedReport { step, questions, correct, mean_tokens, hit_limit, seconds };
        Ok((report, vec![]))
    }
}

fn settings(steps: usize) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        batch_size: 3,
        accumulate: 1,
        learning_rate: 0.5,
        weight_decay: 0.0,
        warmup_steps: 0,
        checkpoint_every: 0,
        evaluate_every: steps / 2,
        ..TrainConfig::default()
    }
}

#[test]
fn it_is_trained_graded_and_evaluated_and_teaches() {
    let device = devices()[0].clone();
    let tokenizer = TextTokenizer::builtin([]).unwrap();
    let vocabulary = tokenizer.vocabulary_size();
    let (template, end) = (PlainTemplate::default(), [tokenizer.end_token()]);
    let text = TextInterface { tokenizer: &tokenizer, template: &template, end_tokens: &end };
    let config = GenerateConfig { max_new_tokens: 12, ..GenerateConfig::default() };
    let rows = rows_of_text(&tokenizer);

    let model = Bigrams::new(vocabulary, &device.clone().autodiff());
    let mut learner = Learner::new(model, settings(40)).unwrap();
    let mut asks = Asks { text, config: config.clone(), correct: vec![] };
    let options = FitOptions { grader: Some(&mut asks), ..FitOptions::default() };
    learner.fit(&mut rows.clone(), options).unwrap();
    assert_eq!(asks.correct, [2], "asked once on the way, and two of three are 7");

    let model = learner.into_model().valid();
    let context = Context::default();
    let answers = ask(&model, &text, &questions(), AnswerKind::Stated, &config, &context).unwrap();
    let stated: Vec<_> =
        answers.iter().map(|answer| (answer.text.as_str(), answer.correct)).collect();
    assert_eq!(stated, [("\\boxed{7}", true), ("\\boxed{7}", true), ("\\boxed{7}", false)]);

    let mut asked = questions();
    // It leaves no room for an answer.
    asked.push(Question { problem: "1".repeat(60), reference: "1".into(), ..Question::default() });
    let benchmark = Benchmark::of_questions("own", &asked, AnswerKind::Stated);
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("own.jsonl");
    let evaluation = EvaluateConfig { generate: config, ..EvaluateConfig::default() };
    let graded = evaluate(&model, &text, &benchmark, &evaluation, &store, &context).unwrap();
    let outcomes: Vec<_> = graded.iter().map(|answer| (answer.correct, answer.hit_limit)).collect();
    assert_eq!(outcomes, [(true, false), (true, false), (false, false), (false, true)]);

    // Its few likely tokens are all that the student is trained for.
    let student = DecoderConfig { vocab_size: vocabulary, ..tiny(Architecture::Llama) };
    let student = student.init(1, &device.autodiff()).unwrap();
    let distillation = Distillation { weight: 1.0, temperature: 1.0, ..Distillation::default() };
    let objective = Objective { distillation: Some(distillation), ..Objective::default() };
    let config = TrainConfig { objective, learning_rate: 2e-2, ..settings(40) };
    let mut learner = Learner::new(student, config).unwrap();
    let teacher = ModelTeacher::new(model, 3, 1.0, vocabulary);
    let mut taught = DistillationRows::new(rows, teacher);
    learner.fit(&mut taught, FitOptions::default()).unwrap();
    let context = Context::default();
    let generate = GenerateConfig { max_new_tokens: 12, ..GenerateConfig::default() };
    let student = learner.model();
    let answers =
        ask(student, &text, &questions(), AnswerKind::Stated, &generate, &context).unwrap();
    assert!(answers.iter().all(|answer| answer.text == "\\boxed{7}"), "{answers:?}");
}

#[test]
fn its_gradients_reach_its_own_parameters() {
    let model = Bigrams::new(23, &devices()[0].clone().autodiff());
    let rows = rows(&[(6, 2)]);
    let gradients = step_gradients(&model, &[Batch::new(examples(&rows), 1)]).unwrap();
    let names: Vec<String> =
        named_gradients(&model, &gradients.gradients).unwrap().into_keys().collect();
    assert_eq!(names, ["scores.weight"]);
}

/// The decoder without its cache.
struct WithoutCache(DecoderLm);

impl Generate for WithoutCache {
    fn limits(&self) -> TokenLimits {
        self.0.limits()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.0.logits(ids)
    }
}

fn answers(model: &dyn Generate, prompts: &[Vec<u32>], config: &GenerateConfig) -> Vec<Generation> {
    let tokenizer = TextTokenizer::builtin([]).unwrap();
    let stop = StopConditions { tokens: &[3, 5], tokenizer: &tokenizer };
    model.generate(prompts, stop, config, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn whole_rows_give_the_answers_that_a_cache_gives() {
    let prompts: Vec<Vec<u32>> =
        rows(&[(3, 1), (11, 1), (1, 1), (7, 1), (20, 1)]).into_iter().map(|r| r.tokens).collect();
    let (mut ended, mut filled) = (0, 0);
    for architecture in Architecture::ALL {
        let config = DecoderConfig { max_position_embeddings: 32, ..tiny(architecture) };
        let model = shaken(&config, &devices()[0]);
        let whole = WithoutCache(model.clone());
        for temperature in [0.0, 0.9] {
            let config = GenerateConfig {
                temperature,
                top_p: 0.95,
                seed: 4,
                batch_size: 3,
                repetition_penalty: 1.1,
                ..GenerateConfig::default()
            };
            let cached = answers(&model, &prompts, &config);
            assert_eq!(answers(&whole, &prompts, &config), cached, "{architecture:?}");
            filled += cached.iter().filter(|answer| answer.hit_limit()).count();
            ended += cached.iter().filter(|answer| !answer.hit_limit()).count();
        }
        let greedy = GenerateConfig { max_new_tokens: 9, ..GenerateConfig::default() };
        assert_eq!(answers(&whole, &prompts, &greedy), answers(&model, &prompts, &greedy));
    }
    assert!(ended > 0 && filled > 0, "{ended} answers end early, {filled} fill the positions");
}

#[test]
fn whole_rows_give_the_likely_tokens_of_packed_rows_too() {
    let model = shaken(&tiny(Architecture::Qwen3), &devices()[0]);
    let whole = WithoutCache(model.clone());
    let rows = rows(&[(12, 3), (5, 4), (9, 1), (1, 1)]);
    let packed = Batch::packed(examples(&rows), 8);
    for batch in [Batch::new(examples(&rows), 8), packed] {
        let expected = model.top_tokens(&batch, 4, 1.5, 20).unwrap();
        let found = whole.top_tokens(&batch, 4, 1.5, 20).unwrap();
        assert_eq!(expected.tokens.len(), 4 * (9 + 1 + 8));
        assert_eq!((found.k, &found.tokens), (4, &expected.tokens));
        let pairs = found.log_probs.iter().zip(&expected.log_probs);
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-4));
    }
    for (k, vocabulary) in [(0, 20), (24, 23), (3, 24)] {
        assert!(whole.top_tokens(&Batch::default(), k, 1.0, vocabulary).is_err());
    }
}

/// Says that it knows more tokens than it has scores for.
struct Boasting(WithoutCache);

impl Generate for Boasting {
    fn limits(&self) -> TokenLimits {
        TokenLimits { vocabulary: 24, ..self.0.limits() }
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.0.logits(ids)
    }
}

#[test]
fn scores_of_a_wrong_shape_and_prompts_that_do_not_fit_are_refused() {
    let model = WithoutCache(shaken(&tiny(Architecture::Llama), &devices()[0]));
    let tokenizer = TextTokenizer::builtin([]).unwrap();
    let stop = StopConditions { tokens: &[], tokenizer: &tokenizer };
    let config = GenerateConfig::default();
    let ask = |model: &dyn Generate, prompt: Vec<u32>| {
        model.generate(&[prompt], stop, &config, &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    assert!(matches!(ask(&model, vec![]), Error::Config { .. }));
    assert!(matches!(ask(&model, vec![23]), Error::Config { .. }));
    assert!(matches!(ask(&model, vec![1; 2048]), Error::Config { .. }));
    let error = ask(&Boasting(model), vec![1, 2]).to_string();
    assert!(error.contains("[1, 2, 23] instead of [1, 2, 24]"), "{error}");
}
