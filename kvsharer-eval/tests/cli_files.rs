//! Broken models on disk are refused with exit code 1 and one error line that names the file and what is wrong.
#![allow(clippy::print_stdout)] // skipped checks say why

mod support;

use serde_json::{Map, Value, json};
use std::path::Path;
use support::{Run, fixture, folder, run, strategy, tiny, write};
use tempfile::TempDir;

/// A command that reads a model to the last tensor.
fn generate(model: &Path) -> Run {
    let folder = folder();
    run(folder.path(), &["generate", "-m", model.to_str().expect("a UTF-8 path"), "-p", "a", "-n", "2"])
}

fn tiny_bytes() -> Vec<u8> {
    std::fs::read(tiny()).expect("the fixture")
}

/// A copy of tiny_llama_tied with a tokenizer of one token for each printable ASCII character.
fn hugging_face() -> TempDir {
    let copy = folder();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny_llama_tied").join(file), copy.path().join(file)).expect("the fixture");
    }
    let vocab: Map<String, Value> =
        (b' '..=b'~').enumerate().map(|(id, byte)| (char::from(byte).to_string(), id.into())).collect();
    let tokenizer =
        json!({ "version": "1.0", "added_tokens": [], "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
    write(copy.path(), "tokenizer.json", tokenizer.to_string());
    copy
}

/// Changes the fields of config.json.
fn configure(model: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = model.join("config.json");
    let text = std::fs::read(&path).expect("the fixture");
    let mut fields: Map<String, Value> = serde_json::from_slice(&text).expect("an object");
    change(&mut fields);
    std::fs::write(&path, Value::from(fields).to_string()).expect("a writable folder");
}

/// Changes the bytes of model.safetensors.
fn patch_weights(model: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the fixture");
    change(&mut bytes);
    std::fs::write(&path, bytes).expect("a writable folder");
}

/// Rewrites model.safetensors with other names; data and offsets stay.
fn rename_tensor(model: &Path, from: &str, to: &str) {
    patch_weights(model, |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + length]).expect("a header").trim_end().replace(from, to);
        let mut new = (header.len() as u64).to_le_bytes().to_vec();
        new.extend_from_slice(header.as_bytes());
        new.extend_from_slice(&bytes[8 + length..]);
        *bytes = new;
    });
}

#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    let work = folder();
    let whole = tiny_bytes();
    // The last bytes are padding, whose loss is none.
    for length in [0, 1, 4, 7, 8, 16, 23, 24, 25, 100, 500, 5000, whole.len() / 2, whole.len() - 200, whole.len() - 32]
    {
        let path = write(work.path(), "cut.gguf", &whole[..length]);
        generate(Path::new(&path)).fails(1, "cut.gguf is cut short");
    }
}

#[test]
fn a_gguf_file_with_a_lying_count_is_refused() {
    let work = folder();
    let whole = tiny_bytes();
    let count = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().expect("8 bytes"));
    for (at, lie, expected) in [
        (8, 0, "lie.gguf "),
        (8, count(8) - 2, "lie.gguf "),
        (8, count(8) + 1, "lie.gguf is "),
        (8, 1 << 40, "cut short"),
        (8, u64::MAX, "cut short"),
        (16, 0, "general.architecture"),
        (16, count(16) + 1, "lie.gguf is "),
        (16, u64::MAX, "cut short"),
    ] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&lie.to_le_bytes());
        let path = write(work.path(), "lie.gguf", bytes);
        println!("{lie} at byte {at}");
        generate(Path::new(&path)).fails(1, expected);
    }
}

#[test]
fn a_gguf_file_of_another_kind_or_family_is_refused() {
    let work = folder();
    let mut bytes = tiny_bytes();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("the key") + key.len();
    let value = at + bytes[at..].windows(5).position(|window| window == b"llama").expect("the value");
    bytes[value..value + 5].copy_from_slice(b"llbma");
    let path = write(work.path(), "family.gguf", &bytes);
    generate(Path::new(&path)).fails(1, "architecture `llbma` is not supported: supported are llama");
    let path = write(work.path(), "text.gguf", "this is no model at all, just a line of text");
    generate(Path::new(&path)).fails(1, "text.gguf is not a model");
    let mut version = tiny_bytes();
    version[4] = 99;
    let path = write(work.path(), "version.gguf", version);
    generate(Path::new(&path)).fails(1, "version.gguf");
}

