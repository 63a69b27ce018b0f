//! From pilots with given grades to the proposal and the run's mixture.

use super::*;
use crate::data::MixtureConfig;

/// Pilots whose correct answers depend on the share, without training.
struct Graded<'a> {
    subset: &'a Prepared,
    /// Correct answers out of ten, for a share.
    right: fn(f64) -> usize,
    /// The held-out loss for a share.
    loss: fn(f64) -> f64,
}

impl Pilots for Graded<'_> {
    fn cost(&self, _: f64, steps: usize) -> Result<u64> {
        Ok(steps as u64)
    }

    fn run(&mut self, _: usize, share: f64, steps: usize, _: [usize; 2]) -> Result<Outcome> {
        let right = (self.right)(share);
        // Each share answers different problems.
        let first = (share * 30.0).round() as usize;
        let hits = (0..self.subset.questions.len()).map(|problem| (problem + first) % 10 < right);
        Ok(Outcome {
            hits: hits.map(|right| f32::from(u8::from(right))).collect(),
            losses: vec![("long".into(), (self.loss)(share))],
            trained_tokens: steps as u64,
            ..Outcome::default()
        })
    }

    fn fewest_steps(&self) -> usize {
        FEW_STEPS
    }

    fn warn(&mut self, _: &str) -> Result<()> {
        Ok(())
    }
}

fn prepared() -> (RunConfig, Prepared) {
    let mut config = RunConfig::toy();
    (config.data.toy_problems, config.data.toy_test_problems) = (80, 4);
    config.mixture.share = Share::Auto;
    let prepared = Prepared::new(&config, &Context::default()).unwrap();
    (config, prepared)
}

fn found(prepared: &Prepared, config: &RunConfig, right: fn(f64) -> usize) -> ShareProposal {
    found_by(prepared, config, right, |_| 1.0)
}

fn found_by(
    prepared: &Prepared,
    config: &RunConfig,
    right: fn(f64) -> usize,
    loss: fn(f64) -> f64,
) -> ShareProposal {
    let subset = prepared.keeping_apart(config, 40, 1).unwrap();
    let halving = Halving {
        shares: config.pilots.all_shares(),
        fallback: FALLBACK_SHARE,
        budget: 1000,
        training: 1000,
        growth: config.pilots.growth,
        most_steps: 100,
        bootstrap: Bootstrap::default(),
    };
    let names = two_sources(prepared.mixture.pairs()).unwrap();
    let mut pilots = Graded { subset: &subset, right, loss };
    proposed(&halving, &mut pilots, &config.pilots, &subset, names).unwrap()
}

#[test]
fn a_share_that_is_clearly_better_is_the_mixture_of_the_run() {
    let (config, prepared) = prepared();
    let proposal = found(&prepared, &config, |share| if share == 0.6 { 9 } else { 2 });
    assert_eq!((proposal.share, proposal.best, proposal.is_clear()), (0.6, 0.6, true));
    assert_eq!(proposal.runner_up, Some(0.2));
    assert!((proposal.gain.value - 0.7).abs() < 1e-6, "{}", proposal.line());
    let mut run = config.clone();
    run.mixture = proposal.mixture(&config.mixture);
    assert_eq!(run.mixture, MixtureConfig::long_short(0.6));
    let mixed = prepared.with_mixture(&run).unwrap();
    let rows: Vec<(String, usize)> =
        mixed.report.sources.iter().map(|source| (source.name.clone(), source.rows)).collect();
    assert_eq!(rows, [("long".into(), 48), ("short".into(), 32)]);
}

#[test]
fn what_is_not_clearly_better_leaves_the_fallback() {
    let (config, prepared) = prepared();
    for (right, best, sure) in [
        // Equal grades.
        ((|_| 4) as fn(f64) -> usize, 0.2, false),
        // The fallback is clearly the best.
        (|share| if share == 0.2 { 9 } else { 2 }, 0.2, true),
        // No answer is correct.
        (|_| 0, 0.2, false),
    ] {
        let proposal = found(&prepared, &config, right);
        assert_eq!((proposal.share, proposal.is_clear()), (0.2, false), "{}", proposal.line());
        assert_eq!((proposal.best, proposal.lead.low > 0.0), (best, sure), "{}", proposal.line());
        let mixture = proposal.mixture(&config.mixture);
        assert_eq!(mixture, MixtureConfig::long_short(0.2));
    }
    // 20 against 16 of 40 problems, 12 of them the same: the 95% interval contains 0, and the share is better
    // in nearly nine of ten resamples. The settings decide whether that is enough.
    let near = |share: f64| if share == 0.6 { 5 } else { 4 };
    let (mut strict, mut easy) = (config.clone(), config.clone());
    (strict.pilots.confidence, easy.pilots.confidence) = (0.975, 0.5);
    let [of_strict, of_usual, of_easy] =
        [&strict, &config, &easy].map(|config| found(&prepared, config, near));
    assert_eq!([of_strict.share, of_usual.share, of_easy.share], [0.2, 0.6, 0.6]);
    assert!(of_usual.gain.low <= 0.0 && (0.8..0.975).contains(&of_usual.sure()), "{of_usual}");
    let line = |right| found(&prepared, &config, right).line();
    assert!(line(|_| 0).contains("answers any problem correctly"));
    assert!(line(|_| 4).contains("the fallback; no other share is clearly better (0.2 minus"));
}

#[test]
fn where_nothing_is_right_the_loss_alone_takes_no_share() {
    let (mut config, prepared) = prepared();
    // Every resample is a tie, and ties count half.
    config.pilots.confidence = 0.5;
    let proposal = found_by(&prepared, &config, |_| 0, |share| 1.0 - share);
    assert_eq!(proposal.best, 1.0, "the loss falls with the share");
    assert_eq!((proposal.share, proposal.is_clear(), proposal.sure()), (0.2, false, 0.5));
    let line = proposal.line();
    assert!(
        line.contains("answers any problem correctly") && !line.contains("more correct"),
        "{line}"
    );
    // The same if all pilots have equally many correct answers.
    let line = found(&prepared, &config, |_| 4).line();
    assert!(line.contains("the fallback; no other share") && !line.contains("more"), "{line}");
}
