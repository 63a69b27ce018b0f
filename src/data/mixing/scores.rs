//! Scores of answers, which a choice is made by.

/// A score for each answer, by source and record number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerScores(Vec<Vec<Option<f64>>>);

impl AnswerScores {
    /// Scores computed elsewhere: for each source, for each of its records.
    pub fn new(scores: Vec<Vec<Option<f64>>>) -> Self {
        Self(scores)
    }

    /// The score of a record, if it has one.
    pub fn get(&self, source: usize, record: usize) -> Option<f64> {
        *self.0.get(source)?.get(record)?
    }
}
