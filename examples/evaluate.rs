//! Lets a model answer benchmarks and grades it, or grades answers that another program has made.
//!
//! ```text
//! cargo run --example evaluate -- --model DIR --bench gsm8k.jsonl --out scores1
//! cargo run --example evaluate -- --bench math500.jsonl --answers vllm.jsonl
//! ```
//!
//! Every answer is stored once its batch or a stop has come; the same command goes on where a process
//! ended.

use clap::Parser;
use mixdistill::data::{ChatFormat, ColumnMap, PlainTemplate, PromptTemplate};
use mixdistill::eval::{
    AnswerOptions, Answering, Benchmark, EvaluateConfig, Judged, Scores, ScoresTable, evaluate,
    grade_answers,
};
use mixdistill::model::{GenerateConfig, ModelFolder, model_folder};
use mixdistill::train::{Progress, StopFlag};
use mixdistill::{Error, Result, device};
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Scores a model, or answers, on benchmarks.
#[derive(Parser)]
struct Flags {
    /// Model: a folder in Hugging Face's format (with the feature hub also owner/name)
    #[arg(long, required_unless_present = "answers")]
    model: Option<String>,
    /// Adapter in PEFT's format
    #[arg(long, requires = "model")]
    adapter: Option<PathBuf>,
    /// Benchmarks: files with problems and answers (JSONL, a JSON array, or with the feature parquet
    /// Parquet)
    #[arg(long, required = true, num_args = 1..)]
    bench: Vec<PathBuf>,
    /// Columns of the benchmarks where they are not recognized: problem=NAME,answer=NAME, also
    /// id=, context=, options=, system= and solution=
    #[arg(long, value_name = "MAP")]
    bench_columns: Option<String>,
    /// Grade the answers in this file, of the one benchmark, and ask no model; also the output of
    /// generate and the samples that lm-evaluation-harness logs
    #[arg(long, conflicts_with = "model")]
    answers: Option<PathBuf>,
    /// Columns of the answers where they are not recognized: solution=NAME, also problem= and id=
    #[arg(long, value_name = "MAP", requires = "answers")]
    answer_columns: Option<String>,
    /// The prompts of the answers had opened the reasoning (with <think>), so that every answer begins
    /// within it
    #[arg(long, requires = "answers")]
    reasoning_opened: bool,
    /// Problems of each benchmark that are asked, from the first on
    #[arg(long)]
    limit: Option<usize>,
    /// Answers to each problem
    #[arg(long, default_value_t = 1)]
    samples: usize,
    /// 0 takes the most probable token; above, tokens are drawn
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw among the most probable tokens whose probabilities sum to this
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Length limit of an answer in tokens
    #[arg(long, default_value_t = 1024)]
    max_new_tokens: usize,
    /// Answers generated at the same time
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Ask the problem alone, without the instruction to reason and to box the answer
    #[arg(long)]
    no_instruction: bool,
    /// Message of the system
    #[arg(long)]
    system: Option<String>,
    /// Chat template in a file; without it the adapter's, else the model's own
    #[arg(long)]
    chat_template: Option<PathBuf>,
    /// Ask a judge about the misses: the address of a server with OpenAI's chat completions
    #[cfg(feature = "teacher")]
    #[arg(long, requires = "judge_model")]
    judge: Option<String>,
    /// The judge's name there
    #[cfg(feature = "teacher")]
    #[arg(long, requires = "judge")]
    judge_model: Option<String>,
    /// Variable of the environment with the judge's key (OPENAI_API_KEY for api.openai.com)
    #[cfg(feature = "teacher")]
    #[arg(long, requires = "judge", default_value = "")]
    judge_key_variable: String,
    /// The judge's field for the length limit, such as max_completion_tokens
    #[cfg(feature = "teacher")]
    #[arg(long, requires = "judge", default_value = "max_tokens")]
    judge_max_tokens_field: String,
    /// Directory of answers and scores
    #[arg(long, default_value = "scores")]
    out: PathBuf,
    /// auto, or one of cuda, metal, rocm, vulkan, wgpu, flex, ndarray
    #[arg(long, default_value = "auto")]
    backend: String,
}

