//! Tokenizers: tokenizer.json, tokenizer.model and the settings beside them; GGUF metadata.

use super::{file, fixture, read, told};
use crate::driver::{Seed, Target};
use crate::import_support::GgufWriter;
use kvsharer_models::import::GgufFile;
use kvsharer_models::{ModelTokenizer, open_local};
use serde_json::json;

/// The library keeps a vocabulary several times, as maps; its regular expressions take some MB.
const MEMORY: (usize, usize) = (100, 64 << 20);

const TEXT: &str = "abba <s> 1 Ünïcode, 世界 😀\n\n  x<0x0A></s>";

/// A small tokenizer.json beside its settings, a whole one, and a SentencePiece model.
pub(crate) fn folders() -> Target {
    let added = json!([{ "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true }]);
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let small = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "NFC" }, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": { "type": "TemplateProcessing", "single": [
            { "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } } },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3 }, "merges": ["a b"] } });
    let own = json!({ "add_bos_token": true, "bos_token": "<s>", "eos_token": { "content": "</s>" },
        "added_tokens_decoder": { "2": { "content": "</s>", "special": true } },
        "chat_template": [{ "name": "default", "template": "{{ bos_token }}{{ messages[0].content }}" }] });
    let model = fixture("tiny_llama_tied");
    let seed = |name: &str, tokenizer: (String, Vec<u8>)| {
        let settings = [
            file("tokenizer_config.json", own.to_string()),
            file("generation_config.json", json!({ "eos_token_id": [2, 1], "bos_token_id": 1 }).to_string()),
            tokenizer,
        ];
        let mut seed = Seed::new(name, settings);
        seed.fixed.extend(["config.json", "model.safetensors"].map(|name| file(name, read(&model.join(name)))));
        if name != "small" {
            // Larger than the vocabulary of this model: only the tokenizer is read.
            seed.fixed.clear();
        }
        seed
    };
    Target {
        name: "tokenizers",
        seeds: vec![
            seed("small", file("tokenizer.json", small.to_string())),
            seed("word-pieces", file("tokenizer.json", word_pieces().to_string())),
            seed("unigrams", file("tokenizer.json", unigrams().to_string())),
            seed("whole", file("tokenizer.json", read(&fixture("tokenizers/bpe/tokenizer.json")))),
            seed("pieces", file("tokenizer.model", read(&fixture("tokenizers/spm.model")))),
        ],
        judge: |folder, name| match name {
            "small" => {
                let files = open_local(folder).map_err(told)?;
                files.chat_template(None).map_err(told)?;
                used(&files.tokenizer().map_err(told)?)
            }
            "whole" | "word-pieces" | "unigrams" => {
                used(&ModelTokenizer::from_file(folder.join("tokenizer.json")).map_err(told)?)
            }
            _ => used(&ModelTokenizer::from_sentencepiece(folder.join("tokenizer.model"), &[]).map_err(told)?),
        },
        memory: MEMORY,
    }
}

/// What BERT uses, and pre-tokenizers one after the other.
fn word_pieces() -> serde_json::Value {
    json!({ "version": "1.0", "truncation": { "max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": { "strategy": { "Fixed": 4 }, "direction": "Left", "pad_to_multiple_of": 2, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[UNK]" },
        "added_tokens": [{ "id": 0, "content": "[UNK]", "single_word": false, "lstrip": true, "rstrip": true,
            "normalized": false, "special": true }],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": "\\s+|\\p{N}{1,3}" }, "behavior": "Isolated", "invert": false },
            { "type": "Digits", "individual_digits": true }, { "type": "Punctuation", "behavior": "Isolated" },
            { "type": "BertPreTokenizer" }] },
        "post_processor": { "type": "Sequence", "processors": [
            { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true }] },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": { "[UNK]": 0, "a": 1, "##b": 2, "##a": 3 } } })
}

/// What SentencePiece models become, with unigrams.
fn unigrams() -> serde_json::Value {
    json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }, { "type": "NFKC" },
            { "type": "Strip", "strip_left": true, "strip_right": false }, { "type": "Lowercase" }] },
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true },
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true }] },
        "model": { "type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.5], ["a", -3.0], ["▁", -2.0]] } })
}

/// Both kinds of GGUF tokenizers.
pub(crate) fn gguf() -> Target {
    let small = GgufWriter::default()
        .str("general.architecture", "llama")
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strs("tokenizer.ggml.tokens", &["<s>", "a", "b", "ab"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 4, 1])
        .strs("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .bytes();
    Target {
        name: "gguf-tokenizers",
        seeds: vec![
            Seed::new("small", [file("model.gguf", small)]),
            Seed::new("pieces", [file("model.gguf", read(&fixture("tokenizers/spm.gguf")))]),
        ],
        judge: |folder, _| {
            let source = GgufFile::open(folder.join("model.gguf")).map_err(told)?;
            used(&ModelTokenizer::from_gguf(&source).map_err(told)?)
        },
        memory: MEMORY,
    }
}

/// There and back again, at once and id by id.
fn used(tokenizer: &ModelTokenizer) -> Result<(), String> {
    let ids = tokenizer.encode(TEXT).map_err(told)?;
    tokenizer.decode(&ids, true).map_err(told)?;
    let mut stream = tokenizer.decode_stream(false);
    for &id in ids.iter().chain(&[0, 1, 2, 3, u32::MAX]) {
        stream.push(id).map_err(told)?;
        let _ = (tokenizer.is_special(id), tokenizer.token(id));
    }
    let _ = tokenizer.check_fits(4);
    Ok(())
}
