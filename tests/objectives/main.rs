//! Promise: with every objective, splits, packing, activation checkpointing, and resuming change nothing. Noise
//! depends only on the row. Learning from a teacher's file is the same as learning from the teacher.

#[path = "../common/mod.rs"]
mod common;
mod teachers_files;

use common::{devices, ids, relative_error, rows, tiny};
use mixdistill::context::{Event, Observer, StopFlag};
use mixdistill::data::{Batch, BatchLayout, Packing, Row, RowStream};
use mixdistill::model::{
    Architecture, CausalLm, DecoderLm, LoraConfig, Objective, StepOptions, named_tensors,
};
use mixdistill::ops::{Distillation, Divergence};
use mixdistill::train::{
    CheckpointStore, DistillationRows, FitOptions, Learner, ModelTeacher, ParameterGroup,
    StepGradients, TrainConfig, named_gradients, step_gradients_with,
};
use mixdistill::{Error, Result};
use std::ops::Range;

const TEMPERATURE: f64 = 1.5;

fn all_terms() -> Objective {
    Objective {
        label_smoothing: 0.1,
        z_loss: 1e-2,
        neftune_alpha: 5.0,
        noise_seed: 3,
        distillation: Some(Distillation {
            divergence: Divergence::Jsd(0.4),
            weight: 0.6,
            temperature: TEMPERATURE,
        }),
    }
}

fn teacher(k: usize) -> ModelTeacher<DecoderLm> {
    let model = tiny(Architecture::Qwen3).init(77, &devices()[0]).unwrap();
    ModelTeacher::new(model, k, TEMPERATURE, 23)
}

fn plain_rows() -> Vec<Row> {
    rows(&[(12, 3), (5, 4), (9, 1), (20, 2), (7, 6), (14, 13), (3, 1), (11, 5)])
}

fn taught(k: usize) -> Vec<Row> {
    let plain = plain_rows();
    DistillationRows::new(Rows(plain.clone()), teacher(k)).rows(0..plain.len() as u64).unwrap()
}

#[derive(Clone)]
struct Rows(Vec<Row>);

impl RowStream for Rows {
    fn rows_per_epoch(&self) -> usize {
        self.0.len()
    }

    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
        let row = |n: u64| Row { number: n, ..self.0[n as usize % self.0.len()].clone() };
        Ok(range.map(row).collect())
    }
}

fn gradients(
    model: &DecoderLm,
    batches: &[Batch],
    objective: Objective,
    activation_checkpointing: bool,
) -> StepGradients {
    let options = StepOptions { objective, activation_checkpointing };
    step_gradients_with(model, batches, &options, &mut |_| Ok(())).unwrap()
}

#[test]
fn splits_packing_and_recomputation_change_nothing_for_any_objective() {
    let model = tiny(Architecture::Qwen3).init(1, &devices()[0].clone().autodiff()).unwrap();
    let rows = taught(4);
    let mut worst = 0f64;
    for objective in [
        Objective { label_smoothing: 0.2, ..Objective::default() },
        Objective { z_loss: 0.1, ..Objective::default() },
        Objective { neftune_alpha: 10.0, ..Objective::default() },
        all_terms(),
    ] {
        let whole = BatchLayout::rows(8, 1, Packing::Off).batches(&rows);
        let whole = gradients(&model, &whole, objective, false);
        let expected = named_gradients(&model, &whole.gradients).unwrap();
        for (per_batch, multiple, packing, recompute) in [
            (1, 1, Packing::Off, false),
            (3, 4, Packing::Off, false),
            (3, 8, Packing::On, false),
            (8, 1, Packing::On, false),
            (3, 4, Packing::On, true),
        ] {
            let batches = BatchLayout::rows(per_batch, multiple, packing).batches(&rows);
            let split = gradients(&model, &batches, objective, recompute);
            assert_eq!(split.trained, whole.trained);
            assert!((split.loss / whole.loss - 1.0).abs() < 1e-6, "{objective:?}");
            for (name, gradient) in named_gradients(&model, &split.gradients).unwrap() {
                let error = relative_error(&gradient.values, &expected[&name].values);
                worst = worst.max(error);
                // f32 sums in another order: 2.4e-6 with AVX-512, 4.2e-6 with AVX2.
                assert!(error < 1e-5, "{objective:?} {name}: {error:e}");
            }
        }
    }
    println!("largest relative difference of a gradient: {worst:.1e}");
}

