//! From problems to pairs, in a directory that later calls can resume.
//!
//! ```text
//! pairs/
//!   responses.jsonl   all responses, with the hashes of their requests; append-only
//!   long.jsonl        rows for training: id, problem, solution, answer
//!   short.jsonl
//!   pairs.jsonl       both answers to a problem in one row (with the feature parquet also as .parquet)
//!   left-out.jsonl    problems that were not asked, and why
//!   report.json       all counts           README.md   the card
//!   datasets.json     datasets on the Hub, with their commits
//!   config.toml       the settings of the last call, including the URLs of the servers
//!   part.json         in a part: its number and its problems; a part has no rows, pairs, report, or card
//!   outcome.json      in a finished part: the outcome of each problem
//! ```

use super::card::card;
use super::collect::{Collected, collect};
use super::config::{Keep, MakePairsConfig, TeacherConfig};
use super::parts::{keep_outcome, own_problems};
use super::report::{LengthStatistics, PairsReport, ProblemCounts};
use super::round::{Chosen, Role, first_request};
use super::server::ServerTeacher;
use super::sieve::sieve;
use super::store::Store;
use super::{LocalTeacher, Teacher};
use crate::context::{Context, Event, Task, TaskProgress};
use crate::data::ColumnMap;
use crate::data::reading::Datasets;
use crate::error::{Error, Result};
use crate::eval::{Benchmark, BenchmarkProblem};
use crate::files::{PART, WorkDir, WorkDirKind, check_part, json_lines};
use crate::part::Part;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const RESPONSES: &str = "responses.jsonl";
pub(super) const CONFIG: &str = "config.toml";
const LONG: &str = "long.jsonl";
const SHORT: &str = "short.jsonl";
pub(super) const LEFT_OUT: &str = "left-out.jsonl";
const PAIRS: &str = "pairs.jsonl";
const PARQUET: &str = "pairs.parquet";

const KIND: WorkDirKind = WorkDirKind::new("a pairs directory's", ".mixdistill-pairs")
    .or_unmarked(|path| path.join(RESPONSES).is_file());

/// A directory of pairs, locked by this process.
#[derive(Clone, Debug)]
pub struct PairsDirectory {
    directory: WorkDir,
    part: Option<Part>,
}

impl PairsDirectory {
    /// Performs the checks of [`PairsDirectory::open`] without creating or changing anything.
    ///
    /// # Errors
    /// Same as [`WorkDirKind::check`].
    pub fn check(path: &Path) -> Result<()> {
        KIND.check(path)
    }

    /// Opens or creates a directory of pairs.
    ///
    /// # Errors
    /// Same as [`WorkDir::open`]; [`Error::RunDirectory`] if it belongs to a part.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, None)
    }

    /// Opens or creates a directory for the responses to one part of the problems. It has no rows:
    /// [`join_pairs`](super::join_pairs) writes them from all parts.
    ///
    /// # Errors
    /// Same as [`WorkDir::open`]; [`Error::RunDirectory`] if it belongs to another part or to no part.
    pub fn open_part(path: &Path, part: Part) -> Result<Self> {
        Self::open_for(path, Some(part))
    }

    fn open_for(path: &Path, part: Option<Part>) -> Result<Self> {
        check_part(path, &path.join(PART), part, path.join(RESPONSES).is_file())?;
        let directory = WorkDir::open_marked(path, KIND)?;
        Ok(Self { directory, part })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the part that the directory is for, if any.
    pub(super) fn part(&self) -> Option<Part> {
        self.part
    }

    /// Returns the directory itself.
    pub(super) fn files(&self) -> &WorkDir {
        &self.directory
    }

    /// Returns whether the directory has rows of an earlier call.
    fn has_rows(&self) -> bool {
        [LONG, SHORT]
            .iter()
            .any(|name| fs::metadata(self.directory.join(name)).is_ok_and(|file| file.len() > 0))
    }
}

