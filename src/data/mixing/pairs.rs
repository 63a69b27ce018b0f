//! Sources of answers, joined by problem.
//!
//! ```text
//!             long     short
//! problem 0   rec 0    rec 4      a table of record numbers, one row a problem; the texts stay
//! problem 1   rec 1    -          in their sources and are never copied
//! ```
//!
//! If a source has several answers to a problem, the table has the first one, and each record links to the
//! next.

use super::ledger::{Ledger, SourceLedger};
use crate::data::chat::EarlierTurn;
use crate::data::reading::ColumnMap;
use crate::data::reading::CotRecord;
use crate::data::reading::{AnswerLength, DataFiles, read_record_files, short_name};
use crate::error::{Error, Result};
use crate::random::Stream;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Marks a missing answer in the table.
const ABSENT: u32 = u32::MAX;

/// A named list of records from one teacher.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    records: Vec<CotRecord>,
    /// Line of each record in its file. Empty for records that were not read from a file.
    lines: Vec<u32>,
    /// Score of each record in its file. Empty without such a column.
    scores: Vec<Option<f64>>,
    /// Names of several files, each with the index of its first record.
    files: Vec<(usize, String)>,
    ledger: SourceLedger,
}

impl Source {
    /// Creates a source from records in memory. Empty records are left out and counted.
    pub fn new(name: impl Into<String>, mut records: Vec<CotRecord>) -> Self {
        let name = name.into();
        let mut ledger =
            SourceLedger { name: name.clone(), read: records.len(), ..Default::default() };
        records.retain(|record| {
            let empty_problem = record.problem.trim().is_empty();
            let empty_solution = !empty_problem && record.solution.trim().is_empty();
            ledger.empty_problems += usize::from(empty_problem);
            ledger.empty_solutions += usize::from(empty_solution);
            !(empty_problem || empty_solution)
        });
        Self { name, records, lines: vec![], scores: vec![], files: vec![], ledger }
    }

    /// Reads a JSONL, JSON, CSV, TSV, or Parquet file. `max_left_out` is the share of its records that may be
    /// unusable. From a dataset with long and short answers, a source named `short` reads the short ones,
    /// and any other source the long ones.
    ///
    /// # Errors
    /// See [`read_records`](crate::data::read_records).
    pub fn read(
        name: impl Into<String>,
        path: &Path,
        columns: &ColumnMap,
        max_left_out: f64,
    ) -> Result<Self> {
        Self::read_files(name, &DataFiles::file(path), columns, max_left_out)
    }

    /// Like [`Source::read`], for several files that are read as one.
    ///
    /// # Errors
    /// See [`Source::read`].
    pub fn read_files(
        name: impl Into<String>,
        files: &DataFiles,
        columns: &ColumnMap,
        max_left_out: f64,
    ) -> Result<Self> {
        let name = name.into();
        let length = AnswerLength::of_source(&name);
        let read = read_record_files(files, columns, length, max_left_out)?;
        let ledger = SourceLedger {
            name: name.clone(),
            read: read.read,
            columns: Some(read.columns),
            left_out: read.left_out,
            empty_problems: read.empty_problems,
            empty_solutions: read.empty_solutions,
            wrong: read.wrong,
            without_verdict: read.without_verdict,
            with_reasoning: read.with_reasoning,
            with_system: read.with_system,
            broken_characters: read.broken_characters,
            ..Default::default()
        };
        let names = files.files().iter().map(|path| short_name(path));
        let files = match files.files() {
            [_] => vec![],
            _ => read.file_starts.into_iter().zip(names).collect(),
        };
        let (records, lines, scores) = (read.records, read.lines, read.scores);
        Ok(Self { name, records, lines, scores, files, ledger })
    }

