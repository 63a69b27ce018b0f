//! Training: splitting a step changes nothing, the loss falls, and a run can be resumed.

mod common;

use burn::module::Module;
use burn::tensor::Tensor;
use common::{Rows, devices, relative_error, rows, tiny};
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{Batch, BatchLayout, Packing, Row};
use mixdistill::model::{
    Architecture, CausalLm, DecoderConfig, DecoderLm, HostTensor, LoraConfig, StepOptions,
    named_tensors,
};
use mixdistill::train::{
    CheckpointStore, FitOptions, HeldOut, Learner, Metric, MetricsFile, ResumePoint, StepGradients,
    TrainConfig, global_norm, held_out_losses, named_gradients, read_metrics, step_gradients,
    step_gradients_with,
};
use mixdistill::{Error, Result};
use std::collections::BTreeMap;

/// Eight rows of unequal length and unequal masks, one of them with hardly any prompt.
fn unequal() -> Vec<Row> {
    rows(&[(12, 3), (5, 4), (9, 1), (20, 2), (7, 6), (14, 13), (3, 1), (11, 5)])
}

fn checkpointed<M: CausalLm>(model: &M, batches: &[Batch]) -> StepGradients {
    let options = StepOptions { activation_checkpointing: true, ..StepOptions::default() };
    step_gradients_with(model, batches, &options, &mut |_| Ok(())).unwrap()
}

fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        batch_size: 3,
        accumulate: 1,
        learning_rate: 1e-2,
        warmup_steps: 2,
        evaluate_every: 0,
        checkpoint_every: 0,
        ..TrainConfig::default()
    }
}

