//! The paper's search (arXiv 2410.18517, algorithm 1): try pairs of layers in the order of their distance, keep a pair
//! while the model's output stays similar, stop at the number asked for.

use crate::replay::batches;
use crate::{Averages, CacheError, CalibrationSet, Distance, Gate, LayerId, LayerMap, Order, Pair, SearchModel, Units};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a search cannot start or go on.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SearchError {
    /// More layers than can borrow, or none.
    #[error("cannot share {requested} of {layers} layers: the first always keeps its cache, so ask for 1 to {}", layers.saturating_sub(1))]
    BadShare {
        /// Layers asked for.
        requested: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A threshold that no cosine can be compared with.
    #[error("a similarity threshold of {0} is out of range: cosines lie between -1 and 1")]
    BadThreshold(f64),
    /// A pair whose distance or similarity is no number.
    #[error("the {what} of layers {donor} and {borrower} is not finite: the model's weights or dtype are broken")]
    NotFinite {
        /// Distance or similarity.
        what: &'static str,
        /// The layer nearer the input.
        donor: LayerId,
        /// The layer nearer the output.
        borrower: LayerId,
    },
    /// The model's attention failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Options of the paper's search. The defaults are those of the official code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchOptions {
    /// Layers to share.
    pub share: usize,
    /// How caches are compared.
    pub distance: Distance,
    /// What is shared.
    pub units: Units,
    /// Which pairs come first.
    pub order: Order,
    /// How outputs are compared.
    pub gate: Gate,
    /// A pair is kept if the similarity is greater.
    pub threshold: f64,
    /// Seed of a random order.
    pub seed: u64,
    /// Samples in one forward pass. Batches run in parallel on the host's threads: one batch a thread suits a CPU,
    /// one batch for all samples suits a GPU.
    pub batch: usize,
    /// Give up after this many trials.
    pub max_trials: Option<usize>,
}

impl SearchOptions {
    /// The official code's options for `share` layers.
    pub fn new(share: usize) -> Self {
        Self {
            share,
            distance: Distance::default(),
            units: Units::default(),
            order: Order::default(),
            gate: Gate::default(),
            threshold: 0.5,
            seed: 0,
            batch: 32,
            max_trials: None,
        }
    }
}

/// One candidate and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The layer that would lose its cache.
    pub borrower: LayerId,
    /// The owner whose cache it would read.
    pub donor: LayerId,
    /// Distance of the pair that was ranked (its donor may itself borrow; `donor` is then its owner).
    pub distance: f64,
    /// Similarity of the outputs with all replacements so far and this one.
    pub similarity: f64,
    /// Whether it was kept.
    pub accepted: bool,
}

/// What a search tells while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The trial just judged.
    pub trial: &'a Trial,
    /// The map after it.
    pub map: &'a LayerMap,
    /// Layers asked for.
    pub requested: usize,
    /// Pairs looked at so far, skipped ones included.
    pub looked_at: usize,
    /// All pairs.
    pub pairs: usize,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The map, of what [`SearchOptions::units`] shares.
    pub map: LayerMap,
    /// All pairs in the order of trial.
    pub ranking: Vec<Pair>,
    /// All trials in order. Pairs whose borrower shares already are skipped and are no trials.
    pub trials: Vec<Trial>,
    /// Layer forward passes computed, over all trials: what re-running only the layers a trial touches leaves.
    pub layers_run: usize,
}

/// Searches `model` with the samples of `set`; `watch` is called after every trial.
///
/// As in the official code, a donor that borrows is followed to its owner, and when a donor of earlier readers starts
/// to borrow, its readers move to the new owner with it (the trial judges both at once).
///
/// # Errors
/// [`SearchError`] for impossible options or if the model's attention fails.
pub fn search<M: SearchModel>(
    model: &M,
    set: &CalibrationSet,
    options: &SearchOptions,
    mut watch: impl FnMut(Progress<'_>),
) -> Result<Found, SearchError> {
    let layers = model.shape().len();
    if options.share == 0 || options.share >= layers {
        return Err(SearchError::BadShare { requested: options.share, layers });
    }
    if !(-1.0..=1.0).contains(&options.threshold) {
        return Err(SearchError::BadThreshold(options.threshold));
    }
    let mut batches = batches(model, set, options.batch)?;
    let mut ranking = options.distance.pairs(&Averages::over(model.shape(), &batches)?);
    let not_finite = |what, pair: &Pair| SearchError::NotFinite { what, donor: pair.donor, borrower: pair.borrower };
    if let Some(pair) = ranking.iter().find(|pair| !options.units.distance(pair).is_finite()) {
        return Err(not_finite("distance", pair));
    }
    options.order.sort(&mut ranking, options.units, options.seed);

    let mut map = LayerMap::default();
    let (mut trials, mut layers_run) = (Vec::new(), layers);
    for (index, pair) in ranking.iter().enumerate() {
        if map.len() == options.share || options.max_trials.is_some_and(|most| trials.len() >= most) {
            break;
        }
        if map.donor(pair.borrower).is_some() {
            continue;
        }
        let mut candidate = map.clone();
        candidate.share(pair.borrower, pair.donor);
        let sharing = options.units.sharing(&candidate);
        let runs = batches
            .par_iter()
            .map(|batch| batch.try_from_layer(model, pair.borrower, &sharing))
            .collect::<Result<Vec<_>, _>>()?;
        layers_run += layers - pair.borrower.0;
        let outputs = batches.iter().zip(&runs).flat_map(|(batch, run)| batch.outputs(run));
        let similarity = options.gate.similarity(outputs);
        if !similarity.is_finite() {
            return Err(not_finite("similarity", pair));
        }
        let trial = Trial {
            borrower: pair.borrower,
            donor: candidate.donor(pair.borrower).unwrap_or(pair.donor),
            distance: options.units.distance(pair),
            similarity,
            accepted: similarity > options.threshold,
        };
        if trial.accepted {
            map = candidate;
            batches.iter_mut().zip(runs).for_each(|(batch, run)| batch.accept(run));
        }
        trials.push(trial);
        watch(Progress {
            trial: &trial,
            map: &map,
            requested: options.share,
            looked_at: index + 1,
            pairs: ranking.len(),
        });
    }
    Ok(Found { map, ranking, trials, layers_run })
}
