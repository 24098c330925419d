//! Errors of writing a model.

use crate::ModelError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a model cannot be written as a Hugging Face folder.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A setting that no configuration of transformers' families expresses.
    #[error("{what} has no place in the configuration of a Hugging Face folder{remedy}")]
    NoPlace {
        /// The setting.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A model some of whose layers have no attention.
    #[error(
        "a model whose layers lost their attention is no Hugging Face model any more: export a strategy without dropped layers"
    )]
    Dropped,
    /// Weights of a type that safetensors files of models do not have.
    #[error("weights of type {0} cannot be written: take --dtype f32, f16 or bf16")]
    Dtype(String),
    /// The model's own files, or its device.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer library.
    #[error("the tokenizer cannot be written: {0}")]
    Tokenizer(String),
    /// The safetensors library.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: safetensors::SafeTensorError,
    },
    /// A file that cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
