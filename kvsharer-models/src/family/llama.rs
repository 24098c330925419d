//! Llama (arXiv 2302.13971, 2307.09288) and the models that share its layout, such as SmolLM2.

use super::{Family, Format, HfConfig, Part};
use crate::import::GgufFile;
use crate::import::TensorSource;
use crate::{DecoderConfig, ModelError};
use serde_json::Value;

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
        for bias in ["attention_bias", "mlp_bias"] {
            if config.flag(bias)? {
                return Err(config.unsupported(bias, ": only models without biases are"));
            }
        }
        if let Some(act) = config.get("hidden_act")
            && act != "silu"
        {
            return Err(config.unsupported("hidden_act", ": only silu is"));
        }
        let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        DecoderConfig {
            architecture: self.name().into(),
            vocab: config.size("vocab_size")?,
            hidden,
            intermediate: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?,
            heads,
            kv_heads: config.size_or("num_key_value_heads", heads)?,
            head_dim: config.size_or("head_dim", hidden / heads.max(1))?,
            rope_theta: rope_theta(config)?,
            norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
            tied_head: config.flag("tie_word_embeddings")?,
            max_positions: config.size_or("max_position_embeddings", 2048)?,
        }
        .validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        let metadata = file.metadata();
        let key = |name: &str| format!("llama.{name}");
        let size = |name: &str| metadata.require::<usize>(&key(name));
        let size_or = |name: &str, default| metadata.get::<usize>(&key(name)).map(|size| size.unwrap_or(default));
        let unsupported = |field: &str, found: &str| ModelError::UnsupportedConfig {
            path: file.path().into(),
            field: field.into(),
            found: found.into(),
            remedy: ": only models without rope scaling are".into(),
        };
        let scaling = key("rope.scaling.type");
        match metadata.get::<&str>(&scaling)? {
            None | Some("none") => {}
            Some(found) => return Err(unsupported(&scaling, found)),
        }
        // Llama 3.1 and later carry their scaled frequencies as a tensor.
        if file.info("rope_freqs.weight").is_some() {
            return Err(unsupported("rope_freqs.weight", "a tensor"));
        }
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let embedding = self.tensor_name(Format::Gguf, Part::Embedding);
        let vocab = file.info(&embedding).and_then(|info| info.shape.first().copied());
        let rope_theta = metadata.get::<f32>(&key("rope.freq_base"))?.map_or(10_000.0, f64::from);
        DecoderConfig {
            architecture: self.name().into(),
            vocab: vocab.map_or_else(|| size("vocab_size"), Ok)?,
            hidden,
            intermediate: size("feed_forward_length")?,
            layers: size("block_count")?,
            heads,
            kv_heads: size_or("attention.head_count_kv", heads)?,
            head_dim: size_or("attention.key_length", hidden / heads.max(1))?,
            rope_theta,
            norm_eps: f64::from(metadata.require::<f32>(&key("attention.layer_norm_rms_epsilon"))?),
            tied_head: file.info(&self.tensor_name(Format::Gguf, Part::Head)).is_none(),
            max_positions: size_or("context_length", 2048)?,
        }
        .validated()
    }

    /// llama.cpp stores Llama's query and key rows interleaved.
    fn interleaved(&self, format: Format, part: Part) -> bool {
        format == Format::Gguf && matches!(part, Part::Query(_) | Part::Key(_))
    }
}

/// `rope_theta`, which transformers 5 moved into `rope_parameters`; scaled variants are refused.
fn rope_theta(config: &HfConfig<'_>) -> Result<f64, ModelError> {
    for field in ["rope_scaling", "rope_parameters"] {
        let kind = config.get(field).and_then(|rope| rope.get("rope_type").or_else(|| rope.get("type")));
        if kind.is_some_and(|kind| kind != "default") {
            return Err(config.unsupported(field, ": only models without rope scaling are"));
        }
    }
    let inner = config.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    match inner.and_then(Value::as_f64) {
        Some(theta) => Ok(theta),
        None => config.number_or("rope_theta", 10_000.0),
    }
}
