//! Warnings that qualify a study's numbers.

use super::arms::ArmKind;
use super::config::{Cell, ComparisonConfig, StudyConfig};
use super::differences::{LEVEL, pairs};
use super::machine::Machine;
use super::results::{CellResult, StudyData};
use crate::eval::{Difference, score as score_of};
use crate::recipe::Summary;
use std::collections::{BTreeMap, BTreeSet};

/// The recommended minimum of seeds and test problems. With fewer seeds, no difference has a star.
pub(super) const SEEDS: usize = 3;
const PROBLEMS: usize = 500;

/// Warnings about few seeds or problems, and about compared cells with different budgets.
pub(super) fn of(config: &StudyConfig, data: &StudyData) -> Vec<String> {
    let mut warnings: Vec<String> = few_seeds(config.seeds.len()).into_iter().collect();
    for (number, comparison) in config.comparisons.iter().enumerate() {
        let cells: Vec<&CellResult> =
            data.cells.iter().filter(|(cell, ..)| cell.comparison == number).collect();
        warnings.extend(few_problems(comparison, &cells));
        warnings.extend(few_resamples(config, comparison));
        for (student, of) in config.students.iter().enumerate() {
            let own = cells.iter().filter(|(cell, ..)| cell.student == student).copied();
            let name = format!("{}, {}", comparison.name, of.name);
            warnings.extend(no_room(&name, own.clone()));
            warnings.extend(one_source(&name, comparison, own.clone()));
            warnings.extend(part_of_an_epoch(&name, own));
        }
        let updates: BTreeSet<usize> =
            cells.iter().map(|(_, summary, _)| summary.outcome.step).collect();
        if updates.len() > 1 {
            warnings
                .push(format!("{}: updates differ between cells, {updates:?}", comparison.name));
        }
        for (student, of) in config.students.iter().enumerate() {
            let own = cells.iter().filter(|(cell, ..)| cell.student == student);
            let summaries: Vec<&Summary> = own.map(|(_, summary, _)| summary).collect();
            let name = format!("{}, {}", comparison.name, of.name);
            warnings.extend(unlike(&name, &summaries, student == 0));
        }
    }
    warnings
}

/// Returns a warning about cells that are read from `results/` because their folders are missing.
pub(super) fn of_stored(cells: usize) -> Option<String> {
    (cells > 0).then(|| {
        format!(
            "{cells} cells are read from results/ because their folders are missing: their answers keep \
             their earlier grades, and the ranks of their tokens are not shown"
        )
    })
}

