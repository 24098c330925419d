//! Why a strategy cannot be exported.

use kvsharer_core::{AdaptersError, PlanError, StrategyError};
use kvsharer_models::ModelError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a strategy cannot be exported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The target has no means to run it.
    #[error("{target} cannot run this strategy: {why}")]
    Unsupported {
        /// The target.
        target: &'static str,
        /// The reason, and what to do.
        why: String,
    },
    /// Nothing to export.
    #[error("give a strategy: only `--to hf` writes a model without one")]
    NoStrategy,
    /// Weights are to be written, and there is no model.
    #[error("the weights are written too, with the strategy's fitted maps in them: name the model with --model")]
    NoModel,
    /// A folder with something in it.
    #[error("{} is not empty: give another folder, or --force to replace the files of the same names", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder that cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The strategy file, or another model than the strategy's.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// The strategy's fitted maps.
    #[error(transparent)]
    Adapters(#[from] AdaptersError),
    /// A map that does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The Hugging Face folder.
    #[error(transparent)]
    Folder(#[from] kvsharer_models::ExportError),
}

impl ExportError {
    pub(super) fn unsupported(target: &'static str, why: impl Into<String>) -> Self {
        Self::Unsupported { target, why: why.into() }
    }
}
