//! The steps of an answer, and its local average log-probability.
//!
//! ```text
//! row                    P P P P | a a a | b b | c c c | d d E         steps a, b, c, d
//! read for d, window 2   P P P P | b b | c c c | d d                   d's tokens are scored
//! ```

use super::LalpConfig;
use crate::data::{Batch, Row, TextTokenizer};
use crate::error::Result;
use crate::model::DecoderLm;
use std::ops::Range;

/// Tokens of a batch of steps, padding included, where it has several.
const BATCH_TOKENS: usize = 2048;

/// Characters other than white space that a step has at least.
const LEAST_CHARACTERS: usize = 4;

/// The steps of an answer's tokens, which they cover without gaps; see [`LalpConfig`].
///
/// # Errors
/// [`Error::Tokenizer`](crate::Error::Tokenizer) where the tokenizer refuses the tokens.
pub fn answer_steps(tokens: &[u32], tokenizer: &TextTokenizer) -> Result<Vec<Range<usize>>> {
    let pieces = pieces(tokens, tokenizer)?;
    let mut steps: Vec<Range<usize>> = vec![];
    let (mut start, mut text, mut characters) = (0, String::new(), 0);
    for (index, piece) in pieces.iter().enumerate() {
        text.push_str(piece);
        characters += piece.chars().filter(|c| !c.is_whitespace()).count();
        let next = pieces.get(index + 1).map_or("", String::as_str);
        if characters >= LEAST_CHARACTERS && ends_step(&text, piece, next) {
            steps.push(start..index + 1);
            (start, characters) = (index + 1, 0);
            text.clear();
        }
    }
    if start < tokens.len() {
        match steps.last_mut() {
            // The rest is no step of its own.
            Some(last) if characters < LEAST_CHARACTERS => last.end = tokens.len(),
            _ => steps.push(start..tokens.len()),
        }
    }
    Ok(steps)
}

/// Whether a step ends between a token and the next. `text` is that of the step up to and with the token.
fn ends_step(text: &str, piece: &str, next: &str) -> bool {
    // All breaks in a row end the same step.
    let breaks = |c: char| c == '\n' || c == '\r';
    if next.starts_with(breaks) {
        return false;
    }
    if piece.contains(breaks) {
        return true;
    }
    // White space at the beginning of the next token that holds a break is part of this step.
    let space: &str = &next[..next.len() - next.trim_start().len()];
    if space.contains(breaks) {
        return false;
    }
    let end = text.trim_end();
    let ends_in_space = end.len() < text.len();
    let sentence = end.trim_end_matches(['"', '\'', ')', ']', '}', '*', '_', '”', '’', '»']);
    match sentence.chars().last() {
        Some('.' | '!' | '?') => ends_in_space || !space.is_empty(),
        // These have no white space behind them.
        Some('。' | '！' | '？') => true,
        _ => false,
    }
}

/// The text that each token adds to those before it; bytes of a character that is not whole may be in none.
fn pieces(tokens: &[u32], tokenizer: &TextTokenizer) -> Result<Vec<String>> {
    let piece = |index: usize| -> Result<String> {
        let alone = tokenizer.decode_all(&tokens[index..index + 1])?;
        if index == 0 {
            return Ok(alone);
        }
        // Some decoders drop the space before the first token.
        let before = tokenizer.decode_all(&tokens[index - 1..index])?;
        let both = tokenizer.decode_all(&tokens[index - 1..index + 1])?;
        Ok(both.strip_prefix(&before).map_or(alone, str::to_owned))
    };
    (0..tokens.len()).map(piece).collect()
}

/// The rows in which an answer's steps are read: what comes before the answer, the steps of the window, and the
/// step, which alone is trained. `answer` is the range of its scored tokens in the row.
pub(super) fn step_rows(
    row: &Row,
    answer: &Range<usize>,
    steps: &[Range<usize>],
    config: LalpConfig,
) -> Vec<Row> {
    let tokens = &row.tokens[answer.clone()];
    let of = |(index, step): (usize, &Range<usize>)| {
        let context = steps[index.saturating_sub(config.window)].start;
        let mut all = row.tokens[..answer.start].to_vec();
        all.extend(&tokens[context..step.end]);
        Row { prompt: answer.start + step.start - context, tokens: all, ..Row::default() }
    };
    steps.iter().enumerate().map(of).collect()
}

