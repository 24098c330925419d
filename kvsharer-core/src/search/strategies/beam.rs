//! Greedy with several drafts at a time.

use super::SearchStrategy;
use super::greedy::{Costs, Greedy};
use crate::search::{Change, Draft, Ground, Move, SearchError};
use std::collections::BTreeSet;

/// Keeps the best `beams` drafts at every step and ends with the best of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beam {
    /// Drafts kept.
    pub beams: usize,
    /// Candidates judged for each, beside those never judged before; `None` judges all.
    pub width: Option<usize>,
}

impl SearchStrategy for Beam {
    fn name(&self) -> String {
        format!("beam:beams={}", self.beams)
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let greedy = Greedy { width: self.width };
        let start = ground.draft().clone();
        // A draft is the moves that lead to it from the start.
        let mut beams: Vec<(f64, Vec<Move>, Costs)> = vec![(ground.loss(), Vec::new(), Costs::default())];
        loop {
            let mut found: Vec<(f64, Vec<Move>, Costs)> = Vec::new();
            for (_, moves, costs) in beams.clone() {
                replay(ground, &start, &moves)?;
                if ground.is_done() {
                    break;
                }
                let mut costs = costs;
                let draft: Draft = ground.draft().clone();
                let best = greedy.best(ground, &[], &draft, &mut costs, self.beams, |_| false)?;
                found
                    .extend(best.into_iter().map(|(loss, best)| (loss, [&moves[..], &[best]].concat(), costs.clone())));
            }
            if found.is_empty() {
                break;
            }
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut seen = BTreeSet::new();
            found.retain(|(_, moves, _)| seen.insert(moves.iter().copied().collect::<BTreeSet<Move>>()));
            found.truncate(self.beams);
            beams = found;
        }
        let best = beams.into_iter().next().map(|(_, moves, _)| moves).unwrap_or_default();
        replay(ground, &start, &best)
    }
}

/// Makes the draft that `moves` lead to the accepted one.
fn replay(ground: &mut dyn Ground, start: &Draft, moves: &[Move]) -> Result<(), SearchError> {
    let (wanted, _) = start.after(&moves.iter().map(|&share| Change::Share(share)).collect::<Vec<_>>());
    if wanted.history() == ground.draft().history() {
        return Ok(());
    }
    ground.go_to(start)?;
    moves.iter().try_for_each(|&share| ground.accept(&[Change::Share(share)]))
}
