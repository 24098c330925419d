//! Random weights in the shapes of known models, for speed and memory work without a download.

use crate::family::Part;
use crate::{DecoderConfig, ModelError};
use burn::tensor::{DType, Device, Distribution, Tensor};

/// Draws weights with a seed; the values depend on the backend's generator.
pub(crate) struct RandomWeights {
    pub(crate) seed: u64,
}

impl RandomWeights {
    /// Seeds the device before the first tensor.
    pub(crate) fn start(&self, device: &Device) {
        device.seed(self.seed);
    }

    /// Ones for norms, otherwise normal values that keep the hidden state's scale over the layers.
    pub(crate) fn tensor<const D: usize>(
        &self,
        part: Part,
        config: &DecoderConfig,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let shape: [usize; D] = part.shape(config).try_into().unwrap_or([1; D]);
        if D == 1 {
            return Tensor::ones(shape, (device, dtype));
        }
        let spread = (shape[D - 1] as f64).sqrt().recip();
        Tensor::random(shape, Distribution::Normal(0.0, spread), (device, dtype))
    }
}

/// Shapes that `random:SHAPE` knows: name, vocabulary, hidden, intermediate, layers, heads, KV heads, theta, tied.
type Row = (&'static str, usize, usize, usize, usize, usize, usize, f64, bool);

const SHAPES: &[Row] = &[
    ("tiny", 512, 64, 128, 4, 4, 2, 1e4, true),
    ("smollm2-135m", 49152, 576, 1536, 30, 9, 3, 1e5, true),
    ("llama2-7b", 32000, 4096, 11008, 32, 32, 32, 1e4, false),
    ("llama2-13b", 32000, 5120, 13824, 40, 40, 40, 1e4, false),
    ("llama3-8b", 128256, 4096, 14336, 32, 32, 8, 5e5, false),
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
    let Some(&(_, vocab, hidden, intermediate, layers, heads, kv_heads, rope_theta, tied_head)) = row else {
        let known = random_shapes().collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownShape { shape: shape.into(), known });
    };
    DecoderConfig {
        architecture: "llama".into(),
        vocab,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim: hidden / heads,
        rope_theta,
        norm_eps: 1e-5,
        tied_head,
        max_positions: 8192,
    }
    .validated()
}
