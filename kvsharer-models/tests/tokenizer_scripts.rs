//! Tokenizers against Hugging Face on 200 lines in ten scripts, see fixtures/tokenizers/tokenizers_reference.py.

mod import_support;

use import_support::{GgufWriter, fixture, json, tokenizer_fault as fault};
use kvsharer_models::import::{GgufFile, ImportError, ModelTokenizer, TokenizerFault};
use serde_json::Value;

/// "\n" in the file stands for a line end.
fn lines() -> Vec<String> {
    let text = std::fs::read_to_string(fixture("tokenizers/lines.txt")).unwrap();
    text.lines().map(|line| line.replace("\\n", "\n")).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Compares ids, text at once and text token by token.
fn check(tokenizer: &ModelTokenizer, golden: &Value, name: &str) {
    let lines = lines();
    assert_eq!(lines.len(), 200);
    let expected = golden["ids"].as_array().unwrap();
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(tokenizer.encode_bare(line).unwrap(), ids(expected), "{name}: {line:?}");
    }
    let Some(decoded) = golden.get("decoded") else {
        return;
    };
    for (expected, text) in expected.iter().zip(strings(decoded)) {
        let ids = ids(expected);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
        let mut stream = tokenizer.decode_stream(false);
        let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        streamed.extend(stream.finish().unwrap());
        assert_eq!(streamed, text, "{name}");
    }
}

fn from_gguf(writer: &GgufWriter) -> Result<ModelTokenizer, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    ModelTokenizer::from_gguf(&GgufFile::open(writer.write(folder.path())).unwrap())
}

#[test]
fn sentencepiece_ids_are_those_of_hugging_face() {
    let golden = json("tokenizers/spm.json");
    let gguf = ModelTokenizer::from_gguf(&GgufFile::open(fixture("tokenizers/spm.gguf")).unwrap()).unwrap();
    check(&gguf, &golden["llama"], "spm.gguf");
    let model = ModelTokenizer::from_sentencepiece(fixture("tokenizers/spm.model"), &[]).unwrap();
    check(&model, &golden["llama"], "spm.model");
    for tokenizer in [gguf, model] {
        assert_eq!((tokenizer.bos(), tokenizer.adds_bos(), tokenizer.eos()), (Some(1), true, &[2][..]));
        let text = "The river";
        let bare = tokenizer.encode_bare(text).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), [&[1][..], &bare].concat());
        assert_eq!(tokenizer.decode(&[&[1][..], &bare, &[2]].concat(), true).unwrap(), text);
        assert!(tokenizer.is_special(0) && tokenizer.is_special(1) && !tokenizer.is_special(5));
        // A character without a piece goes by its bytes, behind the space in front, and comes back as a whole only.
        let bytes = tokenizer.encode_bare("\u{13001}").unwrap();
        assert_eq!(bytes.len(), 5);
        assert_eq!(tokenizer.decode(&bytes, false).unwrap(), "\u{13001}");
        let mut stream = tokenizer.decode_stream(false);
        let pieces: Vec<_> = bytes.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(pieces[..4].iter().all(Option::is_none) && pieces[4].is_some(), "{pieces:?}");
    }
}

/// Pieces of spm.gguf, to write others from.
struct Pieces {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
}

impl Pieces {
    fn read() -> Self {
        let file = GgufFile::open(fixture("tokenizers/spm.gguf")).unwrap();
        let metadata = file.metadata();
        let tokens: Vec<&str> = metadata.require("tokenizer.ggml.tokens").unwrap();
        Self {
            tokens: tokens.into_iter().map(str::to_owned).collect(),
            scores: metadata.require("tokenizer.ggml.scores").unwrap(),
            types: metadata.require("tokenizer.ggml.token_type").unwrap(),
        }
    }

    fn writer(&self) -> GgufWriter {
        let tokens: Vec<&str> = self.tokens.iter().map(String::as_str).collect();
        GgufWriter::default()
            .str("tokenizer.ggml.model", "llama")
            .strs("tokenizer.ggml.tokens", &tokens)
            .f32s("tokenizer.ggml.scores", &self.scores)
            .i32s("tokenizer.ggml.token_type", &self.types)
    }
}

#[test]
fn a_space_in_front_is_left_out_where_the_file_says_so() {
    let writer = Pieces::read().writer().bool("tokenizer.ggml.add_space_prefix", false);
    check(&from_gguf(&writer).unwrap(), &json("tokenizers/spm.json")["bare"], "without a space");
}

