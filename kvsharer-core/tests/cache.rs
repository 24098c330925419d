//! Sharing is real: whatever the map and the chunks, the cache gives what one uncached forward pass gives, and holds
//! exactly the bytes the plan says.

use burn::tensor::{DType, Device, Tensor};
use kvsharer_core::testing::{Mirror, ToyModel, host, max_difference, toy_tokens, worst};
use kvsharer_core::{
    Attend, Cache, CacheError, CacheOptions, Kv, KvShape, LayerId, LayerKvPolicy, LayerMap, ModelShape, Plan,
    SearchModel, Sharing, Stack,
};
use proptest::prelude::*;

const LAYERS: usize = 6;

fn model() -> ToyModel {
    ToyModel::new(LAYERS, 6, 2, 8, 1, &Device::flex())
}

fn cache<'p>(model: &ToyModel, sharing: &Sharing, batch: usize, tokens: usize) -> Cache<'p> {
    let stack = Stack::new().with(sharing.clone());
    Cache::new(model.shape(), stack, model.cache_options(batch, tokens), &Device::flex()).unwrap()
}

/// Any valid map of `LAYERS` layers: each layer reads itself or an earlier one; chains are resolved.
fn any_map() -> impl Strategy<Value = LayerMap> {
    let donors: Vec<_> = (1..LAYERS).map(|layer| proptest::option::of(0..layer)).collect();
    donors.prop_map(|donors| {
        let pairs = donors.into_iter().enumerate().filter_map(|(i, donor)| Some((i + 1, donor?)));
        LayerMap::resolve(Kv::Key, pairs).unwrap()
    })
}

