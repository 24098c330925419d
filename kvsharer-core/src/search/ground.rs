//! The ground a strategy searches on: it judges changes of the accepted draft and takes them over.

use super::fit::{self, Sample};
use super::objective::{Reference, cosine_loss};
use super::replay::{Batch, Captured, Run};
use super::target::is_reached;
use super::{
    Change, Distance, Draft, Fit, Found, Move, Objective, Observer, Order, Pair, Progress, SearchError, SearchModel,
    SearchOptions, Step, Trial, Units,
};
use crate::{Adapter, Averages, CacheError, CalibrationSet, LayerId, ModelShape, hex};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What is asked of a judgement beside the loss.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Give up as soon as the loss is known to be above this.
    pub bound: f64,
    /// Distance of the pair, to be recorded.
    pub distance: Option<f64>,
}

impl Default for Ask {
    fn default() -> Self {
        Self { bound: f64::INFINITY, distance: None }
    }
}

/// What is known of a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Its objective; if it was given up, that of the samples it was judged by, which the whole of them may undercut.
    pub loss: f64,
    /// Whether all samples were looked at.
    pub whole: bool,
}

impl Verdict {
    /// The objective, if it is known and at most `bound`.
    pub fn within(self, bound: f64) -> Option<f64> {
        (self.whole && self.loss <= bound).then_some(self.loss)
    }
}

/// What a strategy may do.
pub trait Ground {
    /// Shapes of the model's layers.
    fn model(&self) -> &ModelShape;

    /// The options of the search.
    fn options(&self) -> &SearchOptions;

    /// The accepted draft.
    fn draft(&self) -> &Draft;

    /// The objective of the accepted draft; the untouched model's before anything is accepted.
    fn loss(&self) -> f64;

    /// The objective of the accepted draft on the samples held back, if there are any.
    fn held_back(&self) -> Option<f64>;

    /// Whether enough is shared, or no more trials may be made.
    fn is_done(&self) -> bool;

    /// Whether enough would be shared after some changes.
    fn would_be_done(&self, changes: &[Change]) -> bool;

    /// All moves the options allow on top of a draft, by borrower, donor, units.
    fn moves(&self, draft: &Draft) -> Vec<Move>;

    /// All pairs of layers that may share, with the distances of their average caches in the untouched model, and what
    /// each would share, in the order of trial.
    ///
    /// # Errors
    /// If the device fails or a distance is no number.
    fn rank(&mut self, distance: Distance, order: Order, seed: u64) -> Result<Vec<(Pair, Units)>, SearchError>;

    /// The objective with some changes on top of the accepted draft.
    ///
    /// # Errors
    /// If the model's attention fails or the objective is no number.
    fn judge(&mut self, changes: &[Change], ask: Ask) -> Result<Verdict, SearchError>;

    /// Takes changes over, whatever they do to the objective.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    fn accept(&mut self, changes: &[Change]) -> Result<(), SearchError>;

    /// Goes back to a draft that was accepted before.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    fn go_to(&mut self, draft: &Draft) -> Result<(), SearchError>;

    /// Announces how many candidates a step has and how many of them will be judged, for progress and the count of what
    /// was saved.
    fn announce(&mut self, candidates: usize, judged: usize);
}

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

/// A draft with its maps fitted.
struct Fitted {
    draft: Draft,
    /// The first layer that differs from the accepted draft.
    from: LayerId,
    /// The layers whose maps are new.
    layers: Vec<LayerId>,
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

    /// The draft after `changes` with its maps fitted, and the first layer that differs.
    fn fitted(&mut self, changes: &[Change]) -> Result<Fitted, SearchError> {
        let from = changes.iter().map(Change::layer).min().unwrap_or(LayerId(0));
        let (mut draft, layers) = self.draft.after(changes);
        let kv_heads = |layer: LayerId| self.model.shape().layers()[layer.0].kv_heads;
        for &layer in &layers {
            let heads = self.heads(&draft, from, layer)?;
            let mut adapter = self.fit_turn(&mut draft, from, layer, heads)?;
            let captured = self.capture(&self.batches, from, layer, &draft)?;
            self.found.layers_run += layer.0 + 1 - from.0;
            adapter.mix = with_samples(&self.batches, &captured, layer, |samples| {
                fit::mix(self.options.fit, samples, kv_heads(layer), self.options.ridge)
            })?;
            draft.set_adapter(layer, adapter);
        }
        Ok(Fitted { draft, from, layers })
    }

