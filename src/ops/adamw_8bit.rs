//! AdamW with 8-bit moments: about 2 bytes of state per parameter instead of 8.
//!
//! The moments are stored as codes of a dynamic map, in blocks of 256. Each block has a scale, its largest
//! magnitude. An update decodes a block to f32, applies the update of [`AdamW`] (parameters use the new f32
//! moments), and encodes the moments again. The map, blocks, order, and rounding match
//! `bitsandbytes.optim.AdamW8bit` 0.50 on the CPU.
//!
//! That library rounds a moment to one of 65,536 steps over -1..1 before it takes the nearest code, so values
//! below 1.5e-5 of the block's maximum get the code of 1.5e-5. Its portable implementation takes the nearest
//! code directly. With the rounding, updates for such small second moments are smaller, and no update is
//! divided by the root of a second moment that was rounded to 0.
//!
//! Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.

use super::adamw::{AdamW, Factors, portable_update};
use super::backends::{cast, dispatched, for_each_portable_backend, wide};
use super::decoding::unpack_bytes;
use super::dynamic_map::{BLOCK, DynamicMap, SIGNED, STEPS, UNSIGNED};

use burn::backend::tensor::{Device as DeviceOf, FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::tensor::{
    DType, Device, FloatDType, Int, IntDType, Shape, Slice, Tensor, TensorData, TensorReadError,
};

/// Codes per word, the first in the lowest byte.
const IN_WORD: usize = 4;

/// The parameter, and the codes and scales of both moments, after an update.
type Updated<B> = (FloatTensor<B>, IntTensor<B>, FloatTensor<B>, IntTensor<B>, FloatTensor<B>);

/// The update on plain backend tensors: `param` and `grad` are flat, `codes` are i32 words for whole blocks,
/// and `scales` has one number per block.
pub(crate) trait AdamW8BitKernel: Backend {
    /// Returns the new parameter, codes, and scales.
    fn adamw_8bit_update(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        first: (IntTensor<Self>, FloatTensor<Self>),
        second: (IntTensor<Self>, FloatTensor<Self>),
        factors: Factors,
    ) -> Updated<Self> {
        portable_update_8bit::<Self>(param, grad, first, second, factors)
    }
}

for_each_portable_backend! { AdamW8BitKernel {} }

fn portable_update_8bit<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    first: (IntTensor<B>, FloatTensor<B>),
    second: (IntTensor<B>, FloatTensor<B>),
    factors: Factors,
) -> Updated<B> {
    let [len] = param.shape().dims();
    let m = values_of::<B>(first, &SIGNED, len);
    let v = values_of::<B>(second, &UNSIGNED, len);
    let (param, m, v) = portable_update::<B>(param, grad, m, v, factors);
    let (codes_1, scales_1) = codes_of::<B>(m, &SIGNED);
    let (codes_2, scales_2) = codes_of::<B>(v, &UNSIGNED);
    (param, codes_1, scales_1, codes_2, scales_2)
}

/// Decodes the first `len` values.
fn values_of<B: Backend>(
    (codes, scales): (IntTensor<B>, FloatTensor<B>),
    map: &DynamicMap,
    len: usize,
) -> FloatTensor<B> {
    let [blocks] = scales.shape().dims();
    let dtype = FloatDType::from(scales.dtype());
    let values = TensorData::new(map.values.to_vec(), [256]);
    let values = cast::<B>(B::float_from_data(values, &scales.device()), dtype);
    let shares = B::float_select(values, 0, unpack_bytes::<B>(codes));
    let shares = B::float_reshape(shares, Shape::new([blocks, BLOCK]));
    let all = B::float_mul(shares, B::float_reshape(scales, Shape::new([blocks, 1])));
    let all = B::float_reshape(all, Shape::new([blocks * BLOCK]));
    B::float_slice(all, &[Slice::from(0..len)])
}

