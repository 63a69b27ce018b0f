//! Runs the cells of a study, and takes up one that was stopped.
//!
//! ```text
//! study/
//!   settings.toml                            what was asked
//!   cells/STUDENT/Long-0.20/seed-1/          a run directory, with bench-NAME.jsonl beside it
//!   untuned/STUDENT/seed-1/                  answers of the student before any training
//!   study.json  report.html  report.md  figures/
//! ```

use super::config::{Cell, StudyConfig};
use super::results::{Study, StudyData, TestedAnswers};
use super::style::StyleShift;
use super::{report, style};
use crate::data::{OverlapKind, overlaps};
use crate::device;
use crate::error::{Error, Result};
use crate::eval::{Answer, Benchmark, EvaluateConfig, Judged, evaluate};
use crate::files::{FolderLock, remove_folder};
use crate::model::{DecoderLm, ModelFolder};
use crate::recipe::{self, Prepared, RunConfig, RunDirectory, RunMode, Summary, student};
use crate::train::{Progress, StopFlag};
use burn::tensor::Device;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Says that a directory is a study's.
const MARK: &str = ".mixdistill-study";

/// Runs a study to its report; cells that are done are skipped. `None` after a stop.
///
/// `say` is given what a person would read, line by line.
///
/// # Errors
/// Whatever is wrong with settings, files or directory, before any training; later, what training
/// gives.
pub fn study(
    config: &StudyConfig,
    command: &str,
    stop: &StopFlag,
    say: &mut dyn FnMut(&str),
) -> Result<Option<Study>> {
    config.validate()?;
    let out = &config.out;
    let holds = out.is_dir()
        && !out.join(MARK).is_file()
        && fs::read_dir(out).map_err(|e| Error::io("read", out, e))?.next().is_some();
    if holds {
        return Err(Error::RunDirectory {
            path: out.clone(),
            what: "it holds files that are not a study's".into(),
            hint: "Choose an empty directory".into(),
        });
    }
    fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    write(&out.join(MARK), "")?;
    let _lock = FolderLock::take(out)?;
    let benchmarks = read_benchmarks(config)?;
    // Whatever is wrong with the data of a comparison or a student shows here.
    let mut data = Data::default();
    for cell in config.cells().iter().filter(|cell| cell.seed == config.seeds[0]) {
        data.of(config, cell)?;
    }
    write(&out.join("settings.toml"), &toml_of(config)?)?;
    let mut warnings = contamination(config, &mut data, &benchmarks)?;
    warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));

    let mut tested = StudyData::default();
    for (number, seed) in config.seeds.iter().enumerate() {
        for (index, student) in config.students.iter().enumerate() {
            let cell = Cell { student: index, comparison: 0, alpha: 0.0, seed: *seed };
            // An untuned student that was read from a folder is the same for all seeds.
            let run = config.run_config(&cell)?;
            if run.base_model.is_some() && number > 0 {
                continue;
            }
            let folder = out.join("untuned").join(&student.name).join(format!("seed-{seed}"));
            if stop.is_requested() {
                return Ok(None);
            }
            say(&format!("\n=== {}, untuned ===", student.name));
            let answers = untuned(config, &cell, &mut data, &benchmarks, &folder)?;
            tested.untuned.insert((index, *seed), answers);
        }
    }
    let cells = config.cells();
    let mut progress = Progress::new("cells", cells.len() as u64);
    for (number, cell) in cells.iter().enumerate() {
        if stop.is_requested() {
            return Ok(None);
        }
        say(&format!("\n=== {} ({} of {}) ===", name(config, cell), number + 1, cells.len()));
        let Some((summary, answers)) = train(config, cell, &mut data, &benchmarks, stop, say)?
        else {
            return Ok(None);
        };
        tested.cells.push((cell.clone(), summary, answers));
        progress.update(number as u64 + 1, String::new);
    }
    progress.finish();
    let style = match config.style_answers {
        0 => vec![],
        _ => style_shifts(config, &mut data, say)?,
    };
    warnings.extend(tested.differences(config));
    let study = Study::new(config, command, &tested, warnings, style);
    report::write_all(&study, &tested, config)?;
    Ok(Some(study))
}

