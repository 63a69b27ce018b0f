//! `mixdistill generate`: answers one prompt or a file of prompts.

use super::common::{Ended, Json, Session, say};
use super::speaker::{ModelFlags, SamplingFlags, Speaker, ended, prompt_tokens};
use clap::{ArgGroup, Args};
use mixdistill::context::Task;
use mixdistill::data::{ColumnMap, DataFiles, PromptRow, read_prompt_files};
use mixdistill::model::{Generation, TextModelFiles};
use mixdistill::{Error, Place, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  mixdistill generate --model DIR --prompt \"What is 12*7?\"
  mixdistill generate --model DIR --adapter run/adapter --prompts problems.jsonl \\
      --out answers.jsonl
  mixdistill generate --model DIR --prompt \"Write a verse\" --temperature 0.7 --json";

/// Generate answers to one prompt or a file of prompts
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
#[command(group(ArgGroup::new("what").required(true).args(["prompt", "prompts"])))]
pub struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    /// A single prompt; the answer is streamed
    #[arg(long, value_name = "TEXT", help_heading = "Prompts")]
    prompt: Option<String>,
    /// A file of prompts: .jsonl, .json, .csv, .tsv, or .parquet with a problem in each row (problem,
    /// question, prompt, or instruction); any other file with one prompt per line; or a dataset on the
    /// Hugging Face Hub
    #[arg(long, value_name = "FILE", requires = "out", help_heading = "Prompts")]
    prompts: Option<PathBuf>,
    /// Column names of the prompts that are not recognized automatically, as problem=NAME. Keys:
    /// problem, context, options, system, id
    #[arg(long, value_name = "MAP", requires = "prompts", help_heading = "Prompts")]
    columns: Option<String>,
    /// JSONL file for the answers to --prompts; it must not exist
    #[arg(long, value_name = "FILE", requires = "prompts", help_heading = "Prompts")]
    out: Option<PathBuf>,
    /// Pass prompts to the model unchanged, without a chat template; special tokens can be written out
    #[arg(long, conflicts_with_all = ["system", "chat_template", "template_variables"],
        help_heading = "Prompts")]
    raw: bool,
    /// Number of prompts of a file to answer at the same time
    #[arg(
        id = "generate.batch_size",
        long = "batch-size",
        value_name = "N",
        default_value_t = 16,
        help_heading = "Prompts"
    )]
    batch_size: usize,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let config = flags.sampling.config(flags.batch_size)?;
    session.go_on_with_nothing();
    let raw = flags.raw;
    // Checks files and prompts before reading the weights.
    match (&flags.prompt, &flags.prompts, &flags.out) {
        (Some(prompt), _, _) => {
            let files = flags.model.open(raw, session)?;
            let tokens = prompt_tokens(&files, prompt.as_str().into(), raw)?;
            let longest = tokens.len() + config.max_new_tokens;
            let files = files.for_length(longest, &session.context)?;
            one(&Speaker::load(files, config, session)?, &tokens, session)
        }
        (None, Some(path), Some(out)) => {
            let rows = rows(path, flags.columns.as_deref(), session)?;
            // Created and removed as a test, so that no empty file remains if the weights cannot be read.
            drop(AnswerFile::create(out)?);
            let files = flags.model.open(raw, session)?;
            let prompts = prompts(path, &rows, &files, raw)?;
            let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + config.max_new_tokens;
            let files = files.for_length(longest, &session.context)?;
            let speaker = Speaker::load(files, config, session)?;
            let out = AnswerFile::create(out)?;
            all(&speaker, &rows, &prompts, out, session)
        }
        // Ruled out by the flags.
        _ => Ok(()),
    }
}

/// Streams the answer to one prompt.
fn one(speaker: &Speaker, prompt: &[u32], session: &Session) -> Ended {
    let shown = speaker.stream(prompt, session)?;
    if let Some(why) = shown.emptiness() {
        session.warn(why);
    }
    session.result(&serde_json::json!({
        "answer": shown.text,
        "tokens": shown.answer.tokens.len(),
        "prompt_tokens": prompt.len(),
        "seconds": shown.seconds,
        "ended": ended(&shown.answer.end),
    }))?;
    match shown.is_interrupted() {
        true => Err(Error::stopped("the answer is incomplete").into()),
        false => Ok(()),
    }
}

