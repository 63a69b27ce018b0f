//! What a run survives: kills at any moment, a full disk, a second process, and NaN values.

mod common;

use burn::module::Module;
use burn::tensor::Tensor;
use common::{command, devices, program, rows, tiny, toy_run};
use mixdistill::context::{
    BestStep, Context, EvaluationReport, Event, Observer, Outcome, StopFlag,
};
use mixdistill::data::{Batch, Packing, Row, RowStream};
use mixdistill::model::{Architecture, CausalLm, DecoderLm, named_tensors};
use mixdistill::recipe::{RunConfig, RunDirectory, RunMode, Summary};
use mixdistill::train::{
    CheckpointStore, FitOptions, HeldOut, Learner, Metric, MetricsFile, OnNotFinite, TrainConfig,
    read_metrics,
};
use mixdistill::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A run of the toy corpus that takes a second or so, with a checkpoint at every other step.
fn small(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.mixture.redraw = true;
    config.train.steps = Some(40);
    config.train.accumulate = 2;
    config.train.evaluate_every = 5;
    config.train.checkpoint_every = 2;
    // Noise that depends on the row, and answers that are graded on the way.
    config.train.objective.neftune_alpha = 5.0;
    config.train.objective.label_smoothing = 0.05;
    config.train.packing = Packing::On;
    config.evaluation.questions = 2;
    config.evaluation.during_training = 2;
    config.generate.max_new_tokens = 4;
    config
}

/// Writes the settings beside the run directory; gives their path.
fn settings(config: &RunConfig) -> String {
    let path = config.out.with_extension("toml");
    std::fs::write(&path, config.to_toml().unwrap()).unwrap();
    path.display().to_string()
}

/// The command that begins the run or goes on with it.
fn run_command(config: &RunConfig, settings: &str) -> Command {
    let mut command = command("train");
    if RunDirectory::holds_run(&config.out) && config.out.join("config.toml").is_file() {
        command.args(["--resume", "--out", &config.out.display().to_string()]);
    } else {
        command.args(["--overwrite", "--config", settings]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Everything that a run leaves and that does not tell the time: weights, moments, samples and
/// answers as bytes, and the metrics.
fn results(out: &Path) -> (Vec<Vec<u8>>, Vec<Metric>) {
    let files = [
        "model/model.safetensors",
        "checkpoints/step-000040/model.safetensors",
        "checkpoints/step-000040/optimizer.safetensors",
        "checkpoints/step-000040/state.json",
        "samples.jsonl",
        "after.jsonl",
    ];
    let bytes = files.map(|name| std::fs::read(out.join(name)).unwrap()).to_vec();
    let mut metrics = read_metrics(&out.join("metrics.jsonl")).unwrap();
    for metric in &mut metrics {
        match metric {
            Metric::Step(step) => step.seconds = 0.0,
            Metric::Evaluation(evaluation) => evaluation.seconds = 0.0,
            Metric::Graded(graded) => graded.seconds = 0.0,
        }
    }
    (bytes, metrics)
}

#[test]
fn killed_at_fifty_moments_a_run_ends_in_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = small(&folder.path().join("undisturbed"));
    let path = settings(&undisturbed);
    let output = run_command(&undisturbed, &path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = results(&undisturbed.out);

    // Delays from a fixed sequence; what they hit depends on the machine, which is what is wanted.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut delay = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis((state >> 33) % 600)
    };
    let (mut kills, mut writing, mut finished) = (0, 0, 0);
    while kills < 50 || finished == 0 {
        let config = small(&folder.path().join(format!("run{finished}")));
        let path = settings(&config);
        let mut child =
            run_command(&config, &path).env("MIXDISTILL_TEST_LINGER_MS", "4").spawn().unwrap();
        let end = Instant::now() + delay();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= end {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) => {
                let output = child.wait_with_output().unwrap();
                assert!(status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                assert!(results(&config.out) == expected, "run {finished} ended otherwise");
                finished += 1;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                let entries = std::fs::read_dir(config.out.join("checkpoints"));
                let half = entries
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|entry| entry.file_name().to_string_lossy().starts_with(".writing"));
                writing += usize::from(half);
            }
        }
    }
    println!(
        "{kills} kills, {writing} of them while a checkpoint was written; {finished} runs ended"
    );
}

#[test]
fn a_second_process_on_a_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(&folder.path().join("run"));
    let path = settings(&config);
    let held = RunDirectory::open(&config.out, RunMode::New).unwrap();
    let output = run_command(&config, &path).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("another process is using it"), "{error}");
    drop(held);
    assert!(run_command(&config, &path).status().unwrap().success());
}

