//! The tensors of a student, derived from its shape: weights, and which of them are trained.

use super::held::{Held, matrix_bytes, moment_bytes};
use crate::error::Result;
use crate::model::{
    BaseType, BaseWeights, DecoderConfig, LoraConfig, LoraSource, LoraTargets, Precision,
};
use crate::train::MomentType;

/// Totals over a student's tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Tensors {
    /// Parameters, including adapters.
    pub parameters: usize,
    /// Trained parameters.
    pub trained: usize,
    /// Weights of the linear layers in the blocks, which every token is multiplied with.
    pub linear: usize,
    /// Trained weights of these layers.
    pub trained_linear: usize,
    /// Parameters of adapters.
    pub adapters: usize,
    /// Whether the head is trained. A tied head is trained with the embedding.
    pub trains_head: bool,
    /// Whether the head is tied to the embedding.
    pub is_tied: bool,
    /// The layers with adapters and the modules trained in full. `None` if all weights are trained.
    pub targets: Option<LoraTargets>,
    /// Bytes of frozen weights.
    pub frozen_bytes: f64,
    /// Bytes of trained weights, which are f32.
    pub trained_bytes: f64,
    /// Gradients of the trained weights.
    pub gradients: Held,
    /// Bytes of the optimizer's moments.
    pub moment_bytes: f64,
    /// Elements of the largest tensor, and of the largest trained one.
    pub largest: [usize; 2],
    /// Elements of the largest tensor without vocabulary dimension. These are read last.
    pub largest_of_layers: usize,
    /// Bytes of tensors with vocabulary dimension: embedding and head.
    pub vocabulary_bytes: f64,
}

impl Tensors {
    /// Returns the totals of a student with this shape, with or without adapters.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for adapters that the shape has no layers for.
    pub fn of(
        shape: &DecoderConfig,
        lora: Option<&LoraConfig>,
        base: BaseWeights,
        precision: Precision,
        moments: MomentType,
    ) -> Result<Self> {
        let targets = lora.map(|lora| lora.of_user(shape)).map(|lora| {
            // Whether the decoder is part of a multimodal model makes no difference here.
            lora.targets_in(shape, LoraSource::SettingsOfPart)
        });
        let mut all = Self { targets: targets.transpose()?, ..Self::default() };
        let mut shape = shape.clone();
        shape.tie_word_embeddings &= !all.targets.as_ref().is_some_and(|targets| targets.unties);
        all.is_tied = shape.tie_word_embeddings;
        for (name, size) in shape.tensor_shapes() {
            all.add(&name, &size, base, precision, moments);
        }
        Ok(all)
    }

    /// Adds a tensor of the model and its adapter.
    fn add(
        &mut self,
        name: &str,
        size: &[usize],
        base: BaseWeights,
        precision: Precision,
        moments: MomentType,
    ) {
        let count: usize = size.iter().product();
        let layer = name.strip_suffix(".weight").filter(|name| name.starts_with("model.layers."));
        let linear = layer.filter(|_| size.len() == 2);
        self.parameters += count;
        self.linear += if linear.is_some() { count } else { 0 };
        self.largest[0] = self.largest[0].max(count);
        let of_vocabulary = size.len() == 2 && linear.is_none();
        if !of_vocabulary {
            self.largest_of_layers = self.largest_of_layers.max(count);
        }
        let targets = self.targets.as_ref();
        let is_trained = targets.is_none_or(|targets| targets.saved.contains(name));
        if is_trained {
            self.train(count, moments);
            self.trained_linear += if linear.is_some() { count } else { 0 };
            self.vocabulary_bytes += if of_vocabulary { 4.0 * count as f64 } else { 0.0 };
            self.trains_head |= name == "lm_head.weight" || (self.is_tied && of_vocabulary);
            return;
        }
        let [rows, columns] = match size[..] {
            [rows, columns] => [rows, columns],
            _ => [1, count],
        };
        let bytes = match (size.len(), linear) {
            // `DecoderLm::with_precision` converts frozen matrices to bf16.
            (2, Some(_)) if base.base_type == BaseType::F32 && precision == Precision::Bf16 => {
                2.0 * count as f64
            }
            (2, Some(_)) => matrix_bytes(base.base_type, rows, columns, base),
            (2, None) => matrix_bytes(base.embedding_type(), rows, columns, base),
            // Norms and biases.
            _ => 4.0 * count as f64,
        };
        self.frozen_bytes += bytes;
        self.vocabulary_bytes += if of_vocabulary { bytes } else { 0.0 };
        let adapter = linear.and_then(|name| targets?.layers.get(name)).copied();
        if let Some(lora) = adapter {
            let of_output = |is_there: bool| if is_there { rows } else { 0 };
            let (bias, magnitude) = (of_output(lora.has_bias), of_output(lora.has_magnitude));
            for count in [lora.rank * columns, lora.rank * rows, bias, magnitude] {
                self.parameters += count;
                self.adapters += count;
                self.train(count, moments);
            }
        }
    }

