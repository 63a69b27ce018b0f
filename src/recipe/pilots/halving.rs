//! Successive halving over shares: short pilots of all shares, longer pilots of the better half, and so on.
//!
//! ```text
//! round 1   0  0.2  0.6  1      as many steps as a seventh of the budget allows for all of them
//! round 2   0  0.2              the better half and the fallback: is the difference clear?
//! ```
//!
//! Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
//! 2016. Unlike there, the fallback is never dropped: it is the baseline that the best share must beat.

use super::proposal::{PilotResult, PilotRound};
use crate::error::{Error, Result};
use crate::eval::{Bootstrap, Estimate};
use crate::random::Stream;
use std::cmp::Ordering;

/// The result of a pilot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// For each problem set aside, 1 if it was answered correctly, else 0.
    pub hits: Vec<f32>,
    /// Loss of the sources' answers to the same problems, by source.
    pub losses: Vec<(String, f64)>,
    pub trained_tokens: u64,
    pub seconds: f64,
    pub evaluation_seconds: f64,
}

/// Trains and grades pilots.
pub(super) trait Pilots {
    /// Returns the number of trained tokens of a pilot with this share and length.
    fn cost(&self, share: f64, steps: usize) -> Result<u64>;

    /// Runs a pilot. `place` is its number, from 1, and the number of pilots.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::Error::Stopped); errors of training.
    fn run(&mut self, round: usize, share: f64, steps: usize, place: [usize; 2])
    -> Result<Outcome>;

    /// Returns the minimum number of steps of a pilot. Shorter pilots run with a warning.
    fn fewest_steps(&self) -> usize;

    /// Reports a warning before the pilots of a round run.
    ///
    /// # Errors
    /// Errors of the observer.
    fn warn(&mut self, text: &str) -> Result<()>;
}

/// The parameters of successive halving.
#[derive(Clone, Debug)]
pub(super) struct Halving {
    /// Shares to try, in ascending order, including the fallback.
    pub shares: Vec<f64>,
    pub fallback: f64,
    /// Maximum number of trained tokens of all pilots.
    pub budget: u64,
    /// Trained tokens of one training run. The setting `pilots.budget` is a multiple of them.
    pub training: u64,
    /// Tokens of a round relative to the round before.
    pub growth: f64,
    /// Steps of the run. No pilot is longer.
    pub most_steps: usize,
    pub bootstrap: Bootstrap,
}

/// The result of successive halving.
#[derive(Clone, Debug)]
pub(super) struct Halved {
    pub rounds: Vec<PilotRound>,
    /// The best share of the last round.
    pub best: f64,
    /// The fraction of resamples in which it is the best of the last round.
    pub sure: f64,
    /// Its score minus that of the fallback in the last round.
    pub gain: Estimate,
    /// The second-best share of the last round.
    pub runner_up: f64,
    /// The score of the best share minus that of the runner-up.
    pub lead: Estimate,
    /// Warnings about the pilots.
    pub warnings: Vec<String>,
}

/// Returns the number of shares in each round.
pub(super) fn sizes(shares: usize) -> Vec<usize> {
    let mut sizes = vec![shares];
    while let Some(last @ 3..) = sizes.last().copied() {
        sizes.push(last.div_ceil(2));
    }
    sizes
}

