//! The report of a study, as one self-contained HTML file and as Markdown.

use super::arms::ArmKind;
use super::config::StudyConfig;
use super::differences::ArmDifference;
use super::document::{Block, Document};
use super::report_arms::{arms, seeds_that_agree};
use super::results::{ChoiceScore, ComparisonResult, StudentResult, Study, StudyData};
use super::warnings::SEEDS;
use crate::chart::{Axis, Chart, Point, Scale, Series};
use crate::error::{Error, Result};
use crate::eval::Estimate;
use crate::files::write_text;
use crate::text::duration;
use std::fs;

/// Writes `report.html`, `report.md` with `figures/`, and `study.json`.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn write_all(study: &Study, data: &StudyData, config: &StudyConfig) -> Result<()> {
    let document = document(study, data, config);
    let out = &config.out;
    let figures = out.join("figures");
    fs::create_dir_all(&figures).map_err(|e| Error::io("create", &figures, e))?;
    for block in &document.blocks {
        if let Block::Figure { name, svg, .. } = block {
            write_text(&figures.join(format!("{name}.svg")), svg)?;
        }
    }
    write_text(&out.join("report.html"), &document.to_html(&study.title))?;
    write_text(&out.join("report.md"), &document.to_markdown())?;
    let json = serde_json::to_string_pretty(study)
        .map_err(|e| Error::io("write", out.join("study.json"), std::io::Error::other(e)))?;
    write_text(&out.join("study.json"), &json)
}

/// The exact version in Cargo.toml.
const BURN: &str = "0.22.1";

pub(super) fn percent(x: f64) -> String {
    format!("{:.1}", 100.0 * x)
}

/// Returns a score in percent with its interval.
pub(super) fn score(estimate: &Estimate) -> String {
    let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(percent);
    format!("{value} ({low} to {high})")
}

/// Returns a difference in points.
pub(super) fn signed(difference: f64) -> String {
    format!("{:+.1}", 100.0 * difference)
}

/// Returns a difference in points with its interval, and a star if it is significant and there are enough
/// seeds.
pub(super) fn points(study: &Study, difference: &ArmDifference) -> String {
    let star = if difference.is_significant() && study.seeds.len() >= SEEDS { " *" } else { "" };
    let Estimate { value, low, high } = difference.estimate;
    format!("{} ({} to {}){star}", signed(value), signed(low), signed(high))
}

fn axis(name: impl Into<String>, scale: Scale) -> Axis {
    Axis { name: name.into(), scale }
}

/// Returns a share and its interval, in percent.
fn in_percent(x: f64, share: &Estimate) -> Point {
    let interval = Some((100.0 * share.low, 100.0 * share.high));
    Point { x, y: 100.0 * share.value, interval }
}

/// Returns a number without an interval.
fn exact(x: f64, y: f64) -> Point {
    Point { x, y, interval: None }
}

/// Adds a point to the curve with this name.
fn add_point(curves: &mut Vec<Series>, name: String, point: Point) {
    match curves.iter_mut().find(|curve| curve.name == name) {
        Some(curve) => curve.points.push(point),
        None => curves.push(Series { name, points: vec![point], marked: true }),
    }
}

