//! The families that llama.cpp has, and what it computes of each.

use crate::model::architecture::Architecture;
use crate::model::rope::RopeType;

/// What llama.cpp makes of a family. A file says sizes and numbers; what is not here and not in the file is
/// fixed in its code.
#[derive(Clone, Copy, Debug)]
pub(super) struct GgufFamily {
    pub architecture: Architecture,
    /// The name in `general.architecture`.
    pub name: &'static str,
    /// Whether it rotates neighbors in place of halves, so that rows of q and k have another order.
    pub rotates_neighbors: bool,
    /// Whether it computes sliding windows.
    pub windows: bool,
    /// Whether heads fill the width of the model, whatever the file says.
    pub heads_fill_width: bool,
    /// Whether the head must be in the file, even where it is the embedding.
    pub needs_head: bool,
    /// Scalings of RoPE that it reads.
    pub scalings: &'static [RopeType],
    /// Whether it reads YaRN's `beta_fast` and `beta_slow`, and the scale of queries by position.
    pub reads_betas: bool,
    /// Every how many layers one is not rotated.
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

/// All of them. A name stands for the first family that has it.
pub(super) const FAMILIES: [GgufFamily; 11] = [
    LLAMA,
    QWEN2,
    GgufFamily {
        architecture: Architecture::Qwen3,
        name: "qwen3",
        heads_fill_width: false,
        ..QWEN2
    },
    // What it has beyond Llama is a window.
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
        // Layers with a window are not scaled by it; YaRN would reach them too.
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
    /// That of a family of models.
    pub fn of(architecture: Architecture) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.architecture == architecture)
    }

    /// That of a name in files.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// The names that are read and written.
    pub fn names() -> String {
        let mut names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        names.dedup();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}
