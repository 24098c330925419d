//! Errors of evaluations.

use kvsharer_compress::SpecError;
use kvsharer_core::{CacheError, PlanError};
use kvsharer_models::ModelError;
use thiserror::Error;

/// Why an evaluation cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The policies do not fit together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A policy SPEC.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A text without a token to predict.
    #[error("the text has {tokens} tokens: perplexity needs at least 2, the first is not predicted")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
    },
    /// A window without a token to predict.
    #[error("a window of {window} tokens predicts nothing: use at least 2")]
    WindowTooShort {
        /// Tokens of the window.
        window: usize,
    },
    /// A result that is no number.
    #[error(
        "the model gives no finite probability at token {token} of window {window}: its weights or dtype are broken"
    )]
    NotFinite {
        /// Index of the window.
        window: usize,
        /// Index of the predicted token in the window.
        token: usize,
    },
}