#[test]
fn gradients_of_all_terms_equal_finite_differences() {
    let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    let batches = BatchLayout::rows(3, 4, Packing::On).batches(&taught(4));
    let step = gradients(&model, &batches, all_terms(), false);
    let exact = named_gradients(&model, &step.gradients).unwrap();
    let loss_with = |name: &str, index: usize, change: f32| -> f64 {
        let mut tensors = named_tensors(&model).unwrap();
        tensors.get_mut(name).unwrap().values[index] += change;
        let take = &mut |n: &str| tensors.remove(n);
        let moved = mixdistill::model::with_named_tensors(model.clone(), take).unwrap();
        gradients(&moved, &batches, all_terms(), false).loss
    };
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        for index in [0, 7, 13] {
            let h = 1e-2f32;
            let numeric =
                (loss_with(name, index, h) - loss_with(name, index, -h)) / f64::from(2.0 * h);
            let exact = f64::from(exact[name].values[index]);
            // Differences of an f32 loss of about 3: 1e-7 * 3 / 2e-2, and h squared.
            assert!((numeric - exact).abs() < 2e-4 + 1e-3 * exact.abs(), "{numeric} {exact}");
        }
    }
}

#[test]
fn noise_is_a_function_of_the_row_and_only_in_training() {
    let device = devices()[0].clone().autodiff();
    let model = tiny(Architecture::Llama).init(1, &device).unwrap();
    let loss = |row: &Row, objective: Objective| {
        let batch = Batch::new([row.example()], 4);
        gradients(&model, &[batch], objective, false).loss
    };
    let row = plain_rows().swap_remove(0);
    let noisy = Objective { neftune_alpha: 20.0, ..Objective::default() };
    let other_row = Row { number: 9, ..row.clone() };
    let plain = loss(&row, Objective::default());
    assert_eq!(plain, loss(&other_row, Objective::default()));
    let first = loss(&row, noisy);
    assert_eq!(first, loss(&row, noisy));
    assert_ne!(first, plain);
    assert_ne!(first, loss(&other_row, noisy));
    assert_ne!(first, loss(&row, Objective { noise_seed: 1, ..noisy }));
    // A loss that is taken for evaluation has none.
    let batch = Batch::new([row.example()], 4);
    let held_out = f64::from(model.loss_sum(&batch, 1.0).into_scalar::<f32>());
    assert!((held_out / batch.trained as f64 / plain - 1.0).abs() < 1e-6);
    let small = loss(&row, Objective { neftune_alpha: 1e-3, ..noisy });
    assert!((small / plain - 1.0).abs() < 1e-3 && small != plain);
}

fn config(steps: usize, objective: Objective) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        batch_size: 2,
        accumulate: 2,
        learning_rate: 1e-2,
        warmup_steps: 2,
        evaluate_every: 0,
        checkpoint_every: 0,
        objective,
        ..TrainConfig::default()
    }
}

/// Asks for a stop after a step.
struct StopAfter<'a>(usize, &'a StopFlag);

impl Observer for StopAfter<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if matches!(event, Event::Step(report) if report.step == self.0) {
            self.1.request();
        }
        Ok(())
    }
}

fn fit(
    learner: &mut Learner<DecoderLm>,
    rows: &mut dyn RowStream,
    checkpoints: Option<&CheckpointStore>,
    stop_after: usize,
) {
    let stop = StopFlag::default();
    let observer = &mut StopAfter(stop_after, &stop);
    let surroundings = FitOptions {
        observer: Some(observer),
        stop: stop.clone(),
        checkpoints,
        ..FitOptions::default()
    };
    learner.fit(rows, surroundings).unwrap();
}

#[test]
fn with_every_term_and_dropout_a_resumed_run_ends_in_the_same_bits() {
    let lora = LoraConfig { rank: 3, dropout: 0.3, ..LoraConfig::default() };
    let start = || {
        let model = tiny(Architecture::Qwen2).init(1, &devices()[0].clone().autodiff()).unwrap();
        Learner::new(model.with_lora(&lora, 5).unwrap(), config(7, all_terms())).unwrap()
    };
    let stream = || DistillationRows::new(Rows(plain_rows()), teacher(3));
    let mut straight = start();
    fit(&mut straight, &mut stream(), None, 99);
    let expected = named_tensors(straight.model()).unwrap();
    for stop_after in [1, 3, 6] {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path(), 2, serde_json::json!({}));
        let mut first = start();
        fit(&mut first, &mut stream(), Some(&store), stop_after);
        assert_eq!(first.step(), stop_after);
        let mut second = start();
        second.resume(&store).unwrap();
        fit(&mut second, &mut stream(), Some(&store), 99);
        assert!(named_tensors(second.model()).unwrap() == expected, "after {stop_after}");
    }
}

