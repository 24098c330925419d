//! Folded maps are the explicit ones: a folded model behind a cache gives what the plain one gives with maps applied
//! around its attention.

use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use kvsharer_core::testing::max_difference;
use kvsharer_core::{
    Adapter, Attend, Cache, CacheError, CalibrationSet, Change, Draft, Fit, Fixed, Greedy, Ground, Kv, LayerId,
    LayerMap, Mix, Move, Objective, Progress, SearchError, SearchModel, SearchOptions, SearchStrategy, Sharing, Stack,
    Target, Turn, Units, search,
};
use kvsharer_models::{Decoder, open_model};
use std::collections::BTreeMap;
use std::ops::Range;

const TOKENS: usize = 24;

fn model() -> Decoder {
    open_model("random:tiny", 3).unwrap().load(&Device::flex(), DType::F32).unwrap()
}

fn tokens(rows: u32) -> Vec<Vec<u32>> {
    (0..rows).map(|row| (0..TOKENS as u32).map(|i| (i * 7 + row * 13 + i * i) % 200).collect()).collect()
}

/// Maps around the attention of a cache.
struct Explicit<'a, 'c> {
    cache: &'a mut Cache<'c>,
    adapters: &'a BTreeMap<LayerId, Adapter>,
}

impl Attend for Explicit<'_, '_> {
    fn positions(&self) -> Range<usize> {
        self.cache.positions()
    }

    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        let Some(adapter) = self.adapters.get(&layer) else {
            return self.cache.attend(layer, query, key, value);
        };
        let (key, value) = (|| adapter.stored(key()), || adapter.stored(value()));
        Ok(adapter.after(self.cache.attend(layer, adapter.before(query), key, value)?))
    }
}

fn cache<'a>(model: &Decoder, sharing: &Sharing) -> Cache<'a> {
    let options = model.cache_options(2, TOKENS);
    Cache::new(model.shape(), Stack::new().with(sharing.clone()), options, &model.device()).unwrap()
}

/// Logits of all tokens, in two passes, with maps applied around the attention.
fn explicit(model: &Decoder, sharing: &Sharing, adapters: &BTreeMap<LayerId, Adapter>) -> Tensor<3> {
    let mut cache = cache(model, sharing);
    let rows = tokens(2);
    let passes = [0..TOKENS - 1, TOKENS - 1..TOKENS].map(|pass| {
        cache.begin(pass.len()).unwrap();
        let ids: Vec<i64> = rows.iter().flat_map(|row| row[pass.clone()].iter().map(|&id| i64::from(id))).collect();
        let ids = Tensor::from_data(TensorData::new(ids, [2, pass.len()]), &model.device());
        let mut attention = Explicit { cache: &mut cache, adapters };
        let hidden = model
            .shape()
            .ids()
            .fold(model.embed(ids), |hidden, layer| model.layer(layer, hidden, &mut attention).unwrap());
        model.final_norm(hidden)
    });
    Decoder::logits(model, Tensor::cat(passes.to_vec(), 1))
}

/// The same of a folded model, which knows nothing of maps.
fn folded(model: &Decoder, sharing: &Sharing, adapters: &BTreeMap<LayerId, Adapter>) -> Tensor<3> {
    let model = model.folded(adapters).unwrap();
    let mut cache = cache(&model, sharing);
    let rows = tokens(2);
    let passes = [0..TOKENS - 1, TOKENS - 1..TOKENS].map(|pass| {
        let rows: Vec<&[u32]> = rows.iter().map(|row| &row[pass.clone()]).collect();
        model.forward(&rows, &mut cache).unwrap()
    });
    model.logits(Tensor::cat(passes.to_vec(), 1))
}

