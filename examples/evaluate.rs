//! Lets a model answer benchmarks and grades it, or grades answers that another program has made.
//!
//! ```text
//! cargo run --example evaluate -- --model DIR --bench gsm8k.jsonl --out scores1
//! cargo run --example evaluate -- --bench math500.jsonl --answers vllm.jsonl
//! ```
//!
//! Every answer is stored as it comes; the same command goes on where a process ended.

use clap::Parser;
use mixdistill::data::{ChatFormat, PlainTemplate, PromptTemplate};
use mixdistill::eval::{
    Answering, Benchmark, EvaluateConfig, Judged, Scores, ScoresTable, evaluate, grade_answers,
};
use mixdistill::model::{GenerateConfig, ModelFolder, model_folder};
use mixdistill::train::Progress;
use mixdistill::{Error, Result, device};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Scores a model, or answers, on benchmarks.
#[derive(Parser)]
struct Flags {
    /// Model: a folder in Hugging Face's format (with the feature hub also owner/name)
    #[arg(long, required_unless_present = "answers")]
    model: Option<String>,
    /// Adapter in PEFT's format
    #[arg(long, requires = "model")]
    adapter: Option<PathBuf>,
    /// Benchmarks: JSONL files with problems and answers
    #[arg(long, required = true, num_args = 1..)]
    bench: Vec<PathBuf>,
    /// Grade the answers in this JSONL file, of the one benchmark, and ask no model
    #[arg(long, conflicts_with = "model")]
    answers: Option<PathBuf>,
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
    /// Ask a judge about the misses: the address of a server with OpenAI's chat completions
    #[cfg(feature = "teacher")]
    #[arg(long, requires = "judge_model")]
    judge: Option<String>,
    /// The judge's name there; its key is read from OPENAI_API_KEY
    #[cfg(feature = "teacher")]
    #[arg(long, requires = "judge")]
    judge_model: Option<String>,
    /// Directory of answers and scores
    #[arg(long, default_value = "scores")]
    out: PathBuf,
    /// auto, or one of cuda, metal, rocm, vulkan, wgpu, flex, ndarray
    #[arg(long, default_value = "auto")]
    backend: String,
}

fn main() -> ExitCode {
    match work(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn work(flags: &Flags) -> Result<()> {
    // Whatever is wrong with the files shows before the weights are read.
    let mut benchmarks = vec![];
    for path in &flags.bench {
        let mut benchmark = Benchmark::read(path)?;
        if !benchmark.without_answer.is_empty() {
            let lines = &benchmark.without_answer;
            say(&format!(
                "{}: rows without an answer are left out, lines {lines:?}",
                benchmark.name
            ));
        }
        benchmark.problems.truncate(flags.limit.unwrap_or(usize::MAX));
        benchmarks.push(benchmark);
    }
    let table = match (&flags.answers, &flags.model) {
        (Some(path), _) => {
            let [benchmark] = benchmarks.as_slice() else {
                return Err(Error::Config {
                    key: "--answers".into(),
                    what: format!("there are {} benchmarks", benchmarks.len()),
                    hint: "Name the one that the answers are of".into(),
                });
            };
            let mut answers = grade_answers(benchmark, path)?;
            judge(flags, benchmark, &mut answers)?;
            ScoresTable { scores: vec![Scores::of(benchmark, &answers)] }
        }
        (None, Some(model)) => ask(flags, model, &benchmarks)?,
        (None, None) => unreachable!("one of the two flags is required"),
    };
    say(&table.to_string());
    Ok(())
}

/// Asks the judge, where there is one, about the misses.
#[cfg(feature = "teacher")]
fn judge(flags: &Flags, benchmark: &Benchmark, answers: &mut [Judged]) -> Result<()> {
    use mixdistill::teacher::{ChatClient, ChatConfig};
    let (Some(url), Some(model)) = (&flags.judge, &flags.judge_model) else { return Ok(()) };
    let config = ChatConfig { url: url.clone(), model: model.clone(), ..ChatConfig::default() };
    let mut progress = Progress::new("judge", 0);
    mixdistill::eval::judge_misses(
        benchmark,
        answers,
        &mut ChatClient::new(config)?,
        &mut |done, of| progress.update_of(done as u64, of as u64, String::new),
    )
}

#[cfg(not(feature = "teacher"))]
fn judge(_: &Flags, _: &Benchmark, _: &mut [Judged]) -> Result<()> {
    Ok(())
}

/// The settings that all answers in a directory share.
fn settings(flags: &Flags, config: &EvaluateConfig, fingerprint: &str) -> serde_json::Value {
    serde_json::json!({
        "model": fingerprint,
        "adapter": flags.adapter,
        "system": flags.system,
        "config": EvaluateConfig {
            // These change neither which answer a problem gets nor what it is.
            samples: 0,
            generate: GenerateConfig { batch_size: 1, ..config.generate.clone() },
            ..config.clone()
        },
    })
}

fn ask(flags: &Flags, name: &str, benchmarks: &[Benchmark]) -> Result<ScoresTable> {
    let config = EvaluateConfig {
        samples: flags.samples,
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
    let template: Box<dyn PromptTemplate> = match folder.chat_template()? {
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
    if let Some(adapter) = &flags.adapter {
        model = model.with_adapter(adapter)?;
    }
    std::fs::create_dir_all(&flags.out).map_err(|e| Error::io("create", &flags.out, e))?;
    same_settings(&flags.out.join("settings.json"), &settings(flags, &config, &fingerprint))?;
    let answering = Answering { tokenizer: &tokenizer, template: &*template, end_tokens: &ends };
    let mut table = ScoresTable::default();
    for benchmark in benchmarks {
        let start = Instant::now();
        let count = benchmark.problems.len() * config.samples.max(1);
        let mut progress = Progress::new("answer", count as u64);
        let store = flags.out.join(format!("{}.jsonl", benchmark.name));
        let mut answers = evaluate(&model, &answering, benchmark, &config, &store, &mut |done| {
            progress.update(done as u64, String::new);
        })?;
        drop(progress);
        judge(flags, benchmark, &mut answers)?;
        let scores = Scores::of(benchmark, &answers);
        say(&format!(
            "{}: {:.1} % right, {:.0} s",
            benchmark.name,
            100.0 * scores.accuracy,
            start.elapsed().as_secs_f64()
        ));
        table.scores.push(scores);
    }
    write(&flags.out.join("scores.md"), &table.to_markdown())?;
    let json = serde_json::to_string_pretty(&table).unwrap_or_default();
    write(&flags.out.join("scores.json"), &json)?;
    Ok(table)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io("write", path, e))
}

/// Refuses to put answers beside those of another model or other settings.
fn same_settings(path: &Path, settings: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(settings).unwrap_or_default();
    match std::fs::read_to_string(path) {
        Ok(there) if there == text => Ok(()),
        Ok(_) => Err(Error::RunDirectory {
            path: path.to_owned(),
            what: "the answers here are of another model or other settings".into(),
            hint: "Name another directory with --out".into(),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write(path, &text),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