fn fit(
    learner: &mut Learner<DecoderLm>,
    store: Option<&CheckpointStore>,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<mixdistill::context::Outcome> {
    let surroundings = FitOptions {
        observer: Some(observer),
        stop: stop.clone(),
        checkpoints: store,
        ..FitOptions::default()
    };
    learner.fit(&mut Rows(unequal()), surroundings)
}

#[test]
fn any_split_into_micro_batches_gives_the_same_loss_and_gradients() {
    for device in devices() {
        let model = tiny(Architecture::Qwen3).init(1, &device.autodiff()).unwrap();
        let rows = unequal();
        let whole =
            step_gradients(&model, &BatchLayout::rows(8, 1, Packing::Off).batches(&rows)).unwrap();
        assert_eq!(whole.trained, 9 + 1 + 8 + 18 + 1 + 1 + 2 + 6);
        let expected = named_gradients(&model, &whole.gradients).unwrap();
        assert!(expected.len() > 20);
        let mut worst = 0f64;
        for per_batch in [1, 2, 3, 5, 7] {
            let parts = step_gradients(
                &model,
                &BatchLayout::rows(per_batch, 4, Packing::Off).batches(&rows),
            )
            .unwrap();
            assert!((parts.loss / whole.loss - 1.0).abs() < 1e-6, "{per_batch} rows a batch");
            for (name, gradient) in named_gradients(&model, &parts.gradients).unwrap() {
                let error = relative_error(&gradient.values, &expected[&name].values);
                worst = worst.max(error);
                // f32 sums in another order.
                assert!(error < 5e-6, "{name} with {per_batch} rows a batch: {error:e}");
            }
        }
        println!("splits: largest relative difference of a gradient {worst:.1e}");
    }
}

#[test]
fn any_split_gives_the_same_update_the_short_last_window_included() {
    let device = devices()[0].clone().autodiff();
    let trained = |batch_size, packing| {
        let model = tiny(Architecture::Llama).init(1, &device).unwrap();
        // 24 rows a step, 8 in an epoch: three and a third epochs end with a step of 9 rows.
        let config = TrainConfig {
            steps: None,
            epochs: 4.125,
            batch_size,
            accumulate: 24 / batch_size,
            packing,
            max_grad_norm: 0.5,
            weight_decay: 0.1,
            ..config(1)
        };
        let mut learner = Learner::new(model, config).unwrap();
        let outcome = fit(&mut learner, None, &mut (), &StopFlag::default()).unwrap();
        assert_eq!(outcome.step, 2);
        named_tensors(learner.model()).unwrap()
    };
    let whole = trained(24, Packing::Off);
    let mut worst = 0f64;
    for (batch_size, packing) in [(1, Packing::Off), (3, Packing::Off), (8, Packing::On)] {
        for (name, tensor) in trained(batch_size, packing) {
            // By norms: where a gradient is all but 0, AdamW makes much of its last bits.
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let expected = &whole[&name].values;
            let off = norm(&mut tensor.values.iter().zip(expected).map(|(a, b)| a - b));
            let error = off / norm(&mut expected.iter().copied());
            worst = worst.max(error);
            assert!(error < 1e-6, "{name} in micro-batches of {batch_size}: {error:e}");
        }
    }
    println!("updates: largest relative difference of a tensor {worst:.1e}");
}

#[test]
fn packing_changes_no_loss_and_no_gradient() {
    for device in devices() {
        let model = tiny(Architecture::Qwen3).init(1, &device.autodiff()).unwrap();
        let rows = unequal();
        let alone =
            step_gradients(&model, &BatchLayout::rows(1, 1, Packing::Off).batches(&rows)).unwrap();
        let expected = named_gradients(&model, &alone.gradients).unwrap();
        let mut worst = 0f64;
        let by_rows = |per_batch, multiple| BatchLayout::rows(per_batch, multiple, Packing::On);
        let by_tokens = |budget, multiple, packing| BatchLayout {
            tokens_per_batch: Some(budget),
            bucket: true,
            ..BatchLayout::rows(1, multiple, packing)
        };
        let layouts = [
            by_rows(8, 1),
            by_rows(8, 64),
            by_rows(3, 16),
            by_tokens(30, 1, Packing::On),
            by_tokens(24, 4, Packing::On),
            by_tokens(40, 1, Packing::Off),
            by_tokens(40, 1, Packing::Auto),
        ];
        for layout in layouts {
            let batches = layout.batches(&rows);
            let tokens: usize = batches.iter().map(|batch| batch.tokens).sum();
            assert_eq!(tokens, rows.iter().map(|row| row.tokens.len() - 1).sum::<usize>());
            if layout.packing == Packing::On {
                let most = layout.multiple.max(3);
                assert!(batches.iter().all(|batch| batch.padding() < most), "{layout:?}");
            }
            let packed = step_gradients(&model, &batches).unwrap();
            assert_eq!(packed.trained, alone.trained);
            assert!((packed.loss / alone.loss - 1.0).abs() < 1e-6, "{layout:?}");
            for (name, gradient) in named_gradients(&model, &packed.gradients).unwrap() {
                let error = relative_error(&gradient.values, &expected[&name].values);
                // f32 sums in another order.
                worst = worst.max(error);
                assert!(error < 5e-6, "{name} with {layout:?}: {error:e}");
            }
        }
        println!("packing: largest relative difference of a gradient {worst:.1e}");
    }
}

#[test]
fn activation_checkpointing_changes_no_loss_and_no_gradient() {
    let lora = LoraConfig { rank: 3, dropout: 0.2, ..LoraConfig::default() };
    let mut worst = 0f64;
    for device in devices() {
        for architecture in Architecture::ALL {
            let whole = common::shaken(&tiny(architecture), &device.clone().autodiff());
            // Adapters that do something: two steps move B, then A.
            let adapted = whole.clone().with_lora(&lora, 3).unwrap();
            let mut learner = Learner::new(adapted, config(9)).unwrap();
            learner.train_step(&unequal(), 9).unwrap();
            learner.train_step(&unequal(), 9).unwrap();
            for model in [whole, learner.into_model()] {
                for packing in [Packing::Off, Packing::On] {
                    let batches = BatchLayout::rows(3, 4, packing).batches(&unequal());
                    let kept = step_gradients(&model, &batches).unwrap();
                    let expected = named_gradients(&model, &kept.gradients).unwrap();
                    let again = checkpointed(&model, &batches);
                    assert!((again.loss / kept.loss - 1.0).abs() < 1e-6);
                    let gradients = named_gradients(&model, &again.gradients).unwrap();
                    let names =
                        |g: &BTreeMap<String, HostTensor>| g.keys().cloned().collect::<Vec<_>>();
                    assert_eq!(names(&gradients), names(&expected));
                    for (name, gradient) in gradients {
                        let error = relative_error(&gradient.values, &expected[&name].values);
                        // f32 sums in another order.
                        worst = worst.max(error);
                        assert!(error < 2e-6, "{name}: {error:e}");
                    }
                }
            }
        }
    }
    println!("recomputation: largest relative difference of a gradient {worst:.1e}");
}

#[test]
fn gradients_equal_finite_differences() {
    let device = devices()[0].clone().autodiff();
    let model = tiny(Architecture::Llama).init(1, &device).unwrap();
    let batches = BatchLayout::rows(4, 1, Packing::Off).batches(&unequal());
    let step = step_gradients(&model, &batches).unwrap();
    let gradients = named_gradients(&model, &step.gradients).unwrap();
    let loss_with = |name: &str, index: usize, change: f32| -> f64 {
        let mut tensors = named_tensors(&model).unwrap();
        tensors.get_mut(name).unwrap().values[index] += change;
        let moved =
            mixdistill::model::with_named_tensors(model.clone(), &mut |n| tensors.remove(n))
                .unwrap();
        step_gradients(&moved, &batches).unwrap().loss
    };
    for name in
        ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"]
    {
        for index in [0, 7, 13] {
            let h = 1e-2;
            let numeric =
                (loss_with(name, index, h) - loss_with(name, index, -h)) / f64::from(2.0 * h);
            let exact = f64::from(gradients[name].values[index]);
            // Differences of an f32 loss of about 3: 1e-7 * 3 / 2e-2, and h squared.
            assert!(
                (numeric - exact).abs() < 2e-4 + 2e-3 * exact.abs(),
                "{name}[{index}]: {numeric} {exact}"
            );
        }
    }
}

#[test]
fn a_model_learns_four_examples_by_heart() {
    for device in devices() {
        let model = DecoderConfig { hidden_size: 32, ..tiny(Architecture::Llama) };
        let model = model.init(1, &device.autodiff()).unwrap();
        let config = TrainConfig { steps: Some(150), batch_size: 4, ..config(150) };
        let mut learner = Learner::new(model, config).unwrap();
        let four = unequal()[..4].to_vec();
        let mut loss = f64::INFINITY;
        for _ in 0..150 {
            loss = learner.train_step(&four, 150).unwrap().loss;
        }
        assert!(loss < 0.05, "{loss}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let train = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model =
                tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
            let mut learner = Learner::new(model, config(6)).unwrap();
            fit(&mut learner, None, &mut (), &StopFlag::default()).unwrap();
            named_tensors(learner.model()).unwrap()
        })
    };
    assert_eq!(train(2), train(2));
}