/// Encodes values as words for whole blocks, with their scales.
fn codes_of<B: Backend>(
    values: FloatTensor<B>,
    map: &DynamicMap,
) -> (IntTensor<B>, FloatTensor<B>) {
    let [len] = values.shape().dims();
    let blocks = len.div_ceil(BLOCK);
    let (device, dtype) = (values.device(), FloatDType::from(values.dtype()));
    let rest = blocks * BLOCK - len;
    let padded = match rest {
        0 => values,
        _ => {
            let zeros = B::float_zeros(Shape::new([rest]), &device, dtype);
            B::float_cat(vec![values, zeros], 0)
        }
    };
    let padded = B::float_reshape(padded, Shape::new([blocks, BLOCK]));
    let scales = B::float_max_dim(B::float_abs(padded.clone()), 1);
    let shares = B::float_div(padded, B::float_clamp_min(scales.clone(), 1e-38.into()));
    // A block of zeros gets code 0, although the value of code 0 is not 0.
    let steps = B::float_mul(
        B::float_add_scalar(shares, 1.0.into()),
        B::float_mul_scalar(B::float_sign(scales.clone()), (STEPS as f64 / 2.0).into()),
    );
    let steps = B::float_floor(B::float_add_scalar(steps, 0.5.into()));
    // Some GPUs do not round quotients correctly, so they may exceed 1.
    let steps = B::float_clamp(steps, 0.0.into(), (STEPS as f64).into());
    // Padding gets code 0.
    let steps = B::float_reshape(steps, Shape::new([blocks * BLOCK]));
    let steps = B::float_slice(steps, &[Slice::from(0..len)]);
    let codes = looked_up::<B>(B::float_into_int(steps, IntDType::I32), map, &device);
    let codes = match rest {
        0 => codes,
        _ => {
            let zeros = B::int_zeros(Shape::new([rest]), &device, IntDType::I32);
            B::int_cat(vec![codes, zeros], 0)
        }
    };
    (packed::<B>(codes), B::float_reshape(scales, Shape::new([blocks])))
}

/// Looks up the codes of steps.
fn looked_up<B: Backend>(
    steps: IntTensor<B>,
    map: &DynamicMap,
    device: &DeviceOf<B>,
) -> IntTensor<B> {
    let words = TensorData::new(words_of(&map.codes[..]), [(STEPS + 1) / IN_WORD]);
    let words = B::int_from_data(words, device);
    let places = B::bitwise_and_scalar(steps.clone(), 3.into());
    let words = B::int_select(words, 0, B::bitwise_right_shift_scalar(steps, 2.into()));
    let shifted = B::bitwise_right_shift(words, B::int_mul_scalar(places, 8.into()));
    B::bitwise_and_scalar(shifted, 0xff.into())
}

/// Packs codes into words.
fn packed<B: Backend>(codes: IntTensor<B>) -> IntTensor<B> {
    let [count] = codes.shape().dims();
    let words = count / IN_WORD;
    let codes = B::int_reshape(codes, Shape::new([words, IN_WORD]));
    let place = |place: usize| {
        let part = [Slice::from(0..words), Slice::from(place..place + 1)];
        let codes = B::int_slice(codes.clone(), &part);
        if place + 1 < IN_WORD {
            return B::bitwise_left_shift_scalar(codes, (8 * place as i64).into());
        }
        // The sign of a word is the top bit of its last code; shifting into it would overflow on ndarray.
        let signed = B::int_sub_scalar(B::bitwise_xor_scalar(codes, 128.into()), 128.into());
        B::int_mul_scalar(signed, (1i64 << 24).into())
    };
    let all = (1..IN_WORD).map(place).fold(place(0), B::bitwise_or);
    B::int_reshape(all, Shape::new([words]))
}

/// Packs codes into words on the host.
fn words_of(codes: &[u8]) -> Vec<i32> {
    codes.as_chunks::<IN_WORD>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
}

