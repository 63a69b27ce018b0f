//! Teachers for logit distillation: they add their most likely tokens to the rows of a stream.

use crate::context::{Context, Task};
use crate::data::{Batch, Row, RowStream, TopTokens};
use crate::error::Result;
use crate::model::Generate;
use std::ops::Range;
use std::sync::Arc;

/// Returns its most likely tokens at the trained tokens of rows.
pub trait LogitTeacher {
    /// Returns one entry per row, all with the same `k`.
    ///
    /// # Errors
    /// Errors of computing or reading them.
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>>;
}

impl<T: LogitTeacher + ?Sized> LogitTeacher for Box<T> {
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        (**self).top_tokens(rows)
    }
}

/// Rows of another stream with the tokens of a teacher.
#[derive(Clone, Debug)]
pub struct DistillationRows<R, T> {
    rows: R,
    teacher: T,
}

impl<R: RowStream, T: LogitTeacher> DistillationRows<R, T> {
    /// Adds the tokens of `teacher` to each row of `rows`.
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

/// Wraps a slow teacher and reports its progress row by row.
#[derive(Debug)]
pub struct WatchedTeacher<'c, 'a, T> {
    teacher: T,
    context: &'c Context<'a>,
}

impl<'c, 'a, T: LogitTeacher> WatchedTeacher<'c, 'a, T> {
    /// Asks `teacher` for one row at a time and reports each row to `context`.
    pub fn new(teacher: T, context: &'c Context<'a>) -> Self {
        Self { teacher, context }
    }
}

impl<T: LogitTeacher> LogitTeacher for WatchedTeacher<'_, '_, T> {
    /// # Errors
    /// Errors of the teacher; [`Error::Stopped`](crate::Error::Stopped) between two rows.
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
    /// Creates a teacher that returns the `k` most likely of the first `vocabulary` tokens at a temperature;
    /// see [`Generate::top_tokens`]. The model must be on a device without autodiff.
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