#[test]
fn the_gradient_is_clipped_by_its_global_norm() {
    let device = devices()[0].clone().autodiff();
    let model = tiny(Architecture::Llama).init(1, &device).unwrap();
    let batches = BatchLayout::rows(8, 1, Packing::Off).batches(&unequal());
    let step = step_gradients(&model, &batches).unwrap();
    let named = named_gradients(&model, &step.gradients).unwrap();
    let squares = named.values().flat_map(|t| &t.values).map(|x| f64::from(*x).powi(2));
    let expected = squares.sum::<f64>().sqrt();
    let norm = global_norm(&model, &step.gradients).unwrap();
    assert!((norm / expected - 1.0).abs() < 1e-6, "{norm} {expected}");

    // AdamW does not see a common factor but for epsilon; with a large one it does.
    let update = |max_grad_norm| {
        let config = TrainConfig { max_grad_norm, epsilon: 1.0, warmup_steps: 0, ..config(1) };
        let before = named_tensors(&model).unwrap();
        let mut learner = Learner::new(model.clone(), config).unwrap();
        let report = learner.train_step(&unequal(), 1).unwrap();
        assert!((report.gradient_norm / norm - 1.0).abs() < 1e-5, "reported before clipping");
        let after = named_tensors(learner.model()).unwrap();
        let change = |name: &String| -> f64 {
            let pairs = after[name].values.iter().zip(&before[name].values);
            pairs.map(|(a, b)| f64::from(a - b).abs()).sum()
        };
        before.keys().map(change).sum::<f64>()
    };
    let share = update(0.01 * norm) / update(0.0);
    assert!((0.009..0.02).contains(&share), "{share}");
}