fn name(config: &StudyConfig, cell: &Cell) -> String {
    let comparison = &config.comparisons[cell.comparison];
    format!(
        "{}, {}: {:.0} % {}, seed {}",
        config.students[cell.student].name,
        comparison.name,
        100.0 * cell.alpha,
        comparison.strong,
        cell.seed
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| Error::io("write", path, e))
}

fn toml_of(config: &StudyConfig) -> Result<String> {
    toml::to_string_pretty(config)
        .map_err(|e| Error::config("study", e.to_string(), "This is a defect; please report it"))
}

/// Prepared data, by what it depends on: comparison and student, not share and seed.
#[derive(Default)]
struct Data(BTreeMap<(usize, usize), Prepared>);

impl Data {
    /// The data of a cell, in its own mixture.
    fn of(&mut self, config: &StudyConfig, cell: &Cell) -> Result<Prepared> {
        let run = config.run_config(cell)?;
        let key = (cell.comparison, cell.student);
        if let Some(prepared) = self.0.get(&key) {
            return prepared.with_mixture(&run);
        }
        let prepared = Prepared::new(&run)?;
        self.0.insert(key, prepared.clone());
        Ok(prepared)
    }
}

fn read_benchmarks(config: &StudyConfig) -> Result<Vec<Benchmark>> {
    let read = |path: &std::path::PathBuf| {
        let mut benchmark = Benchmark::read(path)?;
        if let Some(limit) = config.benchmark_problems {
            benchmark.problems.truncate(limit);
        }
        Ok(benchmark)
    };
    config.benchmarks.iter().map(read).collect()
}

/// Problems that are both trained on and tested with.
fn contamination(
    config: &StudyConfig,
    data: &mut Data,
    benchmarks: &[Benchmark],
) -> Result<Vec<String>> {
    let mut warnings = vec![];
    for (comparison, of) in config.comparisons.iter().enumerate() {
        let cell = Cell { student: 0, comparison, alpha: 0.0, seed: config.seeds[0] };
        let prepared = data.of(config, &cell)?;
        let pairs = prepared.mixture.pairs();
        let training: Vec<&str> = (0..pairs.len()).map(|index| pairs.problem(index)).collect();
        let held_out: Vec<&str> =
            prepared.questions.iter().map(|question| question.problem.as_str()).collect();
        let files = benchmarks.iter().map(|benchmark| {
            let problems = benchmark.problems.iter().map(|problem| problem.problem.as_str());
            (benchmark.name.as_str(), problems.collect::<Vec<_>>())
        });
        for (name, test) in [("the held-out problems", held_out)].into_iter().chain(files) {
            let found = overlaps(training.iter().copied(), test.iter().copied());
            let same = found.iter().filter(|o| o.kind == OverlapKind::SameText).count();
            let alike = found.len() - same;
            if same > 0 {
                warnings.push(format!(
                    "{}: {same} of {} problems of {name} are trained on, word for word",
                    of.name,
                    test.len()
                ));
            }
            if alike > 0 {
                warnings.push(format!(
                    "{}: {alike} of {} problems of {name} share thirteen words in a row with one \
                     that is trained on (problems made from one template do so too)",
                    of.name,
                    test.len()
                ));
            }
        }
    }
    Ok(warnings)
}

/// The answers of a student to benchmark files, kept in a folder.
fn on_benchmarks(
    model: &DecoderLm,
    run: &RunConfig,
    prepared: &Prepared,
    benchmarks: &[Benchmark],
    folder: &Path,
) -> Result<Vec<(String, Vec<Judged>)>> {
    let config = EvaluateConfig { generate: run.generate.clone(), ..EvaluateConfig::default() };
    let asked = benchmarks.iter().map(|benchmark| {
        let store = folder.join(format!("bench-{}.jsonl", benchmark.name));
        let count = benchmark.problems.len() as u64;
        let mut progress = Progress::new("answer", count);
        let answers =
            evaluate(model, &prepared.answering(), benchmark, &config, &store, &mut |done| {
                progress.update(done as u64, String::new);
            })?;
        Ok((benchmark.name.clone(), answers))
    });
    asked.collect()
}