    /// Returns the source's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a name of a record for messages, with its line, or its number if there is no file.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn label(&self, record: usize) -> String {
        let id = self.records[record].id.as_deref();
        let id = id.map_or(String::new(), |id| format!(" (id {id})"));
        let file = self.files.iter().rev().find(|(start, _)| *start <= record);
        let file = file.map_or(String::new(), |(_, file)| format!(" {file}"));
        match self.lines.get(record) {
            Some(line) => format!("`{}`{file} line {line}{id}", self.name),
            None => format!("`{}` record {}{id}", self.name, record + 1),
        }
    }

    /// Returns the value of a record in the source's column of scores, if it has one.
    pub fn score(&self, record: usize) -> Option<f64> {
        *self.scores.get(record)?
    }

    /// Sets scores, one per record.
    ///
    /// # Panics
    /// If the number of scores differs from the number of records.
    pub fn with_scores(self, scores: Vec<Option<f64>>) -> Self {
        assert_eq!(scores.len(), self.records.len(), "a score for each record");
        Self { scores, ..self }
    }

    /// Returns the records, without the empty ones.
    pub fn records(&self) -> &[CotRecord] {
        &self.records
    }
}

/// Which problems are kept when sources are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// Keep problems that every source answers, as in the Mix Distillation paper.
    #[default]
    Inner,
    /// Keep problems that at least one source answers.
    Outer,
}

/// Which answers are kept if a source has several to one problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswersKept {
    /// Keep the first answer. The others count as duplicates.
    #[default]
    First,
    /// Keep all answers that differ in more than white space, as candidates for `mixture.choice`.
    All,
}

/// Problems with the answers of each source.
#[derive(Clone, Debug)]
pub struct Pairs {
    sources: Arc<[Source]>,
    /// Record indices, `[problems, sources]`.
    table: Vec<u32>,
    /// By source and record: the next record for the same problem. Empty for a source with one record per
    /// problem.
    next: Arc<[Vec<u32>]>,
}

impl Pairs {
    /// Joins the sources by problem.
    ///
    /// Two records belong to the same problem if they have the same id and their problems are equal except
    /// for white space and case, or if their problems are equal after white space is normalized. In a
    /// conversation with several turns, all user turns together are the problem. If a source has several
    /// answers to a problem, the first is kept.
    ///
    /// # Errors
    /// [`Error::Pairing`] if there are no sources, two sources have the same name, a source is empty, or,
    /// with [`Join::Inner`], no problem is answered by all sources.
    pub fn join(sources: Vec<Source>, join: Join) -> Result<(Self, Ledger)> {
        Self::join_keeping(sources, join, AnswersKept::First)
    }

    /// Like [`Pairs::join`]. `answers` says which answers of one source to one problem are kept. Answers that
    /// differ from an earlier one only in white space are duplicates.
    ///
    /// # Errors
    /// See [`Pairs::join`].
    pub fn join_keeping(
        sources: Vec<Source>,
        join: Join,
        answers: AnswersKept,
    ) -> Result<(Self, Ledger)> {
        check_sources(&sources)?;
        let width = sources.len();
        let mut table: Vec<u32> = vec![];
        let mut by_text: HashMap<String, u32> = HashMap::new();
        let mut by_id: HashMap<&str, u32> = HashMap::new();
        let mut ledger = Ledger {
            sources: sources.iter().map(|source| source.ledger.clone()).collect(),
            ..Default::default()
        };
        let mut next: Vec<Vec<u32>> = vec![vec![]; width];
        for (index, source) in sources.iter().enumerate() {
            let ledger = &mut ledger.sources[index];
            // For each problem with several answers, the last record and the texts of all.
            let mut candidates: HashMap<u32, (u32, HashSet<String>)> = HashMap::new();
            for (record_index, record) in source.records.iter().enumerate() {
                let mut problem = None;
                if let Some(&other) = record.id.as_deref().and_then(|id| by_id.get(id)) {
                    let theirs = first_record(&sources, &table[other as usize * width..][..width]);
                    if theirs.is_some_and(|theirs| agree(&theirs.asked(), &record.asked())) {
                        problem = Some(other);
                    } else {
                        ledger.id_conflicts += 1;
                    }
                }
                let text = normalized(&record.asked());
                let problem =
                    problem.or_else(|| by_text.get(&text).copied()).unwrap_or_else(|| {
                        table.extend(std::iter::repeat_n(ABSENT, width));
                        (table.len() / width - 1) as u32
                    });
                by_text.entry(text).or_insert(problem);
                if let Some(id) = record.id.as_deref() {
                    by_id.entry(id).or_insert(problem);
                }
                let cell = &mut table[problem as usize * width + index];
                if *cell == ABSENT {
                    *cell = record_index as u32;
                    continue;
                }
                if answers == AnswersKept::First {
                    ledger.duplicates += 1;
                    continue;
                }
                let (last, texts) = candidates.entry(problem).or_insert_with(|| {
                    let first = &source.records[*cell as usize].solution;
                    (*cell, HashSet::from([normalized(first)]))
                });
                if texts.insert(normalized(&record.solution)) {
                    let next = &mut next[index];
                    next.resize(source.records.len(), ABSENT);
                    next[*last as usize] = record_index as u32;
                    *last = record_index as u32;
                } else {
                    ledger.duplicates += 1;
                }
            }
        }
        let mut pairs = Self { sources: sources.into(), table, next: next.into() };
        if join == Join::Inner {
            pairs.keep_complete(&mut ledger)?;
        }
        ledger.joined = pairs.len();
        ledger.training = pairs.len();
        for (index, line) in ledger.sources.iter_mut().enumerate() {
            line.usable = pairs.answers_of(index);
        }
        Ok((pairs, ledger))
    }

