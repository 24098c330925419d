//! Gemma 3 (arXiv 2503.19786), its text models: five layers with a sliding window for each one without, each kind with
//! its own rotary base; norms before and behind attention and MLP; normalised queries and keys; scaled embeddings.
//!
//! The folders of the models that also see pictures (`Gemma3ForConditionalGeneration`) are not read, their GGUF files
//! are, without the part for pictures.

use super::base::{self, Keys};
use super::{Family, Format, HfConfig, Part, rope};
use crate::import::GgufFile;
use crate::{Activation, DecoderConfig, ModelError, RopeConfig};

/// Layers from one without a window to the next.
const PATTERN: usize = 6;

/// Layers of the 27B model, whose scores are scaled otherwise (llama.cpp, `llama-model.cpp`).
const LAYERS_27B: usize = 62;

pub(super) struct Gemma3;

impl Family for Gemma3 {
    fn name(&self) -> &'static str {
        "gemma3"
    }

    fn hugging_face(&self) -> &'static [&'static str] {
        &["Gemma3ForCausalLM"]
    }

    fn gguf(&self) -> &'static [&'static str] {
        &["gemma3"]
    }

    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
        for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if config.get(field).is_some() {
                return Err(config.unsupported(field, ": only models without soft caps are"));
            }
        }
        if config.flag("use_bidirectional_attention")? {
            return Err(config.unsupported("use_bidirectional_attention", ": only causal attention is"));
        }
        let base = base::read_hugging_face(self.name(), config)?;
        let head_dim = config.size_or("head_dim", 256)?;
        let base = DecoderConfig { head_dim, activation: Activation::GeluTanh, ..base }.validated()?;
        let (global, local) = ropes(config, base.max_positions)?;
        let pattern = config.size_or("sliding_window_pattern", PATTERN)?.max(1);
        let slides = config.sliding_layers(base.layers, |layer| (layer + 1) % pattern != 0)?;
        let window = config.size_or("sliding_window", 4096)?;
        let bias = config.flag("attention_bias")?;
        let scalar = config.number_or("query_pre_attn_scalar", 256.0)?;
        DecoderConfig {
            windows: slides.into_iter().map(|slides| slides.then_some(window)).collect(),
            rope: global,
            tied_head: config.flag_or("tie_word_embeddings", true)?,
            qkv_bias: bias,
            output_bias: bias,
            score_scale: (head_dim as f64 / scalar).sqrt(),
            ..peculiar(base, local)
        }
        .validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        let metadata = file.metadata();
        let keys = Keys { prefix: metadata.require("general.architecture")?, metadata };
        let base = base::read_gguf(self.name(), file)?.validated()?;
        let local = RopeConfig::new(keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0));
        let pattern = keys.size_or("attention.sliding_window_pattern", PATTERN)?.max(1);
        let slides = |(layer, window): (usize, &Option<usize>)| window.filter(|_| (layer + 1) % pattern != 0);
        let windows = base.windows.iter().enumerate().map(slides).collect();
        let scalar = if base.layers == LAYERS_27B { base.hidden / base.heads } else { base.head_dim };
        let score_scale = (base.head_dim as f64 / scalar.max(1) as f64).sqrt();
        DecoderConfig { windows, score_scale, activation: Activation::GeluTanh, ..peculiar(base, local) }.validated()
    }

    fn tensor_name(&self, format: Format, part: Part) -> String {
        match (format, part) {
            (Format::HuggingFace, Part::PostAttentionNorm(l)) => {
                format!("model.layers.{l}.post_attention_layernorm.weight")
            }
            (Format::HuggingFace, Part::MlpNorm(l)) => format!("model.layers.{l}.pre_feedforward_layernorm.weight"),
            _ => part.name(format),
        }
    }

    /// llama.cpp adds the 1 when it converts.
    fn less_one(&self, format: Format, part: Part) -> bool {
        format == Format::HuggingFace && part.is_norm()
    }
}

/// What all Gemma 3 models have, whatever the file.
fn peculiar(base: DecoderConfig, local: RopeConfig) -> DecoderConfig {
    DecoderConfig {
        local_rope: Some(local),
        qk_norm: true,
        post_norms: true,
        full_norms: true,
        embedding_scale: (base.hidden as f64).sqrt(),
        ..base
    }
}

/// Encodings of the layers without and with a window; transformers 5 keeps both in `rope_parameters`.
fn ropes(config: &HfConfig<'_>, max_positions: usize) -> Result<(RopeConfig, RopeConfig), ModelError> {
    const FIELD: &str = "rope_parameters";
    if let Some(both) = config.get(FIELD) {
        let of = |kind: &str, theta: f64| match both.get(kind) {
            Some(rope) => rope::read_object(config, &format!("{FIELD}.{kind}"), rope, theta, max_positions),
            None => Err(config.problem(FIELD, "settings of full_attention and sliding_attention")),
        };
        return Ok((of("full_attention", 1e6)?, of("sliding_attention", 1e4)?));
    }
    let local = RopeConfig::new(config.number_or("rope_local_base_freq", 1e4)?);
    let theta = config.number_or("rope_theta", 1e6)?;
    match config.get("rope_scaling") {
        Some(scaling) => Ok((rope::read_object(config, "rope_scaling", scaling, theta, max_positions)?, local)),
        None => Ok((RopeConfig::new(theta), local)),
    }
}