/// The answers of a student before any training.
fn untuned(
    config: &StudyConfig,
    cell: &Cell,
    data: &mut Data,
    benchmarks: &[Benchmark],
    folder: &Path,
) -> Result<TestedAnswers> {
    let run = config.run_config(cell)?;
    let prepared = data.of(config, cell)?;
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let held_out = Benchmark::of_questions("held-out", &prepared.questions);
    let all: Vec<Benchmark> = [held_out].into_iter().chain(benchmarks.iter().cloned()).collect();
    let device = device::by_name(&run.backend)?;
    let model = student(&run, &prepared, &device)?;
    let answers = on_benchmarks(&model, &run, &prepared, &all, folder)?;
    Ok(TestedAnswers::of_benchmarks(answers))
}

/// Trains a cell and tests its student. `None` after a stop.
fn train(
    config: &StudyConfig,
    cell: &Cell,
    data: &mut Data,
    benchmarks: &[Benchmark],
    stop: &StopFlag,
    say: &mut dyn FnMut(&str),
) -> Result<Option<(Summary, TestedAnswers)>> {
    let run = config.run_config(cell)?;
    let prepared = data.of(config, cell)?;
    let mode = match RunDirectory::holds_run(&run.out) {
        true => RunMode::Resume,
        false => RunMode::New,
    };
    let mut quiet = |line: &str| {
        if line.starts_with("after training") || line.starts_with("resuming") {
            say(line);
        }
    };
    let summary = recipe::run_on(&run, prepared.clone(), mode, stop, &mut quiet)?;
    if summary.outcome.stopped {
        return Ok(None);
    }
    if !config.keep_checkpoints {
        remove_folder(&run.out.join("checkpoints"))?;
    }
    let held_out = read_answers(&run.out.join("after.jsonl"))?;
    let mut answers = TestedAnswers::of_questions(&held_out);
    if !benchmarks.is_empty() {
        let model = trained(&run, &prepared)?;
        let files = on_benchmarks(&model, &run, &prepared, benchmarks, &run.out)?;
        answers.extend(TestedAnswers::of_benchmarks(files));
    }
    Ok(Some((summary, answers)))
}

fn read_answers(path: &Path) -> Result<Vec<Answer>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            let place = crate::error::Place::line(path, index + 1);
            Error::data(place, e.to_string(), "Remove the cell's folder and start again")
        })
    };
    text.lines().enumerate().map(parse).collect()
}

/// The student that a cell's run has written.
fn trained(run: &RunConfig, prepared: &Prepared) -> Result<DecoderLm> {
    let device: Device = device::by_name(&run.backend)?;
    match (&run.lora, &prepared.base) {
        (Some(_), Some(base)) => base.load(&device)?.with_adapter(&run.out.join("adapter")),
        _ => ModelFolder::open(&run.out.join("model"))?.load(&device),
    }
}

/// For each student and comparison, what training on the strong source alone made likelier.
fn style_shifts(
    config: &StudyConfig,
    data: &mut Data,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<StyleShift>> {
    say("\n=== style: ranks of generated tokens under the untuned student ===");
    let mut shifts = vec![];
    for student_index in 0..config.students.len() {
        for comparison in 0..config.comparisons.len() {
            for alpha in [1.0, 0.0] {
                let seed = config.seeds[0];
                let cell = Cell { student: student_index, comparison, alpha, seed };
                let run = config.run_config(&cell)?;
                let prepared = data.of(config, &cell)?;
                let untuned = student(&run, &prepared, &device::by_name(&run.backend)?)?;
                let answers = read_answers(&run.out.join("after.jsonl"))?;
                let answers = &answers[..answers.len().min(config.style_answers)];
                let tokens = style::ranks(&untuned, &prepared, answers)?;
                let of = &config.comparisons[comparison];
                let source = if alpha == 1.0 { &of.strong } else { &of.weak };
                let name = &config.students[student_index].name;
                shifts.push(StyleShift::new(name, source, tokens));
            }
        }
    }
    Ok(shifts)
}
