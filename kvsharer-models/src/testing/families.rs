//! Tiny models with the peculiarities of their families.

use crate::{Decoder, DecoderConfig, ModelError, ModelFiles, RopeConfig, RopeScaling, random_config};
use kvsharer_core::testing::Subject;

type Change = fn(&mut DecoderConfig);

/// A tiny model of a family.
#[derive(Clone, Copy)]
pub(super) struct Tiny {
    pub(super) name: &'static str,
    /// The known shape whose switches it has.
    shape: &'static str,
    /// What else is set.
    change: Change,
}

/// A model of every family, and of scalings of the rotary encoding. In all of them layer 3 has the window of layer 1.
pub(super) fn tiny_models() -> Vec<Tiny> {
    let models: [(&'static str, &'static str, Change); 8] = [
        ("llama", "smollm2-135m", |_| {}),
        ("llama, rope scaled as in Llama 3", "llama3-8b", |config| {
            config.rope.scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 };
        }),
        ("llama, YaRN and biases", "llama2-7b", |config| {
            (config.qkv_bias, config.output_bias, config.mlp_bias) = (true, true, true);
            config.rope = RopeConfig {
                theta: 1e4,
                scaling: RopeScaling::Yarn {
                    factor: 4.0,
                    original: 16,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    truncate: true,
                    attention: 1.1,
                },
            };
        }),
        ("mistral", "mistral-7b", |config| config.windows = vec![Some(7); 4]),
        ("internlm2", "internlm2-7b", |_| {}),
        ("qwen2", "qwen2.5-0.5b", |config| (config.heads, config.kv_heads) = (4, 1)),
        ("qwen3", "qwen3-8b", |config| config.head_dim = 20),
        ("gemma3", "gemma3-1b", |config| {
            (config.heads, config.kv_heads, config.head_dim) = (4, 1, 32);
            config.windows = vec![Some(5), None, Some(5), None];
            config.embedding_scale = 48_f64.sqrt();
        }),
    ];
    models.map(|(name, shape, change)| Tiny { name, shape, change }).into()
}

impl Tiny {
    /// The same weights on every device.
    pub(super) fn load(&self, subject: &Subject) -> Result<Decoder, ModelError> {
        let mut config = DecoderConfig {
            vocab: 61,
            hidden: 48,
            intermediate: 80,
            layers: 4,
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
            windows: Vec::new(),
            ..random_config(self.shape)?
        };
        (self.change)(&mut config);
        ModelFiles::random_on_host(self.name, config.validated()?, 7).load(&subject.device, subject.dtype)
    }
}