/// Asks two teachers to solve problems with known answers and keeps the correct answers.
///
/// Each response is saved when it arrives, before it is graded. The same call resumes after a crash or a stop
/// and repeats no request. After a change of settings, only requests that the change affects are sent again.
/// If `asks` is false, no teacher is asked, and the pairs come from the saved responses. Each call that
/// finishes rewrites the files other than the responses, unless it keeps no answer and an earlier call did.
///
/// # Errors
/// [`Error::Stopped`]: all responses are saved, and the same call resumes. [`Error::Config`]; [`Error::Io`];
/// [`Error::Data`] for problems or responses that cannot be read; [`Error::Server`] if a teacher stops
/// answering: all responses so far are saved.
pub fn make_pairs(
    config: &MakePairsConfig,
    out: &PairsDirectory,
    asks: bool,
    context: &Context<'_>,
) -> Result<PairsReport> {
    let mut config = config.clone();
    config.validate()?;
    if !asks {
        let path = out.directory.join(CONFIG);
        let earlier = path.is_file().then(|| MakePairsConfig::read(&path)).transpose()?;
        if let Some(earlier) = earlier {
            name_models(&mut config, &earlier);
        }
    }
    let problems = Problems::read(&mut config, out, context)?;
    let long = Made::new("long", &mut config.long, asks, None, context)?;
    let other = if let Made::Server(server) = &long { Some(server.as_ref()) } else { None };
    let short = Made::new("short", &mut config.short, asks, other, context)?;
    problems.ask(&config, [long.teacher(), short.teacher()], out, asks, context)
}

/// Same as [`make_pairs`], with your own teachers, long and short. Of the teachers' settings, only `n`,
/// `reasoning`, and `price` are used.
///
/// # Errors
/// Same as [`make_pairs`].
pub fn make_pairs_with(
    config: &MakePairsConfig,
    teachers: [&dyn Teacher; 2],
    out: &PairsDirectory,
    context: &Context<'_>,
) -> Result<PairsReport> {
    config.validate_problems()?;
    let mut config = config.clone();
    Problems::read(&mut config, out, context)?.ask(&config, teachers, out, true, context)
}

/// Takes the model of the earlier call if the settings name none.
fn name_models(config: &mut MakePairsConfig, earlier: &MakePairsConfig) {
    for (now, before) in [(&mut config.long, &earlier.long), (&mut config.short, &earlier.short)] {
        if let (Some(now), Some(before)) = (&mut now.server, &before.server)
            && now.model.is_empty()
        {
            now.model.clone_from(&before.model);
        }
    }
}

/// A teacher made from settings.
enum Made {
    Server(Box<ServerTeacher>),
    Local(Box<LocalTeacher>),
}

impl Made {
    /// Makes the teacher and sets its model in the settings. Shares the request rate of the `other` teacher
    /// if both have the same URL.
    fn new(
        role: &str,
        config: &mut TeacherConfig,
        asks: bool,
        other: Option<&ServerTeacher>,
        context: &Context<'_>,
    ) -> Result<Self> {
        let Some(settings) = &mut config.server else {
            let local = config.local.clone().unwrap_or_default();
            return Ok(Self::Local(Box::new(LocalTeacher::load(local, context)?)));
        };
        if settings.model.is_empty() {
            if !asks {
                let key = format!("{role}.server.model");
                let what = "it is empty, and the server is not asked for it";
                return Err(Error::config(key, what, "Set the model whose answers are saved"));
            }
            context.notice(format!("{role}: asking {} for its model", settings.url))?;
        }
        let mut teacher = ServerTeacher::new(settings.clone(), config.concurrency, context)?;
        if let Some(other) = other.filter(|other| other.config().url == settings.url) {
            teacher = teacher.with_pace_of(other);
        }
        if asks && teacher.shows_key() {
            context.notice(format!(
                "{role}: the key is sent to {} without encryption; use https if possible",
                settings.url
            ))?;
        }
        settings.clone_from(teacher.config());
        Ok(Self::Server(Box::new(teacher)))
    }

    fn teacher(&self) -> &dyn Teacher {
        match self {
            Self::Server(teacher) => teacher.as_ref(),
            Self::Local(teacher) => teacher.as_ref(),
        }
    }
}

/// The problems, and the benchmarks to compare them with.
struct Problems {
    benchmark: Benchmark,
    against: Vec<Benchmark>,
}