/// With a limit on the size of files in place of a full disk: both refuse a write half way.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_ends_the_run_and_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small(&folder.path().join("run"));
    // Stopped after its first checkpoints, it goes on where no file may exceed 64 KiB.
    config.train.steps = Some(4);
    let path = settings(&config);
    assert!(run_command(&config, &path).status().unwrap().success());
    let before = std::fs::read_dir(config.out.join("checkpoints")).unwrap().count();
    std::fs::remove_file(config.out.join("summary.json")).unwrap();
    std::fs::remove_dir_all(config.out.join("checkpoints/step-000004")).unwrap();
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} train --resume --out {}",
        program(),
        config.out.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("cannot write") && error.contains("step-000004"), "{error}");
    assert!(error.contains("Training had reached step 4"), "{error}");
    assert!(error.contains("Safe on disk:") && error.contains("step-000002"), "{error}");
    let left = std::fs::read_dir(config.out.join("checkpoints")).unwrap();
    let left: Vec<String> =
        left.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(left.contains(&"step-000002".to_owned()) && !left.contains(&"step-000004".to_owned()));
    assert!(before >= 2);
    // With room again it ends as it should.
    assert!(run_command(&config, &path).status().unwrap().success());
    assert!(config.out.join("model/model.safetensors").is_file());
}

/// A model whose loss is no number where a batch holds the row of this number.
#[derive(Module, Debug)]
struct Poisoned {
    inner: DecoderLm,
    #[module(skip)]
    row: u64,
}

impl CausalLm for Poisoned {
    fn vocabulary_size(&self) -> usize {
        self.inner.vocabulary_size()
    }

    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1> {
        let poison = if batch.numbers.contains(&self.row) { f64::NAN } else { 0.0 };
        self.inner.loss_sum(batch, scale) + poison
    }
}

/// Rows that bear their number.
struct Numbered;

impl RowStream for Numbered {
    fn rows_per_epoch(&self) -> usize {
        1000
    }

    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
        let all = rows(&[(12, 3), (5, 4), (9, 1), (20, 2), (7, 6)]);
        Ok(range.map(|n| Row { number: n, ..all[n as usize % all.len()].clone() }).collect())
    }
}

fn train(steps: usize, on_not_finite: OnNotFinite) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        batch_size: 2,
        accumulate: 1,
        learning_rate: 1e-2,
        warmup_steps: 1,
        evaluate_every: 0,
        checkpoint_every: 2,
        on_not_finite,
        ..TrainConfig::default()
    }
}

fn poisoned(row: u64, config: TrainConfig) -> Learner<Poisoned> {
    let inner = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
    Learner::new(Poisoned { inner, row }, config).unwrap()
}

fn fit<M: CausalLm>(
    learner: &mut Learner<M>,
    held_out: &[HeldOut],
    checkpoints: Option<&CheckpointStore>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let stop = StopFlag::default();
    learner.fit(
        &mut Numbered,
        FitOptions {
            held_out,
            observer: Some(observer),
            stop: stop.clone(),
            checkpoints,
            ..FitOptions::default()
        },
    )
}

/// A metrics file, and from where to where training went back.
struct Rollbacks {
    file: MetricsFile<'static>,
    seen: Vec<(usize, usize)>,
}

impl Observer for Rollbacks {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::RolledBack { from, to, .. } = event {
            self.seen.push((*from, *to));
        }
        self.file.observe(event)
    }
}

#[test]
fn a_step_without_a_number_stops_is_skipped_or_rolled_back() {
    let store = |folder: &Path| CheckpointStore::new(folder, 3, serde_json::json!({}));
    // Row 10 is in step 6.
    let folder = tempfile::tempdir().unwrap();
    let mut learner = poisoned(10, train(8, OnNotFinite::Stop));
    let error = fit(&mut learner, &[], Some(&store(folder.path())), &mut ()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 6, .. }), "{error}");
    assert!(error.to_string().contains("step-000004"), "{error}");

    let mut skipping = poisoned(10, train(8, OnNotFinite::Skip));
    let outcome = fit(&mut skipping, &[], None, &mut ()).unwrap();
    assert_eq!((outcome.step, outcome.skipped), (8, vec![6]));

    // Going back to step 4 and leaving step 6 out comes to the same, and metrics have no step twice.
    let folder = tempfile::tempdir().unwrap();
    let metrics = folder.path().join("metrics.jsonl");
    let mut observer = Rollbacks { file: MetricsFile::create(&metrics).unwrap(), seen: vec![] };
    let mut rolling = poisoned(10, train(8, OnNotFinite::RollBack));
    let outcome =
        fit(&mut rolling, &[], Some(&store(&folder.path().join("c"))), &mut observer).unwrap();
    assert_eq!((outcome.step, outcome.skipped), (8, vec![6]));
    assert_eq!(observer.seen, [(6, 4)]);
    let tensors = |learner: &Learner<Poisoned>| named_tensors(learner.model()).unwrap();
    assert!(tensors(&rolling) == tensors(&skipping));
    let steps: Vec<usize> = read_metrics(&metrics)
        .unwrap()
        .into_iter()
        .filter_map(|m| if let Metric::Step(step) = m { Some(step.step) } else { None })
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 7, 8]);

    // While steps are left out, no checkpoint takes the place of a good one.
    let folder = tempfile::tempdir().unwrap();
    let mut skipping = poisoned(7, train(5, OnNotFinite::Skip));
    let outcome = fit(&mut skipping, &[], Some(&store(folder.path())), &mut ()).unwrap();
    assert_eq!(outcome.skipped, [4]);
    assert!(
        folder.path().join("step-000002").is_dir() && !folder.path().join("step-000004").exists()
    );

    // Without a checkpoint there is nothing to go back to.
    let mut rolling = poisoned(0, train(8, OnNotFinite::RollBack));
    assert!(
        fit(&mut rolling, &[], None, &mut ()).unwrap_err().to_string().contains("no checkpoint")
    );
    // A run in which nothing is a number ends, too.
    let mut nothing = poisoned(u64::MAX, train(50, OnNotFinite::Skip));
    nothing = Learner::new(
        Poisoned { row: 0, ..nothing.into_model() },
        TrainConfig { batch_size: 1000, ..train(50, OnNotFinite::Skip) },
    )
    .unwrap();
    struct Always;
    impl RowStream for Always {
        fn rows_per_epoch(&self) -> usize {
            1000
        }
        fn rows(&mut self, _: Range<u64>) -> Result<Vec<Row>> {
            Ok(rows(&[(5, 2)]))
        }
    }
    let stop = StopFlag::default();
    let mut observer = ();
    let surroundings = FitOptions {
        held_out: &[],
        grader: None,
        observer: Some(&mut observer),
        stop: stop.clone(),
        checkpoints: None,
    };
    let error = nothing.fit(&mut Always, surroundings).unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 11, .. }), "{error}");
}

