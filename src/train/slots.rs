//! The trained parameters of a module as a flat list: what ranks divide and exchange.

use crate::error::{Error, Result};
use crate::model::tensors::{host, lazy_tensors};
use crate::ops::resident;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use std::ops::Range;

/// Returns the number of elements of each trained parameter, in module order.
pub(super) fn counts<M: Module>(module: &M) -> Vec<usize> {
    struct Visitor(Vec<usize>);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.push(param.lazy_shape().num_elements());
            }
        }
    }
    let mut visitor = Visitor(vec![]);
    module.visit(&mut visitor);
    visitor.0
}

/// Returns the names of the trained parameters, in module order.
pub(super) fn names<M: Module>(module: &M) -> Vec<String> {
    lazy_tensors(module, true).into_iter().map(|tensor| tensor.name).collect()
}

/// Returns the parameters that each rank owns: contiguous, whole, and with roughly equal numbers of elements.
pub(super) fn owned(counts: &[usize], ranks: usize) -> Vec<Range<usize>> {
    let all: usize = counts.iter().sum();
    let mut ranges: Vec<Range<usize>> = vec![0..0; ranks];
    let mut before = 0;
    for (slot, count) in counts.iter().enumerate() {
        let middle = before + count / 2;
        let rank = (middle * ranks / all.max(1)).min(ranks - 1);
        if ranges[rank].is_empty() {
            ranges[rank] = slot..slot;
        }
        ranges[rank].end = slot + 1;
        before += count;
    }
    ranges
}

/// Flattens the gradients of the trained parameters; `None` for a parameter without a gradient.
pub(super) fn flat_gradients<M: Module>(
    module: &M,
    mut gradients: GradientsParams,
) -> Vec<Option<Tensor<1>>> {
    struct Visitor<'a> {
        gradients: &'a mut GradientsParams,
        flat: Vec<Option<Tensor<1>>>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let gradient = self.gradients.remove::<D>(param.id);
                self.flat.push(gradient.map(|gradient| {
                    let count = gradient.shape().num_elements();
                    gradient.reshape([count])
                }));
            }
        }
    }
    let mut visitor = Visitor { gradients: &mut gradients, flat: vec![] };
    module.visit(&mut visitor);
    visitor.flat
}

/// Reverses [`flat_gradients`].
pub(super) fn gradients_of<M: Module>(module: &M, flat: Vec<Option<Tensor<1>>>) -> GradientsParams {
    struct Visitor {
        flat: std::vec::IntoIter<Option<Tensor<1>>>,
        gradients: GradientsParams,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad()
                && let Some(gradient) = self.flat.next().flatten()
            {
                let shape = param.lazy_shape();
                self.gradients.register(param.id, gradient.reshape::<D, _>(shape));
            }
        }
    }
    let mut visitor = Visitor { flat: flat.into_iter(), gradients: GradientsParams::new() };
    module.visit(&mut visitor);
    visitor.gradients
}

/// Serializes the values of some trained parameters.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub(super) fn parameters<M: Module>(module: &M, slots: Range<usize>) -> Result<Vec<u8>> {
    struct Visitor {
        slot: usize,
        slots: Range<usize>,
        bytes: Result<Vec<u8>, Error>,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            if let (true, Ok(bytes)) = (self.slots.contains(&self.slot), &mut self.bytes) {
                match host(param.val().inner()) {
                    Ok(host) => push_values(bytes, &host.values),
                    Err(error) => self.bytes = Err(error),
                }
            }
            self.slot += 1;
        }
    }
    let mut visitor = Visitor { slot: 0, slots, bytes: Ok(vec![]) };
    module.visit(&mut visitor);
    visitor.bytes
}

/// Sets the trained parameters that have values; the others are unchanged.
pub(super) fn with_parameters<M: Module>(module: M, values: Vec<Option<Vec<f32>>>) -> M {
    struct Mapper(std::vec::IntoIter<Option<Vec<f32>>>);
    impl ModuleMapper for Mapper {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !param.is_require_grad() {
                return param;
            }
            let Some(values) = self.0.next().flatten() else { return param };
            param.map(|old| {
                let new: Tensor<D> = resident(values, old.shape().to_vec(), &old.device());
                new.detach().require_grad()
            })
        }
    }
    module.map(&mut Mapper(values.into_iter()))
}

/// Appends numbers to a message.
pub(super) fn push_values(message: &mut Vec<u8>, values: &[f32]) {
    message.extend_from_slice(bytemuck::cast_slice(values));
}

/// Reads a message from start to end.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    from: usize,
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8], from: usize) -> Self {
        Self { rest: message, from }
    }

    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else {
            return Err(Error::Ranks {
                what: format!("rank {} sent a message that is too short", self.from),
                hint: "Start all ranks with the same program, settings, and data".into(),
            });
        };
        self.rest = rest;
        Ok(bytes)
    }

    pub fn values(&mut self, count: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes(count.saturating_mul(4))?;
        // The bytes of a message may be unaligned.
        Ok(bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_one_owner_and_the_shares_are_alike() {
        for (counts, ranks, expected) in [
            (vec![10, 10, 10, 10], 2, vec![0..2, 2..4]),
            (vec![100, 1, 1, 1], 2, vec![0..1, 1..4]),
            (vec![5], 3, vec![0..0, 0..1, 0..0]),
            (vec![], 2, vec![0..0, 0..0]),
            (vec![8, 8, 8, 8, 8, 8], 4, vec![0..1, 1..3, 3..4, 4..6]),
        ] {
            let ranges = owned(&counts, ranks);
            assert_eq!(ranges, expected);
            let mut slots: Vec<usize> = ranges.into_iter().flatten().collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..counts.len()).collect::<Vec<_>>());
        }
    }
}
