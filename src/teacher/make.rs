//! From problems to pairs, in a directory that any run may take up again.
//!
//! ```text
//! pairs/
//!   responses.jsonl   every response, with the hash of its request; only ever appended to
//!   long.jsonl        rows for training: id, problem, solution, answer
//!   short.jsonl
//!   pairs.jsonl       both answers to a problem in a row (with the feature parquet also as .parquet)
//!   left-out.jsonl    problems that were not asked, and why
//!   report.json       every count          README.md   the card
//!   datasets.json     datasets of the hub, with their commits
//!   config.toml       the settings of the last run, the servers' addresses among them
//!   part.json         of a part: which it is, and its problems; it has no rows, pairs, report and card
//!   outcome.json      of a part that has come to its end: what became of its problems
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

const KIND: WorkDirKind = WorkDirKind::new("those of pairs", ".mixdistill-pairs")
    .or_unmarked(|path| path.join(RESPONSES).is_file());

/// A directory of pairs, which this process alone works in.
#[derive(Clone, Debug)]
pub struct PairsDirectory {
    directory: WorkDir,
    part: Option<Part>,
}

impl PairsDirectory {
    /// Looks at a directory as [`PairsDirectory::open`] does, and makes and changes nothing.
    ///
    /// # Errors
    /// As [`WorkDirKind::check`].
    pub fn check(path: &Path) -> Result<()> {
        KIND.check(path)
    }

    /// Takes a directory of pairs, or makes one.
    ///
    /// # Errors
    /// As [`WorkDir::open`]; [`Error::RunDirectory`] where it is of a part.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, None)
    }

    /// Takes a directory for the responses to one part of the problems, or makes one. It gets no rows:
    /// [`join_pairs`](super::join_pairs) makes them of all parts.
    ///
    /// # Errors
    /// As [`WorkDir::open`]; [`Error::RunDirectory`] where it is of another part or of the whole.
    pub fn open_part(path: &Path, part: Part) -> Result<Self> {
        Self::open_for(path, Some(part))
    }

    fn open_for(path: &Path, part: Option<Part>) -> Result<Self> {
        check_part(path, &path.join(PART), part, path.join(RESPONSES).is_file())?;
        let directory = WorkDir::open_marked(path, KIND)?;
        Ok(Self { directory, part })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The part that it is of.
    pub(super) fn part(&self) -> Option<Part> {
        self.part
    }

    /// The directory itself.
    pub(super) fn files(&self) -> &WorkDir {
        &self.directory
    }

    /// Whether rows of an earlier run are there.
    fn has_rows(&self) -> bool {
        [LONG, SHORT]
            .iter()
            .any(|name| fs::metadata(self.directory.join(name)).is_ok_and(|file| file.len() > 0))
    }
}

/// Asks two teachers problems with known answers, and keeps what is correct.
///
/// Every response is stored as it comes: the same call goes on where a process ended, and asks for
/// nothing twice. With other settings, only requests that these change are made anew. Without `asks`
/// nobody is asked, and pairs are made of the responses that there are. The files beside the responses
/// are written anew by each call that comes to its end, but never over those of an earlier one if no
/// answer is kept.
///
/// # Errors
/// [`Error::Stopped`]: every response is stored, and the same call goes on; [`Error::Config`]; [`Error::Io`]; [`Error::Data`] for problems or responses that cannot be read;
/// [`Error::Server`] where a teacher answers no more: everything up to there is stored.
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

/// As [`make_pairs`], with teachers of the caller's own in place of those that the settings name; of
/// the settings of teachers only `n`, `reasoning` and `price` are used.
///
/// # Errors
/// As [`make_pairs`].
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

/// Where settings name no model, the one that was asked before.
fn name_models(config: &mut MakePairsConfig, earlier: &MakePairsConfig) {
    for (now, before) in [(&mut config.long, &earlier.long), (&mut config.short, &earlier.short)] {
        if let (Some(now), Some(before)) = (&mut now.server, &before.server)
            && now.model.is_empty()
        {
            now.model.clone_from(&before.model);
        }
    }
}

/// The teacher of some settings.
enum Made {
    Server(Box<ServerTeacher>),
    Local(Box<LocalTeacher>),
}

