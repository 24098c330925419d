//! Qwen3 (arXiv 2505.09388), the dense models: each head's queries and keys are normalised before they are turned.

use super::{Family, HfConfig, base, qwen2};
use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};

pub(super) struct Qwen3;

impl Family for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn hugging_face(&self) -> &'static [&'static str] {
        &["Qwen3ForCausalLM"]
    }

    fn gguf(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
        let base = base::read_hugging_face(self.name(), config)?;
        let base = DecoderConfig { head_dim: config.size_or("head_dim", 128)?, ..base }.validated()?;
        let bias = config.flag("attention_bias")?;
        DecoderConfig {
            windows: qwen2::windows(config, base.layers)?,
            qkv_bias: bias,
            output_bias: bias,
            qk_norm: true,
            ..base
        }
        .validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        DecoderConfig { qk_norm: true, ..base::read_gguf(self.name(), file)? }.validated()
    }
}