/// The sum of the mean log-probabilities of rows' trained tokens, and the tokens that were read.
pub(super) fn mean_log_probabilities(model: &DecoderLm, rows: &[Row]) -> Result<(f64, u64)> {
    let (mut sum, mut read, mut first) = (0.0, 0, 0);
    while first < rows.len() {
        let mut longest = 0;
        let fits = |(count, row): &(usize, &Row)| {
            longest = longest.max(row.tokens.len());
            *count == 0 || (count + 1) * longest <= BATCH_TOKENS
        };
        let count = rows[first..].iter().enumerate().take_while(fits).count();
        let part = &rows[first..first + count];
        let batch = Batch::new(part.iter().map(Row::example), 1);
        let scores = model.target_scores(&batch)?;
        let mut scores = scores.iter();
        for row in part {
            let trained = row.example().targets();
            let nll: f64 = scores.by_ref().take(trained).map(|score| score.nll).sum();
            sum -= nll / trained as f64;
        }
        read += (batch.rows * batch.length) as u64;
        first += count;
    }
    Ok((sum, read))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps of a text as texts; every character is a token.
    fn texts(text: &str) -> Vec<String> {
        let tokenizer = TextTokenizer::builtin([" word", ".\n\n"]).unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        let steps = answer_steps(&tokens, &tokenizer).unwrap();
        assert!(steps.iter().all(|step| !step.is_empty()));
        let ends = steps.iter().map(|step| step.end);
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        assert!(steps.iter().map(|step| step.start).eq(starts[..steps.len()].iter().copied()));
        assert_eq!(*starts.last().unwrap(), tokens.len());
        steps.iter().map(|step| tokenizer.decode(&tokens[step.clone()]).unwrap()).collect()
    }

    #[test]
    fn steps_end_at_line_breaks_and_at_the_ends_of_sentences() {
        assert_eq!(texts("One is 1. Two is 2!"), ["One is 1.", " Two is 2!"]);
        // No end: a number, a short piece, a name.
        assert_eq!(texts("It is 3.5 or a.b"), ["It is 3.5 or a.b"]);
        assert_eq!(texts("1. Add 2 and 3. Done"), ["1. Add 2 and 3.", " Done"]);
        // All breaks in a row end the same step, also where there is white space before them.
        assert_eq!(texts("a = 1\n\n\nb = 2\r\nc"), ["a = 1\n\n\n", "b = 2\r\nc"]);
        assert_eq!(texts("so be it. \nAnd now\n"), ["so be it. \n", "And now\n"]);
        // Quotes and brackets belong to the sentence.
        assert_eq!(texts("(He said \"no.\") Then?"), ["(He said \"no.\")", " Then?"]);
        assert_eq!(texts("這是一個。那是兩個"), ["這是一個。", "那是兩個"]);
        // What is too short at the end is part of the last step.
        assert_eq!(texts("A sentence. No"), ["A sentence. No"]);
        assert_eq!(texts("a"), ["a"]);
        assert!(texts("").is_empty());
    }

    #[test]
    fn a_step_is_read_behind_the_problem_and_its_window() {
        let row = Row { tokens: (0..12).collect(), prompt: 3, ..Row::default() };
        let steps = [0..2, 2..3, 3..6, 6..8];
        let rows = |window| step_rows(&row, &(3..11), &steps, LalpConfig { window });
        let read = |window| -> Vec<(Vec<u32>, usize)> {
            rows(window).into_iter().map(|row| (row.tokens, row.prompt)).collect()
        };
        let [none, one] = [read(0), read(1)];
        assert_eq!(none[3], (vec![0, 1, 2, 9, 10], 3));
        assert_eq!(one[0], (vec![0, 1, 2, 3, 4], 3));
        assert_eq!(one[3], (vec![0, 1, 2, 6, 7, 8, 9, 10], 6));
        // A window as long as the answer is the answer.
        assert_eq!(read(9)[3], ((0..11).collect(), 9));
    }
}