impl Made {
    /// The settings then name its model. `other` is the other teacher; at the same address both have
    /// one pace.
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
                let what = "it is empty, and nobody is asked for it";
                return Err(Error::config(key, what, "Name the model whose answers are stored"));
            }
            context.notice(format!("{role}: {} is asked for its model", settings.url))?;
        }
        let mut teacher = ServerTeacher::new(settings.clone(), config.concurrency, context)?;
        if let Some(other) = other.filter(|other| other.config().url == settings.url) {
            teacher = teacher.with_pace_of(other);
        }
        if asks && teacher.shows_key() {
            context.notice(format!(
                "{role}: the key goes to {} without encryption; use https where it matters",
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

/// What is asked, and what is not.
struct Problems {
    benchmark: Benchmark,
    against: Vec<Benchmark>,
}

impl Problems {
    /// Reads them; of datasets on the hub the settings then name the commits.
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
            let what = format!("none of its {} problems is left to ask", counts.read);
            let hint = "All are in the benchmarks; give other problems";
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
    /// Writes the settings in place of those of an earlier run, whose text is returned. `may` is asked
    /// whether that is right, with whether they are of other problems.
    pub(super) fn take_settings(
        &self,
        config: &MakePairsConfig,
        may: impl FnOnce(bool) -> bool,
    ) -> Result<Option<String>> {
        let path = self.directory.join(CONFIG);
        let text = fs::read_to_string(&path).ok();
        let earlier = text.as_deref().and_then(|text| MakePairsConfig::from_toml(text).ok());
        let is_other = earlier.is_some_and(|earlier| earlier.problems != config.problems);
        // Pairs of other problems are not written over.
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

/// Tells what earlier runs have left in a store.
fn tell_earlier(store: &Store, context: &Context<'_>) -> Result<()> {
    if store.torn > 0 {
        context.notice(format!(
            "the last response of an earlier run was cut off ({} bytes); it is removed, and \
             asked for again",
            store.torn
        ))?;
    }
    match store.len() {
        0 => Ok(()),
        responses => context.notice(format!("{responses} responses of earlier runs are there")),
    }
}

/// Whether a response to any of these problems is stored.
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

/// The same error, which says what is safe.
fn kept_so_far(error: Error, store: &Store, out: &Path) -> Error {
    match error {
        Error::Server { url, what, hint } => Error::Server {
            url,
            what,
            hint: format!(
                "{hint}. {} responses are kept in {}; the same call goes on from there",
                store.len(),
                out.display()
            ),
        },
        Error::Stopped { .. } => {
            Error::stopped(format!("{} responses are kept in {}", store.len(), out.display()))
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

/// Counts rows that are written.
struct Wrote<'a, 'c> {
    progress: TaskProgress<'a, 'c>,
    done: u64,
}

impl Wrote<'_, '_> {
    fn row(&mut self) -> Result<()> {
        self.done += 1;
        match self.progress.update(self.done) {
            // Ended here, rows of two runs would lie side by side.
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
    /// Of the long and of the short teacher.
    collected: [Collected; 2],
    /// Numbers of the problems of which both answers are correct.
    pairs: Vec<usize>,
    /// Numbers of the problems that become rows, long and short.
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

    /// Writes all that comes of the responses, and says what it is. Where no answer is kept, what is there stays, with
    /// the `earlier` settings.
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
                "no answer is kept; rows, card, report and settings of an earlier run stay as they are",
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

    /// The lengths of the rows' texts.
    fn lengths(&self) -> Result<[Vec<usize>; 2]> {
        let of = |role: usize, config: &TeacherConfig| -> Result<Vec<usize>> {
            let chosen = self.kept[role].iter().filter_map(|n| self.collected[role].chosen[*n]);
            chosen.map(|chosen| Ok(self.text(&chosen, config)?.chars().count())).collect()
        };
        Ok([of(0, &self.config.long)?, of(1, &self.config.short)?])
    }

    /// What was made, where the rows' texts have these lengths.
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

    /// The text that is trained on.
    fn text(&self, chosen: &Chosen, role: &TeacherConfig) -> Result<String> {
        let line = self.store.get(&chosen.request)?;
        let sample = line.as_ref().and_then(|line| line.response.samples.get(chosen.sample));
        sample.map(|sample| sample.joined(role.reasoning)).ok_or_else(|| {
            let what = "a response that was there before is gone";
            Error::data(crate::Place::file(self.out.directory.join(RESPONSES)), what, "Start again")
        })
    }

    /// Writes the rows; returns their lengths.
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
        // One of an earlier run must not stay beside other rows.
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

    /// One teacher's rows; returns their lengths.
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
