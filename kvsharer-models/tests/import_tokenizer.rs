//! Tokenizers from GGUF: golden ids, special tokens, streaming, and one file a way to be wrong.

mod import_support;

use import_support::{GgufWriter, fixture, json, tokenizer_fault as fault};
use kvsharer_models::import::{GgufFile, ImportError, ModelTokenizer, TokenizerFault};
use kvsharer_models::{DEFAULT_MODEL, open_model};
use proptest::prelude::*;
use serde_json::{Value, json};

fn tiny() -> ModelTokenizer {
    ModelTokenizer::from_gguf(&GgufFile::open(fixture("tiny.gguf")).unwrap()).unwrap()
}

/// Compares a tokenizer with recorded `{text, ids, decoded}` cases, at once and as a stream.
fn check_cases(tokenizer: &ModelTokenizer, cases: &Value) {
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(json!(ids), case["ids"], "{text:?}");
        assert_eq!(json!(tokenizer.decode(&ids, false).unwrap()), case["decoded"], "{text:?}");
        assert_eq!(streamed(tokenizer, &ids, false), tokenizer.decode(&ids, false).unwrap());
        assert_eq!(streamed(tokenizer, &ids, true), tokenizer.decode(&ids, true).unwrap());
    }
}

/// All pieces that a stream gives, none of which is empty.
fn streamed(tokenizer: &ModelTokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.decode_stream(skip_special);
    let mut pieces: Vec<String> = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    pieces.extend(stream.finish().unwrap());
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    pieces.concat()
}

/// See fixtures/smollm2.py; the model is fetched if it is missing.
#[test]
fn smollm2_gives_the_recorded_ids() {
    let tokenizer = open_model(DEFAULT_MODEL, 0).unwrap().tokenizer().unwrap();
    check_cases(&tokenizer, &json("smollm2_tokens.json")["cases"]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), &[2][..]));
}

#[test]
fn a_gguf_tokenizer_gives_the_recorded_ids() {
    check_cases(&tiny(), &json("tiny_gguf.json")["tokenizer"]);
}

#[test]
fn special_tokens_are_parsed_and_left_out_on_request() {
    let tokenizer = tiny();
    let ids = tokenizer.encode("<|im_start|>hello<|im_end|>").unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (1, 2));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<|im_start|>hello<|im_end|>");
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos(), tokenizer.eos()), (Some(1), false, &[2][..]));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token(2).as_deref(), Some("<|im_end|>"));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3) && !tokenizer.is_special(u32::MAX));
}

#[test]
fn bos_is_added_only_where_asked_for() {
    let tokenizer = tiny().with_special(Some(1), vec![2, 0], true).unwrap();
    let bare = tokenizer.encode_bare("hello world").unwrap();
    assert_eq!(bare, tiny().encode("hello world").unwrap());
    assert_eq!(tokenizer.encode("hello world").unwrap(), [&[1][..], &bare].concat());
    assert_eq!(tokenizer.encode("").unwrap(), [1]);
    assert_eq!(tokenizer.eos(), [2, 0]);
}

#[test]
fn a_batch_gives_what_its_texts_give() {
    let tokenizer = tiny();
    let texts: Vec<String> = (0..50).map(|n| format!("the world {n} hello")).collect();
    let one_by_one: Vec<_> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    assert_eq!(tokenizer.encode_batch(&texts).unwrap(), one_by_one);
}

#[test]
fn a_stream_holds_back_half_a_character() {
    let tokenizer = tiny();
    let ids = tokenizer.encode("😀!").unwrap();
    assert!(ids.len() >= 3, "the emoji should take several tokens: {ids:?}");
    let mut stream = tokenizer.decode_stream(false);
    let pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    let (end, start) = pieces.split_last().unwrap();
    let (emoji, held) = start.split_last().unwrap();
    assert!(held.iter().all(Option::is_none), "{pieces:?}");
    assert_eq!((emoji.as_deref(), end.as_deref()), (Some("😀"), Some("!")));
    assert_eq!(stream.finish().unwrap(), None);

    let mut cut = tokenizer.decode_stream(false);
    assert_eq!(cut.push(ids[0]).unwrap(), None);
    assert_eq!(cut.finish().unwrap().as_deref(), Some("\u{fffd}"));
}

proptest! {
    /// Whatever a model samples, ids beyond the vocabulary included.
    #[test]
    fn a_stream_gives_what_decoding_at_once_gives(ids in prop::collection::vec(0u32..305, 0..40), skip: bool) {
        let tokenizer = tiny();
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    #[test]
    fn any_text_comes_back(text in "[^<]*") {
        let tokenizer = tiny();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap(), false).unwrap(), text);
    }
}

