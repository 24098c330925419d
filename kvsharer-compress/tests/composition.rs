//! Every policy with and without sharing: donor and readers keep the same tokens, memory is what the plan said, and
//! the outputs are those of a plain simulation that recomputes everything from the list of kept tokens.

use burn::tensor::{Device, Tensor};
use kvsharer_compress::{StreamingLlm, parse_policy, policies};
use kvsharer_core::testing::{ToyModel, max_difference, toy_tokens};
use kvsharer_core::{
    Attend, Cache, CacheError, KeptTokens, Kv, LayerId, LayerMap, PlanError, SearchModel, Sharing, Stack,
};
use std::ops::Range;

fn model() -> ToyModel {
    ToyModel::new(5, 4, 2, 8, 3, &Device::flex())
}

/// No sharing, keys and values alike, keys and values apart.
fn sharings() -> [Sharing; 3] {
    let map = |kind, pairs: &[(usize, usize)]| LayerMap::resolve(kind, pairs.iter().copied()).unwrap();
    [
        Sharing::default(),
        Sharing::both([(3, 0), (4, 2)]).unwrap(),
        Sharing::new(map(Kv::Key, &[(3, 1), (4, 0)]), map(Kv::Value, &[(2, 0), (3, 1)])),
    ]
}

fn cache<'p>(model: &ToyModel, sharing: &Sharing, spec: &str, tokens: usize) -> Cache<'p> {
    let stack = Stack::new().with(sharing.clone()).with(parse_policy(spec).unwrap());
    Cache::new(model.shape(), stack, model.cache_options(2, tokens), &Device::flex()).unwrap()
}

fn kept(cache: &Cache<'_>, layer: usize) -> Vec<usize> {
    match cache.kept(LayerId(layer)) {
        KeptTokens::Uniform(kept) => kept.clone(),
        KeptTokens::PerHead(_) => panic!("a uniform policy keeps the same tokens in every head"),
    }
}

/// StreamingLLM by hand: all keys and values of all tokens are kept, and each pass attends to the listed ones only,
/// keys rotated anew at the positions they are said to stand at.
struct Simulation<'a> {
    model: &'a ToyModel,
    sharing: &'a Sharing,
    positions: Range<usize>,
    /// Unrotated keys and values of every token so far, by layer.
    keys: Vec<Vec<Tensor<4>>>,
    values: Vec<Vec<Tensor<4>>>,
    /// Tokens this pass may look at, with the positions of their keys, then the new tokens.
    old: Vec<(usize, usize)>,
}

impl Attend for Simulation<'_> {
    fn positions(&self) -> Range<usize> {
        // Projections arrive rotated by position 0, so not at all.
        0..1
    }

    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        let (from_key, from_value) = (self.sharing.keys().donor(layer), self.sharing.values().donor(layer));
        let split = |x: Tensor<4>| (0..x.dims()[2]).map(move |t| x.clone().slice_dim(2, t..t + 1)).collect::<Vec<_>>();
        self.keys[layer.0].extend(from_key.is_none().then(|| split(key())).into_iter().flatten());
        self.values[layer.0].extend(from_value.is_none().then(|| split(value())).into_iter().flatten());
        let (keys, values) = (&self.keys[from_key.unwrap_or(layer).0], &self.values[from_value.unwrap_or(layer).0]);
        let rope = self.model.rope();
        let [batch, heads, _, dim] = query.dims();
        let outputs = self.positions.clone().enumerate().map(|(row, position)| {
            let new = self.positions.start..=position;
            let seen: Vec<(usize, usize)> = self.old.iter().copied().chain(new.map(|p| (p, p))).collect();
            let key = |&(token, at): &(usize, usize)| rope.advance(keys[token].clone(), at);
            let all = |parts: Vec<Tensor<4>>| {
                let x = Tensor::cat(parts, 2);
                let [_, kv_heads, cells, _] = x.dims();
                let x = x.unsqueeze_dim::<5>(2).repeat_dim(2, heads / kv_heads);
                x.reshape([batch, heads, cells, dim])
            };
            let keys = all(seen.iter().map(key).collect());
            let values = all(seen.iter().map(|&(token, _)| values[token].clone()).collect());
            let query = rope.advance(query.clone().slice_dim(2, row..row + 1), position);
            let scores = query.matmul(keys.swap_dims(2, 3)) / (dim as f64).sqrt();
            burn::tensor::activation::softmax(scores, 3).matmul(values)
        });
        Ok(Tensor::cat(outputs.collect(), 2))
    }
}

/// Positions that StreamingLLM keeps before a pass of `incoming` tokens, and where their keys stand.
fn streaming(kept: &mut Vec<usize>, incoming: usize, sinks: usize, window: usize) {
    let excess = (kept.len() + incoming).saturating_sub(sinks + window);
    let start = sinks.min(kept.len());
    let end = (start + excess).min(kept.len());
    kept.drain(start..end);
}

