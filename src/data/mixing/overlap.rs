//! Problems that training and test data share: equal text, or thirteen equal words in a row.
//!
//! Thirteen words is the criterion of GPT-3's contamination analysis (arXiv 2005.14165, appendix C). Problems
//! made from one template can match without being the same, so a match is a reason to look, not a proof.

use super::pairs::normalized;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Number of consecutive words that count as an overlap.
const WORDS: usize = 13;

/// How much two problems have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlapKind {
    /// The same text, except for case and white space.
    SameText,
    /// Thirteen consecutive words.
    SharedWords,
}

/// A test problem that overlaps with a training problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// Index of the first matching training problem.
    pub training: usize,
    /// Index of the test problem.
    pub test: usize,
    /// What they have in common.
    pub kind: OverlapKind,
}

/// Finds overlaps between test and training problems, at most one per test problem.
///
/// ```
/// use mixdistill::data::{OverlapKind, overlaps};
/// let found = overlaps(["What is 1 + 1?", "What is 2 + 2?"], ["what is  2 + 2?", "What is 3?"]);
/// assert_eq!((found.len(), found[0].training, found[0].test), (1, 1, 0));
/// assert_eq!(found[0].kind, OverlapKind::SameText);
/// ```
pub fn overlaps<'a>(
    training: impl IntoIterator<Item = &'a str>,
    test: impl IntoIterator<Item = &'a str>,
) -> Vec<Overlap> {
    let mut index = TrainingProblems::default();
    training.into_iter().for_each(|problem| index.add(problem));
    test.into_iter()
        .enumerate()
        .filter_map(|(test, problem)| index.overlap(test, problem))
        .collect()
}

/// An index of training problems, to compare other problems with.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrainingProblems {
    count: usize,
    /// The first problem with a text.
    texts: HashMap<String, usize>,
    /// The first problem with a run of words.
    runs: HashMap<u64, usize>,
}

impl TrainingProblems {
    pub(crate) fn add(&mut self, problem: &str) {
        let index = self.count;
        self.count += 1;
        self.texts.entry(plain(problem)).or_insert(index);
        for run in word_runs(problem) {
            self.runs.entry(run).or_insert(index);
        }
    }

    /// Returns the overlap of a test problem with the training problems, if any.
    pub(crate) fn overlap(&self, test: usize, problem: &str) -> Option<Overlap> {
        if let Some(training) = self.texts.get(&plain(problem)) {
            return Some(Overlap { training: *training, test, kind: OverlapKind::SameText });
        }
        let training = word_runs(problem).into_iter().find_map(|run| self.runs.get(&run))?;
        Some(Overlap { training: *training, test, kind: OverlapKind::SharedWords })
    }
}

/// Normalizes a problem for comparison: lower case, single spaces.
pub(crate) fn plain(problem: &str) -> String {
    normalized(problem).to_lowercase()
}

/// Hashes of all sequences of thirteen words.
fn word_runs(text: &str) -> Vec<u64> {
    hashed_runs(&words(text), WORDS)
}

/// Returns the words of a text: letters and digits only, in lower case.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Hashes of all sequences of `length` words.
pub(super) fn hashed_runs(words: &[String], length: usize) -> Vec<u64> {
    let hash = |run: &[String]| {
        let mut hasher = DefaultHasher::new();
        run.hash(&mut hasher);
        hasher.finish()
    };
    words.windows(length).map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirteen_words_in_a_row_are_seen_and_twelve_are_not() {
        let training = "a b c d e f g h i j k l m n o";
        let thirteen = "x y b c d, e f g h i j k l m n! z";
        let twelve = "x y b c d e f g h i j k l m z";
        let found = overlaps([training], [thirteen, twelve, "A b C d e f g h i j k l m n o"]);
        let kinds: Vec<_> = found.iter().map(|overlap| (overlap.test, overlap.kind)).collect();
        assert_eq!(kinds, [(0, OverlapKind::SharedWords), (2, OverlapKind::SameText)]);
    }
}
