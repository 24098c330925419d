//! What is wrong with a benchmark's files, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Where an item stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: Arc<Path>,
    line: usize,
}

impl Place {
    /// A line of a file, counted from 1.
    pub fn new(path: &Arc<Path>, line: usize) -> Self {
        Self { path: path.clone(), line }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line, from 1; of an item over several lines, the first.
    pub fn line(&self) -> usize {
        self.line
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// What is wrong with one item.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// Bytes that are no text.
    #[error("is no UTF-8 text")]
    Utf8,
    /// No JSON.
    #[error("is no JSON ({0})")]
    Json(String),
    /// No CSV record.
    #[error("is no CSV record ({0})")]
    Csv(String),
    /// A field that is not there.
    #[error("has no `{0}`")]
    Missing(String),
    /// A field of another type.
    #[error("`{key}` is {found}, expected {expected}")]
    Type {
        /// The field.
        key: String,
        /// What was expected.
        expected: &'static str,
        /// What stands there, shortened.
        found: String,
    },
    /// A label that names no choice.
    #[error("`{key}` is {found}, expected {expected}")]
    Label {
        /// The field.
        key: String,
        /// What was expected.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// Fewer than two choices.
    #[error("has {0} choices, at least 2 are needed")]
    TooFewChoices(usize),
    /// Another number of choices than the task has.
    #[error("has {found} choices, expected {expected}")]
    Choices {
        /// How many there are.
        found: usize,
        /// How many were expected.
        expected: usize,
    },
    /// A choice without text, which every model would find certain.
    #[error("choice {0} is empty")]
    EmptyChoice(usize),
    /// Anything else that an item must have.
    #[error("{0}")]
    Broken(String),
}

/// Why a benchmark cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An item.
    #[error("{place}: {fault}; mend or remove it, or count and skip such items with --skip-bad")]
    BadItem {
        /// Where.
        place: Place,
        /// What.
        fault: Fault,
    },
    /// A file or folder without an item.
    #[error("{}: no items of {task} here; it wants {files}", path.display())]
    Empty {
        /// The task.
        task: &'static str,
        /// What it wants.
        files: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// Labels that do not belong to the items.
    #[error("{}: {labels} labels for {items} items", path.display())]
    Labels {
        /// The file of labels.
        path: PathBuf,
        /// How many labels.
        labels: usize,
        /// How many items.
        items: usize,
    },
    /// A protocol that knows no such task.
    #[error("{task} has no protocol {protocol}; it has {known}")]
    NoProtocol {
        /// The task.
        task: &'static str,
        /// The protocol asked for.
        protocol: &'static str,
        /// Its protocols.
        known: String,
    },
    /// Examples asked for without a file of examples, or too few in it.
    #[error(
        "{task} by {protocol} needs {wanted} examples{of}, found {found}: give --dev {task}=PATH with items for examples, or another --shots"
    )]
    TooFewShots {
        /// The task.
        task: &'static str,
        /// The protocol.
        protocol: &'static str,
        /// The subject, if there are several.
        of: String,
        /// Examples asked for.
        wanted: usize,
        /// Examples there are.
        found: usize,
    },
    /// Examples for a task that the protocol asks without.
    #[error("{task} is asked without examples by {protocol}: leave --shots out")]
    NoShots {
        /// The task.
        task: &'static str,
        /// The protocol.
        protocol: &'static str,
    },
}
