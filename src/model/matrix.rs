//! Storage of the matrices of linear layers, embeddings, and heads: as floats, trained or frozen, or
//! quantized in a frozen base.

use super::base_weights::{BaseType, BaseWeights};
use super::gguf::StoredBlocks;
use super::precision::in_f32;
use super::tensors::{HostTensor, host};
use crate::error::{Error, Result};
use crate::ops::{EncodedWeight, Encoding, Weight, embedding, resident, resident_bf16};
use burn::module::{Module, Param, ParamId};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};

/// The role of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatrixRole {
    /// A linear layer of a block: `[input, output]`; `[output, input]` in files.
    Linear,
    /// The head, as a linear layer.
    Head,
    /// The embedding: `[vocabulary, width]` in both.
    Embedding,
}

impl BaseWeights {
    /// Returns the storage type of a matrix with this role.
    pub(super) fn type_of(&self, role: MatrixRole) -> BaseType {
        match role {
            MatrixRole::Linear => self.base_type,
            MatrixRole::Head | MatrixRole::Embedding => self.embedding_type(),
        }
    }

    /// Checks that a device supports the storage types.
    ///
    /// # Errors
    /// [`Error::Config`] if it does not.
    pub(super) fn check(&self, device: &Device) -> Result<()> {
        let short = [("base.type", self.base_type), ("base.embeddings", self.embedding_type())];
        let short = short.into_iter().find(|(_, kind)| *kind == BaseType::Bf16);
        match short {
            Some((key, _)) if !device.supports_dtype(DType::BF16) => {
                let hint =
                    "Use int8 or f32; base.embeddings sets the type of the embedding and the head";
                Err(Error::config(key, "this device does not support bf16", hint))
            }
            _ => Ok(()),
        }
    }
}

/// Maximum number of values of the first column in the model's fingerprint.
const COUNTED: usize = 256;

/// A new matrix.
pub(super) enum NewMatrix {
    Dense(Tensor<2>),
    Encoded(EncodedMatrix),
}

impl NewMatrix {
    /// Stores a matrix from a file in the type of `base`.
    pub(super) fn stored(
        host: HostTensor,
        role: MatrixRole,
        base: &BaseWeights,
        device: &Device,
    ) -> Self {
        let [rows, columns] = host.shape[..] else { unreachable!("matrices have two dimensions") };
        let turned = |dense: Tensor<2>| match role {
            MatrixRole::Embedding => dense,
            MatrixRole::Linear | MatrixRole::Head => dense.swap_dims(0, 1),
        };
        let encoding = match base.type_of(role) {
            BaseType::F32 => return Self::Dense(turned(resident(host.values, host.shape, device))),
            BaseType::Bf16 => {
                return Self::Dense(turned(resident_bf16(&host.values, [rows, columns], device)));
            }
            BaseType::Int8 => Encoding::int8(columns),
            BaseType::Nf4 => Encoding::nf4(base.double_quantization),
        };
        // The first column of `[input, output]` is the first row here.
        let first: Vec<f32> = match role {
            MatrixRole::Embedding => {
                host.values.iter().step_by(columns).take(COUNTED).copied().collect()
            }
            MatrixRole::Linear | MatrixRole::Head => host.values[..columns.min(COUNTED)].to_vec(),
        };
        let encoded = EncodedWeight::new(&host.values, [rows, columns], encoding, device);
        Self::Encoded(EncodedMatrix::new(encoded, first))
    }

    /// Creates a matrix from the codes of a linear layer in a file.
    pub(super) fn of_blocks(blocks: StoredBlocks, device: &Device) -> Self {
        let StoredBlocks { values, encoding, size, mut first_row } = blocks;
        first_row.truncate(COUNTED);
        let encoded = EncodedWeight::of_codes(values, size, encoding, device);
        Self::Encoded(EncodedMatrix::new(encoded, first_row))
    }

    /// Returns the fields of a module for this matrix.
    pub(super) fn into_parts(self) -> (Option<Param<Tensor<2>>>, Option<EncodedMatrix>) {
        match self {
            Self::Dense(dense) => (Some(Param::from_tensor(dense)), None),
            Self::Encoded(encoded) => (None, Some(encoded)),
        }
    }
}

/// A frozen, quantized matrix.
#[derive(Module, Debug)]
pub struct EncodedMatrix {
    codes: Param<Tensor<1, Int>>,
    scale_codes: Param<Tensor<1, Int>>,
    scales: Param<Tensor<1>>,
    /// Values of the first column before quantization, for the model's fingerprint.
    first: Param<Tensor<1>>,
    #[module(skip)]
    encoding: Encoding,
    #[module(skip)]
    size: [usize; 2],
}

