//! Prepares the data of a run: reads, joins, encodes, splits, and mixes it.

use super::choice::ChoiceScores;
use super::config::RunConfig;
use super::held_out::{fingerprint, held_out_fingerprint, held_out_rows, longest, questions};
use super::layout::{Layouts, layouts, tell_empty_reasoning};
use super::pilots::{self, ShareProposal};
use crate::context::Context;
use crate::data::arith::{self, ArithCorpus};
use crate::data::{
    AnswerScores, ChoiceBy, DataFiles, Encoded, Ledger, LengthLimit, Lengths, MixDistillation,
    MixedRows, MixtureOptions, MixtureReport, Pairs, PromptTemplate, Row, RowStream, Share, Source,
    TextTokenizer,
};
use crate::error::{Error, Problems, Result};
use crate::eval::Question;
use crate::model::{DecoderConfig, ModelFolder, TextInterface, model_folder};
use crate::train::HeldOut;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// What training has seen of one source, including repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenOfSource {
    /// The source's name.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// Tokens of these rows.
    pub tokens: u64,
    /// Trained tokens of these rows.
    pub trained_tokens: u64,
}

/// One source's answer to a problem, as a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceAnswer {
    /// The source's name.
    pub source: String,
    /// The id of the answer's record in its file.
    pub id: Option<String>,
    /// Prompt, answer, and end token.
    pub row: Row,
}

/// The data of a run.
#[derive(Clone)]
pub struct Prepared {
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// The prompt layout of the questions that the student answers.
    pub template: Arc<dyn PromptTemplate>,
    /// The name of this layout.
    pub template_name: String,
    /// This layout as the source of a chat template, to be saved with the student.
    pub chat_template: String,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// The model to fine-tune.
    pub base: Option<ModelFolder>,
    /// The student's shape, including the vocabulary size.
    pub model: DecoderConfig,
    /// The mixture to train on, in its first epoch.
    pub mixture: MixDistillation,
    /// Requested and realized shares of the mixture.
    pub report: MixtureReport,
    /// What happened to every record.
    pub ledger: Ledger,
    /// Held-out rows of each source.
    pub held_out: Vec<HeldOut>,
    /// Held-out problems with reference answers.
    pub questions: Vec<Question>,
    /// SHA-256 of the training tokens, which tells whether a resumed run has the same data.
    pub fingerprint: String,
    /// SHA-256 of the held-out rows.
    pub held_out_fingerprint: String,
    /// Length of the longest training row in tokens.
    pub longest: usize,
    /// The untuned student's scores of the answers, if the choice uses them.
    pub(super) scores: Option<ChoiceScores>,
    /// The proposal of the pilots, if they found the share.
    pub pilots: Option<Arc<ShareProposal>>,
    /// What was read for each source; a dataset on the Hub includes its commit.
    pub(crate) names: Vec<PathBuf>,
    pub(super) encoded: Arc<Encoded>,
}

