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
//!   config.toml       the settings of the last run, the servers' addresses among them
//! ```

use super::card::card;
use super::collect::{Chosen, Collected, Role, collect, first_request};
use super::config::{Keep, MakePairsConfig, TeacherConfig};
use super::report::{LengthStatistics, PairsProgress, PairsReport};
use super::server::ServerTeacher;
use super::sieve::sieve;
use super::store::Store;
use super::{LocalTeacher, Teacher};
use crate::error::{Error, Result};
use crate::eval::{Benchmark, BenchmarkProblem};
use crate::files::FolderLock;
use crate::train::StopFlag;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const RESPONSES: &str = "responses.jsonl";
const CONFIG: &str = "config.toml";
const LONG: &str = "long.jsonl";
const SHORT: &str = "short.jsonl";

/// A directory of pairs, which this process alone works on.
#[derive(Debug)]
pub struct PairsDirectory {
    path: PathBuf,
    _lock: FolderLock,
}

impl PairsDirectory {
    /// Takes a directory of pairs, or makes one.
    ///
    /// # Errors
    /// [`Error::RunDirectory`]: it holds other files, or another process works on it; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |what: &str, hint: &str| Error::RunDirectory {
            path: path.to_owned(),
            what: what.to_owned(),
            hint: hint.to_owned(),
        };
        if path.exists() && !path.is_dir() {
            return Err(refuse("it is not a directory", "Choose another path"));
        }
        fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        if !path.join(RESPONSES).is_file() {
            for entry in fs::read_dir(path).map_err(|e| Error::io("read", path, e))? {
                let name = entry.map_err(|e| Error::io("read", path, e))?.file_name();
                if name != crate::files::LOCK {
                    return Err(refuse("it holds other files", "Choose an empty directory"));
                }
            }
        }
        Ok(Self { path: path.to_owned(), _lock: FolderLock::take(path)? })
    }

    /// Writes a file, whole or not at all.
    fn write(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
    ) -> Result<()> {
        crate::files::write_whole(&self.path.join(name), write)
    }

    /// Whether rows of an earlier run are there.
    fn has_rows(&self) -> bool {
        [LONG, SHORT]
            .iter()
            .any(|name| fs::metadata(self.path.join(name)).is_ok_and(|file| file.len() > 0))
    }

    /// Writes a row to a file that is being written.
    fn row(&self, name: &str, file: &mut impl Write, row: &impl Serialize) -> Result<()> {
        let failed = |e| Error::io("write", self.path.join(name), e);
        let text = serde_json::to_string(row).map_err(|e| failed(std::io::Error::other(e)))?;
        writeln!(file, "{text}").map_err(failed)
    }
}

