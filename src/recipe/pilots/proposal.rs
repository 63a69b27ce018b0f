//! The proposal of pilots, and its certainty.

use super::config::PilotsConfig;
use super::halving::{Outcome, steps_of};
use crate::data::{MixtureConfig, Share};
use crate::eval::Estimate;
use crate::text::{DISPLAY_WIDTH, Table, duration};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of a pilot: a short training run with one share, graded on problems set aside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PilotResult {
    /// The share of [`ShareProposal::source`].
    pub share: f64,
    /// Rank in the round, from 1.
    pub place: usize,
    /// Fraction of correct answers to the problems set aside, 0 to 1.
    pub accuracy: f64,
    /// Number of correct answers.
    pub right: usize,
    /// Loss of each source's answers to the same problems, in nats per token.
    pub losses: Vec<(String, f64)>,
    /// Mean of these losses over the sources.
    pub loss: f64,
    /// Fraction of resamples of the problems in which this share is the best of its round.
    pub chance: f64,
    /// Trained tokens of all steps.
    pub trained_tokens: u64,
    /// Wall time of all steps in seconds.
    pub seconds: f64,
    /// Wall time of grading and losses in seconds.
    pub evaluation_seconds: f64,
    /// Why the share was dropped after this round, if it was.
    #[serde(default)]
    pub given_up: Option<String>,
    /// For each problem, 1 if it was answered correctly, else 0. Not stored.
    #[serde(skip)]
    pub hits: Vec<f32>,
}

impl PilotResult {
    pub(super) fn new(share: f64, outcome: Outcome, chance: f64) -> Self {
        let Outcome { hits, losses, trained_tokens, seconds, evaluation_seconds } = outcome;
        let right: f64 = hits.iter().map(|hit| f64::from(*hit)).sum();
        let sum: f64 = losses.iter().map(|(_, loss)| loss).sum();
        Self {
            share,
            place: 0,
            accuracy: right / hits.len().max(1) as f64,
            right: right.round() as usize,
            loss: sum / losses.len().max(1) as f64,
            losses,
            chance,
            trained_tokens,
            seconds,
            evaluation_seconds,
            given_up: None,
            hits,
        }
    }
}

/// Pilots of equal length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PilotRound {
    /// Optimizer steps of each pilot.
    pub steps: usize,
    /// The pilots, in the order of their shares.
    pub pilots: Vec<PilotResult>,
}

/// The share that pilots propose for a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareProposal {
    /// The source that the share refers to: `long`, or the first source if neither has that name.
    pub source: String,
    /// The other source.
    pub other: String,
    /// The proposed share.
    pub share: f64,
    /// The best share of the last round.
    pub best: f64,
    /// The share to use if no other share is clearly better.
    pub fallback: f64,
    /// Accuracy of the best share minus that of the fallback in the last round, with its 95% interval over
    /// the problems.
    pub gain: Estimate,
    /// The second-best share of the last round. `None` in files of early versions.
    #[serde(default)]
    pub runner_up: Option<f64>,
    /// Accuracy of the best share minus that of the runner-up in the last round, with its 95% interval over
    /// the problems.
    #[serde(default)]
    pub lead: Estimate,
    /// Warnings about the pilots, such as too few steps.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The rounds.
    pub rounds: Vec<PilotRound>,
    /// The settings of the pilots.
    pub settings: PilotsConfig,
    /// Number of problems that the pilots train on.
    pub problems: usize,
    /// Number of problems that grade the pilots. Pilots do not train on them.
    pub questions: usize,
    /// Maximum number of trained tokens of all pilots.
    pub budget: u64,
    /// Trained tokens of one training run, averaged over the shares that are tried.
    pub training: u64,
}

fn percent(x: f64) -> String {
    format!("{:.1}", 100.0 * x)
}

impl ShareProposal {
    /// Returns whether the proposed share is not the fallback. It then beats the fallback in the last round
    /// with at least [`PilotsConfig::confidence`].
    pub fn is_clear(&self) -> bool {
        self.share != self.fallback
    }

    /// Returns the fraction of resamples of the problems in which the best share beats the other share of the
    /// last round. Ties count half.
    pub fn sure(&self) -> f64 {
        let last = self.rounds.last().map_or(&[][..], |round| &round.pilots);
        last.iter().find(|pilot| pilot.share == self.best).map_or(0.0, |pilot| pilot.chance)
    }

