//! Searching for a sharing map: calibration samples, an objective, and strategies that try changes on a [`Ground`].

mod distance;
mod draft;
mod fit;
mod gate;
mod ground;
mod objective;
mod replay;
mod strategies;
mod target;

pub use distance::{Distance, Order, Pair, Units};
pub use draft::{Change, Draft, Move};
pub use fit::Fit;
pub use gate::Gate;
pub use ground::{Ask, Ground, Verdict};
pub use objective::Objective;
pub(crate) use replay::Batch;
pub use replay::SearchModel;
pub use strategies::{
    Adjacent, Beam, DropLayers, Fixed, Greedy, LayerTypesError, Paper, Refine, Refit, SearchStrategy, Strategies,
};
pub use target::Target;

use crate::{Adapter, CacheError, CalibrationSet, LayerId, LayerMap, ModelShape};
use ground::Searching;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// More bytes than can be saved, or none.
    #[error("cannot save {percent} % of the bytes: with these units, above 0 and up to {most:.1} % can be")]
    BadBytes {
        /// Asked for.
        percent: f64,
        /// What can be saved.
        most: f64,
    },
    /// A threshold that no cosine can be compared with.
    #[error("a similarity threshold of {0} is out of range: cosines lie between -1 and 1")]
    BadThreshold(f64),
    /// An option that means nothing.
    #[error("{0}")]
    BadOption(&'static str),
    /// An objective over logits for a model that has none.
    #[error("the objective {} needs logits, and this model gives none: implement SearchModel::logits or search by hidden-cosine", .0.name())]
    NoLogits(Objective),
    /// No sample is left to search with.
    #[error("{held} of {samples} samples held back leave none to search with: give more samples or hold back less")]
    NothingLeft {
        /// Samples held back.
        held: usize,
        /// All samples.
        samples: usize,
    },
    /// A move that the draft does not allow.
    #[error("layer {borrower} cannot read layer {donor}: {why}")]
    BadMove {
        /// The layer that would borrow.
        borrower: LayerId,
        /// The layer it would read.
        donor: LayerId,
        /// What is wrong.
        why: &'static str,
    },
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
    /// What an observer could not keep.
    #[error("the search's progress could not be kept: {0}")]
    Observer(String),
    /// The model's attention failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What every search needs to know, whatever its strategy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchOptions {
    /// How much to share.
    pub share: Target,
    /// What is shared.
    pub units: Units,
    /// How candidates are judged.
    pub objective: Objective,
    /// How outputs are compared, for [`Objective::HiddenCosine`].
    pub gate: Gate,
    /// Which maps are fitted.
    pub fit: Fit,
    /// Whether fits also choose which head of a borrowed slot each group of query heads reads: one permutation a layer,
    /// folded into the order of its heads.
    pub permute_heads: bool,
    /// Whether candidates without fitted maps are tried beside those with them.
    pub plain_too: bool,
    /// Strength of the fits' ridge, relative to the mean variance of a channel.
    pub ridge: f64,
    /// The farthest a donor may be below its borrower, in layers.
    pub reach: Option<usize>,
    /// Fraction of the samples, the last ones, that candidates are neither fitted to nor chosen by.
    pub held_back: f64,
    /// Samples in one forward pass.
    pub batch: usize,
    /// Batches in work at once: as many as the host has threads suits a CPU, one suits a GPU.
    pub parallel: usize,
    /// Give up after this many trials.
    pub max_trials: Option<usize>,
}

impl SearchOptions {
    /// The official code's options for `share` layers.
    pub fn new(share: usize) -> Self {
        Self {
            share: Target::Layers(share),
            units: Units::default(),
            objective: Objective::default(),
            gate: Gate::default(),
            fit: Fit::default(),
            permute_heads: false,
            plain_too: false,
            ridge: 0.01,
            reach: None,
            held_back: 0.0,
            batch: 32,
            parallel: rayon::current_num_threads(),
            max_trials: None,
        }
    }

    /// Judges the options for a model before anything runs.
    ///
    /// # Errors
    /// [`SearchError`] names what means nothing or cannot be reached.
    pub fn check(&self, model: &ModelShape) -> Result<(), SearchError> {
        if !(0.0..1.0).contains(&self.held_back) {
            return Err(SearchError::BadOption("the part of the samples held back must be from 0 to below 1"));
        }
        if !(self.ridge >= 0.0 && self.ridge.is_finite()) {
            return Err(SearchError::BadOption("the ridge must be 0 or above"));
        }
        self.share.elements(model, self.units).map(drop)
    }
}

