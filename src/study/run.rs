//! Runs the cells of a study, and resumes a study that was stopped.
//!
//! ```text
//! study/
//!   settings.toml                            the settings
//!   datasets.json                            datasets on the Hub, with their commits
//!   cells/STUDENT/Long-0.20/seed-1/          a run directory, which also has bench-NAME.jsonl
//!   cells/STUDENT/Long-by-rsr/seed-1/        a choice; -control and -inverse are next to it
//!   scores/STUDENT/Long.jsonl                the untuned student's scores of all answers
//!   untuned/STUDENT/Long/seed-1/             answers of the student before training
//!   results/STUDENT/Long-0.20/seed-1.json    what the report needs of a finished cell
//!   pretrained/STUDENT/1f0c.../              the pretraining run, if there is one
//!   pretrained-models/STUDENT.json           fingerprints of the pretrained models
//!   study.json  report.html  report.md  figures/
//! ```

use super::arms::{ArmKind, WEAK, check_choice};
use super::claims::{Claims, Held};
use super::config::{Cell, StudyConfig};
use super::machine::Machine;
use super::overlap::{Overlaps, Trained, contamination, without_trained};
use super::pretrained::{Ready, pretrain};
use super::results::{CellResult, LeftOutProblems, Study, StudyData, TestedAnswers};
use super::style::StyleShift;
use super::time_left::RunTimes;
use super::{report, style, warnings};
use crate::context::{Context, Event};
use crate::data::reading::Datasets;
use crate::data::{AnswersKept, ColumnMap, SourceShare};
use crate::device;
use crate::error::{Error, Result};
use crate::eval::{Benchmark, Question};
use crate::files::{WorkDir, WorkDirKind, is_of_lock};
use crate::recipe::{Prepared, RunConfig, RunDirectory, student};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Marks a directory as a study's. The file holds the date that chat templates see.
pub(super) const MARK: &str = ".mixdistill-study";
pub(super) const KIND: WorkDirKind = WorkDirKind::new("a study's", MARK);

/// The state that all steps of a study share.
pub(super) struct Work<'a, 'c> {
    pub(super) config: &'a StudyConfig,
    /// The benchmarks of all comparisons.
    benchmarks: Vec<Benchmark>,
    /// By comparison, the benchmarks without training problems, if the study leaves those out.
    own_benchmarks: BTreeMap<usize, Vec<Benchmark>>,
    pub(super) context: &'a Context<'c>,
    /// The day on which the study was started.
    pub(super) date: String,
    datasets: Datasets,
    /// By comparison and student. The data depend on neither share nor seed.
    data: BTreeMap<(usize, usize), Prepared>,
    pretrained: Vec<Ready>,
    /// Set if several processes share the study.
    pub(super) claims: Option<Claims>,
    /// The machines that trained the cells, if known.
    pub(super) machines: Vec<Machine>,
    /// The versions of the program that graded the answers, if known.
    pub(super) versions: Vec<Option<String>>,
    /// The number of cells that were read from `results/` because their folders are missing.
    pub(super) stored: usize,
}

/// The settings in the study's directory.
pub(super) const SETTINGS: &str = "settings.toml";

/// Runs a study and writes its report. Finished cells are skipped.
///
/// # Errors
/// [`Error::Stopped`]; the same call resumes the study. Errors in settings, files, or the directory are
/// returned before any training, errors of training runs later.
pub fn study(config: &StudyConfig, command: &str, context: &Context<'_>) -> Result<Study> {
    config.validate()?;
    KIND.check(&config.out).map_err(|error| how_to_share(error, &config.out))?;
    let asked = Asked::read(config, context)?;
    let directory = WorkDir::open(&config.out, KIND);
    let directory = directory.map_err(|error| how_to_share(error, &config.out))?;
    let date = date_of(&directory)?;
    let pretrained = pretrain(config, None, context).map_err(going_on)?;
    let mut begun =
        Begun::new(config, asked, Place { directory, date, claims: None }, pretrained, context)?;
    begun.tested.untuned = begun.work.test_all_untuned().map_err(going_on)?;
    begun.tested.cells = begun.work.train_all().map_err(going_on)?;
    begun.report(command)
}

/// The test problems, which are read before the study's directory is created.
pub(super) struct Asked {
    pub datasets: Datasets,
    pub benchmarks: Vec<Benchmark>,
}

