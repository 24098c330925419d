//! A running search: it judges changes of the accepted draft and takes them over.

mod fits;

use self::fits::Fitted;
use super::objective::{Reference, cosine_loss};
use super::replay::{Batch, Run};
use super::target::is_reached;
use super::{
    Ask, Change, Distance, Draft, Fit, Found, Ground, Move, Objective, Observer, Order, Pair, Progress, SearchError,
    SearchModel, SearchOptions, Step, Trial, Units, Verdict,
};
use crate::{Averages, CacheError, CalibrationSet, LayerId, ModelShape, hex};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A running search.
pub(super) struct Searching<'a, M> {
    model: &'a M,
    options: &'a SearchOptions,
    observer: &'a mut dyn Observer,
    batches: Vec<Watched>,
    held: Vec<Watched>,
    draft: Draft,
    loss: f64,
    held_loss: Option<f64>,
    wanted: f64,
    smallest: usize,
    /// The last whole judgement, so that accepting it runs nothing again.
    last: Option<Judged>,
    /// The last trial while it is not known whether it is accepted.
    pending: bool,
    announced: (usize, usize),
    names: BTreeMap<LayerId, String>,
    /// The draft's history at each step.
    histories: Vec<Vec<String>>,
    found: Found,
}

/// A batch and what an objective over logits needs of it.
struct Watched {
    batch: Batch,
    reference: Option<Reference>,
}

struct Judged {
    changes: Vec<Change>,
    fitted: Fitted,
    runs: Vec<Run>,
    loss: f64,
}

impl<'a, M: SearchModel> Searching<'a, M> {
    pub(super) fn new(
        model: &'a M,
        set: &CalibrationSet,
        options: &'a SearchOptions,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, SearchError> {
        options.check(model.shape())?;
        let (wanted, smallest) = options.share.elements(model.shape(), options.units)?;
        let samples = set.samples();
        let held = (samples.len() as f64 * options.held_back).round() as usize;
        if held >= samples.len() {
            return Err(SearchError::NothingLeft { held, samples: samples.len() });
        }
        let (searched, held) = samples.split_at(samples.len() - held);
        let run = |samples: &[Vec<u32>]| {
            let chunks: Vec<&[Vec<u32>]> = samples.chunks(options.batch.max(1)).collect();
            let watch = |samples: &&[Vec<u32>]| {
                let batch = Batch::new(model, samples, options.fit != Fit::None)?;
                let reference = Reference::new(model, &batch, options.objective);
                Ok::<_, CacheError>(Watched { batch, reference })
            };
            in_waves(&chunks, options.parallel, watch)
        };
        let (batches, held) = (run(searched)?, run(held)?);
        if options.objective.adds_up() && batches.iter().any(|watched| watched.reference.is_none()) {
            return Err(SearchError::NoLogits(options.objective));
        }
        let layers_run = model.shape().len();
        let mut searching = Self {
            model,
            options,
            observer,
            batches,
            held,
            draft: Draft::default(),
            loss: 0.0,
            held_loss: None,
            wanted,
            smallest,
            last: None,
            pending: false,
            announced: (0, 0),
            names: BTreeMap::new(),
            histories: Vec::new(),
            found: Found {
                draft: Draft::default(),
                ranking: Vec::new(),
                trials: Vec::new(),
                steps: Vec::new(),
                adapters: BTreeMap::new(),
                requested: (wanted / smallest.max(1) as f64).round() as usize,
                reached: 0,
                saved: 0.0,
                exhaustive: 0,
                layers_run,
            },
        };
        searching.loss = match options.objective {
            Objective::HiddenCosine => -1.0,
            Objective::LogitKl => 0.0,
            Objective::Nll => {
                let (draft, from) = (Draft::default(), LayerId(0));
                searching.losses(&draft, from, f64::INFINITY)?.0
            }
        };
        Ok(searching)
    }