impl Problems {
    /// Reads them, and sets the commits of datasets on the Hub in the settings.
    fn read(
        config: &mut MakePairsConfig,
        out: &PairsDirectory,
        context: &Context<'_>,
    ) -> Result<Self> {
        let mut datasets = Datasets::of(out.path())?;
        let mut read = |path: &mut PathBuf| {
            let files = datasets.find(path, context)?;
            files.name().clone_into(path);
            Benchmark::read_files(&files, &ColumnMap::default())
        };
        let benchmark = read(&mut config.problems)?.first(config.limit);
        let against = config.benchmarks.iter_mut().map(read).collect::<Result<_>>()?;
        datasets.write(&out.directory)?;
        Ok(Self { benchmark, against })
    }

    fn ask(
        self,
        config: &MakePairsConfig,
        [long, short]: [&dyn Teacher; 2],
        out: &PairsDirectory,
        asks: bool,
        context: &Context<'_>,
    ) -> Result<PairsReport> {
        let without_answer = self.benchmark.without_answer.len();
        let left_out_rows = self.benchmark.left_out;
        let (problems, left_out, mut counts) =
            sieve(self.benchmark.problems, &self.against, config.near_duplicates, context)?;
        counts.without_answer = without_answer;
        counts.unusable = left_out_rows.rows();
        if !left_out_rows.is_empty() {
            context.notice(format!("unusable and left out: {left_out_rows}"))?;
        }
        if problems.is_empty() {
            let what = format!("none of its {} problems remains", counts.read);
            let hint = "Use other problems; all of these are in the benchmarks";
            return Err(Error::data(crate::Place::file(&config.problems), what, hint));
        }
        let roles = [
            Role { name: "long", teacher: long, config: &config.long },
            Role { name: "short", teacher: short, config: &config.short },
        ];
        let problems = own_problems(problems, config, &roles, out)?;
        let store = Store::open(&out.directory.join(RESPONSES), context)?;
        tell_earlier(&store, context)?;
        let earlier = out.take_settings(config, |is_other| {
            !is_other || store.len() == 0 || knows_any(&problems, config, &roles, &store)
        })?;
        let is_part = out.part.is_some();
        let collected = collect(&problems, config, roles, &store, asks, is_part, context)
            .map_err(|error| kept_so_far(error, &store, out.path()))?;
        let left_out = json_lines(&left_out, &out.directory.join(LEFT_OUT))?;
        if is_part {
            keep_outcome(&counts, &collected, &left_out, out)?;
            counts.asked = problems.len();
            let files = Files::new(config, out, &store, &problems, collected);
            let lengths = files.lengths()?;
            return Ok(files.report(counts, lengths));
        }
        let files = Files::new(config, out, &store, &problems, collected);
        files.finish(counts, &left_out, earlier, context)
    }
}

impl PairsDirectory {
    /// Replaces the settings of an earlier call and returns their text. `may` decides whether that is
    /// allowed; its argument is whether the earlier settings are for other problems.
    pub(super) fn take_settings(
        &self,
        config: &MakePairsConfig,
        may: impl FnOnce(bool) -> bool,
    ) -> Result<Option<String>> {
        let path = self.directory.join(CONFIG);
        let text = fs::read_to_string(&path).ok();
        let earlier = text.as_deref().and_then(|text| MakePairsConfig::from_toml(text).ok());
        let is_other = earlier.is_some_and(|earlier| earlier.problems != config.problems);
        // Never overwrites pairs of other problems.
        if !may(is_other) {
            return Err(Error::RunDirectory {
                path: self.path().to_owned(),
                what: "it holds pairs of other problems".into(),
                hint: "Choose another directory".into(),
            });
        }
        let new = toml::to_string(config)
            .map_err(|e| Error::io("write", &path, std::io::Error::other(e)))?;
        self.directory.write(CONFIG, &new)?;
        Ok(text)
    }
}

/// Reports what earlier calls left in a store.
fn tell_earlier(store: &Store, context: &Context<'_>) -> Result<()> {
    if store.torn > 0 {
        context.notice(format!(
            "the last response of an earlier run is incomplete ({} bytes); it is removed and \
             requested again",
            store.torn
        ))?;
    }
    match store.len() {
        0 => Ok(()),
        responses => context.notice(format!("found {responses} responses of earlier runs")),
    }
}