impl Prepared {
    /// Reads, joins, encodes, and mixes the data of a configuration.
    ///
    /// # Errors
    /// Any problem with the configuration, the files, or the tokenizer; [`Error::Several`] if there is more
    /// than one; [`Error::Stopped`].
    pub fn new(config: &RunConfig, context: &Context<'_>) -> Result<Self> {
        config.validate()?;
        let data = &config.data;
        let Inputs { base, tokenizer, layouts, sources, names, test } =
            Inputs::read(config, context)?;
        let Layouts { asked: template, sources: of_sources, name: template_name, source } = layouts;
        let trained = of_sources.first().unwrap_or(&template);
        let end_tokens = match &base {
            Some(base) => base.answer_ends(&tokenizer, &**trained),
            None => vec![trained.end_token(&tokenizer)],
        };
        // The template of the built-in layout includes system texts only if the data have any.
        let systems =
            || sources.iter().any(|source| source.records().iter().any(|r| r.system.is_some()));
        let chat_template = source.unwrap_or_else(|| data.template.to_jinja(&tokenizer, systems()));
        let model = student_shape(config, base.as_ref(), &tokenizer)?;
        let (pairs, mut ledger) = Pairs::join_keeping(sources, data.join, config.answers_kept())?;
        let encoded = encode(config, &pairs, &tokenizer, &of_sources, context)?;
        let mut pairs = encoded.fitting(&pairs, &mut ledger);
        tell_empty_reasoning(&pairs, &encoded, &tokenizer, context)?;
        if data.complete {
            pairs = pairs.complete(&mut ledger)?;
        }
        ledger.check_sources()?;
        let (training, held, held_encoded) = match test {
            Some(test) => {
                let (test, _) = Pairs::join(test, data.join)?;
                let test_encoded = encode(config, &test, &tokenizer, &of_sources, context)?;
                let (test, _) = test.retain(|s, r| test_encoded.example(s, r).is_some());
                (pairs, test, test_encoded)
            }
            None => {
                let (training, held) = divide(config, &pairs, &mut ledger)?;
                (training, held, encoded.clone())
            }
        };
        let (training, not_taken) = match data.problems {
            Some(most) => training.limited(most, config.data_seed()),
            None => (training, 0),
        };
        (ledger.training, ledger.not_taken) = (training.len(), not_taken);
        // A choice by the student's scores follows below, since scoring needs the rows.
        let (unscored, needs_scores) = config.unscored();
        let mixture = mix(&unscored, Arc::new(training), Arc::new(encoded.lengths()), None)?;
        let evaluation = &config.evaluation;
        let held_out = held_out_rows(&held, &held_encoded, evaluation.loss_problems);
        let prepared = Self {
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
            pilots: None,
            names,
            encoded,
            scores: None,
        };
        if needs_scores {
            prepared.check_choice(config)?;
            return prepared.mixed(config, context);
        }
        Ok(prepared)
    }

    /// Returns the configuration with the names of what was read: datasets on the Hub with their commits.
    pub(crate) fn pinned(&self, config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        for (source, name) in config.data.sources.iter_mut().zip(&self.names) {
            source.path.clone_from(name);
        }
        config
    }

    /// Mixes the same data differently. Computes missing scores that its choice needs, without reporting
    /// progress.
    ///
    /// # Errors
    /// See [`MixDistillation::new`]; errors of scoring.
    pub fn with_mixture(&self, config: &RunConfig) -> Result<Self> {
        self.mixed(config, &Context::default())
    }

    /// Like [`Prepared::with_mixture`], reporting the progress of scoring to a context.
    ///
    /// # Errors
    /// See [`Prepared::with_mixture`]; [`Error::Stopped`].
    pub(crate) fn mixed(&self, config: &RunConfig, context: &Context<'_>) -> Result<Self> {
        self.mixed_by(config, ChoiceScores::needed(config, self, context)?)
    }

    /// Like [`Prepared::mixed`], with scores that are already computed.
    pub(super) fn mixed_by(
        &self,
        config: &RunConfig,
        scores: Option<ChoiceScores>,
    ) -> Result<Self> {
        let pairs = self.mixture.pairs().clone();
        let of_answers = scores.as_ref().map(|scores| scores.of_answers.clone());
        let mixture = mix(config, pairs, Arc::new(self.encoded.lengths()), of_answers)?;
        let report = mixture.report();
        Ok(Self { mixture, report, scores, ..self.clone() })
    }

    /// Returns the same data with `count` training problems set aside, which replace the held-out problems.
    pub(super) fn keeping_apart(
        &self,
        config: &RunConfig,
        count: usize,
        seed: u64,
    ) -> Result<Self> {
        let (training, apart) = self.mixture.pairs().split(count, seed);
        let mixture = mix(config, Arc::new(training), Arc::new(self.encoded.lengths()), None)?;
        let held_out = held_out_rows(&apart, &self.encoded, apart.len());
        Ok(Self {
            report: mixture.report(),
            held_out_fingerprint: held_out_fingerprint(&held_out),
            held_out,
            questions: questions(&apart, apart.len()),
            fingerprint: fingerprint(&mixture, &self.encoded),
            longest: longest(&mixture, &self.encoded),
            mixture,
            ..self.clone()
        })
    }

    /// Checks the choice of a configuration before its scores are computed. Whether its bounds can be met
    /// does not depend on the scores, so lengths stand in for them.
    ///
    /// # Errors
    /// See [`MixDistillation::new`].
    pub(crate) fn check_choice(&self, config: &RunConfig) -> Result<()> {
        let mut config = config.clone();
        let Some(choice) = config.mixture.choice.as_mut() else { return Ok(()) };
        if choice.by.needs_student() {
            (choice.by, choice.window) = (ChoiceBy::Shortest, None);
        }
        let pairs = self.mixture.pairs().clone();
        mix(&config, pairs, Arc::new(self.encoded.lengths()), None).map(|_| ())
    }

