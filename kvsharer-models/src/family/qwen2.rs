//! Qwen2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on queries, keys and values, and, if switched on,
//! sliding windows in the upper layers.

use super::{Family, HfConfig, base};
use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};

pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn hugging_face(&self) -> &'static [&'static str] {
        &["Qwen2ForCausalLM"]
    }

    fn gguf(&self) -> &'static [&'static str] {
        &["qwen2"]
    }

    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
        let base = base::read_hugging_face(self.name(), config)?.validated()?;
        let windows = windows(config, base.layers)?;
        DecoderConfig { windows, qkv_bias: true, ..base }.validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        DecoderConfig { qkv_bias: true, ..base::read_gguf(self.name(), file)? }.validated()
    }
}

/// Windows as Qwen switches them on: `use_sliding_window`, and then from layer `max_window_layers` up.
pub(super) fn windows(config: &HfConfig<'_>, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    if !config.flag("use_sliding_window")? || config.get("sliding_window").is_none() {
        return Ok(Vec::new());
    }
    let (window, full) = (config.size("sliding_window")?, config.size_or("max_window_layers", 28)?);
    let slides = config.sliding_layers(layers, |layer| layer >= full)?;
    Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
}
