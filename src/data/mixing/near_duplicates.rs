//! Near-duplicate problems: found by MinHash (Broder 1997), then verified exactly.

use super::overlap::{hashed_runs, words};
use crate::error::Result;
use crate::random::Stream;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

/// Words in a run.
const WORDS: usize = 3;
/// Bands of a signature, and hashes per band: pairs with a similarity of 0.7 or more are found with a
/// probability of 99%, and at 0.8 of 99.99%.
const BANDS: usize = 24;
const ROWS: usize = 5;
/// Maximum number of earlier texts in a bucket that a text is compared with.
const MOST_COMPARED: usize = 64;

/// Two similar texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearDuplicate {
    /// Index of the text.
    pub text: usize,
    /// Index of the similar earlier text.
    pub earlier: usize,
    /// Jaccard similarity of their three-word sequences, 0 to 1.
    pub similarity: f64,
}

/// Finds the pairs of texts with a similarity of at least `threshold`, in order. Case and punctuation are
/// ignored. A pair above 0.7 is missed with a probability of about 1%, pairs below more often. If many texts
/// are alike, each is compared with at least the first 64 of them.
///
/// ```
/// use mixdistill::data::near_duplicates;
/// let found = near_duplicates(
///     ["Tom has 3 red apples and eats one of them. How many are left?",
///      "What is 2 + 2?",
///      "Tom has 3 red apples, and eats one of them: how many are left now?"],
///     0.7,
/// );
/// assert_eq!((found.len(), found[0].text, found[0].earlier), (1, 2, 0));
/// ```
pub fn near_duplicates<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    threshold: f64,
) -> Vec<NearDuplicate> {
    let found = near_duplicates_watched(texts, threshold, &mut |_| Ok(()));
    found.expect("nobody ends the search")
}

/// Like [`near_duplicates`]. `watch` receives the number of compared texts after each text.
///
/// # Errors
/// Errors of `watch`, which end the search.
pub(crate) fn near_duplicates_watched<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    threshold: f64,
    watch: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Vec<NearDuplicate>> {
    let mut random = Stream::new(0, "near duplicates", 0);
    // Multiplication by an odd factor permutes the 64-bit integers; the upper bits are well mixed.
    let mut factors = [[0u64; 2]; BANDS * ROWS];
    for pair in &mut factors {
        *pair = [random.next_u64() | 1, random.next_u64()];
    }
    let mut all_runs: Vec<HashSet<u64>> = vec![];
    let mut buckets: HashMap<(usize, u64), Vec<u32>> = HashMap::new();
    let mut found = vec![];
    for (text, content) in texts.into_iter().enumerate() {
        let runs = runs(content);
        let mut alike = vec![];
        let mut compared = HashSet::new();
        let keys = band_keys(&runs, &factors);
        for key in keys.iter().copied().enumerate() {
            let bucket = buckets.entry(key).or_default();
            for &earlier in bucket.iter().take(MOST_COMPARED) {
                let earlier = earlier as usize;
                if !compared.insert(earlier) {
                    continue;
                }
                let similarity = similarity(&runs, &all_runs[earlier]);
                if similarity >= threshold {
                    alike.push(NearDuplicate { text, earlier, similarity });
                }
            }
            if bucket.len() < MOST_COMPARED {
                bucket.push(text as u32);
            }
        }
        alike.sort_by_key(|pair| pair.earlier);
        found.extend(alike);
        all_runs.push(runs);
        watch(text as u64 + 1)?;
    }
    Ok(found)
}

/// Hashes of all word sequences. A shorter text has a single hash of all its words.
fn runs(text: &str) -> HashSet<u64> {
    let mut words = words(text);
    // A text without words counts as one empty word.
    words.resize(words.len().max(1), String::new());
    let length = WORDS.min(words.len());
    hashed_runs(&words, length).into_iter().collect()
}

/// Returns one number for each band of the signature.
fn band_keys(runs: &HashSet<u64>, factors: &[[u64; 2]]) -> Vec<u64> {
    let least = |[factor, shift]: &[u64; 2]| {
        let permuted = runs.iter().map(|run| run.wrapping_mul(*factor).wrapping_add(*shift));
        permuted.map(|x| x ^ x >> 32).min().unwrap_or(0)
    };
    let signature: Vec<u64> = factors.iter().map(least).collect();
    let key = |band: &[u64]| {
        let mut hasher = DefaultHasher::new();
        band.hash(&mut hasher);
        hasher.finish()
    };
    signature.chunks(ROWS).map(key).collect()
}

fn similarity(a: &HashSet<u64>, b: &HashSet<u64>) -> f64 {
    let common = a.intersection(b).count();
    common as f64 / (a.len() + b.len() - common) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a text of 60 words in which every `change`th word differs between versions.
    fn text(number: usize, version: usize, change: usize) -> String {
        let word = |at: usize| match at % change {
            0 => format!("w{number}x{at}v{version}"),
            _ => format!("w{number}x{at}"),
        };
        (0..60).map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn all_pairs_above_the_threshold_are_found_and_no_others() {
        // Versions differ in 3 or 15 of 60 words, which gives similarities of 0.73 and 0.14.
        let mut texts: Vec<String> = (0..200).map(|number| text(number, 0, 20)).collect();
        texts.extend((0..200).map(|number| text(number, 1, 20)));
        texts.extend((0..50).map(|number| text(number, 2, 4)));
        let found = near_duplicates(texts.iter().map(String::as_str), 0.7);
        let pairs: Vec<(usize, usize)> = found.iter().map(|f| (f.text, f.earlier)).collect();
        assert_eq!(pairs, (0..200).map(|i| (i + 200, i)).collect::<Vec<_>>());
        // By hand: of three changed words, the first is in one three-word sequence, the others in three each,
        // of 58 sequences.
        let differing = 7.0;
        assert!((found[0].similarity - (58.0 - differing) / (58.0 + differing)).abs() < 1e-12);
        assert!(near_duplicates(["", " ", "a"], 0.7).len() == 1);
    }

    #[test]
    fn many_equal_texts_cost_no_more_than_their_number() {
        let texts = vec!["the same text again and again and again"; 20_000];
        let found = near_duplicates(texts, 0.9);
        assert!(found.len() <= 20_000 * MOST_COMPARED);
        assert!(found.iter().all(|f| f.similarity == 1.0));
        let firsts = found.iter().filter(|pair| pair.earlier == 0).count();
        assert_eq!(firsts, 19_999);
    }
}
