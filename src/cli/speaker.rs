//! A model that answers prompts: loading it, and streaming its answers.

use super::common::{Session, TemplateVariable};
use clap::Args;
use mixdistill::data::{Message, Prompt};
use mixdistill::model::{
    BaseType, BaseWeights, EndReason, GenerateConfig, Generation, LoadOptions, NewToken,
    StopConditions, TextModel, TextModelFiles,
};
use mixdistill::{Error, Result, device};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The model and its chat template.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// Model: a folder in Hugging Face format, a GGUF file, a run, or owner/name on the Hugging Face Hub;
    /// optional if --adapter is a run
    #[arg(long, value_name = "MODEL", required_unless_present = "adapter")]
    pub model: Option<String>,
    /// Adapter in PEFT format, or a run that trained one [default: the run's adapter, if any]
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Chat template file, or none for the built-in layout [default: the adapter's, else the model's]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Variable for the chat template, such as enable_thinking=false; may be repeated [default: none]
    #[arg(id = "template_variables", long = "template-variable", value_name = "NAME=VALUE")]
    pub template_variables: Vec<TemplateVariable>,
    /// System message [default: the chat template's own, if any]
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub base: BaseFlags,
}

/// How the weights are stored in memory.
#[derive(Args, Debug)]
pub struct BaseFlags {
    /// Data type of the weights in memory. Fewer bits take less memory and generate faster; an adapter
    /// stays f32 [default: f32]
    #[arg(id = "base.type", long = "base-type", value_name = "TYPE", value_parser = BaseType::NAMES)]
    base_type: Option<String>,
    /// Data type of the embedding and the head: f32, bf16, or int8 [default: f32, or bf16 with any other
    /// --base-type]
    #[arg(
        id = "base.embeddings",
        long = "embedding-type",
        value_name = "TYPE",
        value_parser = ["f32", "bf16", "int8"]
    )]
    embeddings: Option<String>,
    /// With --base-type nf4: also store the scales in 8 bits
    #[arg(id = "base.double_quantization", long = "double-quantization")]
    double_quantization: bool,
}

impl BaseFlags {
    pub fn weights(&self) -> BaseWeights {
        let kind = |name: &Option<String>| name.as_deref().and_then(BaseType::by_name);
        BaseWeights {
            base_type: kind(&self.base_type).unwrap_or_default(),
            embeddings: kind(&self.embeddings),
            double_quantization: self.double_quantization,
        }
    }
}

/// How answers are sampled.
#[derive(Args, Debug)]
#[command(next_help_heading = "Answers")]
pub struct SamplingFlags {
    /// Maximum length of an answer in tokens
    #[arg(
        id = "generate.max_new_tokens",
        long = "max-new-tokens",
        value_name = "TOKENS",
        default_value_t = 512
    )]
    max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(
        id = "generate.temperature",
        long = "temperature",
        allow_negative_numbers = true,
        value_name = "T",
        default_value_t = 0.0
    )]
    temperature: f64,
    /// Sample only from this many most likely tokens; 0 means all
    #[arg(id = "generate.top_k", long = "top-k", value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Sample only from the most likely tokens whose probabilities sum to this (nucleus sampling); 1 means
    /// all
    #[arg(
        id = "generate.top_p",
        long = "top-p",
        allow_negative_numbers = true,
        value_name = "P",
        default_value_t = 1.0
    )]
    top_p: f64,
    /// Sample only from tokens with at least this fraction of the highest probability; 0 means all
    #[arg(
        id = "generate.min_p",
        long = "min-p",
        allow_negative_numbers = true,
        value_name = "P",
        default_value_t = 0.0
    )]
    min_p: f64,
    /// Penalty on tokens that already occur in the prompt or the answer: above 1 makes them less likely, 1
    /// turns it off
    #[arg(
        id = "generate.repetition_penalty",
        long = "repetition-penalty",
        allow_negative_numbers = true,
        value_name = "X",
        default_value_t = 1.0
    )]
    repetition_penalty: f64,
    /// Text that ends an answer; may be repeated [default: none]
    #[arg(id = "generate.stop", long = "stop", value_name = "TEXT")]
    stop: Vec<String>,
    /// Random seed for sampling
    #[arg(id = "generate.seed", long = "seed", value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

impl SamplingFlags {
    /// Returns the validated settings.
    ///
    /// # Errors
    /// Same as [`GenerateConfig::validate`].
    pub fn config(&self, batch_size: usize) -> Result<GenerateConfig> {
        let config = GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            stop: self.stop.clone(),
            seed: self.seed,
            batch_size,
        };
        config.validate()?;
        Ok(config)
    }
}

