//! Compares training on long answers only, on short answers only, and on the mixture.
//!
//! The three runs share the initial weights, the problems (those that both sources answer within the length
//! limit), the order, the number of updates, and the length limit. Only the answers differ.

use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode, VARIANTS};
use super::finished::same_settings;
use super::pilots;
use super::prepare::Prepared;
use super::run::{dated, run_alone};
use super::summary::Summary;
use super::teacher::teacher;
use crate::context::{Accuracy, Context, Event};
use crate::data::{Schedule, Share};
use crate::device;
use crate::error::{Error, Result};
use crate::text::{DISPLAY_WIDTH, Table};
use crate::train::{Curve, TeacherLogits, draw_curves};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One line of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareLine {
    /// What the student was trained on: `untuned`, `long`, `short`, or `mix`.
    pub name: String,
    /// The grades of the answers to held-out problems.
    pub accuracy: Accuracy,
    /// Optimizer steps.
    pub steps: usize,
    /// Trained tokens.
    pub trained_tokens: u64,
    /// Wall time of training in seconds.
    pub seconds: f64,
}

/// The result of [`compare`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The untuned student first, then each variant.
    pub lines: Vec<CompareLine>,
    /// Whether the comparison was stopped before its end.
    pub stopped: bool,
}

impl Comparison {
    /// Formats the comparison as a table with lines of at most `width` columns.
    pub fn to_text(&self, width: usize) -> String {
        let mut table = Table::new([
            "trained on",
            "accuracy",
            "95% interval",
            "tokens/answer",
            "truncated",
            "no answer",
            "updates",
            "trained tokens",
        ]);
        for line in &self.lines {
            let accuracy = &line.accuracy;
            let (low, high) = accuracy.interval;
            table.row([
                line.name.clone(),
                format!("{:.1}%", 100.0 * accuracy.accuracy),
                format!("{:.1} to {:.1}%", 100.0 * low, 100.0 * high),
                format!("{:.1}", accuracy.mean_tokens),
                format!("{:.1}%", 100.0 * accuracy.hit_limit),
                format!("{:.1}%", 100.0 * accuracy.without_answer),
                line.steps.to_string(),
                line.trained_tokens.to_string(),
            ]);
        }
        table.to_text(width)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(f.width().unwrap_or(DISPLAY_WIDTH)))
    }
}

/// Runs the three variants in the subdirectories `long`, `short`, and `mix` of the run directory, and writes
/// `compare.json` and `compare.svg`. [`RunMode::Resume`] keeps finished variants.
///
/// # Errors
/// See [`run`](super::run()); [`Error::Config`] if the sources are not `long` and `short`, or if no held-out
/// problem has a reference answer.
pub fn compare(config: &RunConfig, mode: RunMode, context: &Context<'_>) -> Result<Comparison> {
    let share = share_to_compare(config)?;
    if config.mixture.choice.is_some() {
        let what = "a comparison mixes answers by their share, not by scores";
        let hint = "Remove it, or compare choices in a study (`mixdistill study`)";
        return Err(Error::config("mixture.choice", what, hint));
    }
    let mut config = config.clone();
    config.data.complete = true;
    config.validate()?;
    let device = device::by_name(&config.backend)?;
    RunDirectory::check(&config.out, mode)?;
    config = dated(&config, mode);
    if mode == RunMode::Resume {
        same_settings(&RunConfig::read(&config.out.join("config.toml"))?, &config)?;
    }
    // Problems with the data show here, before anything is created or replaced.
    let prepared = Prepared::new(&config, context)?;
    config = prepared.pinned(&config);
    if prepared.questions.is_empty() {
        return Err(Error::config(
            "evaluation.questions",
            "no held-out problem has a reference answer, so nothing can be compared",
            "Hold out problems with reference answers, or use `train`",
        ));
    }
    check_stored_logits(&config, &prepared, share, &device, context)?;
    let directory = RunDirectory::open(&config.out, mode)?;
    let variants = VARIANTS.map(|name| {
        let out = directory.path(name);
        let mode = if RunDirectory::holds_run(&out) { mode } else { RunMode::New };
        RunDirectory::open(&out, mode)
    });
    let [long, short, mix] = variants;
    let variants = [(long?, 1.0), (short?, 0.0), (mix?, share)];
    if !mode.resumes() {
        directory.clear()?;
        pilots::clear(&directory)?;
    }
    if mode != RunMode::Resume {
        directory.write("config.toml", &config.to_toml()?)?;
    }
    let mut comparison = Comparison { lines: vec![], stopped: true };
    directory.write_json("compare.json", &comparison)?;
    let mut curves = vec![];
    for (number, (name, (variant_directory, share))) in
        VARIANTS.into_iter().zip(variants).enumerate()
    {
        let variant = variant(&config, directory.path(name), share)?;
        context.emit(&Event::Part {
            name,
            about: &format!("{:.0}% long answers", 100.0 * share),
            number: number + 1,
            of: VARIANTS.len(),
            seconds_left: None,
        })?;
        let mode = match RunDirectory::holds_run(&variant.out) {
            true => mode,
            false => RunMode::New,
        };
        let mixed = prepared.with_mixture(&variant)?;
        let summary = run_alone(&variant, &device, &variant_directory, mixed, mode, context)?;
        if summary.outcome.stopped {
            return Ok(comparison);
        }
        comparison.add(name, &summary);
        curves.extend(loss_curves(name, &summary));
        if context.is_stopped() && name != "mix" {
            return Ok(comparison);
        }
    }
    comparison.stopped = false;
    let [x, y] = ["optimizer step", "held-out cross-entropy (nats)"];
    let plot = directory.path("compare.svg");
    draw_curves(&plot, "Held-out loss by training data", [x, y], &curves)?;
    directory.write_json("compare.json", &comparison)?;
    directory.write_json("summary.json", &comparison)?;
    context.emit(&Event::Written { what: "held-out losses", path: &plot })?;
    Ok(comparison)
}

