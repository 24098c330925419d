//! Logits against Hugging Face transformers, whose fixtures lie beside the scripts that made them.

use burn::tensor::{DType, Device};
use kvsharer_core::{Cache, SearchModel, Sharing, Stack};
use kvsharer_models::{DEFAULT_MODEL, Decoder, GenerateOptions, ModelFiles, generate, open_model};
use serde_json::Value;
use std::path::PathBuf;

/// Between two implementations in f32; transformers' own eager and fused attention differ by about 1e-5 here.
const TOLERANCE: f64 = 2e-3;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn load(files: &ModelFiles) -> Decoder {
    files.load(&Device::flex(), DType::F32).unwrap()
}

/// Logits of rows of token ids, flattened `[batch, token, vocab]`, run in chunks.
fn logits(model: &Decoder, rows: &[Vec<u32>], chunk: usize) -> Vec<f32> {
    let tokens = rows[0].len();
    let options = model.cache_options(rows.len(), tokens);
    let mut cache = Cache::new(model.shape(), Stack::new(), options, &model.device()).unwrap();
    let parts = (0..tokens).step_by(chunk).map(|start| {
        let part: Vec<&[u32]> = rows.iter().map(|row| &row[start..tokens.min(start + chunk)]).collect();
        model.logits(model.forward(&part, &mut cache).unwrap())
    });
    burn::tensor::Tensor::cat(parts.collect(), 1).try_into_vec_as::<f32>().unwrap()
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max)
}

#[test]
fn tiny_llamas_agree_whatever_the_head_the_shards_and_the_source_dtype() {
    let golden = json("tiny_llama.json");
    let rows: Vec<Vec<u32>> = golden["ids"].as_array().unwrap().iter().map(ids).collect();
    for folder in ["tiny_llama_tied", "tiny_llama_untied", "tiny_llama_headdim"] {
        let model = load(&ModelFiles::open_folder(&fixture(folder)).unwrap());
        let expected = numbers(&golden["logits"][folder]);
        for chunk in [rows[0].len(), 5, 1] {
            let error = worst(&logits(&model, &rows, chunk), &expected);
            assert!(error < TOLERANCE, "{folder} in passes of {chunk}: {error}");
        }
    }
}

#[test]
fn a_tiny_gguf_agrees_with_its_query_and_key_rows_in_order() {
    let golden = json("tiny_gguf.json");
    let rows: Vec<Vec<u32>> = golden["ids"].as_array().unwrap().iter().map(ids).collect();
    let model = load(&ModelFiles::open_gguf(&fixture("tiny.gguf")).unwrap());
    let error = worst(&logits(&model, &rows, 13), &numbers(&golden["logits"]));
    assert!(error < TOLERANCE, "{error}");
}

#[test]
fn smollm2_agrees_in_logits_and_greedy_continuation() {
    let golden = json("smollm2_logits.json");
    let files = open_model(DEFAULT_MODEL, 0).unwrap();
    let model = load(&files);
    let vocab = model.config().vocab;
    let found = logits(&model, &[ids(&golden["ids"])], 24);
    let step = golden["vocab_step"].as_u64().unwrap() as usize;
    let sampled: Vec<f32> = found.chunks(vocab).flat_map(|row| row.iter().copied().step_by(step)).collect();
    let error = worst(&sampled, &numbers(&golden["logits"]));
    assert!(error < TOLERANCE, "{error}");
    let best = |row: &[f32]| (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
    assert_eq!(found.chunks(vocab).map(best).collect::<Vec<_>>(), ids(&golden["argmax"]));

    let prompt = ids(&golden["prompt"]);
    let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(1, 64), &model.device()).unwrap();
    let options = GenerateOptions { max_tokens: 16, ignore_eos: true, ..GenerateOptions::default() };
    let tokenizer = files.tokenizer().unwrap();
    let generated = generate(&model, &tokenizer, &prompt, &mut cache, &options, |_| {}).unwrap();
    assert_eq!(generated.ids, ids(&golden["greedy"]));
}

#[test]
fn a_shared_model_never_computes_a_borrowers_projections_and_decodes_as_it_prefills() {
    let model = load(&ModelFiles::open_folder(&fixture("tiny_llama_tied")).unwrap());
    let row: Vec<u32> = (0..17).map(|i| i * 5 % 96).collect();
    let run = |chunk: usize| {
        let stack = Stack::new().with(Sharing::both([(2, 0), (3, 1)]).unwrap());
        let mut cache = Cache::new(model.shape(), stack, model.cache_options(1, 17), &model.device()).unwrap();
        let parts = row.chunks(chunk).map(|part| model.forward(&[part], &mut cache).unwrap()).collect();
        burn::tensor::Tensor::cat(parts, 1).try_into_vec_as::<f32>().unwrap()
    };
    let whole: Vec<f64> = run(17).into_iter().map(f64::from).collect();
    for chunk in [1, 4] {
        assert!(worst(&run(chunk), &whole) < 1e-4);
    }
}

#[test]
fn fingerprints_tell_models_apart_and_stay_the_same() {
    let hash = |folder: &str| ModelFiles::open_folder(&fixture(folder)).unwrap().fingerprint().unwrap().hash;
    assert_eq!(hash("tiny_llama_tied"), hash("tiny_llama_tied"));
    assert_ne!(hash("tiny_llama_tied"), hash("tiny_llama_untied"));
}