#[test]
fn a_student_comes_nearer_to_its_teacher_by_each_divergence() {
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd(0.5)] {
        let part = Distillation { divergence, weight: 1.0, temperature: TEMPERATURE };
        let objective = Objective { distillation: Some(part), ..Objective::default() };
        let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        let mut learner = Learner::new(model, config(60, objective)).unwrap();
        let mut stream = DistillationRows::new(Rows(plain_rows()), teacher(8));
        let mut losses = vec![];
        for step in 0..60 {
            let rows = stream.rows(0..8).unwrap();
            losses.push(learner.train_step(&rows, 60).unwrap().loss);
            assert!(losses[step] > -1e-6, "a divergence is not negative: {}", losses[step]);
        }
        assert!(losses[59] < 0.25 * losses[0], "{divergence:?} {} -> {}", losses[0], losses[59]);
    }
}

#[test]
fn what_does_not_go_together_is_refused_before_a_step() {
    let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    let mut learner = Learner::new(model.clone(), config(3, all_terms())).unwrap();
    let error = learner.train_step(&plain_rows(), 3).unwrap_err().to_string();
    assert!(error.contains("no teacher logits"), "{error}");
    let mut foreign = taught(2);
    let mut top = (**foreign[0].teacher.as_ref().unwrap()).clone();
    top.tokens[0] = 1000;
    foreign[0].teacher = Some(top.into());
    let error = learner.train_step(&foreign, 3).unwrap_err().to_string();
    assert!(error.contains("token 1000"), "{error}");
    assert_eq!(learner.step(), 0);
    // Rows with a teacher are rows without one for whoever does not ask for it.
    let mut plain = Learner::new(model.clone(), config(3, Objective::default())).unwrap();
    plain.train_step(&taught(2), 3).unwrap();

    let bad = |objective: Objective| {
        let error = Learner::new(model.clone(), config(3, objective)).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        error.to_string()
    };
    let part = |divergence, weight, temperature| {
        let part = Distillation { divergence, weight, temperature };
        Objective { distillation: Some(part), ..Objective::default() }
    };
    let plain = Objective::default();
    for (objective, key) in [
        (Objective { label_smoothing: 1.0, ..plain }, "label_smoothing"),
        (Objective { z_loss: -1.0, ..plain }, "z_loss"),
        (Objective { neftune_alpha: f64::NAN, ..plain }, "neftune_alpha"),
        (part(Divergence::ForwardKl, 1.5, 1.0), "distillation.weight"),
        (part(Divergence::ForwardKl, 0.5, 0.0), "distillation.temperature"),
        (part(Divergence::Jsd(1.0), 0.5, 1.0), "distillation.divergence"),
    ] {
        assert!(bad(objective).contains(key), "{key}");
    }
}