    /// Returns all pilots, round by round.
    pub fn pilots(&self) -> impl Iterator<Item = &PilotResult> {
        self.rounds.iter().flat_map(|round| &round.pilots)
    }

    /// Returns the number of trained tokens of all pilots.
    pub fn trained_tokens(&self) -> u64 {
        self.pilots().map(|pilot| pilot.trained_tokens).sum()
    }

    /// Returns the mixture of a run with this share: an exact share of rows.
    pub fn mixture(&self, asked: &MixtureConfig) -> MixtureConfig {
        mixture_of([&self.source, &self.other], self.share, asked)
    }

    /// Returns the proposal and its certainty in one sentence.
    pub fn line(&self) -> String {
        let Self { source, share, best, fallback, gain, lead, runner_up, .. } = self;
        let points = |estimate: &Estimate| {
            let [value, low, high] =
                [estimate.value, estimate.low, estimate.high].map(|x| format!("{:+.1}", 100.0 * x));
            let sure = percent(self.sure());
            format!("{value} points, 95% interval {low} to {high}; better in {sure}% of resamples")
        };
        let unclear =
            format!("share of `{source}`: {share}, the fallback; no other share is clearly better");
        if self.is_clear() {
            return format!(
                "share of `{source}`: {share}, found by pilots; more correct answers than with the \
                 fallback {fallback} ({})",
                points(gain)
            );
        }
        if self.pilots().all(|pilot| pilot.right == 0) {
            return format!("{unclear}, since no pilot answers any problem correctly");
        }
        match runner_up {
            _ if best != fallback => {
                format!("{unclear} ({best} minus {fallback}: {})", points(gain))
            }
            Some(other) if self.sure() >= self.settings.confidence && lead.value > 0.0 => format!(
                "share of `{source}`: {share}, found by pilots; more correct answers than with {other}, \
                 the other share of the last round ({})",
                points(lead)
            ),
            Some(other) => format!("{unclear} ({fallback} minus {other}: {})", points(lead)),
            None => unclear,
        }
    }

    /// Returns the tokens and time that the pilots used, in one sentence.
    pub fn cost(&self) -> String {
        let sum = |part: fn(&PilotResult) -> f64| self.pilots().map(part).sum::<f64>();
        let rounds = self
            .rounds
            .iter()
            .map(|round| format!("{} with {}", round.pilots.len(), steps_of(round.steps)));
        format!(
            "{} pilots ({}) used {} of {} trained tokens (one training run: {} on average) in {}; \
             grading on {} problems set aside took {}",
            self.pilots().count(),
            rounds.collect::<Vec<_>>().join(", "),
            self.trained_tokens(),
            self.budget,
            self.training,
            duration(sum(|pilot| pilot.seconds)),
            self.questions,
            duration(sum(|pilot| pilot.evaluation_seconds)),
        )
    }

    /// Returns the pilots as a table.
    pub fn table(&self) -> Table {
        let names: Vec<String> = self.pilots().next().map_or(vec![], |pilot| {
            pilot.losses.iter().map(|(name, _)| format!("loss {name}")).collect()
        });
        let header = ["round", "steps", "share", "correct, %"].map(str::to_owned).into_iter();
        let header = header.chain(names).chain(["best in, %".into(), "dropped".into()]);
        let mut table = Table::new(header);
        for (number, round) in self.rounds.iter().enumerate() {
            for pilot in &round.pilots {
                let row = [
                    (number + 1).to_string(),
                    round.steps.to_string(),
                    pilot.share.to_string(),
                    percent(pilot.accuracy),
                ];
                let losses = pilot.losses.iter().map(|(_, loss)| format!("{loss:.4}"));
                let given_up = if pilot.given_up.is_some() { "yes" } else { "" };
                let end = [percent(pilot.chance), given_up.to_owned()];
                table.row(row.into_iter().chain(losses).chain(end));
            }
        }
        table
    }
}

