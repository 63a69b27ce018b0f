//! Settings of adapters.

use super::names::{ModuleNames, Patterns};
use super::regex::check_expressions;
use super::{ALL_LINEAR, FUSED, LINEAR_ATTENTION, PROJECTIONS};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Settings of LoRA adapters. Names and the matching of modules follow PEFT, mostly without its prefixes
/// `lora_` and `use_`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenLora")]
pub struct LoraConfig {
    /// Rank of the adapters, 1 to 65,536. Higher ranks can learn more, and cost more memory and time; 16 is
    /// typical.
    pub rank: usize,
    /// Scale of the adapters: their output is multiplied by `lora.alpha / lora.rank`. Unset means twice the
    /// rank.
    pub alpha: f64,
    /// Share of the adapters' inputs that training randomly sets to 0, from 0 to below 1. 0 means no dropout.
    /// Raise it against overfitting.
    pub dropout: f64,
    /// Scales the adapters' output by `lora.alpha / sqrt(lora.rank)` instead (rsLoRA, arXiv 2312.03732).
    /// Suits high ranks.
    pub rslora: bool,
    /// Linear layers that get adapters: a list of names (`q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
    /// `up_proj`, `down_proj`) or of longer path suffixes (`0.mlp.down_proj`); `all-linear`; or a regular
    /// expression that matches the whole path (`model.layers.0.self_attn.q_proj`). If a model fuses some of
    /// them (`qkv_proj`, `gate_up_proj`), list all of the fused ones or none. In a model with linear
    /// attention, a list with `q_proj`, `k_proj`, `v_proj`, and `o_proj` also covers `in_proj_qkv`,
    /// `in_proj_z`, `in_proj_b`, `in_proj_a`, and `out_proj`, unless `lora.exclude_modules` names them.
    pub target_modules: ModuleNames,
    /// Layers that get no adapter although `lora.target_modules` covers them, in the same notation. Empty
    /// means none.
    pub exclude_modules: ModuleNames,
    /// Numbers of the blocks whose layers get adapters, counted from 0. Empty means all blocks. Cannot be
    /// combined with a regular expression in `lora.target_modules`, which can select blocks itself.
    pub layers_to_transform: Vec<usize>,
    /// Name of the list of blocks that `lora.layers_to_transform` counts, such as `layers`. Only needed if a
    /// model has several lists; empty means any.
    pub layers_pattern: Vec<String>,
    /// Ranks of individual layers, by a regular expression that matches the end of their paths, as in `{
    /// "down_proj" = 32, "^model.layers.0.self_attn.q_proj" = 4 }`. The first match applies; other layers
    /// have `lora.rank`.
    pub rank_pattern: Patterns<usize>,
    /// Values of `lora.alpha` for individual layers, in the notation of `lora.rank_pattern`.
    pub alpha_pattern: Patterns<f64>,
    /// Modules that are trained in full and stored with the adapters, such as `embed_tokens`, `lm_head`, and
    /// `norm`: all modules whose paths end with one of these names. Empty means none.
    pub modules_to_save: Vec<String>,
    /// Whether an embedding that is tied to the head stays tied if `lora.modules_to_save` trains either.
    /// `false`, PEFT's default, splits it into two matrices.
    pub ensure_weight_tying: bool,
    /// Gives B a bias. Such an adapter can only be merged if the model's class has biases in these layers.
    /// Cannot be combined with `lora.use_dora`.
    pub lora_bias: bool,
    /// Trains the norm of each output's weights separately from their direction (DoRA, arXiv 2402.09353). Can
    /// help at low ranks, and makes steps slower.
    pub use_dora: bool,
}

/// [`LoraConfig`] as written in settings, in which `alpha` is optional.
#[derive(Deserialize)]
#[serde(rename = "LoraConfig", deny_unknown_fields, default)]
struct GivenLora {
    rank: usize,
    alpha: Option<f64>,
    dropout: f64,
    rslora: bool,
    target_modules: ModuleNames,
    exclude_modules: ModuleNames,
    layers_to_transform: Vec<usize>,
    layers_pattern: Vec<String>,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
    modules_to_save: Vec<String>,
    ensure_weight_tying: bool,
    lora_bias: bool,
    use_dora: bool,
}