#[test]
fn parameter_groups_have_their_own_decay_and_rate() {
    let groups = vec![
        ParameterGroup {
            names: vec!["embed_tokens".into()],
            weight_decay: Some(0.0),
            learning_rate_factor: Some(0.5),
        },
        ParameterGroup {
            names: vec!["layers.0".into(), "model.norm".into()],
            weight_decay: Some(0.5),
            learning_rate_factor: None,
        },
    ];
    let config = TrainConfig {
        weight_decay: 0.1,
        parameter_groups: groups,
        max_grad_norm: 0.0,
        warmup_steps: 0,
        ..config(3, Objective::default())
    };
    let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    let before = named_tensors(&model).unwrap();
    let batches = config.batches(&plain_rows());
    let step = gradients(&model, &batches, Objective::default(), false);
    let gradient = named_gradients(&model, &step.gradients).unwrap();
    let mut learner = Learner::new(model, config).unwrap();
    learner.train_step(&plain_rows(), 3).unwrap();
    let after = named_tensors(learner.model()).unwrap();
    let mut seen = 0;
    for (name, before) in &before {
        let (decay, rate) = match name.as_str() {
            name if name.contains("embed_tokens") => (0.0, 0.5e-2),
            name if name.contains("layers.0") || name.contains("model.norm") => (0.5, 1e-2),
            // Of the other block, matrices decay as usual and norms do not.
            name => (if name.contains("layernorm") { 0.0 } else { 0.1 }, 1e-2),
        };
        // Files hold linear layers transposed; gradients are in the module's own layout.
        let Some(g) = gradient.get(name).filter(|g| g.shape == before.shape) else { continue };
        if before.shape.len() == 2 && !name.contains("embed_tokens") {
            continue;
        }
        seen += 1;
        for (i, g) in g.values.iter().enumerate() {
            let (old, g) = (f64::from(before.values[i]), f64::from(*g));
            // AdamW's first step is the gradient's sign, but for epsilon.
            let expected = old - rate * decay * old - rate * g / (g.abs() + 1e-8);
            let new = f64::from(after[name].values[i]);
            assert!((new - expected).abs() < 1e-6, "{name}[{i}]: {new} {expected}");
        }
    }
    assert_eq!(seen, 6, "the embedding, four norms of blocks, the last norm");
    let matrix = |name: &str| {
        let (old, new) = (&before[name].values, &after[name].values);
        // With a rate of 1e-2 the gradient moves each weight by 1e-2 up or down; the rest is decay.
        let off = old.iter().zip(new).map(|(old, new)| f64::from(old - new));
        let left: Vec<f64> = off.map(|d| d - 1e-2 * d.signum()).collect();
        let along: f64 = left.iter().zip(old).map(|(d, w)| d * f64::from(*w)).sum();
        let norm: f64 = old.iter().map(|w| f64::from(w * w)).sum();
        along / norm / 1e-2
    };
    for (name, decay) in
        [("model.layers.0.mlp.up_proj.weight", 0.5), ("model.layers.1.mlp.up_proj.weight", 0.1)]
    {
        assert!((matrix(name) - decay).abs() < 0.02, "{name}: {}", matrix(name));
    }

    // A group that names nothing is a slip of the pen.
    let idle = TrainConfig {
        parameter_groups: vec![ParameterGroup {
            names: vec!["lora_Bee".into()],
            ..ParameterGroup::default()
        }],
        ..learner.config().clone()
    };
    let error = Learner::new(learner.model().clone(), idle).unwrap_err().to_string();
    assert!(error.contains("lora_Bee"), "{error}");
    let unnamed = TrainConfig {
        parameter_groups: vec![ParameterGroup::default()],
        ..learner.config().clone()
    };
    assert!(unnamed.validate().unwrap_err().to_string().contains("parameter_groups[0].names"));
}

#[test]
fn top_tokens_are_those_of_the_logits() {
    let device = devices()[0].clone();
    let model = tiny(Architecture::Llama).init(4, &device).unwrap();
    let row = plain_rows().swap_remove(3);
    let top = model.top_tokens(&Batch::new([row.example()], 8), 5, 2.0, 23).unwrap();
    let inputs = row.tokens.len() - 1;
    let logits = model.logits(ids(&row.tokens[..inputs], [1, inputs], &device));
    let logits = logits.into_data().try_into_vec_as::<f32>().unwrap();
    assert!(top.fits(inputs - row.prompt + 1));
    for (index, place) in (row.prompt - 1..inputs).enumerate() {
        let logits = &logits[place * 23..][..23];
        let sum: f64 = logits.iter().map(|z| (f64::from(*z) / 2.0).exp()).sum();
        let chosen = &top.tokens[index * 5..][..5];
        let least = chosen.iter().map(|t| logits[*t as usize]).fold(f32::INFINITY, f32::min);
        assert_eq!(logits.iter().filter(|z| **z >= least).count(), 5);
        let mut rest = 1.0;
        for (token, log_prob) in chosen.iter().zip(&top.log_probs[index * 6..]) {
            let expected = f64::from(logits[*token as usize]) / 2.0 - sum.ln();
            assert!((f64::from(*log_prob) - expected).abs() < 1e-5);
            rest -= expected.exp();
        }
        assert!((f64::from(top.log_probs[index * 6 + 5]).exp() - rest).abs() < 1e-5);
    }
    // Logits beyond the vocabulary, which pad an embedding, count for nothing.
    let cut = model.top_tokens(&Batch::new([row.example()], 8), 20, 2.0, 20).unwrap();
    assert!(cut.tokens.iter().all(|token| *token < 20));
    let nothing_left = cut.log_probs.chunks(21).all(|log_probs| log_probs[20] == -30.0);
    assert!(nothing_left);
    assert!(model.top_tokens(&Batch::default(), 5, 1.0, 24).is_err());
    assert!(model.top_tokens(&Batch::default(), 0, 1.0, 23).is_err());
    assert!(model.top_tokens(&Batch::default(), 24, 1.0, 23).is_err());
}