/// Returns the mixture of two sources with this share of the first one, as an exact share of rows.
pub(super) fn mixture_of(names: [&str; 2], share: f64, asked: &MixtureConfig) -> MixtureConfig {
    let weights = [(names[0].to_owned(), share), (names[1].to_owned(), 1.0 - share)];
    MixtureConfig { weights: weights.into(), share: Share::Exact, ..asked.clone() }
}

impl fmt::Display for ShareProposal {
    /// Writes the proposal, the table, warnings, and the cost. The table fits the width of the format.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = f.width().unwrap_or(DISPLAY_WIDTH);
        writeln!(f, "{}", self.line())?;
        writeln!(f, "{}", self.table().to_text(width).trim_end())?;
        for pilot in self.pilots() {
            if let Some(why) = &pilot.given_up {
                writeln!(f, "  {} was dropped after {why}", pilot.share)?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "{warning}")?;
        }
        write!(f, "{}", self.cost())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a proposal of two shares whose pilots have `right` correct answers each. The best share is
    /// better in the fraction `sure` of the resamples.
    fn proposal(best: f64, sure: f64, right: usize) -> ShareProposal {
        let estimate = Estimate { value: 0.1, low: -0.02, high: 0.2 };
        let chance = |share: f64| if share == best { sure } else { 1.0 - sure };
        let pilot =
            |share| PilotResult { share, right, chance: chance(share), ..PilotResult::default() };
        let settings = PilotsConfig::default();
        ShareProposal {
            source: "long".into(),
            other: "short".into(),
            share: if sure >= settings.confidence { best } else { 0.2 },
            best,
            fallback: 0.2,
            gain: if best == 0.2 { Estimate::default() } else { estimate },
            runner_up: Some(if best == 0.2 { 0.6 } else { 0.2 }),
            lead: estimate,
            warnings: vec!["too short".into()],
            rounds: vec![PilotRound { steps: 1, pilots: vec![pilot(0.2), pilot(0.6)] }],
            settings,
            problems: 90,
            questions: 10,
            budget: 100,
            training: 100,
        }
    }

    #[test]
    fn each_outcome_is_said_with_its_certainty() {
        let of = |sure: &str| {
            format!("(+10.0 points, 95% interval -2.0 to +20.0; better in {sure}% of resamples)")
        };
        let no_better = "0.2, the fallback; no other share is clearly better";
        for (best, sure, right, expected) in [
            (
                0.6,
                0.8,
                5,
                format!(
                    "0.6, found by pilots; more correct answers than with the fallback 0.2 {}",
                    of("80.0")
                ),
            ),
            (
                0.6,
                0.799,
                5,
                format!(
                    "{no_better} (0.6 minus 0.2: +10.0 points, 95% interval -2.0 to +20.0; better in \
                     79.9% of resamples)"
                ),
            ),
            (
                0.2,
                0.97,
                5,
                format!(
                    "0.2, found by pilots; more correct answers than with 0.6, the other share of the \
                     last round {}",
                    of("97.0")
                ),
            ),
            (
                0.2,
                0.6,
                5,
                format!(
                    "{no_better} (0.2 minus 0.6: +10.0 points, 95% interval -2.0 to +20.0; better in \
                     60.0% of resamples)"
                ),
            ),
            (0.6, 0.5, 0, format!("{no_better}, since no pilot answers any problem correctly")),
        ] {
            let proposal = proposal(best, sure, right);
            assert_eq!(proposal.line(), format!("share of `long`: {expected}"));
            assert_eq!(proposal.is_clear(), proposal.share != 0.2);
            assert_eq!(proposal.sure(), sure);
        }
        let shown = proposal(0.2, 0.97, 5).to_string();
        assert!(shown.contains("\ntoo short\n") && shown.contains("2 pilots (2 with 1 step) used"));
    }

    #[test]
    fn a_file_of_before_there_was_a_runner_up_is_read() {
        let mut json = serde_json::to_value(proposal(0.2, 0.6, 5)).unwrap();
        for name in ["runner_up", "lead", "warnings"] {
            assert!(json.as_object_mut().unwrap().remove(name).is_some());
        }
        assert!(json["settings"].as_object_mut().unwrap().remove("confidence").is_some());
        let read: ShareProposal = serde_json::from_value(json).unwrap();
        assert!(read.line().ends_with("0.2, the fallback; no other share is clearly better"));
    }
}
