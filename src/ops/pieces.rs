//! Splits long rows into pieces. Sums over tokens are computed piece by piece, so computing a part of a model
//! in pieces gives gradients that are bit-identical to computing it at once.

use std::ops::Range;

/// Tokens per piece. The last piece has fewer than twice as many.
const PIECE: usize = 2048;

/// Returns the pieces of a row of `tokens` tokens.
pub(crate) fn pieces(tokens: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + Clone {
    let count = (tokens / PIECE).max(1);
    (0..count).map(move |index| {
        let end = if index + 1 == count { tokens } else { (index + 1) * PIECE };
        index * PIECE..end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_and_none_is_small() {
        for tokens in [0, 1, 2047, 2048, 4095, 4096, 10_000] {
            let all: Vec<Range<usize>> = pieces(tokens).collect();
            assert_eq!(all.iter().flat_map(Range::clone).count(), tokens);
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(all.len() == 1 || all.iter().all(|piece| (2048..4096).contains(&piece.len())));
        }
    }
}