impl Asked {
    pub fn read(config: &StudyConfig, context: &Context<'_>) -> Result<Self> {
        let mut datasets = Datasets::of(&config.out)?;
        let benchmarks = config.benchmarks.iter().map(|path| {
            Benchmark::read_files(&datasets.find(path, context)?, &ColumnMap::default())
        });
        let benchmarks = benchmarks.collect::<Result<Vec<_>>>()?;
        Ok(Self { datasets, benchmarks })
    }
}

/// Where a study is.
pub(super) struct Place {
    pub directory: WorkDir,
    /// The day on which it was started.
    pub date: String,
    /// The claims of the processes that share it.
    pub claims: Option<Claims>,
}

/// A study whose data have been read.
pub(super) struct Begun<'a, 'c> {
    pub work: Work<'a, 'c>,
    pub directory: WorkDir,
    pub tested: StudyData,
    warnings: Vec<String>,
}

impl<'a, 'c> Begun<'a, 'c> {
    pub fn new(
        config: &'a StudyConfig,
        asked: Asked,
        place: Place,
        pretrained: Vec<Ready>,
        context: &'a Context<'c>,
    ) -> Result<Self> {
        let Place { directory, date, claims } = place;
        let Asked { datasets, benchmarks } = asked;
        let (data, own_benchmarks) = (BTreeMap::new(), BTreeMap::new());
        let mut work = Work {
            config,
            benchmarks,
            own_benchmarks,
            context,
            date,
            datasets,
            data,
            pretrained,
            claims,
            stored: 0,
            machines: vec![],
            versions: vec![],
        };
        let mut tested = StudyData::default();
        tested.pretrained.extend(work.pretrained.iter().map(|ready| ready.line.clone()));
        // Errors in the data of a comparison or a student are found here.
        let mut warnings = work.prepare()?;
        match &work.claims {
            Some(claims) => claims.exclusively(|| work.datasets.write(&directory))?,
            None => work.datasets.write(&directory)?,
        }
        if config.leave_out_trained {
            tested.left_out = work.leave_out()?;
        }
        let mut overlaps = work.contamination()?;
        warnings.append(&mut overlaps.warnings);
        tested.overlaps = overlaps;
        for warning in &warnings {
            context.notice(format!("warning: {warning}"))?;
        }
        Ok(Self { work, directory, tested, warnings })
    }

    /// Creates the report of all cells and writes it.
    pub fn report(self, command: &str) -> Result<Study> {
        let Self { work, directory, tested, mut warnings } = self;
        let (config, context) = (work.config, work.context);
        let style = work.style_shifts().map_err(going_on)?;
        warnings.extend(warnings::of(config, &tested));
        warnings.extend(warnings::of_stored(work.stored));
        warnings.extend(warnings::of_machines(&work.machines));
        warnings.extend(warnings::of_versions(&work.versions));
        directory.write(SETTINGS, &toml_of(config)?)?;
        let study = Study::new(config, command, &tested, warnings, style, context)?;
        report::write_all(&study, &tested, config)?;
        // Repeated at the end, because earlier output has scrolled away by now.
        for warning in &study.warnings {
            context.notice(format!("warning: {warning}"))?;
        }
        Ok(study)
    }
}

/// Adds advice to the error that another process works on a study.
pub(super) fn how_to_share(error: Error, out: &Path) -> Error {
    if !is_of_lock(&error, out) {
        return error;
    }
    let hint = "Wait for it to finish, or stop it. To work on one study with several processes, start each \
                of them with --share; a part (--part) needs its own directory";
    with_hint(error, hint)
}

/// Emits the event that a part of the study begins.
pub(super) fn part(
    context: &Context<'_>,
    name: &str,
    about: &str,
    [number, of]: [usize; 2],
    seconds_left: Option<f64>,
) -> Result<()> {
    context.emit(&Event::Part { name, about, number, of, seconds_left })
}

/// Replaces the message of a stop.
pub(super) fn going_on(error: Error) -> Error {
    match error {
        Error::Stopped { .. } => {
            Error::stopped("finished cells are kept; run the same command to resume the study")
        }
        error => error,
    }
}

/// Returns the date in a study's mark, which is today for a new study.
pub(super) fn date_of(directory: &WorkDir) -> Result<String> {
    let mark = directory.join(MARK);
    match fs::read_to_string(&mark) {
        Ok(date) if !date.trim().is_empty() => Ok(date.trim().to_owned()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("read", mark, e)),
        _ => {
            let today = jiff::ZonedDateTime::now().date().to_string();
            directory.set_mark(&format!("{today}\n"))?;
            Ok(today)
        }
    }
}

