//! How llama.cpp has a tensor otherwise than a model folder: the order of rows, norms that scale by one and
//! their weight.

use super::families::GgufFamily;
use crate::model::config::DecoderConfig;
use crate::model::tensors::HostTensor;

/// What is done to a tensor on its way from a folder to llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// In each of so many heads, rows of the two halves take turns.
    Neighbors(usize),
    /// 1 is added.
    PlusOne,
}

impl Change {
    /// That of a tensor, by its name in folders.
    pub fn of(config: &DecoderConfig, family: &GgufFamily, name: &str) -> Self {
        if family.rotates_neighbors {
            for (part, heads) in [
                ("self_attn.q_proj", config.num_attention_heads),
                ("self_attn.k_proj", config.num_key_value_heads),
            ] {
                if name.contains(part) {
                    return Self::Neighbors(heads);
                }
            }
        }
        let plus_one = config.architecture.properties().norm_weight_plus_one;
        if plus_one && name.ends_with("norm.weight") { Self::PlusOne } else { Self::None }
    }

    /// A tensor of a folder as llama.cpp has it.
    pub fn apply(self, tensor: HostTensor) -> HostTensor {
        match self {
            Self::None => tensor,
            Self::PlusOne => shifted(tensor, 1.0),
            Self::Neighbors(heads) => {
                with_rows(tensor, heads, |row, half| row / 2 + row % 2 * half)
            }
        }
    }

    /// A tensor of llama.cpp's as folders have it.
    pub fn undo(self, tensor: HostTensor) -> HostTensor {
        match self {
            Self::None => tensor,
            Self::PlusOne => shifted(tensor, -1.0),
            Self::Neighbors(heads) => {
                with_rows(tensor, heads, |row, half| row % half * 2 + row / half)
            }
        }
    }

    /// The row of llama.cpp's tensor of so many rows that is `row` in the folder's.
    pub fn undone_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Neighbors(heads) => {
                let of_head = rows / heads;
                let (head, row, half) = (row / of_head, row % of_head, of_head / 2);
                head * of_head + row % half * 2 + row / half
            }
            Self::None | Self::PlusOne => row,
        }
    }
}

fn shifted(mut tensor: HostTensor, by: f32) -> HostTensor {
    tensor.values.iter_mut().for_each(|value| *value += by);
    tensor
}

/// The tensor with other rows in each head: which was there, by the place in the head and half its rows.
fn with_rows(
    tensor: HostTensor,
    heads: usize,
    source: impl Fn(usize, usize) -> usize,
) -> HostTensor {
    let (rows, width) = (tensor.shape[0], tensor.shape.get(1).copied().unwrap_or(1));
    let of_head = rows / heads;
    let mut values = Vec::with_capacity(tensor.values.len());
    for row in 0..rows {
        let from = row / of_head * of_head + source(row % of_head, of_head / 2);
        values.extend(&tensor.values[from * width..(from + 1) * width]);
    }
    HostTensor { values, ..tensor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_halves_become_neighbors_and_come_back() {
        let tensor = HostTensor { shape: vec![8, 1], values: (0..8u8).map(f32::from).collect() };
        let change = Change::Neighbors(2);
        let there = change.apply(tensor.clone());
        assert_eq!(there.values, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        for row in 0..8 {
            assert_eq!(there.values[change.undone_row(row, 8)], tensor.values[row]);
        }
        assert_eq!(change.undo(there), tensor);
        let shifted = Change::PlusOne.apply(tensor.clone());
        assert_eq!((shifted.values[0], Change::PlusOne.undo(shifted)), (1.0, tensor));
    }
}