// Updates happen off the autodiff graph.
dispatched! {
    []
    #[allow(clippy::type_complexity, reason = "the macro takes no names of tuples")]
    trait AdamW8BitOps {
        fn adamw_8bit_step(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            codes_1: IntTensor<Self>,
            scales_1: FloatTensor<Self>,
            codes_2: IntTensor<Self>,
            scales_2: FloatTensor<Self>,
            factors: Factors,
        ) -> (
            FloatTensor<Self>,
            IntTensor<Self>,
            FloatTensor<Self>,
            IntTensor<Self>,
            FloatTensor<Self>,
        ) {
            let (first, second) = ((codes_1, scales_1), (codes_2, scales_2));
            <Self as AdamW8BitKernel>::adamw_8bit_update(param, grad, first, second, factors)
        }
    }
}

/// An 8-bit moment in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMoment {
    /// One code per element.
    pub codes: Vec<u8>,
    /// The largest magnitude of each block of 256; the last block may be shorter.
    pub scales: Vec<f32>,
}

/// Both 8-bit moments of a flat tensor and the number of updates.
#[derive(Clone, Debug)]
pub struct Moments8Bit {
    /// Number of updates so far.
    pub time: usize,
    len: usize,
    codes: [Tensor<1, Int>; 2],
    scales: [Tensor<1>; 2],
}

impl Moments8Bit {
    /// Creates moments from stored ones, the first moment first.
    ///
    /// # Panics
    /// If the two moments differ in their number of codes, or the number of scales is not one per block.
    pub fn new(time: usize, moments: [StoredMoment; 2], device: &Device) -> Self {
        let len = moments[0].codes.len();
        let blocks = len.div_ceil(BLOCK);
        for moment in &moments {
            let fits = moment.codes.len() == len && moment.scales.len() == blocks;
            assert!(fits, "AdamW: codes and scales of the moments do not fit");
        }
        let [first, second] = moments.map(|mut moment| {
            moment.codes.resize(blocks * BLOCK, 0);
            let words = TensorData::new(words_of(&moment.codes), [moment.codes.len() / IN_WORD]);
            let scales = TensorData::new(moment.scales, [blocks]);
            let words = Tensor::<1, Int>::from_data(words, (device, DType::I32));
            (words, Tensor::<1>::from_data(scales, (device, DType::F32)))
        });
        Self { time, len, codes: [first.0, second.0], scales: [first.1, second.1] }
    }

    /// Returns zero moments, before the first update of a tensor.
    fn zeros(tensor: &Tensor<1>) -> Self {
        let (len, device) = (tensor.dims()[0], tensor.device());
        let blocks = len.div_ceil(BLOCK);
        let words = blocks * BLOCK / IN_WORD;
        let codes = || Tensor::<1, Int>::zeros([words], (&device, DType::I32));
        let dtype = DType::from(wide(tensor.dtype()));
        let scales = || Tensor::<1>::zeros([blocks], (&device, dtype));
        Self { time: 0, len, codes: [codes(), codes()], scales: [scales(), scales()] }
    }

    /// Returns the number of elements in the tensor.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the size in bytes of codes and scales on the device.
    pub fn bytes(&self) -> usize {
        let words: usize = self.codes.iter().map(|codes| codes.dims()[0] * size_of::<i32>()).sum();
        let scales = self.scales.iter();
        words + scales.map(|scales| scales.dims()[0] * scales.dtype().size()).sum::<usize>()
    }

    /// Returns the codes of the first (0) or second (1) moment, in words, and its scales.
    pub(crate) fn moment(&self, index: usize) -> (Tensor<1, Int>, Tensor<1>) {
        (self.codes[index].clone(), self.scales[index].clone())
    }

    /// Returns the number of scales for a tensor of `len` elements.
    pub(crate) fn blocks(len: usize) -> usize {
        len.div_ceil(BLOCK)
    }

    /// Reads the first `len` codes from words.
    pub(crate) fn codes_in(words: Tensor<1, Int>, len: usize) -> Result<Vec<u8>, TensorReadError> {
        let words = words.try_into_vec_as::<i32>()?;
        let mut codes: Vec<u8> = words.into_iter().flat_map(i32::to_le_bytes).collect();
        codes.truncate(len);
        Ok(codes)
    }

