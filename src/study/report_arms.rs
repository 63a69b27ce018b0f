//! The arms of a comparison in the report: scores, differences, and power.

use super::arms::UNTUNED;
use super::differences::ArmDifference;
use super::document::{Block, Document};
use super::report::{percent, points, score, signed};
use super::results::{ComparisonResult, MixtureScore, Study};
use crate::eval::Difference;
use crate::recipe::score_chart;
use crate::text::DISPLAY_WIDTH;

/// Returns a sentence on what a star means with this number of seeds.
pub(super) fn seeds_that_agree(seeds: usize) -> String {
    if seeds == 1 {
        return "With one seed, intervals, p-values, and power cover this training run only: another \
                run may differ by more, and no difference has a star."
            .into();
    }
    let no_star = match seeds {
        2 => {
            " Two seeds underestimate the variance between training runs by half, so intervals are too \
             narrow, p-values are too small, and power is overstated; no difference has a star."
        }
        _ => "",
    };
    // Each seed has the same sign as the first one with a probability of one half.
    let agree = percent(0.5f64.powi(i32::try_from(seeds - 1).unwrap_or(i32::MAX)));
    format!(
        "With few seeds, intervals are too narrow if training runs vary more than problems do: all \
         {seeds} seeds then agree in sign by chance alone in {agree}% of comparisons. The tables give \
         the score of each seed.{no_star}"
    )
}