/// Returns whether a response to any of these problems is saved.
fn knows_any(
    problems: &[BenchmarkProblem],
    config: &MakePairsConfig,
    roles: &[Role<'_>; 2],
    store: &Store,
) -> bool {
    let knows =
        |problem| roles.iter().any(|role| store.holds(&first_request(problem, config, role)));
    problems.iter().any(knows)
}

/// Adds to an error how many responses are saved.
fn kept_so_far(error: Error, store: &Store, out: &Path) -> Error {
    match error {
        Error::Server { url, what, hint } => Error::Server {
            url,
            what,
            hint: format!(
                "{hint}. {} responses are saved in {}; the same command resumes from there",
                store.len(),
                out.display()
            ),
        },
        Error::Stopped { .. } => {
            Error::stopped(format!("{} responses are saved in {}", store.len(), out.display()))
        }
        other => other,
    }
}

/// A row for training.
#[derive(Serialize)]
struct PairRow<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<&'a str>,
    problem: &'a str,
    solution: &'a str,
    answer: &'a str,
}

/// Both answers to a problem.
#[derive(Serialize)]
struct Pair<'a> {
    id: &'a str,
    problem: &'a str,
    answer: &'a str,
    long: &'a str,
    short: &'a str,
}

/// Counts written rows.
struct Wrote<'a, 'c> {
    progress: TaskProgress<'a, 'c>,
    done: u64,
}

impl Wrote<'_, '_> {
    fn row(&mut self) -> Result<()> {
        self.done += 1;
        match self.progress.update(self.done) {
            // Stopping here would leave rows of two calls side by side.
            Err(Error::Stopped { .. }) => Ok(()),
            other => other,
        }
    }
}

/// The files of rows.
pub(super) struct Files<'a> {
    config: &'a MakePairsConfig,
    out: &'a PairsDirectory,
    store: &'a Store,
    problems: &'a [BenchmarkProblem],
    /// The answers of the long and the short teacher.
    collected: [Collected; 2],
    /// Indices of the problems with two correct answers.
    pairs: Vec<usize>,
    /// Indices of the problems that become rows, long and short.
    kept: [Vec<usize>; 2],
}

impl<'a> Files<'a> {
    pub(super) fn new(
        config: &'a MakePairsConfig,
        out: &'a PairsDirectory,
        store: &'a Store,
        problems: &'a [BenchmarkProblem],
        collected: [Collected; 2],
    ) -> Self {
        let has = |number: usize, teacher: &Collected| teacher.chosen[number].is_some();
        let both = |number: &usize| collected.iter().all(|teacher| has(*number, teacher));
        let pairs: Vec<usize> = (0..problems.len()).filter(both).collect();
        let kept = collected.each_ref().map(|teacher| match config.keep {
            Keep::Both => pairs.clone(),
            Keep::Either => (0..problems.len()).filter(|number| has(*number, teacher)).collect(),
        });
        Self { config, out, store, problems, collected, pairs, kept }
    }

    /// Writes all files other than the responses and returns the report. If no answer is kept and there are
    /// rows of an earlier call, those stay, and the `earlier` settings are restored.
    pub(super) fn finish(
        &self,
        counts: ProblemCounts,
        left_out: &str,
        earlier: Option<String>,
        context: &Context<'_>,
    ) -> Result<PairsReport> {
        let out = self.out;
        if self.kept.iter().all(Vec::is_empty) && out.has_rows() {
            context.notice(
                "no answer was kept; the rows, card, report, and settings of the earlier run stay as they are",
            )?;
            if let Some(text) = earlier {
                out.directory.write(CONFIG, &text)?;
            }
            return Ok(self.report(counts, [vec![], vec![]]));
        }
        let lengths = self.write(context)?;
        let report = self.report(counts, lengths);
        out.directory.write(LEFT_OUT, left_out)?;
        out.directory.write_jsonl("report.json", std::slice::from_ref(&report))?;
        out.directory.write("README.md", &card(self.config, &report))?;
        for name in [LONG, SHORT, "README.md"].into_iter().filter(|_| report.rows != [0, 0]) {
            let what = if name == "README.md" { "the card" } else { "rows" };
            context.emit(&Event::Written { what, path: &out.directory.join(name) })?;
        }
        Ok(report)
    }

