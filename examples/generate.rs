//! Lets a model answer: one prompt, a file of prompts, or a chat at the terminal.
//!
//! ```text
//! cargo run --example generate -- --model DIR --prompt "What is 12*7?"
//! cargo run --example generate -- --model DIR --prompts problems.jsonl --out answers.jsonl
//! cargo run --example generate -- --model DIR --adapter run/adapter --chat --temperature 0.7
//! ```

use clap::{ArgGroup, Parser};
use mixdistill::data::{
    ChatFormat, ChatTemplate, ColumnMap, Message, PlainTemplate, Prompt, PromptRow, PromptTemplate,
    TextTokenizer, read_prompts,
};
use mixdistill::model::{
    DecoderLm, EndReason, Endings, GenerateConfig, Generation, ModelFolder, NewToken, model_folder,
};
use mixdistill::train::Progress;
use mixdistill::{Error, Result, device};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Lets a model answer: one prompt, a file of prompts, or a chat at the terminal.
#[derive(Parser)]
#[command(group(ArgGroup::new("what").required(true).args(["prompt", "prompts", "chat"])))]
struct Flags {
    /// Folder of the model (with the feature hub also owner/name)
    #[arg(long)]
    model: String,
    /// Folder of an adapter in PEFT's format
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// One prompt; the answer is shown as it comes
    #[arg(long)]
    prompt: Option<String>,
    /// Prompts: .jsonl, .json or .parquet with a problem in each row (problem, question, prompt or
    /// instruction), or any other file with one prompt a line
    #[arg(long, requires = "out")]
    prompts: Option<PathBuf>,
    /// Columns of the prompts where they are not recognized: problem=NAME, also context=, options=,
    /// system= and id=
    #[arg(long, value_name = "MAP", requires = "prompts")]
    columns: Option<String>,
    /// File for the answers to --prompts, as JSONL; it must not exist
    #[arg(long, requires = "prompts")]
    out: Option<PathBuf>,
    /// Talk to the model; an empty line or Ctrl-D ends it, Ctrl-C ends an answer
    #[arg(long)]
    chat: bool,
    /// Chat template in a file; without it the adapter's, else the model's own
    #[arg(long, conflicts_with = "raw")]
    chat_template: Option<PathBuf>,
    /// Message of the system
    #[arg(long)]
    system: Option<String>,
    /// Give the prompt to the model as it is, without its chat template; special tokens can be spelled
    #[arg(long, conflicts_with_all = ["system", "chat"])]
    raw: bool,
    /// Length limit of an answer in tokens
    #[arg(long, default_value_t = 512)]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw among this many most probable tokens; 0 means all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw among the most probable tokens that have this much of the probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Draw among tokens with at least this share of the highest probability
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Above 1, tokens that stand there already are less probable
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Text that ends an answer; may be given more than once
    #[arg(long)]
    stop: Vec<String>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Prompts answered at the same time
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// auto, or one of cuda, metal, rocm, vulkan, wgpu, flex, ndarray
    #[arg(long, default_value = "auto")]
    backend: String,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match device::use_threads(None).and_then(|()| work(&flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether an answer is on its way, and whether it is to end.
#[derive(Default)]
struct Stop {
    answering: AtomicBool,
    asked: AtomicBool,
}

impl Stop {
    fn begin(&self) {
        self.asked.store(false, Ordering::SeqCst);
        self.answering.store(true, Ordering::SeqCst);
    }

    fn end(&self) {
        self.answering.store(false, Ordering::SeqCst);
    }

    fn flow(&self) -> ControlFlow<()> {
        match self.asked.load(Ordering::SeqCst) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// A model with all that it takes to ask it.
struct Speaker {
    model: DecoderLm,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    system: Option<String>,
    ends: Vec<u32>,
    config: GenerateConfig,
}

fn work(flags: &Flags) -> Result<()> {
    let config = GenerateConfig {
        max_new_tokens: flags.max_new_tokens,
        temperature: flags.temperature,
        top_k: flags.top_k,
        top_p: flags.top_p,
        min_p: flags.min_p,
        repetition_penalty: flags.repetition_penalty,
        stop: flags.stop.clone(),
        seed: flags.seed,
        batch_size: flags.batch_size,
    };
    config.validate()?;
    // Whatever is wrong with the files shows before the weights are read.
    let questions = flags.prompts.as_deref().map(|path| questions(flags, path)).transpose()?;
    let stop = Arc::new(Stop::default());
    let flag = stop.clone();
    // Ctrl-C ends an answer; between answers, or a second time, the program.
    let _ = ctrlc::set_handler(move || {
        if !flag.answering.load(Ordering::SeqCst) || flag.asked.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    if let Some(out) = flags.out.as_deref() {
        // Tried and removed, so that nothing is in the way when the weights cannot be read.
        drop(AnswerFile::create(out)?);
    }
    let folder = ModelFolder::open(&model_folder(&flags.model)?)?;
    let tokenizer = folder.tokenizer(None)?;
    let template = if flags.raw {
        None
    } else {
        folder.chat_template_with(flags.chat_template.as_deref(), flags.adapter.as_deref())?
    };
    if template.is_none() && (flags.chat || flags.system.is_some()) {
        return Err(Error::Template {
            name: flags.model.clone(),
            what: "the folder has no chat template".into(),
            hint: "Name one with --chat-template, or use --prompt without --system".into(),
        });
    }
    // What ends the turns of the template ends answers too. A template that is not for training
    // says nothing of it; then the folder's own settings must do.
    let format = template.clone().map(|template| ChatFormat::new(template, &tokenizer, None));
    let ends = match format {
        Some(Ok(format)) => folder.answer_ends(&tokenizer, &format),
        _ => folder.answer_ends(&tokenizer, &PlainTemplate::default()),
    };
    let mut progress = Progress::new("load", 0);
    let mut model = folder.load_with(&device::by_name(&flags.backend)?, &mut |done, of| {
        progress.update_of(done as u64, of as u64, String::new);
    })?;
    drop(progress);
    if let Some(adapter) = &flags.adapter {
        model = model.with_adapter(adapter)?;
    }
    let system = flags.system.clone();
    let mut speaker = Speaker { model, tokenizer, template, system, ends, config };
    match (&flags.prompt, questions, &flags.out) {
        (Some(prompt), _, _) => {
            let ids = speaker.prompt(prompt.into(), flags.raw)?;
            speaker.stream(&ids, &stop).map(|_| ())
        }
        (None, Some(questions), Some(out)) => {
            speaker.answer_all(&questions, AnswerFile::create(out)?, flags.raw, &stop)
        }
        _ => speaker.chat(&stop),
    }
}

impl Speaker {
    /// The tokens of a prompt.
    fn prompt(&self, prompt: Prompt<'_>, raw: bool) -> Result<Vec<u32>> {
        if raw {
            return Ok(self.tokenizer.with_bos(self.tokenizer.encode_marked(prompt.problem)?));
        }
        match self.template {
            Some(_) => {
                // The flag's system message replaces one of the row's own.
                let system = prompt.system.filter(|_| self.system.is_none());
                let system = system.map(|text| Message::new("system", text.trim()));
                let user = Message::new("user", prompt.problem.trim());
                self.conversation(&system.into_iter().chain([user]).collect::<Vec<_>>())
            }
            None => PlainTemplate::default().prompt(&self.tokenizer, prompt),
        }
    }

    /// The tokens of a conversation, up to the model's next answer.
    fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Some(template) = &self.template else { return Ok(vec![]) };
        let system = self.system.iter().map(|text| Message::new("system", text.clone()));
        let hidden = |message: &Message| {
            let content = self.tokenizer.hide_special(&message.content);
            Message::new(message.role.clone(), content)
        };
        let messages: Vec<Message> = system.chain(messages.iter().map(hidden)).collect();
        let text = template.render(&messages, true)?;
        Ok(self.tokenizer.with_bos(self.tokenizer.encode_marked(&text)?))
    }

    fn endings(&self) -> Endings<'_> {
        Endings { tokens: &self.ends, tokenizer: &self.tokenizer }
    }

    /// The text of an answer so far that can be shown: without a character that is not whole yet,
    /// and without what may become a stop text.
    fn shown(&self, token: &NewToken<'_>) -> Result<String> {
        if let Some(end) = token.end {
            let answer = Generation { tokens: token.tokens.to_vec(), end: end.clone() };
            return answer.text(&self.tokenizer);
        }
        let mut text = self.tokenizer.decode(token.tokens)?;
        let whole = text.trim_end_matches('\u{FFFD}').len();
        text.truncate(whole);
        let begins_stop = |tail: &str| self.config.stop.iter().any(|stop| stop.starts_with(tail));
        let hidden = text.char_indices().map(|(at, _)| at).find(|at| begins_stop(&text[*at..]));
        text.truncate(hidden.unwrap_or(text.len()));
        Ok(text)
    }

    /// Shows an answer as it comes, and says how fast that was.
    fn stream(&self, prompt: &[u32], stop: &Stop) -> Result<Generation> {
        let (start, mut shown) = (Instant::now(), String::new());
        let mut out = std::io::stdout();
        let mut failed = None;
        stop.begin();
        let prompts = [prompt.to_vec()];
        let mut answers =
            self.model.generate(&prompts, self.endings(), &self.config, &mut |token| {
                match self.shown(token) {
                    Ok(text) => {
                        let new = text.strip_prefix(shown.as_str()).unwrap_or_default();
                        let _ = write!(out, "{new}").and_then(|()| out.flush());
                        shown = if text.len() > shown.len() { text } else { shown.clone() };
                    }
                    Err(error) => failed = Some(error),
                }
                if failed.is_some() { ControlFlow::Break(()) } else { stop.flow() }
            })?;
        stop.end();
        let _ = writeln!(out);
        if let Some(error) = failed {
            return Err(error);
        }
        let answer = answers.remove(0);
        let (tokens, seconds) = (answer.tokens.len(), start.elapsed().as_secs_f64());
        eprintln!("[{tokens} tokens, {:.1} a second; {}]", tokens as f64 / seconds, why(&answer));
        Ok(answer)
    }

    /// Answers all prompts of a file; each answer is written when it is there.
    fn answer_all(
        &mut self,
        questions: &[PromptRow],
        mut out: AnswerFile,
        raw: bool,
        stop: &Stop,
    ) -> Result<()> {
        let prompts =
            questions.iter().map(|q| self.prompt(q.prompt(), raw)).collect::<Result<Vec<_>>>()?;
        let (start, mut tokens) = (Instant::now(), 0u64);
        let mut failed = None;
        stop.begin();
        let mut progress = Progress::new("answer", prompts.len() as u64);
        self.model.generate(&prompts, self.endings(), &self.config, &mut |token| {
            tokens += 1;
            let speed = || format!("{:.0} tokens/s", tokens as f64 / start.elapsed().as_secs_f64());
            progress.update(token.finished as u64, speed);
            if let Some(end) = token.end {
                let answer = Generation { tokens: token.tokens.to_vec(), end: end.clone() };
                let question = &questions[token.prompt];
                let written = answer
                    .text(&self.tokenizer)
                    .and_then(|text| out.write(token.prompt, question, &text, &answer));
                failed = written.err();
            }
            if failed.is_some() { ControlFlow::Break(()) } else { stop.flow() }
        })?;
        drop(progress);
        if let Some(error) = failed {
            return Err(error);
        }
        let (count, path) = out.finish()?;
        let speed = tokens as f64 / start.elapsed().as_secs_f64();
        println!("{count} of {} answers in {path}, {speed:.1} tokens/s", questions.len());
        Ok(())
    }

    /// Asks, answers, and asks again.
    fn chat(&mut self, stop: &Stop) -> Result<()> {
        let mut messages: Vec<Message> = vec![];
        let input = std::io::stdin();
        loop {
            if input.is_terminal() {
                print!("> ");
                let _ = std::io::stdout().flush();
            }
            let mut line = String::new();
            let read = input.lock().read_line(&mut line);
            let count = read.map_err(|e| Error::io("read", "standard input", e))?;
            let line = line.trim();
            if count == 0 || line.is_empty() {
                return Ok(());
            }
            messages.push(Message::new("user", line));
            let prompt = self.conversation(&messages)?;
            let answer = self.stream(&prompt, stop)?;
            messages.push(Message::new("assistant", answer.text(&self.tokenizer)?));
            // Each answer draws anew.
            self.config.seed = self.config.seed.wrapping_add(1);
        }
    }
}

/// The prompts of a file; rows without one are left out and told.
fn questions(flags: &Flags, path: &Path) -> Result<Vec<PromptRow>> {
    let columns = flags.columns.as_deref().map(ColumnMap::parse).transpose()?.unwrap_or_default();
    let read = read_prompts(path, &columns)?;
    if !read.left_out.is_empty() {
        eprintln!("{}: unusable and left out: {}", path.display(), read.left_out);
    }
    Ok(read.prompts)
}

/// The file that answers go to: line by line as they come, in the order of the prompts at the end.
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
        question: &PromptRow,
        text: &str,
        answer: &Generation,
    ) -> Result<()> {
        let mut line = serde_json::json!({
            "index": index,
            "problem": question.problem,
            "answer": text,
            "tokens": answer.tokens.len(),
            "ended": why(answer),
        });
        if let Some(id) = &question.id {
            line["id"] = id.as_str().into();
        }
        let line = format!("{line}\n");
        let written = self.file.write_all(line.as_bytes());
        self.lines.insert(index, line);
        written.map_err(|e| Error::io("write", &self.path, e))
    }

    /// Puts the lines in order; says how many there are, and where.
    fn finish(&self) -> Result<(usize, String)> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let beside = self.path.with_file_name(format!(".{name}.writing"));
        let text: String = self.lines.values().map(String::as_str).collect();
        std::fs::write(&beside, text).map_err(|e| Error::io("write", &beside, e))?;
        std::fs::rename(&beside, &self.path).map_err(|e| Error::io("rename", &beside, e))?;
        Ok((self.lines.len(), self.path.display().to_string()))
    }
}

impl Drop for AnswerFile {
    /// A file without an answer would only be in the way of the next try.
    fn drop(&mut self) {
        if self.lines.is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Why an answer ended, in words.
fn why(answer: &Generation) -> String {
    match &answer.end {
        EndReason::EndToken(_) => "ended by the model".into(),
        EndReason::Stop(text) => format!("ended by the stop text {text:?}"),
        EndReason::Limit => "at the length limit".into(),
        EndReason::Interrupted => "interrupted".into(),
    }
}
