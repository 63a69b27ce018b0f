//! Promise: any number of ranks produces bit-identical results, however a step is split, and can resume from the
//! checkpoints of any other number.

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "mpi")]
mod mpi;
mod runs;

use burn::optim::GradientsParams;
use burn::tensor::Device;
use common::{Rows, devices, rows, shaken, tiny};
use mixdistill::context::{Event, Observer, StopFlag};
use mixdistill::data::{Packing, Row, RowStream, TopTokens};
use mixdistill::model::{Architecture, DecoderLm, LoraConfig, named_tensors};
use mixdistill::ops::{Distillation, Divergence};
use mixdistill::ranks::{Ranks, thread_ranks};
use mixdistill::train::{
    CheckpointStore, DistillationRows, FitOptions, FusedAdamW, HeldOut, Learner, LogitTeacher,
    MomentType, Optimizer, TrainConfig, named_gradients,
};
use mixdistill::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// 24 rows of unequal length and unequal masks.
fn unequal() -> Vec<Row> {
    let shapes: Vec<(usize, usize)> =
        (0..24).map(|n| (3 + n * 7 % 17, 1 + n * 5 % (3 + n * 7 % 17))).collect();
    rows(&shapes)
}

fn config(lanes: usize) -> TrainConfig {
    TrainConfig {
        steps: Some(6),
        batch_size: 2,
        accumulate: 5,
        lanes,
        learning_rate: 1e-2,
        warmup_steps: 2,
        evaluate_every: 3,
        checkpoint_every: 0,
        ..TrainConfig::default()
    }
}

fn device() -> Device {
    devices()[0].clone().autodiff()
}

fn model() -> DecoderLm {
    shaken(&tiny(Architecture::Qwen3), &device())
}

/// Everything that a training gives, in bits.
#[derive(Clone, Debug, Default, PartialEq)]
struct Bits {
    weights: BTreeMap<String, Vec<u32>>,
    /// Loss, norm and rate of each step.
    steps: Vec<[u64; 3]>,
    evaluations: Vec<Vec<u64>>,
}

impl Observer for Bits {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(step) => {
                let numbers = [step.loss, step.gradient_norm, step.learning_rate];
                self.steps.push(numbers.map(f64::to_bits));
            }
            Event::Evaluation(report) => {
                let losses = report.sources.iter().map(|source| source.loss.to_bits());
                self.evaluations.push(losses.collect());
            }
            _ => {}
        }
        Ok(())
    }
}

fn weights(model: &DecoderLm) -> BTreeMap<String, Vec<u32>> {
    let named = named_tensors(model).unwrap().into_iter();
    named.map(|(name, t)| (name, t.values.iter().map(|v| v.to_bits()).collect())).collect()
}

fn held_out() -> Vec<HeldOut> {
    let of = |name: &str, rows| HeldOut { name: name.into(), rows };
    vec![of("long", unequal()[..9].to_vec()), of("short", unequal()[9..14].to_vec())]
}

/// What each rank does.
type Work<'a> = &'a (dyn Fn(Ranks) -> Result<Bits> + Sync);

