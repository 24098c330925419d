//! Evictions by head: a user's own policy that keeps other tokens in every row and head.

use burn::tensor::{Device, Int, Tensor, TensorData};
use kvsharer_core::testing::{ToyModel, toy_tokens};
use kvsharer_core::{
    Budget, Cache, CacheError, Eviction, Evidence, EvidenceKind, Group, GroupState, KeptTokens, LayerId, LayerKvPolicy,
    Positions, SearchModel, Sharing, Stack,
};

/// Keeps the `budget` cells of the greatest key mass, summed over readers and query group (H2O without its window).
struct HeavyHitters {
    budget: usize,
    seen: Vec<(usize, LayerId)>,
    mass: Option<Tensor<3>>,
}

impl LayerKvPolicy for HeavyHitters {
    fn name(&self) -> String {
        "heavy-hitters".into()
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some((self.budget + 1).into())
    }
    fn evidence(&self, _group: &Group) -> EvidenceKind {
        EvidenceKind::KeyMass
    }
    fn observe(&mut self, group: &Group, reader: LayerId, evidence: &Evidence) {
        self.seen.push((group.id.0, reader));
        let Evidence::KeyMass(mass) = evidence else { panic!("asked for key mass") };
        let mass = mass.clone().sum_dim(2).squeeze_dim::<3>(2);
        self.mass = Some(match self.mass.take() {
            Some(sum) if reader != group.first() => sum + mass,
            _ => mass,
        });
    }
    fn evict(&mut self, _group: &Group, state: &GroupState<'_>) -> Eviction {
        if state.incoming > 0 || state.len <= self.budget {
            return Eviction::Nothing;
        }
        let mass = self.mass.take().expect("observed before");
        let best = mass.argsort_descending(2).slice_dim(2, 0..self.budget);
        Eviction::Keep(best.sort(2))
    }
}

fn per_head(cache: &Cache<'_>, layer: usize) -> Vec<i64> {
    match cache.kept(LayerId(layer)) {
        KeptTokens::PerHead(kept) => kept.clone().try_into_vec_as::<i64>().unwrap(),
        KeptTokens::Uniform(kept) => kept.iter().map(|&token| token as i64).collect(),
    }
}

#[test]
fn every_reader_is_observed_once_a_pass_and_donor_and_readers_keep_the_same_tokens() {
    let model = ToyModel::new(3, 4, 2, 8, 9, &Device::flex());
    let mut policy = HeavyHitters { budget: 5, seen: Vec::new(), mass: None };
    let stack = Stack::new().with(Sharing::both([(2, 0)]).unwrap()).with(&mut policy);
    let mut cache = Cache::new(model.shape(), stack, model.cache_options(2, 30), &Device::flex()).unwrap();
    let tokens = toy_tokens(2, 30, 4);
    let planned = cache.plan().bytes(2, 30, 4);
    assert_eq!(planned, 4 * 2 * 2 * 6 * 8 * 4);
    model.run(&tokens, &[12, 1, 1, 1, 4, 1], &mut cache).unwrap();
    assert_eq!(cache.bytes(), planned);
    let kept = per_head(&cache, 0);
    assert_eq!(kept, per_head(&cache, 2));
    assert_eq!(kept.len(), 2 * 2 * 5);
    for head in kept.chunks(5) {
        assert!(head.is_sorted_by(|a, b| a < b) && head.iter().all(|&token| (0..20).contains(&token)), "{head:?}");
    }
    assert!(kept.chunks(5).any(|head| head != &kept[..5]), "heads keep tokens of their own");
    drop(cache);
    assert_eq!(policy.seen[..3], [(0, LayerId(0)), (1, LayerId(1)), (0, LayerId(2))]);
    assert_eq!(policy.seen.len(), 6 * 3);
}

/// Answers whatever it is told to, after the last reader.
struct Answer(Eviction, Positions);

impl LayerKvPolicy for Answer {
    fn name(&self) -> String {
        "answer".into()
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(4.into())
    }
    fn positions(&self, _group: &Group) -> Positions {
        self.1
    }
    fn evict(&mut self, _group: &Group, state: &GroupState<'_>) -> Eviction {
        if state.incoming > 0 { Eviction::Nothing } else { self.0.clone() }
    }
}

fn cells(batch: usize, heads: usize, count: usize) -> Tensor<3, Int> {
    Tensor::from_data(TensorData::new(vec![0_i64; batch * heads * count], [batch, heads, count]), &Device::flex())
}

fn keep(batch: usize, heads: usize, kept: usize) -> Eviction {
    Eviction::Keep(cells(batch, heads, kept))
}

fn drop_cells(batch: usize, heads: usize, dropped: usize) -> Eviction {
    Eviction::Drop(cells(batch, heads, dropped))
}

#[test]
fn answers_that_cannot_be_carried_out_are_errors_that_name_the_policy() {
    let slots = Positions::CacheSlot { sinks: 1 };
    for (answer, positions, expected) in [
        (Eviction::Nothing, Positions::Original, "leaves 6 tokens where it asked for 4 cells"),
        (Eviction::Span { start: 0, end: 1 }, Positions::Original, "leaves 5 tokens where it asked for 4 cells"),
        (Eviction::Span { start: 2, end: 9 }, Positions::Original, "evicts tokens 2..9 of 6"),
        (Eviction::Span { start: 5, end: 2 }, Positions::Original, "evicts tokens 5..2 of 6"),
        (Eviction::Span { start: 0, end: 2 }, slots, "a span must start behind the 1 sinks"),
        (drop_cells(2, 2, 1), Positions::Original, "drops [2, 2, 1] of 6 cells"),
        (keep(2, 2, 3), Positions::Original, "keeps [2, 2, 3] of 6 cells"),
        (keep(1, 2, 7), Positions::Original, "keeps [1, 2, 7] of 6 cells"),
    ] {
        let model = ToyModel::new(2, 4, 2, 8, 9, &Device::flex());
        let stack = Stack::new().with(Answer(answer, positions));
        let mut cache = Cache::new(model.shape(), stack, model.cache_options(1, 30), &Device::flex()).unwrap();
        let error = model.run(&toy_tokens(1, 6, 4), &[6], &mut cache).unwrap_err();
        assert!(matches!(error, CacheError::BadEviction { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("`answer`") && message.contains(expected), "{message}");
    }
}
