//! From a configuration to the data of a run.

use super::config::RunConfig;
use crate::data::arith::{self, ArithCorpus};
use crate::data::{
    ChatFormat, ChatTemplate, Encoded, Ledger, Lengths, MixDistillation, MixedRows, MixtureReport,
    Pairs, PromptTemplate, Row, RowStream, Source, TextTokenizer,
};
use crate::error::{Error, Result};
use crate::eval::{Answering, Question, final_answer};
use crate::model::{DecoderConfig, ModelFolder, model_folder};
use crate::train::{HeldOut, Progress};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The data of a run.
#[derive(Clone)]
pub struct Prepared {
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// Layout of prompts and answers.
    pub template: Arc<dyn PromptTemplate>,
    /// A name for that layout.
    pub template_name: String,
    /// The same as the source of a chat template, to be saved with the student.
    pub chat_template: String,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// The model to fine-tune.
    pub base: Option<ModelFolder>,
    /// The student's shape, with its vocabulary.
    pub model: DecoderConfig,
    /// The mixture to train on, in its first epoch.
    pub mixture: MixDistillation,
    /// What was asked of the mixture and what came of it.
    pub report: MixtureReport,
    /// What became of every record.
    pub ledger: Ledger,
    /// Held-out rows of each source.
    pub held_out: Vec<HeldOut>,
    /// Held-out problems with reference answers.
    pub questions: Vec<Question>,
    /// SHA-256 over the tokens to train on, to tell whether a resumed run has the same data.
    pub fingerprint: String,
    /// The same over the held-out rows.
    pub held_out_fingerprint: String,
    /// Tokens of the longest row to train on.
    pub longest: usize,
    encoded: Arc<Encoded>,
}

impl Prepared {
    /// Reads, joins, encodes and mixes the data that a configuration names.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration, the files or the tokenizer, before any training.
    pub fn new(config: &RunConfig) -> Result<Self> {
        config.validate()?;
        let data = &config.data;
        let base = match &config.base_model {
            Some(name) => Some(ModelFolder::open(&model_folder(name)?)?.for_training()?),
            None => None,
        };
        let end_token = data.end_token.as_deref();
        let tokenizer = match (&base, &data.tokenizer) {
            (Some(base), _) => base.tokenizer(end_token)?,
            (None, Some(path)) => TextTokenizer::from_file(path, end_token)?,
            (None, None) => TextTokenizer::builtin(arith::vocabulary().iter().map(String::as_str))?,
        };
        let Layout { template, name: template_name, source } =
            layout(config, base.as_ref(), &tokenizer)?;
        let end_tokens = match &base {
            Some(base) => base.answer_ends(&tokenizer, &*template),
            None => vec![template.end_token(&tokenizer)],
        };
        let (sources, test) = match data.sources.is_empty() {
            true => toy_sources(config),
            false => (read_sources(config)?, None),
        };
        // The built-in layout has a place for system texts where the data have any.
        let systems =
            || sources.iter().any(|source| source.records().iter().any(|r| r.system.is_some()));
        let chat_template = source.unwrap_or_else(|| data.template.to_jinja(&tokenizer, systems()));
        let mut model = base.as_ref().map_or(&config.model, ModelFolder::config).clone();
        let needed = tokenizer.vocabulary_size();
        if model.vocab_size == 0 {
            model.vocab_size = needed;
        }
        if model.vocab_size < needed {
            return Err(Error::config(
                "model.vocab_size",
                format!("it is {}, but the tokenizer has {needed} tokens", model.vocab_size),
                "Leave it out, or use the model's own tokenizer",
            ));
        }
        if base.is_none() {
            model.max_position_embeddings = model.max_position_embeddings.max(data.max_length);
        } else if data.max_length > model.max_position_embeddings {
            return Err(Error::config(
                "data.max_length",
                format!(
                    "it is {}, but the model is made for {} tokens",
                    data.max_length, model.max_position_embeddings
                ),
                "Lower it",
            ));
        }
        model.validate()?;
        let (pairs, mut ledger) = Pairs::join(sources, data.join)?;
        let encoded = encode(config, &pairs, &tokenizer, &*template)?;
        let mut pairs = encoded.fitting(&pairs, &mut ledger);
        if data.complete {
            pairs = pairs.complete(&mut ledger)?;
        }
        ledger.check_sources()?;
        let (training, held, held_encoded) = match test {
            Some(test) => {
                let (test, _) = Pairs::join(test, data.join)?;
                let test_encoded = encode(config, &test, &tokenizer, &*template)?;
                let (test, _) = test.retain(|s, r| test_encoded.example(s, r).is_some());
                (pairs, test, test_encoded)
            }
            None => {
                let (training, held) = match data.seed {
                    Some(seed) => pairs.split_by_text(data.hold_out, seed),
                    None => {
                        let count = (data.hold_out * pairs.len() as f64).round() as usize;
                        pairs.split(count.min(pairs.len() - 1), config.seed)
                    }
                };
                if training.is_empty() {
                    let what = format!("it leaves none of {} problems to train on", pairs.len());
                    return Err(Error::config("data.hold_out", what, "Lower it"));
                }
                ledger.held_out = held.len();
                ledger.training = training.len();
                (training, held, encoded.clone())
            }
        };
        let mixture = mix(config, Arc::new(training), Arc::new(encoded.lengths()))?;
        let evaluation = &config.evaluation;
        let held_out = held_out_rows(&held, &held_encoded, evaluation.loss_problems);
        Ok(Self {
            model,
            report: mixture.report(),
            ledger,
            held_out_fingerprint: held_out_fingerprint(&held_out),
            held_out,
            questions: questions(&held, evaluation.questions),
            fingerprint: fingerprint(&mixture, &encoded),
            longest: longest(&mixture, &encoded),
            tokenizer,
            template,
            template_name,
            chat_template,
            end_tokens,
            base,
            mixture,
            encoded,
        })
    }