#[test]
fn a_folded_model_equals_the_explicit_form_for_every_kind_of_map() {
    let model = model();
    let config = model.config().clone();
    let (kv_heads, dim, width) = (config.kv_heads, config.head_dim, config.heads * config.head_dim);
    let device = model.device();
    let random = |spread: f64| Distribution::Normal(0.0, spread);
    let turn = || Turn {
        real: Tensor::random([kv_heads, dim / 2], random(1.0), &device),
        imaginary: Tensor::random([kv_heads, dim / 2], random(1.0), &device),
    };
    let heads_mix = || Mix::Heads {
        weight: Tensor::random([kv_heads, dim, dim], random(0.3), &device),
        bias: Tensor::random([kv_heads, dim], random(0.3), &device),
    };
    let full_mix = || Mix::Full {
        weight: Tensor::random([width, width], random(0.1), &device),
        bias: Tensor::random([width], random(0.3), &device),
    };
    let low_rank_mix = || Mix::LowRank {
        heads: Tensor::random([kv_heads, dim, dim], random(0.3), &device),
        left: Tensor::random([width, 3], random(0.2), &device),
        right: Tensor::random([3, width], random(0.2), &device),
        bias: Tensor::random([width], random(0.3), &device),
    };
    let swapped = || Some((0..kv_heads).rev().collect::<Vec<_>>());
    let maps = [
        Adapter { turn: Some(turn()), ..Adapter::default() },
        Adapter { mix: Some(heads_mix()), ..Adapter::default() },
        Adapter { mix: Some(full_mix()), ..Adapter::default() },
        Adapter { mix: Some(low_rank_mix()), ..Adapter::default() },
        Adapter { heads: swapped(), ..Adapter::default() },
        Adapter { heads: swapped(), turn: Some(turn()), mix: Some(heads_mix()) },
        Adapter { heads: swapped(), turn: Some(turn()), mix: Some(full_mix()) },
        Adapter { heads: swapped(), turn: Some(turn()), mix: Some(low_rank_mix()) },
    ];
    let layer = config.layers - 1;
    let keys = Sharing::both([(layer, 0)]).unwrap().keys().clone();
    for sharing in [
        Sharing::new(keys.clone(), keys.clone()),
        Sharing::new(keys.clone(), Default::default()),
        Sharing::new(Default::default(), keys),
    ] {
        for map in &maps {
            let adapters = BTreeMap::from([(LayerId(layer), map.clone())]);
            let (explicit, folded) = (explicit(&model, &sharing, &adapters), folded(&model, &sharing, &adapters));
            let error = max_difference(explicit, folded);
            assert!(error < 1e-3, "{error} for {map:?}");
        }
    }
}

