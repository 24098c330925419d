//! Sliding windows of a model: what queries see, what the cache keeps, and that it does not matter how a text comes.

use burn::tensor::{Device, Tensor};
use kvsharer_core::testing::{ToyModel, max_difference, toy_tokens};
use kvsharer_core::{
    Budget, Cache, CalibrationSet, Eviction, Group, GroupState, KeptTokens, LayerId, LayerKvPolicy, Lengths, Paper,
    Plan, PlanError, Positions, Progress, SearchModel, SearchOptions, Sharing, Stack, search,
};

const WINDOW: usize = 7;
const TOKENS: usize = 30;

fn model(windows: &[Option<usize>]) -> ToyModel {
    ToyModel::new(windows.len(), 4, 2, 8, 5, &Device::flex()).with_windows(windows)
}

fn run(model: &ToyModel, tokens: &[Vec<u32>], passes: &[usize], stack: Stack<'_>) -> Tensor<3> {
    let options = model.cache_options(tokens.len(), tokens[0].len());
    let mut cache = Cache::new(model.shape(), stack, options.clone(), &model.device()).unwrap();
    let output = model.run(tokens, passes, &mut cache).unwrap();
    assert_eq!(cache.bytes(), cache.plan().bytes(options.batch, options.tokens, 4));
    output
}

/// Passes of which some fit the window, some do not, and some follow on a full one.
const PASSES: [&[usize]; 6] =
    [&[30], &[1; 30], &[7, 7, 7, 7, 2], &[12, 1, 1, 3, 1, 9, 1, 1, 1], &[3, 3, 3, 3, 18], &[6, 1, 1, 1, 1, 20]];

#[test]
fn a_windowed_query_sees_what_a_text_that_starts_with_its_window_shows() {
    let (windowed, full) = (model(&[Some(WINDOW)]), model(&[None]));
    let tokens = toy_tokens(1, TOKENS, 2);
    for passes in PASSES {
        let states = run(&windowed, &tokens, passes, Stack::new());
        for end in 1..=TOKENS {
            let start = end.saturating_sub(WINDOW);
            let alone = [tokens[0][start..end].to_vec()];
            let expected = run(&full, &alone, &[end - start], Stack::new());
            let last = expected.slice_dim(1, end - start - 1..end - start);
            let error = max_difference(states.clone().slice_dim(1, end - 1..end), last);
            assert!(error < 1e-4, "token {end} in passes {passes:?}: {error}");
        }
    }
}

#[test]
fn passes_padding_and_sharing_make_no_difference() {
    let model = model(&[Some(WINDOW), None, Some(WINDOW), Some(3), Some(WINDOW)]);
    let tokens = toy_tokens(2, TOKENS, 8);
    let stack = || Stack::new().with(Sharing::both([(2, 0), (4, 0)]).unwrap());
    let whole = run(&model, &tokens, &[TOKENS], stack());
    for passes in PASSES {
        assert!(max_difference(run(&model, &tokens, passes, stack()), whole.clone()) < 1e-4, "{passes:?}");
    }
    // A row with padding in front gives what it gives alone.
    let padding = [9, 0];
    for passes in PASSES.iter().filter(|passes| passes[0] > 9) {
        let mut cache = Cache::new(model.shape(), stack(), model.cache_options(2, TOKENS), &model.device()).unwrap();
        let states = model.run_padded(&tokens, &padding, passes, &mut cache).unwrap();
        let alone = run(&model, &[tokens[0][9..].to_vec()], &[TOKENS - 9], stack());
        let error = max_difference(states.slice([0..1, 9..TOKENS]), alone);
        assert!(error < 1e-4, "{passes:?}: {error}");
        assert_eq!(cache.bytes(), cache.plan().bytes(2, TOKENS, 4));
    }
}