    /// Keeps the problems that every source answers, and counts the other answers as unmatched. Use it after
    /// [`Encoded::fitting`](crate::data::Encoded::fitting) to compare sources on the same problems.
    ///
    /// # Errors
    /// [`Error::Pairing`] if there are none.
    pub fn complete(mut self, ledger: &mut Ledger) -> Result<Self> {
        let before = self.len();
        self.keep_complete(ledger)?;
        for (index, line) in ledger.sources.iter_mut().enumerate() {
            line.usable = self.answers_of(index);
        }
        ledger.without_answer += before - self.len();
        ledger.training = self.len();
        Ok(self)
    }

    /// Drops the problems that some source does not answer, and counts their records as unmatched.
    fn keep_complete(&mut self, ledger: &mut Ledger) -> Result<()> {
        let width = self.sources.len();
        let mut kept = Vec::with_capacity(self.table.len());
        for row in self.table.chunks_exact(width) {
            if row.contains(&ABSENT) {
                for (index, (line, first)) in ledger.sources.iter_mut().zip(row).enumerate() {
                    line.unmatched += self.chain(index, *first).count();
                }
            } else {
                kept.extend_from_slice(row);
            }
        }
        if kept.is_empty() {
            let shown: Vec<String> = self
                .sources
                .iter()
                .map(|source| {
                    let record = &source.records[0];
                    let id = record.id.as_deref().map_or(String::new(), |id| format!("id {id}, "));
                    format!("`{}`: {id}{:?}", source.name, shortened(&record.problem))
                })
                .collect();
            return Err(Error::Pairing {
                what: format!(
                    "no problem is answered by every source; first keys: {}",
                    shown.join("; ")
                ),
                hint: "Check that the files answer the same problems, that the right columns are \
                       read as problem and id, and that the answers fit the length limit; \
                       `join = \"outer\"` keeps problems that only some sources answer"
                    .into(),
            });
        }
        self.table = kept;
        Ok(())
    }

