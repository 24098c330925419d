//! What nearly all families have in common: Llama's settings under Llama's names.

use super::{HfConfig, Part, rope};
use crate::import::{GgufFile, TensorSource, gguf::Metadata};
use crate::{Activation, DecoderConfig, ModelError};
use serde_json::Value;

/// Reads the settings every decoder has from config.json; what sets a family apart is left off. Not validated yet.
pub(super) fn read_hugging_face(name: &str, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
    if config.get("quantization_config").is_some() {
        let remedy = ": take the model in f32, f16 or bf16, or as GGUF";
        return Err(config.unsupported("quantization_config", remedy));
    }
    let activation = match config.get("hidden_act").or(config.get("hidden_activation")).and_then(Value::as_str) {
        None | Some("silu") => Activation::Silu,
        Some("gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(_) => return Err(config.unsupported("hidden_act", ": only silu and gelu_pytorch_tanh are")),
    };
    let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let layers = config.size("num_hidden_layers")?;
    let max_positions = config.size_or("max_position_embeddings", 2048)?;
    Ok(DecoderConfig {
        architecture: name.into(),
        vocab: config.size("vocab_size")?,
        hidden,
        intermediate: config.size("intermediate_size")?,
        layers,
        heads,
        kv_heads: config.size_or("num_key_value_heads", heads)?,
        head_dim: config.size_or("head_dim", hidden / heads.max(1))?,
        rope: rope::read_hugging_face(config, max_positions)?,
        local_rope: None,
        windows: Vec::new(),
        norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
        tied_head: config.flag("tie_word_embeddings")?,
        max_positions,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        post_norms: false,
        full_norms: false,
        activation,
        embedding_scale: 1.0,
        score_scale: 1.0,
    })
}

/// Reads the settings every decoder has from GGUF metadata, whose keys start with the architecture's name. Biases and
/// norms are those the file has tensors for. Not validated yet.
pub(super) fn read_gguf(name: &str, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
    let metadata = file.metadata();
    let keys = Keys { prefix: metadata.require("general.architecture")?, metadata };
    let (hidden, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
    let has = |part: Part| file.info(&part.name(super::Format::Gguf)).is_some();
    let embedding = file.info(&Part::Embedding.name(super::Format::Gguf));
    let vocab = embedding.and_then(|info| info.shape.first().copied());
    let head_dim = keys.size_or("attention.key_length", hidden / heads.max(1))?;
    let values = keys.size_or("attention.value_length", head_dim)?;
    if values != head_dim {
        return Err(keys.unsupported("attention.value_length", &values.to_string(), ": only heads of one size are"));
    }
    let layers = keys.size("block_count")?;
    let max_positions = keys.size_or("context_length", 2048)?;
    Ok(DecoderConfig {
        architecture: name.into(),
        vocab: vocab.map_or_else(|| keys.size("vocab_size"), Ok)?,
        hidden,
        intermediate: keys.size("feed_forward_length")?,
        layers,
        heads,
        kv_heads: keys.size_or("attention.head_count_kv", heads)?,
        head_dim,
        rope: rope::read_gguf(&keys, file, head_dim, max_positions)?,
        local_rope: None,
        windows: match keys.metadata.get::<usize>(&keys.name("attention.sliding_window"))? {
            // A long list of windows for a broken number of layers is refused before it is made.
            Some(window) if window > 0 && layers <= 1 << 12 => vec![Some(window); layers],
            _ => Vec::new(),
        },
        norm_eps: f64::from(keys.metadata.require::<f32>(&keys.name("attention.layer_norm_rms_epsilon"))?),
        tied_head: !has(Part::Head),
        max_positions,
        qkv_bias: has(Part::QueryBias(0)),
        output_bias: has(Part::OutputBias(0)),
        mlp_bias: has(Part::GateBias(0)),
        qk_norm: has(Part::QueryNorm(0)),
        post_norms: has(Part::PostAttentionNorm(0)),
        full_norms: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        score_scale: 1.0,
    })
}

/// Metadata keys of an architecture.
pub(super) struct Keys<'a> {
    pub(super) prefix: &'a str,
    pub(super) metadata: Metadata<'a>,
}

impl Keys<'_> {
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ModelError> {
        Ok(self.metadata.require::<usize>(&self.name(key))?)
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.metadata.get::<usize>(&self.name(key))?.unwrap_or(default))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        Ok(self.metadata.get::<f32>(&self.name(key))?.map(f64::from))
    }

    pub(super) fn unsupported(&self, key: &str, found: &str, remedy: &str) -> ModelError {
        ModelError::UnsupportedConfig {
            path: self.metadata.path().into(),
            field: self.name(key),
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}