    /// The same data in another mixture.
    ///
    /// # Errors
    /// As [`MixDistillation::new`].
    pub fn with_mixture(&self, config: &RunConfig) -> Result<Self> {
        let pairs = self.mixture.pairs().clone();
        let mixture = mix(config, pairs, Arc::new(self.encoded.lengths()))?;
        let report = mixture.report();
        Ok(Self { mixture, report, ..self.clone() })
    }

    /// What a student of this data answers with.
    pub fn answering(&self) -> Answering<'_> {
        Answering {
            tokenizer: &self.tokenizer,
            template: &*self.template,
            end_tokens: &self.end_tokens,
        }
    }

    /// Every answer to the problems that are trained on, whether the mixture takes it or not, by
    /// problem and source; rows have no number.
    pub fn all_answers(&self) -> Vec<Row> {
        let pairs = self.mixture.pairs();
        let sources = pairs.sources().iter().enumerate();
        let of = |problem: usize| {
            sources.clone().filter_map(move |(index, source)| {
                let record = pairs.record_index(problem, index)?;
                let example = self.encoded.example(index, record)?;
                Some(Row {
                    tokens: example.tokens.to_vec(),
                    prompt: example.prompt,
                    label: source.label(record),
                    ..Row::default()
                })
            })
        };
        (0..pairs.len()).flat_map(of).collect()
    }

    /// The rows that a run will see, each once, in training order.
    ///
    /// # Errors
    /// As [`RowStream::rows`].
    pub fn used_rows(&self, config: &RunConfig) -> Result<Vec<Row>> {
        const CHUNK: u64 = 4096;
        let mut stream = self.rows();
        let per_epoch = stream.rows_per_epoch();
        let mut total = config.train.total_rows(per_epoch);
        if self.mixture.is_constant() && !self.mixture.config().redraw {
            total = total.min(per_epoch as u64);
        }
        let pairs = self.mixture.pairs();
        let answers: usize = (0..pairs.sources().len()).map(|s| pairs.available(s)).sum();
        let mut seen = BTreeSet::new();
        let mut rows = vec![];
        for start in (0..total).step_by(CHUNK as usize) {
            let chunk = stream.rows(start..(start + CHUNK).min(total))?;
            rows.extend(chunk.into_iter().filter(|row| seen.insert(row.label.clone())));
            if rows.len() == answers {
                break;
            }
        }
        Ok(rows)
    }

    /// The rows to train on, in training order.
    pub fn rows(&self) -> MixedRows {
        MixedRows::new(self.mixture.clone(), self.encoded.clone())
    }
}

