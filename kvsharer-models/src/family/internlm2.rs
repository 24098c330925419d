//! InternLM2 and 2.5 (arXiv 2403.17297): Llama with one projection for queries, keys and values.
//!
//! Its rows come in one group for each key-value head: the group's query heads, then its key head, then its value head
//! (`modeling_internlm2.py`, `InternLM2Attention.forward`). GGUF files have them apart, interleaved as Llama's.

use super::{Family, Format, Fused, HfConfig, Part, base, llama};
use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};

pub(super) struct InternLm2;

impl Family for InternLm2 {
    fn name(&self) -> &'static str {
        "internlm2"
    }

    fn hugging_face(&self) -> &'static [&'static str] {
        &["InternLM2ForCausalLM"]
    }

    fn gguf(&self) -> &'static [&'static str] {
        &["internlm2"]
    }

    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError> {
        let bias = config.flag("bias")?;
        let base = base::read_hugging_face(self.name(), config)?;
        DecoderConfig { qkv_bias: bias, output_bias: bias, ..base }.validated()
    }

    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError> {
        base::read_gguf(self.name(), file)?.validated()
    }

    fn tensor_name(&self, format: Format, part: Part) -> String {
        if format == Format::Gguf {
            return part.name(format);
        }
        let (layer, name) = match part {
            Part::Embedding => return "model.tok_embeddings.weight".into(),
            Part::Head => return "output.weight".into(),
            Part::Query(l) | Part::Key(l) | Part::Value(l) => (l, "attention.wqkv.weight"),
            Part::QueryBias(l) | Part::KeyBias(l) | Part::ValueBias(l) => (l, "attention.wqkv.bias"),
            Part::Output(l) => (l, "attention.wo.weight"),
            Part::OutputBias(l) => (l, "attention.wo.bias"),
            Part::AttentionNorm(l) => (l, "attention_norm.weight"),
            Part::MlpNorm(l) => (l, "ffn_norm.weight"),
            Part::Gate(l) => (l, "feed_forward.w1.weight"),
            Part::Down(l) => (l, "feed_forward.w2.weight"),
            Part::Up(l) => (l, "feed_forward.w3.weight"),
            other => return other.name(format),
        };
        format!("model.layers.{layer}.{name}")
    }

    fn fused(&self, format: Format, part: Part, config: &DecoderConfig) -> Option<Fused> {
        let queries = config.heads / config.kv_heads;
        let take = match part {
            _ if format == Format::Gguf => return None,
            Part::Query(_) | Part::QueryBias(_) => 0..queries,
            Part::Key(_) | Part::KeyBias(_) => queries..queries + 1,
            Part::Value(_) | Part::ValueBias(_) => queries + 1..queries + 2,
            _ => return None,
        };
        Some(Fused { groups: config.kv_heads, block: queries + 2, take })
    }

    fn interleaved(&self, format: Format, part: Part) -> bool {
        llama::interleaved(format, part)
    }
}
