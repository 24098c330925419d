//! At every step the move that costs least.

use super::SearchStrategy;
use crate::search::{Ask, Change, Draft, Ground, Move, SearchError};
use std::collections::{HashMap, VecDeque};

/// The best candidate at every step.
///
/// The lazy form keeps what each candidate cost when it was last judged and looks at the `width` cheapest only. Unlike
/// Minoux's lazy evaluation (1978) it stops there even if another once cost less than the best costs now: costs drift
/// upwards together as more is shared, so that his test would go on long after the best was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greedy {
    /// Candidates judged at a step, beside those never judged before; `None` judges all.
    pub width: Option<usize>,
}

/// What each candidate cost when it was last judged, over the objective before it; unknown ones come first.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs(HashMap<Move, f64>);

impl Costs {
    pub(super) fn of(&self, candidate: &Move) -> f64 {
        self.0.get(candidate).copied().unwrap_or(f64::NEG_INFINITY)
    }

    pub(super) fn set(&mut self, candidate: Move, cost: f64) {
        self.0.insert(candidate, cost);
    }

    /// Candidates, cheapest first.
    pub(super) fn sort(&self, candidates: &mut [Move]) {
        candidates.sort_by(|a, b| self.of(a).total_cmp(&self.of(b)).then(a.cmp(b)));
    }
}

impl Greedy {
    /// The `keep` best candidates on top of `before` changes, best first, with their objectives.
    pub(super) fn best(
        &self,
        ground: &mut dyn Ground,
        before: &[Change],
        draft: &Draft,
        costs: &mut Costs,
        keep: usize,
        skip: impl Fn(&Move) -> bool,
    ) -> Result<Vec<(f64, Move)>, SearchError> {
        let mut candidates: Vec<Move> = ground.moves(draft).into_iter().filter(|candidate| !skip(candidate)).collect();
        costs.sort(&mut candidates);
        let unknown = candidates.iter().filter(|candidate| costs.of(candidate) == f64::NEG_INFINITY).count();
        let judged = self.width.map_or(candidates.len(), |width| width.max(unknown).min(candidates.len()));
        ground.announce(candidates.len(), judged);
        let base = ground.loss();
        let mut best: Vec<(f64, Move)> = Vec::new();
        candidates.truncate(judged);
        let mut left = VecDeque::from(candidates);
        while let Some(first) = left.pop_front() {
            if ground.options().max_trials.is_some() && ground.is_done() {
                break;
            }
            let bound = if best.len() == keep { best[keep - 1].0 } else { f64::INFINITY };
            let mut together = vec![first];
            left.retain(|candidate| {
                let joins = candidate.borrower == first.borrower && together.len() < ground.together();
                if joins {
                    together.push(*candidate);
                }
                !joins
            });
            let changes: Vec<Vec<Change>> =
                together.iter().map(|&candidate| [before, &[Change::Share(candidate)]].concat()).collect();
            let verdicts = ground.judge_together(&changes, Ask { bound, ..Ask::default() })?;
            for (candidate, verdict) in together.into_iter().zip(verdicts) {
                costs.set(candidate, verdict.loss - base);
                if let Some(loss) = verdict.within(bound) {
                    let place = best.partition_point(|(other, _)| *other <= loss);
                    best.insert(place, (loss, candidate));
                    best.truncate(keep);
                }
            }
        }
        Ok(best)
    }
}

impl SearchStrategy for Greedy {
    fn name(&self) -> String {
        if self.width.is_some() { "lazy-greedy".into() } else { "greedy".into() }
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let mut costs = Costs::default();
        while !ground.is_done() {
            let draft = ground.draft().clone();
            let best = self.best(ground, &[], &draft, &mut costs, 1, |_| false)?;
            let Some((_, best)) = best.first() else { break };
            ground.accept(&[Change::Share(*best)])?;
        }
        Ok(())
    }
}