/// Returns the prompts of a file. Rows without a prompt are skipped with a warning.
fn rows(path: &Path, columns: Option<&str>, session: &Session) -> Result<Vec<PromptRow>> {
    let columns = columns.map(ColumnMap::parse).transpose()?.unwrap_or_default();
    let files = DataFiles::find(path, &session.context)?;
    let read = read_prompt_files(&files, &columns)?;
    let name = files.name();
    if name != path {
        say!(session, "read {}", name.display());
    }
    if !read.left_out.is_empty() {
        session.warn(&format!("{}: unusable and left out: {}", name.display(), read.left_out));
    }
    Ok(read.prompts)
}

/// Returns the tokens of each row's prompt.
fn prompts(
    path: &Path,
    rows: &[PromptRow],
    files: &TextModelFiles,
    raw: bool,
) -> Result<Vec<Vec<u32>>> {
    let tokens = |(index, row): (usize, &PromptRow)| {
        prompt_tokens(files, row.prompt(), raw).map_err(|error| match error {
            Error::Config { what, hint, .. } => {
                let what = format!("prompt {} of the file: {what}", index + 1);
                Error::data(Place::file(path), what, hint)
            }
            error => error,
        })
    };
    rows.iter().enumerate().map(tokens).collect()
}

/// Answers all prompts of a file, and writes each answer when it is complete.
fn all(
    speaker: &Speaker,
    rows: &[PromptRow],
    prompts: &[Vec<u32>],
    mut out: AnswerFile,
    session: &Session,
) -> Ended {
    let (start, mut tokens) = (Instant::now(), 0u64);
    let mut failed = None;
    let mut progress = session.context.task(Task::Answer, prompts.len() as u64);
    let ends = speaker.stop_conditions();
    let tokenizer = speaker.loaded.files.tokenizer();
    speaker.loaded.model.generate(prompts, ends, &speaker.config, &mut |token| {
        tokens += 1;
        progress.add_tokens(1);
        let written = token.end.map_or(Ok(()), |end| {
            let answer = Generation { tokens: token.tokens.to_vec(), end: end.clone() };
            let text = answer.text(tokenizer)?;
            out.write(token.prompt, &rows[token.prompt], &text, &answer)
        });
        failed = written.and_then(|()| progress.update(token.finished as u64)).err();
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    let stopped = match failed {
        Some(Error::Stopped { .. }) => true,
        Some(error) => return Err(error.into()),
        None => false,
    };
    let (count, path) = out.finish()?;
    if stopped {
        let what = match count {
            0 => "no answer was finished; nothing was written".into(),
            _ => format!("{count} of {} answers are in {path}", rows.len()),
        };
        return Err(Error::stopped(what).into());
    }
    let speed = tokens as f64 / seconds.max(1e-9);
    say!(session, "{count} of {} answers in {path}, {speed:.1} tokens/s", rows.len());
    session.result(&serde_json::json!({
        "out": path,
        "answers": count,
        "prompts": rows.len(),
        "tokens": tokens,
        "seconds": seconds,
    }))?;
    Ok(())
}

/// The file of answers: lines are appended as they come, and sorted by prompt at the end.
struct AnswerFile {
    path: PathBuf,
    file: File,
    lines: BTreeMap<usize, String>,
}

impl AnswerFile {
    fn create(path: &Path) -> Result<Self> {
        let file = File::options().write(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io("create", path, e))?;
        Ok(Self { path: path.to_owned(), file, lines: BTreeMap::new() })
    }

    fn write(
        &mut self,
        index: usize,
        row: &PromptRow,
        text: &str,
        answer: &Generation,
    ) -> Result<()> {
        let mut line = serde_json::json!({
            "index": index,
            "problem": row.problem,
            "answer": text,
            "tokens": answer.tokens.len(),
            "ended": ended(&answer.end),
        });
        if let Some(id) = &row.id {
            line["id"] = id.as_str().into();
        }
        let line = format!("{line}\n");
        let written = self.file.write_all(line.as_bytes());
        self.lines.insert(index, line);
        written.map_err(|e| Error::io("write", &self.path, e))
    }

    /// Sorts the lines. Returns their number and the path.
    fn finish(&self) -> Result<(usize, String)> {
        if !self.lines.is_empty() {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy();
            let beside = self.path.with_file_name(format!(".{name}.writing"));
            let text: String = self.lines.values().map(String::as_str).collect();
            std::fs::write(&beside, text).map_err(|e| Error::io("write", &beside, e))?;
            std::fs::rename(&beside, &self.path).map_err(|e| Error::io("rename", &beside, e))?;
        }
        Ok((self.lines.len(), self.path.display().to_string()))
    }
}

impl Drop for AnswerFile {
    /// Removes a file without answers, which would block the next attempt.
    fn drop(&mut self) {
        if self.lines.is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
