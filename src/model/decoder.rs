//! The decoder: embedding, blocks, final norm and head.

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

/// Embedding, blocks and final norm.
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
    /// `None` where the head is the embedding, transposed.
    lm_head: Option<LoraLinear>,
    #[module(skip)]
    pub(super) config: DecoderConfig,
    /// Set where the linear layers have adapters.
    #[module(skip)]
    lora: Option<LoraConfig>,
    /// Tensors of the model that belong to the adapters, and not to the base.
    #[module(skip)]
    adapted: BTreeSet<String>,
    /// Whether it is the text part of a model of text and images, which its adapters are then made for.
    #[module(skip)]
    is_part: bool,
    /// What activations are computed in, where that is not f32.
    #[module(skip)]
    compute: Option<FloatDType>,
}

impl DecoderConfig {
    /// A decoder with random weights; the same seed gives the same weights on every backend. See
    /// [`DecoderConfig::attention`] for how they are drawn.
    ///
    /// # Errors
    /// As [`DecoderConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<DecoderLm> {
        self.build(&mut RandomWeights::new(seed, device))
    }

    /// The same with its matrices stored as `base` says, one after the other; they are frozen.
    ///
    /// # Errors
    /// As [`DecoderConfig::init`]; [`Error::Config`] where the device cannot store them.
    pub fn init_stored(&self, seed: u64, base: &BaseWeights, device: &Device) -> Result<DecoderLm> {
        base.validate()?;
        base.check(device)?;
        let model =
            self.build(&mut RandomWeights { base: *base, ..RandomWeights::new(seed, device) })?;
        Ok(if base.is_f32() { model } else { model.no_grad() })
    }

    /// A decoder with the weights of `source`.
    ///
    /// # Errors
    /// As [`DecoderConfig::validate`], and what `source` gives.
    pub(super) fn build(&self, source: &mut impl WeightSource) -> Result<DecoderLm> {
        self.validate()?;
        let (std, width) = (self.initializer_range, self.hidden_size);
        // The largest matrices first, while nothing else is there.
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
    /// The shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The adapters' settings, where the linear layers have adapters.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Freezes all weights and adds adapters, which are trained from then on, with the modules that the
    /// settings name beside them, and nothing else. They change nothing yet; the same seed gives the same A,
    /// and the same dropout in training.
    ///
    /// # Errors
    /// As [`LoraConfig::validate`]; [`Error::Config`] where the model has adapters already, or settings name
    /// what it does not have.
    pub fn with_lora(self, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        if self.lora.is_some() {
            let what = "the model has adapters already";
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

    /// The model frozen, with the tensors that belong to adapters as numbers: those that are `saved` by the
    /// settings, and others that are `stored` in a file. Where these make two matrices of one, the head has its
    /// own.
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

    /// Adds the adapters to the weights and removes them. The result is on a device without
    /// autodiff.
    pub fn merged(self) -> Self {
        let mut model = self.valid();
        // Held no longer, each old weight goes when the new one is there.
        drop(self);
        model.linear_layers_mut().into_iter().for_each(|(_, layer)| layer.merge());
        model.lora = None;
        model.adapted.clear();
        model
    }

    /// The model to be asked, whose weights stay as they are: what follows from them is computed once.
    pub(super) fn for_answers(&self) -> Self {
        let mut model = self.clone().valid();
        if self.lora.as_ref().is_some_and(|lora| lora.use_dora) {
            model.linear_layers_mut().into_iter().for_each(|(_, layer)| layer.fix_output_scale());
        }
        model
    }

    /// Tensors of the model that belong to the adapters, and not to the base, by their names in files.
    pub(super) fn adapted(&self) -> &BTreeSet<String> {
        &self.adapted
    }

    /// The linear layers of the blocks by their paths.
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

    /// Whether it is the text part of a model of text and images.
    pub(super) fn is_part(&self) -> bool {
        self.is_part
    }

    pub(super) fn set_lora(&mut self, config: LoraConfig) {
        self.lora = Some(config);
    }

    /// The model computing in this precision. Frozen matrices of linear layers are kept in it;
    /// trained weights stay f32.
    ///
    /// # Errors
    /// [`Error::Config`] where the device cannot compute in it.
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

    /// Whether any of its matrices is stored in codes.
    pub(super) fn is_encoded(&self) -> bool {
        /// Only codes are integers.
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

    /// Its parameters, adapters included, however they are stored.
    pub fn parameter_count(&self) -> usize {
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let adapters = lazy_tensors(self, false);
        let adapters = adapters.iter().filter(|tensor| tensor.name.contains(".lora_"));
        let base = self.config.tensor_shapes();
        base.values().map(|shape| size(shape)).sum::<usize>()
            + adapters.map(|tensor| size(&tensor.shape)).sum::<usize>()
    }

    /// The model with its matrices stored as `base` says; they are frozen. A folder of weights is better
    /// read with [`ModelFolder::with_base_weights`](super::ModelFolder::with_base_weights), which never
    /// holds all of them as numbers.
    ///
    /// # Errors
    /// As [`BaseWeights::validate`]; [`Error::Config`] where the device cannot store them, or the model has
    /// adapters; [`Error::Training`] where the device cannot be read.
    pub fn with_base_weights(self, base: &BaseWeights) -> Result<Self> {
        base.validate()?;
        base.check(&self.device())?;
        if self.lora.is_some() {
            let what = "the model has adapters already";
            return Err(Error::config("base", what, "Store its weights first"));
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

    /// The type of its activations.
    pub(super) fn activation_type(&self) -> DType {
        self.compute.map_or(DType::F32, DType::from)
    }

    /// What the model computes in.
    pub fn precision(&self) -> Precision {
        match self.compute {
            Some(_) => Precision::Bf16,
            None => Precision::F32,
        }
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.device()
    }

    /// The head's matrix, `[width, vocabulary]`.
    pub(super) fn head(&self) -> Weight {
        match &self.lm_head {
            Some(head) => head.matrix(),
            None => self.model.embed_tokens.as_head(),
        }
    }

    /// Normalized output of the last block.
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

    /// The output of the last block.
    pub(super) fn through_blocks(&self, x: Tensor<2>, metadata: &LayerMetadata) -> Tensor<2> {
        let layers = self.model.layers.iter().enumerate();
        let through = |stream, (number, layer): (usize, &DecoderLayer)| {
            layer.forward_stream(stream, metadata.of(number))
        };
        layers.fold(Stream::new(x), through).value()
    }

    /// What the head gets: the output of the last block normalized, and divided by what logits are
    /// divided by.
    pub(super) fn normalized(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.model.norm.forward(x);
        if self.config.logits_scaling == 1.0 { x } else { x / self.config.logits_scaling }
    }

    /// Scores of every next token; for inspection and tests, since it holds them all.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right; result: `[rows, length, vocabulary]`.
    pub fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [rows, length] = ids.dims();
        let logits = linear(in_f32(self.hidden(ids)), self.head());
        logits.reshape([rows, length, self.config.vocab_size])
    }

    /// Activations in the type that is computed in.
    pub(super) fn computed(&self, x: Tensor<2>) -> Tensor<2> {
        match self.compute {
            Some(dtype) => x.cast(dtype),
            None => x,
        }
    }

    /// The embeddings of tokens, `[rows * length, width]`.
    pub(super) fn embed(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        let [rows, length] = ids.dims();
        self.scaled_embedding(self.model.embed_tokens.forward(ids.reshape([rows * length])))
    }

    /// Embeddings as the first block takes them: multiplied, in the type that is computed in.
    pub(super) fn scaled_embedding(&self, x: Tensor<2>) -> Tensor<2> {
        let scale = self.config.embedding_scale();
        self.computed(if scale == 1.0 { x } else { x * scale })
    }
}

/// Where the tokens of a forward pass stand, for each layer.
pub(super) struct LayerMetadata {
    /// One for each attention that layers have.
    kinds: Vec<AttentionMetadata>,
    /// Which of them a layer has.
    of_layer: Vec<usize>,
}

impl LayerMetadata {
    /// `make` gives the metadata of an attention.
    pub(super) fn new(
        config: &DecoderConfig,
        make: impl FnMut(&SelfAttentionConfig) -> AttentionMetadata,
    ) -> Self {
        let (kinds, of_layer) = config.attentions();
        Self { kinds: kinds.iter().map(make).collect(), of_layer }
    }

    /// The rows of a micro-batch.
    pub(super) fn batch(config: &DecoderConfig, batch: &Batch, device: &Device) -> Self {
        Self::new(config, |kind| AttentionMetadata::batch(kind, batch, device))
    }

    /// That of a layer.
    pub(super) fn of(&self, layer: usize) -> &AttentionMetadata {
        &self.kinds[self.of_layer[layer]]
    }

    /// The same on the device without autodiff.
    pub(super) fn inner(&self) -> Self {
        let kinds = self.kinds.iter().map(AttentionMetadata::inner).collect();
        Self { kinds, of_layer: self.of_layer.clone() }
    }
}