    /// Returns the tokenizer, prompt layout, and end tokens for a student of this data.
    pub fn text_interface(&self) -> TextInterface<'_> {
        TextInterface {
            tokenizer: &self.tokenizer,
            template: &*self.template,
            end_tokens: &self.end_tokens,
        }
    }

    /// Returns all answers to the training problems, including those that the mixture does not use, ordered
    /// by problem and source. Rows have no number.
    pub fn all_answers(&self) -> Vec<SourceAnswer> {
        let pairs = self.mixture.pairs();
        let answer = |(_, source, record): (usize, usize, usize)| {
            let row = self.row_of(source, record)?;
            let of = &pairs.sources()[source];
            let id = of.records()[record].id.clone();
            Some(SourceAnswer { source: of.name().to_owned(), id, row })
        };
        self.answer_places().filter_map(answer).collect()
    }

    /// Returns the rows of all answers with the numbers of their problems, ordered by problem and source.
    pub(super) fn rows_by_problem(&self) -> Vec<(usize, Row)> {
        let places = self.answer_places();
        places.filter_map(|(p, source, record)| Some((p, self.row_of(source, record)?))).collect()
    }

    /// Returns the problem, source, and record of every answer to the training problems, ordered by problem
    /// and source.
    pub(super) fn answer_places(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let pairs = self.mixture.pairs();
        let width = pairs.sources().len();
        (0..pairs.len() * width).flat_map(move |place| {
            let (problem, source) = (place / width, place % width);
            pairs.candidates(problem, source).map(move |record| (problem, source, record))
        })
    }

    /// Returns the row of a source's answer to a training problem, if it has one. The row has no number.
    ///
    /// # Panics
    /// If either index is out of range.
    pub fn answer(&self, problem: usize, source: usize) -> Option<Row> {
        self.row_of(source, self.mixture.pairs().record_index(problem, source)?)
    }

    /// Returns the row of a source's record.
    pub(super) fn row_of(&self, source: usize, record: usize) -> Option<Row> {
        let example = self.encoded.example(source, record)?;
        Some(Row {
            tokens: example.tokens.to_vec(),
            prompt: example.prompt,
            untrained: example.untrained.to_vec(),
            label: self.mixture.pairs().sources()[source].label(record),
            ..Row::default()
        })
    }

    /// Returns the rows that a run trains on, each once, in training order.
    ///
    /// # Errors
    /// See [`RowStream::rows`].
    pub fn used_rows(&self, config: &RunConfig) -> Result<Vec<Row>> {
        const CHUNK: u64 = 4096;
        let mut stream = self.rows();
        let per_epoch = stream.rows_per_epoch();
        let mut total = config.train.total_rows(per_epoch);
        if self.mixture.is_constant() && !self.mixture.config().redraw {
            total = total.min(per_epoch as u64);
        }
        let pairs = self.mixture.pairs();
        let answers: usize = (0..pairs.sources().len()).map(|s| pairs.answers_of(s)).sum();
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

    /// Returns what the first `rows` rows of training contain, by source.
    pub fn seen(&self, rows: u64) -> Vec<SeenOfSource> {
        let sources = self.mixture.pairs().sources();
        let mut seen: Vec<SeenOfSource> = sources
            .iter()
            .map(|source| SeenOfSource { name: source.name().to_owned(), ..Default::default() })
            .collect();
        let per_epoch = self.mixture.pairs().len() as u64;
        for epoch in 0..rows.div_ceil(per_epoch.max(1)) {
            let mixture = self.mixture.at_epoch(epoch);
            let left = rows - epoch * per_epoch;
            for problem in mixture.order(epoch).into_iter().take(left as usize) {
                let row = mixture.row(problem as usize);
                let of = &mut seen[row.source_index()];
                of.rows += 1;
                if let Some(example) = self.encoded.example(row.source_index(), row.record_index())
                {
                    of.tokens += example.tokens.len() as u64;
                    of.trained_tokens += example.trained() as u64;
                }
            }
        }
        seen
    }

    /// Returns the number of trained tokens of each problem's row in the mixture's first epoch.
    pub(super) fn trained_by_problem(&self) -> Vec<u32> {
        let trained = |problem: usize| {
            let row = self.mixture.row(problem);
            let example = self.encoded.example(row.source_index(), row.record_index());
            example.map_or(0, |example| example.trained() as u32)
        };
        (0..self.mixture.pairs().len()).map(trained).collect()
    }

    /// Returns the rows to train on, in training order.
    pub fn rows(&self) -> MixedRows {
        MixedRows::new(self.mixture.clone(), self.encoded.clone())
    }
}