/// The toy corpus as sources: to train on, and to test with.
fn toy_sources(config: &RunConfig) -> (Vec<Source>, Option<Vec<Source>>) {
    let data = &config.data;
    let corpus = ArithCorpus::generate(
        &data.toy,
        data.toy_problems,
        data.toy_test_problems,
        config.data_seed(),
    );
    let sources = |problems: &[arith::ArithProblem]| {
        let long = problems.iter().enumerate().map(|(id, p)| p.long_record(id)).collect();
        let short = problems.iter().enumerate().map(|(id, p)| p.short_record(id)).collect();
        vec![Source::new("long", long), Source::new("short", short)]
    };
    let test = (!corpus.test.is_empty()).then(|| sources(&corpus.test));
    (sources(&corpus.train), test)
}

fn read_sources(config: &RunConfig) -> Result<Vec<Source>> {
    let read = |source: &super::config::SourceConfig| {
        Source::read(&source.name, &source.path, &source.columns, config.data.max_left_out)
    };
    if config.data.tokenizer.is_none() && config.base_model.is_none() {
        return Err(Error::config(
            "data.tokenizer",
            "files need a tokenizer",
            "Name the model to fine-tune with `--model FOLDER`, or for a student from random \
             weights a tokenizer.json with `--tokenizer FILE`",
        ));
    }
    config.data.sources.iter().map(read).collect()
}

/// How prompts and answers are laid out.
struct Layout {
    template: Arc<dyn PromptTemplate>,
    name: String,
    /// The same as the source of a chat template; `None` for the built-in layout.
    source: Option<String>,
}

/// The chat template that the configuration names, else the base model's, else the built-in layout.
fn layout(
    config: &RunConfig,
    base: Option<&ModelFolder>,
    tokenizer: &TextTokenizer,
) -> Result<Layout> {
    let data = &config.data;
    let plain = |name: &str| {
        if data.system_prompt.is_some() {
            let what = "there is no chat template to put it into";
            let hint = "Name one with data.chat_template, or use data.template.before";
            return Err(Error::config("data.system_prompt", what, hint));
        }
        let (template, name) = (Arc::new(data.template.clone()), name.to_owned());
        Ok(Layout { template, name, source: None })
    };
    let own = data.chat_template.as_deref();
    let chat = match (own, base) {
        (Some("none"), _) => return plain("the built-in layout"),
        (Some(path), base) => {
            let beside = data.tokenizer.as_deref().and_then(Path::parent);
            let folder = base.map(ModelFolder::path).or(beside).unwrap_or(Path::new(""));
            Some(ChatTemplate::from_file(Path::new(path), folder)?)
        }
        (None, Some(base)) => base.chat_template()?,
        (None, None) => None,
    };
    let Some(mut chat) = chat else {
        return plain("the built-in layout, since the model has no chat template");
    };
    for (name, value) in &data.template_variables {
        chat.set(name, value);
    }
    if let Some(date) = data.date.as_ref().and_then(|date| date.parse().ok()) {
        chat.set_date(date);
    }
    let (name, source) = (chat.name().to_owned(), Some(chat.source().to_owned()));
    let mut format = ChatFormat::new(chat, tokenizer, data.system_prompt.clone())?;
    if data.end_token.is_some() {
        format = format.with_end_token(tokenizer.end_token());
    }
    Ok(Layout { template: Arc::new(format), name, source })
}