#[test]
fn matrices_decay_and_norms_and_biases_do_not() {
    let device = devices()[0].clone().autodiff();
    let model = tiny(Architecture::Qwen2).init(1, &device).unwrap();
    let train = |weight_decay| {
        let config = TrainConfig { weight_decay, warmup_steps: 0, ..config(1) };
        let mut learner = Learner::new(model.clone(), config).unwrap();
        learner.train_step(&unequal(), 1).unwrap();
        named_tensors(learner.model()).unwrap()
    };
    let (without, with) = (train(0.0), train(0.5));
    let before = named_tensors(&model).unwrap();
    for (name, tensor) in &with {
        let decays = tensor.shape.len() == 2;
        assert_eq!(decays, tensor != &without[name], "{name}");
        if decays {
            for (i, value) in tensor.values.iter().enumerate() {
                let expected = without[name].values[i] - 1e-2 * 0.5 * before[name].values[i];
                assert!((value - expected).abs() < 1e-6, "{name}[{i}]");
            }
        }
    }
}

#[test]
fn held_out_losses_are_each_sources_own_and_change_nothing() {
    let device = devices()[0].clone().autodiff();
    let model = tiny(Architecture::Llama).init(1, &device).unwrap();
    let all = unequal();
    let held_out = vec![
        HeldOut { name: "long".into(), rows: all[..5].to_vec() },
        HeldOut { name: "short".into(), rows: all[5..].to_vec() },
        HeldOut { name: "none".into(), rows: vec![] },
    ];
    let before = named_tensors(&model).unwrap();
    let losses = held_out_losses(&model, &held_out, &config(1), &Context::default()).unwrap();
    assert_eq!(losses.len(), 2, "a source without rows has no loss");
    for (source, loss) in held_out.iter().zip(&losses) {
        let batch = BatchLayout::rows(100, 1, Packing::Off).batches(&source.rows);
        let expected = step_gradients(&model, &batch).unwrap();
        assert_eq!((loss.rows, loss.trained_tokens), (source.rows.len(), expected.trained));
        assert!((loss.loss / expected.loss - 1.0).abs() < 1e-6);
    }
    assert_eq!(named_tensors(&model).unwrap(), before);
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

fn learner(steps: usize) -> Learner<DecoderLm> {
    let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    Learner::new(model, config(steps)).unwrap()
}

#[test]
fn a_stopped_and_resumed_run_ends_in_the_same_bits() {
    let mut straight = learner(7);
    fit(&mut straight, None, &mut (), &StopFlag::default()).unwrap();
    let expected = named_tensors(straight.model()).unwrap();
    for stop_after in [1, 3, 6] {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path(), 2, serde_json::json!({"run": 1}));
        let stop = StopFlag::default();
        let outcome = fit(&mut learner(7), Some(&store), &mut StopAfter(stop_after, &stop), &stop);
        let outcome = outcome.unwrap();
        assert!(outcome.stopped && outcome.step == stop_after);
        let mut resumed = learner(7);
        resumed.resume(&store).unwrap();
        assert_eq!(resumed.step(), stop_after);
        let outcome = fit(&mut resumed, Some(&store), &mut (), &StopFlag::default()).unwrap();
        assert!(!outcome.stopped && outcome.step == 7);
        assert_eq!(named_tensors(resumed.model()).unwrap(), expected, "after {stop_after}");
    }
}

