//! Trains a student on a mixture of long and short reasoning.
//!
//! ```text
//! cargo run --example train_mix                          the built-in toy corpus, on the CPU
//! cargo run --example train_mix -- --compare             long only, short only, and the mixture
//! cargo run --example train_mix -- --model DIR --long L.jsonl --short S.jsonl --lora-rank 16
//! cargo run --example train_mix -- --resume --out run1   goes on with a run that was stopped
//! ```

use clap::Parser;
use mixdistill::data::{ColumnMap, Join, Share, TooLong};
use mixdistill::model::{FileType, LoraConfig, Precision};
use mixdistill::recipe::{self, RunConfig, RunMode, SourceConfig, Summary, TeacherConfig};
use mixdistill::train::StopFlag;
use mixdistill::{Error, Result};
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A line on standard output. That nobody reads it any more (`| head`) is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// A line on standard error.
macro_rules! warn {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// Exit status after Ctrl-C: stopped in order, a checkpoint is saved.
const STOPPED: u8 = 75;

/// Trains a small student on a mixture of long and short reasoning (Mix Distillation).
#[derive(Parser)]
struct Flags {
    /// Settings as TOML; the flags below override it
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print all settings as TOML and stop
    #[arg(long)]
    print_config: bool,
    /// Run directory; without it run
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on with the run in the run directory, with the settings that it was started with
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// With --resume: go on even where settings or data have changed
    #[arg(long, requires = "resume")]
    allow_changes: bool,
    /// Replace the run in the run directory
    #[arg(long)]
    overwrite: bool,
    /// Train long only, short only and the mixture, and print a table
    #[arg(long)]
    compare: bool,
    /// Long answers: JSONL, JSON or Parquet
    #[arg(long, requires = "short")]
    long: Option<PathBuf>,
    /// Short answers
    #[arg(long, requires = "long")]
    short: Option<PathBuf>,
    /// Columns of the long file, where they are not recognized: problem=NAME,solution=NAME, also
    /// reasoning, answer (the reference that answers are graded by), id, messages, system, context,
    /// options and correct; NAME is none to leave one out
    #[arg(long, requires = "long")]
    long_columns: Option<String>,
    /// Columns of the short file
    #[arg(long, requires = "short")]
    short_columns: Option<String>,
    /// Problems kept: inner (both files answer them) or outer
    #[arg(long)]
    join: Option<String>,
    /// Share of long answers, 0 to 1
    #[arg(long, allow_negative_numbers = true)]
    share: Option<f64>,
    /// What the share is of: exact (rows), bernoulli (rows, by chance) or tokens (trained tokens)
    #[arg(long)]
    share_of: Option<String>,
    /// Draw anew in each epoch which problems get the long answer
    #[arg(long)]
    redraw: bool,
    /// Model to fine-tune: a folder in Hugging Face's format (with the feature hub also owner/name)
    #[arg(long)]
    model: Option<String>,
    /// Train low-rank adapters of this rank and leave the model's weights as they are
    #[arg(long)]
    lora_rank: Option<usize>,
    /// Adapters are scaled by alpha / rank; without it by as much as in the settings, or by 2
    #[arg(long, requires = "lora_rank")]
    lora_alpha: Option<f64>,
    /// Share of an adapter's inputs set to 0 in training
    #[arg(long, requires = "lora_rank")]
    lora_dropout: Option<f64>,
    /// Scale adapters by alpha / sqrt(rank)
    #[arg(long, requires = "lora_rank")]
    rslora: bool,
    /// Layers that get adapters, separated by commas; without it all linear layers
    #[arg(long, requires = "lora_rank", value_delimiter = ',')]
    lora_targets: Option<Vec<String>>,
    /// Message of the system in each conversation
    #[arg(long)]
    system: Option<String>,
    /// Chat template in a file, or none for the built-in layout; without it the model's own
    #[arg(long)]
    chat_template: Option<String>,
    /// Type of the saved weights: f32 or bf16
    #[arg(long)]
    save_type: Option<String>,
    /// What is computed in: f32, or bf16 where the device can
    #[arg(long)]
    precision: Option<String>,
    /// Learn a teacher's logits too: a folder that teacher_logits wrote, or a model's folder
    #[arg(long)]
    teacher: Option<String>,
    /// Weight of the teacher's part in the loss, 0 to 1; without it 0.5
    #[arg(long)]
    teacher_weight: Option<f64>,
    /// tokenizer.json of a student that starts from random weights
    #[arg(long, conflicts_with = "model")]
    tokenizer: Option<PathBuf>,
    /// Token that ends an answer, where the tokenizer's files do not say
    #[arg(long)]
    end_token: Option<String>,
    /// Length limit of a row in tokens; without it 2048 with --model, else 512
    #[arg(long)]
    max_length: Option<usize>,
    /// Longer rows: drop, error or cut
    #[arg(long)]
    too_long: Option<String>,
    /// Keep only problems that both files answer within the length limit
    #[arg(long)]
    complete: bool,
    /// Share of the problems that is held out, 0 to below 1
    #[arg(long)]
    hold_out: Option<f64>,
    /// Optimizer steps; takes the place of --epochs
    #[arg(long, conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Passes over the data; without it 2 with --model, else 1
    #[arg(long)]
    epochs: Option<f64>,
    /// Rows in a micro-batch
    #[arg(long)]
    batch_size: Option<usize>,
    /// Micro-batches in an optimizer step
    #[arg(long)]
    accumulate: Option<usize>,
    /// Peak learning rate; without it 1e-5 with --model, 1e-4 with adapters, else 2e-3
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Length limit of an answer to a held-out problem, in tokens
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Held-out problems that are answered before and after training; without it none with --model,
    /// else 200
    #[arg(long)]
    questions: Option<usize>,
    /// Of these, how many are answered at each evaluation during training too
    #[arg(long)]
    questions_during: Option<usize>,
    /// Seed of all random choices
    #[arg(long)]
    seed: Option<u64>,
    /// auto, or one of cuda, metal, rocm, vulkan, wgpu, flex, ndarray
    #[arg(long)]
    backend: Option<String>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match mixdistill::device::use_threads(None).and_then(|()| work(&flags)) {
        Ok(status) => status,
        Err(error) => {
            warn!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(flags: &Flags) -> Result<ExitCode> {
    let config = settings(flags)?;
    if flags.print_config {
        config.validate()?;
        say!("{}", config.to_toml()?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let mode = match (flags.resume, flags.overwrite) {
        (true, _) if flags.allow_changes => RunMode::ResumeChanged,
        (true, _) => RunMode::Resume,
        (_, true) => RunMode::Overwrite,
        _ => RunMode::New,
    };
    let stop = stop_on_interrupt()?;
    let mut say = |text: &str| say!("{text}");
    let stopped = if flags.compare {
        let comparison = recipe::compare(&config, mode, &stop, &mut say)?;
        if !comparison.stopped {
            say!("\n{comparison}\n");
            say!("held-out losses: {}", config.out.join("compare.svg").display());
        }
        comparison.stopped
    } else {
        let summary = recipe::run(&config, mode, &stop, &mut say)?;
        if !summary.outcome.stopped {
            conclude(&config, &summary);
        }
        summary.outcome.stopped
    };
    if stopped {
        let compare = if flags.compare { " --compare" } else { "" };
        say!(
            "stopped; a checkpoint is saved. Go on with: \
             {} --example train_mix -- --resume{compare} --out {}",
            cargo_run(),
            config.out.display()
        );
        return Ok(ExitCode::from(STOPPED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The command that builds what this program was built with.
fn cargo_run() -> String {
    let features = [
        (cfg!(feature = "cuda"), "cuda"),
        (cfg!(feature = "vulkan"), "vulkan"),
        (cfg!(feature = "wgpu"), "wgpu"),
        (cfg!(feature = "metal"), "metal"),
        (cfg!(feature = "rocm"), "rocm"),
        (cfg!(feature = "ndarray"), "ndarray"),
        (cfg!(feature = "fusion"), "fusion"),
        (cfg!(feature = "parquet"), "parquet"),
        (cfg!(feature = "hub"), "hub"),
    ];
    let features: Vec<&str> = features.iter().filter(|f| f.0).map(|f| f.1).collect();
    match features.is_empty() {
        true => "cargo run".into(),
        false => format!("cargo run --features {}", features.join(",")),
    }
}

/// The settings: defaults, then the file (or the resumed run's), then the flags.
fn settings(flags: &Flags) -> Result<RunConfig> {
    let out = flags.out.clone().unwrap_or_else(|| RunConfig::default().out);
    let stored = (flags.config.is_none() && flags.resume).then(|| stored_settings(&out));
    let stored = stored.transpose()?;
    let before = match (&flags.config, &stored) {
        (Some(path), _) => RunConfig::read(path)?.lora,
        (None, Some(stored)) => stored.lora.clone(),
        _ => None,
    };
    let (model, lora) = (flags.model.clone(), lora(flags, before.as_ref()));
    let mut config = match (&flags.config, stored, &model) {
        (Some(path), _, _) => RunConfig::read_with(path, model.clone(), lora.clone())?,
        (None, Some(stored), _) => stored,
        (None, None, Some(model)) => RunConfig::for_base_model(model, lora.clone()),
        (None, None, None) => RunConfig::default(),
    };
    set(&mut config.base_model, &model.map(Some));
    set(&mut config.lora, &lora.map(Some));
    if let (Some(long), Some(short)) = (&flags.long, &flags.short) {
        let source = |name: &str, path: &Path, columns: &Option<String>| -> Result<SourceConfig> {
            let columns = columns.as_deref().map_or(Ok(ColumnMap::default()), ColumnMap::parse)?;
            Ok(SourceConfig { name: name.into(), path: path.to_owned(), columns })
        };
        config.data.sources = vec![
            source("long", long, &flags.long_columns)?,
            source("short", short, &flags.short_columns)?,
        ];
    }
    set(&mut config.out, &flags.out);
    set(&mut config.seed, &flags.seed);
    set(&mut config.backend, &flags.backend);
    set(&mut config.data.max_length, &flags.max_length);
    set(&mut config.data.hold_out, &flags.hold_out);
    if let Some(epochs) = flags.epochs {
        (config.train.epochs, config.train.steps) = (epochs, None);
    }
    set(&mut config.generate.max_new_tokens, &flags.max_new_tokens);
    set(&mut config.train.batch_size, &flags.batch_size);
    set(&mut config.train.accumulate, &flags.accumulate);
    set(&mut config.train.learning_rate, &flags.learning_rate);
    set(&mut config.evaluation.questions, &flags.questions);
    set(&mut config.evaluation.during_training, &flags.questions_during);
    set(&mut config.precision, &named::<Precision>("precision", &flags.precision)?);
    if let Some(path) = flags.teacher.clone() {
        let top_k = config.teacher.as_ref().map_or(64, |teacher| teacher.top_k);
        config.set_teacher(TeacherConfig { path, top_k });
    }
    if let Some(weight) = flags.teacher_weight {
        let part = config.train.objective.distillation.as_mut().ok_or_else(|| Error::Config {
            key: "--teacher-weight".into(),
            what: "there is no teacher".into(),
            hint: "Name one with --teacher".into(),
        })?;
        part.weight = weight;
    }
    set(&mut config.train.steps, &flags.steps.map(Some));
    set(&mut config.data.tokenizer, &flags.tokenizer.clone().map(Some));
    set(&mut config.data.end_token, &flags.end_token.clone().map(Some));
    set(&mut config.data.system_prompt, &flags.system.clone().map(Some));
    set(&mut config.data.chat_template, &flags.chat_template.clone().map(Some));
    set(&mut config.save.file_type, &named::<FileType>("save_type", &flags.save_type)?);
    set(&mut config.data.join, &named::<Join>("join", &flags.join)?);
    set(&mut config.data.too_long, &named::<TooLong>("too_long", &flags.too_long)?);
    set(&mut config.mixture.share, &named::<Share>("share_of", &flags.share_of)?);
    config.mixture.redraw |= flags.redraw;
    config.data.complete |= flags.complete;
    if let Some(share) = flags.share {
        config.set_share(share)?;
    }
    Ok(config)
}

/// The adapters that the flags ask for, over those of the file.
fn lora(flags: &Flags, file: Option<&LoraConfig>) -> Option<LoraConfig> {
    let rank = flags.lora_rank?;
    let mut lora = file.cloned().unwrap_or_default();
    let scale = lora.alpha / lora.rank.max(1) as f64;
    (lora.rank, lora.alpha) = (rank, flags.lora_alpha.unwrap_or(scale * rank as f64));
    set(&mut lora.dropout, &flags.lora_dropout);
    set(&mut lora.target_modules, &flags.lora_targets);
    lora.rslora |= flags.rslora;
    Some(lora)
}

/// The settings of the run in a directory, whose place may have changed since.
fn stored_settings(out: &Path) -> Result<RunConfig> {
    let path = out.join("config.toml");
    if !path.is_file() {
        return Err(Error::RunDirectory {
            path: out.to_owned(),
            what: "it holds no run".into(),
            hint: "Check the path, or start without --resume".into(),
        });
    }
    Ok(RunConfig { out: out.to_owned(), ..RunConfig::read(&path)? })
}

fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        setting.clone_from(value);
    }
}

/// A choice by its name in the TOML file.
fn named<T: DeserializeOwned>(key: &str, name: &Option<String>) -> Result<Option<T>> {
    let Some(name) = name else { return Ok(None) };
    let value = serde_json::from_value(serde_json::Value::String(name.clone()));
    value.map(Some).map_err(|e| Error::Config {
        key: key.into(),
        what: e.to_string(),
        hint: "See --help".into(),
    })
}

/// The first Ctrl-C lets the step finish and a checkpoint be saved; the second ends at once.
fn stop_on_interrupt() -> Result<StopFlag> {
    let stop = StopFlag::default();
    let flag = stop.clone();
    let installed = ctrlc::set_handler(move || {
        if flag.request() {
            std::process::exit(130);
        }
        warn!("stopping after this step; once more to stop at once");
    });
    installed.map_err(|e| Error::Training {
        what: format!("the handler for Ctrl-C cannot be installed: {e}"),
        hint: "Run the program in a terminal of its own".into(),
    })?;
    Ok(stop)
}

fn conclude(config: &RunConfig, summary: &Summary) {
    for (index, sample) in summary.samples.iter().enumerate() {
        say!("\nsample {}", index + 1);
        say!("  problem   {}", indented(&sample.problem));
        say!("  answer    {}", indented(&sample.text));
        let verdict = if sample.correct { "right" } else { "wrong" };
        say!("  reference {} -> {verdict}", sample.reference);
    }
    say!(
        "\ntraining loss {:.3} -> {:.3} in {} steps, {:.0} s, {:.0} tokens/s; {} tokens trained",
        summary.first_loss,
        summary.last_loss,
        summary.outcome.step,
        summary.training_seconds,
        summary.tokens_per_second,
        summary.trained_tokens,
    );
    let positions = (summary.tokens + summary.padding).max(1) as f64;
    let memory = summary.peak_memory_mib.map(|mib| format!(", at most {mib:.0} MiB of memory"));
    say!(
        "padding {:.1} % of all positions{}",
        100.0 * summary.padding as f64 / positions,
        memory.unwrap_or_default()
    );
    if summary.outcome.stopped_early {
        say!("stopped early: the held-out loss did not fall any more");
    }
    if let Some(best) = summary.outcome.best.filter(|_| config.train.keep_best) {
        say!("the weights are those of step {}, held-out loss {:.4}", best.step, best.loss);
    }
    if !summary.outcome.skipped.is_empty() {
        say!("steps left out: {:?}", summary.outcome.skipped);
    }
    for evaluation in [summary.evaluations.first(), summary.final_evaluation()].iter().flatten() {
        let losses = evaluation.sources.iter().map(|s| format!("{} {:.4}", s.name, s.loss));
        let losses: Vec<String> = losses.collect();
        if !losses.is_empty() {
            say!("held-out loss after {} steps: {}", evaluation.step, losses.join(", "));
        }
    }
    let out = config.out.display();
    let folder = if config.lora.is_some() { "adapter" } else { "model" };
    say!("everything is in {out}: summary.json, loss.svg, metrics.jsonl, checkpoints/, {folder}/");
    say!("\nnext:");
    let run = cargo_run();
    let system = config.data.system_prompt.as_ref().map(|text| format!(" --system {text:?}"));
    let system = system.unwrap_or_default();
    if let (Some(base), Some(_)) = (&config.base_model, &config.lora) {
        let model = format!("--model {base} --adapter {out}/adapter");
        say!("  {run} --example generate -- {model} --chat{system}");
        say!("  {run} --example merge_lora -- {model} --out merged");
    } else if config.base_model.is_some() {
        say!("  {run} --example generate -- --model {out}/model --chat{system}");
    }
    if config.data.sources.is_empty() {
        say!("  {run} --example train_mix -- --compare --out compare1");
        say!("  {run} --example train_mix -- --share 0.5 --out half");
        say!("  {run} --example train_mix -- --help        your own files, and all options");
    } else {
        say!("  --compare trains long only and short only beside the mixture");
        say!("  --share-of tokens makes the share one of trained tokens");
    }
}

/// The text with its later lines indented, and shortened where it is very long.
fn indented(text: &str) -> String {
    const CHARACTERS: usize = 600;
    const LINES: usize = 12;
    let cut: String = text.chars().take(CHARACTERS).collect();
    let lines: Vec<&str> = cut.lines().take(LINES).collect();
    let shown = lines.join("\n            ");
    let whole = cut.len() == text.len() && text.lines().count() <= LINES;
    if whole { shown } else { shown + " [...]" }
}