/// Warnings about cells that ran on machines whose results may differ.
pub(super) fn of_machines(machines: &[Machine]) -> Vec<String> {
    let differ = |what: &str, part: &dyn Fn(&Machine) -> String| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for machine in machines {
            *counts.entry(part(machine)).or_default() += 1;
        }
        let each = counts.iter().map(|(name, count)| format!("{name} ({count})"));
        (counts.len() > 1).then(|| {
            format!(
                "{what} differ between cells, so training a cell again on another machine may change its \
                 numbers: {}",
                each.collect::<Vec<_>>().join(", ")
            )
        })
    };
    // On flex, results do not depend on the number of threads.
    let counts_threads = machines.iter().any(|machine| machine.backend != "flex");
    let threads = || differ("threads", &|machine| machine.threads.to_string());
    [
        differ("processors", &|machine| machine.processor.clone()),
        counts_threads.then(threads).flatten(),
        differ("backends", &|machine| machine.backend.clone()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns a warning about cells whose answers were graded by different versions of the program.
pub(super) fn of_versions(versions: &[Option<String>]) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for version in versions {
        *counts.entry(version.as_deref().unwrap_or("unknown")).or_default() += 1;
    }
    let each = counts.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>();
    (counts.len() > 1).then(|| {
        format!(
            "versions of mixdistill differ between cells, so their answers may be graded by different rules: \
             {}; to regrade all answers, run the study without --share where the folders of the cells are",
            each.join(", ")
        )
    })
}

fn few_seeds(seeds: usize) -> Option<String> {
    match seeds {
        SEEDS.. => None,
        1 => Some(format!(
            "only one seed, and at least {SEEDS} are recommended: no interval covers the variance \
             between training runs, and no difference has a star"
        )),
        _ => Some(format!(
            "only {seeds} seeds, and at least {SEEDS} are recommended: the variance between training \
             runs is underestimated by half, and no difference has a star"
        )),
    }
}

fn few_problems(comparison: &ComparisonConfig, cells: &[&CellResult]) -> Option<String> {
    let (.., answers) = cells.first()?;
    let few = answers.0.iter().filter(|tested| tested.hits.len() < PROBLEMS);
    let few: Vec<String> =
        few.map(|tested| format!("{} has {}", tested.benchmark, tested.hits.len())).collect();
    (!few.is_empty()).then(|| {
        format!(
            "{}: fewer than the recommended {PROBLEMS} test problems: {}",
            comparison.name,
            few.join(", ")
        )
    })
}

/// Returns a warning if even the smallest p-value would not be significant after correction.
fn few_resamples(config: &StudyConfig, comparison: &ComparisonConfig) -> Option<String> {
    let tests = pairs(comparison).len() * config.students.len();
    let smallest = Difference::smallest_p(config.resamples);
    (tests as f64 * smallest >= LEVEL).then(|| {
        let enough = (2.0 * tests as f64 / LEVEL).ceil();
        format!(
            "{}: with {} resamples, no p-value is below {smallest:.4}, and Holm's correction for \
             {tests} tests raises that to {LEVEL} or more, so no difference can have a star; set \
             resamples to {enough} or more",
            comparison.name, config.resamples
        )
    })
}

/// Returns a warning if nearly all or nearly no answers are correct in every arm, on average over the seeds, so
/// that differences have no room.
fn no_room<'a>(name: &str, cells: impl Iterator<Item = &'a CellResult>) -> Option<String> {
    const EDGE: f64 = 0.1;
    let mut arms: Vec<(ArmKind, Vec<f64>)> = vec![];
    for (cell, _, answers) in cells {
        let score = score_of(&answers.hits());
        match arms.iter_mut().find(|(arm, _)| *arm == cell.arm) {
            Some((_, scores)) => scores.push(score),
            None => arms.push((cell.arm, vec![score])),
        }
    }
    let means = arms.iter().map(|(_, scores)| scores.iter().sum::<f64>() / scores.len() as f64);
    let lowest = means.clone().fold(f64::INFINITY, f64::min);
    let highest = means.fold(f64::NEG_INFINITY, f64::max);
    let edge = match () {
        () if highest < lowest => return None,
        () if highest < EDGE => format!("at most {:.1}% of the answers are", 100.0 * highest),
        () if lowest > 1.0 - EDGE => format!("at least {:.1}% of the answers are", 100.0 * lowest),
        () => return None,
    };
    Some(format!(
        "{name}: {edge} correct in every arm, so there is little room for a gap; an interval of \
         zero width does not mean certainty"
    ))
}