/// Ways to cut `total` tokens into forward passes.
fn any_chunks(total: usize) -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..=total, 1..total).prop_map(move |mut cuts| {
        cuts.push(total);
        cuts.sort();
        cuts.dedup();
        let starts = std::iter::once(0).chain(cuts.clone());
        cuts.iter().zip(starts).map(|(end, start)| end - start).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_chunks_through_the_cache_equal_one_uncached_pass(
        keys in any_map(), values in any_map(), chunks in any_chunks(13), batch in 1..3_usize,
    ) {
        let model = model();
        let sharing = Sharing::new(keys, values);
        let tokens = toy_tokens(batch, 13, 7);
        let once = Mirror::new(&model, &sharing, &vec![0; batch]).all(&tokens, 0..13);
        let mut cache = cache(&model, &sharing, batch, 20);
        let cached = host(model.run(&tokens, &chunks, &mut cache).unwrap()).unwrap();
        prop_assert!(worst(&cached, &once) < 1e-4);
        prop_assert_eq!(cache.bytes(), cache.plan().bytes(batch, 20, 4));
    }
}

#[test]
fn a_borrowers_projections_are_never_called() {
    let model = model();
    let keys = LayerMap::resolve(Kv::Key, [(2, 0), (4, 3)]).unwrap();
    let values = LayerMap::resolve(Kv::Value, [(2, 1), (5, 3)]).unwrap();
    let mut cache = cache(&model, &Sharing::new(keys, values), 1, 4);
    cache.begin(2).unwrap();
    let mut called = Vec::new();
    for layer in model.shape().ids() {
        let (mut key_called, mut value_called) = (false, false);
        let kv = || Tensor::<4>::ones([1, 2, 2, 8], &Device::flex());
        let query = Tensor::<4>::ones([1, 6, 2, 8], &Device::flex());
        let key = || {
            key_called = true;
            kv()
        };
        let value = || {
            value_called = true;
            kv()
        };
        cache.attend(layer, query, key, value).unwrap();
        called.push((key_called, value_called));
    }
    assert_eq!(called, [(true, true), (true, true), (false, false), (true, true), (false, true), (true, false)]);
}

#[test]
fn eight_of_thirty_shared_layers_cost_22_thirtieths() {
    let shape = ModelShape::uniform(30, KvShape::new(3, 64));
    let sharing = Sharing::both((22..30).map(|layer| (layer, layer - 20))).unwrap();
    let full = Plan::new(&shape, &Stack::new()).unwrap();
    let shared = Plan::new(&shape, &Stack::new().with(sharing.clone())).unwrap();
    assert_eq!(full.bytes(2, 2048, 4), 2 * 30 * 2 * 3 * 64 * 2048 * 4);
    assert_eq!(shared.bytes(2, 2048, 4) * 30, full.bytes(2, 2048, 4) * 22);
    let options = CacheOptions { batch: 2, tokens: 64, prompt: None, dtype: DType::F32, rope: None };
    let cache = Cache::new(&shape, Stack::new().with(sharing), options, &Device::flex()).unwrap();
    assert_eq!(cache.bytes(), shared.bytes(2, 64, 4));
}

#[test]
fn donor_and_readers_have_one_slot() {
    let shape = ModelShape::uniform(4, KvShape::new(1, 2));
    let plan = Plan::new(&shape, &Stack::new().with(Sharing::both([(3, 1), (2, 1)]).unwrap())).unwrap();
    assert_eq!(plan.layers()[1], plan.layers()[2]);
    assert_eq!(plan.layers()[1], plan.layers()[3]);
    assert_eq!(plan.slots().len(), 4);
    assert_eq!(plan.slot(plan.layers()[1].key).readers, [LayerId(1), LayerId(2), LayerId(3)]);
}

#[test]
fn keys_and_values_shared_apart_join_their_eviction_groups() {
    let shape = ModelShape::uniform(5, KvShape::new(1, 2));
    let keys = LayerMap::resolve(Kv::Key, [(3, 0)]).unwrap();
    let values = LayerMap::resolve(Kv::Value, [(3, 2)]).unwrap();
    let plan = Plan::new(&shape, &Stack::new().with(Sharing::new(keys, values))).unwrap();
    let groups: Vec<Vec<usize>> = plan.groups().iter().map(|g| g.layers.iter().map(|l| l.0).collect()).collect();
    assert_eq!(groups, [vec![0, 2, 3], vec![1], vec![4]]);
}

#[test]
fn a_full_cache_refuses_before_anything_changes() {
    let model = model();
    let mut cache = cache(&model, &Sharing::default(), 1, 5);
    let tokens = toy_tokens(1, 6, 3);
    model.run(&tokens, &[4], &mut cache).unwrap();
    assert_eq!(cache.begin(2).unwrap_err(), CacheError::Full { capacity: 5, needed: 6 });
    assert!(cache.begin(1).is_ok(), "the refused pass left no trace");
}

#[test]
fn layers_out_of_turn_and_misshapen_tensors_are_refused() {
    let model = model();
    let mut cache = cache(&model, &Sharing::default(), 1, 5);
    let ones = |dims: [usize; 4]| Tensor::<4>::ones(dims, &Device::flex());
    let kv = || ones([1, 2, 3, 8]);
    let unannounced = cache.attend(LayerId(0), ones([1, 6, 3, 8]), kv, kv);
    assert_eq!(unannounced.unwrap_err(), CacheError::OutOfTurn { layer: LayerId(0) });
    cache.begin(3).unwrap();
    let skipped = cache.attend(LayerId(1), ones([1, 6, 3, 8]), kv, kv);
    assert_eq!(skipped.unwrap_err(), CacheError::OutOfTurn { layer: LayerId(1) });
    let misshapen = cache.attend(LayerId(0), ones([1, 6, 3, 8]), || ones([1, 3, 3, 8]), kv);
    assert!(matches!(misshapen.unwrap_err(), CacheError::Shape { what: "key", .. }));
}

#[test]
fn a_cache_that_starts_over_forgets_everything() {
    let model = model();
    let mut cache = cache(&model, &Sharing::both([(3, 1)]).unwrap(), 1, 8);
    let (first, second) = (toy_tokens(1, 8, 1), toy_tokens(1, 8, 2));
    model.run(&first, &[8], &mut cache).unwrap();
    cache.reset();
    let again = model.run(&second, &[5, 3], &mut cache).unwrap();
    let mut fresh = self::cache(&model, &Sharing::both([(3, 1)]).unwrap(), 1, 8);
    let once = model.run(&second, &[5, 3], &mut fresh).unwrap();
    assert_eq!(max_difference(again, once), 0.0);
}

#[test]
fn a_cache_branches_only_between_passes_from_rows_it_has_and_with_policies_that_can_be_copied() {
    struct Private;
    impl LayerKvPolicy for Private {
        fn name(&self) -> String {
            "private".into()
        }
    }
    let model = model();
    let tokens = toy_tokens(2, 4, 3);
    let mut cache = cache(&model, &Sharing::both([(3, 1)]).unwrap(), 2, 8);
    model.run(&tokens, &[4], &mut cache).unwrap();
    assert_eq!(cache.branch(&[1, 1, 0]).unwrap().seen(), 4);
    for rows in [&[][..], &[2], &[0, 5]] {
        assert_eq!(cache.branch(rows).err(), Some(CacheError::NoRow { rows: rows.to_vec(), batch: 2 }));
    }
    cache.begin(1).unwrap();
    assert_eq!(cache.branch(&[0]).err(), Some(CacheError::OutOfTurn { layer: LayerId(0) }));
    model.layer(LayerId(0), Tensor::ones([2, 1, 48], &Device::flex()), &mut cache).unwrap();
    assert_eq!(cache.branch(&[0]).err(), Some(CacheError::OutOfTurn { layer: LayerId(1) }));

    let options = model.cache_options(1, 8);
    let private = Cache::new(model.shape(), Stack::new().with(Private), options, &Device::flex()).unwrap();
    assert_eq!(private.branch(&[0]).err(), Some(CacheError::CannotBranch { policy: "private".into() }));
}
