//! A teacher beside the data: rows that come with what the teacher finds likely, for distillation of
//! logits.

use crate::context::{Context, Task};
use crate::data::{Batch, Row, RowStream, TopTokens};
use crate::error::Result;
use crate::model::Generate;
use std::ops::Range;
use std::sync::Arc;

/// Tells what it finds likely at the trained tokens of rows.
pub trait LogitTeacher {
    /// One for each row, all with the same `k`.
    ///
    /// # Errors
    /// Whatever computing or reading it may give.
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>>;
}

impl<T: LogitTeacher + ?Sized> LogitTeacher for Box<T> {
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        (**self).top_tokens(rows)
    }
}

/// The rows of another stream, with a teacher.
#[derive(Clone, Debug)]
pub struct DistillationRows<R, T> {
    rows: R,
    teacher: T,
}

impl<R: RowStream, T: LogitTeacher> DistillationRows<R, T> {
    /// The rows of `rows`, each with what `teacher` says to it.
    pub fn new(rows: R, teacher: T) -> Self {
        Self { rows, teacher }
    }
}

impl<R: RowStream, T: LogitTeacher> RowStream for DistillationRows<R, T> {
    fn rows_per_epoch(&self) -> usize {
        self.rows.rows_per_epoch()
    }

    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
        self.rows_for(range, &mut |rows| (0..rows.len()).collect())
    }

    fn rows_for(
        &mut self,
        range: Range<u64>,
        chosen: &mut dyn FnMut(&[Row]) -> Vec<usize>,
    ) -> Result<Vec<Row>> {
        let mut rows = self.rows.rows(range)?;
        let chosen = chosen(&rows);
        let asked: Vec<Row> = chosen.iter().map(|index| rows[*index].clone()).collect();
        for (index, top) in chosen.into_iter().zip(self.teacher.top_tokens(&asked)?) {
            rows[index].teacher = Some(Arc::new(top));
        }
        Ok(rows)
    }
}

/// A teacher whose work is told row by row, for one that takes long.
#[derive(Debug)]
pub struct WatchedTeacher<'c, 'a, T> {
    teacher: T,
    context: &'c Context<'a>,
}

impl<'c, 'a, T: LogitTeacher> WatchedTeacher<'c, 'a, T> {
    /// Says what `teacher` says, asks it one row after another, and tells of each.
    pub fn new(teacher: T, context: &'c Context<'a>) -> Self {
        Self { teacher, context }
    }
}

impl<T: LogitTeacher> LogitTeacher for WatchedTeacher<'_, '_, T> {
    /// # Errors
    /// As the teacher's; [`Error::Stopped`](crate::Error::Stopped) between two rows.
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        let mut progress = self.context.task(Task::TeacherLogits, rows.len() as u64);
        progress.update(0)?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            all.extend(self.teacher.top_tokens(std::slice::from_ref(row))?);
            progress.advance()?;
        }
        Ok(all)
    }
}

/// A model that teaches while the student trains.
#[derive(Clone, Debug)]
pub struct ModelTeacher<M> {
    model: M,
    k: usize,
    temperature: f64,
    vocabulary: usize,
}

impl<M: Generate> ModelTeacher<M> {
    /// A teacher that tells the `k` likeliest of the first `vocabulary` tokens at a temperature; see
    /// [`Generate::top_tokens`]. The model is on a device without autodiff.
    pub fn new(model: M, k: usize, temperature: f64, vocabulary: usize) -> Self {
        Self { model, k, temperature, vocabulary }
    }
}

impl<M: Generate> LogitTeacher for ModelTeacher<M> {
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        let tops = rows.iter().map(|row| {
            let batch = Batch::new([row.example()], 1);
            self.model.top_tokens(&batch, self.k, self.temperature, self.vocabulary)
        });
        tops.collect()
    }
}
