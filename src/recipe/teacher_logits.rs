//! Writes a teacher's logits for a run's rows, to be read during training.

use super::config::RunConfig;
use super::prepare::Prepared;
use super::teacher::load_teacher;
use crate::context::{Context, Task};
use crate::data::batching::row_key;
use crate::data::{Batch, Row, Share, TopTokens};
use crate::device;
use crate::error::{Error, Result};
use crate::files::{Output, PART, PartRecord, Parts, grouped, in_order, unfinished};
use crate::part::Part;
use crate::train::{KeyedRow, TeacherLogits, TeacherLogitsHeader, TeacherLogitsWriter};
use serde::Serialize;
use serde_json::json;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file is written when it reaches this size, or after this time.
const PART_BYTES: usize = 32 << 20;
const PART_TIME: Duration = Duration::from_secs(30);

/// Which logits to write, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct TeacherLogitsOptions {
    /// The folder to write or to continue.
    pub out: PathBuf,
    /// Number of tokens to keep for each trained token. If unset, the run's `teacher.top_k`, or 64.
    pub top_k: Option<usize>,
    /// Divisor of the logits. If unset, the run's distillation temperature, or 1.
    pub temperature: Option<f64>,
    /// Write all answers to the training problems, not only those that the mixture uses.
    pub all_answers: bool,
    /// Write only this part of the rows. With `all_answers`, answers to the same problem are in the same
    /// part. [`join_teacher_logits`] joins the folders of all parts.
    pub part: Option<Part>,
}

impl TeacherLogitsOptions {
    /// Creates options for the rows that a run trains on, with the run's settings.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self { out: out.into(), top_k: None, temperature: None, all_answers: false, part: None }
    }
}

/// Counts of written logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WrittenLogits {
    /// Rows in the folder.
    pub rows: usize,
    /// Rows that an earlier process had written.
    pub before: usize,
    /// Trained tokens of the newly written rows.
    pub tokens: u64,
}

/// Writes the teacher's most likely tokens at each trained token of a run's rows. Continues a folder that was
/// started earlier. `teacher` is a model's folder or, with the feature `hub`, a name on the Hub; the teacher
/// in the settings is ignored.
///
/// # Errors
/// [`Error::Stopped`]: finished rows are written, and the same call continues; errors of preparing the data,
/// of loading the teacher, and of [`TeacherLogitsWriter`]. A killed process loses at most 30 seconds of work.
pub fn write_teacher_logits(
    config: &RunConfig,
    teacher: &str,
    options: &TeacherLogitsOptions,
    context: &Context<'_>,
) -> Result<WrittenLogits> {
    TeacherLogitsWriter::check_for(&options.out, options.part)?;
    let part = config.train.objective.distillation;
    let temperature = options.temperature.or(part.map(|part| part.temperature)).unwrap_or(1.0);
    let usual = config.teacher.as_ref().map_or(64, |teacher| teacher.top_k);
    let top_k = options.top_k.unwrap_or(usual);
    let mut config = config.clone();
    (config.teacher, config.train.objective.distillation) = (None, None);
    let prepared = prepared_for(&config, options.all_answers, context)?;
    let vocabulary = prepared.tokenizer.vocabulary_size();
    // Checks the numbers before the teacher is loaded.
    TeacherLogitsHeader::new(teacher, "", vocabulary, top_k, temperature)?;
    let device = device::by_name(&config.backend)?;
    let model = load_teacher(teacher, &prepared, &device, context)?;
    let fingerprint = model.fingerprint()?;
    let header = TeacherLogitsHeader::new(teacher, fingerprint, vocabulary, top_k, temperature)?;
    // Answers to the same problem stay in the same part.
    let rows = match options.all_answers {
        true => prepared.rows_by_problem(),
        false => prepared.used_rows(&config)?.into_iter().enumerate().collect(),
    };
    let mut groups = grouped(rows, |(a, _), (b, _)| a == b);
    let read = |row: &Row| -> Result<(TopTokens, usize)> {
        let batch = Batch::new([row.example()], 1);
        Ok((model.top_tokens(&batch, top_k, temperature, vocabulary)?, batch.trained))
    };
    // Written before the header, which marks a part as started: a process may be killed between the two.
    let record = options.part.map(|part| part_record(part, &header, &groups)).transpose()?;
    if let Some(record) = record {
        let out = &options.out;
        TeacherLogitsWriter::check_for(out, options.part)?;
        fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        record.keep(&out.join(PART))?;
    }
    let writer = TeacherLogitsWriter::open_for(&options.out, header, options.part)?;
    if let Some(part) = options.part {
        let mut index = 0..;
        groups.retain(|_| index.next().is_some_and(|index| part.holds(index)));
    }
    let rows: Vec<Row> = groups.into_iter().flatten().map(|(_, row)| row).collect();
    write_missing(&rows, writer, &read, context)
}

/// Returns the data of a run for a teacher: all answers, or those that the mixture uses.
fn prepared_for(config: &RunConfig, all_answers: bool, context: &Context<'_>) -> Result<Prepared> {
    let (unscored, needs_scores) = config.unscored();
    if all_answers {
        return Prepared::new(&unscored, context);
    }
    if config.mixture.share == Share::Auto {
        return Err(Error::config(
            "mixture.share",
            "it is auto, and pilots train on answers of every share",
            "Write the logits of all answers (`mixdistill logits --all`)",
        ));
    }
    if needs_scores && config.mixture.choice.as_ref().is_some_and(|c| c.scores.is_none()) {
        return Err(Error::config(
            "mixture.choice.scores",
            "the choice of rows depends on scores, and no file of scores is set",
            "Set a file, or write the logits of all answers (`mixdistill logits --all`)",
        ));
    }
    Prepared::new(config, context)
}

