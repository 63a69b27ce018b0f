//! Held-out rows and questions, and the fingerprints that tell whether a resumed run has the same data.

use crate::data::batching::hash_ranges;
use crate::data::{Encoded, MixDistillation, Pairs, Row};
use crate::eval::{Question, final_answer};
use crate::text::hex;
use crate::train::HeldOut;
use sha2::{Digest, Sha256};

/// Returns the rows of the first `problems` held-out problems, separately for each source. A learner computes
/// the held-out loss on them. `encoded` must belong to `pairs`.
pub fn held_out_rows(pairs: &Pairs, encoded: &Encoded, problems: usize) -> Vec<HeldOut> {
    let sources = pairs.sources().iter().enumerate();
    sources
        .map(|(index, source)| {
            let rows = (0..pairs.len().min(problems)).filter_map(|problem| {
                let record = pairs.record_index(problem, index)?;
                let example = encoded.example(index, record)?;
                Some(Row {
                    tokens: example.tokens.to_vec(),
                    prompt: example.prompt,
                    untrained: example.untrained.to_vec(),
                    label: source.label(record),
                    number: problem as u64,
                    ..Row::default()
                })
            });
            HeldOut { name: source.name().to_owned(), rows: rows.collect() }
        })
        .collect()
}

/// Returns the first `limit` held-out problems that have a reference answer, as questions for
/// [`ask`](crate::eval::ask).
pub fn questions(pairs: &Pairs, limit: usize) -> Vec<Question> {
    (0..pairs.len())
        .filter_map(|problem| {
            let reference = pairs.answer(problem)?;
            Some(Question {
                system: pairs.system(problem).map(str::to_owned),
                earlier: pairs.earlier(problem).to_vec(),
                problem: pairs.problem(problem).to_owned(),
                // A reference may include its derivation, as in GSM8K.
                reference: final_answer(reference).unwrap_or_else(|| reference.trim().to_owned()),
            })
        })
        .take(limit)
        .collect()
}

pub(super) fn longest(mixture: &MixDistillation, encoded: &Encoded) -> usize {
    let pairs = mixture.pairs();
    let sources = 0..pairs.sources().len();
    let lengths = sources.flat_map(|source| {
        let records = (0..pairs.len()).flat_map(move |problem| pairs.candidates(problem, source));
        records.filter_map(move |record| Some(encoded.example(source, record)?.tokens.len()))
    });
    lengths.max().unwrap_or(0)
}

pub(super) fn held_out_fingerprint(held_out: &[HeldOut]) -> String {
    let mut hash = Sha256::new();
    for source in held_out {
        hash.update(source.name.as_bytes());
        for row in &source.rows {
            hash.update((row.tokens.len() as u64).to_le_bytes());
            hash.update((row.prompt as u64).to_le_bytes());
            hash_ranges(&mut hash, &row.untrained);
            row.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
    }
    hex(hash.finalize())
}

pub(super) fn fingerprint(mixture: &MixDistillation, encoded: &Encoded) -> String {
    let mut hash = Sha256::new();
    let pairs = mixture.pairs();
    for problem in 0..pairs.len() {
        for source in 0..pairs.sources().len() {
            let records: Vec<usize> = pairs.candidates(problem, source).collect();
            // Hashes one answer or none as earlier versions did, which had no further candidates.
            for place in 0..records.len().max(1) {
                let record = records.get(place);
                let example = record.and_then(|record| encoded.example(source, *record));
                // The length distinguishes two rows from one long row.
                let tokens = example.map_or(&[][..], |example| example.tokens);
                hash.update((tokens.len() as u64).to_le_bytes());
                hash.update(example.map_or(0, |example| example.prompt as u64).to_le_bytes());
                hash_ranges(&mut hash, example.map_or(&[][..], |example| example.untrained));
                tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
            }
            if records.len() > 1 {
                hash.update((records.len() as u64).to_le_bytes());
            }
        }
    }
    hex(hash.finalize())
}
