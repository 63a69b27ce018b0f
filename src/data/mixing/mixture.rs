//! The mixture: one answer per problem, with the requested shares of the sources.
//!
//! ```text
//! problem      0      1      2      3      4          weights: long 0.2, short 0.8
//! source     short  short  long   short  short        -> item 2 is problem 2 with the long answer
//! ```
//!
//! Mix Distillation (arXiv 2502.12143, section 4) draws long and short answers 1:4 and keeps the number of
//! problems fixed. [`MixDistillation`] is a Burn [`Dataset`] over the result.

use super::assign::{self, Quota};
use super::choice::{ChoiceBy, ChoiceConfig};
use super::chosen::{Candidates, Chosen};
use super::lengths::Lengths;
use super::pairs::{Pairs, Source};
use super::report::{MixtureReport, SourceShare};
use super::scores::AnswerScores;
use super::share::Share;
use crate::data::reading::CotRecord;
use crate::error::{Error, Result};
use crate::random::Stream;
use crate::text::hex;
use burn::data::dataset::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

/// How the weights change during training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The weights stay the same.
    #[default]
    Constant,
    /// The weights change linearly, in rows, from `mixture.weights` to these.
    Linear {
        /// Weights at the end of training, by source.
        to: BTreeMap<String, f64>,
    },
    /// Short answers first: the share of the source with the longest answers rises linearly. Its mean over
    /// training is its weight.
    ShortToLong,
}

/// Settings of the mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixtureConfig {
    /// Share of each source, by name. Weights are divided by their sum, and every source needs one. A source
    /// with weight 0 is used only for problems that no other source answers. Ignored if pilots
    /// (`mixture.share`) or scores (`mixture.choice`) determine the shares.
    pub weights: BTreeMap<String, f64>,
    /// What a weight is a share of, and how exactly it is met.
    pub share: Share,
    /// Redraw in every epoch which problems get which source's answer. If false, a problem keeps its answer
    /// in all epochs, unless a schedule changes it.
    pub redraw: bool,
    /// How the weights change during training: `constant`, `short_to_long`, or linearly to other weights.
    pub schedule: Schedule,
    /// Choose answers by a score instead of at random, for example with `mixture.choice.by = "rsr"`. Requires
    /// `mixture.share = "exact"`, no `mixture.redraw`, and a constant `mixture.schedule`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<ChoiceConfig>,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            weights: BTreeMap::from([("long".into(), 0.2), ("short".into(), 0.8)]),
            share: Share::default(),
            redraw: false,
            schedule: Schedule::default(),
            choice: None,
        }
    }
}

impl MixtureConfig {
    /// Returns a mixture of the sources `long` and `short` with this share of long answers.
    pub fn long_short(long: f64) -> Self {
        let weights = BTreeMap::from([("long".into(), long), ("short".into(), 1.0 - long)]);
        Self { weights, ..Self::default() }
    }
}

/// Inputs of a mixture besides its settings.
#[derive(Clone, Debug, Default)]
pub struct MixtureOptions {
    /// Seed of the mixture and of the order of problems.
    pub seed: u64,
    /// Lengths of the answers, for [`Share::Tokens`] and the token columns of the report.
    pub lengths: Option<Arc<Lengths>>,
    /// Number of rows in the whole training. Schedules other than [`Schedule::Constant`] measure progress by
    /// it.
    pub planned_rows: Option<u64>,
    /// The untuned student's scores of the answers, for choices that need them.
    pub scores: Option<Arc<AnswerScores>>,
}

/// One row of the mixture: a problem with one source's answer. Cheap to clone, since texts stay in the
/// source.
#[derive(Clone, Debug)]
pub struct MixedRow {
    sources: Arc<[Source]>,
    problem: u32,
    source: u16,
    record: u32,
}

impl MixedRow {
    /// Returns the index of the problem in the mixture's [`Pairs`].
    pub fn problem_index(&self) -> usize {
        self.problem as usize
    }

    /// Returns the index of the source in the mixture's [`Pairs`].
    pub fn source_index(&self) -> usize {
        usize::from(self.source)
    }

    /// Returns the index of the record in its source.
    pub fn record_index(&self) -> usize {
        self.record as usize
    }

    /// Returns the name of the source.
    pub fn source(&self) -> &str {
        self.sources[self.source_index()].name()
    }

    /// Returns a name of the row for messages.
    pub fn label(&self) -> String {
        self.sources[self.source_index()].label(self.record_index())
    }

    /// Returns the record.
    pub fn record(&self) -> &CotRecord {
        &self.sources[self.source_index()].records()[self.record_index()]
    }
}

