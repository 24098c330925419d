//! From any map: give back what a layer borrows and take the best other move instead, while the objective falls.

use super::SearchStrategy;
use super::greedy::{Costs, Greedy};
use crate::search::{Change, Ground, Move, SearchError, Units};

/// Swaps of donors and readers. With samples held back, a swap must not raise the objective on those either: a search
/// stops when only the text it looks at still improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refine {
    /// Candidates judged for each unit given back, beside those never judged before.
    pub width: usize,
    /// The most passes over all units.
    pub passes: usize,
}

impl SearchStrategy for Refine {
    fn name(&self) -> String {
        "refine".into()
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let units = ground.options().units;
        let mut costs = Costs::default();
        for _pass in 0..self.passes {
            let mut improved = false;
            for (layer, unit) in ground.draft().shared(units) {
                improved |= self.swap(ground, layer, unit, &mut costs)?;
            }
            if !improved {
                break;
            }
        }
        Ok(())
    }
}

impl Refine {
    /// Gives one unit back for the best other one, if that is better.
    fn swap(
        &self,
        ground: &mut dyn Ground,
        layer: crate::LayerId,
        units: Units,
        costs: &mut Costs,
    ) -> Result<bool, SearchError> {
        let before = ground.draft().clone();
        let sharing = before.sharing();
        let map = if units == Units::Values { sharing.values() } else { sharing.keys() };
        let Some(donor) = map.donor(layer) else { return Ok(false) };
        let back = Change::Return { layer, units };
        let (without, _) = before.after(&[back]);
        let (loss, held) = (ground.loss(), ground.held_back());
        let same = |candidate: &Move| (candidate.borrower, candidate.units, candidate.donor) == (layer, units, donor);
        let greedy = Greedy { width: Some(self.width) };
        let best = greedy.best(ground, &[back], &without, costs, 1, same)?;
        let Some(&(found, best)) = best.first() else { return Ok(false) };
        if found >= loss {
            return Ok(false);
        }
        ground.accept(&[back, Change::Share(best)])?;
        if held.zip(ground.held_back()).is_some_and(|(before, after)| after > before) {
            ground.go_to(&before)?;
            return Ok(false);
        }
        Ok(true)
    }
}
