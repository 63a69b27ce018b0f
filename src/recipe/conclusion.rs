//! The conclusion that a run prints at its end.

use super::summary::Summary;
use crate::eval::Answer;
use std::fmt;

/// The lines that a run ends with, from [`Summary::conclusion`].
#[derive(Clone, Copy, Debug)]
pub struct Conclusion<'a>(&'a Summary);

impl Summary {
    /// Returns the outcome of the run: samples, losses, what training has seen, and where the results are.
    pub fn conclusion(&self) -> Conclusion<'_> {
        Conclusion(self)
    }
}

impl fmt::Display for Conclusion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(summary) = self;
        for (index, sample) in summary.samples.iter().enumerate() {
            write_sample(f, index + 1, sample)?;
        }
        writeln!(
            f,
            "\ntraining loss {:.3} -> {:.3} in {} steps, {:.0} s, {:.0} tokens/s; {} trained tokens",
            summary.first_loss,
            summary.last_loss,
            summary.outcome.step,
            summary.training_seconds,
            summary.tokens_per_second,
            summary.trained_tokens,
        )?;
        let positions = (summary.tokens + summary.padding).max(1) as f64;
        let memory = summary.peak_memory_mib.map(|mib| format!("; peak memory {mib:.0} MiB"));
        writeln!(
            f,
            "padding {:.1}% of all positions{}",
            100.0 * summary.padding as f64 / positions,
            memory.unwrap_or_default()
        )?;
        self.write_seen(f)?;
        self.write_outcome(f)?;
        for evaluation in [summary.evaluations.first(), summary.final_evaluation()].iter().flatten()
        {
            let losses = evaluation.sources.iter().map(|s| format!("{} {:.4}", s.name, s.loss));
            let losses: Vec<String> = losses.collect();
            if !losses.is_empty() {
                let (step, losses) = (evaluation.step, losses.join(", "));
                writeln!(f, "held-out loss after {step} steps: {losses}")?;
            }
        }
        let folder = if summary.config.lora.is_some() { "adapter" } else { "model" };
        write!(
            f,
            "results are in {}: summary.json, loss.svg, metrics.jsonl, checkpoints/, {folder}/",
            summary.config.out.display()
        )
    }
}

impl Conclusion<'_> {
    /// Returns what training has seen of each source, and shares that were not reached.
    fn write_seen(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(summary) = self;
        let rows: u64 = summary.seen.iter().map(|source| source.rows).sum();
        for source in &summary.seen {
            writeln!(
                f,
                "seen in training: {} {} rows ({:.1}%), {} tokens, {} trained tokens",
                source.name,
                source.rows,
                100.0 * source.rows as f64 / rows.max(1) as f64,
                source.tokens,
                source.trained_tokens,
            )?;
        }
        if let Some(pilots) = &summary.pilots {
            writeln!(f, "{}", pilots.line())?;
        }
        for shortfall in &summary.mixture.shortfalls {
            writeln!(f, "a share was not reached: {shortfall}")?;
        }
        Ok(())
    }

    /// Returns how training ended, if there is anything special about it.
    fn write_outcome(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(summary) = self;
        let outcome = &summary.outcome;
        if outcome.stopped_early {
            writeln!(f, "stopped early: the held-out loss no longer improved")?;
        }
        if let Some(best) = outcome.best.filter(|_| summary.config.train.keep_best) {
            writeln!(
                f,
                "the final weights are those of step {}, with held-out loss {:.4}",
                best.step, best.loss
            )?;
        }
        if !outcome.skipped.is_empty() {
            writeln!(f, "skipped steps: {:?}", outcome.skipped)?;
        }
        Ok(())
    }
}

fn write_sample(f: &mut fmt::Formatter<'_>, number: usize, sample: &Answer) -> fmt::Result {
    let verdict = if sample.correct { "correct" } else { "wrong" };
    writeln!(f, "\nsample {number}")?;
    writeln!(f, "  problem   {}", indented(&sample.problem))?;
    writeln!(f, "  answer    {}", indented(&sample.text))?;
    writeln!(f, "  reference {} -> {verdict}", sample.reference)
}

/// Returns the text with continuation lines indented, shortened if it is very long.
fn indented(text: &str) -> String {
    const CHARACTERS: usize = 600;
    const LINES: usize = 12;
    let cut: String = text.chars().take(CHARACTERS).collect();
    let lines: Vec<&str> = cut.lines().take(LINES).collect();
    let shown = lines.join("\n            ");
    let whole = cut.len() == text.len() && text.lines().count() <= LINES;
    if whole { shown } else { shown + " [...]" }
}
