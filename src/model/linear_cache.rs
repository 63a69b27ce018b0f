//! Cache of linear attention for generation: a state and the last inputs of the convolution for each row. Its
//! size does not depend on the number of tokens.

use super::blocks::GatedDeltaNetConfig;
use crate::ops::Sequences;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};

/// Inputs of a generation step for linear attention.
#[derive(Debug)]
pub(super) struct LinearStep {
    /// The rows of new tokens, without padding.
    sequences: Sequences,
    /// The same, with the cached inputs of the convolution before each row.
    with_earlier: Sequences,
    /// Mask of the inputs that the next step reads, `[rows, inputs, 1]`: 0 for padding, else 1. `None` if
    /// there is no padding.
    seen: Option<Tensor<3>>,
}

impl LinearStep {
    /// Returns the first step: prompts of `tokens` tokens, including the given padding on the left.
    pub(super) fn prompts(
        config: &GatedDeltaNetConfig,
        paddings: &[usize],
        tokens: usize,
        device: &Device,
    ) -> Self {
        let earlier = config.conv_kernel_dim - 1;
        let rows = |before: usize| {
            let length = before + tokens;
            let row = |(row, padding): (usize, &usize)| {
                row * length + before + padding..(row + 1) * length
            };
            Sequences::new(paddings.len() * length, paddings.iter().enumerate().map(row).collect())
        };
        // The last positions of a row, which may start before its tokens.
        let is_seen = |padding: &usize, place: usize| tokens + place >= earlier + padding;
        let of_row = |padding| (0..earlier).map(move |place| (padding, place));
        let seen = paddings.iter().flat_map(of_row);
        let seen: Vec<f32> =
            seen.map(|(padding, place)| f32::from(is_seen(padding, place))).collect();
        let seen = seen.contains(&0.0).then(|| {
            let seen = TensorData::new(seen, [paddings.len(), earlier, 1]);
            Tensor::from_data(seen, device)
        });
        Self { sequences: rows(0), with_earlier: rows(earlier), seen }
    }

    /// Returns a later step: `tokens` new tokens in each row.
    pub(super) fn later(config: &GatedDeltaNetConfig, rows: usize, tokens: usize) -> Self {
        Self {
            sequences: Sequences::rows(rows, tokens),
            with_earlier: Sequences::rows(rows, config.conv_kernel_dim - 1 + tokens),
            seen: None,
        }
    }

    /// Returns the rows of new tokens, without padding.
    pub(super) fn sequences(&self) -> &Sequences {
        &self.sequences
    }
}

/// The cache of one layer.
#[derive(Debug)]
pub(super) struct LinearCache {
    /// The last inputs of the convolution, `[rows, taps - 1, channels]`; 0 before a row's first token.
    inputs: Tensor<3>,
    /// `[rows, value_heads, key_dim, value_dim]`, in f32. Taken out while it is updated in place.
    states: Option<Tensor<4>>,
}

impl LinearCache {
    pub(super) fn new(
        config: &GatedDeltaNetConfig,
        rows: usize,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let inputs = [rows, config.conv_kernel_dim - 1, config.channels()];
        let states = [rows, config.num_value_heads, config.key_head_dim, config.value_head_dim];
        Self {
            inputs: Tensor::zeros(inputs, (device, dtype)),
            states: Some(Tensor::zeros(states, (device, DType::F32))),
        }
    }

    /// Applies a convolution to new inputs, `[rows * new, channels]`, preceded by the cached ones.
    pub(super) fn convolve(
        &mut self,
        x: Tensor<2>,
        step: &LinearStep,
        conv: impl FnOnce(Tensor<2>, &Sequences) -> Tensor<2>,
    ) -> Tensor<2> {
        let [rows, earlier, channels] = self.inputs.dims();
        if earlier == 0 {
            return conv(x, &step.with_earlier);
        }
        let new = x.dims()[0] / rows;
        let all = Tensor::cat(vec![self.inputs.clone(), x.reshape([rows, new, channels])], 1);
        let last = all.clone().narrow(1, new, earlier);
        self.inputs = match &step.seen {
            Some(seen) => {
                let seen = seen.clone().cast(last.dtype());
                last * seen
            }
            None => last,
        };
        let y = conv(all.reshape([rows * (earlier + new), channels]), &step.with_earlier);
        let y = y.reshape([rows, earlier + new, channels]).narrow(1, earlier, new);
        y.reshape([rows * new, channels])
    }

    /// Replaces the states with the next ones.
    pub(super) fn advance(
        &mut self,
        next: impl FnOnce(Tensor<4>) -> (Tensor<2>, Tensor<4>),
    ) -> Tensor<2> {
        let states = self.states.take().expect("states are put back after each use");
        let (y, states) = next(states);
        self.states = Some(states);
        y
    }

    /// Replaces rows with those of another cache.
    pub(super) fn insert(&mut self, rows: &[usize], from: &Self) {
        let mut states = self.states.take().expect("states are put back after each use");
        let of_new = from.states.as_ref().expect("states are put back after each use");
        let mut inputs = self.inputs.clone();
        for (index, row) in rows.iter().enumerate() {
            let here = *row..row + 1;
            let x = of_new.clone().narrow(0, index, 1);
            states = states.slice_assign([here.clone()], x);
            // A convolution with one tap caches nothing.
            if inputs.dims()[1] > 0 {
                let x = from.inputs.clone().narrow(0, index, 1);
                inputs = inputs.slice_assign([here], x);
            }
        }
        (self.states, self.inputs) = (Some(states), inputs);
    }

    /// Keeps only the given rows.
    pub(super) fn select(&mut self, rows: &Tensor<1, Int>) {
        self.states = self.states.take().map(|states| states.select(0, rows.clone()));
        let [_, earlier, channels] = self.inputs.dims();
        self.inputs = match earlier {
            0 => Tensor::zeros([rows.dims()[0], 0, channels], &self.inputs.device()),
            _ => self.inputs.clone().select(0, rows.clone()),
        };
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn padding_before_a_prompt_is_in_no_sequence_and_not_kept() {
        let config = GatedDeltaNetConfig::new(16, 2);
        let device = Device::flex();
        let step = LinearStep::prompts(&config, &[0, 4], 5, &device);
        assert_eq!(step.sequences.ranges(), [0..5, 9..10]);
        assert_eq!(step.with_earlier.ranges(), [3..8, 15..16]);
        let mut cache = LinearCache::new(&config, 2, DType::F32, &device);
        let x = Tensor::<2>::ones([10, config.channels()], &device);
        let y = cache.convolve(x, &step, |x, _| x);
        assert_eq!(y.dims(), [10, config.channels()]);
        let kept: Vec<f32> = cache.inputs.clone().narrow(2, 0, 1).into_data().iter().collect();
        assert_eq!(kept, [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    }
}
