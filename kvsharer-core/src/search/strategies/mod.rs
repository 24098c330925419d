//! How a search goes about it. A new strategy is one file here.

mod adjacent;
mod beam;
mod drop_layers;
mod fixed;
mod greedy;
mod paper;
mod refine;
mod refit;

pub use adjacent::Adjacent;
pub use beam::Beam;
pub use drop_layers::DropLayers;
pub use fixed::{Fixed, LayerTypesError};
pub use greedy::Greedy;
pub use paper::Paper;
pub use refine::Refine;
pub use refit::Refit;

use super::{Ground, SearchError};
use crate::SearchRecord;
use std::fmt::Debug;

/// A way to find a sharing map.
pub trait SearchStrategy: Debug + Sync {
    /// Its name with whatever sets it apart, such as `greedy` or `beam:width=4`.
    fn name(&self) -> String;

    /// Notes what else sets it apart.
    fn describe(&self, record: &mut SearchRecord) {
        let _ = record;
    }

    /// Judges and accepts changes until it has nothing better.
    ///
    /// # Errors
    /// Whatever the ground refuses.
    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError>;
}

/// Strategies one after the other, each on what the last one left.
#[derive(Debug, Default)]
pub struct Strategies(pub Vec<Box<dyn SearchStrategy>>);

impl SearchStrategy for Strategies {
    fn name(&self) -> String {
        self.0.iter().map(|strategy| strategy.name()).collect::<Vec<_>>().join(",")
    }

    fn describe(&self, record: &mut SearchRecord) {
        self.0.iter().for_each(|strategy| strategy.describe(record));
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        self.0.iter().try_for_each(|strategy| strategy.run(ground))
    }
}
