//! Searching for a sharing map: calibration samples, an objective, and strategies that try changes on a [`Ground`].

mod distance;
mod draft;
mod error;
mod fit;
mod found;
mod gate;
mod ground;
mod low_rank;
mod objective;
mod observer;
mod options;
mod replay;
mod searching;
mod strategies;
mod target;

pub use distance::{Distance, Order, Pair, Units};
pub use draft::{Change, Draft, Move};
pub use error::SearchError;
pub use fit::Fit;
pub use found::{Found, Step, Trial};
pub use gate::Gate;
pub use ground::{Ask, Ground, Verdict};
pub use objective::Objective;
pub use observer::{Observer, Progress};
pub use options::SearchOptions;
pub(crate) use replay::Batch;
pub use replay::SearchModel;
pub use strategies::{
    Adjacent, Beam, DropLayers, Fixed, Greedy, LayerTypesError, Paper, Refine, Refit, SearchStrategy, Strategies,
};
pub use target::Target;

use crate::CalibrationSet;
use searching::Searching;

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
