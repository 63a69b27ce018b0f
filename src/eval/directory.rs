//! A directory with the answers to benchmarks, their grades, and the scores. Later calls can resume it.
//!
//! ```text
//! scores/
//!   settings.json        what the answers depend on
//!   NAME.jsonl           a model's answers to a benchmark; append-only
//!   NAME.graded.jsonl    graded answers of another program
//!   NAME.judge.jsonl     a judge's verdicts; append-only
//!   scores.md            the scores as a table       scores.json   all figures
//!   datasets.json        benchmarks on the Hub, with their commits
//!   weights.json         the fingerprint of the weights, with the sizes and times of their files
//!   part.json            in a part: its number and its problems
//! ```

use super::answers::{AnswerOptions, grade_answers};
use super::benchmark::Benchmark;
use super::evaluate::{
    EvaluateConfig, GradedAnswer, LazyModel, Portion, evaluate_portion_lazily, longest_row,
};
use super::judge::{Judge, judge_misses};
use super::parts::part_record;
use super::scores::{Scores, ScoresTable};
use crate::context::Context;
use crate::data::reading::Datasets;
use crate::data::{ChatTemplate, ColumnMap};
use crate::device;
use crate::error::{Error, Result};
use crate::files::{PART, WorkDir, WorkDirKind, check_part, refused, same_settings, sha256_of};
use crate::model::{
    BaseWeights, DecoderLm, Generate, GenerateConfig, LoadOptions, TextInterface, TextModelFiles,
};
use crate::part::Part;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const KIND: WorkDirKind = WorkDirKind::new("an evaluation's", ".mixdistill-scores");
const SETTINGS: &str = "settings.json";
pub(super) const WEIGHTS: &str = "weights.json";
const HINT: &str = "Choose another directory (out), or evaluate with the settings of these answers";

/// Returns the file name of a model's answers to a benchmark.
pub(super) fn answers_file(benchmark: &str) -> String {
    format!("{benchmark}.jsonl")
}

/// Reads benchmarks that are asked together, from files or datasets on the Hub, and reports the rows that are
/// left out. Datasets are read at the commits that an earlier call noted in the directory `out`.
///
/// # Errors
/// Same as [`DataFiles::find`](crate::data::DataFiles::find) and [`Benchmark::read_with`]; [`Error::Config`]
/// if two benchmarks have the same name, and so the same file of answers.
pub fn read_benchmarks(
    paths: &[PathBuf],
    columns: &ColumnMap,
    out: &Path,
    context: &Context<'_>,
) -> Result<Vec<Benchmark>> {
    let mut datasets = Datasets::of(out)?;
    let mut benchmarks: Vec<Benchmark> = vec![];
    for path in paths {
        let files = datasets.find(path, context)?;
        let mut benchmark = Benchmark::read_files(&files, columns)?;
        benchmark.read_as = (files.name() != path).then(|| [path.clone(), files.name().to_owned()]);
        let name = &benchmark.name;
        if !benchmark.without_answer.is_empty() {
            let lines = first_of(&benchmark.without_answer);
            context.notice(format!("{name}: left out rows without an answer: lines {lines}"))?;
        }
        if !benchmark.left_out.is_empty() {
            context.notice(format!("{name}: unusable and left out: {}", benchmark.left_out))?;
        }
        // Some file systems ignore case.
        let same = |other: &Benchmark| other.name.to_lowercase() == name.to_lowercase();
        if benchmarks.iter().any(same) {
            let what = format!("two benchmarks are named {name}");
            let hint = "Evaluate them in two calls with different output directories";
            return Err(Error::config("benchmarks", what, hint));
        }
        benchmarks.push(benchmark);
    }
    Ok(benchmarks)
}