/// Keeps the evaluations.
#[derive(Default)]
struct Evaluations(Vec<EvaluationReport>);

impl Observer for Evaluations {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Evaluation(report) = event {
            self.0.push((*report).clone());
        }
        Ok(())
    }
}

#[test]
fn training_ends_early_and_with_its_best_weights() {
    let config = TrainConfig {
        // So large that the held-out loss soon rises.
        learning_rate: 0.3,
        warmup_steps: 4,
        evaluate_every: 1,
        checkpoint_every: 100,
        keep_checkpoints: 1,
        early_stopping: 3,
        keep_best: true,
        ..train(60, OnNotFinite::Stop)
    };
    let held_out = [HeldOut { name: "held".into(), rows: rows(&[(9, 2), (13, 4)]) }];
    let start = || {
        let device = devices()[0].clone().autodiff();
        let model = tiny(Architecture::Llama).init(1, &device).unwrap();
        Learner::new(model, config.clone()).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(folder.path(), 1, serde_json::json!({}));
    let (mut learner, mut seen) = (start(), Evaluations::default());
    let outcome = fit(&mut learner, &held_out, Some(&store), &mut seen).unwrap();
    assert!(outcome.stopped_early && !outcome.stopped && outcome.step < 60);
    let losses: Vec<f64> = seen.0.iter().map(|report| report.sources[0].loss).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best =
        BestStep { step: 1 + losses.iter().position(|l| *l == lowest).unwrap(), loss: lowest };
    assert_eq!(outcome.best, Some(best));
    assert_eq!(outcome.step, best.step + 3);
    // The weights are those of the best step.
    let report = learner.evaluate(&held_out, &Context::default()).unwrap();
    assert_eq!(report.sources[0].loss, lowest);
    let mut kept: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    kept.sort();
    let name = |step: usize| format!("step-{step:06}");
    assert_eq!(kept, [name(best.step), name(outcome.step)]);

    // Taken up half way, it comes to the same end.
    let mut resumed = start();
    resumed.restore(&store, best.step).unwrap();
    let again = fit(&mut resumed, &held_out, Some(&store), &mut ()).unwrap();
    assert_eq!((again.step, again.best), (outcome.step, outcome.best));
    assert!(named_tensors(resumed.model()).unwrap() == named_tensors(learner.model()).unwrap());
    // Where it had ended already, it does not go on.
    let mut ended = start();
    ended.resume(&store).unwrap();
    assert_eq!(ended.step(), outcome.step);
    let again = fit(&mut ended, &held_out, Some(&store), &mut ()).unwrap();
    assert_eq!((again.step, again.stopped_early), (outcome.step, true));
    assert!(named_tensors(ended.model()).unwrap() == named_tensors(learner.model()).unwrap());
    // A best step whose checkpoint is gone is forgotten, and training goes on to a new one.
    std::fs::remove_dir_all(folder.path().join(name(best.step))).unwrap();
    let mut without = start();
    without.resume(&store).unwrap();
    let on = fit(&mut without, &held_out, Some(&store), &mut ()).unwrap();
    assert!(on.step > outcome.step && on.best.unwrap().step > outcome.step);
}

#[test]
fn a_run_ends_early_by_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small(&folder.path().join("run"));
    config.train.learning_rate = 1.0;
    config.train.early_stopping = 1;
    config.train.keep_best = true;
    config.train.evaluate_every = 1;
    let summary: Summary =
        mixdistill::recipe::run(&config, RunMode::New, &Context::default()).unwrap();
    assert!(summary.outcome.stopped_early && summary.outcome.step < 40);
    assert!(config.out.join("model/model.safetensors").is_file());
}