    pub(super) fn finish(mut self) -> Found {
        self.tell();
        let used: Vec<&String> = self.found.steps.iter().flat_map(|step| step.adapters.values()).collect();
        let used: std::collections::BTreeSet<String> = used.into_iter().cloned().collect();
        self.found.adapters.retain(|name, _| used.contains(name));
        self.found.reached = self.draft.shared(self.options.units).len() + self.draft.dropped().len();
        self.found.saved = self.draft.saved_fraction(self.model.shape());
        self.found.draft = self.draft;
        self.found
    }

    /// The loss of a draft and the runs behind it, fewer than there are batches if the bound was passed; the loss is then
    /// that of those batches.
    fn losses(&mut self, draft: &Draft, from: LayerId, bound: f64) -> Result<(f64, Vec<Run>), SearchError> {
        let mut runs = Vec::with_capacity(self.batches.len());
        let counts = |batches: &[Watched]| {
            batches.iter().filter_map(|watched| watched.reference.as_ref()).map(Reference::count).sum::<usize>().max(1)
                as f64
        };
        let (mut sum, count) = (0.0, counts(&self.batches));
        for wave in self.batches.chunks(self.options.parallel.max(1)) {
            let model = self.model;
            let run = |watched: &Watched| {
                let run = watched.batch.try_from_layer(model, from, draft)?;
                let sum = watched.reference.as_ref().map_or(Ok(0.0), |reference| reference.sum(model, &run))?;
                Ok::<_, CacheError>((run, sum))
            };
            for (run, term) in in_waves(wave, self.options.parallel, run)? {
                runs.push(run);
                sum += term;
            }
            if self.options.objective.adds_up() && sum / count > bound {
                break;
            }
        }
        self.found.layers_run += self.model.shape().len() - from.0;
        let loss = match self.options.objective {
            Objective::HiddenCosine => {
                let batches: Vec<&Batch> = self.batches.iter().map(|watched| &watched.batch).collect();
                cosine_loss(self.options.gate, &batches, &runs)?
            }
            _ => sum / counts(&self.batches[..runs.len()]),
        };
        Ok((loss, runs))
    }

    /// Whether the model lets a layer, and all that would go with it, read another.
    fn may_share(&self, candidate: &Move) -> bool {
        let Move { borrower, donor, .. } = *candidate;
        let sharing = self.draft.sharing();
        let readers = sharing.keys().readers(borrower).chain(sharing.values().readers(borrower));
        readers.chain([borrower]).all(|layer| self.model.may_share(layer, donor))
    }

    /// Tells the observer of the pending trial.
    fn tell(&mut self) {
        if std::mem::take(&mut self.pending) {
            self.show(self.found.trials.len() - 1);
        }
    }

    fn show(&mut self, trial: usize) {
        let saved = self.draft.saved(self.model.shape()) as f64;
        let (done, of) = self.announced;
        let step = if of > 0 { self.smallest as f64 * (done as f64 / of as f64).min(1.0) } else { 0.0 };
        let part = |saved: f64| (saved / self.wanted).min(1.0);
        self.observer.watch(Progress {
            trial: &self.found.trials[trial],
            draft: &self.draft,
            reached: part(saved),
            done: part(saved + step),
            trials: self.found.trials.len(),
        });
    }

    /// The key under which an observer keeps a trial: it depends on all accepted changes before.
    fn key(&self, changes: &[Change]) -> String {
        let mut hasher = Sha256::new();
        self.draft.history().iter().for_each(|change| hasher.update(format!("{change};")));
        let changes: Vec<String> = changes.iter().map(Change::to_string).collect();
        format!("{}/{}", &hex(&hasher.finalize())[..16], changes.join("+"))
    }