impl ModelFlags {
    /// Opens and checks the files of the model without reading weights. With `raw`, the chat template is
    /// ignored.
    ///
    /// # Errors
    /// Same as [`TextModelFiles::open`].
    pub fn open(&self, raw: bool, session: &Session) -> Result<TextModelFiles> {
        // A run that trained an adapter is a model by itself.
        let (model, adapter) = match (&self.model, &self.adapter) {
            (Some(model), adapter) => (model.clone(), adapter.clone()),
            (None, adapter) => {
                let run = adapter.as_deref().unwrap_or(Path::new(""));
                (run.to_string_lossy().into_owned(), None)
            }
        };
        let options = LoadOptions {
            adapter,
            chat_template: if raw { Some("none".into()) } else { self.chat_template.clone() },
            template_variables: TemplateVariable::by_name(&self.template_variables),
            system: self.system.clone(),
            max_length: None,
            base: self.base.weights(),
            backend: session.global.backend().to_owned(),
        };
        TextModelFiles::open(&model, &options, &session.context)
    }
}

/// Returns the tokens of a prompt, which must leave room for an answer.
///
/// # Errors
/// Errors of the tokenizer and the template; [`Error::Config`] if the prompt does not fit.
pub fn prompt_tokens(files: &TextModelFiles, prompt: Prompt<'_>, raw: bool) -> Result<Vec<u32>> {
    let tokens = match raw {
        true => files.plain_prompt(prompt.problem)?,
        false => files.template().prompt(files.tokenizer(), prompt)?,
    };
    // LongRoPE's scale is chosen once the longest prompt is known.
    let context = files.folder().config().max_position_embeddings;
    if tokens.len() >= context {
        let what =
            format!("it has {} tokens, but the model takes fewer than {context}", tokens.len());
        return Err(Error::config("prompt", what, "Shorten it"));
    }
    Ok(tokens)
}

/// Returns the maximum number of tokens that the model takes, prompt and answer together.
pub fn context_length(files: &TextModelFiles) -> usize {
    files.folder().config().context()
}

/// Returns the tokens of a conversation, up to the model's next answer. Without a chat template, only those
/// of the last message.
///
/// # Errors
/// Same as [`TextModelFiles::conversation`].
pub fn conversation_tokens(files: &TextModelFiles, messages: &[Message]) -> Result<Vec<u32>> {
    match files.chat_template() {
        Some(_) => files.conversation(messages),
        None => {
            let last = messages.last().map_or("", |message| message.content.as_str());
            files.template().prompt(files.tokenizer(), last.into())
        }
    }
}

/// A model that answers.
pub struct Speaker {
    pub loaded: TextModel,
    pub config: GenerateConfig,
}

/// An answer that was streamed.
pub struct Shown {
    pub answer: Generation,
    pub text: String,
    pub seconds: f64,
}

impl Speaker {
    /// Reads the weights.
    ///
    /// # Errors
    /// Same as [`TextModelFiles::load`].
    pub fn load(files: TextModelFiles, config: GenerateConfig, session: &Session) -> Result<Self> {
        let device = device::by_name(session.global.backend())?;
        Ok(Self { loaded: files.load(&device, &session.context)?, config })
    }