    /// Reads both moments, the first moment first.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn stored(&self) -> Result<[StoredMoment; 2], TensorReadError> {
        let stored = |index: usize| -> Result<StoredMoment, TensorReadError> {
            let (words, scales) = self.moment(index);
            let codes = Self::codes_in(words, self.len)?;
            Ok(StoredMoment { codes, scales: scales.try_into_vec_as::<f32>()? })
        };
        Ok([stored(0)?, stored(1)?])
    }

    /// Reads both moments as decoded values, the first moment first.
    ///
    /// # Errors
    /// See [`Moments8Bit::stored`].
    pub fn values(&self) -> Result<[Vec<f32>; 2], TensorReadError> {
        let values = |moment: StoredMoment, map: &DynamicMap| {
            let blocks = moment.codes.chunks(BLOCK).zip(&moment.scales);
            let of_block = |(codes, scale): (&[u8], &f32)| -> Vec<f32> {
                codes.iter().map(|code| map.values[usize::from(*code)] * scale).collect()
            };
            blocks.flat_map(of_block).collect()
        };
        let [first, second] = self.stored()?;
        Ok([values(first, &SIGNED), values(second, &UNSIGNED)])
    }
}

impl AdamW {
    /// Like [`AdamW::update`], for a flat tensor with 8-bit moments. `None` means zero moments.
    ///
    /// # Panics
    /// If the sizes of the parameter, the gradient, and the moments differ or are 0.
    pub fn update_8bit(
        &self,
        lr: f64,
        tensor: Tensor<1>,
        grad: Tensor<1>,
        grad_scale: f64,
        moments: Option<Moments8Bit>,
    ) -> (Tensor<1>, Moments8Bit) {
        let mut moments = moments.unwrap_or_else(|| Moments8Bit::zeros(&tensor));
        assert!(moments.len > 0, "AdamW: no elements");
        for (what, len) in [("gradient", grad.dims()[0]), ("moments", moments.len)] {
            assert_eq!(tensor.dims()[0], len, "AdamW: the sizes of parameter and {what} differ");
        }
        moments.time += 1;
        let ([codes_1, codes_2], [scales_1, scales_2]) = (moments.codes, moments.scales);
        let (param, codes_1, scales_1, codes_2, scales_2) =
            <Dispatch as AdamW8BitOps>::adamw_8bit_step(
                tensor.into_dispatch(),
                grad.into_dispatch(),
                codes_1.into_dispatch(),
                scales_1.into_dispatch(),
                codes_2.into_dispatch(),
                scales_2.into_dispatch(),
                self.factors(lr, moments.time, grad_scale),
            );
        moments.codes = [codes_1, codes_2].map(Tensor::from_dispatch);
        moments.scales = [scales_1, scales_2].map(Tensor::from_dispatch);
        (Tensor::from_dispatch(param), moments)
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::super::adamw::flex::update;
    use super::super::dynamic_map::step_of;
    use super::super::kernel::{self, simd_fn};
    use super::*;
    use burn::backend::Flex;
    use rayon::prelude::*;

    /// Elements per parallel task: whole blocks.
    const TASK: usize = 128 * BLOCK;

    /// Codes and scales of some blocks of a moment.
    struct Blocks<'a> {
        codes: &'a mut [i32],
        scales: &'a mut [f32],
        map: &'static DynamicMap,
    }

