//! Promise: observers receive all events in order, and do not change the training.

mod common;

use common::{devices, rows, tiny, toy_run};
use mixdistill::Result;
use mixdistill::context::{Context, Event, GradedReport, Observer, SampleAnswer, StopFlag, Task};
use mixdistill::data::{Row, RowStream};
use mixdistill::model::{Architecture, DecoderLm, named_tensors};
use mixdistill::recipe::{RunConfig, RunMode, Summary, run};
use mixdistill::train::{
    CheckpointStore, FitOptions, Grader, HeldOut, Learner, Metric, MetricsFile, ResumePoint,
    TensorBoard, TrainConfig, read_metrics,
};
use std::ops::Range;
use std::path::Path;

/// One event of a TensorBoard file.
#[derive(Debug, PartialEq)]
enum Read {
    Version(String),
    Start,
    Scalars(Vec<(String, f32)>),
}

/// The fields of a protocol buffer message: number and contents, fixed or not.
fn fields(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = vec![];
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                fields.push(((key >> 3) as u8, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut bytes) as usize,
            other => panic!("wire type {other}"),
        };
        fields.push(((key >> 3) as u8, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    fields
}

/// CRC-32C, bit by bit.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of all files of a folder, in the order of their names, with their steps.
fn events(folder: &Path) -> Vec<Vec<(u64, Read)>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| file_events(&std::fs::read(path).unwrap())).collect()
}

fn file_events(mut bytes: &[u8]) -> Vec<(u64, Read)> {
    let mut events = vec![];
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(word(8), checksum(&bytes[..8]));
        let body = &bytes[12..12 + length];
        assert_eq!(word(12 + length), checksum(body));
        let all = fields(body);
        let field = |number| all.iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes);
        let time = f64::from_le_bytes(field(1).unwrap()[..].try_into().unwrap());
        assert!(time > 1.7e9, "seconds since 1970: {time}");
        let step = u64::from_le_bytes(field(2).unwrap()[..].try_into().unwrap());
        let read = if let Some(version) = field(3) {
            Read::Version(String::from_utf8(version.clone()).unwrap())
        } else if field(7).is_some() {
            Read::Start
        } else {
            let scalar = |value: &(u8, Vec<u8>)| {
                let parts = fields(&value.1);
                let tag = String::from_utf8(parts[0].1.clone()).unwrap();
                (tag, f32::from_le_bytes(parts[1].1[..].try_into().unwrap()))
            };
            Read::Scalars(fields(field(5).unwrap()).iter().map(scalar).collect())
        };
        events.push((step, read));
        bytes = &bytes[16 + length..];
    }
    events
}

fn small(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.train.steps = Some(6);
    config.train.evaluate_every = 2;
    config.train.checkpoint_every = 2;
    config.generate.max_new_tokens = 8;
    config.evaluation.questions = 4;
    config
}

fn quiet(config: &RunConfig, mode: RunMode) -> Result<Summary> {
    run(config, mode, &Context::default())
}

#[test]
fn tensorboard_files_hold_every_step_and_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small(&folder.path().join("run"));
    config.evaluation.during_training = 2;
    quiet(&config, RunMode::New).unwrap();
    let files = events(&config.out.join("tensorboard"));
    assert_eq!(files.len(), 1);
    assert_eq!(files[0][0], (0, Read::Version("brain.Event:2".into())));
    let metrics = read_metrics(&config.out.join("metrics.jsonl")).unwrap();
    assert_eq!(files[0].len(), 1 + metrics.len());
    for (metric, (step, read)) in metrics.iter().zip(&files[0][1..]) {
        let Read::Scalars(scalars) = read else { panic!("{read:?}") };
        let value = |tag: &str| scalars.iter().find(|(t, _)| t == tag).unwrap().1;
        match metric {
            Metric::Step(report) => {
                assert_eq!(*step, report.step as u64);
                assert_eq!(value("train/loss"), report.loss as f32);
                assert_eq!(value("train/learning_rate"), report.learning_rate as f32);
            }
            Metric::Evaluation(report) => {
                assert_eq!(*step, report.step as u64);
                assert_eq!(value("held_out_loss/long"), report.sources[0].loss as f32);
                assert_eq!(value("held_out_loss/short"), report.sources[1].loss as f32);
            }
            Metric::Graded(report) => {
                assert_eq!(*step, report.step as u64);
                assert_eq!(value("graded/accuracy"), report.correct as f32 / 2.0);
            }
        }
    }
    // Where another program can look at them: see tests/parity/check_events.py.
    if let Some(out) = std::env::var_os("MIXDISTILL_EVENTS_OUT") {
        let out = Path::new(&out);
        for name in ["metrics.jsonl", "tensorboard"] {
            let from = config.out.join(name);
            if from.is_dir() {
                for entry in std::fs::read_dir(from).unwrap() {
                    let path = entry.unwrap().path();
                    std::fs::copy(&path, out.join(path.file_name().unwrap())).unwrap();
                }
            } else {
                std::fs::copy(from, out.join(name)).unwrap();
            }
        }
    }
}

