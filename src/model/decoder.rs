//! The decoder: embedding, blocks, final norm, and head.

use super::base_weights::BaseWeights;
use super::blocks::{AttentionMetadata, DecoderLayer, RmsNorm, SelfAttentionConfig, Stream};
use super::config::DecoderConfig;
use super::lora::{EMBEDDING, HEAD, LoraConfig, LoraLinear, LoraSource, LoraTargets};
use super::matrix::{MatrixRole, TokenEmbedding};
use super::precision::{Precision, in_f32};
use super::tensors::{lazy_tensors, with_replaced};
use super::weight_source::{RandomWeights, WeightSource};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::ops::{Weight, linear};
use burn::module::{ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use std::collections::BTreeSet;

/// A decoder without its head: embedding, blocks, and final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    pub(super) embed_tokens: TokenEmbedding,
    pub(super) layers: Vec<DecoderLayer>,
    pub(super) norm: RmsNorm,
}

/// A decoder with its head.
#[derive(Module, Debug)]
pub struct DecoderLm {
    pub(super) model: Decoder,
    /// `None` if the head is tied to the embedding.
    lm_head: Option<LoraLinear>,
    #[module(skip)]
    pub(super) config: DecoderConfig,
    /// Set if the linear layers have adapters.
    #[module(skip)]
    lora: Option<LoraConfig>,
    /// Tensors of the model that belong to the adapters, not to the base.
    #[module(skip)]
    adapted: BTreeSet<String>,
    /// Whether this is the text part of a vision-language model. Its adapters then use the names of that
    /// model.
    #[module(skip)]
    is_part: bool,
    /// Type of the activations, if it is not f32.
    #[module(skip)]
    compute: Option<FloatDType>,
}

impl DecoderConfig {
    /// Initializes a decoder with random weights. A seed gives the same weights on every backend. See
    /// [`DecoderConfig::attention`] for their distribution.
    ///
    /// # Errors
    /// See [`DecoderConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<DecoderLm> {
        self.build(&mut RandomWeights::new(seed, device))
    }

    /// Initializes a frozen decoder whose matrices are stored in the types of `base`. Only one matrix at a
    /// time is in f32. With f32 storage, this is the same as [`DecoderConfig::init`].
    ///
    /// # Errors
    /// See [`DecoderConfig::init`]. [`Error::Config`] if the device does not support the types.
    pub fn init_stored(&self, seed: u64, base: &BaseWeights, device: &Device) -> Result<DecoderLm> {
        base.validate()?;
        base.check(device)?;
        let model =
            self.build(&mut RandomWeights { base: *base, ..RandomWeights::new(seed, device) })?;
        Ok(if base.is_f32() { model } else { model.no_grad() })
    }

    /// Builds a decoder with the weights of `source`.
    ///
    /// # Errors
    /// See [`DecoderConfig::validate`]; also the errors of `source`.
    pub(super) fn build(&self, source: &mut impl WeightSource) -> Result<DecoderLm> {
        self.validate()?;
        let (std, width) = (self.initializer_range, self.hidden_size);
        // The largest matrices come first, while memory is free.
        let vocabulary = [self.vocab_size, width];
        let embedding = "model.embed_tokens.weight";
        let embedding = source.matrix(embedding, vocabulary, MatrixRole::Embedding, std)?;
        let lm_head = match self.tie_word_embeddings {
            true => None,
            false => {
                let sizes = [width, self.vocab_size];
                Some(LoraLinear::new(source.matrix(
                    "lm_head.weight",
                    sizes,
                    MatrixRole::Head,
                    std,
                )?))
            }
        };
        let layers = (0..self.num_hidden_layers)
            .map(|number| self.layer(number).build(source, &format!("model.layers.{number}")))
            .collect::<Result<_>>()?;
        let norm = self.final_norm().build(source, "model.norm")?;
        let embed_tokens = TokenEmbedding::new(embedding);
        let model = Decoder { embed_tokens, layers, norm };
        let (config, lora, compute) = (self.clone(), None, None);
        let adapted = BTreeSet::new();
        Ok(DecoderLm { model, lm_head, config, lora, adapted, is_part: false, compute })
    }
}

impl DecoderLm {
    /// Returns the configuration of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the adapters' settings, if the model has adapters.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Freezes all weights and adds adapters. Only the adapters and the settings' `modules_to_save` are
    /// trained. New adapters do not change the output. A seed gives the same A and the same dropout in
    /// training.
    ///
    /// # Errors
    /// See [`LoraConfig::validate`]. [`Error::Config`] if the model already has adapters, or the settings
    /// name layers that it does not have.
    pub fn with_lora(self, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        if self.lora.is_some() {
            let what = "the model already has adapters";
            return Err(Error::config("lora", what, "Merge them first"));
        }
        let config = config.of_user(&self.config);
        let source = match self.is_part {
            true => LoraSource::SettingsOfPart,
            false => LoraSource::Settings,
        };
        let targets = config.targets_in(&self.config, source)?;
        let mut model = self.for_adapters(&targets, &BTreeSet::new());
        for (name, layer) in model.linear_layers_mut() {
            if let Some(lora) = targets.layers.get(&name) {
                layer.attach(lora, &name, seed);
            }
        }
        model.lora = Some(config);
        with_replaced(model, &targets.saved, true, &mut |_| Ok(None))
    }