fn document(study: &Study, data: &StudyData, config: &StudyConfig) -> Document {
    let mut out = Document::default();
    out.heading(1, &study.title);
    if !study.introduction.is_empty() {
        out.paragraph(&study.introduction);
    }
    let tested = study.comparisons.iter().map(|comparison| {
        let benchmarks: Vec<String> =
            comparison.benchmarks.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        format!("{}: {}", comparison.name, benchmarks.join(", "))
    });
    let tests = study.comparisons.iter().map(|comparison| {
        let tests: usize = comparison.students.iter().map(|s| s.differences.len()).sum();
        format!("{}: {tests} tests", comparison.name)
    });
    let tests = tests.collect::<Vec<_>>().join("; ");
    let resampled = if study.seeds.len() > 1 { "problems and seeds" } else { "problems" };
    let star = match study.seeds.len() {
        SEEDS.. => format!(
            " A star marks a difference whose p-value is below 0.05 after Holm's correction over all \
             differences in its comparison ({tests})."
        ),
        _ => String::new(),
    };
    out.paragraph(format!(
        "Students: {}; seeds: {}. {} ({}). A score P is the unweighted mean of the accuracies on these \
         problem sets, in percent, averaged over the seeds. Intervals are 95% intervals of a paired \
         bootstrap with {} resamples of {resampled}.{star}",
        study.students.len(),
        study.seeds.len(),
        data.overlaps.tested_on(),
        tested.collect::<Vec<_>>().join("; "),
        study.resamples,
    ));
    out.paragraph(seeds_that_agree(study.seeds.len()));
    for comparison in &study.comparisons {
        if !comparison.left_out.is_empty() {
            let counts =
                comparison.left_out.iter().map(|(name, count)| format!("{count} of {name}"));
            out.paragraph(format!(
                "{}: problems that a student trains on, including pretraining, are left out of the test: {}.",
                comparison.name,
                counts.collect::<Vec<_>>().join(", ")
            ));
        }
    }
    if !study.warnings.is_empty() {
        out.heading(2, "Warnings");
        out.blocks.push(Block::List(study.warnings.clone()));
    }
    pretrained(&mut out, study);
    for comparison in &study.comparisons {
        gap(&mut out, study, comparison);
    }
    for comparison in &study.comparisons {
        mixtures(&mut out, comparison);
        arms(&mut out, study, comparison);
    }
    answers(&mut out, study);
    style(&mut out, study);
    budgets(&mut out, study);
    out.heading(2, "How this report was made");
    out.paragraph(format!(
        "mixdistill {}, Burn {BURN}, backend {}, seeds {:?}, {} runs. Training took {}; testing untuned \
         students and answering benchmarks took {}. Command:",
        study.version,
        study.backend,
        study.seeds,
        data.cells.len(),
        duration(study.training_seconds),
        duration(study.answering_seconds)
    ));
    out.blocks.push(Block::Code(study.command.clone()));
    out.paragraph("Settings:");
    let settings = toml::to_string_pretty(config).unwrap_or_default();
    out.blocks.push(Block::Code(settings));
    out
}

/// Writes how the students were pretrained, if any were.
fn pretrained(out: &mut Document, study: &Study) {
    if study.pretrained.is_empty() {
        return;
    }
    out.heading(2, "Pretraining");
    out.paragraph(
        "Each of these students was pretrained once, on its own problems. All runs of the student start \
         from that model, whatever their seed. Its score on the problems of this study is in the \
         column \"untuned\" below.",
    );
    let rows = study.pretrained.iter().map(|student| {
        vec![
            student.student.clone(),
            student.data.clone(),
            student.problems.to_string(),
            student.updates.to_string(),
            student.trained_tokens.to_string(),
            student.accuracy(),
            student.asked.to_string(),
            duration(student.seconds),
        ]
    });
    let header =
        ["student", "data", "problems", "updates", "trained tokens", "correct (%)", "of", "time"];
    let caption = "Pretraining runs, with the accuracy on their own held-out problems";
    out.table(caption, &header, rows.collect());
}