    /// Returns the records of a source for one problem, starting with `first`.
    fn chain(&self, source: usize, first: u32) -> impl Iterator<Item = u32> + '_ {
        let there = |record: u32| (record != ABSENT).then_some(record);
        std::iter::successors(there(first), move |record| {
            there(*self.next[source].get(*record as usize)?)
        })
    }

    /// Returns the indices of all records with which `source` answers `problem`, in order.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn candidates(&self, problem: usize, source: usize) -> impl Iterator<Item = usize> + '_ {
        let first = self.record_index(problem, source).map_or(ABSENT, |record| record as u32);
        self.chain(source, first).map(|record| record as usize)
    }

    /// Returns the number of answers of `source` to all problems.
    pub fn answers_of(&self, source: usize) -> usize {
        (0..self.len()).map(|problem| self.candidates(problem, source).count()).sum()
    }

    /// Returns the number of problems.
    pub fn len(&self) -> usize {
        self.table.len() / self.sources.len()
    }

    /// Returns whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Returns the sources, in the order of the table.
    pub fn sources(&self) -> &Arc<[Source]> {
        &self.sources
    }

    /// Returns the index of the record with which `source` answers `problem`, the first if there are several.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn record_index(&self, problem: usize, source: usize) -> Option<usize> {
        let width = self.sources.len();
        assert!(source < width, "source {source} of {width}");
        let record = self.table[problem * width + source];
        (record != ABSENT).then_some(record as usize)
    }

    /// Returns the record with which `source` answers `problem`, the first if there are several.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn record(&self, problem: usize, source: usize) -> Option<&CotRecord> {
        self.record_index(problem, source).map(|record| &self.sources[source].records[record])
    }

    /// Returns the text of a problem, from the first source that answers it.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn problem(&self, problem: usize) -> &str {
        self.first_record(problem).map_or("", |record| &record.problem)
    }

    /// Returns the earlier turns of a conversation with several turns, from the first source that answers the
    /// problem.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn earlier(&self, problem: usize) -> &[EarlierTurn] {
        self.first_record(problem).map_or(&[], |record| &record.earlier)
    }

    fn first_record(&self, problem: usize) -> Option<&CotRecord> {
        let width = self.sources.len();
        first_record(&self.sources, &self.table[problem * width..][..width])
    }

    /// Returns the system text of a problem, if all sources that answer it have the same one.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn system(&self, problem: usize) -> Option<&str> {
        let mut records = (0..self.sources.len()).filter_map(|s| self.record(problem, s));
        let first = records.next()?.system.as_deref()?;
        records.all(|record| record.system.as_deref() == Some(first)).then_some(first)
    }

    /// Returns the reference answer of a problem, from the first record that has one.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn answer(&self, problem: usize) -> Option<&str> {
        (0..self.sources.len())
            .filter_map(|source| self.record(problem, source))
            .find_map(|record| record.answer.as_deref())
    }

    /// Returns the number of problems that `source` answers.
    pub fn available(&self, source: usize) -> usize {
        self.table.chunks_exact(self.sources.len()).filter(|row| row[source] != ABSENT).count()
    }

    /// Keeps the answers for which `keep(source, record)` is true, and drops problems without an answer. Also
    /// returns the number of dropped problems.
    pub fn retain(&self, keep: impl Fn(usize, usize) -> bool) -> (Self, usize) {
        let width = self.sources.len();
        let mut table = Vec::with_capacity(self.table.len());
        let mut next = self.next.to_vec();
        for row in self.table.chunks_exact(width) {
            let start = table.len();
            for (source, &first) in row.iter().enumerate() {
                let kept =
                    self.chain(source, first).filter(|record| keep(source, *record as usize));
                let kept: Vec<u32> = kept.collect();
                if let Some(next) = Some(&mut next[source]).filter(|next| !next.is_empty()) {
                    self.chain(source, first).for_each(|record| next[record as usize] = ABSENT);
                    kept.windows(2).for_each(|pair| next[pair[0] as usize] = pair[1]);
                }
                table.push(kept.first().copied().unwrap_or(ABSENT));
            }
            if table[start..].iter().all(|record| *record == ABSENT) {
                table.truncate(start);
            }
        }
        let dropped = self.len() - table.len() / width;
        (Self { sources: self.sources.clone(), table, next: next.into() }, dropped)
    }

    /// Returns the given problems, in the given order.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn select(&self, problems: &[u32]) -> Self {
        let width = self.sources.len();
        let rows = problems.iter().flat_map(|&p| &self.table[p as usize * width..][..width]);
        Self {
            sources: self.sources.clone(),
            table: rows.copied().collect(),
            next: self.next.clone(),
        }
    }

    /// Splits off `held_out` random problems: (training, held out).
    ///
    /// # Panics
    /// If there are fewer problems than `held_out`.
    pub fn split(&self, held_out: usize, seed: u64) -> (Self, Self) {
        let order = Stream::new(seed, "held out", 0).permutation(self.len());
        let (held, train) = order.split_at(held_out);
        // Training problems stay in the file's order. Held-out ones are in random order, so that the first
        // few are a sample too.
        let mut train = train.to_vec();
        train.sort_unstable();
        (self.select(&train), self.select(held))
    }

    /// Draws at most `most` problems by their text and `seed`, and keeps their order. Also returns how many
    /// are left out. A drawn problem stays drawn if `most` grows.
    pub fn limited(&self, most: usize, seed: u64) -> (Self, usize) {
        let mut drawn = self.draws(seed, "limit");
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut kept: Vec<u32> = drawn.into_iter().take(most).map(|(_, problem)| problem).collect();
        kept.sort_unstable();
        let left_out = self.len() - kept.len();
        (self.select(&kept), left_out)
    }

    /// Returns a number in `[0, 1)` for each problem, determined by its text, `seed`, and `purpose`.
    fn draws(&self, seed: u64, purpose: &str) -> Vec<(f64, u32)> {
        let draw = |problem: u32| {
            let asked = self.first_record(problem as usize).map(CotRecord::asked);
            let text = normalized(&asked.unwrap_or_default()).to_lowercase();
            let name = if purpose.is_empty() { text } else { format!("{purpose}: {text}") };
            (Stream::new(seed, &name, 0).unit(), problem)
        };
        (0..self.len() as u32).map(draw).collect()
    }

    /// Splits off a share of the problems by their text and `seed`: (training, held out). A problem is on the
    /// same side in all pairs that contain it, whatever else they contain.
    pub fn split_by_text(&self, share: f64, seed: u64) -> (Self, Self) {
        let mut held = self.draws(seed, "");
        held.retain(|(draw, _)| *draw < share);
        held.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let held: Vec<u32> = held.into_iter().map(|(_, problem)| problem).collect();
        let is_held: std::collections::HashSet<u32> = held.iter().copied().collect();
        let train: Vec<u32> = (0..self.len() as u32).filter(|p| !is_held.contains(p)).collect();
        (self.select(&train), self.select(&held))
    }
}

