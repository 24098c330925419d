//! The paper's search (arXiv 2410.18517, algorithm 1): try pairs of layers in the order of their distance, keep a pair
//! while the model's output stays similar, stop at the number asked for.

use super::SearchStrategy;
use crate::search::{Ask, Change, Distance, Draft, Fit, Ground, Move, Order, SearchError};
use crate::{Kv, Objective, SearchRecord};

/// Ranked pairs behind a gate. As in the official code, a donor that borrows is followed to its owner, and when a donor
/// of earlier readers starts to borrow, its readers move to the new owner with it (the trial judges both at once).
///
/// With [`Order::Random`] this is the gated random control, with a threshold of -1 the ungated one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paper {
    /// How caches are compared.
    pub distance: Distance,
    /// Which pairs come first.
    pub order: Order,
    /// A pair is kept if the similarity is greater. For an objective other than the cosine: if the objective is below
    /// minus this.
    pub threshold: f64,
    /// Seed of a random order.
    pub seed: u64,
}

impl Default for Paper {
    /// The official code's options.
    fn default() -> Self {
        Self { distance: Distance::default(), order: Order::default(), threshold: 0.5, seed: 0 }
    }
}

impl SearchStrategy for Paper {
    fn name(&self) -> String {
        match self.order {
            Order::Random => "random".into(),
            _ => "paper".into(),
        }
    }

    fn describe(&self, record: &mut SearchRecord) {
        record.order = Some(self.order);
        record.distance = Some(self.distance);
        record.threshold = Some(self.threshold);
        record.seed = Some(self.seed);
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let cosine = ground.options().objective == Objective::HiddenCosine;
        if self.threshold.is_nan() || cosine && !(-1.0..=1.0).contains(&self.threshold) {
            return Err(SearchError::BadThreshold(self.threshold));
        }
        let fitted = ground.options().fit != Fit::None;
        let ranking = ground.rank(self.distance, self.order, self.seed)?;
        for (pair, units) in ranking {
            if ground.is_done() {
                break;
            }
            let share = Move { borrower: pair.borrower, donor: pair.donor, units, fitted };
            if shares(ground.draft(), &share) {
                continue;
            }
            let change = [Change::Share(share)];
            let ask = Ask { distance: Some(units.distance(&pair)), ..Ask::default() };
            ground.announce(1, 1);
            if -ground.judge(&change, ask)?.loss > self.threshold {
                ground.accept(&change)?;
            }
        }
        Ok(())
    }
}

/// Whether the borrower shares already.
fn shares(draft: &Draft, share: &Move) -> bool {
    let sharing = draft.sharing();
    let kinds = [(Kv::Key, sharing.keys()), (Kv::Value, sharing.values())];
    kinds.into_iter().filter(|&(kind, _)| share.units.has(kind)).any(|(_, map)| map.donor(share.borrower).is_some())
}
