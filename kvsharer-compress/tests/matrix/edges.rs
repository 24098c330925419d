//! Small budgets, short prompts and long caches: cases that once went wrong.

use crate::support::{BATCH, TOKENS, kept, model, tokens};
use burn::tensor::Device;
use kvsharer_compress::testing::QUANTISED;
use kvsharer_compress::{Amount, Amounts, Method, PyramidKv, SnapKv, parse_policy};
use kvsharer_core::testing::toy_tokens;
use kvsharer_core::{Cache, CacheOptions, SearchModel, Stack};

/// Runs a prompt and as many single tokens as there is room for.
fn run(stack: Stack<'_>, prompt: Option<usize>, passes: &[usize]) {
    let model = model();
    let options = CacheOptions { prompt, ..model.cache_options(BATCH, TOKENS) };
    let mut cache = Cache::new(model.shape(), stack, options, &Device::flex()).unwrap();
    let rest = TOKENS - passes.iter().sum::<usize>();
    model.run(&tokens(), &[passes, &vec![1; rest]].concat(), &mut cache).unwrap();
}

#[test]
fn cache_slot_positions_need_no_sinks() {
    run(Stack::new().with(parse_policy("streaming-llm:sinks=0,window=20").unwrap()), None, &[10]);
}

#[test]
fn a_share_that_rounds_to_nothing_has_a_cell_for_the_token_that_stays() {
    // 2 % of 33 tokens is none, but one stays; all others after the prompt do too.
    run(Stack::new().with(parse_policy("tova:budget=2%,decode=grow").unwrap()), Some(33), &[33]);
}

#[test]
fn the_newest_query_of_a_prompt_counts_even_if_its_pass_goes_on_behind_it() {
    run(Stack::new().with(parse_policy("tova:budget=22,decode=grow").unwrap()), Some(34), &[40]);
}

#[test]
fn a_pyramid_of_shares_keeps_what_its_mean_allows_of_a_prompt_shorter_than_the_window() {
    let mean = Amounts::Same(Amount::Share(0.1));
    let pyramid = PyramidKv::new(SnapKv::new(mean), 20);
    for prompt in 1..64 {
        for layer in 0..5 {
            let kept = pyramid.kept(layer, 5, prompt);
            assert!(kept <= prompt.max(32), "layer {layer} keeps {kept} tokens of {prompt}");
        }
    }
}

#[test]
fn a_window_makes_room_for_a_chunk_as_long_as_itself_in_a_padded_batch() {
    let model = model();
    for spec in ["window:budget=8", "streaming-llm:sinks=0,window=8,positions=original"] {
        for storage in ["full", QUANTISED[0]] {
            let stack = Stack::new().with(parse_policy(spec).unwrap()).with(parse_policy(storage).unwrap());
            let options = model.cache_options(3, 40);
            let mut cache = Cache::new(model.shape(), stack, options, &Device::flex()).unwrap();
            let passes = [12, 8, 9, 1, 1, 1];
            model.run_padded(&toy_tokens(3, 40, 8), &[0, 4, 11], &passes, &mut cache).unwrap();
            let newest: Vec<i64> = (24..32).collect();
            assert!(kept(&cache, 0).iter().all(|head| *head == newest), "{spec}, {storage}");
        }
    }
}
