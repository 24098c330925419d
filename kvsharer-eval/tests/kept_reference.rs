//! The tokens that every policy keeps, pass by pass, layer by layer and head by head, against kvpress and plain
//! restatements of the methods; the fixtures lie beside the script that made them.

use burn::tensor::{DType, Device};
use kvsharer_compress::parse_policy;
use kvsharer_core::{Cache, CacheOptions, KeptTokens, Kv, LayerId, SearchModel, Sharing, Stack};
use kvsharer_models::{DEFAULT_MODEL, Decoder, ModelFiles, open_model};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Positions that stay, by owner layer and head.
type Kept = Vec<(usize, Vec<BTreeSet<i64>>)>;

fn golden(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// One set a head for each of the `owners` that `value` names. To keep the fixtures small, the layer `*` stands for all
/// owners that are not named, and a single set for all heads.
fn by_layer(value: &Value, owners: &[usize], heads: usize) -> Kept {
    let of_layer = |&layer: &usize| {
        let listed = value.get(layer.to_string()).or(value.get("*"))?.as_array().unwrap();
        let set = |head| listed.get(head).unwrap_or(&listed[0]).as_array().unwrap();
        let positions = |set: &Vec<Value>| set.iter().map(|position| position.as_i64().unwrap()).collect();
        Some((layer, (0..heads).map(set).map(positions).collect()))
    };
    owners.iter().filter_map(of_layer).collect()
}

fn kept(cache: &Cache<'_>, layers: &Kept) -> Kept {
    let of_layer = |layer: usize| match cache.kept(LayerId(layer)) {
        KeptTokens::Uniform(kept) => {
            let kv_heads = cache.plan().slot(cache.plan().layers()[layer].key).shape.kv_heads;
            vec![kept.iter().map(|&position| position as i64).collect(); kv_heads]
        }
        KeptTokens::PerHead(positions) => {
            let cells = positions.dims()[2];
            let positions = positions.clone().try_into_vec_as::<i64>().unwrap();
            positions.chunks(cells).map(|head| head.iter().copied().filter(|&p| p >= 0).collect()).collect()
        }
    };
    layers.iter().map(|(layer, _)| (*layer, of_layer(*layer))).collect()
}

fn sharing(case: &Value) -> Sharing {
    let pairs = case["sharing"].as_object().unwrap().iter();
    Sharing::both(pairs.map(|(reader, donor)| (reader.parse().unwrap(), donor.as_u64().unwrap() as usize))).unwrap()
}

/// Runs one case with a prompt in chunks; compares every pass if the prompt is run at once, else from its end on.
fn compare(model: &Decoder, golden: &Value, case: &Value, chunk: usize, tolerance: f32) {
    let spec = case["spec"].as_str().unwrap();
    let (prompt, decode) = (ids(&golden["prompt"]), ids(&golden["decode"]));
    let options: CacheOptions = model.cache_options(1, prompt.len() + decode.len()).for_prompt(prompt.len());
    let stack = Stack::new().with(sharing(case)).with(parse_policy(spec).unwrap());
    let mut cache = Cache::new(model.shape(), stack, options.clone(), &model.device()).unwrap();
    let planned = cache.plan().bytes(1, options.lengths(), 4);
    for part in prompt.chunks(chunk) {
        model.forward(&[part], &mut cache).unwrap();
    }
    let owners: Vec<usize> = model.shape().ids().filter(|&l| cache.plan().owns(l, Kv::Key)).map(|l| l.0).collect();
    let kv_heads = model.config().kv_heads;
    let mut expected = by_layer(&case["prefill"], &owners, kv_heads);
    assert_eq!(expected.len(), owners.len(), "{spec}");
    assert_eq!(kept(&cache, &expected), expected, "{spec} after the prompt");
    assert_eq!(cache.bytes(), planned, "{spec}");
    let mut logits = Vec::new();
    for (step, &id) in decode.iter().enumerate() {
        let hidden = model.forward(&[&[id]], &mut cache).unwrap();
        let dropped = by_layer(&case["dropped"][step], &owners, kv_heads);
        for (layer, kept) in &mut expected {
            let gone = dropped.iter().find(|(other, _)| other == layer).map(|(_, gone)| gone.as_slice());
            for (head, kept) in kept.iter_mut().enumerate() {
                kept.insert((prompt.len() + step) as i64);
                kept.retain(|position| !gone.is_some_and(|gone| gone[head].contains(position)));
            }
        }
        assert_eq!(kept(&cache, &expected), expected, "{spec} after decoding step {step}");
        assert_eq!(cache.bytes(), planned, "{spec}");
        logits = model.logits(hidden).try_into_vec_as::<f32>().unwrap();
    }
    for (id, expected) in ids(&golden["logit_ids"]).into_iter().zip(case["last_logits"].as_array().unwrap()) {
        let (found, expected) = (logits[id as usize], expected.as_f64().unwrap() as f32);
        assert!((found - expected).abs() < tolerance, "{spec}: logit {id} is {found} instead of {expected}");
    }
}

fn tiny() -> Decoder {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kvsharer-models/tests/fixtures/tiny_llama_tied");
    ModelFiles::open_folder(&folder).unwrap().load(&Device::flex(), DType::F32).unwrap()
}

#[test]
fn a_tiny_model_keeps_the_tokens_of_the_references() {
    let (model, golden) = (tiny(), golden("kept_tiny.json"));
    for case in golden["cases"].as_array().unwrap() {
        compare(&model, &golden, case, usize::MAX, 1e-3);
    }
}

#[test]
fn chunks_of_a_prompt_of_known_length_make_no_difference() {
    let (model, golden) = (tiny(), golden("kept_tiny.json"));
    for case in golden["cases"].as_array().unwrap() {
        let spec = case["spec"].as_str().unwrap();
        // These evict before each chunk, as their reference does: a chunk sees less than a whole prompt.
        let evicts_in_between = spec.starts_with("streaming-llm") || spec.starts_with("window");
        // A sum of maxima over a query group or over readers is not the maximum of the sums.
        let sums_maxima = spec.contains("group=max") || spec.contains("readers=max");
        if !evicts_in_between && !sums_maxima {
            for chunk in [1, 7, 39] {
                compare(&model, &golden, case, chunk, 1e-3);
            }
        }
    }
}

#[test]
fn smollm2_keeps_the_tokens_of_the_references() {
    let model = open_model(DEFAULT_MODEL, 0).unwrap().load(&Device::flex(), DType::F32).unwrap();
    let golden = golden("kept_smollm2.json");
    for case in golden["cases"].as_array().unwrap() {
        compare(&model, &golden, case, usize::MAX, 2e-3);
    }
}
