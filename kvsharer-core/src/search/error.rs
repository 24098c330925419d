//! Errors of searches.

use super::Objective;
use crate::{CacheError, LayerId};
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
