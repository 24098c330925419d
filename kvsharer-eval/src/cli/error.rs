//! What a command fails with.

use kvsharer_compress::SpecError;
use kvsharer_core::{PlanError, SearchError, StrategyError};
use kvsharer_eval::EvalError;
use kvsharer_eval::export::ExportError;
use kvsharer_eval::tasks::TaskError;
use kvsharer_models::ModelError;
use kvsharer_models::hub::HubError;
use std::fmt;

/// Wrong usage (exit code 2) or any other failure (exit code 1).
#[derive(Debug)]
pub(super) enum CliError {
    /// What was typed cannot be meant.
    Usage(String),
    /// Something went wrong on the way.
    Failure(Box<dyn std::error::Error + Send + Sync>),
}

impl CliError {
    pub(super) fn failure(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        CliError::Failure(Box::new(error))
    }

    pub(super) fn usage(error: impl fmt::Display) -> Self {
        CliError::Usage(error.to_string())
    }

    /// An error about a file, which the system's own message does not name.
    pub(super) fn file(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::failure(ModelError::Io { path: path.into(), source })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Usage(what) => f.write_str(what),
            CliError::Failure(error) => error.fmt(f),
        }
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Hub(ref hub)
                if matches!(**hub, HubError::BadReference { .. } | HubError::BadSetting { .. }) =>
            {
                Self::usage(error)
            }
            ModelError::UnknownModel { .. } | ModelError::UnknownShape { .. } | ModelError::BadSampling { .. } => {
                Self::usage(error)
            }
            other => Self::failure(other),
        }
    }
}

impl From<EvalError> for CliError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Model(error) => error.into(),
            EvalError::Spec(error) => error.into(),
            EvalError::Plan(error) => error.into(),
            EvalError::Search(error) => error.into(),
            EvalError::EmptyBench { .. }
            | EvalError::NoLengths { .. }
            | EvalError::Task(
                TaskError::NoProtocol { .. } | TaskError::NoShots { .. } | TaskError::TooFewShots { .. },
            )
            | EvalError::UnknownTask { .. }
            | EvalError::NoPath { .. }
            | EvalError::Needles(_)
            | EvalError::WindowTooShort { .. }
            | EvalError::PrefillTooLong { .. }
            | EvalError::EmptyBatch
            | EvalError::NothingToSolve { .. }
            | EvalError::BudgetTooSmall { .. } => Self::usage(error),
            other => Self::failure(other),
        }
    }
}

impl From<ExportError> for CliError {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Model(error) => error.into(),
            ExportError::NoStrategy | ExportError::NoModel => Self::usage(error),
            other => Self::failure(other),
        }
    }
}

impl From<SpecError> for CliError {
    fn from(error: SpecError) -> Self {
        Self::usage(error)
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> Self {
        Self::usage(error)
    }
}

impl From<SearchError> for CliError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Cache(_) | SearchError::NotFinite { .. } => Self::failure(error),
            other => Self::usage(other),
        }
    }
}

impl From<kvsharer_core::AdaptersError> for CliError {
    fn from(error: kvsharer_core::AdaptersError) -> Self {
        Self::failure(error)
    }
}

impl From<StrategyError> for CliError {
    fn from(error: StrategyError) -> Self {
        Self::failure(error)
    }
}