/// Returns the toy corpus as sources: for training, and for testing if it has test problems.
fn toy_sources(config: &RunConfig) -> (Vec<Source>, Option<Vec<Source>>) {
    let data = &config.data;
    let corpus = ArithCorpus::generate(
        &data.toy,
        data.toy_problems,
        data.toy_test_problems,
        config.data_seed(),
    );
    let test = (!corpus.test.is_empty()).then(|| arith::sources(&corpus.test));
    (arith::sources(&corpus.train), test)
}

/// The inputs that a configuration names, read.
struct Inputs {
    base: Option<ModelFolder>,
    tokenizer: TextTokenizer,
    layouts: Layouts,
    sources: Vec<Source>,
    names: Vec<PathBuf>,
    /// The test set of the toy corpus.
    test: Option<Vec<Source>>,
}

impl Inputs {
    /// Reads all inputs, cheap ones first, and reports all problems at once.
    fn read(config: &RunConfig, context: &Context<'_>) -> Result<Self> {
        let data = &config.data;
        let mut problems = Problems::default();
        let is_toy = data.sources.is_empty();
        for source in &data.sources {
            let key = || format!("data.sources.{}.path", source.name);
            problems.note(DataFiles::check(&source.path).map_err(|error| error.with_key(key())));
        }
        let base = match &config.base_model {
            None => Some(None),
            Some(name) => problems.note(base_model(name, data.max_length, context)).map(Some),
        };
        let tokenizer = match &base {
            // The base model could not be opened, so its tokenizer is unknown.
            None => None,
            Some(base) => problems.note(read_tokenizer(config, base.as_ref(), is_toy)),
        };
        let template = match (&base, &tokenizer) {
            (Some(base), Some(tokenizer)) => {
                problems.note(layouts(config, base.as_ref(), tokenizer, context))
            }
            _ => None,
        };
        let (sources, names, test) = match is_toy {
            true => {
                let (sources, test) = toy_sources(config);
                (sources, vec![], test)
            }
            false => {
                let read = read_sources(config, &mut problems, context)?;
                let (sources, names) = read.into_iter().unzip();
                (sources, names, None)
            }
        };
        context.check()?;
        problems.check()?;
        match (base, tokenizer, template) {
            (Some(base), Some(tokenizer), Some(layouts)) => {
                Ok(Self { base, tokenizer, layouts, sources, names, test })
            }
            _ => unreachable!("a missing input is among the problems"),
        }
    }
}

/// Returns the folder of the model to fine-tune, for rows of up to `max_length` tokens.
fn base_model(name: &str, max_length: usize, context: &Context<'_>) -> Result<ModelFolder> {
    let folder = ModelFolder::open(&model_folder(name, context)?)?;
    folder.for_length(max_length, context)?.for_training(context)
}

fn read_tokenizer(
    config: &RunConfig,
    base: Option<&ModelFolder>,
    is_toy: bool,
) -> Result<TextTokenizer> {
    let end_token = config.data.end_token.as_deref();
    match (base, &config.data.tokenizer) {
        (Some(base), _) => base.tokenizer(end_token),
        (None, Some(path)) => TextTokenizer::from_file(path, end_token),
        (None, None) if is_toy => {
            TextTokenizer::builtin(arith::vocabulary().iter().map(String::as_str))
        }
        (None, None) => Err(Error::config(
            "data.tokenizer",
            "data files need a tokenizer",
            "Name the model to fine-tune in base_model, or a tokenizer.json for a student that starts \
             from random weights",
        )),
    }
}

