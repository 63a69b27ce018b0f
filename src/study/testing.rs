//! Trains and tests the students of a study, and reuses finished cells.

use super::arms::ArmKind;
use super::config::Cell;
use super::machine::Machine;
use super::part::sees_day;
use super::pretrained::base_weights;
use super::results::TestedAnswers;
use super::run::{HINT, Work, hint, with_hint};
use super::stored::{AskedAs, Asking, StoredCell};
use crate::context::Context;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::{Answer, Benchmark, EvaluateConfig, GradedAnswer, LazyModel, evaluate_lazily};
use crate::files::{LastLine, read_values, remove_folder, same_settings};
use crate::model::{DecoderLm, GenerateConfig, LoadOptions, LoraConfig, Precision, TextModel};
use crate::recipe::{
    self, PartEvents, Prepared, RunConfig, RunDirectory, RunMode, Summary, student,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Answers by benchmark.
type Asked = Vec<(String, Vec<GradedAnswer>)>;
/// The benchmark of the held-out problems.
const HELD_OUT: &str = "held-out";

impl Work<'_, '_> {
    /// Tests a student before training.
    pub(super) fn untuned(&mut self, cell: &Cell) -> Result<TestedAnswers> {
        let folder = self.config.untuned_folder(cell);
        if !folder.exists()
            && let Some(found) = self.stored_untuned(cell)?
        {
            self.took(&found, &folder);
            return Ok(found.answers);
        }
        let run = self.run_config(cell)?;
        let prepared = self.data(cell, &run)?;
        let asking = self.asking(cell, &run, &prepared);
        let stored = self.config.result_file(&Cell { arm: ArmKind::Untuned, ..cell.clone() });
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let held_out = held_out(&run, &prepared);
        let device = device::by_name(&run.backend)?;
        let load =
            || student(&run, &prepared, &device, self.context)?.with_precision(run.precision);
        let held_out = self.asked(&load, &run, &prepared, &[held_out], &folder)?;
        let mut answers = TestedAnswers::of_benchmarks(held_out);
        let files = self.benchmarks(cell.comparison);
        let files = self.asked(&load, &run, &prepared, files, &folder)?;
        answers.extend(TestedAnswers::of_benchmarks(files));
        self.store(StoredCell::new(asking, answers.clone(), None), &run, &stored)?;
        Ok(answers)
    }

    /// Trains a cell and tests its student, or reads its stored result if its folder is missing.
    pub(super) fn finish(
        &mut self,
        cell: &Cell,
        run: &RunConfig,
    ) -> Result<(Summary, TestedAnswers)> {
        if !RunDirectory::holds_run(&run.out)
            && let Some(found) = self.stored(cell, run)?
        {
            self.took(&found, &run.out);
            if let Some(summary) = found.summary {
                return Ok((summary, found.answers));
            }
        }
        let prepared = self.data(cell, run)?;
        let asking = self.asking(cell, run, &prepared);
        let (summary, answers) = self.train(cell, run, &prepared)?;
        let stored = StoredCell::new(asking, answers.clone(), Some(&summary));
        self.store(stored, run, &self.config.result_file(cell))?;
        Ok((summary, answers))
    }

    /// Returns a stored cell, which must match the current settings and data.
    pub(super) fn stored(&self, cell: &Cell, run: &RunConfig) -> Result<Option<StoredCell>> {
        let path = self.config.result_file(cell);
        let Some(found) = StoredCell::read(&path)? else { return Ok(None) };
        self.check_stored(cell, run, &found, &path)?;
        Ok(Some(found))
    }

    /// Returns a stored untuned student.
    pub(super) fn stored_untuned(&self, cell: &Cell) -> Result<Option<StoredCell>> {
        self.stored(&Cell { arm: ArmKind::Untuned, ..cell.clone() }, &self.run_config(cell)?)
    }

    /// Checks that a stored cell matches the current settings and data.
    pub(super) fn check_stored(
        &self,
        cell: &Cell,
        run: &RunConfig,
        stored: &StoredCell,
        path: &Path,
    ) -> Result<()> {
        let prepared = self.unmixed(cell, run)?;
        let trained = (cell.arm != ArmKind::Untuned).then_some((run, &*prepared.fingerprint));
        let is_dated = sees_day(&prepared.chat_template);
        stored.check(path, &self.asking(cell, run, &prepared), trained, is_dated)?;
        let name = run.base_model.as_deref();
        stored.check_weights(path, name.unwrap_or_default(), base_weights(name).as_deref())
    }

    /// Records that a stored cell was used.
    pub(super) fn took(&mut self, stored: &StoredCell, folder: &Path) {
        self.stored += usize::from(!folder.exists());
        self.machines.extend(stored.machine.clone());
        self.versions.push(stored.version.clone());
    }

    /// Stores a finished cell with its machine. If it was stored before, the earlier machine is kept.
    fn store(&mut self, mut cell: StoredCell, run: &RunConfig, path: &Path) -> Result<()> {
        let name = run.base_model.as_deref();
        let weights = base_weights(name);
        // An unreadable file says nothing.
        (cell.machine, cell.base_weights) = match StoredCell::read(path) {
            Ok(Some(before)) => {
                before.check_weights(path, name.unwrap_or_default(), weights.as_deref())?;
                (before.machine, before.base_weights)
            }
            _ => (Some(Machine::here(&run.backend)), weights),
        };
        self.machines.extend(cell.machine.clone());
        self.versions.push(cell.version.clone());
        // If the claim is lost, this fails and nothing is stored.
        match &self.claims {
            Some(claims) => claims.verified(|| cell.write(path)),
            None => cell.write(path),
        }
    }

    /// Trains a cell and tests its student.
    fn train(
        &self,
        cell: &Cell,
        run: &RunConfig,
        prepared: &Prepared,
    ) -> Result<(Summary, TestedAnswers)> {
        let mode = match RunDirectory::holds_run(&run.out) {
            true => RunMode::Resume,
            false => RunMode::New,
        };
        let events = Context::new(PartEvents(self.context), self.context.stop_flag());
        let summary = recipe::run_on(run, prepared.clone(), mode, &events);
        // Advice for a single run does not apply to a study.
        let summary = summary.map_err(|error| with_hint(error, &hint(run)))?;
        if summary.outcome.stopped {
            return Err(Error::stopped("the cell has a checkpoint"));
        }
        if !self.config.keep_checkpoints {
            remove_folder(&run.out.join("checkpoints"))?;
        }
        let held_out = self.held_out_answers(cell, run, prepared)?;
        let mut answers = TestedAnswers::of_questions(&held_out);
        let load = || trained(run, self.context);
        let files = self.benchmarks(cell.comparison);
        let files = self.asked(&load, run, prepared, files, &run.out)?;
        answers.extend(TestedAnswers::of_benchmarks(files));
        Ok((summary, answers))
    }

    /// Returns how a cell's student is tested on all problems.
    fn asking(&self, cell: &Cell, run: &RunConfig, prepared: &Prepared) -> Asking {
        let held_out = held_out(run, prepared);
        let benchmarks = self.benchmarks(cell.comparison).iter().chain([&held_out]);
        let asked = benchmarks.map(|benchmark| {
            let (config, settings) = self.settings(benchmark, run, prepared);
            (benchmark.name.clone(), AskedAs::new(settings, &benchmark.first(config.limit)))
        });
        asked.collect()
    }

    /// Returns how a student is tested on a benchmark, and all settings that determine its answers.
    fn settings(
        &self,
        benchmark: &Benchmark,
        run: &RunConfig,
        prepared: &Prepared,
    ) -> (EvaluateConfig, Value) {
        let is_file = benchmark.name != HELD_OUT;
        let config = EvaluateConfig {
            instruct: self.config.instruct && is_file,
            limit: self.config.benchmark_problems.filter(|_| is_file),
            generate: run.generate.clone(),
            ..EvaluateConfig::default()
        };
        let mut settings = json!({
            "instruct": config.instruct,
            "generate": GenerateConfig { batch_size: 1, ..run.generate.clone() },
            "model": prepared.model,
            "base_model": run.base_model,
            "lora": run.lora.as_ref().map(LoraConfig::identity),
            "seed": run.seed,
            "data": prepared.fingerprint,
            "template": prepared.chat_template,
            "system": run.data.system_prompt,
            "date": run.data.date,
        });
        if run.precision != Precision::F32 {
            settings["precision"] = json!(run.precision);
        }
        if self.config.leave_out_trained && is_file {
            settings["leave_out_trained"] = true.into();
        }
        (config, settings)
    }

    /// Returns a student's answers to benchmarks, stored in a folder with their settings. The student is
    /// loaded only if answers are missing.
    fn asked(
        &self,
        load: &dyn Fn() -> Result<DecoderLm>,
        run: &RunConfig,
        prepared: &Prepared,
        benchmarks: &[Benchmark],
        folder: &Path,
    ) -> Result<Asked> {
        let mut load = load;
        let mut model = LazyModel::new(&mut load);
        let mut asked = vec![];
        for benchmark in benchmarks {
            let (config, settings) = self.settings(benchmark, run, prepared);
            let store = folder.join(format!("bench-{}.jsonl", benchmark.name));
            let path = store.with_extension("settings.json");
            same_settings(&path, &settings, |_| Ok(()), &hint(run))?;
            let text = prepared.text_interface();
            let answers =
                evaluate_lazily(&mut model, &text, benchmark, &config, &store, self.context)?;
            asked.push((benchmark.name.clone(), answers));
        }
        Ok(asked)
    }

    /// Returns the answers of a cell's student to the held-out problems, which must be the current ones.
    pub(super) fn held_out_answers(
        &self,
        cell: &Cell,
        run: &RunConfig,
        prepared: &Prepared,
    ) -> Result<Vec<Answer>> {
        let path = self.config.cell_folder(cell).join("after.jsonl");
        let answers: Vec<Answer> = read_values(&path, LastLine::Counts, HINT)?;
        let asked = answers.iter().map(|answer| (&answer.problem, &answer.reference));
        let questions = prepared.questions.iter().map(|q| (&q.problem, &q.reference));
        if !asked.eq(questions) {
            return Err(Error::RunDirectory {
                path,
                what: "its answers are not to the held-out problems of the current data".into(),
                hint: HINT.into(),
            });
        }
        // Graded by the rules of this version.
        let kind = run.evaluation.kind;
        Ok(answers.into_iter().map(|answer| answer.graded_anew(kind)).collect())
    }
}

/// Returns the held-out problems as a benchmark.
fn held_out(run: &RunConfig, prepared: &Prepared) -> Benchmark {
    Benchmark::of_questions(HELD_OUT, &prepared.questions, run.evaluation.kind)
}

/// Loads the student that a cell's run has written, in the precision of the run's test.
fn trained(run: &RunConfig, context: &Context<'_>) -> Result<DecoderLm> {
    let name = run.out.display().to_string();
    let options = LoadOptions {
        max_length: Some(run.data.max_length),
        base: run.base,
        backend: run.backend.clone(),
        ..LoadOptions::default()
    };
    TextModel::load(&name, &options, context)?.model.with_precision(run.precision)
}
