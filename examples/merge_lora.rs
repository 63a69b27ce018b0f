//! Adds a LoRA adapter to its base model and writes a plain model folder.
//!
//! ```text
//! cargo run --example merge_lora -- --model BASE --adapter run/adapter --out merged
//! ```

use clap::{Parser, ValueEnum};
use mixdistill::data::{ChatFormat, PlainTemplate};
use mixdistill::model::{
    FileType, MAX_SHARD_BYTES, ModelFolder, SaveFolder, check_new_folder, model_folder,
};
use mixdistill::train::Progress;
use mixdistill::{Result, device};
use std::path::PathBuf;
use std::process::ExitCode;

/// Adds a LoRA adapter to its base model and writes a plain model folder.
#[derive(Parser)]
struct Flags {
    /// Folder of the base model (with the feature hub also owner/name)
    #[arg(long)]
    model: String,
    /// Folder of the adapter, in PEFT's format
    #[arg(long)]
    adapter: PathBuf,
    /// Folder to write; it must not exist
    #[arg(long)]
    out: PathBuf,
    /// Type of the weights
    #[arg(long, value_enum, default_value = "f32")]
    save_type: SaveType,
    /// Largest size of a file of weights, in bytes
    #[arg(long, default_value_t = MAX_SHARD_BYTES)]
    max_shard_bytes: u64,
    /// auto, or one of cuda, metal, rocm, vulkan, wgpu, flex, ndarray
    #[arg(long, default_value = "auto")]
    backend: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum SaveType {
    F32,
    Bf16,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match device::use_threads(None).and_then(|()| merge(&flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn merge(flags: &Flags) -> Result<()> {
    check_new_folder(&flags.out)?;
    let base = ModelFolder::open(&model_folder(&flags.model)?)?;
    let tokenizer = base.tokenizer(None)?;
    let mut progress = Progress::new("load", 0);
    let model = base.load_with(&device::by_name(&flags.backend)?, &mut |done, of| {
        progress.update_of(done as u64, of as u64, String::new);
    })?;
    drop(progress);
    let model = model.with_adapter(&flags.adapter)?;
    let lora = model.lora().cloned().unwrap_or_default();
    let model = model.merged();
    // The template that the adapter was trained with, and what it ends answers with.
    let file = flags.adapter.join("chat_template.jinja");
    let template = base.chat_template_with(None, Some(&flags.adapter))?;
    let source = template.as_ref().filter(|_| file.is_file()).map(|t| t.source().to_owned());
    let format = template.map(|template| ChatFormat::new(template, &tokenizer, None));
    let end_tokens = match format {
        Some(Ok(format)) => base.answer_ends(&tokenizer, &format),
        _ => base.answer_ends(&tokenizer, &PlainTemplate::default()),
    };
    eprintln!("writing {}", flags.out.display());
    let how = SaveFolder {
        base: Some(&base),
        end_tokens: &end_tokens,
        chat_template: source.as_deref(),
        file_type: match flags.save_type {
            SaveType::F32 => FileType::F32,
            SaveType::Bf16 => FileType::Bf16,
        },
        max_shard_bytes: flags.max_shard_bytes,
        ..SaveFolder::new(&tokenizer)
    };
    model.save(&flags.out, &how)?;
    println!(
        "{}: {} with the adapter of rank {} on {}",
        flags.out.display(),
        flags.model,
        lora.rank,
        lora.target_modules.join(", ")
    );
    Ok(())
}
