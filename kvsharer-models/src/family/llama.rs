//! Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and the models that share its layout, such as SmolLM2.
//!
//! GGUF files of Mistral are of this architecture too.

use super::{Family, Format, HfConfig, Part, base};
use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};

pub(super) struct Llama;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hugging_face(&self) -> &'static [&'static str] {
        &["LlamaForCausalLM"]
    }

    fn gguf(&self) -> &'static [&'static str] {
        &["llama"]
    }

    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
        let attention_bias = config.flag("attention_bias")?;
        let base = base::read_hugging_face(self.name(), config)?;
        let config = DecoderConfig {
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            mlp_bias: config.flag("mlp_bias")?,
            ..base
        };
        config.validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        base::read_gguf(self.name(), file)?.validated()
    }

    fn interleaved(&self, format: Format, part: Part) -> bool {
        interleaved(format, part)
    }
}

/// llama.cpp stores Llama's query and key rows interleaved.
pub(super) fn interleaved(format: Format, part: Part) -> bool {
    let turned = matches!(part, Part::Query(_) | Part::Key(_) | Part::QueryBias(_) | Part::KeyBias(_));
    format == Format::Gguf && turned
}
