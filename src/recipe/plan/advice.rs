//! What would save memory: settings, each by itself, and the longest rows.

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
    /// What to set, as `--set` takes it, each a `KEY=VALUE`.
    pub settings: Vec<String>,
    /// What it costs, in words.
    pub price: String,
    /// The most memory then, in bytes.
    pub peak: f64,
    /// How much less that is.
    pub saved: f64,
    /// Whether it would fit then, where that is known.
    pub fits: Option<bool>,
}

/// A row that is among the longest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LongRow {
    /// Source and place.
    pub label: String,
    /// All of its tokens.
    pub tokens: usize,
}

/// A lower limit of rows' lengths.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ShorterRows {
    /// The limit, `data.max_length`.
    pub max_length: usize,
    /// The share of the training's rows that it leaves out.
    pub left_out: f64,
    /// The most memory then, in bytes.
    pub peak: f64,
    /// How much less that is.
    pub saved: f64,
}

/// A change of settings.
type Change = dyn Fn(&mut RunConfig);

/// The least share of the peak that is worth telling.
const LEAST_SHARE: f64 = 0.02;

impl Case<'_> {
    /// Settings that would save memory, the largest saving first; at the end all of them together.
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
        // Of several types of the base the smallest is part of all.
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

    /// Settings that may save memory: what to set, what it costs, and the change.
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
                "adapters are trained, not all weights".into(),
                Box::new(|config| config.lora = Some(LoraConfig::default())),
            ));
            changes.push((
                vec!["lora.rank=16".into(), "base.type=nf4".into()],
                "adapters are trained, beside weights that are rounded".into(),
                Box::new(|config| {
                    config.lora = Some(LoraConfig::default());
                    config.base.base_type = BaseType::Nf4;
                }),
            ));
        }
        if config.lora.is_some() && config.base.embedding_type() != BaseType::Int8 {
            changes.push((
                vec!["base.embeddings=int8".into()],
                "embedding and head are rounded".into(),
                Box::new(|config| config.base.embeddings = Some(BaseType::Int8)),
            ));
        }
        for kind in [BaseType::Bf16, BaseType::Int8, BaseType::Nf4] {
            if config.lora.is_some() && kind > config.base.base_type {
                changes.push((
                    vec![format!("base.type={}", kind.name())],
                    "frozen weights are rounded".into(),
                    Box::new(move |config| config.base.base_type = kind),
                ));
            }
        }
        if train.moments == MomentType::F32 {
            changes.push((
                vec!["train.moments=8bit".into()],
                "moments are rounded".into(),
                Box::new(|config| config.train.moments = MomentType::EightBit),
            ));
        }
        let accumulate = train.rows_per_step();
        let divides = train.batch_size > 1 || train.tokens_per_batch.is_some();
        // Settings have a limit.
        if divides && accumulate <= MOST_ROWS_OF_STEP {
            changes.push((
                vec!["train.batch_size=1".into(), format!("train.accumulate={accumulate}")],
                "the same steps in smaller micro-batches".into(),
                Box::new(move |config| {
                    config.train.batch_size = 1;
                    config.train.accumulate = accumulate;
                    config.train.tokens_per_batch = None;
                }),
            ));
        }
        changes
    }

    /// The five longest rows that are trained on, each once.
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

    /// What lower limits would save: those that leave out a hundredth, a twentieth and a tenth of the
    /// rows; without data three quarters, half and a quarter of the limit.
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
