//! Ways to save memory: settings, and a lower length limit.

use super::batches::MOST_ROWS_OF_STEP;
use super::memory::MemoryPlan;
use super::{Case, MicroBatch};
use crate::error::Result;
use crate::model::{BaseType, LoraConfig};
use crate::recipe::config::RunConfig;
use crate::train::MomentType;
use serde::Serialize;

/// A setting that would save memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Saving {
    /// The settings, each as `KEY=VALUE` for `--set`.
    pub settings: Vec<String>,
    /// What they cost, in words.
    pub price: String,
    /// Peak memory with them in bytes.
    pub peak: f64,
    /// Bytes saved.
    pub saved: f64,
    /// Whether the run fits with them, if that is known.
    pub fits: Option<bool>,
}

/// One of the longest rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LongRow {
    /// Source and position of the row.
    pub label: String,
    /// Number of tokens.
    pub tokens: usize,
}

/// A lower length limit and what it saves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ShorterRows {
    /// The limit (`data.max_length`).
    pub max_length: usize,
    /// Share of the training rows that exceed it.
    pub left_out: f64,
    /// Peak memory with this limit in bytes.
    pub peak: f64,
    /// Bytes saved.
    pub saved: f64,
}

/// A change of settings.
type Change = dyn Fn(&mut RunConfig);

/// Smaller savings, as a share of the peak, are not reported.
const LEAST_SHARE: f64 = 0.02;

