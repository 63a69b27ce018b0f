//! Scores of answers, for choosing among them.

/// A score for each answer, by source and record index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerScores(Vec<Vec<Option<f64>>>);

impl AnswerScores {
    /// Creates scores from values for each record of each source.
    pub fn new(scores: Vec<Vec<Option<f64>>>) -> Self {
        Self(scores)
    }

    /// Returns the score of a record, or `None` if it has none.
    pub fn get(&self, source: usize, record: usize) -> Option<f64> {
        *self.0.get(source)?.get(record)?
    }
}