/// What an observer of [`make_pairs`] sees.
#[derive(Clone, Copy, Debug)]
pub enum PairsEvent<'a> {
    /// Something that a user should know.
    Notice(&'a str),
    /// Bytes of earlier responses that are read, and all.
    Reading(u64, u64),
    /// Tensors of a teacher's model that are read, and all.
    Loading(usize, usize),
    /// Problems of which the earlier responses were looked at, each once for each teacher, and all.
    Looking(usize, usize),
    /// How far the asking is.
    Asking(&'a PairsProgress),
    /// Rows that are written, and all, of all files together.
    Writing(usize, usize),
}

/// Asks two teachers problems with known answers, and keeps what is correct.
///
/// Every response is stored as it comes: the same call goes on where a process ended, and asks for
/// nothing twice. With other settings, only requests that these change are made anew. Without `asks`
/// nobody is asked, and pairs are made of the responses that there are. The files beside the responses
/// are written anew by each call that comes to its end, but never over those of an earlier one if no
/// answer is kept. `None` after a stop.
///
/// # Errors
/// [`Error::Config`]; [`Error::Io`]; [`Error::Data`] for problems or responses that cannot be read;
/// [`Error::Server`] where a teacher answers no more: everything up to there is stored.
pub fn make_pairs(
    config: &MakePairsConfig,
    out: &PairsDirectory,
    asks: bool,
    stop: &StopFlag,
    observe: &mut dyn FnMut(PairsEvent<'_>),
) -> Result<Option<PairsReport>> {
    let mut config = config.clone();
    config.validate()?;
    if !asks {
        let path = out.path.join(CONFIG);
        let earlier = path.is_file().then(|| MakePairsConfig::read(&path)).transpose()?;
        if let Some(earlier) = earlier {
            name_models(&mut config, &earlier);
        }
    }
    let problems = Problems::read(&config)?;
    let long = Made::new("long", &mut config.long, asks, None, observe)?;
    let other = if let Made::Server(server) = &long { Some(server.as_ref()) } else { None };
    let short = Made::new("short", &mut config.short, asks, other, observe)?;
    problems.ask(&config, [long.teacher(), short.teacher()], out, asks, stop, observe)
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
    stop: &StopFlag,
    observe: &mut dyn FnMut(PairsEvent<'_>),
) -> Result<Option<PairsReport>> {
    config.validate_problems()?;
    Problems::read(config)?.ask(config, teachers, out, true, stop, observe)
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
        observe: &mut dyn FnMut(PairsEvent<'_>),
    ) -> Result<Self> {
        let Some(settings) = &mut config.server else {
            let local = config.local.clone().unwrap_or_default();
            let teacher = LocalTeacher::load(local, &mut |done, of| {
                observe(PairsEvent::Loading(done, of));
            })?;
            return Ok(Self::Local(Box::new(teacher)));
        };
        if settings.model.is_empty() {
            if !asks {
                let key = format!("{role}.server.model");
                let what = "it is empty, and nobody is asked for it";
                return Err(Error::config(key, what, "Name the model whose answers are stored"));
            }
            observe(PairsEvent::Notice(&format!(
                "{role}: {} is asked for its model",
                settings.url
            )));
        }
        let mut teacher = ServerTeacher::new(settings.clone(), config.concurrency)?;
        if let Some(other) = other.filter(|other| other.config().url == settings.url) {
            teacher = teacher.with_pace_of(other);
        }
        if asks && teacher.shows_key() {
            observe(PairsEvent::Notice(&format!(
                "{role}: the key goes to {} without encryption; use https where it matters",
                settings.url
            )));
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
    fn read(config: &MakePairsConfig) -> Result<Self> {
        let benchmark = Benchmark::read(&config.problems)?.first(config.limit);
        let against = config.benchmarks.iter().map(|path| Benchmark::read(path));
        Ok(Self { benchmark, against: against.collect::<Result<_>>()? })
    }

    fn ask(
        self,
        config: &MakePairsConfig,
        [long, short]: [&dyn Teacher; 2],
        out: &PairsDirectory,
        asks: bool,
        stop: &StopFlag,
        observe: &mut dyn FnMut(PairsEvent<'_>),
    ) -> Result<Option<PairsReport>> {
        let without_answer = self.benchmark.without_answer.len();
        let left_out_rows = self.benchmark.left_out;
        let (problems, left_out, mut counts) =
            sieve(self.benchmark.problems, &self.against, config.near_duplicates);
        counts.without_answer = without_answer;
        counts.unusable = left_out_rows.rows();
        if !left_out_rows.is_empty() {
            observe(PairsEvent::Notice(&format!("unusable and left out: {left_out_rows}")));
        }
        if problems.is_empty() {
            let what = format!("none of its {} problems is left to ask", counts.read);
            let hint = "All are in the benchmarks; give other problems";
            return Err(Error::data(crate::Place::file(&config.problems), what, hint));
        }
        let store = Store::open(&out.path.join(RESPONSES), &mut |done, of| {
            observe(PairsEvent::Reading(done, of));
        })?;
        tell_earlier(&store, observe);
        let earlier_text = fs::read(out.path.join(CONFIG)).ok();
        let text = toml::to_string(config)
            .map_err(|e| Error::io("write", out.path.join(CONFIG), std::io::Error::other(e)))?;
        let earlier = MakePairsConfig::read(&out.path.join(CONFIG)).ok();
        let is_other = earlier.is_some_and(|earlier| earlier.problems != config.problems);
        let roles = [
            Role { name: "long", teacher: long, config: &config.long },
            Role { name: "short", teacher: short, config: &config.short },
        ];
        // Pairs of other problems are not written over.
        if is_other && store.len() > 0 && !knows_any(&problems, config, &roles, &store) {
            return Err(Error::RunDirectory {
                path: out.path.clone(),
                what: "it holds pairs of other problems".into(),
                hint: "Choose another directory".into(),
            });
        }
        out.write(CONFIG, |file| {
            let failed = |e| Error::io("write", out.path.join(CONFIG), e);
            file.write_all(text.as_bytes()).map_err(failed)
        })?;
        let collected = collect(&problems, config, roles, &store, asks, stop, observe)
            .map_err(|error| kept_so_far(error, &store, &out.path))?;
        let Some(collected) = collected else { return Ok(None) };
        let files = Files::new(config, out, &store, &problems, collected);
        if files.kept.iter().all(Vec::is_empty) && out.has_rows() {
            observe(PairsEvent::Notice(
                "no answer is kept; rows, card, report and settings of an earlier run stay as they are",
            ));
            if let Some(text) = earlier_text {
                out.write(CONFIG, |file| {
                    file.write_all(&text).map_err(|e| Error::io("write", out.path.join(CONFIG), e))
                })?;
            }
            return Ok(Some(files.report(counts, [vec![], vec![]])));
        }
        let lengths = files.write(observe)?;
        let report = files.report(counts, lengths);
        out.write("left-out.jsonl", |file| {
            left_out.iter().try_for_each(|left| out.row("left-out.jsonl", file, left))
        })?;
        out.write("report.json", |file| out.row("report.json", file, &report))?;
        out.write("README.md", |file| {
            let failed = |e| Error::io("write", out.path.join("README.md"), e);
            file.write_all(card(config, &report).as_bytes()).map_err(failed)
        })?;
        Ok(Some(report))
    }
}

/// Tells what earlier runs have left in a store.
fn tell_earlier(store: &Store, observe: &mut dyn FnMut(PairsEvent<'_>)) {
    if store.torn > 0 {
        observe(PairsEvent::Notice(&format!(
            "the last response of an earlier run was cut off ({} bytes); it is removed, and \
             asked for again",
            store.torn
        )));
    }
    if store.len() > 0 {
        let what = format!("{} responses of earlier runs are there", store.len());
        observe(PairsEvent::Notice(&what));
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
                "{hint}. {} responses are kept in {}; the same command goes on from there",
                store.len(),
                out.display()
            ),
        },
        other => other,
    }
}

/// A row for training.
#[derive(Serialize)]
struct Row<'a> {
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

/// The files of rows.
struct Files<'a> {
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
    fn new(
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

    /// What was made, where the rows' texts have these lengths.
    fn report(
        &self,
        problems: super::report::ProblemCounts,
        lengths: [Vec<usize>; 2],
    ) -> PairsReport {
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
            Error::data(crate::Place::file(self.out.path.join(RESPONSES)), what, "Start again")
        })
    }

    /// Writes the rows; returns their lengths.
    fn write(&self, observe: &mut dyn FnMut(PairsEvent<'_>)) -> Result<[Vec<usize>; 2]> {
        let [long, short] = self.kept.each_ref().map(Vec::len);
        let files_of_pairs = 1 + usize::from(cfg!(feature = "parquet"));
        let (mut done, of) = (0, long + short + files_of_pairs * self.pairs.len());
        let mut wrote = || {
            done += 1;
            observe(PairsEvent::Writing(done, of));
        };
        let long = self.role(0, LONG, &self.config.long, &mut wrote)?;
        let short = self.role(1, SHORT, &self.config.short, &mut wrote)?;
        self.out.write("pairs.jsonl", |file| {
            self.each_pair(&mut |pair| {
                wrote();
                self.out.row("pairs.jsonl", file, pair)
            })
        })?;
        // One of an earlier run must not stay beside other rows.
        #[cfg(not(feature = "parquet"))]
        match fs::remove_file(self.out.path.join("pairs.parquet")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", self.out.path.join("pairs.parquet"), e));
            }
            _ => {}
        }
        #[cfg(feature = "parquet")]
        self.out.write("pairs.parquet", |file| {
            let path = self.out.path.join("pairs.parquet");
            let names = ["id", "problem", "answer", "long", "short"];
            let mut table = crate::data::TextTable::new(file, names, &path)?;
            self.each_pair(&mut |pair| {
                wrote();
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
        wrote: &mut dyn FnMut(),
    ) -> Result<Vec<usize>> {
        let mut lengths = vec![];
        self.out.write(name, |file| {
            for number in &self.kept[role] {
                let Some(chosen) = &self.collected[role].chosen[*number] else { continue };
                let (problem, solution) = (&self.problems[*number], self.text(chosen, config)?);
                lengths.push(solution.chars().count());
                let row = Row {
                    id: &problem.id,
                    system: problem.system.as_deref(),
                    problem: &problem.problem,
                    solution: &solution,
                    answer: &problem.reference,
                };
                self.out.row(name, file, &row)?;
                wrote();
            }
            Ok(())
        })?;
        Ok(lengths)
    }
}