impl Default for GivenLora {
    fn default() -> Self {
        let usual = LoraConfig::default();
        Self {
            rank: usual.rank,
            alpha: None,
            dropout: usual.dropout,
            rslora: usual.rslora,
            target_modules: usual.target_modules,
            exclude_modules: usual.exclude_modules,
            layers_to_transform: usual.layers_to_transform,
            layers_pattern: usual.layers_pattern,
            rank_pattern: usual.rank_pattern,
            alpha_pattern: usual.alpha_pattern,
            modules_to_save: usual.modules_to_save,
            ensure_weight_tying: usual.ensure_weight_tying,
            lora_bias: usual.lora_bias,
            use_dora: usual.use_dora,
        }
    }
}

impl From<GivenLora> for LoraConfig {
    fn from(given: GivenLora) -> Self {
        Self {
            rank: given.rank,
            alpha: given.alpha.unwrap_or(2.0 * given.rank as f64),
            dropout: given.dropout,
            rslora: given.rslora,
            target_modules: given.target_modules,
            exclude_modules: given.exclude_modules,
            layers_to_transform: given.layers_to_transform,
            layers_pattern: given.layers_pattern,
            rank_pattern: given.rank_pattern,
            alpha_pattern: given.alpha_pattern,
            modules_to_save: given.modules_to_save,
            ensure_weight_tying: given.ensure_weight_tying,
            lora_bias: given.lora_bias,
            use_dora: given.use_dora,
        }
    }
}

impl Default for LoraConfig {
    /// Defaults to rank 16 and alpha 32 on all linear layers.
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            target_modules: PROJECTIONS.into(),
            exclude_modules: ModuleNames::default(),
            layers_to_transform: vec![],
            layers_pattern: vec![],
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            modules_to_save: vec![],
            ensure_weight_tying: true,
            lora_bias: false,
            use_dora: false,
        }
    }
}

/// Far above any rank in use; a typo must not allocate terabytes.
const LARGEST_RANK: usize = 1 << 16;

fn refuse(key: &str, what: impl Into<String>, hint: &str) -> Result<()> {
    Err(Error::config(format!("lora.{key}"), what, hint))
}

impl LoraConfig {
    /// Returns the factor of the adapters' output in layers that no pattern matches.
    pub fn scale(&self) -> f64 {
        self.scale_of(self.rank, self.alpha)
    }