#[test]
fn a_window_bounds_cells_and_the_text_has_no_end() {
    let model = model(&[Some(WINDOW), Some(WINDOW)]);
    let plan = Plan::new(model.shape(), &Stack::new()).unwrap();
    let cell = 2 * 8 * 4;
    assert_eq!(plan.bytes(1, 1000, 4), 4 * WINDOW * cell);
    assert_eq!(plan.bytes(1, 3, 4), 4 * 3 * cell);
    // While the first layer prefills, its keys and values are held in full beside the buffers.
    assert_eq!(plan.prefill_peak_bytes(1, Lengths::new(100, 100), 100, 4), 4 * WINDOW * cell + 2 * 100 * cell);
    // More tokens than the cache was made for.
    let tokens = toy_tokens(1, 40, 1);
    let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(1, 10), &model.device()).unwrap();
    model.run(&tokens, &[1; 40], &mut cache).unwrap();
    match cache.kept(LayerId(0)) {
        KeptTokens::Uniform(kept) => assert_eq!(*kept, (33..40).collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    }
    // A layer without a window has one.
    let mixed = self::model(&[Some(WINDOW), None]);
    let mut cache = Cache::new(mixed.shape(), Stack::new(), mixed.cache_options(1, 10), &mixed.device()).unwrap();
    assert!(mixed.run(&tokens, &[1; 11], &mut cache).is_err());
}

#[test]
fn a_branch_slides_on_by_itself() {
    let model = model(&[Some(WINDOW), Some(4)]);
    let tokens = toy_tokens(2, TOKENS, 3);
    let whole = run(&model, &tokens, &[TOKENS], Stack::new());
    let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(2, TOKENS), &model.device()).unwrap();
    cache.begin(12).unwrap();
    model.forward(&tokens, 0..12, &mut cache).unwrap();
    let mut branch = cache.branch(&[1]).unwrap();
    drop(cache);
    let row = [tokens[1].clone()];
    for token in 12..TOKENS {
        branch.begin(1).unwrap();
        let state = model.forward(&row, token..token + 1, &mut branch).unwrap();
        assert!(max_difference(state, whole.clone().slice([1..2, token..token + 1])) < 1e-4);
    }
}

#[test]
fn a_search_runs_samples_through_the_windows_and_shares_within_them() {
    let windows = [Some(WINDOW), None, Some(WINDOW), None];
    let samples = toy_tokens(3, TOKENS, 4);
    let set = CalibrationSet::new(samples, TOKENS).unwrap();
    let (ungated, options) = (Paper { threshold: -1.0, ..Paper::default() }, SearchOptions::new(2));
    let mut watch = |_: Progress<'_>| {};
    let found = search(&model(&windows), &set, &ungated, &options, &mut watch).unwrap();
    assert_eq!(found.ranking.len(), 2, "only layers of one window pair up");
    let full = search(&model(&[None; 4]), &set, &ungated, &options, &mut watch).unwrap();
    assert_ne!(found.trials[0].similarity, full.trials[0].similarity);
}

/// Keys at cache slots, which a window of text positions cannot tell.
struct Slots;

impl LayerKvPolicy for Slots {
    fn name(&self) -> String {
        "slots".into()
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(5.into())
    }
    fn positions(&self, _group: &Group) -> Positions {
        Positions::CacheSlot { sinks: 0 }
    }
    fn evict(&mut self, _group: &Group, _state: &GroupState<'_>) -> Eviction {
        Eviction::Nothing
    }
}

#[test]
fn what_a_window_cannot_be_combined_with_is_refused() {
    let plan = |windows: &[Option<usize>], stack: &Stack<'_>| Plan::new(model(windows).shape(), stack).unwrap_err();
    let error = plan(&[None, Some(WINDOW)], &Stack::new().with(Slots));
    assert!(matches!(error, PlanError::WindowedPositions { layer: LayerId(1), window: WINDOW, .. }), "{error}");
    let error = plan(&[None, Some(0)], &Stack::new());
    assert!(matches!(error, PlanError::EmptyWindow { layer: LayerId(1) }), "{error}");
    let error = plan(&[Some(WINDOW), Some(4)], &Stack::new().with(Sharing::both([(1, 0)]).unwrap()));
    assert!(matches!(error, PlanError::ShapeMismatch { .. }), "{error}");
}

#[test]
fn a_window_of_one_token_sees_that_token() {
    let model = model(&[Some(1), Some(1)]);
    let tokens = toy_tokens(1, 6, 5);
    let whole = run(&model, &tokens, &[6], Stack::new());
    assert!(max_difference(run(&model, &tokens, &[1; 6], Stack::new()), whole) < 1e-5);
}
