//! AdamW's moments of one parameter: updating them and storing them in checkpoints.

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

/// The smallest number of elements whose moments can have 8 bits. Smaller tensors would save little. The same
/// bound as in bitsandbytes.
pub(crate) const LEAST_8BIT: usize = 4096;

/// Suffixes of the moments' names, as in PyTorch.
const PARTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Moments of a flat tensor.
#[derive(Clone)]
pub(super) enum Moments {
    F32(AdaptiveMomentumState<1>),
    EightBit(Moments8Bit),
}

impl Moments {
    /// Returns whether a tensor of `count` elements has 8-bit moments.
    fn is_8bit(kind: MomentType, count: usize) -> bool {
        kind == MomentType::EightBit && count >= LEAST_8BIT
    }

    /// Returns the number of updates so far.
    pub(super) fn time(&self) -> usize {
        match self {
            Self::F32(state) => state.time,
            Self::EightBit(moments) => moments.time,
        }
    }

    /// Returns the updated parameter and its moments. `moments` is `None` before the first update.
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

    /// Returns the tensors in a checkpoint: `NAME.exp_avg` and `NAME.exp_avg_sq`, for 8-bit moments each with
    /// a `.absmax` tensor.
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

    /// Returns the same tensors, read from an existing file.
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

    /// Reads the tensors of [`Moments::tensors`] for a parameter of `count` elements.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the moments have another type or size; otherwise as [`WeightFiles::read`].
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
                hint: "Resume with the `train.moments` of the original run".into(),
            });
        }
        let path = files.path().to_owned();
        let sized = |part: &str, len: usize, expected: usize| match len == expected {
            true => Ok(()),
            false => Err(Error::Checkpoint {
                path: path.clone(),
                what: format!("`{name}.{part}` has {len} elements, not {expected}"),
                hint: "Resume with the model that it was written for, or use another checkpoint"
                    .into(),
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
                    hint: "Use another checkpoint; this one is damaged".into(),
                });
            }
            Ok(StoredMoment { codes, scales })
        };
        let moments = [take(PARTS[0])?, take(PARTS[1])?];
        Ok(Self::EightBit(Moments8Bit::new(time, moments, device)))
    }
}
