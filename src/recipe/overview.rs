//! The overview that a run reports before it starts.

use super::config::RunConfig;
use super::plan::Plan;
use super::prepare::Prepared;
use super::summary::backend_name;
use crate::context::{Context, Event, RunOverview};
use crate::data::Source;
use crate::error::Result;
use crate::model::Precision;

/// Reports data, mixture, student, training, and the plan.
pub(super) fn tell_overview(
    config: &RunConfig,
    prepared: &Prepared,
    context: &Context<'_>,
) -> Result<()> {
    let plan = Plan::of_run(config, prepared, context)?;
    let sources = config.data.sources.iter().map(|source| source.path.display().to_string());
    let data = match config.data.sources.is_empty() {
        true => "the built-in toy corpus of arithmetic problems".to_owned(),
        false => sources.collect::<Vec<_>>().join(" + "),
    };
    let mut lines = remarks_on_data(config, prepared);
    lines.extend(prepared.pilots.iter().map(|pilots| pilots.line()));
    lines.extend(student_lines(config, prepared, &plan));
    lines.extend(training_lines(config, prepared));
    lines.push(plan.line());
    lines.extend(plan.warning());
    context.emit(&Event::Overview(&RunOverview {
        data: &data,
        ledger: &prepared.ledger,
        mixture: &prepared.report,
        lines: &lines,
        warnings: &warnings(config, prepared, &plan),
    }))
}

fn remarks_on_data(config: &RunConfig, prepared: &Prepared) -> Vec<String> {
    let mixture = &prepared.mixture;
    let no_question = prepared.questions.is_empty() && config.evaluation.questions > 0;
    let remarks = [
        (
            mixture.config().redraw || !mixture.is_constant(),
            "(this is the first epoch; later epochs are redrawn or follow the schedule)",
        ),
        (
            prepared.held_out.iter().all(|source| source.rows.is_empty()),
            "no problem is held out, so there is no held-out loss (data.hold_out)",
        ),
        (no_question, "no held-out problem has a reference answer, so nothing is graded"),
    ];
    remarks.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text.to_owned()).collect()
}

fn student_lines(config: &RunConfig, prepared: &Prepared, plan: &Plan) -> Vec<String> {
    let from = config.base_model.as_deref().unwrap_or("random weights");
    let trained = match &config.lora {
        Some(lora) => {
            format!(" ({} trained: adapters of rank {})", plan.trained_parameters, lora.rank)
        }
        None => String::new(),
    };
    let mut lines = vec![format!(
        "student: from {from}, {} parameters{trained}, vocabulary of {} tokens, backend {}",
        plan.parameters,
        prepared.model.vocab_size,
        backend_name(config),
    )];
    if config.base_model.is_some() || config.data.chat_template.is_some() {
        let names = prepared.mixture.pairs().sources().iter().map(Source::name);
        let with = variables_of_sources(config, names);
        let with: String =
            with.iter().map(|(name, with)| format!("; {name} with {with}")).collect();
        lines.push(format!("prompt layout: {}{with}", prepared.template_name));
    }
    lines
}

/// Returns the sources with chat template variables, and their variables in words.
pub(super) fn variables_of_sources<'a>(
    config: &RunConfig,
    names: impl Iterator<Item = &'a str>,
) -> Vec<(&'a str, String)> {
    let of = |name: &'a str| {
        let variables = config.laid_out_with(name);
        let shown = variables.iter().map(|(name, value)| format!("{name} = {value}"));
        (name, shown.collect::<Vec<_>>().join(", "))
    };
    names.map(of).filter(|(_, shown)| !shown.is_empty()).collect()
}

/// Deviations from the settings that deserve a warning.
fn warnings(config: &RunConfig, prepared: &Prepared, plan: &Plan) -> Vec<String> {
    let steps = config.train.total_steps(prepared.mixture.pairs().len());
    let shortfalls = prepared.report.shortfalls.iter();
    let shortfalls = shortfalls.map(|shortfall| format!("a share is not reached: {shortfall}"));
    shortfalls.chain(unreached_peak(config, steps)).chain(plan.warning()).collect()
}

/// Returns a warning for a run that is shorter than its warmup.
fn unreached_peak(config: &RunConfig, steps: usize) -> Option<String> {
    let train = &config.train;
    (steps < train.warmup_steps).then(|| {
        format!(
            "the learning rate reaches {}, not its peak: the warmup has {} steps, but the run only \
             {steps} (train.warmup_steps)",
            rate_text(train.learning_rate_at(steps, steps)),
            train.warmup_steps,
        )
    })
}

fn training_lines(config: &RunConfig, prepared: &Prepared) -> Vec<String> {
    let train = &config.train;
    let steps = train.total_steps(prepared.mixture.pairs().len());
    let mut lines = vec![format!(
        "training: {steps} optimizer steps of {} rows ({} x {}), at most {} tokens per row, peak learning \
         rate {}",
        train.rows_per_step(),
        train.batch_size,
        train.accumulate,
        config.data.max_length,
        rate_text(train.learning_rate),
    )];
    lines.extend(unreached_peak(config, steps));
    if !config.base.is_f32() {
        lines.push(format!("frozen weights are stored in {}", config.base.words()));
    }
    if config.precision == Precision::Bf16 {
        let slow = ["flex", "ndarray"].contains(&backend_name(config).as_str());
        let slow = if slow { "; the CPU emulates bf16, which is slower than f32" } else { "" };
        lines.push(format!("computed in bf16, with trained weights and loss in f32{slow}"));
    }
    if let (Some(teacher), Some(part)) = (&config.teacher, &train.objective.distillation) {
        lines.push(format!(
            "teacher: {}, loss weight {} (answers: {}), temperature {}",
            teacher.path,
            part.weight,
            1.0 - part.weight,
            part.temperature,
        ));
    }
    lines
}

/// Returns a learning rate in short scientific notation: `2e-3`, `1.25e-5`.
pub(super) fn rate_text(rate: f64) -> String {
    // Three decimals are enough for any rate that people set.
    let text = format!("{rate:.3e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
}
