//! Models written as Hugging Face folders: config.json, model.safetensors, and the files of the tokenizer.
//!
//! What is written is a [`Decoder`] as it is in memory, with whatever was folded into it, so that other engines can load
//! it; the folder can be read back by this crate, too.

mod config;
mod error;
mod tokenizer;
mod weights;

use crate::{Decoder, ModelFiles};
pub use error::ExportError;
use serde_json::Value;
use std::path::Path;

impl ModelFiles {
    /// Writes `model`, which was loaded from these files, into an existing folder. Weights are written in the model's
    /// dtype, one tensor copied at a time; tokenizer files are those of a folder, or made from GGUF metadata (random
    /// weights have none).
    ///
    /// Where a family's configuration has no place for what was folded in (a bias of the output projection in Qwen2,
    /// for one), the folder says `LlamaForCausalLM`, if that is the same function.
    ///
    /// # Errors
    /// [`ExportError`] says what cannot be written, and what to do.
    pub fn write_folder(&self, model: &Decoder, folder: &Path) -> Result<(), ExportError> {
        let mut layout = config::layout(model)?;
        layout.fields.extend(tokenizer::write(self, folder)?);
        write_json(&folder.join("config.json"), &Value::Object(layout.fields.clone()))?;
        weights::write(model, &layout, &folder.join("model.safetensors"))
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    // Serialising a value that is JSON already cannot fail.
    write(path, format!("{value:#}\n").as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    std::fs::write(path, bytes).map_err(|source| ExportError::Io { path: path.into(), source })
}