impl Halving {
    /// Runs all rounds.
    ///
    /// # Errors
    /// [`Error::Config`] before a round if the budget is too small for one step of each pilot; errors of the
    /// pilots.
    pub fn run(&self, pilots: &mut dyn Pilots) -> Result<Halved> {
        let sizes = sizes(self.shares.len());
        let all: usize = sizes.iter().sum();
        let (mut shares, mut rounds, mut spent, mut made) = (self.shares.clone(), vec![], 0, 0);
        let mut warnings = vec![];
        for (index, _) in sizes.iter().enumerate() {
            // Later rounds share what earlier rounds have not used.
            let parts: f64 =
                (0..sizes.len() - index).map(|later| self.growth.powi(later as i32)).sum();
            let room = (self.budget.saturating_sub(spent) as f64 / parts) as u64;
            let steps = self.longest(pilots, &shares, room)?;
            if let Some(warning) = self.short(pilots, &shares, steps, [index, sizes.len()])? {
                pilots.warn(&warning)?;
                warnings.push(warning);
            }
            let mut outcomes = vec![];
            for share in &shares {
                made += 1;
                outcomes.push(pilots.run(index + 1, *share, steps, [made, all])?);
            }
            spent += outcomes.iter().map(|outcome| outcome.trained_tokens).sum::<u64>();
            let keep = sizes.get(index + 1).copied();
            let mut round = self.judged(&shares, steps, outcomes);
            if let Some(keep) = keep {
                shares = self.kept(&mut round, keep, index + 1);
            }
            rounds.push(round);
        }
        let last = rounds.last().map_or(&[][..], |round| &round.pilots);
        let best = last.iter().min_by_key(|pilot| pilot.place);
        let fallback = last.iter().find(|pilot| pilot.share == self.fallback);
        let second = last.iter().find(|pilot| pilot.place == 2);
        let (Some(best), Some(fallback), Some(second)) = (best, fallback, second) else {
            return Err(Error::config("pilots.shares", "there is none", "Use two or more"));
        };
        let [gain, lead] = [fallback, second].map(|other| self.difference(best, other));
        let ([best, runner_up], sure) = ([best.share, second.share], best.chance);
        Ok(Halved { best, sure, gain, runner_up, lead, rounds, warnings })
    }

    /// Returns a warning for a round whose pilots have too few steps, with the budget that would give them
    /// enough.
    fn short(
        &self,
        pilots: &dyn Pilots,
        shares: &[f64],
        steps: usize,
        [round, rounds]: [usize; 2],
    ) -> Result<Option<String>> {
        let enough = pilots.fewest_steps();
        if steps >= enough {
            return Ok(None);
        }
        let made = format!("the pilots of round {} have {}", round + 1, steps_of(steps));
        if steps >= self.most_steps {
            return Ok(Some(format!("{made}, like the run itself: too few to tell shares apart")));
        }
        let enough = enough.min(self.most_steps);
        let tokens: u64 =
            shares.iter().map(|share| pilots.cost(*share, enough)).sum::<Result<u64>>()?;
        // Scales the tokens of the round to the whole budget.
        let parts: f64 = (0..rounds).map(|round| self.growth.powi(round as i32)).sum();
        let budget = tokens as f64 * parts / self.growth.powi(round as i32);
        let budget = budget / self.training.max(1) as f64;
        Ok(Some(format!(
            "{made}: too few to tell shares apart; pilots.budget={} gives them {}",
            (budget * 100.0).ceil() / 100.0,
            steps_of(enough)
        )))
    }

    /// Returns the largest number of steps such that a pilot of each share fits into `room` trained tokens
    /// together.
    fn longest(&self, pilots: &dyn Pilots, shares: &[f64], room: u64) -> Result<usize> {
        let cost = |steps: usize| -> Result<u64> {
            shares.iter().map(|share| pilots.cost(*share, steps)).sum()
        };
        let least = cost(1)?;
        if least > room {
            return Err(Error::config(
                "pilots.budget",
                format!(
                    "it leaves {room} trained tokens for a round of {} pilots, but one step of each \
                     takes {least}",
                    shares.len()
                ),
                "Raise it, or use fewer pilots.shares",
            ));
        }
        let most = self.most_steps.max(1);
        let whole = cost(most)?;
        if whole <= room {
            return Ok(most);
        }
        // The answer is in low..high. The cost is nearly linear in the steps, so interpolation finds it in a
        // few looks, each of which counts the tokens of all rows. Every fourth look bisects.
        let ([mut low, mut high], [mut below, mut above]) = ([1, most], [least, whole]);
        for look in 0.. {
            if high - low < 2 {
                break;
            }
            let part = (room - below) as f64 / (above - below).max(1) as f64;
            let on_line = low + ((high - low) as f64 * part) as usize;
            let middle = if look % 4 == 3 { low + (high - low) / 2 } else { on_line };
            let middle = middle.clamp(low + 1, high - 1);
            let tokens = cost(middle)?;
            match tokens <= room {
                true => (low, below) = (middle, tokens),
                false => (high, above) = (middle, tokens),
            }
        }
        Ok(low)
    }

