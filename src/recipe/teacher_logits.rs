//! A teacher's logits of a run's rows, written once and read while training.

use super::config::RunConfig;
use super::prepare::Prepared;
use super::teacher::load_teacher;
use crate::context::{Context, Task};
use crate::data::{Batch, Row, Share, TopTokens};
use crate::device;
use crate::error::{Error, Result};
use crate::train::{TeacherLogitsHeader, TeacherLogitsWriter};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A part is written when it has this size, or after this time.
const PART_BYTES: usize = 32 << 20;
const PART_TIME: Duration = Duration::from_secs(30);

/// What is written of a teacher, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct TeacherLogitsOptions {
    /// The folder to write, or to go on with.
    pub out: PathBuf,
    /// Tokens kept for each trained token; without it the run's `teacher.top_k`, or 64.
    pub top_k: Option<usize>,
    /// What logits are divided by; without it the run's temperature of distillation, or 1.
    pub temperature: Option<f64>,
    /// All answers to the problems that are trained on, and not only those that the mixture takes.
    pub all_answers: bool,
}

impl TeacherLogitsOptions {
    /// The rows of a run, as its settings say.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self { out: out.into(), top_k: None, temperature: None, all_answers: false }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WrittenLogits {
    /// Rows in the folder.
    pub rows: usize,
    /// Of these, those that an earlier process had written.
    pub before: usize,
    /// Trained tokens of the others.
    pub tokens: u64,
}

/// Writes what a teacher finds likely at each trained token of a run's rows; a folder that is begun goes
/// on. `teacher` is a model's folder, or with the feature `hub` a name; which teacher the settings name
/// does not matter.
///
/// # Errors
/// [`Error::Stopped`]: what was made is written, and the same call goes on; what preparing the run's
/// data, loading the teacher and [`TeacherLogitsWriter`] give. A process that is killed loses half a
/// minute.
pub fn write_teacher_logits(
    config: &RunConfig,
    teacher: &str,
    options: &TeacherLogitsOptions,
    context: &Context<'_>,
) -> Result<WrittenLogits> {
    TeacherLogitsWriter::check(&options.out)?;
    if config.mixture.share == Share::Auto && !options.all_answers {
        return Err(Error::config(
            "mixture.share",
            "it is auto, and pilots train on answers of every share",
            "Write the logits of all answers",
        ));
    }
    let part = config.train.objective.distillation;
    let temperature = options.temperature.or(part.map(|part| part.temperature)).unwrap_or(1.0);
    let usual = config.teacher.as_ref().map_or(64, |teacher| teacher.top_k);
    let top_k = options.top_k.unwrap_or(usual);
    let mut config = config.clone();
    (config.teacher, config.train.objective.distillation) = (None, None);
    let (unscored, needs_scores) = config.unscored();
    let prepared = match options.all_answers {
        true => Prepared::new(&unscored, context)?,
        false
            if needs_scores
                && config.mixture.choice.as_ref().is_some_and(|c| c.scores.is_none()) =>
        {
            return Err(Error::config(
                "mixture.choice.scores",
                "which rows the choice takes comes of scores, and no file keeps them",
                "Name a file for them, or write the logits of all answers",
            ));
        }
        false => Prepared::new(&config, context)?,
    };
    let vocabulary = prepared.tokenizer.vocabulary_size();
    // Wrong numbers show before the teacher is read.
    TeacherLogitsHeader::new(teacher, "", vocabulary, top_k, temperature)?;
    let device = device::by_name(&config.backend)?;
    let model = load_teacher(teacher, &prepared, &device, context)?;
    let fingerprint = model.fingerprint()?;
    let header = TeacherLogitsHeader::new(teacher, fingerprint, vocabulary, top_k, temperature)?;
    let rows = match options.all_answers {
        true => prepared.all_answers().into_iter().map(|answer| answer.row).collect(),
        false => prepared.used_rows(&config)?,
    };
    let read = |row: &Row| -> Result<(TopTokens, usize)> {
        let batch = Batch::new([row.example()], 1);
        Ok((model.top_tokens(&batch, top_k, temperature, vocabulary)?, batch.trained))
    };
    let mut parts = Parts::new(TeacherLogitsWriter::open(&options.out, header)?);
    let missing: Vec<&Row> = rows.iter().filter(|row| !parts.writer.holds(row)).collect();
    let before = rows.len() - missing.len();
    let total = rows.len() as u64;
    let mut progress = context.resumed_task(Task::TeacherLogits, total, before as u64);
    let (mut done, mut tokens) = (before, 0);
    for row in missing {
        let (top, trained) = read(row)?;
        parts.add(row.clone(), top)?;
        (done, tokens) = (done + 1, tokens + trained as u64);
        progress.add_tokens(trained as u64);
        if let Err(error) = progress.update(done as u64) {
            parts.flush()?;
            return Err(match error {
                Error::Stopped { .. } => Error::stopped(format!(
                    "{done} of {} rows are in {}",
                    rows.len(),
                    options.out.display()
                )),
                error => error,
            });
        }
    }
    parts.flush()?;
    Ok(WrittenLogits { rows: rows.len(), before, tokens })
}

/// Rows that are gathered to parts.
struct Parts {
    writer: TeacherLogitsWriter,
    rows: Vec<(Row, TopTokens)>,
    bytes: usize,
    begun: Instant,
}

impl Parts {
    fn new(writer: TeacherLogitsWriter) -> Self {
        Self { writer, rows: vec![], bytes: 0, begun: Instant::now() }
    }

    fn add(&mut self, row: Row, top: TopTokens) -> Result<()> {
        self.bytes += 4 * (top.tokens.len() + top.log_probs.len());
        self.rows.push((row, top));
        match self.bytes >= PART_BYTES || self.begun.elapsed() >= PART_TIME {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes what is gathered.
    fn flush(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            self.writer.write(&self.rows)?;
            self.rows.clear();
        }
        (self.bytes, self.begun) = (0, Instant::now());
        Ok(())
    }
}
