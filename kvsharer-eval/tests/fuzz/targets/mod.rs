//! What is fuzzed, by kind: the seeds, and how their files are read and used.

pub(crate) mod chat;
pub(crate) mod experiments;
pub(crate) mod models;
pub(crate) mod strategies;
pub(crate) mod tasks;
pub(crate) mod tokenizers;
pub(crate) mod weights;

use crate::driver::Files;
use std::path::{Path, PathBuf};

/// A fixture of kvsharer-models.
fn fixture(name: &str) -> PathBuf {
    crate_folder().join("../kvsharer-models/tests/fixtures").join(name)
}

fn crate_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One file of a seed.
fn file(name: &str, content: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.into(), content.into())
}

/// All files of a folder and those in it, named from `root`.
fn folder(root: &Path, name: &str) -> Files {
    let mut found = Files::new();
    for entry in std::fs::read_dir(root.join(name)).expect("a folder") {
        let entry = entry.expect("an entry");
        let inside = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(folder(root, &inside));
        } else {
            found.insert(inside, read(&entry.path()));
        }
    }
    found
}

/// The error's text.
fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