    /// Returns what ends an answer.
    pub fn stop_conditions(&self) -> StopConditions<'_> {
        let text = self.loaded.text_interface();
        StopConditions { tokens: text.end_tokens, tokenizer: text.tokenizer }
    }

    /// Returns the part of an unfinished answer that can be shown: without an incomplete character and
    /// without a possible beginning of a stop text.
    fn text_so_far(&self, token: &NewToken<'_>) -> Result<String> {
        let tokenizer = self.loaded.files.tokenizer();
        if let Some(end) = token.end {
            let answer = Generation { tokens: token.tokens.to_vec(), end: end.clone() };
            return answer.text(tokenizer);
        }
        let mut text = tokenizer.decode(token.tokens)?;
        let whole = text.trim_end_matches('\u{FFFD}').len();
        text.truncate(whole);
        let begins_stop = |tail: &str| self.config.stop.iter().any(|stop| stop.starts_with(tail));
        let hidden = text.char_indices().map(|(at, _)| at).find(|at| begins_stop(&text[*at..]));
        text.truncate(hidden.unwrap_or(text.len()));
        Ok(text)
    }

    /// Streams an answer. Ctrl-C ends it.
    ///
    /// # Errors
    /// Errors of generation.
    pub fn stream(&self, prompt: &[u32], session: &Session) -> Result<Shown> {
        let (start, mut shown) = (Instant::now(), String::new());
        let mut failed = None;
        let stop = session.interrupts.begin_answer();
        let mut out = Out::new(session);
        // A long prompt takes a while before its first token.
        session.screen.watch("reading the prompt");
        let prompts = [prompt.to_vec()];
        let answers = self.loaded.model.generate(
            &prompts,
            self.stop_conditions(),
            &self.config,
            &mut |token| {
                if token.tokens.len() <= 1 {
                    session.screen.rest();
                }
                match self.text_so_far(token) {
                    Ok(text) => {
                        out.write(text.strip_prefix(shown.as_str()).unwrap_or_default());
                        shown = if text.len() > shown.len() { text } else { shown.clone() };
                    }
                    Err(error) => failed = Some(error),
                }
                match failed.is_some() || stop.is_requested() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            },
        );
        session.screen.rest();
        session.interrupts.idle();
        out.write("\n");
        let answer = answers?.remove(0);
        if let Some(error) = failed {
            return Err(error);
        }
        let text = answer.text(self.loaded.files.tokenizer())?;
        let shown = Shown { answer, text, seconds: start.elapsed().as_secs_f64() };
        if !session.global.quiet {
            session.screen.error_line(&format!("[{}]", shown.figures()));
        }
        Ok(shown)
    }
}

impl Shown {
    /// Returns the answer's length, its speed, and why it ended.
    fn figures(&self) -> String {
        let tokens = self.answer.tokens.len();
        let speed = tokens as f64 / self.seconds.max(1e-9);
        format!("{tokens} tokens, {speed:.1} tokens/s; {}", ended(&self.answer.end))
    }

    /// Returns whether Ctrl-C ended it.
    pub fn is_interrupted(&self) -> bool {
        self.answer.end == EndReason::Interrupted
    }

    /// Returns why the answer is empty, if it is.
    pub fn emptiness(&self) -> Option<&'static str> {
        if !self.text.trim().is_empty() {
            return None;
        }
        Some(match self.answer.end {
            EndReason::EndToken(_) => {
                "the answer is empty: the model ended it immediately. Rephrase the message, sample \
                 with --temperature, or check that this is a chat model"
            }
            EndReason::Stop(_) => "the answer is empty: it started with a --stop text",
            EndReason::Limit => {
                "the answer has no readable text within its length limit (--max-new-tokens)"
            }
            EndReason::Interrupted => "the answer is empty: it was stopped before its first word",
        })
    }
}

/// Returns why an answer ended, in words. `grade_answers` reads these words from the output of `generate`.
pub fn ended(end: &EndReason) -> String {
    match end {
        EndReason::EndToken(_) => "ended by the model".into(),
        EndReason::Stop(text) => format!("ended by the stop text {text:?}"),
        EndReason::Limit => "at the length limit".into(),
        EndReason::Interrupted => "interrupted".into(),
    }
}

/// Where an answer is streamed: to standard output, or to standard error if standard output is for
/// JSON.
enum Out {
    Output { is_terminal: bool },
    Error { is_terminal: bool },
}

impl Out {
    fn new(session: &Session) -> Self {
        match session.is_json() {
            true => Self::Error { is_terminal: std::io::stderr().is_terminal() },
            false => Self::Output { is_terminal: std::io::stdout().is_terminal() },
        }
    }

    /// Writes a piece and flushes it. Ignores errors: a closed pipe is no reason to stop.
    fn write(&mut self, text: &str) {
        let (Self::Output { is_terminal } | Self::Error { is_terminal }) = *self;
        let text = if is_terminal { harmless(text) } else { text.to_owned() };
        let _ = match self {
            Self::Output { .. } => {
                let mut out = std::io::stdout();
                write!(out, "{text}").and_then(|()| out.flush())
            }
            Self::Error { .. } => write!(std::io::stderr(), "{text}"),
        };
    }
}

/// Replaces the control characters of a text, which could control the terminal.
pub fn harmless(text: &str) -> String {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_command(c) { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_cannot_command_the_terminal() {
        assert_eq!(harmless("a\tb\n\u{1b}[2Jc\r\u{9b}d"), "a\tb\n\u{FFFD}[2Jc\u{FFFD}\u{FFFD}d");
    }
}
