//! Results as people look at them: read from files, put side by side where that is fair, as tables and plots.
//!
//! [`read`] gives all results; [`cells`] summarises them and gives deltas to the full cache; [`html`], [`markdown`] and
//! [`csv`] write them down.

mod cells;
mod csv;
mod filters;
mod html;
mod kinds;
mod markdown;
mod memory;
mod number;
mod pareto;
mod plot;
mod quality;
mod read;
mod row;
mod sections;
mod speed;
mod strategy;
mod table;

pub use cells::{Cell, Delta, cells};
pub use csv::csv;
pub use html::html;
pub use markdown::markdown;
pub use pareto::front;
pub use plot::Plot;
pub use read::{Problem, read};
pub use row::{Conditions, Measure, Row, Setup, StrategyId, TaskRules, greater_is_better};
pub use sections::{Section, sections};
pub use table::{Column, Field, Line, Table, Tags};

use kvsharer_core::Strategy;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use thiserror::Error;

/// What result files hold.
#[derive(Debug, Default)]
pub struct Results {
    /// The files that were read.
    pub files: Vec<String>,
    /// All measured numbers.
    pub rows: Vec<Row>,
    /// Bytes of plans.
    pub memory: Vec<Memory>,
    /// Strategies: file, SHA-256 of it, content.
    pub strategies: Vec<(PathBuf, String, Strategy)>,
    /// How backends agree with the reference.
    pub conformance: Vec<Conformance>,
    /// What was left out.
    pub problems: Vec<Problem>,
}

/// Bytes of a plan for so many sequences and tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// The model's name.
    pub model: String,
    /// SHA-256 over the model's tensors, where the file tells it.
    pub model_hash: Option<String>,
    /// Dtype of the cache.
    pub dtype: String,
    /// Library and version, where the file tells it.
    pub library: Option<String>,
    /// Sequences.
    pub batch: usize,
    /// Tokens of the longest.
    pub tokens: usize,
    /// Strategy and policies.
    pub setup: Setup,
    /// KV bytes.
    pub bytes: u64,
}

/// One case of `kvsharer conformance`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conformance {
    /// Name of the case.
    pub case: String,
    /// The device.
    pub device: String,
    /// The dtype.
    pub dtype: String,
    /// The largest error; none where the case was skipped.
    #[serde(default)]
    pub worst_error: Option<f64>,
    /// The largest that is allowed.
    #[serde(default)]
    pub tolerance: Option<f64>,
    /// What became of it.
    pub verdict: String,
    /// Why, where there is more to say.
    #[serde(default)]
    pub note: Option<String>,
}

/// Why there is no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file too large to be results.
    #[error("{}: {bytes} bytes are too many for results", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// No file holds a result.
    #[error(
        "nothing to report: none of {files} files holds results of kvsharer{}",
        first.as_ref().map_or(String::new(), |problem| format!(" ({}: {})", problem.place, problem.what))
    )]
    Nothing {
        /// Files that were read.
        files: usize,
        /// What is wrong with the first.
        first: Option<Problem>,
    },
    /// A plot that cannot be drawn.
    #[error("a plot cannot be drawn: {0}")]
    Plot(String),
    /// A page that cannot be made.
    #[error("the page cannot be made: {0}")]
    Page(#[from] minijinja::Error),
    /// A table that cannot be written.
    #[error("the table cannot be written: {0}")]
    Csv(#[from] ::csv::Error),
}
