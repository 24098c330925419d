//! transformers: a module that puts a loaded model under the strategy beside it.

use super::ExportError;
use kvsharer_core::{Strategy, write_atomically};
use std::path::Path;

const MODULE: &str = include_str!("transformers.py");

/// Everything a strategy says can be done there, keys and values apart included.
pub(super) fn write(strategy: &Strategy, folder: &Path) -> Result<(), ExportError> {
    strategy.save(&folder.join("strategy.json"))?;
    let path = folder.join("kvsharer_sharing.py");
    write_atomically(&path, MODULE.as_bytes()).map_err(|source| ExportError::Io { path, source })
}
