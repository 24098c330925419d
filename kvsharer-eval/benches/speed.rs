//! Prefill and decode of SmolLM2 on the CPU beside Hugging Face transformers on the same machine in the same run.
//!
//! `cargo bench -p kvsharer-eval --bench speed` prints our numbers; with `KVSHARER_BENCH_PYTHON=/path/to/python` (one
//! that has torch, transformers and gguf) it also runs `transformers_speed.py` before and after ours and prints ratios.
//! Shapes, repeats and units are that script's: f32, medians of 3 in tokens/s.
#![allow(clippy::print_stdout)]

use burn::tensor::{DType, Device};
use kvsharer_core::{Cache, SearchModel, Stack};
use kvsharer_eval::{Spread, decode_speed, texts};
use kvsharer_models::{DEFAULT_MODEL, Decoder, catalogue, fetched, open_model};
use serde_json::Value;
use std::process::Command;
use std::time::Instant;

const REPEATS: usize = 3;

fn main() {
    let files = open_model(DEFAULT_MODEL, 0).expect("the default model can be fetched");
    let model = files.load(&Device::flex(), DType::F32).expect("the default model loads");
    let ids = files.tokenizer().and_then(|tokenizer| Ok(tokenizer.encode(texts::DEMO)?)).expect("the text has tokens");
    let first = reference();
    let batch: Vec<&[u32]> = ids.chunks(64).take(30).collect();
    let rows = [
        ("prefill_512", Spread::of((0..=REPEATS).map(|_| prefill(&model, &[&ids[..512]])).skip(1).collect())),
        ("prefill_30x64", Spread::of((0..=REPEATS).map(|_| prefill(&model, &batch)).skip(1).collect())),
        (
            "decode_64",
            Spread::of(
                (0..REPEATS)
                    .map(|_| {
                        let speed = decode_speed(&model, &ids[..512], 64, Stack::new()).expect("decoding runs");
                        speed.tokens_per_second.median
                    })
                    .collect(),
            ),
        ),
    ];
    let last = reference();
    println!("{} threads, commit {}", rayon::current_num_threads(), commit());
    for (name, ours) in rows {
        let theirs: Vec<f64> =
            [&first, &last].into_iter().flatten().filter_map(|r| r[name]["median"].as_f64()).collect();
        let ours_line = format!("{name}: kvsharer {:.1} tokens/s ({:.1} to {:.1})", ours.median, ours.min, ours.max);
        match Spread::of(theirs.clone()) {
            theirs_spread if !theirs.is_empty() => println!(
                "{ours_line}, transformers {:.1} ({:.1} to {:.1}), ratio {:.2}",
                theirs_spread.median,
                theirs_spread.min,
                theirs_spread.max,
                ours.median / theirs_spread.median
            ),
            _ => println!("{ours_line}"),
        }
    }
}

/// Tokens a second of one forward pass from an empty cache, with the scores of the last token read back.
fn prefill(model: &Decoder, rows: &[&[u32]]) -> f64 {
    let tokens = rows[0].len();
    let options = model.cache_options(rows.len(), tokens);
    let mut cache = Cache::new(model.shape(), Stack::new(), options, &model.device()).expect("a full cache fits");
    let start = Instant::now();
    let hidden = model.forward(rows, &mut cache).expect("the forward pass runs");
    model.logits(hidden.slice_dim(1, tokens - 1..tokens)).into_data();
    (rows.len() * tokens) as f64 / start.elapsed().as_secs_f64()
}

/// transformers' numbers, if a Python that has it is given.
fn reference() -> Option<Value> {
    let python = std::env::var_os("KVSHARER_BENCH_PYTHON")?;
    let gguf = catalogue().iter().find_map(|entry| fetched(entry).ok().flatten())?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/transformers_speed.py");
    let output = Command::new(python).arg(script).arg("--gguf").arg(gguf).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("the script prints JSON"))
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