/// Writes the learnability gap: table and chart.
fn gap(out: &mut Document, study: &Study, comparison: &ComparisonResult) {
    let ComparisonResult { name, strong, weak, .. } = comparison;
    out.heading(2, format!("The gap: {strong} vs. {weak} answers"));
    let rows = study.students.iter().zip(&comparison.students).map(|(student, result)| {
        let [low, .., high] = result.mixtures.as_slice() else { return vec![] };
        let is_gap = |difference: &&ArmDifference| {
            (difference.arm, difference.other) == (ArmKind::Share(1.0), ArmKind::Share(0.0))
        };
        let gap = result.differences.iter().find(is_gap);
        vec![
            student.name.clone(),
            student.kind.clone().unwrap_or_default(),
            student.parameters.to_string(),
            score(&result.untuned),
            score(&high.score),
            score(&low.score),
            gap.map_or_else(String::new, |gap| points(study, gap)),
        ]
    });
    let (p_strong, p_weak, delta) =
        (format!("P {strong}"), format!("P {weak}"), format!("Δ {name}"));
    let header = ["student", "kind", "parameters", "untuned", p_strong.as_str(), &p_weak, &delta];
    out.table(
        &format!(
            "Δ {name} = P {strong} − P {weak}; below 0, the student learns more from {weak} answers"
        ),
        &header,
        rows.collect(),
    );
    // One line per kind of student, by size.
    let mut kinds: Vec<Series> = vec![];
    for (student, result) in study.students.iter().zip(&comparison.students) {
        let kind = student.kind.clone().unwrap_or_else(|| "students".into());
        let gap = &result.gap;
        add_point(&mut kinds, kind, in_percent(student.parameters as f64, gap));
    }
    for series in &mut kinds {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    let chart = Chart {
        title: format!("Δ {name} by student size"),
        x: axis("parameters", Scale::Logarithmic),
        y: axis(format!("P {strong} − P {weak} (points)"), Scale::AroundZero),
        series: kinds,
    };
    let file = format!("gap-{}", name.to_lowercase());
    out.figure(&format!("Δ {name} by student size, with 95% intervals."), &file, chart.svg());
}

/// Writes scores and charts of each mixture.
fn mixtures(out: &mut Document, comparison: &ComparisonResult) {
    let ComparisonResult { name, strong, weak, students, .. } = comparison;
    out.heading(2, format!("Mixtures: Mix-{name}"));
    let alphas: Vec<f64> =
        students.first().map_or(vec![], |s| s.mixtures.iter().map(|m| m.alpha).collect());
    let header: Vec<String> = ["student".to_owned(), "untuned".to_owned()]
        .into_iter()
        .chain(alphas.iter().map(|a| format!("α = {a}")))
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows = students.iter().map(|student| {
        let scores = student.mixtures.iter().map(|mixture| score(&mixture.score));
        [student.student.clone(), score(&student.untuned)].into_iter().chain(scores).collect()
    });
    out.table(
        &format!(
            "Score by α, the share of {strong} answers (0 is {weak} alone, 1 is {strong} alone)"
        ),
        &header,
        rows.collect(),
    );
    if comparison.benchmarks.len() > 1 {
        by_benchmark(out, comparison);
    }
    let of = |student: &StudentResult| Series {
        name: student.student.clone(),
        points: student.mixtures.iter().map(|m| in_percent(m.alpha, &m.score)).collect(),
        marked: true,
    };
    // A choice is a mark at its realized share.
    let chosen = students.iter().flat_map(|student| {
        let arms = student.choices.iter().flat_map(ChoiceScore::all);
        arms.map(|arm| Series {
            name: format!("{}, {}", student.student, arm.title),
            points: vec![in_percent(arm.alpha, &arm.score)],
            marked: true,
        })
    });
    let chart = Chart {
        title: format!("Score by the share of {strong} answers"),
        x: axis(format!("α, share of {strong} answers"), Scale::Share),
        y: axis("P (percent)", Scale::Linear),
        series: students.iter().map(of).chain(chosen).collect(),
    };
    let file = format!("alpha-{}", name.to_lowercase());
    out.figure("Score by α, with 95% intervals.", &file, chart.svg());
    losses(out, comparison);
}

/// Writes the paper's second table: methods by benchmarks.
fn by_benchmark(out: &mut Document, comparison: &ComparisonResult) {
    let header: Vec<&str> = ["student", "trained on"]
        .into_iter()
        .chain(comparison.benchmarks.iter().map(|(name, _)| name.as_str()))
        .chain(["mean"])
        .collect();
    let mut rows = vec![];
    for student in &comparison.students {
        let row = |method: String, by_benchmark: &[f64], mean: f64| {
            let figures = by_benchmark.iter().chain([&mean]).map(|x| percent(*x));
            [student.student.clone(), method].into_iter().chain(figures).collect()
        };
        rows.push(row("untuned".into(), &student.untuned_by_benchmark, student.untuned.value));
        for arm in student.arms() {
            rows.push(row(arm.title.clone(), &arm.by_benchmark, arm.score.value));
        }
    }
    out.table("Accuracy by benchmark, in percent", &header, rows);
}

/// Writes the held-out losses by source.
fn losses(out: &mut Document, comparison: &ComparisonResult) {
    let mut series: Vec<Series> = vec![];
    for student in &comparison.students {
        for mixture in &student.mixtures {
            for (source, loss) in &mixture.losses {
                let name = format!("{}: {source} answers", student.student);
                add_point(&mut series, name, exact(mixture.alpha, *loss));
            }
        }
    }
    if series.is_empty() {
        return;
    }
    let chart = Chart {
        title: "Held-out loss by source".into(),
        x: axis(format!("α, share of {} answers", comparison.strong), Scale::Share),
        y: axis("cross-entropy (nats)", Scale::Linear),
        series,
    };
    let file = format!("loss-{}", comparison.name.to_lowercase());
    out.figure("Held-out loss at the end of training, by source.", &file, chart.svg());
}

/// Writes the length and form of the answers.
fn answers(out: &mut Document, study: &Study) {
    out.heading(2, "Answers");
    for comparison in &study.comparisons {
        let rows = comparison.students.iter().flat_map(|student| {
            student.arms().map(|m| {
                vec![
                    student.student.clone(),
                    m.title.clone(),
                    format!("{:.1}", m.mean_tokens),
                    percent(m.hit_limit),
                    percent(m.without_answer),
                ]
            })
        });
        out.table(
            &format!("Answers after training on {} and {}", comparison.strong, comparison.weak),
            &["student", "trained on", "tokens per answer", "truncated (%)", "no final answer (%)"],
            rows.collect(),
        );
        let of = |student: &StudentResult| Series {
            name: student.student.clone(),
            points: student.mixtures.iter().map(|m| exact(m.alpha, m.mean_tokens)).collect(),
            marked: true,
        };
        let chart = Chart {
            title: "Answer length".into(),
            x: axis(format!("α, share of {} answers", comparison.strong), Scale::Share),
            y: axis("tokens per answer", Scale::AroundZero),
            series: comparison.students.iter().map(of).collect(),
        };
        let file = format!("length-{}", comparison.name.to_lowercase());
        out.figure("Mean tokens per answer by α.", &file, chart.svg());
    }
}

fn style(out: &mut Document, study: &Study) {
    if study.style.is_empty() {
        return;
    }
    out.heading(2, "Style shift");
    out.paragraph(
        "The untuned student ranks each generated token at the same position; rank 0 is its first \
         choice. The table lists the tokens with the highest mean rank, of those that were generated \
         at least three times. A student with random weights has no style of its own, so its ranks \
         mean nothing.",
    );
    let rows = study.style.iter().map(|shift| {
        let largest = shift
            .largest
            .iter()
            .map(|token| format!("{:?} {:.0} (x{})", token.token, token.mean_rank, token.count));
        vec![
            shift.student.clone(),
            shift.source.clone(),
            shift.tokens.to_string(),
            percent(shift.first),
            format!("{:.1}", shift.mean_rank),
            largest.collect::<Vec<_>>().join(", "),
        ]
    });
    out.table(
        "Ranks of generated tokens under the untuned student",
        &["student", "trained on", "tokens", "rank 0 (%)", "mean rank", "largest shifts"],
        rows.collect(),
    );
}

/// Writes the budget of each arm, and the record counts.
fn budgets(out: &mut Document, study: &Study) {
    out.heading(2, "Budgets and data");
    for comparison in &study.comparisons {
        let rows = comparison.budgets.iter().map(|budget| {
            vec![
                budget.title.clone(),
                budget.updates.to_string(),
                percent(budget.strong_rows),
                percent(budget.strong_trained),
                budget.tokens.to_string(),
                budget.trained_tokens.to_string(),
                budget.max_length.to_string(),
            ]
        });
        let (rows_of, tokens_of) = (
            format!("{} rows (% of epoch)", comparison.strong),
            format!("{} trained tokens (% of epoch)", comparison.strong),
        );
        out.table(
            &format!(
                "Budget of each arm, {} and {} answers (first student and seed)",
                comparison.strong, comparison.weak
            ),
            &[
                "trained on",
                "updates",
                &rows_of,
                &tokens_of,
                "tokens",
                "trained tokens",
                "length limit",
            ],
            rows.collect(),
        );
        out.paragraph(format!("Record counts of {}:", comparison.name));
        out.blocks.push(Block::Code(comparison.ledger.to_string()));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_of_burn_is_that_of_the_manifest() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("burn = {{ version = \"={}\"", super::BURN)));
    }
}