    impl AdamW8BitKernel for Flex {
        fn adamw_8bit_update(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            first: (IntTensor<Self>, FloatTensor<Self>),
            second: (IntTensor<Self>, FloatTensor<Self>),
            factors: Factors,
        ) -> Updated<Self> {
            if !kernel::all_f32([&param, &grad, &first.1, &second.1]) {
                return portable_update_8bit::<Self>(param, grad, first, second, factors);
            }
            let grad = kernel::contiguous(grad);
            // In place if nothing else holds a tensor, otherwise on a copy.
            let mut param = kernel::contiguous(param);
            let [mut codes_1, mut codes_2] = [first.0, second.0].map(kernel::contiguous);
            let [mut scales_1, mut scales_2] = [first.1, second.1].map(kernel::contiguous);
            (
                param.storage_mut::<f32>().par_chunks_mut(TASK),
                grad.storage::<f32>().par_chunks(TASK),
                codes_1.storage_mut::<i32>().par_chunks_mut(TASK / IN_WORD),
                scales_1.storage_mut::<f32>().par_chunks_mut(TASK / BLOCK),
                codes_2.storage_mut::<i32>().par_chunks_mut(TASK / IN_WORD),
                scales_2.storage_mut::<f32>().par_chunks_mut(TASK / BLOCK),
            )
                .into_par_iter()
                .for_each(|(params, grads, codes_1, scales_1, codes_2, scales_2)| {
                    let first = Blocks { codes: codes_1, scales: scales_1, map: &SIGNED };
                    let second = Blocks { codes: codes_2, scales: scales_2, map: &UNSIGNED };
                    update_blocks(params, grads, first, second, factors);
                });
            (param, codes_1, scales_1, codes_2, scales_2)
        }
    }

    simd_fn! {
        fn update_blocks(
            params: &mut [f32],
            grads: &[f32],
            first: Blocks<'_>,
            second: Blocks<'_>,
            factors: Factors,
        ) {
            let (mut first, mut second) = (first, second);
            let [mut m, mut v] = [[0.0; BLOCK]; 2];
            let blocks = params.chunks_mut(BLOCK).zip(grads.chunks(BLOCK));
            for (index, (params, grads)) in blocks.enumerate() {
                first.load(index, &mut m);
                second.load(index, &mut v);
                let len = params.len();
                update(params, grads, &mut m[..len], &mut v[..len], factors);
                first.store(index, &mut m, len);
                second.store(index, &mut v, len);
            }
        }
    }

    impl Blocks<'_> {
        /// Decodes a block.
        #[inline(always)]
        fn load(&self, index: usize, values: &mut [f32; BLOCK]) {
            const WORDS: usize = BLOCK / IN_WORD;
            let scale = self.scales[index];
            let words = &self.codes[index * WORDS..(index + 1) * WORDS];
            for (word, values) in words.iter().zip(values.as_chunks_mut::<IN_WORD>().0) {
                for (code, value) in word.to_le_bytes().into_iter().zip(values) {
                    *value = self.map.values[usize::from(code)] * scale;
                }
            }
        }

        /// Encodes the first `len` values of a block.
        #[inline(always)]
        fn store(&mut self, index: usize, values: &mut [f32; BLOCK], len: usize) {
            const WORDS: usize = BLOCK / IN_WORD;
            values[len..].fill(0.0);
            let mut lanes = [0f32; 16];
            for values in values.as_chunks::<16>().0 {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    // NaN is never the maximum.
                    *lane = if value.abs() > *lane { value.abs() } else { *lane };
                }
            }
            let scale = lanes.into_iter().fold(0.0, f32::max);
            let mut steps = [0; BLOCK];
            for (step, value) in steps.iter_mut().zip(&*values) {
                // SAFETY: no magnitude in the block exceeds the scale, so quotients are in -1..1; for a scale
                // of 0, NaN, or infinity they may be NaN.
                *step = unsafe { step_of(value / scale) };
            }
            self.scales[index] = scale;
            let words = &mut self.codes[index * WORDS..(index + 1) * WORDS];
            steps[len..].fill(0);
            for (word, steps) in words.iter_mut().zip(steps.as_chunks::<IN_WORD>().0) {
                let bytes = steps.map(|step| self.map.codes[usize::from(step)]);
                *word = i32::from_le_bytes(bytes);
            }
        }
    }
}
