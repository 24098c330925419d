//! The search on a toy model: what it skips, how it re-points, and that a trial re-runs only what it touches.

use burn::tensor::{Device, Int, Tensor};
use kvsharer_core::testing::{ToyModel, toy_tokens};
use kvsharer_core::{
    Attend, Cache, CacheError, CalibrationError, CalibrationSet, Distance, LayerId, LayerMap, ModelShape, Order, Paper,
    Progress, SearchError, SearchModel, SearchOptions, Sharing, Stack, search,
};
use std::sync::Mutex;

const LAYERS: usize = 6;

/// The paper's order without its gate.
const UNGATED: Paper = Paper { distance: Distance::Code, order: Order::Dissimilar, threshold: -1.0, seed: 0 };

fn set(lengths: &[usize]) -> CalibrationSet {
    CalibrationSet::new(lengths.iter().zip(0..).map(|(&length, seed)| toy_tokens(1, length, seed).remove(0)), 12)
        .unwrap()
}

fn model() -> ToyModel {
    ToyModel::new(LAYERS, 4, 2, 8, 5, &Device::flex())
}

/// Counts which layers run.
struct Counting(ToyModel, Mutex<Vec<usize>>);

impl SearchModel for Counting {
    fn shape(&self) -> &ModelShape {
        self.0.shape()
    }
    fn device(&self) -> Device {
        self.0.device()
    }
    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.0.embed(tokens)
    }
    fn layer<A: Attend>(&self, layer: LayerId, hidden: Tensor<3>, attention: &mut A) -> Result<Tensor<3>, CacheError> {
        self.1.lock().unwrap().push(layer.0);
        self.0.layer(layer, hidden, attention)
    }
    fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.0.final_norm(hidden)
    }
}

#[test]
fn a_trial_runs_the_layers_from_its_borrower_on_and_no_other() {
    let model = Counting(model(), Mutex::default());
    let found = search(&model, &set(&[12, 12]), &UNGATED, &SearchOptions::new(3), &mut |_: Progress<'_>| {}).unwrap();
    let from = found.trials.iter().map(|trial| trial.borrower.0);
    let expected: Vec<usize> = std::iter::once(0).chain(from).flat_map(|first| first..LAYERS).collect();
    assert_eq!(*model.1.lock().unwrap(), expected);
    assert_eq!(found.layers_run, expected.len());
}

/// Final states of one sample under a map, from the first layer on, through a cache.
fn states(model: &ToyModel, sample: &[u32], map: &LayerMap) -> Vec<f32> {
    let stack = Stack::new().with(Sharing::new(map.clone(), map.clone()));
    let mut cache = Cache::new(model.shape(), stack, model.cache_options(1, sample.len()), &model.device()).unwrap();
    let states = model.run(&[sample.to_vec()], &[sample.len()], &mut cache).unwrap();
    states.try_into_vec_as::<f32>().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn incremental_trials_give_the_similarity_of_the_whole_shared_model_in_any_batches() {
    let (model, set) = (model(), set(&[12, 9, 5]));
    for batch in [1, 2, 32] {
        let options = SearchOptions { batch, ..SearchOptions::new(4) };
        let mut judged = Vec::new();
        let mut watch =
            |progress: Progress<'_>| judged.push((progress.map().clone(), progress.trial.similarity.unwrap()));
        search(&model, &set, &UNGATED, &options, &mut watch).unwrap();
        assert_eq!(judged.len(), 4);
        for (map, similarity) in judged {
            let whole = set
                .samples()
                .iter()
                .map(|sample| cosine(&states(&model, sample, &LayerMap::default()), &states(&model, sample, &map)));
            let whole = whole.sum::<f64>() / set.samples().len() as f64;
            assert!((similarity - whole).abs() < 1e-5, "{similarity} instead of {whole} for {map:?}");
        }
    }
}

#[test]
fn shorter_samples_are_used_and_counted_with_their_own_tokens() {
    let set = set(&[12, 3, 20, 0]);
    assert_eq!((set.samples().len(), set.tokens()), (3, 12 + 3 + 12));
    assert!(search(&model(), &set, &Paper::default(), &SearchOptions::new(1), &mut |_: Progress<'_>| {}).is_ok());
}

#[test]
fn an_empty_set_is_refused() {
    assert_eq!(CalibrationSet::new([vec![], vec![]], 64).unwrap_err(), CalibrationError::Empty);
    assert_eq!(CalibrationSet::new([vec![1]], 0).unwrap_err(), CalibrationError::NoTokens);
}

#[test]
fn a_threshold_nothing_passes_leaves_the_map_empty_and_says_so() {
    let strict = Paper { threshold: 1.0, ..Paper::default() };
    let found = search(&model(), &set(&[12]), &strict, &SearchOptions::new(2), &mut |_: Progress<'_>| {}).unwrap();
    assert!(found.draft.sharing().keys().is_empty());
    assert_eq!(found.trials.len(), LAYERS * (LAYERS - 1) / 2);
    assert!(found.trials.iter().all(|trial| !trial.accepted));
}

#[test]
fn impossible_shares_and_thresholds_are_refused() {
    let run = |share, threshold| {
        let paper = Paper { threshold, ..Paper::default() };
        search(&model(), &set(&[4]), &paper, &SearchOptions::new(share), &mut |_: Progress<'_>| {}).unwrap_err()
    };
    for share in [0, LAYERS, LAYERS + 1] {
        assert_eq!(run(share, 0.5), SearchError::BadShare { requested: share, layers: LAYERS });
    }
    assert!(matches!(run(1, f64::NAN), SearchError::BadThreshold(_)));
    assert!(matches!(run(1, 1.5), SearchError::BadThreshold(_)));
}

#[test]
fn all_layers_but_the_first_can_share_and_every_donor_owns_its_cache() {
    for order in [Order::Dissimilar, Order::Similar, Order::Random] {
        let (paper, options) = (Paper { order, seed: 4, ..UNGATED }, SearchOptions::new(LAYERS - 1));
        let mut watched = 0;
        let mut watch = |progress: Progress<'_>| watched = progress.map().len();
        let found = search(&model(), &set(&[12, 12]), &paper, &options, &mut watch).unwrap();
        let map = found.draft.sharing().keys();
        assert_eq!((map.len(), watched), (LAYERS - 1, LAYERS - 1));
        assert!(map.iter().all(|(_, donor)| map.donor(donor).is_none()));
    }
}

#[test]
fn keys_or_values_alone_are_shared_by_their_own_distance_and_the_rest_stays_with_its_layer() {
    use kvsharer_core::Units;
    let (model, set) = (model(), set(&[12, 9]));
    for (units, shares_keys) in [(Units::Keys, true), (Units::Values, false)] {
        let options = SearchOptions { units, ..SearchOptions::new(2) };
        let found = search(&model, &set, &UNGATED, &options, &mut |_: Progress<'_>| {}).unwrap();
        assert!(found.trials.windows(2).all(|pair| pair[0].distance >= pair[1].distance));
        let sharing = found.draft.sharing();
        assert_eq!(sharing.keys().is_empty(), !shares_keys);
        assert_eq!(sharing.values().is_empty(), shares_keys);
        assert_eq!(sharing.keys().len() + sharing.values().len(), 2);
    }
}