/// Exit status after Ctrl-C: stopped in order, every answer is stored.
const STOPPED: u8 = 75;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match device::use_threads(None).and_then(|()| work(&flags)) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn work(flags: &Flags) -> Result<ExitCode> {
    // Whatever is wrong with the files shows before the weights are read.
    let mut benchmarks = vec![];
    let columns = columns(flags.bench_columns.as_deref(), "--bench-columns")?;
    for path in &flags.bench {
        let benchmark = Benchmark::read_with(path, &columns)?;
        let name = &benchmark.name;
        if !benchmark.without_answer.is_empty() {
            let lines = &benchmark.without_answer;
            say(&format!("{name}: rows without an answer are left out, lines {lines:?}"));
        }
        if !benchmark.left_out.is_empty() {
            say(&format!("{name}: unusable and left out: {}", benchmark.left_out));
        }
        if benchmarks.iter().any(|other: &Benchmark| other.name == benchmark.name) {
            return Err(Error::Config {
                key: "--bench".into(),
                what: format!("two files are called {}", benchmark.name),
                hint: "Ask them in two calls with two directories".into(),
            });
        }
        benchmarks.push(benchmark);
    }
    let out = Out::take(&flags.out)?;
    let mut tested = match (&flags.answers, &flags.model) {
        (Some(path), _) => {
            let [benchmark] = benchmarks.as_slice() else {
                return Err(Error::Config {
                    key: "--answers".into(),
                    what: format!("there are {} benchmarks", benchmarks.len()),
                    hint: "Name the one that the answers are of".into(),
                });
            };
            vec![graded(flags, benchmark, path, &out)?]
        }
        (None, Some(model)) => match ask(flags, model, &benchmarks, &out)? {
            Some(answers) => answers,
            None => {
                say("stopped: answers that had ended are stored; the same command goes on");
                return Ok(ExitCode::from(STOPPED));
            }
        },
        (None, None) => unreachable!("one of the two flags is required"),
    };
    let table = |tested: &[Vec<Judged>]| ScoresTable {
        scores: benchmarks
            .iter()
            .zip(tested)
            .map(|(benchmark, answers)| Scores::of(&benchmark.first(flags.limit), answers))
            .collect(),
    };
    say(&table(&tested).to_string());
    out.write_table(&table(&tested))?;
    // By the rules first: a judge that cannot be asked takes nothing away.
    let mut judged = false;
    for (benchmark, answers) in benchmarks.iter().zip(&mut tested) {
        judged |= judge(flags, benchmark, answers, &out)?;
    }
    if judged {
        say(&table(&tested).to_string());
        out.write_table(&table(&tested))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The answers of a file to the one benchmark, graded and stored.
fn graded(flags: &Flags, benchmark: &Benchmark, path: &Path, out: &Out) -> Result<Vec<Judged>> {
    let options = AnswerOptions {
        columns: self::columns(flags.answer_columns.as_deref(), "--answer-columns")?,
        reasoning_opened: flags.reasoning_opened,
    };
    // They are read a second time, to tell them from others.
    if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Err(Error::Config {
            key: "--answers".into(),
            what: format!("{} is not a regular file", path.display()),
            hint: "Write the answers to a file first".into(),
        });
    }
    let graded = grade_answers(benchmark, path, &options)?;
    let name = &benchmark.name;
    for (count, what) in [
        (graded.without_reference, "rows without a usable reference"),
        (graded.other_filters, "other filters of lm-evaluation-harness"),
    ] {
        if count > 0 {
            say(&format!("{name}: answers of {what} are left out: {count}"));
        }
    }
    if !graded.left_out.is_empty() {
        say(&format!("{}: unusable and left out: {}", path.display(), graded.left_out));
    }
    let mut answers = graded.answers;
    // Never over the scores of other answers; those that are stored here may be graded anew.
    let find = |path: &Path| path.canonicalize().map_err(|e| Error::io("find", path, e));
    if find(path)?.parent() != Some(&*find(&out.path)?) {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        same_settings(out, &serde_json::json!({ "answers": checksum(&bytes) }))?;
    }
    let asked = benchmark.first(flags.limit);
    let asked: HashSet<&str> = asked.problems.iter().map(|p| p.id.as_str()).collect();
    answers.retain(|answer| asked.contains(answer.id.as_str()));
    out.write_lines(&format!("{}.graded.jsonl", benchmark.name), &answers)?;
    Ok(answers)
}

/// The columns that a flag names.
fn columns(text: Option<&str>, flag: &str) -> Result<ColumnMap> {
    let map = text.map(ColumnMap::parse).transpose();
    let map = map.map_err(|error| match error {
        Error::Config { what, hint, .. } => Error::Config { key: flag.into(), what, hint },
        error => error,
    });
    Ok(map?.unwrap_or_default())
}

/// The directory of answers and scores, held by this process.
struct Out {
    path: PathBuf,
    _lock: File,
}

impl Out {
    /// Takes a directory; one that holds other things is refused.
    fn take(path: &Path) -> Result<Self> {
        const MARK: &str = ".mixdistill-scores";
        let refuse = |what: &str, hint: &str| {
            let (path, what, hint) = (path.to_owned(), what.to_owned(), hint.to_owned());
            Err(Error::RunDirectory { path, what, hint })
        };
        let io = |action, e| Error::io(action, path, e);
        let holds = path.is_dir()
            && !path.join(MARK).is_file()
            && std::fs::read_dir(path).map_err(|e| io("read", e))?.next().is_some();
        if holds {
            return refuse("it holds files that are no scores", "Choose another with --out");
        }
        std::fs::create_dir_all(path).map_err(|e| io("create", e))?;
        let lock = File::options().create(true).append(true).open(path.join(MARK));
        let lock = lock.map_err(|e| io("write to", e))?;
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            return refuse("another process works on it", "Wait for its end");
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Writes a file, whole or not at all.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (path, beside) = (self.path.join(name), self.path.join(format!(".{name}.new")));
        std::fs::write(&beside, text).map_err(|e| Error::io("write", &beside, e))?;
        std::fs::rename(&beside, &path).map_err(|e| Error::io("rename", &beside, e))
    }

    fn write_lines(&self, name: &str, answers: &[Judged]) -> Result<()> {
        let lines = answers.iter().map(|answer| serde_json::to_string(answer).unwrap_or_default());
        self.write(name, &lines.map(|line| line + "\n").collect::<String>())
    }

    fn write_table(&self, table: &ScoresTable) -> Result<()> {
        self.write("scores.md", &table.to_markdown())?;
        self.write("scores.json", &serde_json::to_string_pretty(table).unwrap_or_default())
    }
}

/// Asks the judge, where there is one, about the misses; says whether there is one.
#[cfg(feature = "teacher")]
fn judge(flags: &Flags, benchmark: &Benchmark, answers: &mut [Judged], out: &Out) -> Result<bool> {
    use mixdistill::teacher::{ChatClient, ChatConfig};
    let (Some(url), Some(model)) = (&flags.judge, &flags.judge_model) else { return Ok(false) };
    let config = ChatConfig {
        url: url.clone(),
        model: model.clone(),
        key_variable: flags.judge_key_variable.clone(),
        max_tokens_field: flags.judge_max_tokens_field.clone(),
        ..ChatConfig::default()
    };
    let store = out.path.join(format!("{}.judge.jsonl", benchmark.name));
    let mut progress = Progress::new("judge", 0);
    let mut judge = ChatClient::new(config)?;
    let unclear = mixdistill::eval::judge_misses(answers, &mut judge, &store, &mut |done, of| {
        progress.update_of(done as u64, of as u64, String::new);
    })?;
    drop(progress);
    if let Some(notice) = judge.notice() {
        say(&notice);
    }
    if unclear > 0 {
        say(&format!("{}: the judge says neither yes nor no to {unclear}", benchmark.name));
    }
    Ok(true)
}

#[cfg(not(feature = "teacher"))]
fn judge(_: &Flags, _: &Benchmark, _: &mut [Judged], _: &Out) -> Result<bool> {
    Ok(false)
}

/// The answers of a model to each benchmark; none after a stop.
fn ask(
    flags: &Flags,
    name: &str,
    benchmarks: &[Benchmark],
    out: &Out,
) -> Result<Option<Vec<Vec<Judged>>>> {
    let config = EvaluateConfig {
        samples: flags.samples,
        limit: flags.limit,
        instruct: !flags.no_instruction,
        generate: GenerateConfig {
            max_new_tokens: flags.max_new_tokens,
            temperature: flags.temperature,
            top_p: flags.top_p,
            seed: flags.seed,
            batch_size: flags.batch_size,
            ..GenerateConfig::default()
        },
    };
    config.validate()?;
    let folder = ModelFolder::open(&model_folder(name)?)?;
    let tokenizer = folder.tokenizer(None)?;
    let chat =
        folder.chat_template_with(flags.chat_template.as_deref(), flags.adapter.as_deref())?;
    let source = chat.as_ref().map(|chat| chat.source().to_owned());
    let template: Box<dyn PromptTemplate> = match chat {
        Some(chat) => Box::new(ChatFormat::new(chat, &tokenizer, flags.system.clone())?),
        None => Box::new(PlainTemplate::default()),
    };
    let ends = folder.answer_ends(&tokenizer, &*template);
    let mut progress = Progress::new("load", 0);
    let mut model = folder.load_with(&device::by_name(&flags.backend)?, &mut |done, of| {
        progress.update_of(done as u64, of as u64, String::new);
    })?;
    drop(progress);
    let fingerprint = model.fingerprint()?;
    let mut adapter = None;
    if let Some(path) = &flags.adapter {
        let file = path.join("adapter_model.safetensors");
        let bytes = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
        adapter = Some(checksum(&bytes));
        model = model.with_adapter(path)?;
    }
    // What makes an answer; how many there are to a problem, and how many problems, does not.
    let settings = serde_json::json!({
        "model": fingerprint,
        "adapter": adapter,
        "template": source,
        "system": flags.system,
        "instruct": config.instruct,
        "generate": GenerateConfig { batch_size: 1, ..config.generate.clone() },
    });
    same_settings(out, &settings)?;
    let stop = StopFlag::default();
    let asked = stop.clone();
    let _ = ctrlc::set_handler(move || {
        if asked.request() {
            std::process::exit(130);
        }
    });
    let answering = Answering { tokenizer: &tokenizer, template: &*template, end_tokens: &ends };
    let mut tested = vec![];
    for benchmark in benchmarks {
        let problems = benchmark.first(flags.limit).problems.len();
        let mut progress = Progress::new("answer", (problems * config.samples.max(1)) as u64);
        let store = out.path.join(format!("{}.jsonl", benchmark.name));
        let answers = evaluate(&model, &answering, benchmark, &config, &store, &mut |done| {
            progress.update(done as u64, String::new);
            match stop.is_requested() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        let Some(answers) = answers else { return Ok(None) };
        tested.push(answers);
    }
    // From here on Ctrl-C ends at once: a judge's verdicts are stored one by one.
    if stop.request() { Ok(None) } else { Ok(Some(tested)) }
}

/// A number that tells one file from another.
fn checksum(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Refuses to put answers beside those of another model or other settings.
fn same_settings(out: &Out, settings: &serde_json::Value) -> Result<()> {
    let path = out.path.join("settings.json");
    let text = serde_json::to_string_pretty(settings).unwrap_or_default();
    match std::fs::read_to_string(&path) {
        // Compared as values: the order of their keys is not always the same.
        Ok(there)
            if serde_json::from_str(&there)
                .is_ok_and(|there: serde_json::Value| there == *settings) =>
        {
            Ok(())
        }
        Ok(_) => Err(Error::RunDirectory {
            path,
            what: "the answers here are of another model or other settings".into(),
            hint: "Name another directory with --out".into(),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => out.write("settings.json", &text),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