/// Writes all arms with their realized shares, and the tested differences.
pub(super) fn arms(out: &mut Document, study: &Study, comparison: &ComparisonResult) {
    let ComparisonResult { name, strong, students, .. } = comparison;
    out.heading(2, format!("Arms: {name}"));
    let rows = students.iter().flat_map(|student| {
        let untuned = vec![
            student.student.clone(),
            UNTUNED.into(),
            score(&student.untuned),
            "-".into(),
            "-".into(),
            each(&student.untuned_by_seed, percent),
        ];
        let arms = student.arms().map(|arm| {
            vec![
                student.student.clone(),
                arm.title.clone(),
                score(&arm.score),
                shares(arm, strong, |[rows, _]| rows),
                shares(arm, strong, |[_, trained]| trained),
                each(&arm.by_seed, percent),
            ]
        });
        std::iter::once(untuned).chain(arms)
    });
    // With more than two sources, one share does not imply the others.
    let sources = students.first().and_then(|s| s.mixtures.first()).map_or(0, |m| m.shares.len());
    let of = if sources > 2 { "answers" } else { strong };
    let (of_rows, of_tokens) = (format!("{of} (% of rows)"), format!("{of} (% of trained tokens)"));
    out.table(
        "Score and realized shares of each arm",
        &["student", "trained on", "score", &of_rows, &of_tokens, "score by seed"],
        rows.collect(),
    );
    let rows = students.iter().flat_map(|student| {
        student.differences.iter().map(|difference| {
            vec![
                student.student.clone(),
                difference.name.clone(),
                points(study, difference),
                p_value(difference.p),
                p_value(difference.p_holm),
                difference.shown_in_most.map_or_else(|| "-".into(), percent),
                each(&difference.by_seed, signed),
            ]
        })
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let tests = rows.len();
    out.table(
        &format!("Differences in points; p-values are two-sided, Holm's cover all {tests} tests"),
        &["student", "difference", "points", "p", "p (Holm)", "detectable", "by seed"],
        rows,
    );
    if students.iter().any(|student| !student.choices.is_empty()) {
        out.paragraph(
            "Choice minus control shows whether the selection of answers matters beyond the shares that \
             it leads to. Choice minus inverse mixes two effects: the selection and the difference in \
             shares.",
        );
    }
    chosen(out, comparison);
    smallest_differences(out, study, comparison, tests);
}

/// Writes the choices: scores of the answers by source, and how far each choice is from chance.
fn chosen(out: &mut Document, comparison: &ComparisonResult) {
    for student in &comparison.students {
        for choice in &student.choices {
            let Some(report) = &choice.report else { continue };
            let title = &choice.choice.title;
            out.paragraph(format!("{}, {title}, first seed:", student.student));
            out.blocks.push(Block::Code(report.to_text(DISPLAY_WIDTH)));
            let file =
                format!("scores-{}-{}-{}", comparison.name, student.student, choice.number + 1);
            let caption = format!("Scores of the answers under {}, by source.", student.student);
            out.figure(&caption, &file.to_lowercase(), score_chart(report).svg());
        }
    }
}

/// Writes the smallest difference that these seeds and problems could detect.
fn smallest_differences(
    out: &mut Document,
    study: &Study,
    comparison: &ComparisonResult,
    tests: usize,
) {
    let few = match study.seeds.len() {
        0 | 1 => {
            " With one seed, this ignores the variance between training runs, so power is overstated."
        }
        2 => " With two seeds, power is overstated.",
        _ => "",
    };
    out.paragraph(format!(
        "Power: the smallest true difference, in points, that 80% of studies with these seeds and \
         problems would detect in a two-sided test at 5%, before Holm's correction (\"detectable\" \
         above). A star requires up to {:.1} times as much, as in a test at 5% / {}.{few}",
        Difference::corrected_factor(tests),
        tests.max(1)
    ));
    out.blocks.push(Block::List(power(comparison)));
}

/// Returns a share in percent, or all shares if there are more than two sources.
fn shares(arm: &MixtureScore, strong: &str, part: impl Fn([f64; 2]) -> f64) -> String {
    let of = |share: &super::results::RealizedShare| part([share.rows, share.trained_tokens]);
    match arm.shares.len() {
        0..=2 => {
            let strong = arm.shares.iter().find(|share| share.source == strong);
            strong.map_or_else(String::new, |share| percent(of(share)))
        }
        _ => {
            let all =
                arm.shares.iter().map(|share| format!("{} {}", share.source, percent(of(share))));
            all.collect::<Vec<_>>().join(", ")
        }
    }
}

fn each(values: &[f64], shown: impl Fn(f64) -> String) -> String {
    values.iter().map(|value| shown(*value)).collect::<Vec<_>>().join(", ")
}

fn p_value(p: f64) -> String {
    if p < 0.0001 { "<0.0001".into() } else { format!("{p:.4}") }
}

/// Returns one line per difference: the smallest detectable one.
fn power(comparison: &ComparisonResult) -> Vec<String> {
    let mut names: Vec<&str> = vec![];
    let all = || comparison.students.iter().flat_map(|student| &student.differences);
    for difference in all() {
        if !names.contains(&difference.name.as_str()) {
            names.push(&difference.name);
        }
    }
    let line = |name: &str| {
        let is_it = |difference: &&ArmDifference| difference.name == name;
        let of = comparison.students.iter().filter_map(|student| {
            let difference = student.differences.iter().find(is_it)?;
            Some((difference.shown_in_most?, student.student.as_str()))
        });
        let mut known: Vec<(f64, &str)> = of.collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((largest, who)) = known.last() else {
            return format!("{name}: unknown, because the answers do not vary");
        };
        match known.len() {
            1 => format!("{name}: {} ({who})", percent(*largest)),
            count => format!(
                "{name}: {} (median of {count} students), at most {} ({who})",
                percent(median(&known)),
                percent(*largest)
            ),
        }
    };
    names.into_iter().map(line).collect()
}

/// Returns the median of values that are in ascending order.
fn median(values: &[(f64, &str)]) -> f64 {
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1].0 + values[middle].0) / 2.0,
        _ => values[middle].0,
    }
}

#[cfg(test)]
mod tests {
    use super::{median, seeds_that_agree};

    #[test]
    fn few_seeds_are_told_what_they_are_worth() {
        // Three seeds agree with a probability of 2 x 1/8.
        assert!(seeds_that_agree(3).contains("25.0%"), "{}", seeds_that_agree(3));
        assert!(!seeds_that_agree(3).contains("star"));
        assert!(seeds_that_agree(2).contains("by half"));
        for seeds in [1, 2] {
            assert!(seeds_that_agree(seeds).contains("no difference has a star"), "{seeds}");
        }
        assert!(seeds_that_agree(1).contains("another run"));
    }

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_both() {
        assert_eq!(median(&[(1.0, "a"), (2.0, "b"), (9.0, "c")]), 2.0);
        assert_eq!(median(&[(1.0, "a"), (2.0, "b"), (4.0, "c"), (9.0, "d")]), 3.0);
    }
}