#[test]
fn a_run_that_is_stopped_within_its_first_step_can_be_resumed() {
    // A stop is seen between micro-batches.
    let config = || TrainConfig { batch_size: 1, accumulate: 3, ..config(3) };
    let model = || tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    let ours = || Learner::new(model(), config()).unwrap();
    let burns = || {
        let optimizer = burn::optim::AdamWConfig::new().init();
        Learner::with_optimizer(model(), config(), Box::new(optimizer)).unwrap()
    };
    let starts: [&dyn Fn() -> Learner<DecoderLm>; 2] = [&ours, &burns];
    for start in starts {
        let mut straight = start();
        fit(&mut straight, None, &mut (), &StopFlag::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path(), 2, serde_json::json!({}));
        let stop = StopFlag::default();
        stop.request();
        let outcome = fit(&mut start(), Some(&store), &mut (), &stop).unwrap();
        assert!(outcome.stopped && outcome.step == 0 && store.place_of(0).is_dir());
        let mut resumed = start();
        resumed.resume(&store).unwrap();
        fit(&mut resumed, Some(&store), &mut (), &StopFlag::default()).unwrap();
        let [resumed, straight] = [&resumed, &straight].map(|l| named_tensors(l.model()).unwrap());
        assert!(resumed == straight);
    }
}

#[test]
fn an_optimizer_of_burn_does_what_ours_does_and_resumes_in_the_same_bits() {
    let burns = || burn::optim::AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).init();
    // Each model is a new one for Burn, with other identities of its parameters.
    let start = || {
        let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        Learner::with_optimizer(model, config(7), Box::new(burns())).unwrap()
    };
    let mut straight = start();
    fit(&mut straight, None, &mut (), &StopFlag::default()).unwrap();
    let expected = named_tensors(straight.model()).unwrap();
    let mut ours = learner(7);
    fit(&mut ours, None, &mut (), &StopFlag::default()).unwrap();
    let mut largest = 0f32;
    for (name, tensor) in named_tensors(ours.model()).unwrap() {
        for (a, b) in tensor.values.iter().zip(&expected[&name].values) {
            largest = largest.max((a - b).abs());
        }
    }
    println!("Burn's AdamW and ours: largest difference of a weight {largest:.1e}");
    assert!(largest < 1e-4, "{largest}");

    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(folder.path(), 2, serde_json::json!({}));
    let stop = StopFlag::default();
    fit(&mut start(), Some(&store), &mut StopAfter(3, &stop), &stop).unwrap();
    assert!(folder.path().join("step-000003/optimizer.bpk").is_file());
    let mut resumed = start();
    resumed.resume(&store).unwrap();
    fit(&mut resumed, Some(&store), &mut (), &StopFlag::default()).unwrap();
    assert!(named_tensors(resumed.model()).unwrap() == expected);
    // Another optimizer's checkpoint is refused.
    let error = learner(7).resume(&store).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors"), "{error}");
}

#[test]
fn checkpoints_are_kept_verified_and_belong_to_their_settings() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        CheckpointStore::new(folder.path(), 2, serde_json::json!({"rate": 0.1, "data": "x"}));
    let mut training = learner(5);
    let empty = training.resume(&store).unwrap_err().to_string();
    assert!(empty.contains("there is no checkpoint"), "{empty}");
    for _ in 0..4 {
        training.train_step(&unequal(), 5).unwrap();
        training.save(&store).unwrap();
    }
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["step-000003", "step-000004"]);

    let other =
        CheckpointStore::new(folder.path(), 2, serde_json::json!({"rate": 0.2, "data": "x"}));
    let error = learner(5).resume(&other).unwrap_err().to_string();
    assert!(error.contains("rate was 0.1, is 0.2") && !error.contains("data was"), "{error}");

    // A flipped bit in the newest: it is named, and the one before is used.
    let damaged = folder.path().join("step-000004/optimizer.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let mut resumed = learner(5);
    let (path, skipped) = resumed.resume(&store).unwrap();
    assert!(path.ends_with("step-000003") && resumed.step() == 3);
    assert!(skipped.len() == 1 && skipped[0].contains("optimizer.safetensors is damaged"));
    assert_eq!(names(), ["damaged-step-000004", "step-000003"]);
    let one = CheckpointStore::new(folder.path(), 1, serde_json::json!({"rate": 0.1, "data": "x"}));
    resumed.save(&one).unwrap();
    assert_eq!(names(), ["damaged-step-000004", "step-000003"], "the new one is what is kept");
}