    /// Returns a round with its pilots in the order of their shares, each with its rank.
    fn judged(&self, shares: &[f64], steps: usize, outcomes: Vec<Outcome>) -> PilotRound {
        let hits: Vec<&[f32]> = outcomes.iter().map(|outcome| &outcome.hits[..]).collect();
        let chances = self.chances(&hits);
        let mut pilots: Vec<PilotResult> = shares
            .iter()
            .zip(outcomes)
            .zip(chances)
            .map(|((share, outcome), chance)| PilotResult::new(*share, outcome, chance))
            .collect();
        let mut order: Vec<usize> = (0..pilots.len()).collect();
        let graded = pilots.iter().any(|pilot| pilot.right > 0);
        order.sort_by(|a, b| {
            let (a, b) = (&pilots[*a], &pilots[*b]);
            let near = |pilot: &PilotResult| (pilot.share - self.fallback).abs();
            // On ties, the share closer to the fallback wins. The loss of a source falls as its share grows,
            // so the loss counts only if no answer is correct.
            let loss = if graded { Ordering::Equal } else { a.loss.total_cmp(&b.loss) };
            let grade = b.accuracy.total_cmp(&a.accuracy);
            grade.then(loss).then(near(a).total_cmp(&near(b)))
        });
        for (place, index) in order.into_iter().enumerate() {
            pilots[index].place = place + 1;
        }
        PilotRound { steps, pilots }
    }

    /// Returns, for each pilot, the fraction of resamples of the problems in which it has the most correct
    /// answers. Pilots that tie for the most share the resample.
    fn chances(&self, hits: &[&[f32]]) -> Vec<f64> {
        let problems = hits.iter().map(|hits| hits.len()).min().unwrap_or(0);
        let resamples = self.bootstrap.resamples.max(1);
        let mut random = Stream::new(self.bootstrap.seed, "pilots", 1);
        let mut wins = vec![0.0; hits.len()];
        for _ in 0..resamples {
            let drawn = (0..problems).map(|_| random.below(problems as u64) as usize);
            let drawn: Vec<usize> = drawn.collect();
            // Sums of ones are exact in f32.
            let score = |hits: &&[f32]| drawn.iter().map(|problem| hits[*problem]).sum::<f32>();
            let scores: Vec<f32> = hits.iter().map(score).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let winners = scores.iter().filter(|score| **score == most).count() as f64;
            for (wins, _) in wins.iter_mut().zip(&scores).filter(|(_, score)| **score == most) {
                *wins += 1.0 / winners;
            }
        }
        wins.iter().map(|wins| wins / resamples as f64).collect()
    }

    /// Returns the shares of the next round, in order: the best ones, and always the fallback. Records for
    /// the others why they are dropped.
    fn kept(&self, round: &mut PilotRound, keep: usize, number: usize) -> Vec<f64> {
        let place = |share: f64| round.pilots.iter().find(|p| p.share == share).map(|p| p.place);
        // If the fallback is not among the best, it takes the last place.
        let behind = place(self.fallback).is_some_and(|place| place > keep);
        let last = if behind { keep - 1 } else { keep };
        let stays = |pilot: &PilotResult| pilot.place <= last || pilot.share == self.fallback;
        let shares = round.pilots.iter().filter(|pilot| stays(pilot)).map(|pilot| pilot.share);
        let shares: Vec<f64> = shares.collect();
        let of = round.pilots.len();
        for pilot in round.pilots.iter_mut().filter(|pilot| !shares.contains(&pilot.share)) {
            pilot.given_up = Some(format!(
                "round {number}: place {} of {of}, {:.1}% correct",
                pilot.place,
                100.0 * pilot.accuracy
            ));
        }
        shares
    }