#[test]
fn a_folder_with_its_files_works() {
    let model = hugging_face();
    let done = generate(model.path()).succeeds();
    assert!(done.stdout.starts_with('a'), "{}", done.stdout);
}

#[test]
fn a_folder_without_a_file_is_refused() {
    for (missing, expected) in [
        ("config.json", "config.json: No such file"),
        ("model.safetensors", "safetensors"),
        ("tokenizer.json", "has no tokenizer: put its tokenizer.json or tokenizer.model into the folder"),
    ] {
        let model = hugging_face();
        std::fs::remove_file(model.path().join(missing)).expect("it was there");
        generate(model.path()).fails(1, expected);
    }
}

#[test]
fn a_folder_with_a_broken_configuration_is_refused() {
    for (broken, expected) in [
        ("", "is no JSON object"),
        ("{\"architectures\": [", "is no JSON object"),
        ("[1, 2]", "is no JSON object"),
        ("{}", "`architectures`"),
        ("{\"architectures\": [\"LlamaForCausalLM\"]}", "config.json"),
        ("\u{0}\u{1}", "is no JSON object"),
    ] {
        let model = hugging_face();
        write(model.path(), "config.json", broken);
        generate(model.path()).fails(1, expected);
    }
}

#[test]
fn a_folder_whose_configuration_does_not_fit_is_refused() {
    for (field, value, expected) in [
        (
            "architectures",
            json!(["MambaForCausalLM"]),
            "`MambaForCausalLM` is not supported: supported are LlamaForCausalLM",
        ),
        ("architectures", json!("LlamaForCausalLM"), "`architectures`"),
        ("hidden_size", json!(64), "expected [96, 64]"),
        ("hidden_size", json!("32"), "`hidden_size`"),
        ("hidden_size", json!(0), "hidden"),
        ("hidden_size", json!(-32), "`hidden_size`"),
        ("num_hidden_layers", json!(5), "model.layers.4."),
        ("num_hidden_layers", json!(0), "layers"),
        ("num_hidden_layers", json!(1_u64 << 60), "layers"),
        ("num_attention_heads", json!(3), "heads"),
        ("num_key_value_heads", json!(0), "heads"),
        ("num_key_value_heads", json!(4), "expected [32, 32]"),
        ("head_dim", json!(7), "head"),
        ("intermediate_size", json!(49), "expected [49, 32]"),
        ("vocab_size", json!(97), "expected [97, 32]"),
        ("vocab_size", json!(u64::MAX), "config"),
        ("hidden_act", json!("relu"), "`hidden_act` = "),
        ("attention_bias", json!(true), "q_proj.bias"),
        ("rope_parameters", json!({ "rope_type": "longrope", "rope_theta": 1e4 }), "longrope"),
        ("rms_norm_eps", json!("small"), "`rms_norm_eps`"),
    ] {
        let model = hugging_face();
        println!("{field} = {value}");
        configure(model.path(), |fields| drop(fields.insert(field.into(), value)));
        generate(model.path()).fails(1, expected);
    }
}

#[test]
fn a_folder_with_broken_weights_is_refused() {
    type Change = fn(&mut Vec<u8>);
    let breaks: &[(&str, Change)] = &[
        ("empty", Vec::clear),
        ("half a length", |bytes| bytes.truncate(5)),
        ("half a header", |bytes| bytes.truncate(100)),
        ("half the data", |bytes| bytes.truncate(bytes.len() / 2)),
        ("one byte less", |bytes| bytes.truncate(bytes.len() - 1)),
        ("one byte more", |bytes| bytes.push(0)),
        ("a header of no length", |bytes| bytes[..8].fill(0)),
        ("a header as long as can be", |bytes| bytes[..8].fill(0xff)),
        ("a header longer by one", |bytes| bytes[0] += 1),
        ("a header shorter by one", |bytes| bytes[0] -= 1),
        ("a header that is no JSON", |bytes| bytes[8] = b'!'),
    ];
    for (name, change) in breaks {
        let model = hugging_face();
        patch_weights(model.path(), change);
        println!("{name}");
        generate(model.path()).fails(1, "model.safetensors");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let model = hugging_face();
    rename_tensor(model.path(), "layers.2.self_attn.k_proj", "layers.2.self_attn.x_proj");
    generate(model.path()).fails(1, "has no tensor \"model.layers.2.self_attn.k_proj.weight\"");
}

#[test]
fn a_missing_shard_is_named() {
    let model = folder();
    for entry in std::fs::read_dir(fixture("tiny_llama_untied")).expect("the fixture") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, model.path().join(path.file_name().expect("a name"))).expect("a writable folder");
    }
    let name = "model-00002-of-00002.safetensors";
    std::fs::remove_file(model.path().join(name)).expect("it was there");
    generate(model.path()).fails(1, name);
}