    pub(super) fn scale_of(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Returns whether `target_modules` means all linear layers.
    pub(super) fn targets_all(&self) -> bool {
        matches!(&self.target_modules, ModuleNames::Pattern(all) if all.eq_ignore_ascii_case(ALL_LINEAR))
    }

    /// Returns the settings for a model: `all-linear` becomes the names of its layers, and fused layers
    /// replace their parts.
    pub(crate) fn for_model(&self, model: &DecoderConfig) -> Self {
        let layers = model.linear_layers();
        let target_modules = match &self.target_modules {
            ModuleNames::Pattern(_) if self.targets_all() => {
                layers.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().into()
            }
            ModuleNames::Pattern(pattern) => ModuleNames::Pattern(pattern.clone()),
            ModuleNames::List(names) => {
                let mut names = names.clone();
                for (one, several) in FUSED.iter().filter(|(one, _)| layers.contains(one)) {
                    if several.iter().all(|part| names.iter().any(|name| name == part)) {
                        names.retain(|name| !several.contains(&name.as_str()));
                        names.push((*one).to_owned());
                    }
                }
                ModuleNames::List(names)
            }
        };
        Self { target_modules, ..self.clone() }
    }

    /// Like [`LoraConfig::for_model`], for settings of a user: if they cover all of attention, they also
    /// cover linear attention, or only that in a model without full attention.
    pub(crate) fn of_user(&self, model: &DecoderConfig) -> Self {
        let mut config = self.for_model(model);
        let attention = &PROJECTIONS[..4];
        if let ModuleNames::List(names) = &mut config.target_modules
            && model.has_linear()
            && attention.iter().all(|name| names.iter().any(|own| own == name))
        {
            if !model.linear_layers().contains(&attention[0]) {
                names.retain(|name| !attention.contains(&name.as_str()));
            }
            let missing =
                LINEAR_ATTENTION.iter().filter(|name| !names.iter().any(|own| own == *name));
            let missing: Vec<String> = missing.map(|name| (*name).to_owned()).collect();
            names.extend(missing);
        }
        config
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        let last = |name: &String| name.rsplit('.').next().unwrap_or_default().to_owned();
        for name in self.target_modules.list() {
            let last = last(name);
            if ["lm_head", "embed_tokens"].contains(&last.as_str()) {
                let hint = "Add it to lora.modules_to_save, which trains it in full";
                let what = format!(
                    "`{name}` is not a linear layer of a block, so it cannot have an adapter"
                );
                return refuse("target_modules", what, hint);
            }
            let all = [&PROJECTIONS[..], &LINEAR_ATTENTION].concat();
            let is_known = all.contains(&last.as_str());
            if !is_known && !FUSED.iter().any(|(one, _)| *one == last) {
                let what = format!("there is no linear layer `{name}`");
                let hint = format!("Choose from {}", all.join(", "));
                return refuse("target_modules", what, &hint);
            }
        }
        if self.target_modules.is_empty() {
            return refuse("target_modules", "it is empty", "List at least one layer");
        }
        if let Some(empty) = self.modules_to_save.iter().find(|name| name.is_empty()) {
            let what = format!("{empty:?} is not a name");
            return refuse("modules_to_save", what, "Remove it, or name a module");
        }
        self.validate_values()
    }

    /// Checks everything except the names of modules.
    ///
    /// # Errors
    /// See [`LoraConfig::validate`].
    pub(crate) fn validate_values(&self) -> Result<()> {
        let of_all = [("rank".to_owned(), self.rank)].into_iter();
        let of_some =
            self.rank_pattern.0.iter().map(|(key, rank)| (format!("rank_pattern.{key}"), *rank));
        for (key, rank) in of_all.chain(of_some) {
            if rank == 0 || rank > LARGEST_RANK {
                let hint = "Use 1 to 65536; 16 is typical";
                return refuse(&key, format!("it is {rank}"), hint);
            }
        }
        let of_all = [("alpha".to_owned(), self.alpha)].into_iter();
        let of_some = self
            .alpha_pattern
            .0
            .iter()
            .map(|(key, alpha)| (format!("alpha_pattern.{key}"), *alpha));
        for (key, alpha) in of_all.chain(of_some) {
            if !alpha.is_finite() || alpha <= 0.0 {
                return refuse(&key, format!("it is {alpha}"), "Use a positive number");
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let what = format!("it is {}", self.dropout);
            return refuse("dropout", what, "Use a share from 0 to below 1");
        }
        let is_pattern = matches!(self.target_modules, ModuleNames::Pattern(_));
        if is_pattern && !self.targets_all() && !self.layers_to_transform.is_empty() {
            let what = "it requires a list of names, but target_modules is a regular expression";
            return refuse(
                "layers_to_transform",
                what,
                "Select the blocks in the regular expression",
            );
        }
        if self.layers_to_transform.is_empty() && !self.layers_pattern.is_empty() {
            let what = "it applies to layers_to_transform, which is not set";
            return refuse(
                "layers_pattern",
                what,
                "Set lora.layers_to_transform too, or remove it",
            );
        }
        if self.use_dora && self.lora_bias {
            let what = "DoRA does not support biases, as in PEFT";
            return refuse("lora_bias", what, "Set only one of lora.lora_bias and lora.use_dora");
        }
        check_expressions(self)
    }

    /// Returns a description such as `rank 8, alpha 16, dropout 0, on q_proj, v_proj`.
    pub(crate) fn words(&self) -> String {
        let list = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>().join(", ");
        let scale = if self.rslora { ", rank-stabilized" } else { "" };
        let bias = if self.lora_bias { ", with biases" } else { "" };
        let mut text = format!(
            "rank {}, alpha {}{scale}{bias}, dropout {}, on {}",
            self.rank, self.alpha, self.dropout, self.target_modules
        );
        if !self.layers_to_transform.is_empty() {
            let numbers = list(&mut self.layers_to_transform.iter().map(usize::to_string));
            text.push_str(&format!(" of the blocks {numbers}"));
        }
        if !self.exclude_modules.is_empty() {
            text.push_str(&format!(" without {}", self.exclude_modules));
        }
        for (what, values) in [
            (
                "rank",
                list(&mut self.rank_pattern.0.iter().map(|(of, rank)| format!("{rank} for {of}"))),
            ),
            (
                "alpha",
                list(
                    &mut self.alpha_pattern.0.iter().map(|(of, alpha)| format!("{alpha} for {of}")),
                ),
            ),
        ] {
            if !values.is_empty() {
                text.push_str(&format!("; {what} {values}"));
            }
        }
        text
    }

    /// Returns the settings as stored in a checkpoint: without those that earlier versions lack, unless they
    /// differ from their defaults.
    pub(crate) fn identity(&self) -> Value {
        const NEW: [&str; 9] = [
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "ensure_weight_tying",
            "lora_bias",
            "use_dora",
        ];
        let (mut all, usual) = (json!(self), json!(Self::default()));
        if let Some(all) = all.as_object_mut() {
            all.retain(|key, value| !NEW.contains(&key.as_str()) || *value != usual[key.as_str()]);
        }
        all
    }
}