/// A model whose loss is what a switch says, to test what training does with it.
#[derive(Module, Debug)]
struct Broken {
    inner: DecoderLm,
    factor: f64,
}

impl CausalLm for Broken {
    fn vocabulary_size(&self) -> usize {
        self.inner.vocabulary_size()
    }

    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1> {
        self.inner.loss_sum(batch, scale) * self.factor
    }
}

#[test]
fn a_loss_or_gradient_that_is_not_finite_stops_the_run_and_names_everything() {
    for (factor, what) in [(f64::NAN, "loss"), (f64::INFINITY, "loss"), (1e30, "gradient norm")] {
        let inner = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        let before = named_tensors(&inner).unwrap();
        let mut learner = Learner::new(Broken { inner, factor }, config(3)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path(), 2, serde_json::Value::Null);
        learner.save(&store).unwrap();
        let stop = StopFlag::default();
        let surroundings =
            FitOptions { stop: stop.clone(), checkpoints: Some(&store), ..FitOptions::default() };
        let error = learner.fit(&mut Rows(unequal()), surroundings).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotFinite { step: 1, .. }));
        assert!(text.contains(&format!("step 1: the {what} is not finite")), "{text}");
        assert!(text.contains("row 0, row 1, row 2") && text.contains("step-000000"), "{text}");
        assert_eq!(named_tensors(&learner.model().inner).unwrap(), before, "no update was made");
    }
}

#[test]
fn epochs_lose_no_row_and_the_last_step_may_be_short() {
    #[derive(Default)]
    struct Count(Vec<usize>);
    impl Observer for Count {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            if let Event::Step(report) = event {
                self.0.push(report.rows);
            }
            Ok(())
        }
    }
    let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    let config = TrainConfig { steps: None, epochs: 2.0, accumulate: 2, ..config(1) };
    let mut learner = Learner::new(model, config).unwrap();
    let mut count = Count::default();
    fit(&mut learner, None, &mut count, &StopFlag::default()).unwrap();
    assert_eq!(count.0, [6, 6, 4], "two epochs of eight rows in steps of six");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let fine = TrainConfig::default;
    for (config, key) in [
        (TrainConfig { batch_size: 0, ..fine() }, "train.batch_size"),
        (TrainConfig { accumulate: 0, ..fine() }, "train.accumulate"),
        (TrainConfig { steps: Some(0), ..fine() }, "train.steps"),
        (TrainConfig { epochs: -1.0, ..fine() }, "train.epochs"),
        (TrainConfig { epochs: f64::NAN, ..fine() }, "train.epochs"),
        (TrainConfig { learning_rate: 0.0, ..fine() }, "train.learning_rate"),
        (TrainConfig { beta_2: 1.0, ..fine() }, "train.beta_2"),
        (TrainConfig { weight_decay: -0.1, ..fine() }, "train.weight_decay"),
    ] {
        let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        let error = Learner::new(model, config).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    let plain = tiny(Architecture::Llama).init(1, &devices()[0]).unwrap();
    let error = Learner::new(plain, fine()).unwrap_err().to_string();
    assert!(error.contains("does not compute gradients"), "{error}");
}

#[test]
fn metrics_of_a_resumed_run_have_each_step_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut first = learner(5);
    let mut file = MetricsFile::create(&path).unwrap();
    fit(&mut first, None, &mut file, &StopFlag::default()).unwrap();
    drop(file);
    // A line that was cut off by a crash.
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"event\":\"step\",\"st");
    // In the middle of a character, even.
    let bytes = [text.as_bytes(), b"\xc3"].concat();
    std::fs::write(&path, bytes).unwrap();
    assert!(MetricsFile::create(&path).is_err(), "an existing file is not overwritten");
    drop(MetricsFile::resume(&path, ResumePoint { step: 3, evaluation_due: false }).unwrap());
    let steps: Vec<usize> = read_metrics(&path)
        .unwrap()
        .iter()
        .map(|metric| match metric {
            Metric::Step(report) => report.step,
            Metric::Evaluation(report) => report.step,
            Metric::Graded(report) => report.step,
        })
        .collect();
    assert_eq!(steps, [1, 2, 3]);
}
