//! The model card: what a student is made of, for whoever finds its folder.

use super::run::{Summary, sentence};
use crate::data::MixtureReport;
use crate::model::Precision;
use std::fmt::Write;
use std::path::Path;

/// A card in Markdown with the front matter that model hubs read.
pub(super) fn model_card(summary: &Summary, template: &str) -> String {
    let config = &summary.config;
    let base = config.base_model.as_deref().map(|name| {
        // Of a path the last part is the model's name; where it lies is nobody's business.
        let folder = Path::new(name);
        let is_path = folder.is_dir() || folder.is_absolute();
        let last = folder.file_name().filter(|_| is_path);
        let hub = name.split('@').next().unwrap_or(name);
        last.map_or_else(|| hub.to_owned(), |last| last.to_string_lossy().into_owned())
    });
    let mut card = String::new();
    // Writing to a String does not fail.
    let _ = write_card(&mut card, summary, base.as_deref(), template);
    card
}

fn write_card(
    out: &mut String,
    summary: &Summary,
    base: Option<&str>,
    template: &str,
) -> std::fmt::Result {
    let config = &summary.config;
    let (library, kind) = match config.lora {
        Some(_) => ("peft", "A LoRA adapter"),
        None => ("transformers", "A language model"),
    };
    writeln!(out, "---\nlibrary_name: {library}\npipeline_tag: text-generation")?;
    if let Some(base) = base {
        writeln!(out, "base_model: {}", serde_json::Value::from(base))?;
    }
    writeln!(out, "tags:\n- mix-distillation\n- mixdistill\n---\n")?;
    let from = base.map_or("random weights".into(), |base| format!("`{base}`"));
    writeln!(out, "# {kind} trained by Mix Distillation\n")?;
    writeln!(
        out,
        "Trained from {from} on a mixture of teachers' answers, one for each problem \
         (arXiv 2502.12143), with mixdistill {}.\n",
        env!("CARGO_PKG_VERSION")
    )?;
    write_mixture(out, &summary.mixture)?;
    let train = &config.train;
    writeln!(out, "## Training\n\n| | |\n| --- | --- |")?;
    let mut row = |name: &str, value: String| writeln!(out, "| {name} | {value} |");
    row("optimizer steps", summary.outcome.step.to_string())?;
    if let Some(best) = summary.outcome.best.filter(|_| train.keep_best) {
        row("weights of", format!("step {}, which has the lowest held-out loss", best.step))?;
    }
    let (size, accumulate) = (train.batch_size, train.accumulate);
    row("rows a step", format!("{} ({size} x {accumulate})", train.rows_per_step()))?;
    row("longest row", format!("{} tokens", config.data.max_length))?;
    if let (Some(_), Some(part)) = (&config.teacher, &train.objective.distillation) {
        let what = format!(
            "{:?}, weight {}, temperature {}",
            part.divergence, part.weight, part.temperature
        );
        row("a teacher's logits", what)?;
    }
    if config.precision == Precision::Bf16 {
        row("computed in", "bf16, trained weights in f32".into())?;
    }
    row("peak learning rate", format!("{:e}", train.learning_rate))?;
    row("schedule", format!("{:?}, {} steps of warm-up", train.lr_schedule, train.warmup_steps))?;
    row(
        "AdamW",
        format!(
            "beta {} and {}, epsilon {:e}, weight decay {}",
            train.beta_1, train.beta_2, train.epsilon, train.weight_decay
        ),
    )?;
    if let Some(lora) = &config.lora {
        let scale = if lora.rslora { ", rank-stabilized" } else { "" };
        row(
            "LoRA",
            format!(
                "rank {}, alpha {}{scale}, dropout {}, on {}",
                lora.rank,
                lora.alpha,
                lora.dropout,
                lora.target_modules.join(", ")
            ),
        )?;
    }
    let (all, trained) = (summary.parameters, summary.trained_parameters);
    row("parameters", format!("{all}, of which {trained} trained"))?;
    row("tokens trained", summary.trained_tokens.to_string())?;
    row("seed", config.seed.to_string())?;
    if config.base_model.is_some() {
        let name = Path::new(template).file_name();
        row("chat template", name.map_or(template.into(), |n| n.to_string_lossy().into_owned()))?;
    }
    writeln!(out, "\n## Measured\n")?;
    let (first, last) = (summary.first_loss, summary.last_loss);
    writeln!(out, "Training loss {first:.4} at the beginning, {last:.4} at the end.")?;
    if let (Some(before), Some(after)) = (summary.evaluations.first(), summary.final_evaluation())
        && !before.sources.is_empty()
    {
        writeln!(out, "\n| held-out loss (nats a token) | before | after |\n| --- | --- | --- |")?;
        for (then, now) in before.sources.iter().zip(&after.sources) {
            writeln!(
                out,
                "| {}, {} rows | {:.4} | {:.4} |",
                now.name, now.rows, then.loss, now.loss
            )?;
        }
    }
    for (when, accuracy) in [("Before", &summary.before), ("After", &summary.after)] {
        if let Some(accuracy) = accuracy {
            writeln!(out, "\n{when} training: {}.", sentence(accuracy))?;
        }
    }
    Ok(())
}

fn write_mixture(out: &mut String, mixture: &MixtureReport) -> std::fmt::Result {
    writeln!(out, "## Data\n")?;
    writeln!(out, "| source | share asked for | rows | tokens | trained tokens |")?;
    writeln!(out, "| --- | --- | --- | --- | --- |")?;
    for source in &mixture.sources {
        writeln!(
            out,
            "| {} | {:.1} % | {} | {} | {} |",
            source.name,
            100.0 * source.requested,
            source.rows,
            source.tokens,
            source.trained_tokens
        )?;
    }
    for shortfall in &mixture.shortfalls {
        writeln!(out, "\n{shortfall}.")?;
    }
    writeln!(out)
}
