//! Headers that promise more than any disk holds: one error, and hardly any memory.

use crate::import_support::{GgufWriter, array};
use crate::memory::measured;
use kvsharer_core::Strategy;
use kvsharer_eval::experiment::Experiment;
use kvsharer_models::import::{GgufFile, SafetensorsFolder};
use kvsharer_models::{ModelTokenizer, open_local};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// 10 GB, of which the disk holds the beginning.
const HUGE: u64 = 10_000_000_000;

/// Paths, messages, and a little of the file.
const MEMORY: usize = 64 << 10;

fn sparse(path: &Path, start: &[u8]) {
    let mut file = File::create(path).expect("a writable folder");
    file.write_all(start).and_then(|()| file.set_len(HUGE)).expect("a file system with holes");
}

fn refused<T, E: std::fmt::Display>(what: &str, read: impl FnOnce() -> Result<T, E>) {
    let (error, peak) = measured(|| read().err().map(|error| error.to_string()));
    let error = error.unwrap_or_else(|| panic!("{what} was read"));
    println!("{what}: {peak} bytes at most; {error}");
    assert!(peak <= MEMORY, "{what} took {peak} bytes");
    assert_eq!(error.lines().count(), 1);
}

pub(crate) fn are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let whole = || GgufWriter::default().str("general.architecture", "llama").tensor("a", &[4], 0, &[0; 16]);
    let long = [&(1_u64 << 63).to_le_bytes()[..], b"llama"].concat();
    for (what, file) in [
        ("a GGUF file of 2^62 tensors", GgufWriter { tensor_count: 1 << 62, ..whole() }),
        ("a GGUF file of 2^62 metadata entries", GgufWriter { entry_count: 1 << 62, ..whole() }),
        ("a GGUF text of 2^63 bytes", whole().entry("general.name", 8, &long)),
        ("a GGUF list of 2^62 texts", whole().entry("tokenizer.ggml.tokens", 9, &array(8, 1 << 62, &long))),
        ("a GGUF list of 2^62 bytes", whole().entry("bytes", 9, &array(0, 1 << 62, &[0; 64]))),
        ("a GGUF tensor of 2^64 elements", whole().tensor_at("b", &[1 << 32, 1 << 32], 0, 0)),
        ("a GGUF tensor 2^63 bytes away", whole().tensor_at("b", &[4], 0, 1 << 63)),
    ] {
        std::fs::write(&path, file.bytes()).expect("a writable folder");
        refused(what, || GgufFile::open(&path));
    }
    sparse(&path, &GgufWriter { tensor_count: 1 << 62, ..whole() }.bytes());
    refused("a GGUF file of 2^62 tensors and 10 GB", || GgufFile::open(&path));

    let weights = folder.path().join("model.safetensors");
    for (what, length) in [("10 GB", HUGE - 8), ("2^63 bytes", 1 << 63), ("2^64 - 1 bytes", u64::MAX)] {
        sparse(&weights, &[&length.to_le_bytes()[..], b"{"].concat());
        refused(&format!("a safetensors header of {what}"), || SafetensorsFolder::open(folder.path()));
    }
    std::fs::remove_file(weights).expect("it is there");
    sparse(&folder.path().join("model.safetensors.index.json"), b"{");
    refused("a safetensors index of 10 GB", || SafetensorsFolder::open(folder.path()));
    for (name, read) in [
        ("config.json", (|path| open_local(path.parent().expect("a folder")).map(drop).map_err(told)) as Read),
        ("tokenizer.json", |path| ModelTokenizer::from_file(path).map(drop).map_err(told)),
        ("tokenizer.model", |path| ModelTokenizer::from_sentencepiece(path, &[]).map(drop).map_err(told)),
        ("strategy.json", |path| Strategy::load(path).map(drop).map_err(told)),
        ("experiment.toml", |path| Experiment::load(path).map(drop).map_err(told)),
    ] {
        let path = folder.path().join(name);
        sparse(&path, b"{");
        refused(&format!("a {name} of 10 GB"), || read(&path));
    }
}

type Read = fn(&Path) -> Result<(), String>;

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