/// Returns the first few numbers of a list, and how many more there are.
fn first_of(numbers: &[usize]) -> String {
    const SHOWN: usize = 8;
    let mut text = numbers.iter().take(SHOWN).map(usize::to_string).collect::<Vec<_>>().join(", ");
    if let Some(more) = numbers.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// What the answers of a model depend on, besides the [`EvaluateConfig`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TestedModel<'a> {
    /// Identifies the weights without the adapter, such as [`DecoderLm::fingerprint`].
    pub fingerprint: String,
    /// The adapter folder.
    pub adapter: Option<&'a Path>,
    /// The text of the chat template.
    pub template: Option<&'a str>,
    /// The variables of the chat template.
    pub template_variables: Option<&'a BTreeMap<String, Value>>,
    /// The system message.
    pub system: Option<&'a str>,
    /// The data types of the weights, if not all are f32.
    pub base: Option<BaseWeights>,
}

/// A directory of answers and scores, locked by this process.
#[derive(Clone, Debug)]
pub struct EvaluationDirectory {
    directory: WorkDir,
    part: Option<Part>,
}

impl EvaluationDirectory {
    /// Performs the checks of [`EvaluationDirectory::open`] without creating or changing anything.
    ///
    /// # Errors
    /// Same as [`WorkDirKind::check`].
    pub fn check(path: &Path) -> Result<()> {
        KIND.check(path)
    }

