//! A decoding step under each policy beside one of the full cache, in one run: SmolLM2 in f32 on the CPU.
//!
//! `cargo bench -p kvsharer-eval --bench policies` fills every evicting cache past its budget of 512 tokens, so that
//! each step evicts, and holds the full cache at 512 tokens by starting it over. Steps take turns, so that a busy machine
//! slows all down alike; medians with least and greatest, and the ratio to the full cache.
#![allow(clippy::print_stdout)]

use burn::tensor::{DType, Device};
use kvsharer_compress::parse_policy;
use kvsharer_core::{Cache, SearchModel, Sharing, Stack};
use kvsharer_eval::{Spread, texts};
use kvsharer_models::{DEFAULT_MODEL, Decoder, open_model};
use std::time::Instant;

const BUDGET: usize = 512;
const PROMPT: usize = 640;
const STEPS: usize = 48;

const SPECS: [&[&str]; 11] = [
    &["full"],
    &["streaming-llm:sinks=4,window=508"],
    &["streaming-llm:sinks=4,window=508,positions=original"],
    &["window:budget=512"],
    &["h2o:heavy=256,recent=256"],
    &["h2o:variant=streaming,heavy=256,recent=256"],
    &["tova:budget=512"],
    &["knorm:budget=512"],
    &["snapkv:budget=512,decode=evict"],
    &["quant:bits=8", "window:budget=512"],
    &["quant:bits=4", "h2o:heavy=256,recent=256"],
];

fn main() {
    let model = open_model(DEFAULT_MODEL, 0)
        .and_then(|files| Ok((files.load(&Device::flex(), DType::F32)?, files.tokenizer()?)));
    let (model, tokenizer) = model.expect("the default model can be fetched and loaded");
    let ids = tokenizer.encode(texts::DEMO).expect("the text has tokens");
    let shared = Sharing::both([(14, 12), (20, 17), (26, 24)]).expect("a map");
    let mut rows: Vec<(String, Cache<'_>, Vec<f64>)> = Vec::new();
    for specs in SPECS {
        rows.push((specs.join(" + "), filled(&model, &ids, Stack::new(), specs), Vec::new()));
    }
    let name = "3 of 30 layers shared + h2o:heavy=256,recent=256".to_owned();
    rows.push((name, filled(&model, &ids, Stack::new().with(shared), SPECS[4]), Vec::new()));
    for step in 0..STEPS + 2 {
        let id = ids[PROMPT + step];
        for (index, (_, cache, times)) in rows.iter_mut().enumerate() {
            if index == 0 && step % 8 == 0 {
                // Back to the length that the others hold.
                *cache = filled(&model, &ids, Stack::new(), SPECS[0]);
            }
            let start = Instant::now();
            let hidden = model.forward(&[&[id]], cache).expect("a step runs");
            model.logits(hidden).into_data();
            if step >= 2 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    println!("SmolLM2-135M, f32, {} threads, budget {BUDGET}, {STEPS} steps a row", rayon::current_num_threads());
    let full = Spread::of(rows[0].2.clone()).median;
    for (name, cache, times) in rows {
        let Spread { median, min, max } = Spread::of(times);
        let ratio = median / full;
        let bytes = cache.bytes() as f64 / f64::from(1 << 20);
        println!("{median:7.2} ms ({min:.2} to {max:.2})  x{ratio:.3}  {bytes:6.2} MiB  {name}");
    }
}

/// A cache at its budget, or at 508 tokens if nothing is evicted, so that timed steps stand at 512 in the mean.
fn filled<'a>(model: &Decoder, ids: &[u32], stack: Stack<'a>, specs: &[&str]) -> Cache<'a> {
    let stack = specs.iter().fold(stack, |stack, spec| stack.with(parse_policy(spec).expect("a SPEC")));
    let full = specs == ["full"];
    let prompt = if full { BUDGET - 4 } else { PROMPT };
    let options = model.cache_options(1, if full { BUDGET + 8 } else { PROMPT + STEPS + 2 }).for_prompt(prompt);
    let mut cache = Cache::new(model.shape(), stack, options, &model.device()).expect("a plan");
    model.forward(&[&ids[..prompt]], &mut cache).expect("the prompt runs");
    cache
}