impl Case<'_> {
    /// Returns the settings that would save memory, largest saving first, and at the end all of them
    /// together.
    pub(super) fn savings(&self, now: &MemoryPlan) -> Result<Vec<Saving>> {
        let mut savings = vec![];
        let mut all = self.config.clone();
        for (settings, price, change) in self.changes() {
            let mut changed = self.config.clone();
            change(&mut changed);
            let saving = self.saving(settings, price, &changed, now)?;
            if saving.saved >= LEAST_SHARE * now.peak {
                change(&mut all);
                savings.push(saving);
            }
        }
        savings.sort_by(|a, b| b.saved.total_cmp(&a.saved));
        // Of several types of the base, only the first (the smallest) is in the combination.
        let names = |savings: &[Saving]| -> Vec<String> {
            let mut names: Vec<String> = vec![];
            for setting in savings.iter().flat_map(|saving| &saving.settings) {
                let key = setting.split('=').next().unwrap_or_default();
                if !names.iter().any(|name| name.starts_with(key)) {
                    names.push(setting.clone());
                }
            }
            names
        };
        if savings.len() > 1 {
            let saving = self.saving(names(&savings), "all of these".into(), &all, now)?;
            savings.push(saving);
        }
        Ok(savings)
    }

    fn saving(
        &self,
        settings: Vec<String>,
        price: String,
        changed: &RunConfig,
        now: &MemoryPlan,
    ) -> Result<Saving> {
        let batch = self.order.batches(&changed.train, usize::MAX).largest();
        let peak = self.memory(changed, batch)?.peak;
        let (saved, fits) = (now.peak - peak, self.room().map(|room| peak <= room));
        Ok(Saving { settings, price, peak, saved, fits })
    }

    /// Returns settings that may save memory: the settings, what they cost, and the change.
    fn changes(&self) -> Vec<(Vec<String>, String, Box<Change>)> {
        let (config, train) = (self.config, &self.config.train);
        let mut changes: Vec<(Vec<String>, String, Box<Change>)> = vec![];
        if !train.activation_checkpointing {
            changes.push((
                vec!["train.activation_checkpointing=true".into()],
                "one more forward pass".into(),
                Box::new(|config| config.train.activation_checkpointing = true),
            ));
        }
        if config.lora.is_none() && config.base_model.is_some() {
            changes.push((
                vec!["lora.rank=16".into()],
                "trains adapters instead of all weights".into(),
                Box::new(|config| config.lora = Some(LoraConfig::default())),
            ));
            changes.push((
                vec!["lora.rank=16".into(), "base.type=nf4".into()],
                "trains adapters, and rounds the frozen weights".into(),
                Box::new(|config| {
                    config.lora = Some(LoraConfig::default());
                    config.base.base_type = BaseType::Nf4;
                }),
            ));
        }
        if config.lora.is_some() && config.base.embedding_type() != BaseType::Int8 {
            changes.push((
                vec!["base.embeddings=int8".into()],
                "rounds embedding and head".into(),
                Box::new(|config| config.base.embeddings = Some(BaseType::Int8)),
            ));
        }
        for kind in [BaseType::Bf16, BaseType::Int8, BaseType::Nf4] {
            if config.lora.is_some() && kind > config.base.base_type {
                changes.push((
                    vec![format!("base.type={}", kind.name())],
                    "rounds the frozen weights".into(),
                    Box::new(move |config| config.base.base_type = kind),
                ));
            }
        }
        if train.moments == MomentType::F32 {
            changes.push((
                vec!["train.moments=8bit".into()],
                "rounds the moments".into(),
                Box::new(|config| config.train.moments = MomentType::EightBit),
            ));
        }
        let accumulate = train.rows_per_step();
        let divides = train.batch_size > 1 || train.tokens_per_batch.is_some();
        // `train.accumulate` has a maximum.
        if divides && accumulate <= MOST_ROWS_OF_STEP {
            changes.push((
                vec!["train.batch_size=1".into(), format!("train.accumulate={accumulate}")],
                "same steps in smaller micro-batches".into(),
                Box::new(move |config| {
                    config.train.batch_size = 1;
                    config.train.accumulate = accumulate;
                    config.train.tokens_per_batch = None;
                }),
            ));
        }
        changes
    }

    /// Returns the five longest training rows, each once.
    pub(super) fn longest_rows(&self) -> Vec<LongRow> {
        const SHOWN: usize = 5;
        let Some(prepared) = self.prepared else { return vec![] };
        let mut rows: Vec<(u32, [u32; 2])> =
            self.order.rows.iter().map(|row| (row.inputs, row.place)).collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        rows.dedup();
        let sources = prepared.mixture.pairs().sources();
        let row = |(inputs, [source, record]): (u32, [u32; 2])| LongRow {
            label: sources[source as usize].label(record as usize),
            tokens: inputs as usize + 1,
        };
        rows.into_iter().take(SHOWN).map(row).collect()
    }

    /// Returns what lower limits would save: those that leave out 1%, 5%, 10%, and 50% of the rows. Without
    /// data: three quarters, half, and a quarter of the limit.
    pub(super) fn shorter_rows(&self, now: &MemoryPlan) -> Result<Vec<ShorterRows>> {
        let mut tokens: Vec<usize> =
            self.order.rows.iter().map(|row| row.inputs as usize + 1).collect();
        tokens.sort_unstable();
        let Some(longest) = tokens.last().copied() else { return Ok(vec![]) };
        let limits: Vec<usize> = match self.prepared {
            Some(_) => {
                let at = |share: f64| tokens[((tokens.len() - 1) as f64 * share) as usize];
                [0.99, 0.95, 0.9, 0.5].map(at).to_vec()
            }
            None => [0.75, 0.5, 0.25].map(|share| (longest as f64 * share) as usize).to_vec(),
        };
        let mut lines: Vec<ShorterRows> = vec![];
        for max_length in limits {
            if max_length >= longest || lines.iter().any(|line| line.max_length == max_length) {
                continue;
            }
            let batch: MicroBatch = match self.prepared {
                Some(_) => self.order.batches(&self.config.train, max_length).largest(),
                None => {
                    let all = self.order.batches(&self.config.train, usize::MAX).largest();
                    all.shortened(max_length as f64 / longest as f64)
                }
            };
            let mut changed = self.config.clone();
            changed.data.max_length = max_length;
            let peak = self.memory(&changed, batch)?.peak;
            let beyond = tokens.len() - tokens.partition_point(|count| *count <= max_length);
            let left_out = match self.prepared {
                Some(_) => beyond as f64 / tokens.len() as f64,
                None => 0.0,
            };
            lines.push(ShorterRows { max_length, left_out, peak, saved: now.peak - peak });
        }
        lines.retain(|line| line.saved >= LEAST_SHARE * now.peak);
        Ok(lines)
    }
}
