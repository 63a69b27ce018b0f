//! Long only, short only and the mixture, side by side.
//!
//! The runs share the initial weights, the problems (those that both sources answer within the
//! length limit), the order, the number of updates and the length limit; only the answers differ.

use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode, VARIANTS};
use super::finished::same_settings;
use super::prepare::Prepared;
use super::run::{Summary, dated, run_prepared};
use super::teacher::teacher;
use crate::data::Schedule;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::Accuracy;
use crate::train::{Curve, StopFlag, TeacherLogits, draw_curves};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareLine {
    /// What was trained on.
    pub name: String,
    /// The answers to the held-out problems.
    pub accuracy: Accuracy,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens trained.
    pub trained_tokens: u64,
    /// Wall time of the training.
    pub seconds: f64,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The untuned student first, then each variant.
    pub lines: Vec<CompareLine>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:10} {:>9} {:>18} {:>13} {:>12} {:>10} {:>8} {:>15}",
            "trained on",
            "accuracy",
            "95 % interval",
            "tokens/answer",
            "hit limit",
            "no answer",
            "updates",
            "trained tokens"
        )?;
        for line in &self.lines {
            let accuracy = &line.accuracy;
            let (low, high) = accuracy.interval;
            write!(
                f,
                "\n{:10} {:>7.1} % {:>18} {:>13.1} {:>10.1} % {:>8.1} % {:>8} {:>15}",
                line.name,
                100.0 * accuracy.accuracy,
                format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high),
                accuracy.mean_tokens,
                100.0 * accuracy.hit_limit,
                100.0 * accuracy.without_answer,
                line.steps,
                line.trained_tokens,
            )?;
        }
        Ok(())
    }
}

/// Runs the three variants in `long`, `short` and `mix` below the run directory, and writes
/// `compare.json` and `compare.svg` there. With [`RunMode::Resume`], finished variants are kept.
///
/// # Errors
/// As [`run`](super::run()); [`Error::Config`] where the sources are not `long` and `short`, or where there is
/// no held-out problem with a reference answer.
pub fn compare(
    config: &RunConfig,
    mode: RunMode,
    stop: &StopFlag,
    say: &mut dyn FnMut(&str),
) -> Result<Comparison> {
    let weights = &config.mixture.weights;
    let share = match (weights.len(), weights.get("long"), weights.get("short")) {
        (2, Some(long), Some(short)) if long + short > 0.0 => long / (long + short),
        _ => {
            return Err(Error::config(
                "mixture.weights",
                "a comparison needs two sources, `long` and `short`, with weights above 0",
                "Name the sources so",
            ));
        }
    };
    if config.evaluation.questions == 0 {
        return Err(Error::config(
            "evaluation.questions",
            "a comparison is one of answers, and no question is asked",
            "Say how many with --questions N",
        ));
    }
    let mut config = config.clone();
    config.data.complete = true;
    let device = device::by_name(&config.backend)?;
    let directory = RunDirectory::open(&config.out, mode)?;
    config = dated(&config, mode, &directory);
    if mode == RunMode::Resume {
        same_settings(&RunConfig::read(&directory.path("config.toml"))?, &config)?;
    }
    // Whatever is wrong with the data shows here, before anything is replaced.
    let prepared = Prepared::new(&config)?;
    if prepared.questions.is_empty() {
        return Err(Error::config(
            "evaluation.questions",
            "no held-out problem has a reference answer, so nothing can be compared",
            "Hold out problems with answers, or train without --compare",
        ));
    }
    if config.teacher.as_ref().is_some_and(|t| TeacherLogits::is_in(Path::new(&t.path))) {
        for share in [1.0, 0.0, share] {
            let mut variant = config.clone();
            variant.set_share(share)?;
            teacher(&variant, &prepared.with_mixture(&variant)?, &device)?;
        }
    }
    let variants = VARIANTS.map(|name| {
        let out = directory.path(name);
        let mode = if RunDirectory::holds_run(&out) { mode } else { RunMode::New };
        RunDirectory::open(&out, mode)
    });
    let [long, short, mix] = variants;
    let variants = [(long?, 1.0), (short?, 0.0), (mix?, share)];
    if !mode.resumes() {
        directory.clear()?;
        directory.write("config.toml", &config.to_toml()?)?;
    } else if mode == RunMode::ResumeChanged {
        directory.write("config.toml", &config.to_toml()?)?;
    }
    let mut comparison = Comparison { lines: vec![], stopped: true };
    directory.write_json("compare.json", &comparison)?;
    let mut curves = vec![];
    for (name, (variant_directory, share)) in VARIANTS.into_iter().zip(variants) {
        let mut variant = config.clone();
        variant.out = directory.path(name);
        variant.set_share(share)?;
        if share == 0.0 || share == 1.0 {
            variant.mixture.schedule = Schedule::Constant;
        }
        say(&format!("\n=== {name}: {:.0} % long answers ===", 100.0 * share));
        let mode = match RunDirectory::holds_run(&variant.out) {
            true => mode,
            false => RunMode::New,
        };
        let mixed = prepared.with_mixture(&variant)?;
        let summary = run_prepared(&variant, &device, &variant_directory, mixed, mode, stop, say)?;
        if summary.outcome.stopped {
            return Ok(comparison);
        }
        let (before, after) =
            (summary.before.clone().unwrap_or_default(), summary.after.clone().unwrap_or_default());
        if comparison.lines.is_empty() {
            comparison.lines.push(CompareLine {
                name: "untuned".into(),
                accuracy: before,
                steps: 0,
                trained_tokens: 0,
                seconds: 0.0,
            });
        }
        comparison.lines.push(CompareLine {
            name: name.into(),
            accuracy: after,
            steps: summary.outcome.step,
            trained_tokens: summary.trained_tokens,
            seconds: summary.training_seconds,
        });
        curves.extend(loss_curves(name, &summary));
        if stop.is_requested() && name != "mix" {
            return Ok(comparison);
        }
    }
    comparison.stopped = false;
    let [x, y] = ["optimizer step", "held-out cross-entropy (nats)"];
    draw_curves(&directory.path("compare.svg"), "Held-out loss by training data", [x, y], &curves)?;
    directory.write_json("compare.json", &comparison)?;
    directory.write_json("summary.json", &comparison)?;
    Ok(comparison)
}

/// Held-out losses of a variant, by source.
fn loss_curves(variant: &str, summary: &Summary) -> Vec<Curve> {
    let mut curves: BTreeMap<&str, Curve> = BTreeMap::new();
    for evaluation in &summary.evaluations {
        for source in &evaluation.sources {
            let curve = curves.entry(&source.name).or_insert_with(|| Curve {
                name: format!("{variant} on {} answers", source.name),
                points: vec![],
                marked: true,
            });
            curve.points.push((evaluation.step as f64, source.loss));
        }
    }
    curves.into_values().collect()
}
