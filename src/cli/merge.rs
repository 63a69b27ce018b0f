//! `mixdistill merge`: merges an adapter into its base model.

use super::common::{Ended, Failure, Json, Session, say};
use clap::{Args, ValueEnum};
use mixdistill::Error;
use mixdistill::model::{FileType, MAX_SHARD_BYTES, MergeOptions, merge_adapter};
use mixdistill::recipe::{MergedLoss, merged_losses, run_on_stored_base};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  mixdistill merge --model BASE --adapter run/adapter --out merged
  mixdistill merge --model run --out merged --save-type bf16
  mixdistill merge --model owner/name --adapter run/adapter --out merged --json";

/// Merge an adapter into its base model and write a plain model folder
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Base model: a folder in Hugging Face format, a GGUF file, or owner/name on the Hugging Face Hub; or a
    /// run that trained an adapter
    #[arg(long, value_name = "MODEL", help_heading = "Input")]
    model: String,
    /// Adapter in PEFT format, or a run that trained one [default: the run's adapter]
    #[arg(long, value_name = "DIR", help_heading = "Input")]
    adapter: Option<PathBuf>,
    /// Folder to write; it must not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Data type of the written weights
    #[arg(long, value_enum, default_value = "f32", help_heading = "Output")]
    save_type: SaveType,
    /// Maximum size of a weights file, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SHARD_BYTES, help_heading = "Output",
        value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_bytes: u64,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SaveType {
    F32,
    Bf16,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let options = MergeOptions {
        file_type: match flags.save_type {
            SaveType::F32 => FileType::F32,
            SaveType::Bf16 => FileType::Bf16,
        },
        max_shard_bytes: flags.max_shard_bytes,
        backend: session.global.backend().to_owned(),
    };
    let adapter = flags.adapter.as_deref();
    let lora = merge_adapter(&flags.model, adapter, &flags.out, &options, &session.context)?;
    say!(
        session,
        "merged {} with the rank-{} adapter on {}",
        flags.model,
        lora.rank,
        lora.target_modules
    );
    let losses = losses(flags, session)?;
    session.result(&serde_json::json!({
        "out": flags.out,
        "model": flags.model,
        "adapter": flags.adapter,
        "rank": lora.rank,
        "target_modules": lora.target_modules,
        "losses": losses,
    }))?;
    Ok(())
}

/// Returns the effect of merging an adapter that was trained on a quantized base model, as losses on its
/// run's held-out rows.
fn losses(flags: &Flags, session: &Session) -> Result<Option<Vec<MergedLoss>>, Failure> {
    let (run, config) = match run_on_stored_base(&flags.model, flags.adapter.as_deref()) {
        Ok(Some(run)) => run,
        Ok(None) => return Ok(None),
        // The merged model is already written.
        Err(error) => {
            session.warn(&format!("cannot determine the base type of the adapter's run: {error}"));
            return Ok(None);
        }
    };
    let stored = config.base.base_type.name();
    let backend = session.global.backend();
    match merged_losses(&run, &config, &flags.out, backend, &session.context) {
        Ok(losses) if losses.is_empty() => {
            session.warn(&format!(
                "the adapter was trained on {stored} weights and merged into the original ones; the run has \
                 no held-out rows to measure the effect"
            ));
            Ok(None)
        }
        Ok(losses) => {
            say!(
                session,
                "trained on {stored} weights, merged into the original ones; held-out loss before and after:"
            );
            for MergedLoss { source, rows, before, after } in &losses {
                let change = after - before;
                say!(session, "  {source}: {before:.4} -> {after:.4} ({change:+.4}; {rows} rows)");
            }
            Ok(Some(losses))
        }
        Err(error @ Error::Stopped { .. }) => Err(error.into()),
        // The merged model is already written.
        Err(error) => {
            session.warn(&format!(
                "the adapter was trained on {stored} weights and merged into the original ones; the effect \
                 cannot be measured: {error}"
            ));
            Ok(None)
        }
    }
}
