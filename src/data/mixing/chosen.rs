//! Answers chosen by score, and how much the choice differs from chance.

use super::assign;
use super::cheapest::cheapest;
use super::choice::{ChoiceBy, ChoiceConfig, Prefer};
use super::mixture::MixtureOptions;
use super::pairs::Pairs;
use crate::error::{Error, Result};
use crate::random::Stream;
use crate::text::{Table, wrapped};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The scores of one source's answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceChoice {
    /// The source's name.
    pub name: String,
    /// Answers available to the choice.
    pub answers: usize,
    /// Their mean score.
    pub mean: f64,
    /// Percentiles of the scores at 0, 5, 10, ..., 100%.
    pub percentiles: Vec<f64>,
    /// Mean score of its chosen answers. `None` if there are none.
    pub chosen: Option<f64>,
    /// Share of the problems for which one of its answers has the best score. Ties count in part.
    pub best: f64,
}

/// The result of a choice by score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// The score that answers are chosen by.
    pub by: ChoiceBy,
    /// Which end of the scores is preferred.
    pub prefer: Prefer,
    /// Whether the weights determine the shares.
    pub within_share: bool,
    /// One entry per source.
    pub sources: Vec<SourceChoice>,
    /// Problems with more than one answer to choose from.
    pub problems_with_choice: usize,
    /// Mean score of the chosen answers.
    pub chosen: f64,
    /// Mean score of randomly drawn answers with the same number from each source.
    pub by_chance: f64,
    /// Standard deviation of that mean between draws.
    pub chance_deviation: f64,
}

impl ChoiceReport {
    /// Returns by how many standard deviations the mean score of the chosen answers is better than that of
    /// random ones. `None` if the shares leave no room for chance.
    pub fn deviations(&self) -> Option<f64> {
        let better = match self.prefer {
            Prefer::Lowest => self.by_chance - self.chosen,
            Prefer::Highest => self.chosen - self.by_chance,
        };
        // Ignore rounding errors.
        let has_room = self.chance_deviation > 1e-9 * self.by_chance.abs();
        has_room.then(|| better / self.chance_deviation)
    }

    /// Formats the scores by source and the comparison with chance, in lines of at most `width` columns.
    pub(crate) fn to_text(&self, width: usize) -> String {
        let mut table =
            Table::new(["source", "answers", "lowest", "25%", "median", "75%", "highest", "best"]);
        for source in &self.sources {
            let at = |percent: usize| source.percentiles.get(percent / 5).copied();
            let cells = [0, 25, 50, 75, 100].map(|percent| at(percent).map_or("-".into(), short));
            let [name, answers] = [source.name.clone(), source.answers.to_string()];
            let best = format!("{:.1}%", 100.0 * source.best);
            table.row([name, answers].into_iter().chain(cells).chain([best]));
        }
        let end = match self.prefer {
            Prefer::Lowest => "lowest",
            Prefer::Highest => "highest",
        };
        let shares = if self.within_share { "in the requested shares" } else { "in any shares" };
        let title = self.by.title();
        let chosen = format!("chosen by {title}, {end} first, {shares}; scores by source:");
        let against = match self.deviations() {
            Some(deviations) => format!(
                "of random answers in the same shares {} (standard deviation {}): {deviations:.1} \
                 standard deviations better than chance",
                short(self.by_chance),
                short(self.chance_deviation)
            ),
            None => "the same as of any other answers in these shares".into(),
        };
        let chance = format!(
            "mean score of the chosen answers {}, {against}; {} problems have more than one answer",
            short(self.chosen),
            self.problems_with_choice,
        );
        [wrapped(&chosen, width), table.to_text(width), wrapped(&chance, width)].join("\n")
    }
}

/// Formats a score with four significant digits.
fn short(score: f64) -> String {
    let magnitude = score.abs().max(1e-9).log10().floor() as i32;
    format!("{score:.*}", (3 - magnitude).clamp(0, 6) as usize)
}