#[test]
fn the_objective_of_a_search_is_that_of_the_folded_model() {
    let model = model();
    let set = CalibrationSet::new(tokens(2), TOKENS).unwrap();
    for (fit, permute_heads, rank) in
        [(Fit::None, false, None), (Fit::Heads, true, None), (Fit::Full, false, None), (Fit::Full, false, Some(2))]
    {
        let options = SearchOptions {
            rank,
            share: Target::Bytes(0.3),
            units: Units::Apart,
            objective: Objective::LogitKl,
            fit,
            permute_heads,
            ..SearchOptions::new(1)
        };
        let greedy = Greedy { width: None };
        let found = search(&model, &set, &greedy, &options, &mut |_: Progress<'_>| {}).unwrap();
        let shared = folded(&model, found.draft.sharing(), &found.draft.adapters());
        let full = folded(&model, &Sharing::default(), &BTreeMap::new());
        let rows = |logits: Tensor<3>| logits.try_into_vec_as::<f32>().unwrap();
        let vocab = model.config().vocab;
        let kl = rows(full).chunks(vocab).zip(rows(shared).chunks(vocab)).map(|(p, q)| kl(p, q)).sum::<f64>();
        let kl = kl / (2 * TOKENS) as f64;
        let searched = found.steps.last().unwrap().objective;
        assert!((kl - searched).abs() < 1e-5 + 1e-3 * kl, "{fit:?}: {kl} instead of {searched}");
    }
}

/// KL divergence of two rows of logits, in f64.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = row.iter().map(|x| f64::from(x - top).exp()).sum::<f64>().ln() + f64::from(top);
        row.iter().map(|&x| f64::from(x) - total).collect::<Vec<f64>>()
    };
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn a_layer_without_attention_keeps_its_mlp_and_its_neighbours_their_caches() {
    let model = model();
    let set = CalibrationSet::new(tokens(2), TOKENS).unwrap();
    let options = SearchOptions { objective: Objective::LogitKl, ..SearchOptions::new(1) };
    let found = search(&model, &set, &kvsharer_core::DropLayers, &options, &mut |_: Progress<'_>| {}).unwrap();
    let dropped: Vec<LayerId> = found.draft.dropped().iter().copied().collect();
    let bare = model.without_attention(&dropped).unwrap();
    assert_eq!(bare.shape().len(), model.shape().len() - 1);
    let [full, bare] = [&model, &bare]
        .map(|model| folded(model, &Sharing::default(), &BTreeMap::new()).try_into_vec_as::<f32>().unwrap());
    let vocab = model.config().vocab;
    let kl = full.chunks(vocab).zip(bare.chunks(vocab)).map(|(p, q)| kl(p, q)).sum::<f64>() / (2 * TOKENS) as f64;
    let searched = found.steps.last().unwrap().objective;
    assert!((kl - searched).abs() < 1e-5 + 1e-3 * kl, "{kl} instead of {searched}");
    assert!(model.without_attention(&[LayerId(0)]).is_err());
}

#[test]
fn a_fixed_map_is_carried_out_as_given() {
    let model = model();
    let sharing = Sharing::both([(2, 1), (3, 0)]).unwrap();
    let fixed = Fixed { sharing: sharing.clone(), name: "fixed".into() };
    let set = CalibrationSet::new(tokens(2), TOKENS).unwrap();
    let found = search(&model, &set, &fixed, &SearchOptions::new(1), &mut |_: Progress<'_>| {}).unwrap();
    assert_eq!(found.draft.sharing(), &sharing);
}

/// Takes over given moves, a step each.
#[derive(Debug)]
struct OneByOne(Vec<Move>);

impl SearchStrategy for OneByOne {
    fn name(&self) -> String {
        "one by one".into()
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        self.0.iter().try_for_each(|&share| ground.accept(&[Change::Share(share)]))
    }
}

#[test]
fn maps_fitted_in_one_pass_are_those_fitted_one_after_the_other() {
    let model = model();
    let set = CalibrationSet::new(tokens(6), TOKENS).unwrap();
    for permute_heads in [false, true] {
        let options = SearchOptions { fit: Fit::Full, held_back: 0.34, permute_heads, ..SearchOptions::new(2) };
        let sharing = Sharing::both([(1, 0), (3, 2)]).unwrap();
        let moves =
            sharing.keys().iter().map(|(borrower, donor)| Move { borrower, donor, units: Units::Both, fitted: true });
        let one_by_one = OneByOne(moves.collect());
        let at_once = Fixed { sharing, name: "fixed".into() };
        let fitted = |strategy: &dyn SearchStrategy| {
            let found = search(&model, &set, strategy, &options, &mut |_: Progress<'_>| {}).unwrap();
            (found.steps.last().unwrap().clone(), found.draft)
        };
        let ((step, draft), (wanted, other)) = (fitted(&at_once), fitted(&one_by_one));
        let weights = |draft: &Draft, layer: usize| match draft.adapters()[&LayerId(layer)].mix.clone() {
            Some(Mix::Full { weight, .. }) => weight.try_into_vec_as::<f32>().unwrap(),
            other => panic!("{other:?}"),
        };
        for layer in [1, 3] {
            let far = weights(&draft, layer).into_iter().zip(weights(&other, layer)).map(|(a, b)| (a - b).abs());
            assert!(far.fold(0.0, f32::max) < 1e-4, "layer {layer}");
        }
        assert!((step.objective - wanted.objective).abs() < 1e-6, "{} and {}", step.objective, wanted.objective);
        let held = step.held_back.zip(wanted.held_back).map(|(a, b)| (a - b).abs());
        assert!(held.unwrap() < 1e-6, "{held:?}");
    }
}

/// Keeps the values a layer computes.
struct Values(Vec<f32>);

impl Attend for Values {
    fn positions(&self) -> Range<usize> {
        0..TOKENS
    }

    fn attend(
        &mut self,
        _: LayerId,
        query: Tensor<4>,
        _: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        self.0 = value().try_into_vec_as::<f32>().unwrap();
        Ok(query)
    }
}

#[test]
fn averaged_values_are_the_mean_of_what_donor_and_readers_compute() {
    let model = model();
    let map = LayerMap::resolve(Kv::Value, [(2, 1), (3, 1)]).unwrap();
    let averaged = model.averaged_values(&map).unwrap();
    let hidden = Tensor::<3>::random([1, TOKENS, model.config().hidden], Distribution::Default, &model.device());
    let values = |model: &Decoder, layer: usize| {
        let mut values = Values(Vec::new());
        model.layer(LayerId(layer), hidden.clone(), &mut values).unwrap();
        values.0
    };
    // The norms of random models are all ones, so layers differ in their projections alone.
    let own: Vec<Vec<f32>> = (1..4).map(|layer| values(&model, layer)).collect();
    for (index, mean) in values(&averaged, 1).into_iter().enumerate() {
        let wanted = own.iter().map(|own| own[index]).sum::<f32>() / 3.0;
        assert!((mean - wanted).abs() < 1e-5, "{mean} instead of {wanted}");
    }
    for layer in [0, 2, 3] {
        assert_eq!(values(&averaged, layer), values(&model, layer), "layer {layer} is its own");
    }
    let beyond = LayerMap::resolve(Kv::Value, [(99, 1)]).unwrap();
    assert!(model.averaged_values(&beyond).is_err());
}
