//! Tokenizers from a Hugging Face tokenizer.json: BOS, and one file a way to be wrong.

mod import_support;

use std::path::{Path, PathBuf};

use import_support::tokenizer_fault as fault;
use kvsharer_models::import::{ImportError, ModelTokenizer, TokenizerFault};
use serde_json::{Value, json};

/// A tokenizer.json like Llama 3's: byte-level BPE whose post-processor puts `<s>` first.
fn tokenizer_json() -> Value {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let special = json!({"id": "<s>", "ids": [0], "tokens": ["<s>"]});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": special},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
    })
}

fn write_json(folder: &Path, file: &Value) -> PathBuf {
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, serde_json::to_vec(file).unwrap()).unwrap();
    path
}

fn from_json(file: &Value) -> Result<ModelTokenizer, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    ModelTokenizer::from_file(write_json(folder.path(), file))
}

#[test]
fn a_json_tokenizer_takes_bos_from_its_template_and_never_truncates() {
    let tokenizer = from_json(&tokenizer_json()).unwrap();
    assert_eq!(tokenizer.encode("ababab").unwrap(), [0, 3, 3, 3]);
    assert_eq!(tokenizer.encode_bare("<s>ab").unwrap(), [0, 3]);
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos(), tokenizer.eos()), (Some(0), true, &[][..]));
    let off = tokenizer.with_special(Some(0), vec![3], false).unwrap();
    assert_eq!(off.encode("ab").unwrap(), [3]);

    let mut plain = tokenizer_json();
    plain["post_processor"] = Value::Null;
    plain["model"]["merges"] = json!([["a", "b"]]);
    let plain = from_json(&plain).unwrap();
    assert_eq!((plain.encode("ab").unwrap(), plain.bos()), (vec![3], None));
}

#[test]
fn special_ids_must_be_in_the_vocabulary() {
    let with =
        |bos, eos: &[u32], add| fault(from_json(&tokenizer_json()).unwrap().with_special(bos, eos.to_vec(), add));
    assert!(matches!(with(Some(4), &[], false), TokenizerFault::IdOutOfRange { role: "BOS", id: 4, vocab: 4 }));
    assert!(matches!(with(None, &[0, 9], false), TokenizerFault::IdOutOfRange { role: "EOS", id: 9, vocab: 4 }));
    assert!(matches!(with(None, &[], true), TokenizerFault::NoBos));
}

#[test]
fn broken_json_tokenizers_are_refused() {
    let with = |pointer: &str, value: Value| {
        let mut file = tokenizer_json();
        *file.pointer_mut(pointer).unwrap() = value;
        fault(from_json(&file))
    };
    // The joined token is longer than any in the vocabulary: the library alone would panic.
    assert!(matches!(with("/model/merges", json!(["ab ab"])), TokenizerFault::BadMerge { index: 0, .. }));
    assert!(matches!(with("/model/merges", json!([["a", "c"]])), TokenizerFault::BadMerge { index: 0, .. }));
    assert!(matches!(with("/model/merges", json!([1])), TokenizerFault::Library(_)));
    assert!(matches!(with("/model/vocab", json!([])), TokenizerFault::Library(_)));
    assert!(matches!(with("/model", json!({})), TokenizerFault::Library(_)));
    assert!(matches!(with("/model/continuing_subword_prefix", json!("##")), TokenizerFault::SubwordPrefix { .. }));
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let special = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let behind = with("/post_processor/single", json!([sequence, special]));
    assert!(matches!(behind, TokenizerFault::Template { ids } if ids == [1, 0]));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(matches!(ModelTokenizer::from_file(&path), Err(ImportError::Io { .. })));
    std::fs::write(&path, "{\"model\":").unwrap();
    assert!(matches!(fault(ModelTokenizer::from_file(&path)), TokenizerFault::Json(_)));
}