    fn train(&mut self, count: usize, moments: MomentType) {
        if count == 0 {
            return;
        }
        self.trained += count;
        self.trained_bytes += 4.0 * count as f64;
        self.gradients += Held::values(count);
        self.moment_bytes += moment_bytes(count, moments);
        self.largest[1] = self.largest[1].max(count);
    }

    /// Returns the size in bytes of all weights.
    pub fn weight_bytes(&self) -> f64 {
        self.frozen_bytes + self.trained_bytes
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::model::tensors::lazy_tensors;
    use crate::model::{Architecture, QkNorm};
    use burn::tensor::Device;

    fn shape(architecture: Architecture, tied: bool) -> DecoderConfig {
        DecoderConfig {
            architecture,
            vocab_size: 23,
            hidden_size: 16,
            intermediate_size: 20,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: Some(6),
            tie_word_embeddings: tied,
            ..DecoderConfig::default()
        }
    }

    #[test]
    fn parameters_are_counted_as_the_model_has_them() {
        use Architecture::{Gemma3Text, Granite, Llama, Olmo2, Phi3, Qwen2, Qwen3, Smollm3};
        let device = Device::flex().autodiff();
        let (lora, base) =
            (LoraConfig { rank: 3, ..LoraConfig::default() }, BaseWeights::default());
        let saved = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let loras = [
            lora.clone(),
            LoraConfig {
                use_dora: true,
                rank_pattern: [("layers.1.mlp.down_proj", 5)].into(),
                layers_to_transform: vec![1, 2],
                ..lora.clone()
            },
            LoraConfig {
                modules_to_save: saved(&["embed_tokens", "model.norm", "o_proj"]),
                ..lora.clone()
            },
            LoraConfig {
                lora_bias: true,
                modules_to_save: saved(&["lm_head"]),
                ensure_weight_tying: false,
                ..lora.clone()
            },
        ];
        for architecture in [Gemma3Text, Granite, Llama, Olmo2, Phi3, Qwen2, Qwen3, Smollm3] {
            let cases = [true, false].into_iter().flat_map(|tied| {
                let loras = loras.iter().map(Some).chain([None]);
                loras.map(move |lora| (tied, lora))
            });
            for (tied, lora) in cases {
                let shape = shape(architecture, tied);
                let model = shape.init(1, &device).unwrap();
                let model = match lora {
                    Some(lora) => model.with_lora(lora, 1).unwrap(),
                    None => model,
                };
                let count = |trained: bool| -> usize {
                    let tensors = lazy_tensors(&model, trained);
                    tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
                };
                let found =
                    Tensors::of(&shape, lora, base, Precision::F32, MomentType::F32).unwrap();
                assert_eq!(found.parameters, count(false), "{architecture:?} {tied}");
                assert_eq!(found.trained, count(true), "{architecture:?} {tied}");
                assert_eq!(found.weight_bytes(), 4.0 * found.parameters as f64);
                assert_eq!(found.moment_bytes, 8.0 * found.trained as f64);
            }
        }
        let unknown = LoraConfig { target_modules: ["q_proj"].into(), ..lora };
        let phi = shape(Phi3, true);
        assert_eq!(phi.architecture.properties().qk_norm, QkNorm::None);
        let found = Tensors::of(&phi, Some(&unknown), base, Precision::F32, MomentType::F32);
        assert!(found.unwrap_err().to_string().contains("qkv_proj"));
    }
}