    fn record(&mut self, changes: &[Change], loss: f64, whole: bool, ask: Ask) {
        let share = changes.iter().find_map(|change| match *change {
            Change::Share(share) => Some((share, false)),
            Change::Drop { layer } => {
                Some((Move { borrower: layer, donor: layer, units: Units::Both, fitted: false }, true))
            }
            _ => None,
        });
        let Some((Move { borrower, donor, units, fitted }, dropped)) = share else { return };
        let owner = |map: &crate::LayerMap| map.donor(donor).unwrap_or(donor);
        let sharing = self.draft.sharing();
        let cosine = self.options.objective == Objective::HiddenCosine;
        self.found.trials.push(Trial {
            borrower,
            donor: if units == Units::Values { owner(sharing.values()) } else { owner(sharing.keys()) },
            units,
            fitted,
            dropped,
            returned: changes.iter().find_map(|change| match change {
                Change::Return { layer, .. } => Some(*layer),
                _ => None,
            }),
            distance: ask.distance,
            similarity: cosine.then_some(-loss),
            objective: (!cosine).then_some(loss),
            abandoned: !whole,
            accepted: false,
        });
        self.pending = true;
        self.announced.0 += 1;
    }

    /// Runs everything under `draft` from `from` on, for good.
    fn settle(&mut self, draft: Draft, from: LayerId, runs: Vec<Run>) -> Result<(), SearchError> {
        for (watched, run) in self.batches.iter_mut().zip(runs) {
            watched.batch.accept(run);
        }
        let (model, objective) = (self.model, self.options.objective);
        let run = |watched: &Watched| watched.batch.try_from_layer(model, from, &draft);
        let held = in_waves(&self.held, self.options.parallel, run)?;
        if !self.held.is_empty() {
            let batches: Vec<&Batch> = self.held.iter().map(|watched| &watched.batch).collect();
            self.held_loss = Some(if objective.adds_up() {
                let (mut sum, mut count) = (0.0, 0);
                for (watched, run) in self.held.iter().zip(&held) {
                    if let Some(reference) = &watched.reference {
                        sum += reference.sum(model, run)?;
                        count += reference.count();
                    }
                }
                sum / count.max(1) as f64
            } else {
                cosine_loss(self.options.gate, &batches, &held)?
            });
        }
        for (watched, run) in self.held.iter_mut().zip(held) {
            watched.batch.accept(run);
        }
        self.draft = draft;
        Ok(())
    }
}

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
        moves.retain(|candidate| draft.allows(candidate) && self.may_share(candidate));
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

    fn judge(&mut self, changes: &[Change], ask: Ask) -> Result<Verdict, SearchError> {
        self.tell();
        let key = self.key(changes);
        let recalled = self.observer.recall(&key);
        let (loss, whole) = match recalled {
            Some(known) => known,
            None => {
                let fitted = self.fitted(changes)?;
                let (loss, runs) = self.losses(&fitted.draft, fitted.from, ask.bound)?;
                let whole = runs.len() == self.batches.len();
                self.last = whole.then(|| Judged { changes: changes.to_vec(), fitted, runs, loss });
                self.observer.keep(&key, loss, whole).map_err(SearchError::Observer)?;
                (loss, whole)
            }
        };
        self.record(changes, loss, whole, ask);
        if !loss.is_finite() {
            let trial = self.found.trials.last();
            let (donor, borrower) = trial.map_or((LayerId(0), LayerId(0)), |trial| (trial.donor, trial.borrower));
            let what = if self.options.objective.adds_up() { "objective" } else { "similarity" };
            return Err(SearchError::NotFinite { what, donor, borrower });
        }
        Ok(Verdict { loss, whole })
    }

    fn accept(&mut self, changes: &[Change]) -> Result<(), SearchError> {
        let judged = match self.last.take() {
            Some(judged) if judged.changes == changes => judged,
            _ => {
                let fitted = self.fitted(changes)?;
                let (loss, runs) = self.losses(&fitted.draft, fitted.from, f64::INFINITY)?;
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
        let (loss, runs) = self.losses(draft, LayerId(0), f64::INFINITY)?;
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

/// Maps items in order, so many of them at once.
fn in_waves<T: Sync, R: Send>(
    items: &[T],
    parallel: usize,
    with: impl Fn(&T) -> Result<R, CacheError> + Send + Sync,
) -> Result<Vec<R>, CacheError> {
    match parallel {
        0 | 1 => items.iter().map(with).collect(),
        _ => items.par_iter().map(with).collect(),
    }
}
