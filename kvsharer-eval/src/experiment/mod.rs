//! A matrix of measurements from one file: models x seeds x strategies x stacks x tasks, one appended JSON line a cell.

mod bench;
mod file;
mod merge;
mod record;
mod run;
mod search;

pub use bench::{BenchRow, BenchSpec, bench};
pub use file::{Cell, CellKind, Experiment, Shard, StackSpec, StrategySpec};
pub use merge::{Merged, merge};
pub use record::{Record, Records};
pub use run::{Runner, Watch};
pub use search::{SearchSpec, StrategyName, Work};

use std::path::PathBuf;
use thiserror::Error;

/// Why an experiment cannot be run, resumed or merged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// A file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is no experiment.
    #[error("{}: no experiment file: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A line of a results file that is no record.
    #[error("{}:{line}: no result of `kvsharer run` ({what}); give another --output, or remove the line", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// Results that do not belong together.
    #[error("{}:{line}: {field} is {found}, but {expected} elsewhere: results of different {field}s do not compare; give another --output, or leave the file out", path.display())]
    Mixed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What differs.
        field: &'static str,
        /// There.
        found: String,
        /// Elsewhere.
        expected: String,
    },
    /// One cell with two results.
    #[error("{}:{line}: another result of cell {cell} than before: one of the two files is not of this experiment", path.display())]
    Conflict {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The cell.
        cell: usize,
    },
    /// Cells without a result.
    #[error(
        "{found} of {cells} cells have results, missing are {missing}: run their shards to the end, or merge with --partial"
    )]
    Incomplete {
        /// Results there are.
        found: usize,
        /// Results there should be.
        cells: usize,
        /// The first cells that are missing.
        missing: String,
    },
    /// Another program writes the same file.
    #[error("{}: another kvsharer is running this experiment into it: wait for it, or give another --output", .0.display())]
    Locked(PathBuf),
}
