//! Differences between tensors in model folders and in llama.cpp: the order of rows, norms that store
//! `1 + weight`, and decays instead of their logarithms.

use super::families::GgufFamily;
use crate::model::config::DecoderConfig;
use crate::model::tensors::HostTensor;

/// The change of a tensor from a folder to llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// In each head (the value is their number), interleaves the rows of the two halves.
    Neighbors(usize),
    /// Adds 1.
    PlusOne,
    /// Interleaves the value heads of linear attention by key head, from a row on.
    ValueRows(ValueHeads, usize),
    /// The same for columns.
    ValueColumns(ValueHeads),
    /// Negates the exponential, and reorders rows the same way.
    Decay(ValueHeads),
}

/// The order of value heads. Folders group them by key head; llama.cpp has the first ones of all key heads,
/// then the second ones, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValueHeads {
    key_heads: usize,
    /// Value heads per key head.
    group: usize,
    /// Rows or columns per value head.
    width: usize,
}

impl ValueHeads {
    /// Returns the index in folders of the row or column at `place` in llama.cpp.
    fn source(self, place: usize) -> usize {
        let Self { key_heads, group, width } = self;
        let (head, within) = (place / width, place % width);
        (head % key_heads * group + head / key_heads) * width + within
    }

    /// Returns the inverse order.
    fn turned(self) -> Self {
        Self { key_heads: self.group, group: self.key_heads, ..self }
    }
}

impl Change {
    /// Returns the change of a tensor, by its name in folders.
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
        if let Some((_, part)) = name.split_once(".linear_attn.") {
            return Self::of_linear(config, part);
        }
        let plus_one = config.architecture.properties().norm_weight_plus_one;
        if plus_one && name.ends_with("norm.weight") { Self::PlusOne } else { Self::None }
    }

    /// Returns the change of a part of linear attention.
    fn of_linear(config: &DecoderConfig, part: &str) -> Self {
        let Some(linear) = config.any_linear_attention() else { return Self::None };
        let key_heads = linear.num_key_heads;
        let heads =
            |width| ValueHeads { key_heads, group: linear.num_value_heads / key_heads, width };
        let values = heads(linear.value_head_dim);
        match part.trim_end_matches(".weight") {
            "in_proj_qkv" | "conv1d" => Self::ValueRows(values, 2 * linear.key_width()),
            "in_proj_z" => Self::ValueRows(values, 0),
            "in_proj_a" | "in_proj_b" | "dt_bias" => Self::ValueRows(heads(1), 0),
            "A_log" => Self::Decay(heads(1)),
            "out_proj" => Self::ValueColumns(values),
            _ => Self::None,
        }
    }

    /// Returns whether it affects a matrix's columns, which belong to A in an adapter.
    pub fn is_of_columns(self) -> bool {
        matches!(self, Self::ValueColumns(_))
    }

    /// Converts a tensor from a folder to llama.cpp.
    pub fn apply(self, tensor: HostTensor) -> HostTensor {
        match self {
            Self::None => tensor,
            Self::PlusOne => shifted(tensor, 1.0),
            Self::Neighbors(heads) => {
                with_rows(tensor, heads, |row, half| row / 2 + row % 2 * half)
            }
            Self::ValueRows(heads, first) => with_value_rows(tensor, heads, first),
            Self::ValueColumns(heads) => with_value_columns(tensor, heads),
            Self::Decay(heads) => {
                with_value_rows(mapped(tensor, |logarithm| -logarithm.exp()), heads, 0)
            }
        }
    }

    /// Converts a tensor from llama.cpp to a folder.
    pub fn undo(self, tensor: HostTensor) -> HostTensor {
        match self {
            Self::None => tensor,
            Self::PlusOne => shifted(tensor, -1.0),
            Self::Neighbors(heads) => {
                with_rows(tensor, heads, |row, half| row % half * 2 + row / half)
            }
            Self::ValueRows(heads, first) => with_value_rows(tensor, heads.turned(), first),
            Self::ValueColumns(heads) => with_value_columns(tensor, heads.turned()),
            Self::Decay(heads) => {
                mapped(with_value_rows(tensor, heads.turned(), 0), |decay| (-decay).ln())
            }
        }
    }

    /// Returns the row of llama.cpp's tensor, which has `rows` rows, that becomes row `row` in folders.
    pub fn undone_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Neighbors(heads) => {
                let of_head = rows / heads;
                let (head, row, half) = (row / of_head, row % of_head, of_head / 2);
                head * of_head + row % half * 2 + row / half
            }
            Self::ValueRows(heads, first) if row >= first => {
                first + heads.turned().source(row - first)
            }
            Self::Decay(heads) => heads.turned().source(row),
            Self::None | Self::PlusOne | Self::ValueRows(..) | Self::ValueColumns(_) => row,
        }
    }
}

fn shifted(tensor: HostTensor, by: f32) -> HostTensor {
    mapped(tensor, |value| value + by)
}

fn mapped(mut tensor: HostTensor, f: impl Fn(f32) -> f32) -> HostTensor {
    tensor.values.iter_mut().for_each(|value| *value = f(*value));
    tensor
}

/// Reorders the rows from `first` on.
fn with_value_rows(tensor: HostTensor, heads: ValueHeads, first: usize) -> HostTensor {
    let rows = tensor.shape[0];
    let width = tensor.values.len() / rows.max(1);
    let source = |row: usize| if row < first { row } else { first + heads.source(row - first) };
    let values = (0..rows).flat_map(|row| {
        let from = source(row) * width;
        tensor.values[from..from + width].iter().copied()
    });
    HostTensor { values: values.collect(), ..tensor }
}

/// Reorders the columns.
fn with_value_columns(tensor: HostTensor, heads: ValueHeads) -> HostTensor {
    let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
    let values = tensor.values.chunks_exact(columns);
    let values =
        values.flat_map(|row| (0..columns).map(|column| row[heads.source(column)])).collect();
    HostTensor { values, ..tensor }
}

/// Reorders the rows of each head. `source` maps a row of the head and half the number of rows to the old
/// row.
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
        let heads = ValueHeads { key_heads: 2, group: 3, width: 1 };
        let change = Change::ValueRows(heads, 2);
        let there = change.apply(tensor.clone());
        assert_eq!(there.values, [0.0, 1.0, 2.0, 5.0, 3.0, 6.0, 4.0, 7.0]);
        for row in 0..8 {
            assert_eq!(there.values[change.undone_row(row, 8)], tensor.values[row]);
        }
        assert_eq!(change.undo(there), tensor);
        let six = HostTensor { shape: vec![1, 6], values: tensor.values[2..].to_vec() };
        let columns = Change::ValueColumns(heads);
        assert_eq!(columns.apply(six.clone()).values, [2.0, 5.0, 3.0, 6.0, 4.0, 7.0]);
        assert_eq!(columns.undo(columns.apply(six.clone())), six);
        let shifted = Change::PlusOne.apply(tensor.clone());
        assert_eq!((shifted.values[0], Change::PlusOne.undo(shifted)), (1.0, tensor));
    }
}