/// Returns the names of a cell's student, and of its comparison, arm, and seed.
pub(super) fn name(config: &StudyConfig, cell: &Cell) -> [String; 2] {
    let comparison = &config.comparisons[cell.comparison];
    let student = config.students[cell.student].name.clone();
    let arm = match cell.arm {
        ArmKind::Share(share) => format!("{:.0}% {}", 100.0 * share, comparison.strong),
        arm => comparison.title(arm),
    };
    [student, format!("{}, {arm}, seed {}", comparison.name, cell.seed)]
}

pub(super) fn toml_of(config: &StudyConfig) -> Result<String> {
    toml::to_string_pretty(config)
        .map_err(|e| Error::config("study", e.to_string(), "This is a bug; please report it"))
}

impl Work<'_, '_> {
    /// Returns the settings of a cell's run, with the study's date for chat templates.
    pub(super) fn run_config(&self, cell: &Cell) -> Result<RunConfig> {
        let mut run = self.config.run_config(cell)?;
        if run.base_model.is_some() || run.data.chat_template.is_some() {
            run.data.date.get_or_insert_with(|| self.date.clone());
        }
        let scores = self.config.scores_file(cell, run.base_model.is_some());
        if let Some(choice) = run.mixture.choice.as_mut().filter(|c| c.by.needs_student()) {
            choice.scores = Some(scores);
        }
        for source in &mut run.data.sources {
            source.path = self.datasets.at(&source.path).to_owned();
        }
        Ok(run)
    }

    /// Reads the data of every comparison and student, and keeps the held-out problems that all students of
    /// a comparison have in common. Returns warnings.
    fn prepare(&mut self) -> Result<Vec<String>> {
        let mut warnings = vec![];
        let seed = self.config.seeds[0];
        for (comparison, of) in self.config.comparisons.iter().enumerate() {
            let mut common: Option<Vec<Question>> = None;
            let mut counts = vec![];
            for student in 0..self.config.students.len() {
                let run = self.run_config(&Cell { student, comparison, arm: WEAK, seed })?;
                let prepared = Prepared::new(&run, self.context)?;
                // Known datasets have the name with the commit here.
                for (source, read) in run.data.sources.iter().zip(&prepared.names) {
                    self.datasets.note(&source.path, read);
                }
                counts.push(prepared.questions.len());
                let own: BTreeSet<&str> =
                    prepared.questions.iter().map(|question| question.problem.as_str()).collect();
                common = Some(match common {
                    None => prepared.questions.clone(),
                    Some(mut common) => {
                        common.retain(|question| own.contains(question.problem.as_str()));
                        common
                    }
                });
                let cells =
                    of.arms().into_iter().map(|arm| Cell { student, comparison, arm, seed });
                for cell in cells.filter(|cell| !matches!(cell.arm, ArmKind::Share(_))) {
                    check_choice(&prepared, &self.run_config(&cell)?)?;
                }
                self.data.insert((comparison, student), prepared);
            }
            let common = common.unwrap_or_default();
            if counts.iter().any(|count| *count != common.len()) {
                warnings.push(format!(
                    "{}: tokenizers and length limits leave the students {counts:?} held-out problems; \
                     all are tested on the {} that they have in common",
                    of.name,
                    common.len()
                ));
            }
            if common.is_empty() && self.benchmarks.is_empty() {
                return Err(Error::config(
                    "study.comparisons",
                    format!(
                        "{}: the students have no held-out problem with an answer in common",
                        of.name
                    ),
                    "Hold out more problems with answers, or add benchmarks",
                ));
            }
            for student in 0..self.config.students.len() {
                if let Some(prepared) = self.data.get_mut(&(comparison, student)) {
                    prepared.questions.clone_from(&common);
                }
            }
        }
        Ok(warnings)
    }