/// Answers to choose from, with their scores.
pub(super) struct Candidates<'a> {
    pub pairs: &'a Pairs,
    pub choice: &'a ChoiceConfig,
    pub options: &'a MixtureOptions,
}

/// A source and a record for each problem.
pub(super) struct Chosen {
    pub sources: Vec<u16>,
    pub records: Vec<u32>,
}

impl<'a> Candidates<'a> {
    /// # Errors
    /// [`Error::Config`] with the first answer that has no score.
    pub fn new(
        pairs: &'a Pairs,
        choice: &'a ChoiceConfig,
        options: &'a MixtureOptions,
    ) -> Result<Self> {
        let candidates = Self { pairs, choice, options };
        if choice.by == ChoiceBy::Chance {
            return Ok(candidates);
        }
        for problem in 0..pairs.len() {
            for (source, record) in candidates.all(problem) {
                let score = candidates.score(source, record);
                if score.is_some_and(f64::is_finite) {
                    continue;
                }
                let label = pairs.sources()[source].label(record);
                let what = match score {
                    None => format!("the answer {label} has no score"),
                    Some(score) => format!("the answer {label} has the score {score}"),
                };
                let hint = match choice.by {
                    ChoiceBy::Column => "Set columns.score of each source to the column of scores",
                    ChoiceBy::Shortest | ChoiceBy::Longest => {
                        "Encode the sources first and pass the lengths"
                    }
                    _ => "Score the answers with the student and the settings of this run",
                };
                return Err(Error::config("mixture.choice.by", what, hint));
            }
        }
        Ok(candidates)
    }

    /// Returns all answers to a problem, as source and record.
    fn all(&self, problem: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let sources = 0..self.pairs.sources().len();
        sources.flat_map(move |source| {
            self.pairs.candidates(problem, source).map(move |record| (source, record))
        })
    }

    fn score(&self, source: usize, record: usize) -> Option<f64> {
        match self.choice.by {
            ChoiceBy::Shortest | ChoiceBy::Longest => {
                let length = self.options.lengths.as_ref()?.get(source, record)?;
                Some(f64::from(length.trained))
            }
            ChoiceBy::Column => self.pairs.sources()[source].score(record),
            ChoiceBy::Chance => Some(0.0),
            _ => self.options.scores.as_ref()?.get(source, record),
        }
    }

    /// Returns the cost to minimize.
    fn cost(&self, source: usize, record: usize) -> Option<f64> {
        let score = self.score(source, record)?;
        Some(if self.choice.prefers() == Prefer::Lowest { score } else { -score })
    }

