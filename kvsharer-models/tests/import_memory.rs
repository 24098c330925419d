//! Host memory while a sharded model is read: one shard is mapped at a time, one tensor copied at a time.
#![cfg(target_os = "linux")]

mod import_support;

use kvsharer_models::import::{SafetensorsFolder, TensorSource};
use serde_json::json;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const SHARDS: usize = 6;
const TENSORS: usize = 3;
/// Of bf16: 8 MiB a tensor.
const SHAPE: [usize; 2] = [2048, 2048];
const TENSOR_BYTES: usize = SHAPE[0] * SHAPE[1] * 2;

/// A line of /proc/self/status, in bytes.
fn status(field: &str) -> usize {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: usize = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// Shards whose tensors are all zero, and their index.
fn write(folder: &Path) {
    let mut weight_map = serde_json::Map::new();
    for index in 0..SHARDS {
        let (name, mut header) = (format!("{index}.safetensors"), serde_json::Map::new());
        for tensor in 0..TENSORS {
            let key = format!("layer.{index}.{tensor}");
            let offsets = [tensor * TENSOR_BYTES, (tensor + 1) * TENSOR_BYTES];
            header.insert(key.clone(), json!({"dtype": "BF16", "shape": SHAPE, "data_offsets": offsets}));
            weight_map.insert(key, json!(name));
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut file = File::create(folder.join(name)).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len((8 + header.len() + TENSORS * TENSOR_BYTES) as u64).unwrap();
    }
    let index = json!({ "weight_map": weight_map }).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn no_more_than_one_shard_and_one_tensor_is_ever_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let source = SafetensorsFolder::open(folder.path()).unwrap();
    let slack = 4 << 20;
    let (files, anonymous) = (status("RssFile"), status("RssAnon"));
    for name in source.names() {
        let data = source.load(name).unwrap();
        assert_eq!(data.num_elements(), SHAPE[0] * SHAPE[1]);
        let mapped = status("RssFile").saturating_sub(files);
        let copied = status("RssAnon").saturating_sub(anonymous);
        assert!(mapped <= TENSORS * TENSOR_BYTES + slack, "{name}: {mapped} bytes of files");
        assert!(copied <= TENSOR_BYTES + slack, "{name}: {copied} bytes of copies");
    }
    // What was read is more than what was ever in memory.
    assert!(status("VmHWM") < SHARDS * TENSORS * TENSOR_BYTES, "{}", status("VmHWM"));
}
