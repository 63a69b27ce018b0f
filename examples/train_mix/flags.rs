//! The flags, which override the library's settings.

use mixdistill::data::ColumnMap;
use mixdistill::prelude::*;
use mixdistill::recipe::{RunDirectory, SourceConfig};
use std::path::PathBuf;

/// Trains a small student on a mixture of long and short reasoning (Mix Distillation).
///
/// `mixdistill train` does the same and supports every setting.
#[derive(clap::Parser)]
pub struct Flags {
    /// Run directory
    #[arg(long, default_value = "run")]
    out: PathBuf,
    /// Resume the run in the run directory with its settings
    #[arg(long, conflicts_with_all = ["overwrite", "model"])]
    resume: bool,
    /// Replace the run in the run directory
    #[arg(long)]
    overwrite: bool,
    /// Model to fine-tune: a Hugging Face folder. Without it, train a small student from random
    /// weights on the built-in corpus
    #[arg(long, requires_all = ["long", "short"])]
    model: Option<String>,
    /// File of long answers: JSONL, JSON, CSV, TSV, or (feature parquet) Parquet
    #[arg(long, requires = "model")]
    long: Option<PathBuf>,
    /// File of short answers to the same problems
    #[arg(long, requires = "model")]
    short: Option<PathBuf>,
    /// Share of long answers, 0 to 1 [default: 0.2]
    #[arg(long)]
    share: Option<f64>,
    /// Optimizer steps [default: one epoch; two with --model]
    #[arg(long)]
    steps: Option<usize>,
    /// Peak learning rate [default: 2e-3; 1e-5 with --model]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Random seed [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// cuda, metal, rocm, vulkan, wgpu, flex, or ndarray [default: the fastest compiled in]
    #[arg(long)]
    backend: Option<String>,
}

impl Flags {
    /// Returns how to open the run directory.
    pub fn mode(&self) -> RunMode {
        match (self.resume, self.overwrite) {
            (true, _) => RunMode::Resume,
            (_, true) => RunMode::Overwrite,
            _ => RunMode::New,
        }
    }

    /// Returns the settings: those of a resumed run, or the library's defaults with the flags.
    pub fn settings(&self) -> Result<RunConfig> {
        RunDirectory::check(&self.out, self.mode())?;
        let mut config = match &self.model {
            _ if self.resume => RunConfig::read(&self.out.join("config.toml"))?,
            Some(model) => RunConfig::fine_tune(model),
            None => RunConfig::toy(),
        };
        config.out = self.out.clone();
        for (name, path) in [("long", &self.long), ("short", &self.short)] {
            let Some(path) = path.clone() else { continue };
            let columns = ColumnMap::default();
            config.data.sources.push(SourceConfig {
                name: name.into(),
                path,
                columns,
                ..SourceConfig::default()
            });
        }
        if let Some(share) = self.share {
            config.set_share(share)?;
        }
        config.train.steps = self.steps.or(config.train.steps);
        config.train.learning_rate = self.learning_rate.unwrap_or(config.train.learning_rate);
        config.seed = self.seed.unwrap_or(config.seed);
        config.backend = self.backend.clone().unwrap_or(config.backend);
        config.validate()?;
        Ok(config)
    }
}
