//! Policies on a model with sliding windows: a policy with room for the window changes nothing, a smaller budget binds.

use burn::tensor::{Device, Tensor};
use kvsharer_compress::parse_policy;
use kvsharer_core::testing::{ToyModel, max_difference, toy_tokens};
use kvsharer_core::{Cache, KeptTokens, LayerId, Plan, PlanError, SearchModel, Sharing, Stack};

const WINDOW: usize = 20;
const PROMPT: usize = 40;
const STEPS: usize = 16;
const TOKENS: usize = PROMPT + STEPS;

/// Windows in three layers of five.
fn model() -> ToyModel {
    let windows = [Some(WINDOW), None, Some(WINDOW), None, Some(WINDOW)];
    ToyModel::new(5, 4, 2, 8, 3, &Device::flex()).with_windows(&windows)
}

fn stack(specs: &[&str]) -> Stack<'static> {
    let stack = Stack::new().with(Sharing::both([(2, 0), (3, 1)]).unwrap());
    specs.iter().fold(stack, |stack, spec| stack.with(parse_policy(spec).unwrap()))
}

/// Final states of all tokens, and the cache as it was left.
fn run(specs: &[&str], padding: &[usize], passes: &[usize]) -> (Tensor<3>, Cache<'static>) {
    let model = model();
    let options = model.cache_options(2, TOKENS).for_prompt(PROMPT);
    let mut cache = Cache::new(model.shape(), stack(specs), options.clone(), &model.device())
        .unwrap_or_else(|error| panic!("{specs:?}: {error}"));
    let planned = cache.plan().bytes(2, options.lengths(), 4);
    let states = model
        .run_padded(&toy_tokens(2, TOKENS, 11), padding, passes, &mut cache)
        .unwrap_or_else(|error| panic!("{specs:?} in passes {passes:?}: {error}"));
    assert_eq!(cache.bytes(), planned, "{specs:?}");
    (states, cache)
}

fn passes(prompt: &[usize]) -> Vec<usize> {
    [prompt, &[1; STEPS]].concat()
}

/// Tokens a layer holds in each row and head.
fn held(cache: &Cache<'_>, layer: usize) -> usize {
    match cache.kept(LayerId(layer)) {
        KeptTokens::Uniform(kept) => kept.len(),
        KeptTokens::PerHead(positions) => positions.dims()[2],
    }
}

const SMALL: &[&str] = &[
    "window:budget=11",
    "window:budget=25%,protect=2",
    "streaming-llm:sinks=3,window=9,positions=original",
    "h2o:heavy=6,recent=6",
    "h2o:variant=observed,budget=30%",
    "tova:budget=12",
    "snapkv:budget=12,window=6",
    "snapkv:budget=12,window=6,decode=evict",
    "pyramidkv:budget=14,window=6",
    "pyramidinfer-cache:final=20%,min=2",
    "knorm:budget=12",
    "random:budget=12",
];

#[test]
fn a_budget_below_the_window_binds_in_every_layer() {
    for spec in SMALL {
        for prompt in [&[PROMPT][..], &[25, 15], &[1; PROMPT]] {
            let (states, cache) = run(&[spec], &[], &passes(prompt));
            assert!(states.abs().max().into_scalar::<f32>().is_finite(), "{spec}");
            for layer in [0, 4] {
                assert!(held(&cache, layer) <= WINDOW, "{spec}: {}", held(&cache, layer));
            }
        }
    }
}

#[test]
fn a_budget_with_room_for_everything_changes_nothing() {
    let (plain, _) = run(&[], &[], &passes(&[PROMPT]));
    for spec in [
        "window:budget=56",
        "streaming-llm:sinks=4,window=52,positions=original",
        "h2o:heavy=28,recent=28",
        "tova:budget=56",
        "snapkv:budget=56,window=6",
        "pyramidkv:budget=90,window=6",
        "knorm:budget=56",
        "random:budget=56",
    ] {
        for prompt in [&[PROMPT][..], &[25, 15], &[1; PROMPT]] {
            let (states, cache) = run(&[spec], &[], &passes(prompt));
            let error = max_difference(states, plain.clone());
            assert!(error < 1e-4, "{spec} in passes of {prompt:?}: {error}");
            assert!(held(&cache, 0) <= WINDOW);
        }
    }
}

#[test]
fn rows_padded_in_front_keep_what_they_keep_alone() {
    let model = model();
    let tokens = toy_tokens(2, TOKENS, 11);
    for spec in SMALL.iter().filter(|spec| !spec.contains('%')) {
        let (states, _) = run(&[spec], &[7, 0], &passes(&[PROMPT]));
        let options = model.cache_options(1, TOKENS - 7).for_prompt(PROMPT - 7);
        let mut alone = Cache::new(model.shape(), stack(&[spec]), options, &model.device()).unwrap();
        let row = [tokens[0][7..].to_vec()];
        let expected = model.run(&row, &passes(&[PROMPT - 7]), &mut alone).unwrap();
        let error = max_difference(states.slice([0..1, 7..TOKENS]), expected);
        // Random draws differ by row of the batch.
        assert!(error < 1e-3 || spec.starts_with("random"), "{spec}: {error}");
    }
}

#[test]
fn quantised_windows_stay_near_full_ones() {
    let (plain, _) = run(&[], &[], &passes(&[PROMPT]));
    for specs in [&["quant:bits=8"][..], &["quant:bits=8", "h2o:heavy=28,recent=28"]] {
        for prompt in [&[PROMPT][..], &[25, 15], &[1; PROMPT]] {
            let (states, _) = run(specs, &[], &passes(prompt));
            let error = max_difference(states, plain.clone());
            assert!(error < 0.3, "{specs:?}: {error}");
        }
    }
}

#[test]
fn cache_slot_positions_are_refused_on_windowed_layers() {
    for spec in ["streaming-llm:sinks=4,window=8", "h2o:heavy=6,recent=6,positions=cache"] {
        let error = Plan::new(model().shape(), &stack(&[spec])).unwrap_err();
        assert!(matches!(error, PlanError::WindowedPositions { .. }), "{error}");
    }
}