    /// Opens or creates a directory of answers and scores.
    ///
    /// # Errors
    /// Same as [`WorkDir::open`]; [`Error::RunDirectory`] if it belongs to a part.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, None)
    }

    /// Opens or creates a directory for one part of the problems of all benchmarks that are asked together.
    /// The answers are the same as without parts. Only the joined parts have scores; see
    /// [`join_evaluations`](super::join_evaluations).
    ///
    /// # Errors
    /// Same as [`WorkDir::open`]; [`Error::RunDirectory`] if it belongs to another part or to no part.
    pub fn open_part(path: &Path, part: Part) -> Result<Self> {
        Self::open_for(path, Some(part))
    }

    fn open_for(path: &Path, part: Option<Part>) -> Result<Self> {
        check_part(path, &path.join(PART), part, path.join(SETTINGS).is_file())?;
        let directory = WorkDir::open_marked(path, KIND)?;
        Ok(Self { directory, part })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the directory itself.
    pub(super) fn files(&self) -> &WorkDir {
        &self.directory
    }

    /// Same as [`EvaluationDirectory::evaluate`], for a model in a folder. `options` must be those that
    /// `files` were opened with. The weights are not read if they are unchanged since the last call and no
    /// answer is missing.
    ///
    /// # Errors
    /// Same as [`EvaluationDirectory::evaluate`].
    pub fn evaluate_text_model(
        &self,
        files: &TextModelFiles,
        options: &LoadOptions,
        benchmarks: &[Benchmark],
        config: &EvaluateConfig,
        context: &Context<'_>,
    ) -> Result<Vec<Vec<GradedAnswer>>> {
        config.validate()?;
        let mut files = files.clone();
        let model = files.folder().config();
        if model.context() < model.max_position_embeddings {
            // Decided once for all benchmarks, independent of the stored answers.
            let longest = longest_row(&files.text_interface(), benchmarks, config)?;
            files = files.for_length(longest, context)?;
        }
        let files = &files;
        let read = || -> Result<DecoderLm> {
            let device = device::by_name(&options.backend)?;
            Ok(files.clone().load(&device, context)?.model)
        };
        let (folder, mut loaded) = (files.folder().path(), None);
        let fingerprint = match self.noted_fingerprint(folder) {
            Some(fingerprint) => fingerprint,
            None => {
                let model = read()?;
                let fingerprint = model.fingerprint()?;
                self.note_fingerprint(folder, &fingerprint)?;
                loaded = Some(model);
                fingerprint
            }
        };
        let tested = TestedModel {
            fingerprint,
            adapter: files.adapter(),
            template: files.chat_template().map(ChatTemplate::source),
            template_variables: Some(&options.template_variables),
            system: options.system.as_deref(),
            base: Some(options.base).filter(|base| !base.is_f32()),
        };
        let mut load = || loaded.take().map_or_else(read, Ok);
        let text = files.text_interface();
        self.evaluate(benchmarks, config, &tested, &text, &mut load, context)
    }

    /// Asks a model the problems of benchmarks. Returns the answers for each benchmark. Saved answers of the
    /// same model and settings are not repeated. If none is missing, the model is not loaded.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if the directory has answers of another model or other settings, with the
    /// difference; [`Error::Stopped`]: complete answers are saved; errors of loading and of
    /// [`evaluate`](super::evaluate).
    pub fn evaluate<M: Generate>(
        &self,
        benchmarks: &[Benchmark],
        config: &EvaluateConfig,
        tested: &TestedModel<'_>,
        text: &TextInterface<'_>,
        load: &mut dyn FnMut() -> Result<M>,
        context: &Context<'_>,
    ) -> Result<Vec<Vec<GradedAnswer>>> {
        config.validate()?;
        self.check_settings(benchmarks, config, tested)?;
        self.note_datasets(benchmarks)?;
        let mut model = LazyModel::new(load);
        let mut before = 0;
        let answers = benchmarks.iter().map(|benchmark| {
            let store = self.directory.join(&answers_file(&benchmark.name));
            let portion = Portion { part: self.part, before };
            before += benchmark.problems.len().min(config.limit.unwrap_or(usize::MAX));
            evaluate_portion_lazily(&mut model, text, benchmark, config, portion, &store, context)
        });
        answers.collect()
    }

    /// Refuses what a part does not have.
    fn refuse_part(&self, what: &str) -> Result<()> {
        match self.part {
            None => Ok(()),
            Some(part) => {
                let what = format!("it is part {part}, and a part has no {what}");
                Err(refused(self.path(), what, "Join the parts first"))
            }
        }
    }

    /// Notes the commits of benchmarks on the Hub, for the next call.
    fn note_datasets(&self, benchmarks: &[Benchmark]) -> Result<()> {
        let mut datasets = Datasets::of(self.path())?;
        for [name, read] in benchmarks.iter().filter_map(|benchmark| benchmark.read_as.as_ref()) {
            datasets.note(name, read);
        }
        datasets.write(&self.directory)
    }

    /// Refuses to mix answers of different models or settings.
    fn check_settings(
        &self,
        benchmarks: &[Benchmark],
        config: &EvaluateConfig,
        tested: &TestedModel<'_>,
    ) -> Result<()> {
        let adapter = tested.adapter.map(|folder| folder.join("adapter_model.safetensors"));
        // Null if there are none, as in directories of earlier versions.
        let variables = tested.template_variables.filter(|variables| !variables.is_empty());
        // Everything that affects an answer. The number of samples and problems does not.
        let settings = json!({
            "model": tested.fingerprint,
            "adapter": adapter.as_deref().map(checksum).transpose()?,
            "template": tested.template,
            "template_variables": variables,
            "system": tested.system,
            "base": tested.base,
            "instruct": config.instruct,
            "generate": GenerateConfig { batch_size: 1, ..config.generate.clone() },
        });
        if let Some(part) = self.part {
            part_record(part, &settings, benchmarks, config)?.keep(&self.directory.join(PART))?;
        }
        let files = adapter.as_deref().map(|file| ("adapter", file));
        self.same_settings(&settings, files)
    }

    /// Same as [`same_settings`], but accepts the checksum of a file that an earlier version stored.
    pub(super) fn same_settings(
        &self,
        settings: &Value,
        file: Option<(&str, &Path)>,
    ) -> Result<()> {
        let older = |then: &mut Value| {
            if let Some((key, path)) = file
                && then.get(key).is_some_and(|old| *old != settings[key])
                && then[key] == earlier_checksum(path)?
            {
                then[key] = settings[key].clone();
            }
            Ok(())
        };
        same_settings(&self.directory.join(SETTINGS), settings, older, HINT)
    }

    /// Grades the answers in a file to the first `limit` problems of a benchmark, and saves the grades.
    ///
    /// # Errors
    /// [`Error::Config`] if `path` is not a regular file; [`Error::RunDirectory`] if the directory has scores
    /// of other answers; same as [`grade_answers`].
    pub fn grade(
        &self,
        benchmark: &Benchmark,
        path: &Path,
        options: &AnswerOptions,
        limit: Option<usize>,
        context: &Context<'_>,
    ) -> Result<Vec<GradedAnswer>> {
        self.refuse_part("answers from a file")?;
        // The file is read a second time, for its checksum.
        if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
            let what = format!("{} is not a regular file", path.display());
            return Err(Error::config("answers", what, "Write the answers to a file first"));
        }
        let graded = grade_answers(benchmark, path, options)?;
        self.note_datasets(std::slice::from_ref(benchmark))?;
        let name = &benchmark.name;
        for (count, what) in [
            (graded.without_reference, "to rows without a usable reference"),
            (graded.other_filters, "of other lm-evaluation-harness filters"),
        ] {
            if count > 0 {
                context.notice(format!("{name}: left out answers {what}: {count}"))?;
            }
        }
        if !graded.left_out.is_empty() {
            let left_out = &graded.left_out;
            context.notice(format!("{}: unusable and left out: {left_out}", path.display()))?;
        }
        // Never overwrites scores of other answers. Answers saved here may be graded again.
        let find = |path: &Path| path.canonicalize().map_err(|e| Error::io("find", path, e));
        if find(path)?.parent() != Some(&*find(self.path())?) {
            let settings = json!({ "answers": checksum(path)? });
            self.same_settings(&settings, Some(("answers", path)))?;
        }
        let asked = benchmark.first(limit);
        let asked: HashSet<&str> = asked.problems.iter().map(|p| p.id.as_str()).collect();
        let mut answers = graded.answers;
        answers.retain(|answer| asked.contains(answer.id.as_str()));
        self.directory.write_jsonl(&format!("{name}.graded.jsonl"), &answers)?;
        Ok(answers)
    }

    /// Asks a judge about the answers to a benchmark that the rules grade as wrong; see [`judge_misses`].
    /// Returns the number of unclear verdicts.
    ///
    /// # Errors
    /// Same as [`judge_misses`].
    pub fn judge(
        &self,
        benchmark: &Benchmark,
        answers: &mut [GradedAnswer],
        judge: &mut dyn Judge,
        context: &Context<'_>,
    ) -> Result<usize> {
        self.refuse_part("verdicts")?;
        let store = self.directory.join(&format!("{}.judge.jsonl", benchmark.name));
        let unclear = judge_misses(answers, judge, &store, context)?;
        if unclear > 0 {
            let name = &benchmark.name;
            context
                .notice(format!("{name}: the judge gave no clear verdict on {unclear} answers"))?;
        }
        Ok(unclear)
    }

    /// Scores the answers to the first `limit` problems of each benchmark, and writes the tables.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::RunDirectory`] in the directory of a part.
    pub fn write_scores(
        &self,
        benchmarks: &[Benchmark],
        answers: &[Vec<GradedAnswer>],
        limit: Option<usize>,
    ) -> Result<ScoresTable> {
        self.refuse_part("scores")?;
        let scores = benchmarks.iter().zip(answers);
        let scores =
            scores.map(|(benchmark, answers)| Scores::of(&benchmark.first(limit), answers));
        let table = ScoresTable { scores: scores.collect() };
        self.directory.write("scores.md", &table.to_markdown())?;
        self.directory.write_json("scores.json", &table)?;
        Ok(table)
    }

    /// Returns the noted fingerprint of the weights in a folder, if the sizes and times of their files are
    /// unchanged.
    pub fn noted_fingerprint(&self, folder: &Path) -> Option<String> {
        let text = std::fs::read_to_string(self.directory.join(WEIGHTS)).ok()?;
        let noted: NotedWeights = serde_json::from_str(&text).ok()?;
        (noted.files == weight_files(folder)?).then_some(noted.fingerprint)
    }

    /// Notes the fingerprint of the weights in a folder, so that they do not have to be read again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn note_fingerprint(&self, folder: &Path, fingerprint: &str) -> Result<()> {
        let Some(files) = weight_files(folder) else { return Ok(()) };
        self.directory
            .write_json(WEIGHTS, &NotedWeights { files, fingerprint: fingerprint.to_owned() })
    }
}