#[test]
fn tensorboard_forgets_what_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::new(folder.path(), 0).unwrap();
    board.observe(&Event::RolledBack { from: 9, to: 4, evaluation_due: false }).unwrap();
    drop(TensorBoard::new(folder.path(), 7).unwrap());
    let files = events(folder.path());
    assert_eq!(files.len(), 2, "a process never writes into another's file");
    assert_eq!(files[0][1], (5, Read::Start));
    assert_eq!(files[1][1], (8, Read::Start));
}

#[test]
fn answers_during_training_are_graded_shown_and_stored() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small(&folder.path().join("run"));
    config.evaluation.during_training = 3;
    config.evaluation.samples = 2;
    quiet(&config, RunMode::New).unwrap();
    let metrics = read_metrics(&config.out.join("metrics.jsonl")).unwrap();
    let graded: Vec<&GradedReport> = metrics
        .iter()
        .filter_map(|metric| if let Metric::Graded(graded) = metric { Some(graded) } else { None })
        .collect();
    assert_eq!(graded.iter().map(|g| (g.step, g.questions)).collect::<Vec<_>>(), [(2, 3), (4, 3)]);
    let text = std::fs::read_to_string(config.out.join("samples.jsonl")).unwrap();
    let samples: Vec<SampleAnswer> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.iter().map(|s| s.step).collect::<Vec<_>>(), [2, 2, 4, 4]);
    assert_eq!(samples[0].problem, samples[2].problem);

    // The same weights as a run that looks at nothing.
    let mut blind = small(&folder.path().join("blind"));
    blind.train.evaluate_every = 0;
    quiet(&blind, RunMode::New).unwrap();
    let weights = |config: &RunConfig| std::fs::read(config.out.join("model/model.safetensors"));
    assert!(weights(&config).unwrap() == weights(&blind).unwrap());
}

struct Rows(Vec<Row>);

impl RowStream for Rows {
    fn rows_per_epoch(&self) -> usize {
        self.0.len()
    }

    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
        Ok(range.map(|n| Row { number: n, ..self.0[n as usize % self.0.len()].clone() }).collect())
    }
}

/// Generates, with randomness of its own, and says how often it was asked.
struct Asked(usize);

impl Grader<DecoderLm> for Asked {
    fn grade(
        &mut self,
        model: &DecoderLm,
        step: usize,
        context: &Context<'_>,
    ) -> Result<(GradedReport, Vec<SampleAnswer>)> {
        self.0 += 1;
        let config = mixdistill::model::GenerateConfig {
            max_new_tokens: 5,
            temperature: 1.0,
            ..Default::default()
        };
        common::generate(model, &[vec![1, 2, 3]], &[], &config)?;
        context.task(Task::Answer, 1).update(1)?;
        let report = GradedReport {
            step,
            questions: 1,
            correct: 0,
            mean_tokens: 5.0,
            hit_limit: 1.0,
            seconds: 0.0,
        };
        Ok((report, vec![]))
    }
}

#[test]
fn evaluating_and_grading_change_no_random_choice_of_the_training() {
    let objective = mixdistill::model::Objective {
        neftune_alpha: 5.0,
        ..mixdistill::model::Objective::default()
    };
    let train = |evaluate_every, grader: Option<&mut dyn Grader<DecoderLm>>| {
        let lora = mixdistill::model::LoraConfig { rank: 2, dropout: 0.3, ..Default::default() };
        let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        let config = TrainConfig {
            steps: Some(6),
            batch_size: 2,
            learning_rate: 1e-2,
            evaluate_every,
            objective,
            ..TrainConfig::default()
        };
        let mut learner = Learner::new(model.with_lora(&lora, 1).unwrap(), config).unwrap();
        let data = rows(&[(12, 3), (5, 4), (9, 1), (20, 2), (7, 6)]);
        let held_out = [HeldOut { name: "held".into(), rows: data[..2].to_vec() }];
        let stop = StopFlag::default();
        let mut observer = ();
        let grader = grader.map(|grader| grader as &mut dyn Grader<DecoderLm>);
        let surroundings = FitOptions {
            held_out: &held_out,
            grader,
            observer: Some(&mut observer),
            stop: stop.clone(),
            checkpoints: None,
        };
        learner.fit(&mut Rows(data), surroundings).unwrap();
        named_tensors(learner.model()).unwrap()
    };
    let mut asked = Asked(0);
    let looked_at = train(1, Some(&mut asked));
    assert_eq!(asked.0, 5, "at each step but the last, which a run grades by itself");
    assert!(looked_at == train(0, None));
}

/// Asks for a stop in the middle of its work, at one step.
struct StopsAt<'a>(usize, &'a StopFlag);

impl Grader<DecoderLm> for StopsAt<'_> {
    fn grade(
        &mut self,
        _: &DecoderLm,
        step: usize,
        context: &Context<'_>,
    ) -> Result<(GradedReport, Vec<SampleAnswer>)> {
        if step == self.0 {
            self.1.request();
        }
        let report = GradedReport {
            step,
            questions: 2,
            correct: 1,
            mean_tokens: 3.0,
            hit_limit: 0.0,
            seconds: 0.0,
        };
        context.task(Task::Answer, 2).update(1)?;
        Ok((report, vec![]))
    }
}

