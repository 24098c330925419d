//! Safetensors: single files, shards with an index, and one folder a way to be wrong.

mod import_support;

use std::path::Path;

use burn::tensor::DType;
use import_support::{fixture, json, shard};
use kvsharer_models::import::{Fault, ImportError, SafetensorsFolder, SourceDtype, TensorSource, load_shaped};
use serde_json::json;

fn open(folder: &Path) -> Result<SafetensorsFolder, ImportError> {
    SafetensorsFolder::open(folder)
}

/// A folder of two shards: "a" in the first, "b" and "c" in the second, and an index.
fn sharded(weight_map: serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("1.safetensors", &shard(&[("a", "F32", &[1], &1f32.to_le_bytes())]));
    write("2.safetensors", &shard(&[("b", "F16", &[2], &[0, 0x3c, 0, 0x40]), ("c", "I8", &[3], &[1, 2, 3])]));
    let index = serde_json::to_vec(&json!({"metadata": {}, "weight_map": weight_map})).unwrap();
    write("model.safetensors.index.json", &index);
    folder
}

#[test]
fn a_folder_with_one_file_is_read() {
    let folder = open(&fixture("tiny_llama_tied")).unwrap();
    let names = folder.names();
    assert!(names.is_sorted() && names.contains(&"model.embed_tokens.weight"));
    assert!(!names.contains(&"lm_head.weight"));
    for name in names {
        let info = folder.info(name).unwrap();
        let data = load_shaped(&folder, name, &info.shape).unwrap();
        assert_eq!(data.as_bytes(), &*folder.raw(name).unwrap(), "{name}");
    }
    let file = open(&fixture("tiny_llama_tied/model.safetensors")).unwrap();
    assert_eq!(file.names(), folder.names());
}

#[test]
fn shards_are_read_through_their_index() {
    let folder = open(&fixture("tiny_llama_untied")).unwrap();
    let index = json("tiny_llama_untied/model.safetensors.index.json");
    let weight_map = index["weight_map"].as_object().unwrap();
    assert!(folder.names().iter().eq(weight_map.keys()));
    let mut bytes = 0;
    for name in folder.names() {
        assert_eq!(folder.info(name).unwrap().dtype, SourceDtype::BF16, "{name}");
        let data = folder.load(name).unwrap();
        assert_eq!(data.dtype(), DType::BF16);
        assert_eq!(data.as_bytes(), &*folder.raw(name).unwrap(), "{name}");
        bytes += data.as_bytes().len();
    }
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(bytes as u64));
}

#[test]
fn values_come_from_the_right_shard() {
    let folder = sharded(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}));
    let source = open(folder.path()).unwrap();
    assert_eq!(source.load("a").unwrap().try_to_vec_as::<f32>().unwrap(), [1.0]);
    assert_eq!(source.load("b").unwrap().try_to_vec_as::<f32>().unwrap(), [1.0, 2.0]);
    assert_eq!(*source.raw("c").unwrap(), [1, 2, 3]);
    let message = source.load("c").unwrap_err().to_string();
    assert!(message.contains("\"c\"") && message.contains("I8"), "{message}");
    assert!(matches!(source.load("d"), Err(ImportError::MissingTensor { .. })));
    // The index may be named itself.
    assert_eq!(open(&folder.path().join("model.safetensors.index.json")).unwrap().names(), ["a", "b", "c"]);
}

#[test]
fn an_index_cannot_reach_outside_its_folder() {
    for shard in
        ["../x.safetensors", "/etc/passwd", "..", ".", "", "sub/1.safetensors", "./1.safetensors", "1.safetensors/"]
    {
        let folder = sharded(json!({ "a": shard }));
        let error = open(folder.path()).unwrap_err();
        assert!(matches!(error, ImportError::Broken { fault: Fault::OutsideFolder, .. }), "{shard:?}: {error}");
    }
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let absent = sharded(json!({"a": "1.safetensors", "b": "3.safetensors"}));
    assert!(matches!(open(absent.path()), Err(ImportError::MissingShard { shard, tensor, .. })
        if shard.ends_with("3.safetensors") && tensor == "b"));
    let elsewhere = sharded(json!({"a": "2.safetensors"}));
    assert!(matches!(open(elsewhere.path()), Err(ImportError::MissingTensor { name, .. }) if name == "a"));
    for weight_map in [json!(7), json!({"a": 1}), json!(null)] {
        let error = open(sharded(weight_map).path()).unwrap_err();
        assert!(matches!(error, ImportError::Broken { fault: Fault::Json(_), .. }), "{error}");
    }
}

#[test]
fn a_file_cut_or_extended_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = shard(&[("a", "F32", &[2], &[0; 8]), ("b", "BF16", &[1, 2], &[0; 4])]);
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, ImportError::Truncated { .. } | ImportError::Broken { .. }), "{length}: {error}");
    }
    std::fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert!(matches!(open(&path), Err(ImportError::Broken { fault: Fault::Safetensors(_), .. })));
}

#[test]
fn a_shard_changed_while_the_folder_is_open_is_refused() {
    let folder = sharded(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let source = open(folder.path()).unwrap();
    source.load("b").unwrap();
    std::fs::write(folder.path().join("1.safetensors"), [0; 9]).unwrap();
    let error = source.load("a").unwrap_err();
    assert!(
        matches!(&error, ImportError::Broken { path, fault: Fault::WrongSize { found: 9, .. }, .. }
        if path.ends_with("1.safetensors")),
        "{error}"
    );
    std::fs::remove_file(folder.path().join("1.safetensors")).unwrap();
    assert!(matches!(source.load("a"), Err(ImportError::Io { .. })));
    source.load("b").unwrap();
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (shape, offsets) in [
        (json!([3]), json!([0, 8])),           // more elements than bytes
        (json!([2]), json!([4, 12])),          // a gap, and past the end
        (json!([2]), json!([8, 0])),           // backwards
        (json!([u64::MAX, 2]), json!([0, 8])), // a size that overflows
        (json!([1u64 << 62]), json!([0, 8])),  // a size in bytes that overflows
        (json!([2]), json!([0, u64::MAX])),
        (json!([-2]), json!([0, 8])),
    ] {
        let header = json!({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat();
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, ImportError::Broken { fault: Fault::Safetensors(_), .. }), "{header}: {error}");
    }
}

#[test]
fn folders_without_a_model_say_what_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let message = open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors.index.json"), "{message}");
    assert!(matches!(open(&folder.path().join("absent")), Err(ImportError::Io { .. })));
}