fn check_sources(sources: &[Source]) -> Result<()> {
    let pairing = |what: String, hint: &str| Err(Error::Pairing { what, hint: hint.into() });
    if sources.is_empty() {
        return pairing("there are no sources of answers".into(), "Give at least one");
    }
    for (index, source) in sources.iter().enumerate() {
        if sources[..index].iter().any(|other| other.name == source.name) {
            let what = format!("two sources are called `{}`", source.name);
            return pairing(what, "Give each source its own name");
        }
        if source.records.is_empty() {
            let went = source.ledger.where_they_went();
            let what = format!("source `{}` has no usable record: {went}", source.name);
            return pairing(what, "Check that it is the right file and that its columns are right");
        }
        if source.records.len() >= ABSENT as usize {
            let what = format!("source `{}` has more than 4 billion records", source.name);
            return pairing(what, "Split the file");
        }
    }
    Ok(())
}

/// Returns the record of the first source that answers the problem in this row of the table.
fn first_record<'a>(sources: &'a [Source], row: &[u32]) -> Option<&'a CotRecord> {
    let (record, source) = row.iter().zip(sources).find(|(record, _)| **record != ABSENT)?;
    Some(&source.records[*record as usize])
}

/// Replaces every run of white space with one space and trims both ends.
pub fn normalized(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Returns whether texts are equal except for white space and case.
fn agree(a: &str, b: &str) -> bool {
    let letters = |text: &'_ str| -> Vec<char> {
        text.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
    };
    letters(a) == letters(b)
}

fn shortened(text: &str) -> String {
    let text = normalized(text);
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
