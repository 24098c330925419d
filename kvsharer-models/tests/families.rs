//! Every family against transformers (InternLM2: against its restatement), see fixtures/families/families.py.
#![allow(clippy::print_stdout)] // Shown when a test fails.

use burn::tensor::{DType, Device, Tensor};
use kvsharer_core::{Cache, CacheOptions, LayerId, PlanError, SearchModel, Sharing, Stack};
use kvsharer_models::{Decoder, ModelFiles};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const FAMILIES: [&str; 14] = [
    "llama1",
    "llama_biases",
    "llama3",
    "llama_linear",
    "llama_dynamic",
    "llama_yarn",
    "mistral",
    "internlm2",
    "internlm2_bias",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "gemma3",
    "gemma3_gguf",
];

const GGUFS: [&str; 5] = ["llama3", "internlm2_bias", "qwen2", "qwen3", "gemma3_gguf"];

/// What a case must give.
struct Golden(Value);

impl Golden {
    fn read(case: &str) -> Self {
        Self(serde_json::from_slice(&std::fs::read(folder(case).join("golden.json")).unwrap()).unwrap())
    }

    fn ids(&self, key: &str) -> Vec<u32> {
        self.0[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    /// Borrowers and donors.
    fn share(&self) -> Vec<(usize, usize)> {
        let map = self.0["share"].as_object().unwrap();
        map.iter().map(|(borrower, donor)| (borrower.parse().unwrap(), donor.as_u64().unwrap() as usize)).collect()
    }

    /// Logits of the prefill and the decode steps after it, `[prompt + step, vocab]` flattened.
    fn logits(&self, key: &str) -> Vec<f64> {
        let rows = ["prefill", "decode"].into_iter().flat_map(|part| self.0[key][part].as_array().unwrap());
        rows.flat_map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect()
    }
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(case)
}

/// Opens a case, whose weights may lie in another one's folder; the files last as long as the folder.
fn open(case: &str) -> (ModelFiles, TempDir) {
    let weights = Golden::read(case).0["weights"].as_str().unwrap().to_owned();
    let together = tempfile::tempdir().unwrap();
    std::fs::copy(folder(case).join("config.json"), together.path().join("config.json")).unwrap();
    let file = "model.safetensors";
    std::fs::copy(folder(&weights).join(file), together.path().join(file)).unwrap();
    (ModelFiles::open_folder(together.path()).unwrap(), together)
}

fn load(case: &str, dtype: DType) -> Decoder {
    let (files, _folder) = open(case);
    files.load(&Device::flex(), dtype).unwrap()
}

fn cache(model: &Decoder, stack: Stack<'static>, tokens: usize) -> Cache<'static> {
    Cache::new(model.shape(), stack, model.cache_options(1, tokens), &model.device()).unwrap()
}

/// Logits of a prompt run in passes of `chunk` tokens, and of single tokens after it.
fn logits(model: &Decoder, golden: &Golden, stack: Stack<'static>, chunk: usize) -> Vec<f32> {
    let (prompt, steps) = (golden.ids("prompt"), golden.ids("steps"));
    let mut cache = cache(model, stack, prompt.len() + steps.len());
    let passes = prompt.chunks(chunk).chain(steps.chunks(1));
    let parts = passes.map(|part| model.logits(model.forward(&[part], &mut cache).unwrap())).collect();
    assert_eq!(cache.bytes(), cache.plan().bytes(1, prompt.len() + steps.len(), model.dtype().size()));
    Tensor::cat(parts, 1).cast(DType::F32).try_into_vec_as::<f32>().unwrap()
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max)
}

/// Logits are about 1.4 in standard deviation.
#[test]
fn prefill_and_decode_agree_with_transformers_in_f32() {
    for case in FAMILIES {
        let (golden, model) = (Golden::read(case), load(case, DType::F32));
        let error = worst(&logits(&model, &golden, Stack::new(), 20), &golden.logits("own"));
        println!("{case}: {error:.1e}");
        assert!(error < 1e-3, "{case}: {error}");
    }
}

#[test]
fn a_sharing_map_gives_what_patched_transformers_give() {
    for case in FAMILIES {
        let (golden, model) = (Golden::read(case), load(case, DType::F32));
        let sharing = Sharing::both(golden.share()).unwrap();
        let error = worst(&logits(&model, &golden, Stack::new().with(sharing), 20), &golden.logits("shared"));
        println!("{case}: {error:.1e}");
        assert!(error < 1e-3, "{case}: {error}");
    }
}

/// Dynamic scaling turns a token for the text so far, so that its passes do make a difference.
#[test]
fn the_passes_of_a_prompt_make_no_difference() {
    for case in FAMILIES.into_iter().filter(|case| !["llama_dynamic", "internlm2"].contains(case)) {
        let (golden, model) = (Golden::read(case), load(case, DType::F32));
        for chunk in [1, 3, 8] {
            let sharing = Sharing::both(golden.share()).unwrap();
            let error = worst(&logits(&model, &golden, Stack::new().with(sharing), chunk), &golden.logits("shared"));
            assert!(error < 1e-3, "{case} in passes of {chunk}: {error}");
        }
    }
}

#[test]
fn the_same_weights_in_gguf_give_the_same_logits() {
    for case in GGUFS {
        let golden = Golden::read(case);
        let files = ModelFiles::open_gguf(&folder(case).join("model.gguf")).unwrap();
        let model = files.load(&Device::flex(), DType::F32).unwrap();
        let error = worst(&logits(&model, &golden, Stack::new(), 20), &golden.logits("own"));
        println!("{case}: {error:.1e}");
        // Norm weights of f16 and bf16 checkpoints are exact in f32; what is left is llama.cpp's f32 metadata.
        assert!(error < 1e-3, "{case}: {error}");
    }
}

#[test]
fn greedy_continuations_are_the_same() {
    for case in FAMILIES {
        let (golden, model) = (Golden::read(case), load(case, DType::F32));
        let prompt = golden.ids("prompt");
        let mut cache = cache(&model, Stack::new(), prompt.len() + 32);
        let (mut next, mut ids) = (prompt, Vec::new());
        for _ in 0..32 {
            let scores = model.logits(model.forward(&[&next], &mut cache).unwrap());
            let tokens = scores.dims()[1];
            let best = scores.slice_dim(1, tokens - 1..tokens).argmax(2).into_scalar::<i64>() as u32;
            ids.push(best);
            next = vec![best];
        }
        assert_eq!(ids, golden.ids("greedy"), "{case}");
    }
}

#[test]
fn rows_padded_in_front_give_what_they_give_alone() {
    for case in ["mistral", "qwen2_window", "gemma3", "qwen3"] {
        let (golden, model) = (Golden::read(case), load(case, DType::F32));
        let (prompt, steps) = (golden.ids("prompt"), golden.ids("steps"));
        let rows: [&[u32]; 3] = [&prompt[5..], &prompt, &prompt[17..]];
        let options = model.cache_options(3, prompt.len() + steps.len());
        let mut batch = Cache::new(model.shape(), Stack::new(), options, &model.device()).unwrap();
        let mut alone: Vec<_> = rows.iter().map(|_| cache(&model, Stack::new(), 28)).collect();
        let last = |hidden: Tensor<3>| {
            let tokens = hidden.dims()[1];
            model.logits(hidden.slice_dim(1, tokens - 1..tokens))
        };
        let mut found = last(model.forward_padded(&rows, &mut batch).unwrap());
        let mut inputs: Vec<Vec<u32>> = rows.iter().map(|row| row.to_vec()).collect();
        for step in &steps {
            for (row, input) in inputs.iter().enumerate() {
                let expected = last(model.forward(&[input], &mut alone[row]).unwrap());
                let error = (found.clone().slice_dim(0, row..row + 1) - expected).abs().max().into_scalar::<f32>();
                assert!(error < 1e-3, "{case}, row {row}: {error}");
            }
            found = last(model.forward(&[&[*step], &[*step], &[*step]], &mut batch).unwrap());
            inputs = vec![vec![*step]; 3];
        }
        assert_eq!(batch.bytes(), batch.plan().bytes(3, prompt.len() + steps.len(), 4));
    }
}

/// Rounding adds up over the layers of a random model, whose largest logits are about 5, so that transformers in half
/// precision is up to 0.05 (f16) and 0.3 (bf16) away from itself in f32. We must be no further away from it.
#[test]
fn half_precision_is_as_near_to_f32_as_that_of_transformers() {
    for case in FAMILIES {
        let golden = Golden::read(case);
        for dtype in [DType::F16, DType::BF16] {
            let model = load(case, dtype);
            let found = logits(&model, &golden, Stack::new(), 20);
            let expected = golden.logits("own");
            let mean = found.iter().zip(&expected).map(|(f, e)| (f64::from(*f) - e).abs()).sum::<f64>()
                / expected.len() as f64;
            let largest = worst(&found, &expected);
            let name = if dtype == DType::F16 { "float16" } else { "bfloat16" };
            let theirs = |key: &str| golden.0["half"][name][key].as_f64().unwrap();
            println!("{case} {dtype:?}: mean {mean:.1e} ({:.1e}), largest {largest:.1e}", theirs("mean"));
            assert!(mean < 1.5 * theirs("mean"), "{case} {dtype:?}: {mean}");
            assert!(largest < 2.0 * theirs("largest"), "{case} {dtype:?}: {largest}");
            assert!(dtype != DType::F16 || mean < 1e-2, "{case}: {mean}");
        }
    }
}

#[test]
fn a_window_bounds_cells_and_bytes_and_its_layers_share_only_among_themselves() {
    let (files, _folder) = open("mistral");
    let plan = |tokens| Cache::new(&files.shape(), Stack::new(), options(tokens), &Device::flex()).unwrap();
    assert_eq!(plan(1000).bytes(), 4 * 2 * (2 * 7 * 12) * 4);
    assert_eq!(plan(5).bytes(), 4 * 2 * (2 * 5 * 12) * 4);

    let (files, _folder) = open("qwen2_window");
    let windows: Vec<_> = files.shape().layers().iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [None, None, Some(6), Some(6)]);
    let stack = Stack::new().with(Sharing::both([(2, 1)]).unwrap());
    let error = Cache::new(&files.shape(), stack, options(50), &Device::flex()).err().unwrap();
    assert!(matches!(error, PlanError::ShapeMismatch { layer: LayerId(2), donor: LayerId(1), .. }), "{error}");
}

fn options(tokens: usize) -> CacheOptions {
    CacheOptions { batch: 1, tokens, prompt: None, dtype: DType::F32, rope: None }
}
