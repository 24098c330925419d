//! Checkpoints that are wrong in one way: one error, on one line, that names the file, the tensor or the setting, and
//! what was expected.
#![allow(clippy::print_stdout)] // Shown when a test fails.

mod import_support;

use burn::tensor::{DType, Device};
use import_support::{GgufWriter, configure, copy, edit, fixture, shard};
use kvsharer_models::{ModelError, ModelFiles, open_model};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";
const SECOND: &str = "model-00002-of-00002.safetensors";

/// Overwrites the bytes of the `index`-th element of a tensor of `bytes` bytes an element.
fn patch(file: &Path, tensor: &str, index: usize, element: &[u8]) {
    let mut content = fs::read(file).unwrap();
    let data = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&content[8..data]).unwrap();
    let at = data + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + index * element.len();
    content[at..at + element.len()].copy_from_slice(element);
    fs::write(file, content).unwrap();
}

fn load(path: &Path) -> Result<(), ModelError> {
    let files = open_model(path.to_str().unwrap(), 0)?;
    files.load(&Device::flex(), DType::F32).map(drop)
}

/// Checks that loading fails, with one line that has all `parts`.
fn refused(path: &Path, parts: &[&str]) {
    let message = load(path).unwrap_err().to_string();
    println!("{message}");
    assert_eq!(message.lines().count(), 1);
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

#[test]
fn a_missing_shard_is_named_with_a_tensor_it_should_hold() {
    let folder = copy("tiny_llama_untied");
    fs::remove_file(folder.path().join(SECOND)).unwrap();
    refused(folder.path(), &[SECOND, "is missing", INDEX, "tensor \"lm_head.weight\"", "fetch"]);
}

#[test]
fn a_tensor_that_only_the_index_has_is_named_with_its_shard() {
    let folder = copy("tiny_llama_untied");
    edit(folder.path(), INDEX, |index| index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = json!(SECOND));
    refused(folder.path(), &[SECOND, "has no tensor \"model.layers.9.mlp.up_proj.weight\""]);
}

#[test]
fn a_tensor_that_the_model_needs_is_named() {
    for (field, value, tensor) in [
        ("attention_bias", json!(true), "model.layers.0.self_attn.q_proj.bias"),
        ("mlp_bias", json!(true), "model.layers.0.mlp.gate_proj.bias"),
        ("num_hidden_layers", json!(5), "model.layers.4.input_layernorm.weight"),
        ("tie_word_embeddings", json!(false), "lm_head.weight"),
    ] {
        let folder = copy("tiny_llama_tied");
        configure(folder.path(), field, value);
        refused(folder.path(), &[folder.path().to_str().unwrap(), &format!("has no tensor {tensor:?}")]);
    }
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let folder = copy("tiny_llama_untied");
    configure(folder.path(), "intermediate_size", json!(40));
    let expected = "tensor \"model.layers.0.mlp.gate_proj.weight\" has shape [48, 32], expected [40, 32]";
    refused(folder.path(), &["model-00001-of-00002.safetensors", expected]);

    // The fused projection of InternLM2: one key-value head more or fewer.
    let folder = copy("families/internlm2");
    configure(folder.path(), "num_key_value_heads", json!(4));
    let expected = "tensor \"model.layers.0.attention.wqkv.weight\" has shape [64, 32], expected [96, 32]";
    refused(folder.path(), &["model.safetensors", expected]);
}

#[test]
fn weights_that_are_no_numbers_are_named_with_their_place() {
    let nan = half::bf16::NAN.to_le_bytes();
    let folder = copy("tiny_llama_untied");
    patch(&folder.path().join(SECOND), "model.norm.weight", 7, &nan);
    refused(folder.path(), &[SECOND, "tensor \"model.norm.weight\" holds NaN at element 7, expected finite numbers"]);

    let folder = copy("tiny_llama_tied");
    let infinity = f32::NEG_INFINITY.to_le_bytes();
    patch(&folder.path().join("model.safetensors"), "model.embed_tokens.weight", 100, &infinity);
    refused(folder.path(), &["model.safetensors", "\"model.embed_tokens.weight\" holds -inf at element 100"]);
}

#[test]
fn a_tokenizer_with_more_ids_than_the_model_is_refused() {
    let folder = copy("families/llama3");
    let tokenizer = folder.path().join("tokenizer.json");
    fs::copy(fixture("tokenizers/bpe/tokenizer.json"), &tokenizer).unwrap();
    configure(folder.path(), "eos_token_id", Value::Null);
    let message = ModelFiles::open_folder(folder.path()).unwrap().tokenizer().unwrap_err().to_string();
    for part in ["tokenizer.json", "has the id 909", "less than the model's vocabulary of 96"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_unknown_rope_type_is_named_with_those_that_are_known() {
    for field in ["rope_scaling", "rope_parameters"] {
        for name in ["rope_type", "type"] {
            let folder = copy("families/llama1");
            configure(folder.path(), field, json!({ name: "longrope", "factor": 2.0 }));
            refused(
                folder.path(),
                &["config.json", &format!("`{field}.{name}` = \"longrope\""), "linear, dynamic, llama3"],
            );
        }
    }
    for (rope, part) in [
        (json!({ "rope_type": "linear" }), "`rope_scaling.factor` is missing, expected a number"),
        (json!({ "rope_type": "linear", "factor": "two" }), "`rope_scaling.factor` is \"two\", expected a number"),
        (json!({ "rope_type": "linear", "factor": 0.0 }), "rope scaling factor is 0"),
        (json!({ "rope_type": "llama3", "factor": 8.0 }), "`rope_scaling.low_freq_factor` is missing"),
        (json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }), "`rope_scaling.partial_rotary_factor` = 0.5"),
    ] {
        let folder = copy("families/llama1");
        configure(folder.path(), "rope_scaling", rope);
        refused(folder.path(), &[part]);
    }
}

#[test]
fn settings_that_contradict_themselves_are_named() {
    for (case, field, value, part) in [
        ("mistral", "sliding_window", json!(0), "sliding window is 0"),
        ("mistral", "sliding_window", json!("wide"), "`sliding_window` is \"wide\", expected a whole number"),
        ("gemma3", "layer_types", json!(["full_attention"]), "`layer_types` is [\"full_attention\"], expected"),
        ("gemma3", "final_logit_softcapping", json!(30.0), "`final_logit_softcapping` = 30.0 is not supported"),
        ("gemma3", "query_pre_attn_scalar", json!(0), "score scale is inf"),
        ("qwen3", "head_dim", json!(13), "head dimension is 13"),
        ("qwen2", "num_hidden_layers", json!(1_u64 << 40), "number of layers"),
    ] {
        let folder = copy(&format!("families/{case}"));
        configure(folder.path(), field, value);
        refused(folder.path(), &[part]);
    }
}

#[test]
fn quantised_folders_are_refused() {
    let folder = copy("tiny_llama_tied");
    configure(folder.path(), "quantization_config", json!({ "quant_method": "gptq", "bits": 4 }));
    refused(folder.path(), &["config.json", "quantization_config", "gptq", "f16"]);

    let folder = copy("tiny_llama_tied");
    let weight = shard(&[("model.embed_tokens.weight", "F8_E4M3", &[96, 32], &[0; 96 * 32])]);
    fs::write(folder.path().join("model.safetensors"), weight).unwrap();
    refused(folder.path(), &["model.safetensors", "tensor \"model.embed_tokens.weight\" is stored as F8_E4M3", "BF16"]);
}

/// A GGUF file of the given architecture, so far without tensors.
fn gguf(architecture: &str) -> GgufWriter {
    let key = |name: &str| format!("{architecture}.{name}");
    GgufWriter::default()
        .str("general.architecture", architecture)
        .u32(&key("embedding_length"), 32)
        .u32(&key("feed_forward_length"), 48)
        .u32(&key("block_count"), 1)
        .u32(&key("attention.head_count"), 4)
        .entry(&key("attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes())
}

fn written(writer: &GgufWriter) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = writer.write(folder.path());
    (folder, path)
}

#[test]
fn gguf_files_that_are_not_read_are_refused() {
    let embedding = [0; 96 * 32 * 4];
    let whole = |architecture: &str| gguf(architecture).tensor("token_embd.weight", &[32, 96], 0, &embedding);
    for (writer, parts) in [
        (whole("llama").str("llama.rope.scaling.type", "longrope"), &["`llama.rope.scaling.type` = longrope"][..]),
        (whole("llama").u32("llama.rope.dimension_count", 4), &["`llama.rope.dimension_count` = 4"]),
        (whole("qwen2").u32("qwen2.attention.value_length", 4), &["`qwen2.attention.value_length` = 4"]),
        (whole("llama"), &["model.gguf has no tensor \"blk.0.attn_norm.weight\""]),
        (whole("mamba"), &["architecture `mamba` is not supported", "qwen3", "gemma3"]),
        (
            whole("llama").tensor("rope_freqs.weight", &[3], 0, &[0; 12]),
            &["tensor \"rope_freqs.weight\" has shape [3], expected [4]"],
        ),
        (whole("llama").tensor("rope_freqs.weight", &[4], 0, &[0; 16]), &["rope divisors", "are positive"]),
        (
            gguf("llama").tensor("token_embd.weight", &[256, 12], 16, &[0; 12 * 66]),
            &["model.gguf: tensor \"token_embd.weight\" is stored as an IQ type", "Q4_K or Q6_K"],
        ),
    ] {
        let (_folder, path) = written(&writer);
        refused(&path, parts);
    }
}
