//! The steps of an answer, and its local average log-probability.
//!
//! ```text
//! row                    P P P P | a a a | b b | c c c | d d E         steps a, b, c, d
//! read for d, window 2   P P P P | b b | c c c | d d                   d's tokens are scored
//! ```

use super::LalpConfig;
use crate::context::Context;
use crate::data::{Batch, Row, TextTokenizer};
use crate::error::Result;
use crate::model::DecoderLm;
use std::ops::Range;

/// Maximum tokens of a batch with several steps, including padding.
const BATCH_TOKENS: usize = 2048;

/// Minimum number of non-whitespace characters in a step.
const LEAST_CHARACTERS: usize = 4;

/// Splits an answer's tokens into steps without gaps; see [`LalpConfig`].
///
/// # Errors
/// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer cannot decode the tokens.
pub fn answer_steps(tokens: &[u32], tokenizer: &TextTokenizer) -> Result<Vec<Range<usize>>> {
    let pieces = pieces(tokens, tokenizer)?;
    let mut steps: Vec<Range<usize>> = vec![];
    let (mut start, mut text, mut characters) = (0, String::new(), 0);
    for (index, piece) in pieces.iter().enumerate() {
        text.push_str(piece);
        characters += piece.chars().filter(|c| !c.is_whitespace()).count();
        if characters >= LEAST_CHARACTERS && ends_step(&text, piece, &pieces[index + 1..]) {
            steps.push(start..index + 1);
            (start, characters) = (index + 1, 0);
            text.clear();
        }
    }
    if start < tokens.len() {
        match steps.last_mut() {
            // The rest is too short for a separate step.
            Some(last) if characters < LEAST_CHARACTERS => last.end = tokens.len(),
            _ => steps.push(start..tokens.len()),
        }
    }
    Ok(steps)
}

/// Returns whether a step ends after a token. `text` is the text of the step up to and including the token,
/// `piece` that of the token, and `behind` the texts of the tokens that follow.
fn ends_step(text: &str, piece: &str, behind: &[String]) -> bool {
    let is_break = |c: char| c == '\n' || c == '\r';
    let mut space =
        behind.iter().flat_map(|piece| piece.chars()).take_while(|c| c.is_whitespace()).peekable();
    let is_before_space = space.peek().is_some();
    // Consecutive line breaks, and white space between them, end the same step.
    if space.any(is_break) {
        return false;
    }
    if piece.contains(is_break) {
        return true;
    }
    let end = text.trim_end();
    let sentence = end.trim_end_matches(['"', '\'', ')', ']', '}', '*', '_', '”', '’', '»']);
    match sentence.chars().last() {
        Some('.' | '!' | '?') => is_before_space || end.len() < text.len(),
        // No white space follows these.
        Some('。' | '！' | '？') => true,
        _ => false,
    }
}

/// Returns the text that each token adds. If several tokens make up a character, the last one has all of it.
fn pieces(tokens: &[u32], tokenizer: &TextTokenizer) -> Result<Vec<String>> {
    /// Maximum number of further tokens that complete a character.
    const MOST_MISSING: usize = 3;
    let (mut pieces, mut first) = (Vec::with_capacity(tokens.len()), 0);
    for index in 0..tokens.len() {
        // Decodes with the token before, since some decoders drop a leading space, unless that token is a
        // part of a character.
        let before = match first {
            0 => String::new(),
            _ => tokenizer.decode_all(&tokens[first - 1..first])?,
        };
        let from = match before.is_empty() || before.contains(char::REPLACEMENT_CHARACTER) {
            true => first,
            false => first - 1,
        };
        let all = tokenizer.decode_all(&tokens[from..index + 1])?;
        let piece = match from < first {
            true => all.strip_prefix(&before).unwrap_or(&all),
            false => &all,
        };
        let is_whole = !piece.ends_with(char::REPLACEMENT_CHARACTER);
        if is_whole || index - first >= MOST_MISSING {
            pieces.push(piece.to_owned());
            first = index + 1;
        } else {
            pieces.push(String::new());
        }
    }
    Ok(pieces)
}

/// Returns one row per step of an answer: what precedes the answer, the steps of the window, and the step
/// itself, which alone is scored. `answer` is the range of the answer's scored tokens in the row.
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

/// Returns the sum over rows of the mean log-probability of their trained tokens, and the number of tokens
/// read.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped), between two batches; see [`DecoderLm::target_scores`].
pub(super) fn mean_log_probabilities(
    model: &DecoderLm,
    rows: &[Row],
    context: &Context<'_>,
) -> Result<(f64, u64)> {
    let (mut sum, mut read, mut first) = (0.0, 0, 0);
    while first < rows.len() {
        context.check()?;
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

    /// Returns the steps of a text as texts. Most characters are tokens.
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
        // These do not end a step: a number, a short piece, a name.
        assert_eq!(texts("It is 3.5 or a.b"), ["It is 3.5 or a.b"]);
        assert_eq!(texts("1. Add 2 and 3. Done"), ["1. Add 2 and 3.", " Done"]);
        // Consecutive line breaks end the same step, even after white space.
        assert_eq!(texts("a = 10\n\n \nb = 20\r\nc"), ["a = 10\n\n \n", "b = 20\r\nc"]);
        assert_eq!(texts("so be it. \nAnd now\n"), ["so be it. \n", "And now\n"]);
        // Indentation belongs to its line.
        assert_eq!(texts("first\n  second"), ["first\n", "  second"]);
        // Quotes and brackets belong to the sentence.
        assert_eq!(texts("(He said \"no.\") Then?"), ["(He said \"no.\")", " Then?"]);
        assert_eq!(texts("這是一個。那是兩個"), ["這是一個。", "那是兩個"]);
        // A short end belongs to the last step.
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
        // A window as long as the answer covers the whole answer.
        assert_eq!(read(9)[3], ((0..11).collect(), 9));
    }

    #[test]
    fn a_stop_is_seen_before_each_batch_of_steps() {
        use crate::context::{Event, Observer, StopFlag};
        struct Nothing;
        impl Observer for Nothing {
            fn observe(&mut self, _: &Event<'_>) -> Result<()> {
                Ok(())
            }
        }
        let config = crate::model::DecoderConfig {
            vocab_size: 32,
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            ..Default::default()
        };
        let model = config.init(1, &crate::device::by_name("flex").unwrap()).unwrap();
        let row = Row { tokens: (0..12).collect(), prompt: 3, ..Row::default() };
        let rows = vec![row; 3];
        let flag = StopFlag::default();
        let context = Context::new(Nothing, &flag);
        assert_eq!(mean_log_probabilities(&model, &rows, &context).unwrap().1, 33);
        flag.request();
        let stopped = mean_log_probabilities(&model, &rows, &context).unwrap_err();
        assert!(matches!(stopped, crate::Error::Stopped { .. }), "{stopped}");
    }
}