/// The same on all ranks; a rank that fails tells the others.
fn on(count: usize, work: Work<'_>) -> Vec<Result<Bits>> {
    std::thread::scope(|scope| {
        let ranks = thread_ranks(count).into_iter();
        let threads: Vec<_> = ranks
            .map(|rank| {
                scope.spawn(move || {
                    let ranks = Ranks::new(Arc::new(rank));
                    let done = work(ranks.clone());
                    done.inspect_err(|error| ranks.fail(error))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Trains, with checkpoints in a folder, which it goes on from where there are some.
fn trained(
    model: DecoderLm,
    config: TrainConfig,
    rows: &mut dyn RowStream,
    folder: Option<&Path>,
    ranks: Ranks,
) -> Result<Bits> {
    // The leader's checkpoints alone are anywhere.
    let nowhere = tempfile::tempdir().unwrap();
    let of_rank = folder.map(|folder| if ranks.is_leader() { folder } else { nowhere.path() });
    let store = of_rank.map(|folder| CheckpointStore::new(folder, 2, serde_json::json!({})));
    let mut learner = Learner::new(model, config)?.with_ranks(ranks)?;
    if let Some(store) = store.as_ref().filter(|_| folder.unwrap().join("step-000003").exists()) {
        learner.resume(store)?;
    }
    let mut bits = Bits::default();
    let held_out = held_out();
    let options = FitOptions {
        held_out: &held_out,
        observer: Some(&mut bits),
        checkpoints: store.as_ref(),
        ..FitOptions::default()
    };
    learner.fit(rows, options)?;
    bits.weights = weights(learner.model());
    Ok(bits)
}

/// The bits of all ranks, which are the same.
fn same(all: Vec<Result<Bits>>) -> Bits {
    let mut all = all.into_iter().map(Result::unwrap);
    let first = all.next().unwrap();
    assert!(!first.steps.is_empty() && all.all(|other| other == first));
    first
}

#[test]
fn any_number_of_ranks_comes_to_the_bits_of_one() {
    let adapters = LoraConfig { rank: 2, alpha: 4.0, dropout: 0.2, ..LoraConfig::default() };
    let lora = || model().with_lora(&adapters, 3).unwrap();
    let whole: (&str, &(dyn Fn() -> DecoderLm + Sync)) = ("whole", &model);
    for (name, make, change) in [
        (whole.0, whole.1, (|_| {}) as fn(&mut TrainConfig)),
        ("adapters with dropout", &lora, |_| {}),
        ("packed, by tokens", whole.1, |config| {
            (config.packing, config.tokens_per_batch) = (Packing::On, Some(40));
        }),
        ("activation checkpointing", whole.1, |config| config.activation_checkpointing = true),
        ("8-bit moments, shards", whole.1, |config| {
            (config.moments, config.shard_optimizer) = (MomentType::EightBit, true);
        }),
        ("one micro-batch", whole.1, |config| (config.batch_size, config.accumulate) = (10, 1)),
    ] {
        for lanes in [1, 4] {
            let mut config = config(lanes);
            change(&mut config);
            let of = |count| {
                same(on(count, &|ranks| {
                    trained(make(), config.clone(), &mut Rows(unequal()), None, ranks)
                }))
            };
            let one = of(1);
            assert_eq!((one.steps.len(), one.evaluations.len()), (6, 2));
            for count in [2, 3, 4] {
                assert!(of(count) == one, "{name}, {lanes} lanes, {count} ranks");
            }
        }
    }
}

#[test]
fn one_lane_is_as_without_ranks_and_lanes_round_otherwise() {
    let bits = |lanes| {
        let config = TrainConfig { lanes, ..config(1) };
        trained(model(), config, &mut Rows(unequal()), None, Ranks::default()).unwrap()
    };
    let [one, four] = [1, 4].map(bits);
    assert_ne!(one.weights, four.weights);
    // In their last bits only.
    for (a, b) in one.steps.iter().zip(&four.steps) {
        let [a, b] = [a[0], b[0]].map(f64::from_bits);
        assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn optimizer_states_that_are_divided_change_nothing() {
    for moments in [MomentType::F32, MomentType::EightBit] {
        let config = |shards| TrainConfig { shard_optimizer: shards, moments, ..config(2) };
        let of = |count, shards| {
            same(on(count, &|ranks| {
                trained(model(), config(shards), &mut Rows(unequal()), None, ranks)
            }))
        };
        let one = of(1, false);
        for count in [1, 2, 3] {
            assert!(of(count, true) == one, "{moments:?}, {count} ranks");
        }
    }
}

/// AdamW that says how many parameters it has updated in a step.
struct Counted {
    inner: FusedAdamW,
    updated: Arc<AtomicUsize>,
}

impl Optimizer<DecoderLm> for Counted {
    fn step(
        &mut self,
        rate: f64,
        scale: f64,
        model: DecoderLm,
        found: GradientsParams,
    ) -> DecoderLm {
        self.updated.store(named_gradients(&model, &found).unwrap().len(), Ordering::SeqCst);
        self.inner.step(rate, scale, model, found)
    }

    fn file_name(&self) -> &'static str {
        Optimizer::<DecoderLm>::file_name(&self.inner)
    }

    fn is_divisible(&self) -> bool {
        true
    }

    fn save(&self, model: &DecoderLm, path: &Path) -> Result<BTreeMap<String, u64>> {
        self.inner.save(model, path)
    }

    fn load(
        &mut self,
        model: DecoderLm,
        path: &Path,
        numbers: &BTreeMap<String, u64>,
    ) -> Result<DecoderLm> {
        self.inner.load(model, path, numbers)
    }
}

#[test]
fn each_rank_updates_its_own_parameters_only() {
    let of = |shards| {
        let counts = Mutex::new(vec![]);
        same(on(3, &|ranks| {
            let updated = Arc::new(AtomicUsize::new(0));
            let config = TrainConfig { shard_optimizer: shards, steps: Some(1), ..config(1) };
            let inner = FusedAdamW::new(&config);
            let optimizer = Box::new(Counted { inner, updated: updated.clone() });
            let learner = Learner::with_optimizer(model(), config, optimizer)?;
            let mut learner = learner.with_ranks(ranks)?;
            let mut bits = Bits::default();
            let options = FitOptions { observer: Some(&mut bits), ..FitOptions::default() };
            learner.fit(&mut Rows(unequal()), options)?;
            bits.weights = weights(learner.model());
            counts.lock().unwrap().push(updated.load(Ordering::SeqCst));
            Ok(bits)
        }));
        counts.into_inner().unwrap()
    };
    let all = weights(&model()).len();
    assert_eq!(of(false), [all; 3]);
    let divided = of(true);
    assert_eq!(divided.iter().sum::<usize>(), all);
    assert!(divided.iter().all(|count| (1..all).contains(count)), "{divided:?}");
}

#[test]
fn a_checkpoint_belongs_to_no_number_of_ranks() {
    let whole = trained(model(), config(4), &mut Rows(unequal()), None, Ranks::default()).unwrap();
    for shards in [false, true] {
        // Stopped after three steps on the first number of ranks, and so on.
        for counts in [[4, 1, 2], [1, 3, 4], [2, 4, 1]] {
            let folder = tempfile::tempdir().unwrap();
            let mut last = Bits::default();
            for (part, count) in counts.into_iter().enumerate() {
                let config = TrainConfig { shard_optimizer: shards, ..config(4) };
                let bits = on(count, &|ranks| {
                    let stop = StopFlag::default();
                    let at = [3, 5, 6][part];
                    stopping(config.clone(), folder.path(), at, &stop, ranks)
                });
                last = same(bits);
            }
            assert_eq!(last.weights, whole.weights, "{counts:?} {shards}");
            assert_eq!(last.steps[..], whole.steps[5..]);
        }
    }
}

/// Trains until a step, where the leader's stop ends it on all ranks.
fn stopping(
    config: TrainConfig,
    folder: &Path,
    at: usize,
    stop: &StopFlag,
    ranks: Ranks,
) -> Result<Bits> {
    struct StopAt<'a> {
        bits: Bits,
        at: usize,
        stop: &'a StopFlag,
    }
    impl Observer for StopAt<'_> {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            if let Event::Step(step) = event
                && step.step == self.at
                && self.at < 6
            {
                self.stop.request();
            }
            self.bits.observe(event)
        }
    }
    let nowhere = tempfile::tempdir().unwrap();
    // A rank that is no leader stops, too, where another one is asked to.
    let asked = ranks.rank() == ranks.count() - 1;
    let of_rank = if ranks.is_leader() { folder } else { nowhere.path() };
    let store = CheckpointStore::new(of_rank, 2, serde_json::json!({}));
    let begun = folder.join("step-000003").exists();
    let mut learner = Learner::new(model(), config)?.with_ranks(ranks)?;
    if begun {
        learner.resume(&store)?;
    }
    let mut observer = StopAt { bits: Bits::default(), at, stop };
    let held_out = held_out();
    let options = FitOptions {
        held_out: &held_out,
        observer: Some(&mut observer),
        stop: if asked { stop.clone() } else { StopFlag::default() },
        checkpoints: Some(&store),
        ..FitOptions::default()
    };
    let outcome = learner.fit(&mut Rows(unequal()), options)?;
    assert_eq!((outcome.step, outcome.stopped), (at, at < 6));
    let mut bits = observer.bits;
    bits.weights = weights(learner.model());
    Ok(bits)
}

/// A teacher that likes the tokens before and after the right one, and counts what it is asked.
struct Neighbors<'a>(&'a AtomicUsize);

fn neighbors(row: &Row) -> TopTokens {
    let trained = row.example().trained();
    let tokens = (0..trained as u32).flat_map(|n| [n % 5, 5 + n % 3]).collect();
    let log_probs = [0.5f32, 0.3, 0.2].map(f32::ln).repeat(trained);
    TopTokens { k: 2, tokens, log_probs }
}

impl LogitTeacher for Neighbors<'_> {
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        self.0.fetch_add(rows.len(), Ordering::SeqCst);
        Ok(rows.iter().map(neighbors).collect())
    }
}

#[test]
fn a_teacher_is_asked_for_each_row_once_and_ranks_learn_the_same() {
    let mut config = config(2);
    config.objective.distillation =
        Some(Distillation { divergence: Divergence::ForwardKl, weight: 0.5, temperature: 1.0 });
    let of = |count| {
        let asked = AtomicUsize::new(0);
        let bits = same(on(count, &|ranks| {
            let mut rows = DistillationRows::new(Rows(unequal()), Neighbors(&asked));
            trained(model(), config.clone(), &mut rows, None, ranks)
        }));
        (bits, asked.load(Ordering::SeqCst))
    };
    let (one, asked) = of(1);
    assert_eq!(asked, 6 * 10);
    for count in [2, 4] {
        assert!(of(count) == (one.clone(), asked), "{count} ranks");
    }
}

#[test]
fn a_rank_that_fails_ends_all_with_its_error() {
    struct Broken(usize, Rows);
    impl RowStream for Broken {
        fn rows_per_epoch(&self) -> usize {
            self.1.rows_per_epoch()
        }

        fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
            match self.0 == 1 && range.start >= 20 {
                true => Err(Error::Training { what: "the disk is gone".into(), hint: "".into() }),
                false => self.1.rows(range),
            }
        }
    }
    let errors = on(3, &|ranks| {
        let mut rows = Broken(ranks.rank(), Rows(unequal()));
        trained(model(), config(1), &mut rows, None, ranks)
    });
    for (rank, error) in errors.into_iter().enumerate() {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the disk is gone"), "{error}");
        assert_eq!(error.contains("rank 1 failed"), rank != 1, "{error}");
    }
}