    /// Gives a layer of `draft` an adapter with its heads and, if it borrows keys, their turn.
    fn fit_turn(
        &mut self,
        draft: &mut Draft,
        from: LayerId,
        layer: LayerId,
        heads: Option<Vec<usize>>,
    ) -> Result<Adapter, SearchError> {
        let mut adapter = Adapter { heads, ..Adapter::default() };
        draft.set_adapter(layer, adapter.clone());
        if draft.wanted(layer).keys && self.model.turns_fold() {
            let captured = self.capture(&self.batches, from, layer, draft)?;
            self.found.layers_run += layer.0 + 1 - from.0;
            let turn = |samples: &[Sample<'_>]| fit::turn(samples, adapter.heads.as_deref());
            adapter.turn = Some(with_samples(&self.batches, &captured, layer, turn)?);
            draft.set_adapter(layer, adapter.clone());
        }
        Ok(adapter)
    }

    /// Which heads of what it reads the groups of a layer should read, by the errors that maps head by head leave. What
    /// the layer owns itself would be stored in that order, so nobody may read it yet.
    fn heads(&mut self, draft: &Draft, from: LayerId, layer: LayerId) -> Result<Option<Vec<usize>>, SearchError> {
        let kv_heads = self.model.shape().layers()[layer.0].kv_heads;
        let sharing = draft.sharing();
        let read = [sharing.keys(), sharing.values()].iter().any(|map| map.readers(layer).next().is_some());
        if !self.options.permute_heads || read || kv_heads < 2 {
            return Ok(None);
        }
        let mut errors = vec![vec![0.0; kv_heads]; kv_heads];
        for turn in 0..kv_heads {
            let order: Vec<usize> = (0..kv_heads).map(|group| (group + turn) % kv_heads).collect();
            let mut trial = draft.clone();
            self.fit_turn(&mut trial, from, layer, Some(order.clone()))?;
            let captured = self.capture(&self.batches, from, layer, &trial)?;
            self.found.layers_run += layer.0 + 1 - from.0;
            let by_group = with_samples(&self.batches, &captured, layer, |samples| {
                fit::head_errors(samples, kv_heads, self.options.ridge)
            })?;
            for (group, error) in by_group.into_iter().enumerate() {
                errors[group][order[group]] = error;
            }
        }
        let order = fit::assign(&errors);
        Ok(order.iter().enumerate().any(|(group, &head)| group != head).then_some(order))
    }

    fn capture(
        &self,
        batches: &[Watched],
        from: LayerId,
        layer: LayerId,
        draft: &Draft,
    ) -> Result<Vec<Captured>, CacheError> {
        in_waves(batches, self.options.parallel, |watched| watched.batch.capture(self.model, from, layer, draft))
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

    /// Names fitted maps that are new, and the share of variance the maps of the changed layers leave unexplained.
    fn note_fits(&mut self, draft: &Draft, layers: &[LayerId], from: LayerId) -> Result<Option<f64>, SearchError> {
        self.names.retain(|layer, _| draft.adapter(*layer).is_some());
        let mut worst = None;
        for &layer in layers {
            let Some(adapter) = draft.adapter(layer) else { continue };
            let name = format!("step{}.layer{layer}", self.found.steps.len());
            self.names.insert(layer, name.clone());
            self.found.adapters.insert(name, adapter.clone());
            if !self.held.is_empty() {
                let captured = self.capture(&self.held, from, layer, draft)?;
                let residual = with_samples(&self.held, &captured, layer, |s| fit::residual(adapter.mix.as_ref(), s))?;
                worst = Some(worst.map_or(residual, |worst: f64| worst.max(residual)));
            }
        }
        Ok(worst)
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

/// Calls `with` with what a fit of `layer` needs of every batch.
fn with_samples<T>(
    batches: &[Watched],
    captured: &[Captured],
    layer: LayerId,
    with: impl FnOnce(&[Sample<'_>]) -> Result<T, CacheError>,
) -> Result<T, CacheError> {
    let rows: Vec<Vec<i64>> = batches.iter().map(|watched| watched.batch.rows()).collect();
    let samples = batches.iter().zip(captured).zip(&rows).map(|((watched, captured), rows)| {
        let target = watched.batch.teacher(layer).ok_or(CacheError::OutOfTurn { layer })?;
        Ok(Sample { captured, target, rows })
    });
    with(&samples.collect::<Result<Vec<_>, CacheError>>()?)
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
