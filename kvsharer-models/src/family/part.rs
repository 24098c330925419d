//! The weights of a decoder: their shapes and their usual names.

use super::Format;
use crate::DecoderConfig;
use std::ops::Range;

/// The weights of a decoder; the number is the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `[vocab, hidden]`.
    Embedding,
    /// `[hidden]`.
    FinalNorm,
    /// `[vocab, hidden]`, absent if tied.
    Head,
    /// `[hidden]`.
    AttentionNorm(usize),
    /// `[heads * head_dim, hidden]`.
    Query(usize),
    /// `[kv_heads * head_dim, hidden]`.
    Key(usize),
    /// `[kv_heads * head_dim, hidden]`.
    Value(usize),
    /// `[hidden, heads * head_dim]`.
    Output(usize),
    /// `[heads * head_dim]`, in some families.
    QueryBias(usize),
    /// `[kv_heads * head_dim]`, in some families.
    KeyBias(usize),
    /// `[kv_heads * head_dim]`, in some families.
    ValueBias(usize),
    /// `[hidden]`, in some families.
    OutputBias(usize),
    /// `[head_dim]`, in some families.
    QueryNorm(usize),
    /// `[head_dim]`, in some families.
    KeyNorm(usize),
    /// `[hidden]`, behind the attention, in some families.
    PostAttentionNorm(usize),
    /// `[hidden]`.
    MlpNorm(usize),
    /// `[intermediate, hidden]`.
    Gate(usize),
    /// `[intermediate, hidden]`.
    Up(usize),
    /// `[hidden, intermediate]`.
    Down(usize),
    /// `[intermediate]`, in some families.
    GateBias(usize),
    /// `[intermediate]`, in some families.
    UpBias(usize),
    /// `[hidden]`, in some families.
    DownBias(usize),
    /// `[hidden]`, behind the MLP, in some families.
    PostMlpNorm(usize),
}

/// Where a part lies in a tensor that holds several: its rows are `groups` times `block` heads, of which the heads
/// `take` of every group are the part's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Groups of heads.
    pub groups: usize,
    /// Heads of a group.
    pub block: usize,
    /// The part's heads among them.
    pub take: Range<usize>,
}

impl Part {
    /// The shape `config` gives the part.
    pub fn shape(self, config: &DecoderConfig) -> Vec<usize> {
        let (hidden, width) = (config.hidden, config.intermediate);
        let (query, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Part::Embedding | Part::Head => vec![config.vocab, hidden],
            Part::FinalNorm | Part::AttentionNorm(_) | Part::MlpNorm(_) => vec![hidden],
            Part::PostAttentionNorm(_) | Part::PostMlpNorm(_) | Part::OutputBias(_) | Part::DownBias(_) => vec![hidden],
            Part::QueryNorm(_) | Part::KeyNorm(_) => vec![config.head_dim],
            Part::Query(_) => vec![query, hidden],
            Part::Key(_) | Part::Value(_) => vec![kv, hidden],
            Part::Output(_) => vec![hidden, query],
            Part::QueryBias(_) => vec![query],
            Part::KeyBias(_) | Part::ValueBias(_) => vec![kv],
            Part::Gate(_) | Part::Up(_) => vec![width, hidden],
            Part::Down(_) => vec![hidden, width],
            Part::GateBias(_) | Part::UpBias(_) => vec![width],
        }
    }

    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        use Part::*;
        matches!(
            self,
            FinalNorm
                | AttentionNorm(_)
                | MlpNorm(_)
                | QueryNorm(_)
                | KeyNorm(_)
                | PostAttentionNorm(_)
                | PostMlpNorm(_)
        )
    }

    /// The name that Llama and most families give it.
    pub fn name(self, format: Format) -> String {
        match format {
            Format::HuggingFace => self.hugging_face_name(),
            Format::Gguf => self.gguf_name(),
        }
    }

    fn hugging_face_name(self) -> String {
        let (layer, name) = match self {
            Part::Embedding => return "model.embed_tokens.weight".into(),
            Part::FinalNorm => return "model.norm.weight".into(),
            Part::Head => return "lm_head.weight".into(),
            Part::AttentionNorm(l) => (l, "input_layernorm.weight"),
            Part::Query(l) => (l, "self_attn.q_proj.weight"),
            Part::Key(l) => (l, "self_attn.k_proj.weight"),
            Part::Value(l) => (l, "self_attn.v_proj.weight"),
            Part::Output(l) => (l, "self_attn.o_proj.weight"),
            Part::QueryBias(l) => (l, "self_attn.q_proj.bias"),
            Part::KeyBias(l) => (l, "self_attn.k_proj.bias"),
            Part::ValueBias(l) => (l, "self_attn.v_proj.bias"),
            Part::OutputBias(l) => (l, "self_attn.o_proj.bias"),
            Part::QueryNorm(l) => (l, "self_attn.q_norm.weight"),
            Part::KeyNorm(l) => (l, "self_attn.k_norm.weight"),
            Part::PostAttentionNorm(l) => (l, "post_attention_norm.weight"),
            Part::MlpNorm(l) => (l, "post_attention_layernorm.weight"),
            Part::Gate(l) => (l, "mlp.gate_proj.weight"),
            Part::Up(l) => (l, "mlp.up_proj.weight"),
            Part::Down(l) => (l, "mlp.down_proj.weight"),
            Part::GateBias(l) => (l, "mlp.gate_proj.bias"),
            Part::UpBias(l) => (l, "mlp.up_proj.bias"),
            Part::DownBias(l) => (l, "mlp.down_proj.bias"),
            Part::PostMlpNorm(l) => (l, "post_feedforward_layernorm.weight"),
        };
        format!("model.layers.{layer}.{name}")
    }

    fn gguf_name(self) -> String {
        let (layer, name) = match self {
            Part::Embedding => return "token_embd.weight".into(),
            Part::FinalNorm => return "output_norm.weight".into(),
            Part::Head => return "output.weight".into(),
            Part::AttentionNorm(l) => (l, "attn_norm.weight"),
            Part::Query(l) => (l, "attn_q.weight"),
            Part::Key(l) => (l, "attn_k.weight"),
            Part::Value(l) => (l, "attn_v.weight"),
            Part::Output(l) => (l, "attn_output.weight"),
            Part::QueryBias(l) => (l, "attn_q.bias"),
            Part::KeyBias(l) => (l, "attn_k.bias"),
            Part::ValueBias(l) => (l, "attn_v.bias"),
            Part::OutputBias(l) => (l, "attn_output.bias"),
            Part::QueryNorm(l) => (l, "attn_q_norm.weight"),
            Part::KeyNorm(l) => (l, "attn_k_norm.weight"),
            Part::PostAttentionNorm(l) => (l, "post_attention_norm.weight"),
            Part::MlpNorm(l) => (l, "ffn_norm.weight"),
            Part::Gate(l) => (l, "ffn_gate.weight"),
            Part::Up(l) => (l, "ffn_up.weight"),
            Part::Down(l) => (l, "ffn_down.weight"),
            Part::GateBias(l) => (l, "ffn_gate.bias"),
            Part::UpBias(l) => (l, "ffn_up.bias"),
            Part::DownBias(l) => (l, "ffn_down.bias"),
            Part::PostMlpNorm(l) => (l, "post_ffw_norm.weight"),
        };
        format!("blk.{layer}.{name}")
    }
}