fn encode(
    config: &RunConfig,
    pairs: &Pairs,
    tokenizer: &TextTokenizer,
    template: &dyn PromptTemplate,
) -> Result<Arc<Encoded>> {
    let data = &config.data;
    let answers = (0..pairs.sources().len()).map(|source| pairs.available(source)).sum::<usize>();
    let progress = RefCell::new(Progress::new("encode", answers as u64));
    let encoded =
        Encoded::encode(pairs, tokenizer, template, data.max_length, data.too_long, &|done| {
            progress.borrow_mut().update(done as u64, String::new)
        })?;
    Ok(Arc::new(encoded))
}

fn mix(config: &RunConfig, pairs: Arc<Pairs>, lengths: Arc<Lengths>) -> Result<MixDistillation> {
    let rows = pairs.len();
    if config.train.total_steps(rows) == 0 {
        let what = format!("{} epochs of {rows} rows make no step", config.train.epochs);
        return Err(Error::config("train.epochs", what, "Raise it, or set train.steps"));
    }
    let mut mixture = config.mixture.clone();
    mixture.seed = config.seed;
    mixture.planned_rows = config.train.total_rows(rows);
    MixDistillation::new(pairs, mixture, Some(lengths))
}

/// The held-out problems' rows, each source apart.
fn held_out_rows(pairs: &Pairs, encoded: &Encoded, problems: usize) -> Vec<HeldOut> {
    let sources = pairs.sources().iter().enumerate();
    sources
        .map(|(index, source)| {
            let rows = (0..pairs.len().min(problems)).filter_map(|problem| {
                let record = pairs.record_index(problem, index)?;
                let example = encoded.example(index, record)?;
                Some(Row {
                    tokens: example.tokens.to_vec(),
                    prompt: example.prompt,
                    label: source.label(record),
                    number: problem as u64,
                    ..Row::default()
                })
            });
            HeldOut { name: source.name().to_owned(), rows: rows.collect() }
        })
        .collect()
}

/// The held-out problems that have a reference answer.
fn questions(pairs: &Pairs, limit: usize) -> Vec<Question> {
    (0..pairs.len())
        .filter_map(|problem| {
            let reference = pairs.answer(problem)?;
            Some(Question {
                system: pairs.system(problem).map(str::to_owned),
                problem: pairs.problem(problem).to_owned(),
                // A reference may come with its working, as GSM8K's do.
                reference: final_answer(reference).unwrap_or_else(|| reference.trim().to_owned()),
            })
        })
        .take(limit)
        .collect()
}

fn longest(mixture: &MixDistillation, encoded: &Encoded) -> usize {
    let pairs = mixture.pairs();
    let sources = 0..pairs.sources().len();
    let lengths = sources.flat_map(|source| {
        (0..pairs.len()).filter_map(move |problem| {
            let record = pairs.record_index(problem, source)?;
            Some(encoded.example(source, record)?.tokens.len())
        })
    });
    lengths.max().unwrap_or(0)
}

fn held_out_fingerprint(held_out: &[HeldOut]) -> String {
    let mut hash = Sha256::new();
    for source in held_out {
        hash.update(source.name.as_bytes());
        for row in &source.rows {
            hash.update((row.tokens.len() as u64).to_le_bytes());
            hash.update((row.prompt as u64).to_le_bytes());
            row.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
    }
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fingerprint(mixture: &MixDistillation, encoded: &Encoded) -> String {
    let mut hash = Sha256::new();
    let pairs = mixture.pairs();
    for problem in 0..pairs.len() {
        for source in 0..pairs.sources().len() {
            let record = pairs.record_index(problem, source);
            let example = record.and_then(|record| encoded.example(source, record));
            // Lengths keep two rows apart from one long row.
            let tokens = example.map_or(&[][..], |example| example.tokens);
            hash.update((tokens.len() as u64).to_le_bytes());
            hash.update(example.map_or(0, |example| example.prompt as u64).to_le_bytes());
            tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
    }
    hex(hash)
}