    /// Freezes the model and converts the tensors that belong to adapters to floats: those that the settings
    /// save, and others that are `stored` in a file. Unties the head if the targets require it.
    pub(super) fn for_adapters(self, targets: &LoraTargets, stored: &BTreeSet<String>) -> Self {
        let mut model = self.no_grad();
        if targets.unties {
            model.lm_head = Some(LoraLinear::new(model.model.embed_tokens.to_head()).no_grad());
            model.config.tie_word_embeddings = false;
        }
        model.adapted = targets.saved.union(stored).cloned().collect();
        let adapted = model.adapted.clone();
        let holds = |name: &str| adapted.contains(name);
        if holds(EMBEDDING) {
            model.model.embed_tokens.store_numbers();
        }
        if let Some(head) = model.lm_head.as_mut().filter(|_| holds(HEAD)) {
            head.store_numbers();
        }
        for (name, layer) in model.linear_layers_mut() {
            if holds(&format!("{name}.weight")) {
                layer.store_numbers();
            }
        }
        model
    }

    /// Merges the adapters into the weights. The result is on the device without autodiff.
    pub fn merged(self) -> Self {
        let mut model = self.valid();
        // Without this reference, each old weight is freed as soon as it is merged.
        drop(self);
        model.linear_layers_mut().into_iter().for_each(|(_, layer)| layer.merge());
        model.lora = None;
        model.adapted.clear();
        model
    }

    /// Returns the model for generation, with precomputed values that depend only on the weights.
    pub(super) fn for_answers(&self) -> Self {
        let mut model = self.clone().valid();
        if self.lora.as_ref().is_some_and(|lora| lora.use_dora) {
            model.linear_layers_mut().into_iter().for_each(|(_, layer)| layer.fix_output_scale());
        }
        model
    }

    /// Tensors of the model that belong to the adapters, not to the base, by their names in files.
    pub(super) fn adapted(&self) -> &BTreeSet<String> {
        &self.adapted
    }

    /// Returns the linear layers of the blocks, by path.
    pub(super) fn linear_layers_mut(&mut self) -> Vec<(String, &mut LoraLinear)> {
        let mut layers = vec![];
        for (number, block) in self.model.layers.iter_mut().enumerate() {
            let path = |name| format!("model.layers.{number}.{name}");
            let of_block = block.linear_layers_mut().into_iter();
            layers.extend(of_block.map(|(name, layer)| (path(name), layer)));
        }
        layers
    }

    pub(crate) fn set_part(&mut self, is_part: bool) {
        self.is_part = is_part;
    }

    /// Returns whether this is the text part of a vision-language model.
    pub(super) fn is_part(&self) -> bool {
        self.is_part
    }

    pub(super) fn set_lora(&mut self, config: LoraConfig) {
        self.lora = Some(config);
    }