    /// Returns the data of a cell, mixed for its arm.
    pub(super) fn data(&self, cell: &Cell, run: &RunConfig) -> Result<Prepared> {
        match self.data.get(&(cell.comparison, cell.student)) {
            Some(prepared) => {
                let scores = run.mixture.choice.as_ref().and_then(|choice| choice.scores.as_ref());
                if let Some(folder) = scores.and_then(|file| file.parent()) {
                    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
                }
                // Only one process at a time computes or reads them.
                let _held = match (&self.claims, scores) {
                    (Some(claims), Some(file)) => Some(self.claim_scores(claims, cell, file)?),
                    _ => None,
                };
                prepared.mixed(run, self.context)
            }
            None => Prepared::new(run, self.context),
        }
    }

    /// Returns the data of a cell, in any mixture.
    pub(super) fn unmixed(&self, cell: &Cell, run: &RunConfig) -> Result<Prepared> {
        match self.data.get(&(cell.comparison, cell.student)) {
            Some(prepared) => Ok(prepared.clone()),
            None => Prepared::new(run, self.context),
        }
    }

    /// Waits for the claim of a score file.
    fn claim_scores(&self, claims: &Claims, cell: &Cell, file: &Path) -> Result<Held> {
        let student = &self.config.students[cell.student].name;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let about = format!("the scores of {student}, {name}");
        claims.wait(&format!("{student}/scores-{name}.json"), &about, self.context)
    }

    /// Returns the training data and pretraining problems of all students of a comparison.
    fn of_students(&self, comparison: usize) -> Vec<Trained<'_>> {
        let pretrained = |student: usize| {
            let ready = self.pretrained.iter().find(|ready| ready.student == student);
            ready.map_or(&[][..], |ready| ready.problems.as_slice())
        };
        let data = self.data.range((comparison, 0)..(comparison + 1, 0));
        data.map(|((_, student), prepared)| (prepared, pretrained(*student))).collect()
    }

    /// Returns the benchmarks that a comparison's students are tested on.
    pub(super) fn benchmarks(&self, comparison: usize) -> &[Benchmark] {
        self.own_benchmarks.get(&comparison).unwrap_or(&self.benchmarks)
    }

    /// Removes the training problems of each comparison from its benchmarks, and returns how many there are.
    fn leave_out(&mut self) -> Result<LeftOutProblems> {
        let mut all = LeftOutProblems::new();
        for (comparison, of) in self.config.comparisons.iter().enumerate() {
            let students = self.of_students(comparison);
            let (kept, left_out) = without_trained(&of.name, &students, &self.benchmarks)?;
            for (benchmark, count) in left_out.iter().filter(|(_, count)| *count > 0) {
                self.context.notice(format!(
                    "{}: {count} problems of {benchmark} are training problems and are left out",
                    of.name
                ))?;
            }
            self.own_benchmarks.insert(comparison, kept);
            all.insert(comparison, left_out);
        }
        Ok(all)
    }

    /// Finds test problems that are also training problems.
    fn contamination(&self) -> Result<Overlaps> {
        let mut found = Overlaps::default();
        for (comparison, of) in self.config.comparisons.iter().enumerate() {
            let students = self.of_students(comparison);
            let benchmarks = self.benchmarks(comparison);
            found.extend(contamination(&of.name, &students, benchmarks, self.context)?);
        }
        Ok(found)
    }

    /// Tests all students before training.
    fn test_all_untuned(&mut self) -> Result<BTreeMap<(usize, usize, u64), TestedAnswers>> {
        let mut tested = BTreeMap::new();
        for cell in self.config.untuned_cells() {
            part(self.context, &self.config.students[cell.student].name, "untuned", [0, 0], None)?;
            let answers = self.untuned(&cell)?;
            tested.insert((cell.student, cell.comparison, cell.seed), answers);
        }
        Ok(tested)
    }

    /// Trains and tests all cells, with an estimate of the remaining time before each.
    fn train_all(&mut self) -> Result<Vec<CellResult>> {
        let cells = self.config.cells();
        let mut times = RunTimes::of_earlier(self.config, &cells);
        let mut done: Vec<CellResult> = vec![];
        for (number, cell) in cells.iter().enumerate() {
            self.context.check()?;
            let [student, about] = name(self.config, cell);
            let left = times.left(&cells[number..]);
            part(self.context, &student, &about, [number + 1, cells.len()], left)?;
            let start = Instant::now();
            let run = self.weighted(cell, &done)?;
            let (summary, answers) = self.finish(cell, &run)?;
            times.add(cell, start.elapsed().as_secs_f64(), &summary, &answers);
            done.push((cell.clone(), summary, answers));
        }
        Ok(done)
    }

    /// Returns the settings of a cell's run. A control gets the row counts of its choice, which is mixed
    /// first if it has not finished yet.
    pub(super) fn weighted(&self, cell: &Cell, done: &[CellResult]) -> Result<RunConfig> {
        let mut run = self.run_config(cell)?;
        if let ArmKind::Control(choice) = cell.arm {
            let choice = Cell { arm: ArmKind::Choice(choice), ..cell.clone() };
            let of_choice = self.run_config(&choice)?;
            run.mixture.weights = if let Some(rows) = rows_of(done, &choice) {
                rows
            } else if let Some(summary) = self.stored(&choice, &of_choice)?.and_then(|s| s.summary)
            {
                rows(&summary.mixture.sources)
            } else {
                rows(&self.data(&choice, &of_choice)?.report.sources)
            };
        }
        Ok(run)
    }

    /// Returns, for each student and comparison, the tokens that training on one source alone or on a choice
    /// made more likely.
    fn style_shifts(&self) -> Result<Vec<StyleShift>> {
        let mut shifts = vec![];
        if self.config.style_answers == 0 {
            return Ok(shifts);
        }
        let about = "ranks of generated tokens under the untuned student";
        part(self.context, "style", about, [0, 0], None)?;
        let seed = self.config.seeds[0];
        for (number, of_student) in self.config.students.iter().enumerate() {
            for (comparison, of) in self.config.comparisons.iter().enumerate() {
                let cell = Cell { student: number, comparison, arm: WEAK, seed };
                let run = self.run_config(&cell)?;
                let choices = (0..of.choices.len()).map(ArmKind::Choice);
                let arms = [ArmKind::Share(1.0), WEAK].into_iter().chain(choices);
                let cells = arms.map(|arm| Cell { arm, ..cell.clone() });
                let has_folder =
                    |cell: &Cell| RunDirectory::holds_run(&self.config.cell_folder(cell));
                let cells: Vec<Cell> = cells.filter(has_folder).collect();
                if cells.is_empty() {
                    continue;
                }
                let prepared = self.data(&cell, &run)?;
                let device = device::by_name(&run.backend)?;
                let untuned = student(&run, &prepared, &device, self.context)?
                    .with_precision(run.precision)?;
                for cell in cells {
                    let answers = self.held_out_answers(&cell, &run, &prepared)?;
                    let answers = &answers[..answers.len().min(self.config.style_answers)];
                    let tokens = style::ranks(&untuned, &prepared, answers, self.context)?;
                    let source = match cell.arm {
                        ArmKind::Share(1.0) => of.strong.clone(),
                        WEAK => of.weak.clone(),
                        arm => of.title(arm),
                    };
                    shifts.push(StyleShift::new(&of_student.name, &source, tokens));
                }
            }
        }
        Ok(shifts)
    }
}

