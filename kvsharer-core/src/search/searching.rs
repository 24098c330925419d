//! A running search: it judges changes of the accepted draft and takes them over.

mod fits;
mod judge;

use self::fits::Fitted;
use super::objective::{Reference, cosine_loss};
use super::replay::{Batch, Run};
use super::{
    Ask, Change, Draft, Fit, Found, Move, Objective, Observer, Progress, SearchError, SearchModel, SearchOptions,
    Trial, Units,
};
use crate::{CacheError, CalibrationSet, LayerId, hex};
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
    /// The best whole judgement since the last change, so that accepting it runs nothing again.
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
                searching.loss_of(&draft, from, f64::INFINITY)?.0
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

    /// The losses of drafts that are alike below `from`, and the runs behind each, fewer than there are batches if the
    /// bound was passed; the loss is then that of those batches, however many were in work at once.
    fn losses(&mut self, drafts: &[&Draft], from: LayerId, bound: f64) -> Result<Vec<(f64, Vec<Run>)>, SearchError> {
        let adds_up = self.options.objective.adds_up();
        let count = tokens(&self.batches).max(1) as f64;
        let mut found: Vec<(f64, Vec<Run>)> = vec![(0.0, Vec::new()); drafts.len()];
        let is_open = |sum: f64| !adds_up || sum / count <= bound;
        for wave in self.batches.chunks(self.options.parallel.max(1)) {
            let open: Vec<usize> = (0..drafts.len()).filter(|&draft| is_open(found[draft].0)).collect();
            if open.is_empty() {
                break;
            }
            let model = self.model;
            let still: Vec<&Draft> = open.iter().map(|&draft| drafts[draft]).collect();
            let run = |watched: &Watched| {
                let runs = watched.batch.try_from_layer(model, from, &still)?;
                let sum = |run: Run| Ok((watched.sum(model, &run)?, run));
                runs.into_iter().map(sum).collect::<Result<Vec<_>, CacheError>>()
            };
            for runs in in_waves(wave, self.options.parallel, run)? {
                for (&draft, (sum, run)) in open.iter().zip(runs) {
                    if is_open(found[draft].0) {
                        found[draft].0 += sum;
                        found[draft].1.push(run);
                    }
                }
            }
        }
        self.found.layers_run += drafts.len() * (self.model.shape().len() - from.0);
        for (loss, runs) in &mut found {
            *loss = self.objective(&self.batches[..runs.len()], *loss, runs)?;
        }
        Ok(found)
    }

    /// The same of one draft.
    fn loss_of(&mut self, draft: &Draft, from: LayerId, bound: f64) -> Result<(f64, Vec<Run>), SearchError> {
        Ok(self.losses(&[draft], from, bound)?.remove(0))
    }

    /// The objective of the runs of some batches, of whose terms `sum` is the sum if it adds up.
    fn objective(&self, batches: &[Watched], sum: f64, runs: &[Run]) -> Result<f64, CacheError> {
        if self.options.objective.adds_up() {
            return Ok(sum / tokens(batches).max(1) as f64);
        }
        let batches: Vec<&Batch> = batches.iter().map(|watched| &watched.batch).collect();
        cosine_loss(self.options.gate, &batches, runs)
    }

    /// Whether the model lets a layer, and all that would go with it, read another.
    fn may_share(&self, draft: &Draft, candidate: &Move) -> bool {
        let Move { borrower, donor, .. } = *candidate;
        let sharing = draft.sharing();
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
        let model = self.model;
        let run = |watched: &Watched| {
            let run = watched.batch.try_from_layer(model, from, &[&draft])?.remove(0);
            Ok((watched.sum(model, &run)?, run))
        };
        let (sums, held): (Vec<f64>, Vec<Run>) = in_waves(&self.held, self.options.parallel, run)?.into_iter().unzip();
        if !self.held.is_empty() {
            self.held_loss = Some(self.objective(&self.held, sums.iter().sum(), &held)?);
        }
        for (watched, run) in self.held.iter_mut().zip(held) {
            watched.batch.accept(run);
        }
        self.draft = draft;
        Ok(())
    }
}

impl Watched {
    /// The sum of the terms of an objective that adds up; 0 of another one.
    fn sum<M: SearchModel>(&self, model: &M, run: &Run) -> Result<f64, CacheError> {
        self.reference.as_ref().map_or(Ok(0.0), |reference| reference.sum(model, run))
    }
}

/// Tokens that count in an objective that adds up.
fn tokens(batches: &[Watched]) -> usize {
    batches.iter().filter_map(|watched| watched.reference.as_ref()).map(Reference::count).sum()
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