/// The size and the modification time (seconds and nanoseconds) of each file.
pub(crate) type FileTimes = BTreeMap<PathBuf, (u64, u64, u32)>;

/// The fingerprint of weights, and the files that they were read from.
#[derive(Serialize, Deserialize)]
struct NotedWeights {
    files: FileTimes,
    fingerprint: String,
}

/// Returns the files of a model; `None` if the system does not report the metadata of all of them.
pub(crate) fn weight_files(folder: &Path) -> Option<FileTimes> {
    let mut files = BTreeMap::new();
    let folder = folder.canonicalize().ok()?;
    // Links in the Hub's cache point to files that are named by their hashes.
    let paths: Vec<PathBuf> = match folder.is_dir() {
        true => {
            let entries = std::fs::read_dir(folder).ok()?;
            entries.map(|entry| Some(entry.ok()?.path())).collect::<Option<_>>()?
        }
        false => vec![folder],
    };
    for path in paths {
        let is_read = |ending: &str| ["safetensors", "json", "gguf"].contains(&ending);
        if !path.extension().is_some_and(|ending| ending.to_str().is_some_and(is_read)) {
            continue;
        }
        let metadata = std::fs::metadata(&path).ok()?;
        let time = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        files.insert(path, (metadata.len(), time.as_secs(), time.subsec_nanos()));
    }
    Some(files)
}