/// Reads the sources, each with the name of what was read. Downloads nothing if there are problems already.
fn read_sources(
    config: &RunConfig,
    problems: &mut Problems,
    context: &Context<'_>,
) -> Result<Vec<(Source, PathBuf)>> {
    let max_left_out = config.data.max_left_out;
    let mut read = vec![];
    for source in &config.data.sources {
        let is_here = source.path.exists();
        if !is_here && !problems.is_empty() {
            continue;
        }
        let key = || format!("data.sources.{}.path", source.name);
        let files = match DataFiles::find(&source.path, context) {
            Err(error @ Error::Stopped { .. }) => return Err(error),
            files => problems.note(files.map_err(|error| error.with_key(key()))),
        };
        let Some(files) = files else { continue };
        let records = Source::read_files(&source.name, &files, &source.columns, max_left_out);
        let records = problems.note(records.map_err(|error| match &error {
            Error::Config { key, .. } if key != "columns" => error,
            _ => error.in_table(&format!("data.sources.{}", source.name)),
        }));
        read.extend(records.map(|records| (records, files.name().to_owned())));
    }
    Ok(read)
}

/// Returns the student's shape, checked against the tokenizer and the length limit.
fn student_shape(
    config: &RunConfig,
    base: Option<&ModelFolder>,
    tokenizer: &TextTokenizer,
) -> Result<DecoderConfig> {
    let max_length = config.data.max_length;
    let mut model = base.map_or(&config.model, ModelFolder::config).clone();
    let needed = tokenizer.vocabulary_size();
    if model.vocab_size == 0 {
        model.vocab_size = needed;
    }
    if model.vocab_size < needed {
        return Err(Error::config(
            "model.vocab_size",
            format!("it is {}, but the tokenizer has {needed} tokens", model.vocab_size),
            "Remove it, or use the model's own tokenizer",
        ));
    }
    if base.is_none() {
        model.max_position_embeddings = model.max_position_embeddings.max(max_length);
        model = model.for_length(max_length);
    } else if max_length > model.context() {
        let positions = model.context();
        return Err(Error::config(
            "data.max_length",
            format!("it is {max_length}, but the model supports {positions} tokens"),
            "Lower it",
        ));
    }
    model.validate()?;
    Ok(model)
}

/// Splits the problems into training and held-out problems.
fn divide(config: &RunConfig, pairs: &Pairs, ledger: &mut Ledger) -> Result<(Pairs, Pairs)> {
    let hold_out = config.data.hold_out;
    let (training, held) = match config.data.seed {
        Some(seed) => pairs.split_by_text(hold_out, seed),
        None => {
            let count = (hold_out * pairs.len() as f64).round() as usize;
            pairs.split(count.min(pairs.len() - 1), config.seed)
        }
    };
    if training.is_empty() {
        let what =
            format!("all {} problems are held out, so none is left to train on", pairs.len());
        return Err(Error::config("data.hold_out", what, "Lower it"));
    }
    ledger.held_out = held.len();
    Ok((training, held))
}

fn encode(
    config: &RunConfig,
    pairs: &Pairs,
    tokenizer: &TextTokenizer,
    templates: &[Arc<dyn PromptTemplate>],
    context: &Context<'_>,
) -> Result<Arc<Encoded>> {
    let data = &config.data;
    let limit = LengthLimit { tokens: data.max_length, too_long: data.too_long };
    let templates: Vec<&dyn PromptTemplate> = templates.iter().map(|layout| &**layout).collect();
    let turns = data.trained_turns;
    Encoded::encode_by_source(pairs, tokenizer, &templates, turns, limit, context).map(Arc::new)
}

fn mix(
    config: &RunConfig,
    pairs: Arc<Pairs>,
    lengths: Arc<Lengths>,
    scores: Option<Arc<AnswerScores>>,
) -> Result<MixDistillation> {
    let rows = pairs.len();
    if config.train.total_steps(rows) == 0 {
        let what = format!("{} epochs of {rows} rows are less than one step", config.train.epochs);
        return Err(Error::config("train.epochs", what, "Raise it, or set train.steps"));
    }
    let options = MixtureOptions {
        seed: config.seed,
        lengths: Some(lengths),
        planned_rows: Some(config.train.total_rows(rows)),
        scores,
    };
    let mixture = match config.mixture.share {
        Share::Auto => pilots::stand_in(&config.mixture, &pairs)?,
        _ => config.mixture.clone(),
    };
    MixDistillation::new(pairs, mixture, options)
}
