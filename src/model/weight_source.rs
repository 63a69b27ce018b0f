//! Where the weights of new modules come from: drawn by a seed, or read from files.

use crate::error::Result;
use crate::ops::resident;
use crate::random::Stream;
use burn::prelude::*;

/// Gives the weights of a new module by their names, which are paths as in files.
pub(super) trait WeightSource {
    /// An embedding or a vector. `deviation` is that of random matrices; vectors begin at `start`.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        deviation: f64,
        start: f32,
    ) -> Result<Tensor<D>>;

    /// The matrix of a linear layer, `[input, output]`.
    fn linear(&mut self, name: &str, sizes: [usize; 2], deviation: f64) -> Result<Tensor<2>>;
}

/// The path of a part of the module at `prefix`, which is empty for one that stands alone.
pub(super) fn path(prefix: &str, part: &str) -> String {
    match prefix {
        "" => part.to_owned(),
        prefix => format!("{prefix}.{part}"),
    }
}

/// Initial weights: normal, each tensor from its own stream, so that they do not depend on the
/// backend, on threads, or on which other tensors exist.
pub(super) struct RandomWeights<'a> {
    pub seed: u64,
    pub device: &'a Device,
}

impl WeightSource for RandomWeights<'_> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        deviation: f64,
        start: f32,
    ) -> Result<Tensor<D>> {
        if D == 1 {
            return Ok(Tensor::full(shape, start, self.device));
        }
        let mut random = Stream::new(self.seed, name, 0);
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            values.extend(random.normal_pair().map(|x| (x * deviation) as f32));
        }
        values.truncate(count);
        Ok(resident(values, shape, self.device))
    }

    fn linear(&mut self, name: &str, sizes: [usize; 2], deviation: f64) -> Result<Tensor<2>> {
        self.tensor(name, sizes, deviation, 0.0)
    }
}
