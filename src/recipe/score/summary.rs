//! Summarizes scores by source.

use super::RowScores;
use crate::text::Table;
use serde::{Deserialize, Serialize};

/// The scores of a source. Each answer counts once, regardless of its length. Answers without tokens to score
/// are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceScores {
    /// The source's name.
    pub name: String,
    /// Number of scored answers.
    pub rows: usize,
    /// Number of answers without tokens to score.
    pub without_tokens: usize,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Mean of the answers' mean negative log-probabilities in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean of the answers' mean ranks.
    pub rank: f64,
    /// `rank / nll`: the Rank-Surprisal Ratio of a set of answers (arXiv 2601.14249, appendix A.8). Lower
    /// suits the student better.
    pub rsr: f64,
    /// First quartile, median, and third quartile of the answers' own ratios.
    pub rsr_quartiles: [f64; 3],
    /// Mean of the answers' shares of tokens with a rank above 100.
    pub above_100: f64,
    /// Mean of the answers' local average log-probabilities, if all of them have one.
    pub lalp: Option<f64>,
}

impl SourceScores {
    /// Returns the scores of the sources with these names, in order.
    pub fn of(rows: &[RowScores], names: impl IntoIterator<Item = String>) -> Vec<Self> {
        names.into_iter().map(|name| Self::of_source(rows, name)).collect()
    }

    fn of_source(rows: &[RowScores], name: String) -> Self {
        let (scored, empty): (Vec<&RowScores>, Vec<&RowScores>) =
            rows.iter().filter(|row| row.source == name).partition(|row| row.tokens > 0);
        let counts = Self { name, without_tokens: empty.len(), ..Self::default() };
        if scored.is_empty() {
            return counts;
        }
        let mean = |of: &dyn Fn(&RowScores) -> f64| {
            scored.iter().map(|row| of(row)).sum::<f64>() / scored.len() as f64
        };
        let (nll, rank) = (mean(&|row| row.nll), mean(&|row| row.rank));
        let mut ratios: Vec<f64> = scored.iter().map(|row| row.rsr).collect();
        ratios.sort_by(f64::total_cmp);
        let with_lalp = scored.iter().all(|row| row.lalp.is_some());
        Self {
            rows: scored.len(),
            tokens: scored.iter().map(|row| row.tokens as u64).sum(),
            nll,
            perplexity: nll.exp().min(f64::MAX),
            rank,
            rsr: rank / nll.max(super::LEAST_NLL),
            rsr_quartiles: [0.25, 0.5, 0.75].map(|share| quantile(&ratios, share)),
            above_100: mean(&|row| row.above_100),
            lalp: with_lalp.then(|| mean(&|row| row.lalp.unwrap_or_default())),
            ..counts
        }
    }
}

/// Returns the quantile of sorted values, with linear interpolation.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + part * (sorted[high] - sorted[low])
}

/// Formats the scores as a table with one row per source.
pub fn score_table(sources: &[SourceScores]) -> Table {
    let lalp = sources.iter().any(|source| source.lalp.is_some());
    let mut header = vec!["source", "answers", "tokens", "NLL", "perplexity", "rank", "RSR"];
    header.extend(["RSR 25%", "median", "75%", "above 100"]);
    header.extend(lalp.then_some("LALP"));
    let mut table = Table::new(header);
    for source in sources {
        let number = |value: f64| match source.rows {
            0 => "-".to_owned(),
            _ if value.abs() >= 1e5 => format!("{value:.1e}"),
            _ => format!("{value:.3}"),
        };
        let mut cells =
            vec![source.name.clone(), source.rows.to_string(), source.tokens.to_string()];
        let [first, median, third] = source.rsr_quartiles;
        let figures =
            [source.nll, source.perplexity, source.rank, source.rsr, first, median, third];
        cells.extend(figures.map(number));
        cells.push(match source.rows {
            0 => "-".into(),
            _ => format!("{:.1}%", 100.0 * source.above_100),
        });
        if lalp {
            cells.push(source.lalp.map_or("-".into(), number));
        }
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source: &str, tokens: usize, nll: f64, rank: f64) -> RowScores {
        let rsr = rank / nll;
        RowScores { source: source.into(), tokens, nll, rank, rsr, ..RowScores::default() }
    }

    #[test]
    fn a_source_is_summed_as_the_paper_does() {
        let rows = [
            row("a", 10, 1.0, 2.0),
            row("b", 5, 0.5, 4.0),
            row("a", 30, 3.0, 9.0),
            row("a", 1, 2.0, 1.0),
            RowScores {
                source: "a".into(),
                rsr: super::super::NO_TOKENS_RSR,
                ..Default::default()
            },
        ];
        let all = SourceScores::of(&rows, ["a", "b", "c"].map(str::to_owned));
        let [a, b, c] = &all[..] else { panic!("three sources") };
        assert_eq!((a.rows, a.without_tokens, a.tokens, a.nll, a.rank), (3, 1, 41, 2.0, 4.0));
        assert_eq!((a.rsr, a.rsr_quartiles), (2.0, [1.25, 2.0, 2.5]));
        assert_eq!((b.rsr, b.rsr_quartiles), (8.0, [8.0; 3]));
        assert_eq!((c.rows, c.rsr, c.lalp), (0, 0.0, None));
        let text = score_table(&all).to_text(120);
        assert!(
            text.contains("a             3      41  2.000       7.389  4.000  2.000"),
            "{text}"
        );
        assert!(text.lines().last().unwrap().contains(" - "), "{text}");
    }
}
