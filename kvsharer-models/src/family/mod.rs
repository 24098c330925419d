//! Model families: a family is a configuration reader and a map of tensor names onto the shared decoder.
//!
//! A new family is one file here with a [`Family`], and a line in [`families`].

mod base;
mod gemma3;
mod hf;
mod internlm2;
mod llama;
mod mistral;
mod part;
mod qwen2;
mod qwen3;
mod rope;

use crate::import::GgufFile;
use crate::{DecoderConfig, ModelError};
pub use hf::HfConfig;
pub use part::{Fused, Part};

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
        part.name(format)
    }

    /// Where the part lies in a tensor that holds several, if it does.
    fn fused(&self, format: Format, part: Part, config: &DecoderConfig) -> Option<Fused> {
        let _ = (format, part, config);
        None
    }

    /// Whether the file stores a norm's weight less 1.
    fn less_one(&self, format: Format, part: Part) -> bool {
        let _ = (format, part);
        false
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
    &[&llama::Llama, &mistral::Mistral, &internlm2::InternLm2, &qwen2::Qwen2, &qwen3::Qwen3, &gemma3::Gemma3]
}