#[test]
fn a_stop_gives_grading_up_and_it_is_made_after_the_resume() {
    let config = TrainConfig {
        steps: Some(6),
        batch_size: 2,
        learning_rate: 1e-2,
        evaluate_every: 2,
        keep_best: true,
        ..TrainConfig::default()
    };
    let data = rows(&[(12, 3), (5, 4), (9, 1), (20, 2), (7, 6)]);
    let held_out = [HeldOut { name: "held".into(), rows: data[..2].to_vec() }];
    let start = || {
        let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        Learner::new(model, config.clone()).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, learner: &mut Learner<DecoderLm>, stop_at| {
        let store = CheckpointStore::new(folder.path().join(name), 9, serde_json::json!({}));
        let path = folder.path().join(format!("{name}.jsonl"));
        if store.newest_path().unwrap().is_some() {
            learner.resume(&store).unwrap();
        }
        let reached =
            ResumePoint { step: learner.step(), evaluation_due: learner.evaluation_due() };
        let mut file = MetricsFile::resume(&path, reached).unwrap();
        let stop = StopFlag::default();
        let mut grader = StopsAt(stop_at, &stop);
        let surroundings = FitOptions {
            held_out: &held_out,
            grader: Some(&mut grader),
            observer: Some(&mut file),
            stop: stop.clone(),
            checkpoints: Some(&store),
        };
        learner.fit(&mut Rows(data.clone()), surroundings).unwrap()
    };
    let results = |name: &str, learner: &Learner<DecoderLm>| {
        let mut metrics = read_metrics(&folder.path().join(format!("{name}.jsonl"))).unwrap();
        for metric in &mut metrics {
            match metric {
                Metric::Step(report) => report.seconds = 0.0,
                Metric::Evaluation(report) => report.seconds = 0.0,
                Metric::Graded(_) => {}
            }
        }
        (metrics, named_tensors(learner.model()).unwrap())
    };
    let mut straight = start();
    assert!(!train("straight", &mut straight, 99).stopped);
    for stop_at in [2, 4] {
        let name = format!("stopped{stop_at}");
        let mut first = start();
        let outcome = train(&name, &mut first, stop_at);
        assert!(outcome.stopped && outcome.step == stop_at && first.evaluation_due());
        // And once more at the same place.
        let mut again = start();
        assert!(train(&name, &mut again, stop_at).stopped);
        let mut second = start();
        let outcome = train(&name, &mut second, 99);
        assert!(!outcome.stopped && outcome.step == 6);
        assert!(results(&name, &second) == results("straight", &straight), "{stop_at}");
    }
}

/// Writes down the kinds of events.
#[derive(Default)]
struct Kinds(Vec<&'static str>);

impl Observer for Kinds {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.0.push(match event {
            Event::Start { .. } => "start",
            Event::Step(_) => "step",
            Event::Evaluation(_) => "evaluation",
            Event::Saving { .. } => "saving",
            Event::Checkpoint { .. } => "checkpoint",
            Event::End(_) => "end",
            _ => return Ok(()),
        });
        Ok(())
    }
}

#[test]
fn events_come_in_order_and_an_observers_error_ends_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(folder.path(), 2, serde_json::json!({}));
    let config = TrainConfig {
        steps: Some(2),
        batch_size: 2,
        evaluate_every: 1,
        checkpoint_every: 1,
        ..TrainConfig::default()
    };
    let data = rows(&[(12, 3), (5, 4)]);
    let held_out = [HeldOut { name: "held".into(), rows: data.clone() }];
    let start = || {
        let model = tiny(Architecture::Llama).init(1, &devices()[0].clone().autodiff()).unwrap();
        Learner::new(model, config.clone()).unwrap()
    };
    let (stop, mut kinds) = (StopFlag::default(), Kinds::default());
    let surroundings = FitOptions {
        held_out: &held_out,
        grader: None,
        observer: Some(&mut kinds),
        stop: stop.clone(),
        checkpoints: Some(&store),
    };
    start().fit(&mut Rows(data.clone()), surroundings).unwrap();
    let step = ["step", "saving", "checkpoint", "evaluation"];
    let expected: Vec<&str> =
        ["start"].into_iter().chain(step).chain(step).chain(["end"]).collect();
    assert_eq!(kinds.0, expected);

    struct Fails;
    impl Observer for Fails {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            match event {
                Event::Step(report) if report.step == 2 => {
                    Err(mixdistill::Error::config("mine", "I have seen enough", "Go home"))
                }
                _ => Ok(()),
            }
        }
    }
    let surroundings = FitOptions {
        held_out: &[],
        grader: None,
        observer: Some(&mut Fails),
        stop: stop.clone(),
        checkpoints: Some(&store),
    };
    let error = start().fit(&mut Rows(data), surroundings).unwrap_err().to_string();
    assert!(error.contains("I have seen enough"), "{error}");
}
