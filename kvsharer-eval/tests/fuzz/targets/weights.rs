//! Weights: safetensors folders and GGUF files, every tensor loaded, every piece of metadata read.

use super::{file, fixture, read, told};
use crate::driver::{Seed, Target};
use crate::import_support::{GgufWriter, array, shard};
use kvsharer_models::import::{GgufFile, ImportError, SafetensorsFolder, TensorSource};

/// f32 values of the densest quantisation take 128 / 18 of their bytes, and lists double as they grow.
const MEMORY: (usize, usize) = (8, 64 << 10);

pub(crate) fn safetensors() -> Target {
    let first = || shard(&[("a", "F32", &[2, 2], &[1; 16]), ("mask", "BOOL", &[3], &[1; 3])]);
    let second = shard(&[("b", "BF16", &[4], &[2; 8]), ("c", "F16", &[0, 7], &[])]);
    let index =
        r#"{"metadata":{"total_size":27},"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}}"#;
    let shards =
        [file("1.safetensors", first()), file("2.safetensors", second), file("model.safetensors.index.json", index)];
    Target {
        name: "safetensors",
        seeds: vec![Seed::new("shards", shards), Seed::new("one", [file("model.safetensors", first())])],
        judge: |folder, _| load_all(SafetensorsFolder::open(folder)).map(drop),
        memory: MEMORY,
    }
}

pub(crate) fn gguf() -> Target {
    // All kinds of values, nested lists, tensors of several types.
    let kinds = GgufWriter::default()
        .u32("general.alignment", 32)
        .entry("nested", 9, &array(9, 2, &[array(0, 3, &[1, 2, 3]), array(7, 1, &[1])].concat()))
        .entry("f64", 12, &[0; 8])
        .bool("flag", true)
        .strs("words", &["<s>", "a", "b", "ab"])
        .i32s("kinds", &[3, 1, 4, 1])
        .f32s("scores", &[0.5, 1.0])
        .tensor("f32", &[4, 2], 0, &[1; 32])
        .tensor("q4_0", &[32, 3], 2, &[2; 54])
        .tensor("q6_k", &[256], 14, &[3; 210])
        .tensor("scalar", &[], 1, &[4; 2])
        .bytes();
    Target {
        name: "gguf",
        seeds: vec![
            Seed::new("kinds", [file("model.gguf", kinds)]),
            Seed::new("tiny", [file("model.gguf", read(&fixture("tiny.gguf")))]),
        ],
        judge: |folder, _| {
            let source = load_all(GgufFile::open(folder.join("model.gguf")))?;
            let metadata = source.metadata();
            for key in metadata.keys() {
                let _ = (metadata.get::<Vec<&str>>(key), metadata.get::<u32>(key), metadata.value(key).map(drop));
            }
            Ok(())
        },
        memory: MEMORY,
    }
}

/// Loads tensors one after the other; each has the shape it was announced with.
fn load_all<S: TensorSource>(opened: Result<S, ImportError>) -> Result<S, String> {
    let source = opened.map_err(told)?;
    let mut refused = None;
    for name in source.names() {
        match source.load(name) {
            Ok(data) => assert_eq!(Some(&data.shape()[..]), source.info(name).map(|info| &info.shape[..])),
            Err(error) => refused = Some(told(error)),
        }
    }
    // A mask is no weight.
    match refused.filter(|error| !error.contains("BOOL")) {
        Some(error) => Err(error),
        None => Ok(source),
    }
}
