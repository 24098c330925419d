//! What strategies ask of a running search.

use super::fits::Fitted;
use super::{Judged, Searching, Watched};
use crate::search::target::is_reached;
use crate::search::{
    Ask, Batch, Change, Distance, Draft, Fit, Ground, Move, Order, Pair, SearchError, SearchModel, SearchOptions, Step,
    Trial, Units, Verdict,
};
use crate::{Averages, LayerId, ModelShape};
use std::collections::BTreeMap;

impl<M: SearchModel> Ground for Searching<'_, M> {
    fn model(&self) -> &ModelShape {
        self.model.shape()
    }

    fn options(&self) -> &SearchOptions {
        self.options
    }

    fn draft(&self) -> &Draft {
        &self.draft
    }

    fn loss(&self) -> f64 {
        self.loss
    }

    fn held_back(&self) -> Option<f64> {
        self.held_loss
    }

    fn is_done(&self) -> bool {
        self.options.max_trials.is_some_and(|most| self.found.trials.len() >= most) || self.would_be_done(&[])
    }

    fn would_be_done(&self, changes: &[Change]) -> bool {
        let saved = self.draft.after(changes).0.saved(self.model.shape());
        is_reached(saved, self.wanted, self.smallest)
    }

    fn moves(&self, draft: &Draft) -> Vec<Move> {
        let shapes = self.model.shape().layers();
        let fits: &[bool] = match (self.options.fit, self.options.plain_too) {
            (Fit::None, _) => &[false],
            (_, false) => &[true],
            (_, true) => &[true, false],
        };
        let mut moves = Vec::new();
        for borrower in 1..shapes.len() {
            let lowest = self.options.reach.map_or(0, |reach| borrower.saturating_sub(reach));
            for donor in (lowest..borrower).filter(|&donor| shapes[donor] == shapes[borrower]) {
                for &units in self.options.units.kinds() {
                    for &fitted in fits {
                        moves.push(Move { borrower: LayerId(borrower), donor: LayerId(donor), units, fitted });
                    }
                }
            }
        }
        moves.retain(|candidate| draft.allows(candidate) && self.may_share(draft, candidate));
        moves
    }

    fn rank(&mut self, distance: Distance, order: Order, seed: u64) -> Result<Vec<(Pair, Units)>, SearchError> {
        let batches: Vec<&Batch> = self.batches.iter().map(|watched| &watched.batch).collect();
        let mut pairs = distance.pairs(&Averages::over(self.model.shape(), &batches)?);
        let near = |pair: &Pair| self.options.reach.is_none_or(|reach| pair.borrower.0 - pair.donor.0 <= reach);
        pairs.retain(|pair| near(pair) && self.model.may_share(pair.borrower, pair.donor));
        let broken = |pair: &&Pair| !(pair.key.is_finite() && pair.value.is_finite());
        if let Some(&Pair { donor, borrower, .. }) = pairs.iter().find(broken) {
            return Err(SearchError::NotFinite { what: "distance", donor, borrower });
        }
        let kinds = self.options.units.kinds();
        let mut ranking: Vec<(Pair, Units)> =
            pairs.into_iter().flat_map(|pair| kinds.iter().map(move |&units| (pair, units))).collect();
        order.sort(&mut ranking, seed);
        self.found.ranking = ranking.iter().map(|(pair, _)| *pair).collect();
        Ok(ranking)
    }

    fn together(&self) -> usize {
        let tokens = |watched: &Watched| watched.batch.samples().len() * watched.batch.width();
        let largest = self.batches.iter().map(tokens).max().unwrap_or(0);
        (self.options.pass_tokens / largest.max(1)).max(1)
    }

    fn judge_together(&mut self, candidates: &[Vec<Change>], ask: Ask) -> Result<Vec<Verdict>, SearchError> {
        let keys: Vec<String> = candidates.iter().map(|changes| self.key(changes)).collect();
        let mut verdicts: Vec<Option<Verdict>> =
            keys.iter().map(|key| self.observer.recall(key).map(|(loss, whole)| Verdict { loss, whole })).collect();
        let mut fitted: Vec<(usize, Fitted)> = Vec::new();
        for (index, changes) in candidates.iter().enumerate().filter(|(index, _)| verdicts[*index].is_none()) {
            fitted.push((index, self.fitted(changes)?));
        }
        for alike in fitted.chunk_by(|a, b| a.1.from == b.1.from) {
            let drafts: Vec<&Draft> = alike.iter().map(|(_, fitted)| &fitted.draft).collect();
            let found = self.losses(&drafts, alike[0].1.from, ask.bound)?;
            for ((index, fitted), (loss, runs)) in alike.iter().zip(found) {
                let whole = runs.len() == self.batches.len();
                verdicts[*index] = Some(Verdict { loss, whole });
                self.observer.keep(&keys[*index], loss, whole).map_err(SearchError::Observer)?;
                if whole && self.last.as_ref().is_none_or(|last| loss <= last.loss) {
                    let (changes, fitted) = (candidates[*index].clone(), fitted.clone());
                    self.last = Some(Judged { changes, fitted, runs, loss });
                }
            }
        }
        let verdicts: Vec<Verdict> = verdicts.into_iter().flatten().collect();
        for (changes, verdict) in candidates.iter().zip(&verdicts) {
            self.tell();
            self.record(changes, verdict.loss, verdict.whole, ask);
            if !verdict.loss.is_finite() {
                let trial = self.found.trials.last();
                let (donor, borrower) = trial.map_or((LayerId(0), LayerId(0)), |trial| (trial.donor, trial.borrower));
                let what = if self.options.objective.adds_up() { "objective" } else { "similarity" };
                return Err(SearchError::NotFinite { what, donor, borrower });
            }
        }
        Ok(verdicts)
    }

    fn accept(&mut self, changes: &[Change]) -> Result<(), SearchError> {
        let judged = match self.last.take() {
            Some(judged) if judged.changes == changes => judged,
            _ => {
                let fitted = self.fitted(changes)?;
                let (loss, runs) = self.loss_of(&fitted.draft, fitted.from, f64::INFINITY)?;
                Judged { changes: changes.to_vec(), fitted, runs, loss }
            }
        };
        let Judged { fitted: Fitted { draft, from, layers }, runs, loss, .. } = judged;
        // The residual needs the states before the change.
        let residual = self.note_fits(&draft, &layers, from)?;
        self.settle(draft, from, runs)?;
        self.loss = loss;
        let key_value = |map: &crate::LayerMap| map.iter().collect::<BTreeMap<_, _>>();
        let step = Step {
            saved: self.draft.saved_fraction(self.model.shape()),
            objective: loss,
            held_back: self.held_loss,
            residual,
            trials: self.found.trials.len(),
            key_map: key_value(self.draft.sharing().keys()),
            value_map: key_value(self.draft.sharing().values()),
            dropped: self.draft.dropped().iter().copied().collect(),
            adapters: self.names.clone(),
        };
        self.found.steps.push(step);
        self.histories.push(self.draft.history().to_vec());
        self.announced = (0, 0);
        let shared = changes.iter().find_map(|change| match *change {
            Change::Share(share) => Some((share.borrower, share.units, share.fitted)),
            Change::Drop { layer } => Some((layer, Units::Both, false)),
            _ => None,
        });
        let trials = self.found.trials.iter_mut();
        let same = |trial: &Trial| shared == Some((trial.borrower, trial.units, trial.fitted)) && !trial.abandoned;
        let near = |trial: &Trial| (trial.objective.or(trial.similarity.map(|s| -s)).unwrap_or(f64::NAN) - loss).abs();
        if let Some((index, trial)) = trials.enumerate().rev().find(|(_, t)| same(t) && near(t) <= 1e-9) {
            trial.accepted = true;
            self.pending = false;
            self.show(index);
        }
        Ok(())
    }

    fn go_to(&mut self, draft: &Draft) -> Result<(), SearchError> {
        if draft.history() == self.draft.history() {
            return Ok(());
        }
        let (loss, runs) = self.loss_of(draft, LayerId(0), f64::INFINITY)?;
        self.settle(draft.clone(), LayerId(0), runs)?;
        self.loss = loss;
        self.last = None;
        // What was accepted on another way is no step of this one.
        while self.histories.last().is_some_and(|history| !draft.history().starts_with(history)) {
            self.histories.pop();
            self.found.steps.pop();
        }
        self.names = self.found.steps.last().map(|step| step.adapters.clone()).unwrap_or_default();
        Ok(())
    }

    fn announce(&mut self, candidates: usize, judged: usize) {
        self.found.exhaustive += candidates;
        self.announced = (0, judged);
    }
}
