//! vLLM: a plugin whose models share caches across layers (`kv_sharing_target_layer_name` of vLLM's `Attention`).

use super::{ExportError, apart};
use kvsharer_core::{Strategy, write_atomically};
use std::path::Path;

const FILES: [(&str, &str); 4] = [
    ("pyproject.toml", include_str!("vllm/pyproject.toml")),
    ("README.md", include_str!("vllm/README.md")),
    ("kvsharer_vllm/__init__.py", include_str!("vllm/__init__.py")),
    ("kvsharer_vllm/models.py", include_str!("vllm/models.py")),
];

/// vLLM has one buffer a layer for keys and values together.
pub(super) fn check(strategy: &Strategy) -> Result<(), ExportError> {
    let apart = apart(strategy);
    if apart.is_empty() {
        return Ok(());
    }
    let layers: Vec<String> = apart.iter().map(ToString::to_string).collect();
    let why = format!(
        "it shares keys and values apart (layers {}), and vLLM keeps both of a layer in one buffer; search with --units \
         both, or export to transformers",
        layers.join(", ")
    );
    Err(ExportError::unsupported("vLLM", why))
}

/// Writes the package.
pub(super) fn write(strategy: &Strategy, folder: &Path) -> Result<(), ExportError> {
    let package = folder.join("kvsharer_vllm");
    std::fs::create_dir(&package).map_err(|source| ExportError::Io { path: package.clone(), source })?;
    for (name, content) in FILES {
        let path = folder.join(name);
        write_atomically(&path, content.as_bytes()).map_err(|source| ExportError::Io { path, source })?;
    }
    Ok(strategy.save(&package.join("strategy.json"))?)
}