/// Writes the rows that a folder lacks.
fn write_missing(
    rows: &[Row],
    writer: TeacherLogitsWriter,
    read: &dyn Fn(&Row) -> Result<(TopTokens, usize)>,
    context: &Context<'_>,
) -> Result<WrittenLogits> {
    let mut pieces = Pieces::new(writer);
    let missing: Vec<&Row> = rows.iter().filter(|row| !pieces.writer.holds(row)).collect();
    let before = rows.len() - missing.len();
    let total = rows.len() as u64;
    let mut progress = context.resumed_task(Task::TeacherLogits, total, before as u64);
    let (mut done, mut tokens) = (before, 0);
    for row in missing {
        let (top, trained) = read(row)?;
        pieces.add(GatheredRow::of(row, top))?;
        (done, tokens) = (done + 1, tokens + trained as u64);
        progress.add_tokens(trained as u64);
        if let Err(error) = progress.update(done as u64) {
            pieces.flush()?;
            return Err(match error {
                Error::Stopped { .. } => Error::stopped(format!(
                    "{done} of {} rows are in {}",
                    rows.len(),
                    pieces.writer.directory().path().display()
                )),
                error => error,
            });
        }
    }
    pieces.flush()?;
    Ok(WrittenLogits { rows: rows.len(), before, tokens })
}

/// Returns the record that identifies a part and its rows.
fn part_record(
    part: Part,
    header: &TeacherLogitsHeader,
    groups: &[Vec<(usize, Row)>],
) -> Result<PartRecord<Vec<String>>> {
    let keys = |rows: &Vec<(usize, Row)>| {
        rows.iter().map(|(_, row)| row_key(&row.example())).collect::<Vec<_>>()
    };
    PartRecord::new(part, header.identity(), json!({}), groups.iter().map(keys))
}

/// Joins the folders of all parts in a new or unfinished folder, as if one process had written it. Loads no
/// teacher and keeps the parts.
///
/// # Errors
/// All problems with the parts, before anything is written: [`Error::RunDirectory`] for a folder that is not
/// a part, belongs to another job, is given twice, or is not finished; [`Error::Config`] for missing parts;
/// errors of [`TeacherLogits`] and [`TeacherLogitsWriter`]. [`Error::Stopped`]: the same call continues.
pub fn join_teacher_logits(
    parts: &[PathBuf],
    out: &Path,
    context: &Context<'_>,
) -> Result<WrittenLogits> {
    let parts = Parts::<Vec<String>>::read(parts, |path| path.join(PART))?;
    TeacherLogitsWriter::check_for(out, None)?;
    parts.each(finished)?;
    let mut logits = TeacherLogits::open(&parts.first().path)?;
    parts.iter().skip(1).try_for_each(|part| logits.add_rows_of(&part.path))?;
    let writer = TeacherLogitsWriter::open(out, logits.header().clone())?;
    let mut pieces = Pieces::new(writer);
    let keys = in_order(parts.iter().map(|part| part.record.own.clone()).collect()).flatten();
    let total = parts.iter().flat_map(|part| &part.record.own).map(Vec::len).sum();
    let mut written = WrittenLogits { rows: total, before: 0, tokens: 0 };
    let mut progress = context.task(Task::TeacherLogits, total as u64);
    let mut seen = HashSet::new();
    for (index, key) in keys.enumerate() {
        if pieces.writer.holds_key(&key) && !seen.contains(&key) {
            written.before += 1;
        } else if seen.insert(key.clone())
            && let Some(top) = logits.read_key(&key)?
        {
            let trained = top.tokens.len() / top.k;
            written.tokens += trained as u64;
            pieces.add(GatheredRow { label: key.clone(), key, trained, top })?;
        }
        if let Err(error) = progress.update(index as u64 + 1) {
            pieces.flush()?;
            return Err(error);
        }
    }
    pieces.flush()?;
    Ok(written)
}

/// Checks that a part has all of its rows.
fn finished(part: &Output<Vec<String>>) -> Result<()> {
    TeacherLogitsWriter::check(&part.path)?;
    let logits = TeacherLogits::open(&part.path)?;
    let own: Vec<&String> = part.record.own.iter().flatten().collect();
    match own.iter().filter(|key| logits.holds_key(key)).count() {
        found if found == own.len() => Ok(()),
        found => Err(unfinished(part, format!("it has {found} of {} rows", own.len()))),
    }
}

/// A row to be written.
struct GatheredRow {
    key: String,
    label: String,
    trained: usize,
    top: TopTokens,
}

impl GatheredRow {
    fn of(row: &Row, top: TopTokens) -> Self {
        let example = row.example();
        let (key, trained) = (row_key(&example), example.targets());
        Self { key, label: row.label.clone(), trained, top }
    }
}

/// Collects rows into files.
struct Pieces {
    writer: TeacherLogitsWriter,
    rows: Vec<GatheredRow>,
    bytes: usize,
    begun: Instant,
}

impl Pieces {
    fn new(writer: TeacherLogitsWriter) -> Self {
        Self { writer, rows: vec![], bytes: 0, begun: Instant::now() }
    }

    fn add(&mut self, row: GatheredRow) -> Result<()> {
        self.bytes += 4 * (row.top.tokens.len() + row.top.log_probs.len());
        self.rows.push(row);
        match self.bytes >= PART_BYTES || self.begun.elapsed() >= PART_TIME {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes the collected rows.
    fn flush(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            let rows = self.rows.iter().map(|row| {
                let GatheredRow { key, label, trained, top } = row;
                KeyedRow { key: key.clone(), trained: *trained, label, top }
            });
            self.writer.write_keyed(&rows.collect::<Vec<_>>())?;
            self.rows.clear();
        }
        (self.bytes, self.begun) = (0, Instant::now());
        Ok(())
    }
}