/// Warnings about choices that selected the answers of only one source.
fn one_source<'a>(
    name: &str,
    comparison: &ComparisonConfig,
    cells: impl Iterator<Item = &'a CellResult>,
) -> Vec<String> {
    let mut warnings = vec![];
    for (cell, summary, _) in cells {
        let used = summary.mixture.sources.iter().filter(|source| source.rows > 0);
        let used: Vec<&str> = used.map(|source| source.name.as_str()).collect();
        if let (ArmKind::Choice(_) | ArmKind::Inverse(_), [only]) = (cell.arm, &used[..]) {
            let so = match cell.arm {
                ArmKind::Inverse(_) => {
                    format!("choice minus inverse also compares shares, as with {only} alone")
                }
                _ => format!("its control has the same shares as {only} alone"),
            };
            let warning = format!(
                "{name}: {} selects only {only} answers, so {so}; set a floor to keep some of the \
                 others",
                comparison.title(cell.arm)
            );
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

/// Returns a warning if training ends within an epoch: a control has the shares of its choice only over whole
/// epochs.
fn part_of_an_epoch<'a>(
    name: &str,
    cells: impl Iterator<Item = &'a CellResult> + Clone,
) -> Option<String> {
    let mut largest = 0.0f64;
    for (control, of_control, _) in cells.clone() {
        let ArmKind::Control(number) = control.arm else { continue };
        let is_choice =
            |cell: &Cell| cell.arm == ArmKind::Choice(number) && cell.seed == control.seed;
        let choice = cells.clone().find(|(cell, ..)| is_choice(cell));
        let Some((_, of_choice, _)) = choice else { continue };
        largest = largest.max(apart(&seen_shares(of_choice), &seen_shares(of_control)));
    }
    (largest > 0.0).then(|| {
        format!(
            "{name}: training is not a whole number of epochs, so controls saw source shares up to \
             {:.2} points from those of their choice; set train.epochs to a whole number",
            100.0 * largest
        )
    })
}

/// Returns the share of each source in the rows that training saw.
fn seen_shares(summary: &Summary) -> BTreeMap<&str, f64> {
    let rows: u64 = summary.seen.iter().map(|source| source.rows).sum();
    let share = |rows_of: u64| rows_of as f64 / rows.max(1) as f64;
    summary.seen.iter().map(|source| (source.name.as_str(), share(source.rows))).collect()
}

/// Returns the largest difference between two lists of shares, 0 if one of them is unknown.
fn apart(first: &BTreeMap<&str, f64>, second: &BTreeMap<&str, f64>) -> f64 {
    let both = first.iter().filter_map(|(name, share)| Some((share, second.get(name)?)));
    both.map(|(first, second)| (first - second).abs()).fold(0.0, f64::max)
}

/// Warnings about differences between compared cells of a student.
fn unlike(name: &str, summaries: &[&Summary], with_tokens: bool) -> Vec<String> {
    let mut warnings = vec![];
    let mut differ = |what: &str, part: fn(&Summary) -> u64| {
        let values = || summaries.iter().map(|summary| part(summary));
        if let (Some(low), Some(high)) = (values().min(), values().max())
            && low != high
        {
            warnings.push(format!("{name}: {what} differ between cells, {low} to {high}"));
        }
    };
    differ("length limits", |summary| summary.config.data.max_length as u64);
    differ("problem counts", |summary| summary.ledger.training as u64);
    if with_tokens {
        differ("trained tokens", |summary| summary.trained_tokens);
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::{few_resamples, few_seeds, of_machines, of_versions};
    use crate::study::{Machine, StudyConfig};

    #[test]
    fn machines_that_compute_otherwise_are_told() {
        let machine = |processor: &str, threads, backend: &str| Machine {
            processor: processor.into(),
            threads,
            backend: backend.into(),
        };
        let alike = [machine("a", 2, "cuda"), machine("a", 2, "cuda")];
        assert!(of_machines(&alike).is_empty() && of_machines(&[]).is_empty());
        // On flex, the number of threads does not matter.
        let told = of_machines(&["a", "b", "b"].map(|name| machine(name, name.len(), "flex")));
        assert!(told.len() == 1 && told[0].starts_with("processors"), "{told:?}");
        assert!(told[0].ends_with("a (1), b (2)"), "{told:?}");
        assert!(of_machines(&[machine("a", 2, "flex"), machine("a", 4, "flex")]).is_empty());
        let told = of_machines(&[machine("a", 2, "flex"), machine("a", 4, "ndarray")]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("threads") && told[0].ends_with("2 (1), 4 (1)"), "{told:?}");
        assert!(told[1].ends_with("flex (1), ndarray (1)"), "{told:?}");
    }

    #[test]
    fn cells_of_different_versions_are_told() {
        let versions = |versions: &[&str]| -> Vec<Option<String>> {
            let known = |version: &&str| (!version.is_empty()).then(|| (*version).to_owned());
            versions.iter().map(known).collect()
        };
        for same in [&[][..], &["", ""], &["1.0.0", "1.0.0"]] {
            assert_eq!(of_versions(&versions(same)), None);
        }
        let told = of_versions(&versions(&["1.0.0", "", "1.0.0"])).unwrap();
        assert!(told.contains("1.0.0 (2), unknown (1)"), "{told}");
    }

    #[test]
    fn fewer_seeds_than_the_rule_are_told() {
        assert!(few_seeds(1).unwrap().contains("one seed"));
        assert!(few_seeds(2).unwrap().starts_with("only 2 seeds, and at least 3"));
        assert_eq!(few_seeds(3), None);
        assert!(
            [1, 2]
                .map(|seeds| few_seeds(seeds).unwrap())
                .iter()
                .all(|w| w.contains("no difference has a star"))
        );
    }

    #[test]
    fn resamples_that_can_show_nothing_are_told() {
        let settings = "[[comparisons]]\nname = \"a\"\nstrong = \"x\"\nweak = \"y\"\n\
                        [[students]]\nname = \"s\"\n";
        let mut config: StudyConfig = {
            let mut layers = crate::settings::Layers::new().unwrap();
            layers.text(settings).unwrap();
            layers.settings().unwrap()
        };
        // Six tests: 6 x 2 / (n + 1) is below 0.05 from n = 240 on.
        config.resamples = 240;
        assert_eq!(few_resamples(&config, &config.comparisons[0]), None);
        config.resamples = 239;
        let told = few_resamples(&config, &config.comparisons[0]).unwrap();
        assert!(told.contains("6 tests") && told.contains("240 or more"), "{told}");
    }
}
