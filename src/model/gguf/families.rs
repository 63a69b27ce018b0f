//! The families that llama.cpp supports, and how it computes them.

use crate::model::architecture::Architecture;
use crate::model::rope::RopeType;

/// How llama.cpp computes a family. Sizes and other values are in the file; everything else is fixed in its
/// code.
#[derive(Clone, Copy, Debug)]
pub(super) struct GgufFamily {
    pub architecture: Architecture,
    /// Value of `general.architecture`.
    pub name: &'static str,
    /// Whether RoPE rotates adjacent pairs instead of halves, which permutes the rows of q and k.
    pub rotates_neighbors: bool,
    /// Whether sliding windows are supported.
    pub windows: bool,
    /// Whether the heads must fill the model's width, whatever the file says.
    pub heads_fill_width: bool,
    /// Whether the file must have the head, even if it is tied to the embedding.
    pub needs_head: bool,
    /// Supported RoPE scalings.
    pub scalings: &'static [RopeType],
    /// Whether YaRN's `beta_fast` and `beta_slow` and the scaling of queries by position are read.
    pub reads_betas: bool,
    /// Interval of layers without RoPE.
    pub no_rope_interval: Option<usize>,
}

const LLAMA: GgufFamily = GgufFamily {
    architecture: Architecture::Llama,
    name: "llama",
    rotates_neighbors: true,
    windows: false,
    heads_fill_width: false,
    needs_head: false,
    scalings: &[RopeType::Linear, RopeType::Llama3, RopeType::Yarn, RopeType::LongRope],
    reads_betas: false,
    no_rope_interval: None,
};

const QWEN2: GgufFamily = GgufFamily {
    architecture: Architecture::Qwen2,
    name: "qwen2",
    rotates_neighbors: false,
    heads_fill_width: true,
    scalings: &[RopeType::Linear, RopeType::Yarn],
    ..LLAMA
};

/// All families. If several share a name, the name means the first.
pub(super) const FAMILIES: [GgufFamily; 11] = [
    LLAMA,
    QWEN2,
    GgufFamily {
        architecture: Architecture::Qwen3,
        name: "qwen3",
        heads_fill_width: false,
        ..QWEN2
    },
    // It differs from Llama only by its window.
    GgufFamily { architecture: Architecture::Mistral, ..LLAMA },
    GgufFamily {
        architecture: Architecture::Smollm3,
        name: "smollm3",
        scalings: &[RopeType::Linear, RopeType::Yarn],
        no_rope_interval: Some(4),
        ..LLAMA
    },
    GgufFamily { architecture: Architecture::Granite, name: "granite", ..LLAMA },
    GgufFamily { architecture: Architecture::Olmo2, name: "olmo2", needs_head: true, ..QWEN2 },
    GgufFamily {
        architecture: Architecture::Phi3,
        name: "phi3",
        scalings: &[RopeType::Linear, RopeType::LongRope],
        ..QWEN2
    },
    GgufFamily {
        architecture: Architecture::Gemma3Text,
        name: "gemma3",
        windows: true,
        heads_fill_width: false,
        // Linear scaling skips layers with a window; YaRN would apply to them, too.
        scalings: &[RopeType::Linear],
        ..QWEN2
    },
    GgufFamily {
        architecture: Architecture::Ministral3,
        name: "mistral3",
        reads_betas: true,
        ..LLAMA
    },
    GgufFamily {
        architecture: Architecture::Qwen35Text,
        name: "qwen35",
        heads_fill_width: false,
        scalings: &[],
        ..QWEN2
    },
];

impl GgufFamily {
    /// Finds the entry of a model family.
    pub fn of(architecture: Architecture) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.architecture == architecture)
    }

    /// Finds the first entry with a name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// Returns the supported names, as a list in text.
    pub fn names() -> String {
        let mut names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        names.dedup();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}
