//! Mistral (arXiv 2310.06825): Llama with a sliding window in every layer. Later versions have none.

use super::{Family, HfConfig, base};
use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};

pub(super) struct Mistral;

impl Family for Mistral {
    fn name(&self) -> &'static str {
        "mistral"
    }

    fn hugging_face(&self) -> &'static [&'static str] {
        &["MistralForCausalLM"]
    }

    /// GGUF files of Mistral say that they are Llama.
    fn gguf(&self) -> &'static [&'static str] {
        &[]
    }

    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
        let base = base::read_hugging_face(self.name(), config)?.validated()?;
        let windows = match config.get("sliding_window") {
            None => Vec::new(),
            Some(_) => vec![Some(config.size("sliding_window")?); base.layers],
        };
        DecoderConfig { windows, ..base }.validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        base::read_gguf(self.name(), file)?.validated()
    }
}
