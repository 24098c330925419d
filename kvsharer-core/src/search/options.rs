//! What every search needs to know, whatever its strategy.

use super::{Fit, Gate, Objective, SearchError, Target, Units};
use crate::ModelShape;

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
    /// Rank of what a map of all heads together adds to maps head by head; any if `None`. A low one needs less text, and
    /// takes less of a file.
    pub rank: Option<usize>,
    /// The farthest a donor may be below its borrower, in layers.
    pub reach: Option<usize>,
    /// Fraction of the samples, the last ones, that candidates are neither fitted to nor chosen by.
    pub held_back: f64,
    /// Samples in one forward pass.
    pub batch: usize,
    /// Tokens of a forward pass up to which several candidates that change the same layer go through it together.
    pub pass_tokens: usize,
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
            ridge: 0.1,
            rank: None,
            reach: None,
            held_back: 0.0,
            batch: 32,
            pass_tokens: 0,
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
        if self.rank == Some(0) || self.rank.is_some() && self.fit != Fit::Full {
            return Err(SearchError::BadOption("a rank is that of full fits, and at least 1"));
        }
        self.share.elements(model, self.units).map(drop)
    }
}