    /// Returns the score of one pilot minus that of another, paired by problem.
    fn difference(&self, first: &PilotResult, second: &PilotResult) -> Estimate {
        let [first, second] = [first, second].map(|pilot| vec![pilot.hits.clone()]);
        self.bootstrap.difference(&vec![&first], &vec![&second])
    }
}

/// Returns a number of steps, in words.
pub(super) fn steps_of(steps: usize) -> String {
    format!("{steps} step{}", if steps == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pilots with given grades: for each share, the number of correct answers out of 100, at any length.
    #[derive(Default)]
    struct Fake {
        right: Vec<(f64, usize)>,
        made: Vec<(usize, f64, usize)>,
        fewest: usize,
        warned: Vec<String>,
    }

    impl Pilots for Fake {
        fn cost(&self, share: f64, steps: usize) -> Result<u64> {
            // Long answers have three times as many tokens as short ones.
            Ok(((1.0 + 2.0 * share) * 100.0 * steps as f64).round() as u64)
        }

        fn run(
            &mut self,
            round: usize,
            share: f64,
            steps: usize,
            place: [usize; 2],
        ) -> Result<Outcome> {
            self.made.push((round, share, steps));
            assert_eq!(place[0], self.made.len());
            let right = self.right.iter().find(|(of, _)| *of == share).map_or(0, |(_, n)| *n);
            Ok(Outcome {
                hits: (0..100).map(|problem| f32::from(u8::from(problem < right))).collect(),
                losses: vec![("long".into(), 1.0 - share / 2.0), ("short".into(), 0.5)],
                trained_tokens: self.cost(share, steps)?,
                ..Outcome::default()
            })
        }

        fn fewest_steps(&self) -> usize {
            self.fewest
        }

        fn warn(&mut self, text: &str) -> Result<()> {
            // The number of pilots shows that the warning comes before the first pilot of its round.
            self.warned.push(format!("{} made; {text}", self.made.len()));
            Ok(())
        }
    }

    const SHARES: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];

    fn halving(budget: u64) -> Halving {
        Halving {
            shares: SHARES.to_vec(),
            fallback: 0.2,
            budget,
            training: 30_000,
            growth: 1.0,
            most_steps: 1000,
            bootstrap: Bootstrap::default(),
        }
    }

    fn fake(right: [usize; 6]) -> Fake {
        Fake { right: SHARES.into_iter().zip(right).collect(), ..Fake::default() }
    }

    #[test]
    fn the_best_share_is_found_within_the_budget() {
        let mut pilots = fake([10, 20, 30, 50, 90, 70]);
        let halved = halving(60_000).run(&mut pilots).unwrap();
        assert_eq!(halved.best, 0.8);
        assert!(halved.gain.is_clear() && (halved.gain.value - 0.7).abs() < 1e-6);
        // 6 shares, then 3, then 2. The fallback is in all of them, although it is the second worst.
        let of = |round: usize| -> Vec<f64> {
            pilots.made.iter().filter(|made| made.0 == round).map(|made| made.1).collect()
        };
        assert_eq!(of(1), SHARES);
        assert_eq!(of(2), [0.2, 0.8, 1.0]);
        assert_eq!(of(3), [0.2, 0.8]);
        let spent = |rounds: usize| -> u64 {
            let pilots = halved.rounds[..rounds].iter().flat_map(|round| &round.pilots);
            pilots.map(|pilot| pilot.trained_tokens).sum()
        };
        // By hand: a step of all six takes 100 x (6 + 2 x 3) = 1200 tokens, and a third of the budget is
        // 20,000: 16 steps. Half of the remaining 40,800 at 100 x (3 + 2 x 2) = 700: 29 steps. The remaining
        // 20,500 at 100 x (2 + 2 x 1) = 400: 51 steps.
        let steps: Vec<usize> = halved.rounds.iter().map(|round| round.steps).collect();
        assert_eq!(steps, [16, 29, 51]);
        assert_eq!((spent(1), spent(3)), (19_200, 59_900));
        // Each dropped share says when and why. The others are in the last round.
        let given_up: Vec<_> = halved
            .rounds
            .iter()
            .flat_map(|round| &round.pilots)
            .filter_map(|pilot| Some((pilot.share, pilot.given_up.clone()?)))
            .collect();
        assert_eq!(
            given_up.iter().map(|(share, _)| *share).collect::<Vec<_>>(),
            [0.0, 0.4, 0.6, 1.0]
        );
        assert_eq!(given_up[2].1, "round 1: place 3 of 6, 50.0% correct");
        assert_eq!(given_up[3].1, "round 2: place 2 of 3, 70.0% correct");
        // 90 of 100 beats 70 of 100 in nearly every resample, and all chances sum to 1.
        let chances: Vec<f64> = halved.rounds[0].pilots.iter().map(|pilot| pilot.chance).collect();
        assert!(
            (chances.iter().sum::<f64>() - 1.0).abs() < 1e-9 && chances[4] > 0.99,
            "{chances:?}"
        );
    }

    #[test]
    fn equal_grades_are_not_clear_and_the_loss_decides_only_where_nothing_is_right() {
        let halved = halving(60_000).run(&mut fake([40; 6])).unwrap();
        assert_eq!(halved.best, 0.2);
        assert!(!halved.gain.is_clear());
        // In these pilots, the loss falls as the share grows.
        let of_loss = halving(60_000).run(&mut fake([0; 6])).unwrap();
        assert_eq!(of_loss.best, 1.0);
        assert!(!of_loss.gain.is_clear());
        let chances: Vec<f64> = halved.rounds[0].pilots.iter().map(|pilot| pilot.chance).collect();
        assert!(chances.iter().all(|chance| (chance - 1.0 / 6.0).abs() < 1e-9), "{chances:?}");
    }

    #[test]
    fn where_the_fallback_is_the_best_it_is_compared_with_the_runner_up() {
        let halved = halving(60_000).run(&mut fake([10, 60, 50, 40, 30, 20])).unwrap();
        assert_eq!((halved.best, halved.gain.value), (0.2, 0.0));
        assert_eq!(halved.rounds[2].pilots.len(), 2);
        // 60 and 50 of the same 100 problems.
        assert_eq!(halved.runner_up, 0.4);
        assert!((halved.lead.value - 0.1).abs() < 1e-6 && halved.lead.low > 0.0);
        // If another share is the best, the fallback is the runner-up.
        let halved = halving(60_000).run(&mut fake([10, 20, 30, 50, 90, 70])).unwrap();
        assert_eq!((halved.runner_up, halved.lead), (0.2, halved.gain));
    }

    #[test]
    fn short_pilots_are_told_with_the_budget_that_makes_them_longer() {
        // 16, 29 and 51 steps, as above.
        let mut pilots = fake([10, 20, 30, 50, 90, 70]);
        pilots.fewest = 30;
        let halved = halving(60_000).run(&mut pilots).unwrap();
        // By hand: 30 steps of all six take 36,000 tokens and three such rounds 108,000, which is 3.6 x
        // 30,000. 30 steps of three take 21,000 and three such rounds 63,000, which is 2.1 x 30,000.
        let told = "too few to tell shares apart; pilots.budget";
        assert_eq!(
            pilots.warned,
            [
                format!(
                    "0 made; the pilots of round 1 have 16 steps: {told}=3.6 gives them 30 steps"
                ),
                format!(
                    "6 made; the pilots of round 2 have 29 steps: {told}=2.1 gives them 30 steps"
                ),
            ]
        );
        assert_eq!(halved.warnings.len(), 2);
        // This budget is enough, and slightly less is not.
        for (budget, count) in [(108_000, 0), (107_000, 1)] {
            let mut pilots = fake([10, 20, 30, 50, 90, 70]);
            pilots.fewest = 30;
            let halved = halving(budget).run(&mut pilots).unwrap();
            assert_eq!(halved.warnings.len(), count, "{:?}", halved.warnings);
        }
        // Pilots of a run that is this short cannot be longer.
        let mut short = halving(10_000_000);
        short.most_steps = 1;
        let mut pilots = fake([1; 6]);
        pilots.fewest = 8;
        let halved = short.run(&mut pilots).unwrap();
        assert!(
            halved.warnings[0].contains("have 1 step, like the run itself"),
            "{:?}",
            halved.warnings
        );
    }

    /// Pilots with a given cost for each number of steps.
    struct Costs(Vec<u64>);

    impl Pilots for Costs {
        fn cost(&self, _share: f64, steps: usize) -> Result<u64> {
            Ok(self.0[steps])
        }

        fn run(&mut self, _: usize, _: f64, _: usize, _: [usize; 2]) -> Result<Outcome> {
            unreachable!("only costs are needed")
        }

        fn fewest_steps(&self) -> usize {
            0
        }

        fn warn(&mut self, _: &str) -> Result<()> {
            unreachable!("only costs are needed")
        }
    }

    #[test]
    fn the_longest_pilots_that_fit_are_those_of_a_look_at_every_length() {
        let mut random = Stream::new(1, "costs", 0);
        for _ in 0..200 {
            // Steps of very different costs, including none.
            let mut costs = vec![0];
            for _ in 0..300 {
                let step = [0, 1, 10, 1000][random.below(4) as usize] * random.below(10);
                costs.push(costs[costs.len() - 1] + step);
            }
            let room = random.below(costs[300] * 2 + 1);
            let halving = Halving { most_steps: 300, ..halving(0) };
            let longest = halving.longest(&Costs(costs.clone()), &[0.2, 1.0], room).ok();
            let expected = (1..=300).rev().find(|steps| 2 * costs[*steps] <= room);
            assert_eq!(longest, expected);
        }
    }

    #[test]
    fn a_pilot_is_never_longer_than_the_run() {
        let mut short = halving(10_000_000);
        short.most_steps = 40;
        let halved = short.run(&mut fake([1; 6])).unwrap();
        assert!(halved.rounds.iter().all(|round| round.steps == 40));
    }

    #[test]
    fn later_rounds_may_use_more() {
        let mut growing = halving(60_000);
        (growing.growth, growing.shares) = (3.0, vec![0.0, 0.2, 0.6, 1.0]);
        let halved = growing.run(&mut fake([50, 20, 0, 10, 0, 5])).unwrap();
        // By hand: a quarter of 60,000 at 100 x (4 + 2 x 1.8) = 760 per step: 19 steps. Then 45,560 at 240:
        // 189.
        let steps: Vec<usize> = halved.rounds.iter().map(|round| round.steps).collect();
        assert_eq!((steps, halved.best), (vec![19, 189], 0.0));
    }

    #[test]
    fn two_shares_are_one_round() {
        let mut two = halving(1_000);
        two.shares = vec![0.2, 1.0];
        let halved = two.run(&mut fake([0, 10, 0, 0, 0, 30])).unwrap();
        assert_eq!((halved.rounds.len(), halved.rounds[0].steps, halved.best), (1, 2, 1.0));
    }

    #[test]
    fn a_budget_without_a_step_for_each_share_is_refused_before_any_pilot() {
        let mut pilots = fake([1; 6]);
        let error = halving(3_599).run(&mut pilots).unwrap_err().to_string();
        assert!(
            error.contains("pilots.budget") && error.contains("one step of each takes 1200"),
            "{error}"
        );
        assert!(pilots.made.is_empty());
        assert!(halving(3_600).run(&mut pilots).is_ok());
    }
}
