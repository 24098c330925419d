//! Model families: a family is a configuration reader and a map of tensor names onto the shared decoder.
//!
//! A new family is one file here with a [`Family`], and a line in [`families`].

mod llama;

use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};
use serde_json::{Map, Value};
use std::path::Path;

/// The weights of a decoder.
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
    /// `[hidden]`.
    MlpNorm(usize),
    /// `[intermediate, hidden]`.
    Gate(usize),
    /// `[intermediate, hidden]`.
    Up(usize),
    /// `[hidden, intermediate]`.
    Down(usize),
}

impl Part {
    /// The shape `config` gives the part.
    pub fn shape(self, config: &DecoderConfig) -> Vec<usize> {
        let (hidden, width) = (config.hidden, config.intermediate);
        let (query, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Part::Embedding | Part::Head => vec![config.vocab, hidden],
            Part::FinalNorm | Part::AttentionNorm(_) | Part::MlpNorm(_) => vec![hidden],
            Part::Query(_) => vec![query, hidden],
            Part::Key(_) | Part::Value(_) => vec![kv, hidden],
            Part::Output(_) => vec![hidden, query],
            Part::Gate(_) | Part::Up(_) => vec![width, hidden],
            Part::Down(_) => vec![hidden, width],
        }
    }
}

/// Where weights come from, which decides their names and layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Hugging Face folder.
    HuggingFace,
    /// A GGUF file of llama.cpp.
    Gguf,
}

/// What sets a family apart. Names follow the conventions of Llama unless a family says otherwise.
pub trait Family: Sync {
    /// Name, also the architecture of fingerprints.
    fn name(&self) -> &'static str;

    /// `architectures` of config.json that belong to it.
    fn hugging_face(&self) -> &'static [&'static str];

    /// `general.architecture` of GGUF files that belong to it.
    fn gguf(&self) -> &'static [&'static str];

    /// Reads config.json.
    ///
    /// # Errors
    /// [`ModelError`] names a missing or unsupported setting.
    fn read_hugging_face(&self, config: &HfConfig<'_>) -> Result<DecoderConfig, ModelError>;

    /// Reads GGUF metadata.
    ///
    /// # Errors
    /// [`ModelError`] names a missing or unsupported key.
    fn read_gguf(&self, file: &GgufFile) -> Result<DecoderConfig, ModelError>;

    /// The tensor's name in a format.
    fn tensor_name(&self, format: Format, part: Part) -> String {
        match format {
            Format::HuggingFace => match part {
                Part::Embedding => "model.embed_tokens.weight".into(),
                Part::FinalNorm => "model.norm.weight".into(),
                Part::Head => "lm_head.weight".into(),
                Part::AttentionNorm(l) => format!("model.layers.{l}.input_layernorm.weight"),
                Part::Query(l) => format!("model.layers.{l}.self_attn.q_proj.weight"),
                Part::Key(l) => format!("model.layers.{l}.self_attn.k_proj.weight"),
                Part::Value(l) => format!("model.layers.{l}.self_attn.v_proj.weight"),
                Part::Output(l) => format!("model.layers.{l}.self_attn.o_proj.weight"),
                Part::MlpNorm(l) => format!("model.layers.{l}.post_attention_layernorm.weight"),
                Part::Gate(l) => format!("model.layers.{l}.mlp.gate_proj.weight"),
                Part::Up(l) => format!("model.layers.{l}.mlp.up_proj.weight"),
                Part::Down(l) => format!("model.layers.{l}.mlp.down_proj.weight"),
            },
            Format::Gguf => match part {
                Part::Embedding => "token_embd.weight".into(),
                Part::FinalNorm => "output_norm.weight".into(),
                Part::Head => "output.weight".into(),
                Part::AttentionNorm(l) => format!("blk.{l}.attn_norm.weight"),
                Part::Query(l) => format!("blk.{l}.attn_q.weight"),
                Part::Key(l) => format!("blk.{l}.attn_k.weight"),
                Part::Value(l) => format!("blk.{l}.attn_v.weight"),
                Part::Output(l) => format!("blk.{l}.attn_output.weight"),
                Part::MlpNorm(l) => format!("blk.{l}.ffn_norm.weight"),
                Part::Gate(l) => format!("blk.{l}.ffn_gate.weight"),
                Part::Up(l) => format!("blk.{l}.ffn_up.weight"),
                Part::Down(l) => format!("blk.{l}.ffn_down.weight"),
            },
        }
    }

    /// Whether a part's rows stand in the interleaved rotary order, `(channel pair, half)`, and have to be brought
    /// into the half-split order, `(half, channel pair)`, head by head.
    fn interleaved(&self, format: Format, part: Part) -> bool {
        let _ = (format, part);
        false
    }
}

/// All families, in the order they are listed.
pub fn families() -> &'static [&'static dyn Family] {
    &[&llama::Llama]
}

/// config.json with the path it came from, for errors.
pub struct HfConfig<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its content.
    pub fields: &'a Map<String, Value>,
}

impl HfConfig<'_> {
    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] if it is missing or no whole number.
    pub fn size(&self, field: &str) -> Result<usize, ModelError> {
        let size = self.get(field).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.problem(field, "a whole number"))
    }

    /// A whole number, or `default` if it is missing.
    ///
    /// # Errors
    /// As [`size`](Self::size), for a field of another type.
    pub fn size_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        self.get(field).map_or(Ok(default), |_| self.size(field))
    }

    /// A number, or `default` if it is missing.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] for a field of another type.
    pub fn number_or(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        self.get(field).map_or(Ok(default), |value| value.as_f64().ok_or_else(|| self.problem(field, "a number")))
    }

    /// A flag, false if it is missing.
    ///
    /// # Errors
    /// [`ModelError::ConfigField`] for a field of another type.
    pub fn flag(&self, field: &str) -> Result<bool, ModelError> {
        self.get(field).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.problem(field, "true or false")))
    }

    /// The error for a field that is not `expected`.
    pub fn problem(&self, field: &str, expected: &str) -> ModelError {
        let problem = match self.get(field) {
            None => format!("is missing, expected {expected}"),
            Some(value) => format!("is {value}, expected {expected}"),
        };
        ModelError::ConfigField { path: self.path.into(), field: field.into(), problem }
    }

    /// Refuses a setting this version cannot run.
    pub fn unsupported(&self, field: &str, remedy: &str) -> ModelError {
        let found = self.get(field).map_or_else(|| "null".into(), Value::to_string);
        ModelError::UnsupportedConfig { path: self.path.into(), field: field.into(), found, remedy: remedy.into() }
    }
}
