//! The model card of a student.

use super::overview::{rate_text, variables_of_sources};
use super::summary::Summary;
use crate::model::Precision;
use crate::text::{DISPLAY_WIDTH, Table};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// Returns the model card in Markdown, with the front matter that the Hugging Face Hub reads.
pub(super) fn model_card(summary: &Summary, template: &str) -> String {
    let config = &summary.config;
    let is_path = |name: &str| Path::new(name).exists() || Path::new(name).is_absolute();
    // A local path in `base_model` is useless to others, and the Hub rejects it.
    let id = config.base_model.as_deref().filter(|name| !is_path(name) && name.contains('/'));
    let base = config.base_model.as_deref().map(|name| {
        // Only the last component of a local path becomes public.
        let last = Path::new(name).file_name().filter(|_| is_path(name));
        let hub = name.split('@').next().unwrap_or(name);
        last.map_or_else(|| hub.to_owned(), |last| last.to_string_lossy().into_owned())
    });
    let mut card = String::new();
    // Writing to a String cannot fail.
    let _ = write_card(&mut card, summary, base.as_deref(), id.is_some(), template);
    card
}

fn write_card(
    out: &mut String,
    summary: &Summary,
    base: Option<&str>,
    is_id: bool,
    template: &str,
) -> std::fmt::Result {
    let config = &summary.config;
    let (library, kind) = match config.lora {
        Some(_) => ("peft", "A LoRA adapter"),
        None => ("transformers", "A language model"),
    };
    writeln!(out, "---\nlibrary_name: {library}\npipeline_tag: text-generation")?;
    if let Some(base) = base.filter(|_| is_id) {
        writeln!(out, "base_model: {}", serde_json::Value::from(base))?;
    }
    writeln!(out, "tags:\n- mix-distillation\n- mixdistill\n---\n")?;
    let from = base.map_or("random weights".into(), |base| format!("`{base}`"));
    writeln!(out, "# {kind} trained with Mix Distillation\n")?;
    writeln!(
        out,
        "Trained from {from} with mixdistill {}, on a mixture of teachers' answers with one answer per \
         problem (arXiv 2502.12143).\n",
        env!("CARGO_PKG_VERSION")
    )?;
    write_mixture(out, summary)?;
    write_training(out, summary, template)?;
    write_measured(out, summary)
}

fn write_training(out: &mut String, summary: &Summary, template: &str) -> std::fmt::Result {
    let config = &summary.config;
    let train = &config.train;
    let mut table = Table::new(["", ""]).of_text();
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("optimizer steps", summary.outcome.step.to_string());
    if let Some(best) = summary.outcome.best.filter(|_| train.keep_best) {
        row("final weights", format!("from step {}, with the lowest held-out loss", best.step));
    }
    let (size, accumulate) = (train.batch_size, train.accumulate);
    row("rows per step", format!("{} ({size} x {accumulate})", train.rows_per_step()));
    row("length limit", format!("{} tokens per row", config.data.max_length));
    if let (Some(_), Some(part)) = (&config.teacher, &train.objective.distillation) {
        let what = format!(
            "{}, weight {}, temperature {}",
            name_of(&part.divergence),
            part.weight,
            part.temperature
        );
        row("teacher logits", what);
    }
    if !config.base.is_f32() {
        row("frozen weights", config.base.words());
    }
    if config.precision == Precision::Bf16 {
        row("precision", "bf16, trained weights in f32".into());
    }
    row("peak learning rate", rate_text(train.learning_rate));
    row(
        "schedule",
        format!("{}, {} steps of warmup", name_of(&train.lr_schedule), train.warmup_steps),
    );
    row(
        "AdamW",
        format!(
            "beta {} and {}, epsilon {:e}, weight decay {}",
            train.beta_1, train.beta_2, train.epsilon, train.weight_decay
        ),
    );
    if let Some(lora) = &config.lora {
        row(if lora.use_dora { "DoRA" } else { "LoRA" }, lora.words());
        if !lora.modules_to_save.is_empty() {
            row("modules trained in full", lora.modules_to_save.join(", "));
        }
    }
    let (all, trained) = (summary.parameters, summary.trained_parameters);
    row("parameters", format!("{all}, {trained} trained"));
    row("trained tokens", summary.trained_tokens.to_string());
    row("seed", config.seed.to_string());
    if config.base_model.is_some() {
        let name = Path::new(template).file_name();
        row("chat template", name.map_or(template.into(), |n| n.to_string_lossy().into_owned()));
    }
    let names = summary.mixture.sources.iter().map(|source| source.name.as_str());
    for (name, variables) in variables_of_sources(config, names) {
        row(&format!("template variables of {name}"), variables);
    }
    writeln!(out, "## Training\n\n{}", table.to_markdown())
}

fn write_measured(out: &mut String, summary: &Summary) -> std::fmt::Result {
    writeln!(out, "## Results\n")?;
    let (first, last) = (summary.first_loss, summary.last_loss);
    writeln!(out, "Training loss: {first:.4} at the start, {last:.4} at the end.")?;
    if let (Some(before), Some(after)) = (summary.evaluations.first(), summary.final_evaluation())
        && !before.sources.is_empty()
    {
        let mut table = Table::new(["held-out loss (nats per token)", "before", "after"]);
        for (then, now) in before.sources.iter().zip(&after.sources) {
            let name = format!("{}, {} rows", now.name, now.rows);
            table.row([name, format!("{:.4}", then.loss), format!("{:.4}", now.loss)]);
        }
        write!(out, "\n{}", table.to_markdown())?;
    }
    for (when, accuracy) in [("Before", &summary.before), ("After", &summary.after)] {
        if let Some(accuracy) = accuracy {
            writeln!(out, "\n{when} training: {}.", accuracy)?;
        }
    }
    Ok(())
}

fn write_mixture(out: &mut String, summary: &Summary) -> std::fmt::Result {
    let mixture = &summary.mixture;
    let header =
        ["source", "requested share", "realized share", "rows", "tokens", "trained tokens"];
    let mut planned = Table::new(header);
    for source in &mixture.sources {
        planned.row([
            source.name.clone(),
            match &mixture.choice {
                Some(choice) if !choice.within_share => "-".to_owned(),
                _ => format!("{:.1}%", 100.0 * source.requested),
            },
            format!("{:.1}%", 100.0 * mixture.realized(source)[0]),
            source.rows.to_string(),
            source.tokens.to_string(),
            source.trained_tokens.to_string(),
        ]);
    }
    let mut seen = Table::new(["source", "rows", "tokens", "trained tokens"]);
    for source in &summary.seen {
        let counts = [source.rows.to_string(), source.tokens.to_string()];
        let name = [source.name.clone()].into_iter();
        seen.row(name.chain(counts).chain([source.trained_tokens.to_string()]));
    }
    writeln!(out, "## Data\n\n{}", planned.to_markdown())?;
    write!(out, "Seen during training, including repetitions:\n\n{}", seen.to_markdown())?;
    for shortfall in &mixture.shortfalls {
        writeln!(out, "\n{shortfall}.")?;
    }
    if let Some(choice) = &mixture.choice {
        writeln!(out, "\n```text\n{}\n```", choice.to_text(DISPLAY_WIDTH))?;
    }
    if let Some(pilots) = &summary.pilots {
        write!(out, "\n{}.\n\n{}", pilots.line(), pilots.table().to_markdown())?;
        writeln!(out, "\n{}.", pilots.cost())?;
    }
    writeln!(out)
}

/// Returns the name of an enum value in settings.
fn name_of(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}
