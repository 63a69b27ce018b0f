//! AdamW's moments of one parameter: how they are updated, and how a checkpoint holds them.

use super::config::MomentType;
use crate::device;
use crate::error::{Error, Result};
use crate::model::tensors::{Elements, NamedTensor};
use crate::model::weights::WeightFiles;
use crate::ops::{AdamW, Moments8Bit, StoredMoment};
use burn::optim::AdaptiveMomentumState;
use burn::prelude::*;
use burn::tensor::TensorData;
use std::cell::RefCell;
use std::rc::Rc;

/// Elements from which a tensor's moments are of 8 bits; those of smaller ones would save little.
/// bitsandbytes has the same bound.
pub(crate) const LEAST_8BIT: usize = 4096;

/// The names of the moments after a parameter's, as PyTorch has them.
const PARTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Moments of a flat tensor.
#[derive(Clone)]
pub(super) enum Moments {
    F32(AdaptiveMomentumState<1>),
    EightBit(Moments8Bit),
}

impl Moments {
    /// Whether a tensor of so many elements has moments of 8 bits.
    fn is_8bit(kind: MomentType, count: usize) -> bool {
        kind == MomentType::EightBit && count >= LEAST_8BIT
    }

    /// The updates that they have seen.
    pub(super) fn time(&self) -> usize {
        match self {
            Self::F32(state) => state.time,
            Self::EightBit(moments) => moments.time,
        }
    }

    /// The parameter after an update, and its moments; before the first one there are none.
    pub(super) fn update(
        moments: Option<Self>,
        kind: MomentType,
        adamw: &AdamW,
        rate: f64,
        [param, gradient]: [Tensor<1>; 2],
        scale: f64,
    ) -> (Tensor<1>, Self) {
        match moments {
            Some(Self::F32(state)) => {
                let (new, state) = adamw.update(rate, param, gradient, scale, Some(state));
                (new, Self::F32(state))
            }
            None if !Self::is_8bit(kind, param.dims()[0]) => {
                let (new, state) = adamw.update(rate, param, gradient, scale, None);
                (new, Self::F32(state))
            }
            moments => {
                let moments = moments.and_then(|moments| match moments {
                    Self::EightBit(moments) => Some(moments),
                    Self::F32(_) => None,
                });
                let (new, moments) = adamw.update_8bit(rate, param, gradient, scale, moments);
                (new, Self::EightBit(moments))
            }
        }
    }

    /// Their tensors in a checkpoint: `NAME.exp_avg` and `NAME.exp_avg_sq`; those of 8 bits have a
    /// `.absmax` each beside them.
    pub(super) fn tensors(&self, name: &str) -> Vec<NamedTensor> {
        match self {
            Self::F32(state) => {
                let named = PARTS.into_iter().zip([&state.moment_1, &state.moment_2]);
                named
                    .map(|(part, moment)| {
                        NamedTensor::new(format!("{name}.{part}"), moment.clone())
                    })
                    .collect()
            }
            Self::EightBit(moments) => {
                let both = PARTS.into_iter().enumerate().flat_map(|(index, part)| {
                    let (words, scales) = moments.moment(index);
                    let len = moments.len();
                    let read =
                        move || Moments8Bit::codes_in(words.clone(), len).map_err(device::failure);
                    let codes = NamedTensor::bytes(format!("{name}.{part}"), vec![len], read);
                    [codes, NamedTensor::new(format!("{name}.{part}.absmax"), scales)]
                });
                both.collect()
            }
        }
    }

    /// The same tensors, as a file has them in which they were written before.
    pub(super) fn stored(
        files: &Rc<RefCell<WeightFiles>>,
        name: &str,
        count: usize,
        kind: MomentType,
    ) -> Vec<NamedTensor> {
        let numbers = |name: String, len: usize| {
            let (files, wanted) = (files.clone(), name.clone());
            let read = move || files.borrow_mut().read(&wanted);
            NamedTensor { name, shape: vec![len], elements: Elements::Numbers(Box::new(read)) }
        };
        let both = PARTS.into_iter().flat_map(|part| {
            let name = format!("{name}.{part}");
            if !Self::is_8bit(kind, count) {
                return vec![numbers(name, count)];
            }
            let (files, wanted) = (files.clone(), name.clone());
            let read = move || files.borrow_mut().read_bytes(&wanted);
            let scales = numbers(format!("{name}.absmax"), Moments8Bit::blocks(count));
            vec![NamedTensor::bytes(name, vec![count], read), scales]
        });
        both.collect()
    }

    /// Reads what [`Moments::tensors`] gave, for a parameter of `count` elements.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the moments are of the other type or size; else as
    /// [`WeightFiles::read`].
    pub(super) fn read(
        files: &mut WeightFiles,
        name: &str,
        time: usize,
        count: usize,
        kind: MomentType,
        device: &Device,
    ) -> Result<Self> {
        let is_8bit = Self::is_8bit(kind, count);
        let held_8bit = PARTS.iter().any(|part| files.holds(&format!("{name}.{part}.absmax")));
        if held_8bit != is_8bit {
            let (held, asked) = if is_8bit { ("f32", "8bit") } else { ("8bit", "f32") };
            return Err(Error::Checkpoint {
                path: files.path().to_owned(),
                what: format!(
                    "the moments of `{name}` are {held}, and `train.moments` asks for {asked}"
                ),
                hint: "Resume with the moments that it was made with".into(),
            });
        }
        let path = files.path().to_owned();
        let sized = |part: &str, len: usize, expected: usize| match len == expected {
            true => Ok(()),
            false => Err(Error::Checkpoint {
                path: path.clone(),
                what: format!("`{name}.{part}` has {len} elements, not {expected}"),
                hint: "It belongs to another model, or is damaged".into(),
            }),
        };
        if !is_8bit {
            let mut take = |part: &str| -> Result<Tensor<1>> {
                let host = files.read(&format!("{name}.{part}"))?;
                sized(part, host.values.len(), count)?;
                Ok(Tensor::from_data(TensorData::new(host.values, [count]), device))
            };
            let (first, second) = (take(PARTS[0])?, take(PARTS[1])?);
            return Ok(Self::F32(AdaptiveMomentumState::new(time, first, second)));
        }
        let mut take = |part: &str| -> Result<StoredMoment> {
            let codes = files.read_bytes(&format!("{name}.{part}"))?;
            sized(part, codes.len(), count)?;
            let part = format!("{part}.absmax");
            let scales = files.read(&format!("{name}.{part}"))?.values;
            sized(&part, scales.len(), Moments8Bit::blocks(count))?;
            if let Some(scale) = scales.iter().find(|scale| **scale < 0.0) {
                return Err(Error::Checkpoint {
                    path: path.clone(),
                    what: format!("`{name}.{part}` has the scale {scale}, below 0"),
                    hint: "It is damaged".into(),
                });
            }
            Ok(StoredMoment { codes, scales })
        };
        let moments = [take(PARTS[0])?, take(PARTS[1])?];
        Ok(Self::EightBit(Moments8Bit::new(time, moments, device)))
    }
}
