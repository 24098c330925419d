//! Special tokens and tokenizers of Hugging Face folders, which several files tell about.

mod import_support;

use import_support::{configure, copy, fixture};
use kvsharer_models::ModelFiles;
use serde_json::json;
use std::fs;
use std::path::Path;

#[test]
fn end_of_text_tokens_are_those_of_generation_config_or_else_config() {
    let folder = copy("families/llama3");
    fs::copy(fixture("tokenizers/bpe/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    // The tokenizer is another model's; only settings are looked at here.
    configure(folder.path(), "vocab_size", json!(1000));
    let special = |folder: &Path| {
        let tokenizer = ModelFiles::open_folder(folder).unwrap().tokenizer().unwrap();
        (tokenizer.bos(), tokenizer.eos().to_vec())
    };
    assert_eq!(special(folder.path()), (Some(1), vec![2, 5]));
    let generation = folder.path().join("generation_config.json");
    fs::write(&generation, json!({ "eos_token_id": [7, 8, 9], "bos_token_id": null }).to_string()).unwrap();
    assert_eq!(special(folder.path()), (Some(1), vec![7, 8, 9]));
    fs::write(&generation, json!({ "eos_token_id": 3, "temperature": 0.6 }).to_string()).unwrap();
    assert_eq!(special(folder.path()), (Some(1), vec![3]));
    fs::write(&generation, json!({ "temperature": 0.6 }).to_string()).unwrap();
    assert_eq!(special(folder.path()), (Some(1), vec![2, 5]));
}

#[test]
fn a_folder_with_only_a_sentencepiece_model_has_a_tokenizer() {
    let folder = copy("families/internlm2");
    fs::copy(fixture("tokenizers/spm.model"), folder.path().join("tokenizer.model")).unwrap();
    configure(folder.path(), "vocab_size", json!(1000));
    let tokenizer = ModelFiles::open_folder(folder.path()).unwrap().tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos(), tokenizer.eos()), (Some(1), true, &[2][..]));
    assert_eq!(tokenizer.decode(&tokenizer.encode("The river").unwrap(), true).unwrap(), "The river");

    // As InternLM2's chat models: unused pieces become special tokens.
    let added = json!({
        "0": { "content": "<unk>", "special": true },
        "899": { "content": "<|plugin|>", "special": true },
        "900": { "content": "<tool>", "special": false },
    });
    let config = json!({ "add_bos_token": false, "added_tokens_decoder": added }).to_string();
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = ModelFiles::open_folder(folder.path()).unwrap().tokenizer().unwrap();
    let ids = tokenizer.encode("<|plugin|>The<tool>").unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (899, 900));
    assert_eq!(tokenizer.decode(&ids, true).unwrap().trim(), "The<tool>");
    let far = json!({ "added_tokens_decoder": { "950": { "content": "<far>" } } }).to_string();
    fs::write(folder.path().join("tokenizer_config.json"), far).unwrap();
    let error = ModelFiles::open_folder(folder.path()).unwrap().tokenizer().unwrap_err();
    assert!(error.to_string().contains("added token id 950 is not in the vocabulary of 900"), "{error}");
}