    /// Returns the best answer of a source to a problem; the first wins ties.
    fn best(&self, problem: usize, source: usize) -> Option<(usize, f64)> {
        let costs = self.pairs.candidates(problem, source);
        let costs = costs.filter_map(|record| Some((record, self.cost(source, record)?)));
        costs.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Chooses an answer for each problem.
    ///
    /// # Errors
    /// [`Error::Config`] for bounds that name an unknown source or leave problems without a source.
    pub fn choose(&self, weights: &[f64], random: &mut Stream) -> Result<Chosen> {
        let (pairs, width) = (self.pairs, self.pairs.sources().len());
        let order = random.permutation(pairs.len());
        if self.choice.by == ChoiceBy::Chance {
            let available =
                |problem: u32, source| pairs.record_index(problem as usize, source).is_some();
            let sources = assign::exact(&order, weights, available);
            return Ok(self.drawn(sources, random));
        }
        let bounds = self.bounds(weights)?;
        let best: Vec<Option<(usize, f64)>> =
            (0..pairs.len() * width).map(|place| self.best(place / width, place % width)).collect();
        let at = |problem: u32, source: usize| best[problem as usize * width + source];
        let sources = cheapest(&order, &bounds, |problem, source| Some(at(problem, source)?.1));
        let records = (0u32..).zip(&sources).map(|(problem, source)| {
            at(problem, usize::from(*source)).map_or(0, |(record, _)| record as u32)
        });
        Ok(Chosen { records: records.collect(), sources })
    }

    /// Draws one of the source's answers for each problem.
    fn drawn(&self, sources: Vec<u16>, random: &mut Stream) -> Chosen {
        let record = |(problem, source): (usize, &u16)| {
            let records: Vec<usize> =
                self.pairs.candidates(problem, usize::from(*source)).collect();
            match records.as_slice() {
                [] => 0,
                [one] => *one as u32,
                several => several[random.below(several.len() as u64) as usize] as u32,
            }
        };
        Chosen { records: sources.iter().enumerate().map(record).collect(), sources }
    }

    /// Returns the minimum and maximum number of problems of each source.
    fn bounds(&self, weights: &[f64]) -> Result<Vec<(usize, usize)>> {
        let (problems, choice) = (self.pairs.len(), self.choice);
        if choice.within_share {
            let counts = assign::largest_remainder(problems, weights);
            return Ok(counts.into_iter().map(|count| (count, count)).collect());
        }
        let names: Vec<&str> = self.pairs.sources().iter().map(|source| source.name()).collect();
        for (key, bounds) in [("floor", &choice.floor), ("ceiling", &choice.ceiling)] {
            if let Some(unknown) = bounds.keys().find(|name| !names.contains(&name.as_str())) {
                let what = format!("there is no source called `{unknown}`");
                let hint = format!("Use the names {}", names.join(", "));
                return Err(Error::config(format!("mixture.choice.{key}"), what, hint));
            }
        }
        let shares = |bounds: &BTreeMap<String, f64>, otherwise: f64| -> Vec<f64> {
            names.iter().map(|name| bounds.get(*name).copied().unwrap_or(otherwise)).collect()
        };
        let (floors, ceilings) = (shares(&choice.floor, 0.0), shares(&choice.ceiling, 1.0));
        if ceilings.iter().sum::<f64>() < 1.0 - 1e-9 {
            let what = "the ceilings of all sources sum to less than 1";
            return Err(Error::config("mixture.choice.ceiling", what, "Raise or remove a ceiling"));
        }
        // A product that is an integer except for rounding is treated as that integer.
        let up = |share: &f64| (share * problems as f64 - 1e-9).ceil().max(0.0) as usize;
        let down = |share: &f64| (share * problems as f64 + 1e-9).floor() as usize;
        let counts = |shares: &[f64], round: &dyn Fn(&f64) -> usize| -> Vec<usize> {
            shares.iter().map(round).collect()
        };
        // If whole rows cannot meet all bounds, each may be missed by less than a row.
        let mut least = counts(&floors, &up);
        if least.iter().sum::<usize>() > problems {
            least = counts(&floors, &down);
        }
        let mut most = counts(&ceilings, &down);
        if most.iter().sum::<usize>() < problems {
            most = counts(&ceilings, &up);
        }
        let bounds = least.into_iter().zip(most);
        Ok(bounds.map(|(least, most)| (least, most.max(least))).collect())
    }

    /// Bounds that the answers make impossible, in words.
    pub fn missed(&self, weights: &[f64], rows: &[usize]) -> Vec<String> {
        let problems = self.pairs.len();
        let percent = |rows: usize| 100.0 * rows as f64 / problems.max(1) as f64;
        let bounds = self.bounds(weights).unwrap_or_default();
        let lines =
            bounds.into_iter().zip(rows).enumerate().filter_map(|(source, (bound, rows))| {
                let (least, most) = bound;
                let asked = match () {
                    () if *rows < least => least,
                    () if *rows > most => most,
                    () => return None,
                };
                Some(format!(
                    "`{}` answers {} of {problems} problems: its share is {:.1}%, not {:.1}%",
                    self.pairs.sources()[source].name(),
                    self.pairs.available(source),
                    percent(*rows),
                    percent(asked),
                ))
            });
        lines.collect()
    }

    /// Reports the result of the choice.
    pub fn report(&self, chosen: &Chosen, seed: u64) -> ChoiceReport {
        let (pairs, width) = (self.pairs, self.pairs.sources().len());
        let mut lines: Vec<(SourceChoice, Vec<f64>, Vec<f64>)> = pairs
            .sources()
            .iter()
            .map(|source| {
                let line = SourceChoice { name: source.name().to_owned(), ..Default::default() };
                (line, vec![], vec![])
            })
            .collect();
        let (mut with_choice, mut best_of) = (0, vec![0.0; width]);
        for problem in 0..pairs.len() {
            let scored: Vec<(usize, f64)> = self
                .all(problem)
                .filter_map(|(source, record)| Some((source, self.score(source, record)?)))
                .collect();
            scored.iter().for_each(|(source, score)| lines[*source].1.push(*score));
            with_choice += usize::from(scored.len() > 1);
            let best: Vec<(usize, f64)> = (0..width)
                .filter_map(|source| Some((source, self.best(problem, source)?.1)))
                .collect();
            let least = best.iter().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
            let first: Vec<usize> =
                best.iter().filter(|(_, cost)| *cost <= least).map(|(source, _)| *source).collect();
            first.iter().for_each(|source| best_of[*source] += 1.0 / first.len() as f64);
            let source = usize::from(chosen.sources[problem]);
            let score = self.score(source, chosen.records[problem] as usize);
            lines[source].2.extend(score);
        }
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len().max(1) as f64;
        let all: Vec<f64> = lines.iter().flat_map(|(.., chosen)| chosen).copied().collect();
        let (by_chance, chance_deviation) = self.chance(chosen, seed);
        let sources =
            lines.into_iter().zip(best_of).map(|((mut line, mut scores, chosen), best)| {
                line.answers = scores.len();
                line.mean = mean(&scores);
                scores.sort_unstable_by(f64::total_cmp);
                let last = scores.len().saturating_sub(1) as f64;
                let at = |percent: usize| (percent as f64 / 100.0 * last).round() as usize;
                line.percentiles = (0..=100)
                    .step_by(5)
                    .filter_map(|percent| scores.get(at(percent)).copied())
                    .collect();
                line.chosen = (!chosen.is_empty()).then(|| mean(&chosen));
                line.best = best / pairs.len().max(1) as f64;
                line
            });
        ChoiceReport {
            by: self.choice.by,
            prefer: self.choice.prefers(),
            within_share: self.choice.within_share,
            sources: sources.collect(),
            problems_with_choice: with_choice,
            chosen: mean(&all),
            by_chance,
            chance_deviation,
        }
    }

    /// Returns the mean and standard deviation, over draws, of the mean score of random answers with the same
    /// number from each source.
    fn chance(&self, chosen: &Chosen, seed: u64) -> (f64, f64) {
        let (pairs, width) = (self.pairs, self.pairs.sources().len());
        // Enough draws for two digits of the deviation, and fewer if each is expensive.
        let draws = if pairs.len() <= 20_000 { 200 } else { 20 };
        let mut counts = vec![0.0; width];
        chosen.sources.iter().for_each(|source| counts[usize::from(*source)] += 1.0);
        let weights: Vec<f64> =
            counts.iter().map(|count| count / pairs.len().max(1) as f64).collect();
        let available =
            |problem: u32, source| pairs.record_index(problem as usize, source).is_some();
        let means: Vec<f64> = (0..draws)
            .map(|draw| {
                let mut random = Stream::new(seed, "chance", draw);
                let order = random.permutation(pairs.len());
                let sources = assign::exact(&order, &weights, available);
                let drawn = self.drawn(sources, &mut random);
                let scores =
                    drawn.sources.iter().zip(&drawn.records).filter_map(|(source, record)| {
                        self.score(usize::from(*source), *record as usize)
                    });
                scores.sum::<f64>() / pairs.len().max(1) as f64
            })
            .collect();
        let mean = means.iter().sum::<f64>() / means.len() as f64;
        let squares = means.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (mean, (squares / (means.len() - 1) as f64).sqrt())
    }
}