/// The metadata of a sound tokenizer of 4 tokens.
struct Sound {
    model: &'static str,
    pre: &'static str,
    tokens: Vec<&'static str>,
    types: Vec<i32>,
    merges: Vec<&'static str>,
}

impl Sound {
    fn new() -> Self {
        Self {
            model: "gpt2",
            pre: "gpt-2",
            tokens: vec!["<s>", "a", "b", "ab"],
            types: vec![3, 1, 1, 1],
            merges: vec!["a b"],
        }
    }

    fn writer(&self) -> GgufWriter {
        GgufWriter::default()
            .str("tokenizer.ggml.model", self.model)
            .str("tokenizer.ggml.pre", self.pre)
            .strs("tokenizer.ggml.tokens", &self.tokens)
            .i32s("tokenizer.ggml.token_type", &self.types)
            .strs("tokenizer.ggml.merges", &self.merges)
    }
}

fn from_gguf(writer: &GgufWriter) -> Result<ModelTokenizer, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    ModelTokenizer::from_gguf(&GgufFile::open(writer.write(folder.path())).unwrap())
}

#[test]
fn gguf_special_ids_are_honoured() {
    let writer = Sound::new().writer().u32("tokenizer.ggml.bos_token_id", 0).bool("tokenizer.ggml.add_bos_token", true);
    let writer = writer.u32("tokenizer.ggml.eos_token_id", 0).u32("tokenizer.ggml.eot_token_id", 1);
    let tokenizer = from_gguf(&writer).unwrap();
    assert_eq!(tokenizer.encode("abab<s>").unwrap(), [0, 3, 3, 0]);
    assert_eq!(tokenizer.eos(), [0, 1]);
    assert_eq!(tokenizer.vocab_size(), 4);
}

#[test]
fn gguf_user_defined_tokens_are_found_in_text_but_not_special() {
    let tokenizer = from_gguf(&Sound { types: vec![4, 1, 1, 1], ..Sound::new() }.writer()).unwrap();
    assert_eq!(tokenizer.encode("a<s>b").unwrap(), [1, 0, 2]);
    assert_eq!(tokenizer.decode(&[1, 0, 2], true).unwrap(), "a<s>b");
}

#[test]
fn unsupported_gguf_tokenizers_are_named() {
    let bert = Sound { model: "bert", ..Sound::new() };
    assert!(matches!(fault(from_gguf(&bert.writer())), TokenizerFault::UnsupportedModel { model } if model == "bert"));
    for pre in ["deepseek-llm", "Qwen2", ""] {
        let message = fault(from_gguf(&Sound { pre, ..Sound::new() }.writer())).to_string();
        assert!(message.contains(&format!("{pre:?}")) && message.contains("smollm"), "{message}");
    }
    let add_eos = Sound::new().writer().bool("tokenizer.ggml.add_eos_token", true);
    assert!(matches!(from_gguf(&add_eos), Err(ImportError::BadMetadata { .. })));
    assert!(matches!(from_gguf(&GgufWriter::default()), Err(ImportError::BadMetadata { .. })));
}

#[test]
fn broken_gguf_tokenizers_are_refused() {
    let duplicate = Sound { tokens: vec!["<s>", "a", "a", "ab"], ..Sound::new() };
    assert!(matches!(
        fault(from_gguf(&duplicate.writer())),
        TokenizerFault::DuplicateToken { first: 1, second: 2, .. }
    ));
    for merge in ["a c", "c a", "b a", "ab", "", " ", "a  b", "ab ab"] {
        let broken = Sound { merges: vec!["a b", merge], ..Sound::new() };
        assert!(matches!(fault(from_gguf(&broken.writer())), TokenizerFault::BadMerge { index: 1, .. }), "{merge:?}");
    }
    let short = Sound { types: vec![3], ..Sound::new() };
    assert!(matches!(fault(from_gguf(&short.writer())), TokenizerFault::TypesDiffer { tokens: 4, types: 1 }));
    let unknown = Sound { types: vec![3, 1, 7, 1], ..Sound::new() };
    assert!(matches!(fault(from_gguf(&unknown.writer())), TokenizerFault::UnknownType { id: 2, kind: 7 }));
    for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
        let outside = Sound::new().writer().u32(key, 4);
        assert!(matches!(fault(from_gguf(&outside)), TokenizerFault::IdOutOfRange { id: 4, vocab: 4, .. }));
    }
    let no_bos = Sound::new().writer().bool("tokenizer.ggml.add_bos_token", true);
    assert!(matches!(fault(from_gguf(&no_bos)), TokenizerFault::NoBos));
}