    /// Returns the lengths of the rows' texts.
    fn lengths(&self) -> Result<[Vec<usize>; 2]> {
        let of = |role: usize, config: &TeacherConfig| -> Result<Vec<usize>> {
            let chosen = self.kept[role].iter().filter_map(|n| self.collected[role].chosen[*n]);
            chosen.map(|chosen| Ok(self.text(&chosen, config)?.chars().count())).collect()
        };
        Ok([of(0, &self.config.long)?, of(1, &self.config.short)?])
    }

    /// Returns the report, given the lengths of the rows' texts.
    fn report(&self, problems: ProblemCounts, lengths: [Vec<usize>; 2]) -> PairsReport {
        let [long, short] = self.collected.each_ref().map(|teacher| teacher.counts.clone());
        PairsReport {
            problems,
            pairs: self.pairs.len(),
            rows: lengths.each_ref().map(Vec::len),
            lengths: lengths.map(LengthStatistics::of),
            long,
            short,
        }
    }

    /// Returns the training text.
    fn text(&self, chosen: &Chosen, role: &TeacherConfig) -> Result<String> {
        let line = self.store.get(&chosen.request)?;
        let sample = line.as_ref().and_then(|line| line.response.samples.get(chosen.sample));
        sample.map(|sample| sample.joined(role.reasoning)).ok_or_else(|| {
            let what = "a saved response has disappeared";
            let place = crate::Place::file(self.out.directory.join(RESPONSES));
            Error::data(place, what, "Run the command again")
        })
    }

    /// Writes the rows and returns their lengths.
    fn write(&self, context: &Context<'_>) -> Result<[Vec<usize>; 2]> {
        let [long, short] = self.kept.each_ref().map(Vec::len);
        let files_of_pairs = 1 + usize::from(cfg!(feature = "parquet"));
        let of = long + short + files_of_pairs * self.pairs.len();
        let mut wrote = Wrote { progress: context.task(Task::WriteRows, of as u64), done: 0 };
        let long = self.role(0, LONG, &self.config.long, &mut wrote)?;
        let short = self.role(1, SHORT, &self.config.short, &mut wrote)?;
        self.out.directory.write_with(PAIRS, |file| {
            self.each_pair(&mut |pair| {
                wrote.row()?;
                self.out.directory.write_line(PAIRS, file, pair)
            })
        })?;
        // A file of an earlier call must not stay next to other rows.
        #[cfg(not(feature = "parquet"))]
        self.out.directory.remove(PARQUET)?;
        #[cfg(feature = "parquet")]
        self.out.directory.write_with(PARQUET, |file| {
            let names = ["id", "problem", "answer", "long", "short"];
            let path = self.out.directory.join(PARQUET);
            let mut table = crate::data::reading::TextTable::new(file, names, &path)?;
            self.each_pair(&mut |pair| {
                wrote.row()?;
                table.row([pair.id, pair.problem, pair.answer, pair.long, pair.short])
            })?;
            table.finish()
        })?;
        Ok([long, short])
    }

    fn each_pair(&self, write: &mut dyn FnMut(&Pair<'_>) -> Result<()>) -> Result<()> {
        let [long, short] = &self.collected;
        for number in &self.pairs {
            if let (Some(long), Some(short)) = (&long.chosen[*number], &short.chosen[*number]) {
                let problem = &self.problems[*number];
                write(&Pair {
                    id: &problem.id,
                    problem: &problem.problem,
                    answer: &problem.reference,
                    long: &self.text(long, &self.config.long)?,
                    short: &self.text(short, &self.config.short)?,
                })?;
            }
        }
        Ok(())
    }

    /// Writes one teacher's rows and returns their lengths.
    fn role(
        &self,
        role: usize,
        name: &str,
        config: &TeacherConfig,
        wrote: &mut Wrote<'_, '_>,
    ) -> Result<Vec<usize>> {
        let mut lengths = vec![];
        self.out.directory.write_with(name, |file| {
            for number in &self.kept[role] {
                let Some(chosen) = &self.collected[role].chosen[*number] else { continue };
                let (problem, solution) = (&self.problems[*number], self.text(chosen, config)?);
                lengths.push(solution.chars().count());
                let row = PairRow {
                    id: &problem.id,
                    system: problem.system.as_deref(),
                    problem: &problem.problem,
                    solution: &solution,
                    answer: &problem.reference,
                };
                self.out.directory.write_line(name, file, &row)?;
                wrote.row()?;
            }
            Ok(())
        })?;
        Ok(lengths)
    }
}
