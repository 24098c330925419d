//! After a search: the fitted maps were made while less was shared; fit them again to the model as it has become.

use super::SearchStrategy;
use crate::search::{Change, Ground, SearchError};

/// Fits all maps anew, lowest layer first, and keeps them if the objective falls (on the samples held back, too).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refit;

impl SearchStrategy for Refit {
    fn name(&self) -> String {
        "refit".into()
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let before = ground.draft().clone();
        let (loss, held) = (ground.loss(), ground.held_back());
        let changes: Vec<Change> = before.adapters().keys().map(|&layer| Change::Refit { layer }).collect();
        if changes.is_empty() {
            return Ok(());
        }
        ground.accept(&changes)?;
        let worse = held.zip(ground.held_back()).map_or(ground.loss() > loss, |(before, after)| after > before);
        if worse { ground.go_to(&before) } else { Ok(()) }
    }
}
