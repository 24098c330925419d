//! What a strategy may do: the ground it searches on.

use super::{Change, Distance, Draft, Move, Order, Pair, SearchError, SearchOptions, Units};
use crate::ModelShape;

/// What is asked of a judgement beside the loss.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Give up as soon as the loss is known to be above this.
    pub bound: f64,
    /// Distance of the pair, to be recorded.
    pub distance: Option<f64>,
}

impl Default for Ask {
    fn default() -> Self {
        Self { bound: f64::INFINITY, distance: None }
    }
}

/// What is known of a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Its objective; if it was given up, that of the samples it was judged by, which the whole of them may undercut.
    pub loss: f64,
    /// Whether all samples were looked at.
    pub whole: bool,
}

impl Verdict {
    /// The objective, if it is known and at most `bound`.
    pub fn within(self, bound: f64) -> Option<f64> {
        (self.whole && self.loss <= bound).then_some(self.loss)
    }
}

/// What a strategy may do.
pub trait Ground {
    /// Shapes of the model's layers.
    fn model(&self) -> &ModelShape;

    /// The options of the search.
    fn options(&self) -> &SearchOptions;

    /// The accepted draft.
    fn draft(&self) -> &Draft;

    /// The objective of the accepted draft; the untouched model's before anything is accepted.
    fn loss(&self) -> f64;

    /// The objective of the accepted draft on the samples held back, if there are any.
    fn held_back(&self) -> Option<f64>;

    /// Whether enough is shared, or no more trials may be made.
    fn is_done(&self) -> bool;

    /// Whether enough would be shared after some changes.
    fn would_be_done(&self, changes: &[Change]) -> bool;

    /// All moves the options allow on top of a draft, by borrower, donor, units.
    fn moves(&self, draft: &Draft) -> Vec<Move>;

    /// All pairs of layers that may share, with the distances of their average caches in the untouched model, and what
    /// each would share, in the order of trial.
    ///
    /// # Errors
    /// If the device fails or a distance is no number.
    fn rank(&mut self, distance: Distance, order: Order, seed: u64) -> Result<Vec<(Pair, Units)>, SearchError>;

    /// How many candidates should be judged together if they change the same layer.
    fn together(&self) -> usize;

    /// The objective with each candidate's changes on top of the accepted draft, as many verdicts as candidates. Those
    /// that first change the same layer, one after the other in the list, go through the layers above it in one pass.
    ///
    /// # Errors
    /// If the model's attention fails or the objective is no number.
    fn judge_together(&mut self, candidates: &[Vec<Change>], ask: Ask) -> Result<Vec<Verdict>, SearchError>;

    /// The objective with some changes on top of the accepted draft.
    ///
    /// # Errors
    /// As [`judge_together`](Self::judge_together).
    fn judge(&mut self, changes: &[Change], ask: Ask) -> Result<Verdict, SearchError> {
        Ok(self.judge_together(&[changes.to_vec()], ask)?[0])
    }

    /// Takes changes over, whatever they do to the objective.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    fn accept(&mut self, changes: &[Change]) -> Result<(), SearchError>;

    /// Goes back to a draft that was accepted before.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    fn go_to(&mut self, draft: &Draft) -> Result<(), SearchError>;

    /// Announces how many candidates a step has and how many of them will be judged, for progress and the count of what
    /// was saved.
    fn announce(&mut self, candidates: usize, judged: usize);
}