/// Returns the rows of each source in the mixture of a finished cell, as weights.
pub(super) fn rows_of(done: &[CellResult], wanted: &Cell) -> Option<BTreeMap<String, f64>> {
    let (_, summary, _) = done.iter().find(|(cell, ..)| cell == wanted)?;
    Some(rows(&summary.mixture.sources))
}

fn rows(sources: &[SourceShare]) -> BTreeMap<String, f64> {
    sources.iter().map(|source| (source.name.clone(), source.rows as f64)).collect()
}

/// Advice if a study's directory does not match its settings or data.
pub(super) const HINT: &str = "Restore the old settings and data, choose another directory (out), or remove \
                    this cell's folder and its file in results/ to train it again";

/// Returns [`HINT`], plus a possible cause: the first choice of a comparison.
pub(super) fn hint(run: &RunConfig) -> String {
    match run.data.answers {
        Some(AnswersKept::All) => format!(
            "{HINT}. The first choice of a comparison makes it keep all answers to a problem, which changes \
             the data of every arm if a source has several: set data.answers = \"all\" from the start"
        ),
        _ => HINT.into(),
    }
}

/// Replaces the advice of a run's error with advice for a study.
pub(super) fn with_hint(error: Error, hint: &str) -> Error {
    match error {
        Error::RunDirectory { path, what, .. } => {
            Error::RunDirectory { path, what, hint: hint.into() }
        }
        Error::Checkpoint { path, what, hint: of_run } if of_run.contains("allow the change") => {
            Error::Checkpoint { path, what, hint: hint.into() }
        }
        error => error,
    }
}