/// Problems, each with one source's answer. Item `i` is problem `i`.
///
/// Holds two bytes per problem besides the shared [`Pairs`], and four more with a choice. Item access is
/// O(1).
#[derive(Clone, Debug)]
pub struct MixDistillation {
    pairs: Arc<Pairs>,
    config: MixtureConfig,
    options: MixtureOptions,
    /// Normalized weight of each source, in the order of `pairs`.
    weights: Vec<f64>,
    /// The weights at the end of training.
    end_weights: Vec<f64>,
    epoch: u64,
    /// Source index of each problem.
    assignment: Vec<u16>,
    /// Record index of each problem, if answers are chosen by score.
    records: Option<Vec<u32>>,
}

impl MixDistillation {
    /// Creates the mixture, in its first epoch.
    ///
    /// # Errors
    /// [`Error::Config`] for [`Share::Auto`]; for weights that are negative, not finite, sum to 0, name an
    /// unknown source, or omit one; for [`Share::Tokens`] without lengths; for a schedule without planned
    /// rows; for an invalid choice (see [`MixtureConfig::validate_choice`]), bounds that cannot be met, or
    /// missing scores. [`Error::Pairing`] if there are no problems.
    pub fn new(pairs: Arc<Pairs>, config: MixtureConfig, options: MixtureOptions) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::Pairing {
                what: "there are no problems to mix".into(),
                hint: "Check the ledger for the reasons why records were left out".into(),
            });
        }
        if config.share == Share::Auto {
            return Err(Error::config(
                "mixture.share",
                "it is auto, but no pilots have found the weights",
                "Call `recipe::propose_share` and use the mixture that it proposes",
            ));
        }
        config.validate_choice()?;
        let weights = match config.chooses_share() {
            // Only realized shares are reported.
            true => vec![1.0 / pairs.sources().len() as f64; pairs.sources().len()],
            false => resolve(&config.weights, &pairs, "mixture.weights")?,
        };
        let weights_len = weights.len();
        let end_weights = match &config.schedule {
            Schedule::Constant => weights.clone(),
            Schedule::Linear { to } => resolve(to, &pairs, "mixture.schedule.linear.to")?,
            Schedule::ShortToLong => Self::curriculum(&pairs, &weights)[1].clone(),
        };
        let start = match &config.schedule {
            Schedule::ShortToLong => Self::curriculum(&pairs, &weights)[0].clone(),
            _ => weights,
        };
        if config.schedule != Schedule::Constant && options.planned_rows.unwrap_or(0) == 0 {
            return Err(Error::config(
                "mixture.schedule",
                "a schedule needs the number of rows in the whole training",
                "Set planned_rows to epochs x problems",
            ));
        }
        if config.share == Share::Tokens && options.lengths.is_none() {
            return Err(Error::config(
                "mixture.share",
                "a share of tokens needs the answers' lengths in tokens",
                "Encode the sources first and pass the lengths",
            ));
        }
        if let (Share::Tokens, Some(lengths)) = (config.share, &options.lengths) {
            let unknown = (0..pairs.len())
                .flat_map(|problem| (0..weights_len).map(move |source| (problem, source)))
                .find(|&(problem, source)| {
                    let record = pairs.record_index(problem, source);
                    record.is_some_and(|record| lengths.get(source, record).is_none())
                });
            if let Some((problem, source)) = unknown {
                let name = pairs.sources()[source].name();
                return Err(Error::config(
                    "mixture.share",
                    format!("the length of `{name}`'s answer to problem {problem} is unknown"),
                    "Use the pairs that `Encoded::fitting` returns",
                ));
            }
        }
        let mut mixture = Self {
            pairs,
            config,
            options,
            weights: start,
            end_weights,
            epoch: 0,
            assignment: vec![],
            records: None,
        };
        match mixture.config.choice.clone() {
            Some(choice) => mixture.choose(&choice)?,
            None => mixture.assign(0),
        }
        Ok(mixture)
    }

    /// Weights at the start and at the end of a short-to-long curriculum with these mean weights.
    fn curriculum(pairs: &Pairs, weights: &[f64]) -> [Vec<f64>; 2] {
        let mean_length = |source: &Source| {
            let records = source.records();
            let total: usize = records.iter().map(|r| r.solution.len()).sum();
            total as f64 / records.len().max(1) as f64
        };
        let lengths: Vec<f64> = pairs.sources().iter().map(mean_length).collect();
        let longest = (0..lengths.len())
            .max_by(|a, b| lengths[*a].total_cmp(&lengths[*b]))
            .unwrap_or_default();
        let mean = weights[longest];
        let spread = mean.min(1.0 - mean);
        let with = |share: f64| -> Vec<f64> {
            let others = if mean < 1.0 { (1.0 - share) / (1.0 - mean) } else { 0.0 };
            let weight = |i, w| if i == longest { share } else { w * others };
            weights.iter().enumerate().map(|(i, w)| weight(i, *w)).collect()
        };
        [with(mean - spread), with(mean + spread)]
    }

    /// Returns the mixture in another epoch. Equal to this one unless it redraws or has a schedule.
    pub fn at_epoch(&self, epoch: u64) -> Self {
        let mut mixture = Self { epoch, ..self.clone() };
        if self.config.redraw || self.config.schedule != Schedule::Constant {
            mixture.assign(epoch);
        }
        mixture
    }

    /// Returns the order in which an epoch visits the problems: a permutation that is a pure function of the
    /// seed and the epoch.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        Stream::new(self.options.seed, "order", epoch).permutation(self.pairs.len())
    }

    /// Chooses an answer for each problem by score.
    fn choose(&mut self, choice: &ChoiceConfig) -> Result<()> {
        let candidates = Candidates::new(&self.pairs, choice, &self.options)?;
        let mut random = Stream::new(self.options.seed, "mixture", 0);
        let Chosen { sources, records } = candidates.choose(&self.weights, &mut random)?;
        (self.assignment, self.records) = (sources, Some(records));
        Ok(())
    }

    fn assign(&mut self, epoch: u64) {
        let draw = if self.config.redraw { epoch } else { 0 };
        let mut random = Stream::new(self.options.seed, "mixture", draw);
        let pairs = &self.pairs;
        let answers = |problem: u32, source: usize| pairs.record_index(problem as usize, source);
        let constant = self.config.schedule == Schedule::Constant;
        // A schedule follows the epoch's order of problems.
        let order = if constant { random.permutation(pairs.len()) } else { self.order(epoch) };
        let planned = self.options.planned_rows.unwrap_or(0).max(1) as f64;
        let seen = (epoch as usize * pairs.len()) as f64;
        let weights_at = |place: usize| -> Vec<f64> {
            let progress = ((seen + place as f64 + 0.5) / planned).min(1.0);
            let blend = |(a, b): (&f64, &f64)| a + (b - a) * progress;
            self.weights.iter().zip(&self.end_weights).map(blend).collect()
        };
        let trained = |problem: u32, source: usize| -> Option<u32> {
            let lengths = self.options.lengths.as_ref()?;
            Some(lengths.get(source, answers(problem, source)?)?.trained)
        };
        let available = |problem, source| answers(problem, source).is_some();
        self.assignment = match (self.config.share, constant) {
            (Share::Exact | Share::Auto, true) => assign::exact(&order, &self.weights, available),
            (Share::Exact | Share::Auto, false) => {
                assign::following(&order, weights_at, Quota::Rows, &|problem, source| {
                    available(problem, source).then_some(1)
                })
            }
            (Share::Bernoulli, _) => assign::bernoulli(&order, weights_at, available, &mut random),
            (Share::Tokens, true) => {
                let mut assignment = assign::following(&order, weights_at, Quota::Tokens, &trained);
                assign::refine_tokens(&mut assignment, &order, &self.weights, &trained);
                assignment
            }
            (Share::Tokens, false) => {
                assign::following(&order, weights_at, Quota::Tokens, &trained)
            }
        };
    }

    /// Returns the problems with all answers.
    pub fn pairs(&self) -> &Arc<Pairs> {
        &self.pairs
    }

    /// Returns whether the weights are constant during training.
    pub fn is_constant(&self) -> bool {
        self.config.schedule == Schedule::Constant
    }

    /// Returns the epoch of this mixture.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the settings.
    pub fn config(&self) -> &MixtureConfig {
        &self.config
    }

    /// Returns everything that determines the sequence of rows, to compare two runs.
    pub(crate) fn identity(&self) -> serde_json::Value {
        let MixtureConfig { weights, share, redraw, schedule, choice } = &self.config;
        let mut identity = serde_json::json!({
            "weights": weights,
            "share": share,
            "redraw": redraw,
            "schedule": schedule,
            "seed": self.options.seed,
            "planned_rows": self.options.planned_rows.unwrap_or(0),
        });
        // Without a choice, the same as in earlier versions.
        if let (Some(choice), Some(records)) = (choice, &self.records) {
            let choice = ChoiceConfig { scores: None, ..choice.clone() };
            identity["choice"] = serde_json::json!(choice);
            let rows = self.assignment.iter().zip(records);
            let mut hash = Sha256::new();
            rows.for_each(|(source, record)| {
                hash.update(source.to_le_bytes());
                hash.update(record.to_le_bytes());
            });
            identity["chosen"] = serde_json::json!(hex(hash.finalize()));
        }
        identity
    }

    /// Returns the row of a problem, by index.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn row(&self, problem: usize) -> MixedRow {
        let source = self.assignment[problem];
        MixedRow {
            sources: self.pairs.sources().clone(),
            problem: problem as u32,
            source,
            record: self.record_of(problem) as u32,
        }
    }

    /// Returns the index of the record that answers a problem.
    fn record_of(&self, problem: usize) -> usize {
        if let Some(records) = &self.records {
            return records[problem] as usize;
        }
        let record = self.pairs.record_index(problem, usize::from(self.assignment[problem]));
        // `assign` picks only sources that answer the problem.
        record.expect("the chosen source answers the problem")
    }

    /// Returns the size of this value in bytes, without the shared pairs.
    pub fn index_bytes(&self) -> usize {
        let records = self.records.as_ref().map_or(0, Vec::capacity);
        std::mem::size_of::<Self>()
            + self.assignment.capacity() * std::mem::size_of::<u16>()
            + records * std::mem::size_of::<u32>()
    }

    /// Returns the requested and realized shares in this epoch.
    pub fn report(&self) -> MixtureReport {
        let sources = self.pairs.sources();
        let mut lines: Vec<SourceShare> = sources
            .iter()
            .zip(self.requested())
            .enumerate()
            .map(|(index, (source, requested))| SourceShare {
                name: source.name().into(),
                requested,
                available: self.pairs.available(index),
                ..Default::default()
            })
            .collect();
        for problem in 0..self.pairs.len() {
            let source = usize::from(self.assignment[problem]);
            let line = &mut lines[source];
            line.rows += 1;
            let record = self.record_of(problem);
            let text = &sources[source].records()[record].solution;
            line.characters += text.chars().count() as u64;
            if let Some(length) = self.options.lengths.as_ref().and_then(|l| l.get(source, record))
            {
                line.tokens += u64::from(length.tokens);
                line.trained_tokens += u64::from(length.trained);
            }
        }
        if self.config.chooses_share() {
            let rows = self.pairs.len() as f64;
            lines.iter_mut().for_each(|line| line.requested = line.rows as f64 / rows);
        }
        let with_tokens = self.options.lengths.is_some();
        let mut report = MixtureReport::new(self.config.share, self.epoch, with_tokens, lines);
        if let (Some(choice), Some(records)) = (&self.config.choice, &self.records)
            && choice.by != ChoiceBy::Chance
        {
            // `new` checked that each answer has a score.
            let candidates = Candidates { pairs: &self.pairs, choice, options: &self.options };
            let chosen = Chosen { sources: self.assignment.clone(), records: records.clone() };
            let rows: Vec<usize> = report.sources.iter().map(|source| source.rows).collect();
            report.shortfalls = candidates.missed(&self.weights, &rows);
            report.choice = Some(candidates.report(&chosen, self.options.seed));
        }
        report
    }

    /// Returns the mean weights over this epoch.
    fn requested(&self) -> Vec<f64> {
        let planned = self.options.planned_rows.unwrap_or(0).max(1) as f64;
        let rows = self.pairs.len();
        let seen = self.epoch as f64 * rows as f64;
        let progress = match self.is_constant() {
            true => 0.0,
            false => {
                let at = |place: usize| ((seen + place as f64 + 0.5) / planned).min(1.0);
                (0..rows).map(at).sum::<f64>() / rows as f64
            }
        };
        let blend = |(a, b): (&f64, &f64)| a + (b - a) * progress;
        self.weights.iter().zip(&self.end_weights).map(blend).collect()
    }
}