#[test]
fn streaming_llm_equals_a_simulation_that_rotates_every_key_anew() {
    const SINKS: usize = 2;
    const WINDOW: usize = 5;
    let model = model();
    // A prompt longer than the budget, single tokens around the ring, chunks that fit and one that does not.
    let chunks = [10, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 2, 9, 1, 1];
    let tokens = toy_tokens(2, chunks.iter().sum(), 5);
    for sharing in sharings() {
        for original in [false, true] {
            let policy = StreamingLlm::new(SINKS, WINDOW);
            let policy = if original { policy.with_original_positions() } else { policy };
            let stack = Stack::new().with(sharing.clone()).with(policy);
            let mut cache = Cache::new(model.shape(), stack, model.cache_options(2, 64), &Device::flex()).unwrap();
            let layers = model.shape().len();
            let (keys, values) = (vec![Vec::new(); layers], vec![Vec::new(); layers]);
            let mut simulation =
                Simulation { model: &model, sharing: &sharing, positions: 0..0, keys, values, old: Vec::new() };
            let mut list: Vec<usize> = Vec::new();
            for chunk in chunks {
                let start = cache.seen();
                streaming(&mut list, chunk, SINKS, WINDOW);
                // Cache slots: relative to the query, the sinks stand right before the window.
                let gap = if original || list.is_empty() { 0 } else { start - list.len() };
                simulation.old =
                    list.iter().enumerate().map(|(i, &t)| (t, if i < SINKS { t + gap } else { t })).collect();
                simulation.positions = start..start + chunk;
                let expected = model.forward(&tokens, start..start + chunk, &mut simulation).unwrap();
                cache.begin(chunk).unwrap();
                let found = model.forward(&tokens, start..start + chunk, &mut cache).unwrap();
                let error = max_difference(found, expected);
                assert!(error < 1e-4, "{error} after token {start}, original positions: {original}, {sharing:?}");
                list.extend(start..start + chunk);
                streaming(&mut list, 0, SINKS, WINDOW);
                assert!((0..layers).all(|layer| kept(&cache, layer) == list), "{list:?}");
            }
        }
    }
}

#[test]
fn every_policy_with_any_sharing_keeps_the_same_tokens_in_donor_and_readers_and_the_planned_bytes() {
    let model = model();
    let tokens = toy_tokens(2, 40, 11);
    for entry in policies() {
        let spec = match entry.name {
            "streaming-llm" => "streaming-llm:sinks=2,window=6",
            other => other,
        };
        for sharing in sharings() {
            let mut cache = cache(&model, &sharing, spec, 40);
            let planned = cache.plan().bytes(2, 40, 4);
            assert_eq!(cache.bytes(), planned, "{spec}");
            for start in (0..40).step_by(4) {
                cache.begin(4).unwrap();
                model.forward(&tokens, start..start + 4, &mut cache).unwrap();
                assert_eq!(cache.bytes(), planned, "{spec} after {start}");
                for map in [sharing.keys(), sharing.values()] {
                    assert!(
                        map.iter().all(|(reader, donor)| kept(&cache, reader.0) == kept(&cache, donor.0)),
                        "{spec}"
                    );
                }
            }
        }
    }
}

#[test]
fn five_thousand_tokens_stay_within_sinks_and_window() {
    let model = ToyModel::new(3, 2, 1, 4, 1, &Device::flex());
    let sharing = Sharing::both([(2, 0)]).unwrap();
    let stack = Stack::new().with(sharing).with(StreamingLlm::new(4, 252));
    let mut cache = Cache::new(model.shape(), stack, model.cache_options(1, 5000), &Device::flex()).unwrap();
    // Two of three layers own caches of 256 cells; 4 unturned sink keys stand beside each key slot.
    let planned = 2 * (2 * 256 + 4) * 4 * 4;
    assert_eq!(cache.plan().bytes(1, 5000, 4), planned);
    let tokens = toy_tokens(1, 5000, 2);
    for at in 0..5000 {
        cache.begin(1).unwrap();
        let hidden = model.forward(&tokens, at..at + 1, &mut cache).unwrap();
        assert_eq!(cache.bytes(), planned);
        if at % 1000 == 999 {
            assert!(hidden.is_finite().all().into_scalar::<bool>());
        }
    }
    let expected: Vec<usize> = (0..4).chain(5000 - 252..5000).collect();
    assert_eq!(kept(&cache, 2), expected);
}

#[test]
fn a_window_as_long_as_the_text_changes_nothing() {
    let model = model();
    let tokens = toy_tokens(2, 20, 8);
    let run = |spec| model.run(&tokens, &[7, 1, 12], &mut cache(&model, &sharings()[1], spec, 20)).unwrap();
    assert_eq!(max_difference(run("streaming-llm:sinks=4,window=16"), run("full")), 0.0);
}

#[test]
fn two_evictors_without_an_order_are_a_plan_error() {
    let model = model();
    let stack = || Stack::new().with(StreamingLlm::new(2, 8)).with(StreamingLlm::new(2, 6));
    let plan = |stack| kvsharer_core::Plan::new(model.shape(), &stack);
    let error = plan(stack()).unwrap_err();
    assert!(
        matches!(&error, PlanError::TwoEvictors { first, second, .. } if first.contains("window=8") && second.contains("window=6"))
    );
    let ordered = plan(stack().evict_in_order()).unwrap();
    assert!(ordered.groups().iter().all(|group| group.capacity(100) == 8));

    // One after the other, the tighter one decides.
    let tokens = toy_tokens(2, 40, 21);
    let chunks = [13, 1, 1, 5, 1, 11, 1, 1, 1, 1, 4];
    let run = |stack| {
        let mut cache = Cache::new(model.shape(), stack, model.cache_options(2, 40), &Device::flex()).unwrap();
        model.run(&tokens, &chunks, &mut cache).unwrap()
    };
    let tighter = run(Stack::new().with(StreamingLlm::new(2, 6)));
    assert!(max_difference(run(stack().evict_in_order()), tighter) < 1e-5);
}
