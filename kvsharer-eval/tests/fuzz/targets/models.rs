//! Whole models: what the files of a model say is planned, loaded and run.

use super::{file, fixture, read, told};
use crate::driver::{Seed, Target};
use burn::tensor::{DType, Device};
use kvsharer_core::{Cache, Lengths, Plan, SearchModel, Stack};
use kvsharer_eval::check_memory;
use kvsharer_models::{ModelFiles, open_local};
use std::path::Path;

/// Weights are held in f32, and once more while they are turned; the rest is the forward pass.
const MEMORY: (usize, usize) = (16, 8 << 20);

const FAMILIES: [&str; 13] = [
    "gemma3",
    "internlm2",
    "internlm2_bias",
    "llama1",
    "llama3",
    "llama_biases",
    "llama_dynamic",
    "llama_linear",
    "llama_yarn",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
];

/// config.json of every family.
pub(crate) fn configurations() -> Target {
    let seed = |family: &&str| {
        let folder = fixture("families").join(family);
        let golden: serde_json::Value = serde_json::from_slice(&read(&folder.join("golden.json"))).expect("JSON");
        let weights = fixture("families").join(golden["weights"].as_str().expect("a name"));
        let mut seed = Seed::new(family, [file("config.json", read(&folder.join("config.json")))]);
        seed.fixed.extend([file("model.safetensors", read(&weights.join("model.safetensors")))]);
        seed
    };
    Target {
        name: "configurations",
        seeds: FAMILIES.iter().map(seed).collect(),
        judge: |folder, _| run(open_local(folder)),
        memory: MEMORY,
    }
}

/// GGUF models of every family, whose configuration is in their metadata, and small safetensors folders.
pub(crate) fn weights() -> Target {
    let mut seeds = vec![Seed::new("tiny", [file("model.gguf", read(&fixture("tiny.gguf")))])];
    for family in ["llama3", "internlm2_bias", "qwen2", "qwen3", "gemma3_gguf"] {
        let path = fixture("families").join(family).join("model.gguf");
        seeds.push(Seed::new(family, [file("model.gguf", read(&path))]));
    }
    let tied = fixture("tiny_llama_tied");
    let part = |name: &str| file(name, read(&tied.join(name)));
    seeds.push(Seed::new("folder", [part("config.json"), part("model.safetensors")]));
    Target {
        name: "models",
        seeds,
        judge: |folder: &Path, name| match name {
            "folder" => run(open_local(folder)),
            _ => run(open_local(&folder.join("model.gguf"))),
        },
        memory: MEMORY,
    }
}

/// Plans for the model, loads it and runs three tokens.
fn run(opened: Result<ModelFiles, kvsharer_models::ModelError>) -> Result<(), String> {
    let files = opened.map_err(told)?;
    let plan = Plan::new(&files.shape(), &Stack::new()).map_err(told)?;
    plan.bytes(1, Lengths::new(3, 4), 4);
    let _ = check_memory(&files, 4, 0, Some(0));
    files.fingerprint().map_err(told)?;
    let _ = (files.chat_template(None).map(drop), files.tokenizer().map(drop));
    let model = files.load(&Device::flex(), DType::F32).map_err(told)?;
    let cache = Cache::new(model.shape(), Stack::new(), model.cache_options(1, 4), &model.device());
    let mut cache = cache.map_err(told)?;
    for tokens in [&[0_u32, 1][..], &[2]] {
        model.forward(&[tokens], &mut cache).map_err(told)?;
    }
    Ok(())
}