#[test]
fn a_broken_tokenizer_is_refused() {
    for broken in
        ["", "{", "[]", "{\"model\": 3}", "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\"}}", "\u{fffd}"]
    {
        let model = hugging_face();
        write(model.path(), "tokenizer.json", broken);
        generate(model.path()).fails(1, "tokenizer.json: cannot use the tokenizer");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    for (vocab, expected) in [
        (
            json!({ "a": 0, "b": 96, "c": 1, "d": 2 }),
            "token \"b\" has the id 96, expected less than the model's vocabulary of 96",
        ),
        (json!({ "a": 0 }), "the BOS id 1 is not in the vocabulary of 1"),
    ] {
        let model = hugging_face();
        let tokenizer =
            json!({ "version": "1.0", "added_tokens": [], "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
        write(model.path(), "tokenizer.json", tokenizer.to_string());
        let args = ["generate", "-m", model.path().to_str().expect("a UTF-8 path"), "-p", "ab", "--json"];
        run(model.path(), &args).fails(1, expected);
    }
}

/// Fills a tensor of 32-bit floats with numbers that overflow in the next product.
fn fill_with_huge(model: &Path, tensor: &str) {
    patch_weights(model, |bytes| {
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..data]).expect("a header");
        let at = |end: usize| data + header[tensor]["data_offsets"][end].as_u64().expect("an offset") as usize;
        let huge = f32::MAX.to_le_bytes();
        bytes[at(0)..at(1)].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&huge));
    });
}

#[test]
fn weights_without_finite_probabilities_have_no_perplexity() {
    let (work, model) = (folder(), hugging_face());
    fill_with_huge(model.path(), "model.norm.weight");
    let text = write(work.path(), "text.txt", "a text of plain words");
    let path = model.path().to_str().expect("a UTF-8 path");
    for task in ["perplexity", "stepwise"] {
        run(work.path(), &["eval", "-m", path, "--task", &format!("{task}={text}"), "--json"])
            .fails(1, "no finite probability at token 1 of window 0");
    }
}

#[test]
fn weights_without_finite_probabilities_generate_nothing() {
    let model = hugging_face();
    fill_with_huge(model.path(), "model.norm.weight");
    generate(model.path()).fails_after_output(1, "finite");
}

#[test]
fn weights_without_finite_distances_give_no_strategy() {
    let (work, model) = (folder(), hugging_face());
    fill_with_huge(model.path(), "model.layers.0.input_layernorm.weight");
    let args = ["search", "-m", model.path().to_str().expect("a UTF-8 path"), "--share", "1", "--threshold", "-1"];
    run(work.path(), &args).fails(1, "finite");
    assert!(support::files(work.path()).is_empty());
}

/// One tensor fewer, the output head: what stands behind the table moves, and the head seems tied.
#[test]
fn a_gguf_file_that_counts_its_last_tensor_out_is_refused() {
    let work = folder();
    let mut bytes = tiny_bytes();
    bytes[8] -= 1;
    generate(Path::new(&write(work.path(), "lie.gguf", bytes))).fails(1, "lie.gguf is broken");
}

#[test]
fn a_device_file_or_an_empty_folder_is_no_model() {
    let work = folder();
    generate(Path::new("/dev/null")).fails(2, "no model `/dev/null`");
    generate(work.path()).fails(1, "config.json");
}

#[test]
fn every_format_takes_the_same_commands() {
    let (work, model) = (folder(), hugging_face());
    let path = model.path().to_str().expect("a UTF-8 path");
    let task = format!("perplexity={}", write(work.path(), "text.txt", "a text of plain words, all of them ASCII"));
    let shared = work.path().join("s.json");
    let shared = shared.to_str().expect("a UTF-8 path");
    run(work.path(), &["search", "-m", path, "--share", "2", "--threshold", "-1", "-o", shared]).succeeds();
    run(work.path(), &["eval", "-m", path, "--strategy", shared, "--task", &task]).succeeds();
    run(work.path(), &["plan", "-m", path, "--strategy", shared]).succeeds();
    // The other model's strategy does not fit.
    run(work.path(), &["plan", "-m", path, "--strategy", &strategy(work.path())]).fails(1, "another model");
}