/// Returns the first 16 digits of a file's SHA-256.
fn checksum(path: &Path) -> Result<String> {
    const DIGITS: usize = 16;
    let mut hash = sha256_of(path)?;
    hash.truncate(DIGITS);
    Ok(hash)
}

/// Returns the checksum of earlier versions: the hash of the standard library, which may change with the
/// compiler.
fn earlier_checksum(path: &Path) -> Result<String> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_earlier_versions_are_known_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let [answers, other] = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
        std::fs::write(&answers, "one").unwrap();
        std::fs::write(&other, "two").unwrap();
        let out = EvaluationDirectory::open(&folder.path().join("scores")).unwrap();
        let same = |path: &Path| {
            let settings = json!({ "answers": checksum(path).unwrap() });
            out.same_settings(&settings, Some(("answers", path)))
        };
        let settings = out.directory.join(SETTINGS);
        for stored in [checksum(&answers).unwrap(), earlier_checksum(&answers).unwrap()] {
            assert_eq!(stored.len(), 16);
            std::fs::write(&settings, json!({ "answers": stored }).to_string()).unwrap();
            same(&answers).unwrap();
            let error = same(&other).unwrap_err().to_string();
            assert!(error.contains(&format!("answers was \"{stored}\"")), "{error}");
        }
        assert_eq!(checksum(&answers).unwrap(), "7692c3ad3540bb80");
    }

    #[test]
    fn weights_are_noted_until_their_files_change() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("model.safetensors"), "weights").unwrap();
        let out = EvaluationDirectory::open(&folder.path().join("scores")).unwrap();
        assert_eq!(out.noted_fingerprint(&model), None);
        out.note_fingerprint(&model, "f1").unwrap();
        assert_eq!(out.noted_fingerprint(&model).as_deref(), Some("f1"));
        std::fs::write(model.join("model.safetensors"), "other weights").unwrap();
        assert_eq!(out.noted_fingerprint(&model), None);
        assert_eq!(out.noted_fingerprint(&folder.path().join("nowhere")), None);
    }
}
