//! Sources of the weights of new modules: random, from a seed, or read from files.

use super::base_weights::{BaseType, BaseWeights};
use super::matrix::{MatrixRole, NewMatrix};
use super::tensors::HostTensor;
use crate::error::Result;
use crate::ops::resident;
use crate::random::Stream;
use burn::prelude::*;
use burn::tensor::TensorData;

/// Provides the weights of a new module, by their names in files.
pub(super) trait WeightSource {
    /// Returns a tensor of any shape. Random sources draw it with `initial` from a separate stream.
    fn numbers<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        initial: impl FnOnce(&mut Stream) -> Vec<f32>,
    ) -> Result<Tensor<D>>;

    /// Returns a vector. Random sources fill it with `start`.
    fn vector(&mut self, name: &str, width: usize, start: f32) -> Result<Tensor<1>> {
        self.numbers(name, [width], |_| vec![start; width])
    }

    /// Returns a matrix: `[input, output]`, or `[vocabulary, width]` for an embedding. Random sources draw it
    /// with the standard deviation `deviation`.
    fn matrix(
        &mut self,
        name: &str,
        sizes: [usize; 2],
        role: MatrixRole,
        deviation: f64,
    ) -> Result<NewMatrix>;
}

/// Returns the path of a part of the module at `prefix`, which is empty for a standalone module.
pub(super) fn path(prefix: &str, part: &str) -> String {
    match prefix {
        "" => part.to_owned(),
        prefix => format!("{prefix}.{part}"),
    }
}

/// Normal initial weights. Each tensor has its own random stream, so weights do not depend on the backend, on
/// threads, or on other tensors.
pub(super) struct RandomWeights<'a> {
    pub seed: u64,
    pub device: &'a Device,
    pub base: BaseWeights,
}

impl<'a> RandomWeights<'a> {
    /// Weights in f32.
    pub fn new(seed: u64, device: &'a Device) -> Self {
        Self { seed, device, base: BaseWeights::default() }
    }
}

/// Draws `count` normal numbers with a standard deviation.
pub(super) fn normal(random: &mut Stream, count: usize, deviation: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        values.extend(random.normal_pair().map(|x| (x * deviation) as f32));
    }
    values.truncate(count);
    values
}

impl WeightSource for RandomWeights<'_> {
    fn numbers<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        initial: impl FnOnce(&mut Stream) -> Vec<f32>,
    ) -> Result<Tensor<D>> {
        let values = initial(&mut Stream::new(self.seed, name, 0));
        Ok(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    fn matrix(
        &mut self,
        name: &str,
        sizes: [usize; 2],
        role: MatrixRole,
        deviation: f64,
    ) -> Result<NewMatrix> {
        let values = normal(&mut Stream::new(self.seed, name, 0), sizes[0] * sizes[1], deviation);
        if self.base.type_of(role) == BaseType::F32 {
            return Ok(NewMatrix::Dense(resident(values, sizes, self.device)));
        }
        let host = HostTensor { shape: sizes.to_vec(), values };
        let host = if role == MatrixRole::Embedding { host } else { host.transposed() };
        Ok(NewMatrix::stored(host, role, &self.base, self.device))
    }
}