#[test]
fn broken_sentencepiece_metadata_is_refused() {
    let mut short = Pieces::read();
    short.scores.pop();
    assert!(matches!(fault(from_gguf(&short.writer())), TokenizerFault::ScoresDiffer { .. }));
    let mut double = Pieces::read();
    double.tokens[9] = double.tokens[8].clone();
    assert!(matches!(fault(from_gguf(&double.writer())), TokenizerFault::DuplicateToken { first: 8, second: 9, .. }));
    let strip = Pieces::read().writer().bool("tokenizer.ggml.remove_extra_whitespaces", true);
    assert!(matches!(fault(from_gguf(&strip)), TokenizerFault::SentencePiece { .. }));
}

#[test]
fn broken_sentencepiece_models_are_refused_at_any_length() {
    let bytes = std::fs::read(fixture("tokenizers/spm.model")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.model");
    for end in (0..bytes.len() - 40).step_by(97) {
        std::fs::write(&path, &bytes[..end]).unwrap();
        // Cut between two pieces, it lacks its settings, and is taken for another kind.
        let fault = fault(ModelTokenizer::from_sentencepiece(&path, &[]));
        assert!(matches!(fault, TokenizerFault::SentencePiece { .. }), "{fault}");
    }
    let absent = ModelTokenizer::from_sentencepiece(folder.path().join("absent"), &[]).unwrap_err();
    assert!(matches!(absent, ImportError::Io { .. }), "{absent}");
}

fn bpe(golden: &Value, pre: &str) -> GgufWriter {
    let (tokens, merges) = (strings(&golden["tokens"]), strings(&golden["merges"]));
    let special = |token: &String| ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].contains(&token.as_str());
    let types: Vec<i32> = tokens.iter().map(|token| if special(token) { 3 } else { 1 }).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    GgufWriter::default()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .strs("tokenizer.ggml.merges", &merges)
}

#[test]
fn byte_level_ids_are_those_of_hugging_face_under_every_pre_tokenizer() {
    let golden = json("tokenizers/bpe.json");
    for (pre, expected) in golden["rules"].as_object().unwrap() {
        check(&from_gguf(&bpe(&golden, pre)).unwrap(), expected, pre);
    }
    for (other, same) in [("llama3", "llama-bpe"), ("deepseek-r1-qwen", "qwen2"), ("starcoder", "smollm")] {
        check(&from_gguf(&bpe(&golden, other)).unwrap(), &golden["rules"][same], other);
    }
    let json = ModelTokenizer::from_file(fixture("tokenizers/bpe/tokenizer.json")).unwrap();
    check(&json, &golden["rules"]["llama-bpe"], "tokenizer.json");
}

/// llama.cpp's rule for files that name none has no counterpart in Hugging Face: three-digit groups, marks apart.
#[test]
fn the_default_rule_takes_marks_and_three_digits_apart_and_loses_nothing() {
    let golden = json("tokenizers/bpe.json");
    let tokenizer = from_gguf(&bpe(&golden, "default")).unwrap();
    for line in lines() {
        let ids = tokenizer.encode_bare(&line).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), line);
    }
    let join =
        |parts: &[&str]| -> Vec<u32> { parts.iter().flat_map(|part| tokenizer.encode_bare(part).unwrap()).collect() };
    assert_eq!(tokenizer.encode_bare("end...+x").unwrap(), join(&["end", "...+", "x"]));
    assert_eq!(tokenizer.encode_bare("20241").unwrap(), join(&["202", "41"]));
}

#[test]
fn models_that_start_with_bos_do_so_by_default() {
    let golden = json("tokenizers/bpe.json");
    let bos = golden["tokens"].as_array().unwrap().iter().position(|token| token == "<s>").unwrap() as u32;
    for (pre, adds) in [("llama-bpe", true), ("tekken", true), ("qwen2", false), ("gpt-2", false)] {
        let writer = bpe(&golden, pre).u32("tokenizer.ggml.bos_token_id", bos);
        assert_eq!(from_gguf(&writer).unwrap().adds_bos(), adds, "{pre}");
        let writer = writer.bool("tokenizer.ggml.add_bos_token", !adds);
        assert_eq!(from_gguf(&writer).unwrap().adds_bos(), !adds, "{pre}");
    }
}
