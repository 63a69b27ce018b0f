//! AdamW with 8-bit moments: equal to bitsandbytes, and in checkpoints.

mod common;
mod parity_support;

use burn::tensor::{Tensor, TensorData};
use common::{Rows, devices, rows, tiny};
use mixdistill::Result;
use mixdistill::context::{Event, Observer, StopFlag};
use mixdistill::data::Row;
use mixdistill::model::{Architecture, DecoderConfig, DecoderLm, LoraConfig, named_tensors};
use mixdistill::ops::{AdamW, Moments8Bit, StoredMoment};
use mixdistill::train::{
    CheckpointStore, FitOptions, FusedAdamW, Learner, MomentType, Optimizer, TrainConfig,
    step_gradients,
};
use parity_support::{Reference, largest_difference, line};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers in -1..1, as `tests/parity/make_optimizer.py` makes them.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// As there: magnitudes over several powers of ten, and a first block of zeros at first.
fn gradient(name: &str, step: usize, count: usize) -> Vec<f32> {
    let uniform = numbers(1000 * step as u64 + name.len() as u64, count);
    let mut found: Vec<f32> = uniform.iter().map(|x| x * x * x * 1e-2).collect();
    if step < 5 {
        found[..256].fill(0.0);
    }
    found
}

fn reference() -> Reference {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures");
    Reference::read(&fixtures.join("adamw_8bit.safetensors"))
}

#[test]
fn the_maps_are_those_of_bitsandbytes() {
    let reference = reference();
    let all = || StoredMoment { codes: (0..=255).collect(), scales: vec![1.0] };
    let [first, second] = Moments8Bit::new(1, [all(), all()], &devices()[0]).values().unwrap();
    assert_eq!(first, reference.floats("signed_map"));
    assert_eq!(second, reference.floats("unsigned_map"));
}

#[test]
fn twenty_steps_equal_those_of_bitsandbytes() {
    let reference = reference();
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    for device in devices() {
        let tensor = |values: Vec<f32>| {
            let count = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [count]), &device)
        };
        println!("20 steps of AdamW8bit against bitsandbytes on {device:?}");
        let mut holds = true;
        let [mut large, mut small] = [("large", 2 * 4133), ("small", 1100)]
            .map(|(name, count)| tensor(numbers(name.len() as u64, count)));
        let (mut moments, mut state) = (None, None);
        for step in 1..=20 {
            let gradients = [("large", 2 * 4133), ("small", 1100)]
                .map(|(name, count)| tensor(gradient(name, step, count)));
            let [of_large, of_small] = gradients;
            let updated = adamw.update_8bit(1e-2, large, of_large, 1.0, moments.take());
            (large, moments) = (updated.0, Some(updated.1));
            let updated = adamw.update(1e-2, small, of_small, 1.0, state.take());
            (small, state) = (updated.0, Some(updated.1));
            if ![1, 2, 10, 20].contains(&step) {
                continue;
            }
            let stored = moments.as_ref().map(|moments: &Moments8Bit| moments.stored().unwrap());
            let mut differing = 0;
            for (moment, part) in stored.unwrap().iter().zip(["exp_avg", "exp_avg_sq"]) {
                let codes = reference.bytes(&format!("{step}.large.{part}"));
                let scales = reference.floats(&format!("{step}.large.{part}.absmax"));
                differing += codes.iter().zip(&moment.codes).filter(|(a, b)| a != b).count();
                let relative = scales.iter().zip(&moment.scales).map(|(a, b)| match a {
                    0.0 => b.abs(),
                    _ => (a - b).abs() / a,
                });
                let relative = relative.fold(0.0, f32::max);
                holds &=
                    line(&format!("step {step}, {part}: scale, relative"), relative.into(), 1e-6);
            }
            holds &= line(&format!("step {step}: codes that differ"), differing as f64, 0.0);
            let values = |tensor: &Tensor<1>| tensor.clone().try_into_vec_as::<f32>().unwrap();
            for (name, tensor) in [("large", &large), ("small", &small)] {
                let theirs = reference.floats(&format!("{step}.{name}"));
                let difference = largest_difference(&values(tensor), &theirs);
                holds &= line(&format!("step {step}: parameters of `{name}`"), difference, 1e-6);
            }
        }
        assert!(holds, "see the table above");
    }
}

/// A model of which some tensors have 4,096 elements and more.
fn model() -> DecoderLm {
    let config =
        DecoderConfig { hidden_size: 48, intermediate_size: 96, ..tiny(Architecture::Llama) };
    config.init(1, &devices()[0].clone().autodiff()).unwrap()
}

fn with_adapters() -> DecoderLm {
    let config = LoraConfig { rank: 64, alpha: 64.0, ..LoraConfig::default() };
    model().with_lora(&config, 7).unwrap()
}

fn train(moments: MomentType) -> TrainConfig {
    TrainConfig {
        steps: Some(7),
        // A stop is seen between micro-batches.
        batch_size: 1,
        accumulate: 3,
        learning_rate: 1e-2,
        warmup_steps: 2,
        evaluate_every: 0,
        checkpoint_every: 3,
        moments,
        ..TrainConfig::default()
    }
}

fn data() -> Vec<Row> {
    rows(&[(9, 2), (14, 5), (6, 1), (11, 3)])
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
    store: Option<&CheckpointStore>,
    stop_after: Option<usize>,
) {
    let stop = StopFlag::default();
    if stop_after == Some(0) {
        stop.request();
    }
    let options = FitOptions {
        observer: Some(&mut StopAfter(stop_after.unwrap_or_default(), &stop)),
        stop: stop.clone(),
        checkpoints: store,
        ..FitOptions::default()
    };
    learner.fit(&mut Rows(data()), options).unwrap();
}