impl Dataset<MixedRow, Infallible> for MixDistillation {
    fn get(&self, index: usize) -> Result<MixedRow, Infallible> {
        Ok(self.row(index))
    }

    fn len(&self) -> usize {
        self.pairs.len()
    }
}

/// Weights in the order of the sources, normalized.
fn resolve(weights: &BTreeMap<String, f64>, pairs: &Pairs, key: &str) -> Result<Vec<f64>> {
    let names: Vec<&str> = pairs.sources().iter().map(Source::name).collect();
    if let Some(unknown) = weights.keys().find(|name| !names.contains(&name.as_str())) {
        let what = format!("there is no source called `{unknown}`");
        return Err(Error::config(key, what, format!("Use the names {}", names.join(", "))));
    }
    let mut values = vec![];
    for name in &names {
        let Some(&weight) = weights.get(*name) else {
            let what = format!("source `{name}` has no weight");
            return Err(Error::config(
                key,
                what,
                "Give it a weight; 0 limits it to problems that no other source answers",
            ));
        };
        if !weight.is_finite() || weight < 0.0 {
            let what = format!("the weight of `{name}` is {weight}");
            return Err(Error::config(key, what, "Give a finite number, 0 or more"));
        }
        values.push(weight);
    }
    let sum: f64 = values.iter().sum();
    if sum <= 0.0 || !sum.is_finite() {
        let what = format!("the weights sum to {sum}");
        return Err(Error::config(key, what, "Give at least one source a weight above 0"));
    }
    Ok(values.into_iter().map(|weight| weight / sum).collect())
}