impl EncodedMatrix {
    fn new(weight: EncodedWeight, first: Vec<f32>) -> Self {
        let EncodedWeight { codes, scale_codes, scales, encoding, size } = weight;
        let count = first.len();
        let first = Tensor::from_data(TensorData::new(first, [count]), &scales.device());
        Self {
            codes: Param::initialized(ParamId::new(), codes),
            scale_codes: Param::initialized(ParamId::new(), scale_codes),
            scales: Param::from_tensor(scales).no_grad(),
            first: Param::from_tensor(first).no_grad(),
            encoding,
            size,
        }
    }

    /// Returns the matrix as an operand.
    pub(super) fn weight(&self) -> Weight {
        Weight::from(EncodedWeight {
            codes: self.codes.val(),
            scale_codes: self.scale_codes.val(),
            scales: self.scales.val(),
            encoding: self.encoding,
            size: self.size,
        })
    }
}

/// Returns the matrix of a module, as floats or quantized.
pub(super) fn weight_of(
    numbers: Option<&Param<Tensor<2>>>,
    codes: Option<&EncodedMatrix>,
) -> Weight {
    match (numbers, codes) {
        (Some(numbers), _) => Weight::Dense(numbers.val()),
        (None, Some(codes)) => codes.weight(),
        (None, None) => unreachable!("a matrix exists in one form"),
    }
}

/// Returns the matrix of a module in f32, from any storage type: `[input, output]`, or `[vocabulary, width]`
/// for an embedding.
pub(super) fn numbers_of(
    numbers: Option<&Param<Tensor<2>>>,
    codes: Option<&EncodedMatrix>,
    role: MatrixRole,
) -> Tensor<2> {
    match weight_of(numbers, codes) {
        Weight::Dense(numbers) => in_f32(numbers),
        Weight::Encoded(codes) if role == MatrixRole::Embedding => codes.decoded(),
        Weight::Encoded(codes) => codes.decoded().swap_dims(0, 1),
    }
}

/// The embedding of a vocabulary.
#[derive(Module, Debug)]
pub struct TokenEmbedding {
    /// `[vocabulary, width]`.
    weight: Option<Param<Tensor<2>>>,
    /// Replaces `weight` if it is quantized.
    encoded: Option<EncodedMatrix>,
}

impl TokenEmbedding {
    pub(super) fn new(matrix: NewMatrix) -> Self {
        let (weight, encoded) = matrix.into_parts();
        Self { weight, encoded }
    }

    /// Returns the embeddings of tokens, in f32 if the matrix has fewer bits.
    ///
    /// # Shapes
    /// `[tokens]` to `[tokens, width]`.
    pub(super) fn forward(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        embedding(self.rows(), ids)
    }

    fn rows(&self) -> Weight {
        weight_of(self.weight.as_ref(), self.encoded.as_ref())
    }

    /// Returns the matrix of a tied head.
    pub(super) fn as_head(&self) -> Weight {
        match self.rows() {
            Weight::Dense(weight) => Weight::Dense(weight.transpose()),
            encoded => encoded,
        }
    }

    /// Returns a frozen copy of the matrix for a separate head, in the same storage type.
    pub(super) fn to_head(&self) -> NewMatrix {
        match (&self.weight, &self.encoded) {
            (Some(weight), _) => NewMatrix::Dense(weight.val().detach().transpose()),
            (None, Some(codes)) => NewMatrix::Encoded(codes.clone()),
            (None, None) => unreachable!("a matrix exists in one form"),
        }
    }

    /// Converts the matrix to f32 from any storage type.
    pub(super) fn store_numbers(&mut self) {
        let role = MatrixRole::Embedding;
        let numbers = numbers_of(self.weight.as_ref(), self.encoded.as_ref(), role);
        (self.weight, self.encoded) = (Some(Param::from_tensor(numbers).no_grad()), None);
    }

    /// Returns whether the matrix is trained.
    pub(super) fn is_trained(&self) -> bool {
        self.weight.as_ref().is_some_and(|weight| weight.val().is_require_grad())
    }

    pub(super) fn device(&self) -> Device {
        self.rows().device()
    }

    /// Converts the matrix to the storage type of `base`.
    ///
    /// # Errors
    /// [`Error::Training`] if the device cannot be read.
    pub(super) fn store(&mut self, base: &BaseWeights) -> Result<()> {
        if let Some(weight) = &self.weight {
            let matrix = restored(weight.val(), MatrixRole::Embedding, base)?;
            (self.weight, self.encoded) = matrix.into_parts();
        }
        Ok(())
    }
}

/// Converts a matrix to the storage type of `base`.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub(super) fn restored(
    weight: Tensor<2>,
    role: MatrixRole,
    base: &BaseWeights,
) -> Result<NewMatrix> {
    let device = weight.device();
    let rows = match role {
        MatrixRole::Embedding => weight,
        MatrixRole::Linear | MatrixRole::Head => weight.swap_dims(0, 1),
    };
    Ok(NewMatrix::stored(host(rows)?, role, base, &device))
}