/// One candidate and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The layer that would lose its cache.
    pub borrower: LayerId,
    /// The owner whose cache it would read.
    pub donor: LayerId,
    /// What it would read there.
    #[serde(default)]
    pub units: Units,
    /// Whether maps were fitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fitted: bool,
    /// Whether the layer's attention was dropped altogether; it is its own donor then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// The layer that gets its own cache back in the same step, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<LayerId>,
    /// Distance of the pair that was ranked, by strategies that rank (its donor may itself borrow; `donor` is then its
    /// owner).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
    /// Similarity of the outputs with all replacements so far and this one, for [`Objective::HiddenCosine`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// The objective with all replacements so far and this one, for other objectives; that of the samples looked at if
    /// the trial was abandoned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<f64>,
    /// Whether part of the samples was enough to see that an earlier candidate is better.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abandoned: bool,
    /// Whether it was kept.
    pub accepted: bool,
}

/// One accepted step: a whole strategy at its share of bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Fraction of the KV bytes of a token that is saved.
    pub saved: f64,
    /// The objective on the samples searched with.
    pub objective: f64,
    /// The objective on those held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<f64>,
    /// Share of the variance of the fitted layer's outputs that its maps leave unexplained on the samples held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<f64>,
    /// Trials up to this step.
    pub trials: usize,
    /// Borrower -> owner whose keys it reads.
    pub key_map: BTreeMap<LayerId, LayerId>,
    /// Borrower -> owner whose values it reads.
    pub value_map: BTreeMap<LayerId, LayerId>,
    /// Layers without attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<LayerId>,
    /// Names of the fitted maps by layer, in [`Found::adapters`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<LayerId, String>,
}

/// What a search tells while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The trial just judged.
    pub trial: &'a Trial,
    /// The draft after it.
    pub draft: &'a Draft,
    /// Bytes saved so far over bytes to save, at most 1.
    pub reached: f64,
    /// The same with the part of the running step that is done.
    pub done: f64,
    /// Trials so far.
    pub trials: usize,
}

impl Progress<'_> {
    /// Who reads whose keys (or values, if only those are shared).
    pub fn map(&self) -> &LayerMap {
        let sharing = self.draft.sharing();
        if sharing.keys().is_empty() { sharing.values() } else { sharing.keys() }
    }
}

/// Who looks on while a search runs, and may remember trials of an earlier, interrupted run. Closures over
/// [`Progress`] only look on.
pub trait Observer {
    /// Called after every trial, and again for a trial that is accepted after others were tried.
    fn watch(&mut self, progress: Progress<'_>);

    /// The loss of a trial that was judged before, and whether that was the whole of it.
    fn recall(&mut self, key: &str) -> Option<(f64, bool)> {
        let _ = key;
        None
    }

    /// Keeps the loss of a trial.
    ///
    /// # Errors
    /// What went wrong; the search stops.
    fn keep(&mut self, key: &str, loss: f64, whole: bool) -> Result<(), String> {
        let _ = (key, loss, whole);
        Ok(())
    }
}

impl<F: FnMut(Progress<'_>)> Observer for F {
    fn watch(&mut self, progress: Progress<'_>) {
        self(progress);
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The sharing map with its fitted maps.
    pub draft: Draft,
    /// The pairs in the order of trial, of strategies that rank them.
    pub ranking: Vec<Pair>,
    /// All trials in order.
    pub trials: Vec<Trial>,
    /// All accepted steps in order; the last is the draft.
    pub steps: Vec<Step>,
    /// The fitted maps of all steps by name.
    pub adapters: BTreeMap<String, Adapter>,
    /// Replacements asked for.
    pub requested: usize,
    /// Replacements made: keys and values that are shared apart count apart.
    pub reached: usize,
    /// Fraction of the KV bytes of a token that is saved.
    pub saved: f64,
    /// Trials that the same strategy would have judged if it had judged every candidate at every step.
    pub exhaustive: usize,
    /// Layer forward passes computed, over all trials: what re-running only the layers a trial touches leaves.
    pub layers_run: usize,
}

/// Searches `model` with the samples of `set` by `strategy`.
///
/// # Errors
/// [`SearchError`] for impossible options or if the model's attention fails.
pub fn search<M: SearchModel>(
    model: &M,
    set: &CalibrationSet,
    strategy: &dyn SearchStrategy,
    options: &SearchOptions,
    observer: &mut dyn Observer,
) -> Result<Found, SearchError> {
    let mut searching = Searching::new(model, set, options, observer)?;
    strategy.run(&mut searching)?;
    Ok(searching.finish())
}