    /// Sets the precision of the activations. Frozen matrices of linear layers are stored in it, too; trained
    /// weights stay f32.
    ///
    /// # Errors
    /// [`Error::Config`] if the device does not support it.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        precision.check(&self.device())?;
        self.compute = match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(precision.dtype()),
        };
        if precision == Precision::Bf16 {
            for (_, layer) in self.linear_layers_mut() {
                layer.store_frozen(precision.dtype());
            }
        }
        Ok(self)
    }

    /// Returns whether any matrix is quantized.
    pub(super) fn is_encoded(&self) -> bool {
        /// Only quantized matrices have integers.
        struct Visitor(bool);
        impl ModuleVisitor for Visitor {
            fn visit_int<const D: usize>(&mut self, _: &Param<Tensor<D, Int>>) {
                self.0 = true;
            }
        }
        let mut visitor = Visitor(false);
        self.visit(&mut visitor);
        visitor.0
    }

    /// Returns the number of parameters, including adapters, independent of how they are stored.
    pub fn parameter_count(&self) -> usize {
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let adapters = lazy_tensors(self, false);
        let adapters = adapters.iter().filter(|tensor| tensor.name.contains(".lora_"));
        let base = self.config.tensor_shapes();
        base.values().map(|shape| size(shape)).sum::<usize>()
            + adapters.map(|tensor| size(&tensor.shape)).sum::<usize>()
    }

    /// Freezes the model and stores its matrices in the types of `base`. To load a folder, prefer
    /// [`ModelFolder::with_base_weights`](super::ModelFolder::with_base_weights), which never holds all
    /// weights in f32.
    ///
    /// # Errors
    /// See [`BaseWeights::validate`]. [`Error::Config`] if the device does not support the types or the model
    /// has adapters; [`Error::Training`] if the device cannot be read.
    pub fn with_base_weights(self, base: &BaseWeights) -> Result<Self> {
        base.validate()?;
        base.check(&self.device())?;
        if self.lora.is_some() {
            let what = "the model already has adapters";
            return Err(Error::config(
                "base",
                what,
                "Convert the base weights before you add adapters",
            ));
        }
        let mut model = self.no_grad();
        for (_, layer) in model.linear_layers_mut() {
            layer.store(MatrixRole::Linear, base)?;
        }
        if let Some(head) = &mut model.lm_head {
            head.store(MatrixRole::Head, base)?;
        }
        model.model.embed_tokens.store(base)?;
        Ok(model.no_grad())
    }

    /// Returns the type of the activations.
    pub(super) fn activation_type(&self) -> DType {
        self.compute.map_or(DType::F32, DType::from)
    }

    /// Returns the precision of the activations.
    pub fn precision(&self) -> Precision {
        match self.compute {
            Some(_) => Precision::Bf16,
            None => Precision::F32,
        }
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.device()
    }

    /// Returns the head's matrix, `[width, vocabulary]`.
    pub(super) fn head(&self) -> Weight {
        match &self.lm_head {
            Some(head) => head.matrix(),
            None => self.model.embed_tokens.as_head(),
        }
    }

    /// Returns the normalized output of the last block, as the head receives it.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right; result: `[rows * length, width]`.
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        let [rows, length] = ids.dims();
        let device = ids.device();
        let rows = |kind: &_| AttentionMetadata::rows(kind, rows, length, &device);
        let metadata = LayerMetadata::new(&self.config, rows);
        self.normalized(self.through_blocks(self.embed(ids), &metadata))
    }

    /// Returns the output of the last block.
    pub(super) fn through_blocks(&self, x: Tensor<2>, metadata: &LayerMetadata) -> Tensor<2> {
        let layers = self.model.layers.iter().enumerate();
        let through = |stream, (number, layer): (usize, &DecoderLayer)| {
            layer.forward_stream(stream, metadata.of(number))
        };
        layers.fold(Stream::new(x), through).value()
    }

    /// Returns the input of the head: the normalized output of the last block, divided by `logits_scaling`.
    pub(super) fn normalized(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.model.norm.forward(x);
        if self.config.logits_scaling == 1.0 { x } else { x / self.config.logits_scaling }
    }

    /// Returns the logits of all positions. Meant for inspection and tests, because it holds all of them at
    /// once.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right; result: `[rows, length, vocabulary]`.
    pub fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [rows, length] = ids.dims();
        let logits = linear(in_f32(self.hidden(ids)), self.head());
        logits.reshape([rows, length, self.config.vocab_size])
    }

    /// Casts to the type of the activations.
    pub(super) fn computed(&self, x: Tensor<2>) -> Tensor<2> {
        match self.compute {
            Some(dtype) => x.cast(dtype),
            None => x,
        }
    }

    /// Returns the embeddings of tokens, `[rows * length, width]`.
    pub(super) fn embed(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        let [rows, length] = ids.dims();
        self.scaled_embedding(self.model.embed_tokens.forward(ids.reshape([rows * length])))
    }

    /// Scales embeddings and casts them to the type of the activations.
    pub(super) fn scaled_embedding(&self, x: Tensor<2>) -> Tensor<2> {
        let scale = self.config.embedding_scale();
        self.computed(if scale == 1.0 { x } else { x * scale })
    }
}

/// Metadata of the tokens in a forward pass, for each layer.
pub(super) struct LayerMetadata {
    /// One per distinct attention.
    kinds: Vec<AttentionMetadata>,
    /// Index into `kinds` of each layer.
    of_layer: Vec<usize>,
}

impl LayerMetadata {
    /// Builds the metadata. `make` returns that of an attention.
    pub(super) fn new(
        config: &DecoderConfig,
        make: impl FnMut(&SelfAttentionConfig) -> AttentionMetadata,
    ) -> Self {
        let (kinds, of_layer) = config.attentions();
        Self { kinds: kinds.iter().map(make).collect(), of_layer }
    }

    /// Returns the rows of a micro-batch.
    pub(super) fn batch(config: &DecoderConfig, batch: &Batch, device: &Device) -> Self {
        Self::new(config, |kind| AttentionMetadata::batch(kind, batch, device))
    }

    /// Returns the metadata of a layer.
    pub(super) fn of(&self, layer: usize) -> &AttentionMetadata {
        &self.kinds[self.of_layer[layer]]
    }

    /// Returns the same metadata on the device without autodiff.
    pub(super) fn inner(&self) -> Self {
        let kinds = self.kinds.iter().map(AttentionMetadata::inner).collect();
        Self { kinds, of_layer: self.of_layer.clone() }
    }
}