#[test]
fn a_run_with_moments_of_8_bits_resumes_in_the_same_bits() {
    for start in [model, with_adapters] {
        let learner = || Learner::new(start(), train(MomentType::EightBit)).unwrap();
        let mut straight = learner();
        fit(&mut straight, None, None);
        let expected = named_tensors(straight.model()).unwrap();
        let mut full = Learner::new(start(), train(MomentType::F32)).unwrap();
        fit(&mut full, None, None);
        assert!(named_tensors(full.model()).unwrap() != expected, "the setting does something");
        for stop_after in [0, 1, 4] {
            let folder = tempfile::tempdir().unwrap();
            let store = CheckpointStore::new(folder.path(), 2, json!({}));
            fit(&mut learner(), Some(&store), Some(stop_after));
            let file = folder.path().join(format!("step-{stop_after:06}/optimizer.safetensors"));
            let bytes = std::fs::read(file).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            for (name, tensor) in file.tensors() {
                let count: usize = tensor.shape().iter().product();
                let is_8bit = tensor.dtype() == Dtype::U8;
                let scales = name.ends_with(".absmax");
                assert!(scales || is_8bit == (count >= 4096), "{name}: {count}");
            }
            let has_8bit = file.tensors().iter().any(|(_, tensor)| tensor.dtype() == Dtype::U8);
            assert_eq!(has_8bit, stop_after > 0);
            let mut resumed = learner();
            resumed.resume(&store).unwrap();
            assert_eq!(resumed.step(), stop_after);
            fit(&mut resumed, Some(&store), None);
            assert!(named_tensors(resumed.model()).unwrap() == expected, "after {stop_after}");
        }
    }
}

#[test]
fn a_checkpoint_of_other_moments_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = [MomentType::F32, MomentType::EightBit];
    for [made, asked] in [kinds, [kinds[1], kinds[0]]] {
        let folder = folder.path().join(format!("{made:?}"));
        let store = |kind| {
            CheckpointStore::new(
                &folder,
                1,
                json!({"train": serde_json::to_value(train(kind)).unwrap()}),
            )
        };
        let mut learner = Learner::new(model(), train(made)).unwrap();
        learner.train_step(&data(), 7).unwrap();
        learner.save(&store(made)).unwrap();
        let mut other = Learner::new(model(), train(asked)).unwrap();
        let error = other.resume(&store(asked)).unwrap_err().to_string();
        assert!(error.contains("train.moments was"), "{error}");
        let error = other.resume(&store(asked).allowing_changes(true)).unwrap_err().to_string();
        let [made, asked] = [made, asked]
            .map(|kind| serde_json::to_value(kind).unwrap().as_str().unwrap().to_owned());
        assert!(
            error.contains(&format!("are {made}, and `train.moments` asks for {asked}")),
            "{error}"
        );
    }
}

/// Type, shape and bytes of each tensor of a file.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn damaged_moments_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let mut optimizer = FusedAdamW::new(&train(MomentType::EightBit));
    let batches = train(MomentType::EightBit).batches(&data());
    let start = model();
    let gradients = step_gradients(&start, &batches).unwrap().gradients;
    let model = optimizer.step(1e-3, 1.0, start, gradients);
    let numbers = optimizer.save(&model, &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let whole: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    let large = "model.layers.0.mlp.gate_proj.weight";
    let named = |part: &str| format!("{large}.{part}");
    let refused = |what: &str, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        write(&path, &tensors);
        let mut optimizer = FusedAdamW::new(&train(MomentType::EightBit));
        let error = optimizer.load(model.clone(), &path, &numbers).unwrap_err().to_string();
        assert!(error.contains(what), "{error}, not {what}");
    };
    let floats =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let scales = |values: Vec<f32>| (Dtype::F32, vec![values.len()], floats(&values));
    let insert = |part: &str, tensor: (Dtype, Vec<usize>, Vec<u8>)| {
        let name = named(part);
        move |tensors: &mut Tensors| {
            tensors.insert(name.clone(), tensor.clone());
        }
    };
    refused("exp_avg_sq.absmax` is missing", &|t| drop(t.remove(&named("exp_avg_sq.absmax"))));
    refused("exp_avg` is missing", &|t| drop(t.remove(&named("exp_avg"))));
    refused("has 17 elements, not 18", &insert("exp_avg.absmax", scales(vec![1.0; 17])));
    refused("not finite", &insert("exp_avg.absmax", scales(vec![f32::NAN; 18])));
    refused("scale -1, below 0", &insert("exp_avg_sq.absmax", scales(vec![-1.0; 18])));
    let short = (Dtype::U8, vec![4607], vec![0; 4607]);
    refused("has 4607 elements, not 4608", &insert("exp_avg_sq", short));
    refused("its type is F32, not u8", &insert("exp_avg", scales(vec![0.0; 4608])));
    refused("are f32, and `train.moments` asks for 8bit", &|t| {
        t.retain(|name, _| !name.ends_with(".absmax"));
    });
    refused("input_layernorm.weight.exp_avg` has 3 elements, not 48", &|t| {
        let name = "model.layers.0.input_layernorm.weight.exp_avg";
        t.insert(name.into(), scales(vec![0.0; 3]));
    });
    write(&path, &whole);
    let mut more = numbers.clone();
    more.insert("elsewhere".into(), 1);
    let error = optimizer.load(model.clone(), &path, &more).unwrap_err().to_string();
    assert!(error.contains("`elsewhere`, which the model does not have"), "{error}");
    optimizer.load(model, &path, &numbers).unwrap();
}