/// Returns the share of long answers in the mixture.
fn share_to_compare(config: &RunConfig) -> Result<f64> {
    let weights = &config.mixture.weights;
    if config.evaluation.questions == 0 {
        return Err(Error::config(
            "evaluation.questions",
            "it is 0, but a comparison grades answers",
            "Use a positive number",
        ));
    }
    if config.mixture.share == Share::Auto {
        return Err(Error::config(
            "mixture.share",
            "it is auto, but a comparison needs a fixed share",
            "Set a share, or find one with `train`",
        ));
    }
    match (weights.len(), weights.get("long"), weights.get("short")) {
        (2, Some(long), Some(short)) if long + short > 0.0 => Ok(long / (long + short)),
        _ => Err(Error::config(
            "mixture.weights",
            "a comparison needs two sources, `long` and `short`, with weights above 0",
            "Name the sources `long` and `short`, and set their weights",
        )),
    }
}

/// Returns the settings of one variant.
fn variant(config: &RunConfig, out: PathBuf, share: f64) -> Result<RunConfig> {
    let mut variant = RunConfig { out, ..config.clone() };
    variant.set_share(share)?;
    if share == 0.0 || share == 1.0 {
        variant.mixture.schedule = Schedule::Constant;
    }
    Ok(variant)
}

/// Checks that stored logits contain the rows of every variant.
fn check_stored_logits(
    config: &RunConfig,
    prepared: &Prepared,
    share: f64,
    device: &Device,
    context: &Context<'_>,
) -> Result<()> {
    if !config.teacher.as_ref().is_some_and(|t| TeacherLogits::is_in(Path::new(&t.path))) {
        return Ok(());
    }
    for share in [1.0, 0.0, share] {
        let mut variant = config.clone();
        variant.set_share(share)?;
        teacher(&variant, &prepared.with_mixture(&variant)?, device, context)?;
    }
    Ok(())
}

impl Comparison {
    /// Adds the line of a finished variant, and before the first one that of the untuned student.
    fn add(&mut self, name: &str, summary: &Summary) {
        if self.lines.is_empty() {
            self.lines.push(CompareLine {
                name: "untuned".into(),
                accuracy: summary.before.clone().unwrap_or_default(),
                steps: 0,
                trained_tokens: 0,
                seconds: 0.0,
            });
        }
        self.lines.push(CompareLine {
            name: name.into(),
            accuracy: summary.after.clone().unwrap_or_default(),
            steps: summary.outcome.step,
            trained_tokens: summary.trained_tokens,
            seconds: summary.training_seconds,
        });
    }
}

/// Returns the held-out losses of a variant, by source.
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
