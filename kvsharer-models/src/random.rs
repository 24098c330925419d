//! Random weights in the shapes of known models, for speed and memory work without a download.

use crate::family::{Format, Part};
use crate::{Activation, DecoderConfig, ModelError, RopeConfig};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Draws weights with a seed.
pub(crate) struct RandomWeights {
    pub(crate) seed: u64,
    /// Whether values are drawn on the host, those of norms too, so that they are the same on every device: slow for
    /// large models. Otherwise they depend on the backend's generator.
    pub(crate) on_host: bool,
}

impl RandomWeights {
    /// Seeds the device before the first tensor.
    pub(crate) fn start(&self, device: &Device) {
        device.seed(self.seed);
    }

    /// Ones for norms, small numbers for biases, otherwise normal values that keep the hidden state's scale over the layers.
    pub(crate) fn tensor<const D: usize>(
        &self,
        part: Part,
        config: &DecoderConfig,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let shape: [usize; D] = part.shape(config).try_into().unwrap_or([1; D]);
        let spread = if D == 1 { 0.02 } else { (shape[D - 1] as f64).sqrt().recip() };
        if self.on_host {
            let (centre, spread) = if part.is_norm() { (1.0, 0.2) } else { (0.0, spread) };
            let name = format!("{} {}", self.seed, part.name(Format::HuggingFace));
            let mut rng = ChaCha8Rng::from_seed(Sha256::digest(name).into());
            // Uniform, of the standard deviation `spread`.
            let mut draw = || (centre + spread * 12_f64.sqrt() * (rng.random::<f64>() - 0.5)) as f32;
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw()).collect();
            return Tensor::from_data(TensorData::new(values, shape), (device, dtype));
        }
        if part.is_norm() {
            return Tensor::ones(shape, (device, dtype));
        }
        Tensor::random(shape, Distribution::Normal(0.0, spread), (device, dtype))
    }
}

/// A shape that `random:SHAPE` knows: name, family, vocabulary, hidden, intermediate, layers, heads, KV heads, head
/// dimension, theta, tied head, from the models' published configurations.
type Row = (&'static str, &'static str, usize, usize, usize, usize, usize, usize, usize, f64, bool);

const SHAPES: &[Row] = &[
    ("tiny", "llama", 512, 64, 128, 4, 4, 2, 16, 1e4, true),
    ("smollm2-135m", "llama", 49152, 576, 1536, 30, 9, 3, 64, 1e5, true),
    ("smollm2-360m", "llama", 49152, 960, 2560, 32, 15, 5, 64, 1e5, true),
    ("smollm2-1.7b", "llama", 49152, 2048, 8192, 24, 32, 32, 64, 1.3e5, true),
    ("llama2-7b", "llama", 32000, 4096, 11008, 32, 32, 32, 128, 1e4, false),
    ("llama2-13b", "llama", 32000, 5120, 13824, 40, 40, 40, 128, 1e4, false),
    ("llama3-8b", "llama", 128256, 4096, 14336, 32, 32, 8, 128, 5e5, false),
    ("mistral-7b", "mistral", 32000, 4096, 14336, 32, 32, 8, 128, 1e4, false),
    ("internlm2-7b", "internlm2", 92544, 4096, 14336, 32, 32, 8, 128, 1e6, false),
    ("internlm2-20b", "internlm2", 92544, 6144, 16384, 48, 48, 8, 128, 1e6, false),
    ("qwen2.5-0.5b", "qwen2", 151936, 896, 4864, 24, 14, 2, 64, 1e6, true),
    ("qwen2.5-7b", "qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 1e6, false),
    ("qwen3-8b", "qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 1e6, false),
    ("gemma3-1b", "gemma3", 262144, 1152, 6912, 26, 4, 1, 256, 1e6, true),
];

/// Names of the shapes.
pub fn random_shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|row| row.0)
}

/// The configuration of a shape.
///
/// # Errors
/// [`ModelError::UnknownShape`] lists the known ones.
pub fn random_config(shape: &str) -> Result<DecoderConfig, ModelError> {
    let row = SHAPES.iter().find(|row| row.0 == shape);
    let Some(&(_, family, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, theta, tied_head)) = row
    else {
        let known = random_shapes().collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownShape { shape: shape.into(), known });
    };
    let gemma = family == "gemma3";
    DecoderConfig {
        architecture: family.into(),
        vocab,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        rope: RopeConfig::new(theta),
        local_rope: gemma.then(|| RopeConfig::new(1e4)),
        windows: match family {
            "mistral" => vec![Some(4096); layers],
            "gemma3" => (1..=layers).map(|layer| (layer % 6 != 0).then_some(512)).collect(),
            _ => Vec::new(),
        },
        norm_eps: if gemma { 1e-6 } else { 1e-5 },
        tied_head,
        max_positions: 8192,
        qkv_bias: family == "qwen2",
        output_bias: false,
        mlp_bias: false,
        qk_norm: gemma || family == "qwen3",
        post_norms: gemma,
        full_norms: gemma,
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        score_scale: 1.0,
    }
    .validated()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the models' cards and transformers' `num_parameters` say.
    #[test]
    fn shapes_have_the_parameters_of_their_models() {
        for (shape, parameters) in [
            ("smollm2-135m", 134_515_008),
            ("llama2-7b", 6_738_415_616),
            ("llama2-13b", 13_015_864_320),
            ("llama3-8b", 8_030_261_248),
            ("mistral-7b", 7_241_732_096),
            ("internlm2-7b", 7_737_708_544),
            ("internlm2-20b", 19_861_149_696),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-8b", 8_190_735_360),
            ("gemma3-1b", 999_885_952),
        ] {
            assert_eq!(random_config(shape).unwrap().parameters(), parameters, "{shape}");
        }
    }

    #[test]
    fn all_shapes_are_sound() {
        for shape in random_shapes() {
            let config = random_config(shape).unwrap();
            assert_eq!(config.shape().len(), config.layers, "{shape}");
        }
    }
}
