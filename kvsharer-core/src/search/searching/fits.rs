//! Fitting the maps of a draft, layer by layer from below.

use super::super::fit::{self, Sample};
use super::super::replay::{Captured, Climb};
use super::{Searching, Watched, in_waves};
use crate::search::{Change, Draft, SearchError, SearchModel};
use crate::{Adapter, CacheError, LayerId};

/// A draft with its maps fitted.
#[derive(Clone)]
pub(super) struct Fitted {
    pub(super) draft: Draft,
    /// The first layer that differs from the accepted draft.
    pub(super) from: LayerId,
    /// The layers whose maps are new.
    pub(super) layers: Vec<LayerId>,
}

impl<M: SearchModel> Searching<'_, M> {
    /// The draft after `changes` with its maps fitted, and the first layer that differs.
    pub(super) fn fitted(&mut self, changes: &[Change]) -> Result<Fitted, SearchError> {
        let from = changes.iter().map(Change::layer).min().unwrap_or(LayerId(0));
        let (mut draft, layers) = self.draft.after(changes);
        let kv_heads = |layer: LayerId| self.model.shape().layers()[layer.0].kv_heads;
        let mut climbs = climbs(&self.batches, from);
        for &layer in &layers {
            let heads = self.heads(&draft, &mut climbs, layer)?;
            let mut adapter = self.fit_turn(&mut draft, &mut climbs, layer, heads)?;
            let captured = self.capture(&mut climbs, layer, &draft)?;
            adapter.mix = with_samples(&self.batches, &captured, layer, |samples| {
                fit::mix(self.options.fit, samples, kv_heads(layer), (self.options.ridge, self.options.rank))
            })?;
            draft.set_adapter(layer, adapter);
        }
        Ok(Fitted { draft, from, layers })
    }

    /// Gives a layer of `draft` an adapter with its heads and, if it borrows keys, their turn.
    fn fit_turn(
        &mut self,
        draft: &mut Draft,
        climbs: &mut [Climb],
        layer: LayerId,
        heads: Option<Vec<usize>>,
    ) -> Result<Adapter, SearchError> {
        let mut adapter = Adapter { heads, ..Adapter::default() };
        draft.set_adapter(layer, adapter.clone());
        if draft.wanted(layer).keys && self.model.turns_fold() {
            let captured = self.capture(climbs, layer, draft)?;
            let turn = |samples: &[Sample<'_>]| fit::turn(samples, adapter.heads.as_deref());
            adapter.turn = Some(with_samples(&self.batches, &captured, layer, turn)?);
            draft.set_adapter(layer, adapter.clone());
        }
        Ok(adapter)
    }

    /// Which heads of what it reads the groups of a layer should read, by the errors that maps head by head leave. What
    /// the layer owns itself would be stored in that order, so nobody may read it yet.
    fn heads(
        &mut self,
        draft: &Draft,
        climbs: &mut [Climb],
        layer: LayerId,
    ) -> Result<Option<Vec<usize>>, SearchError> {
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
            self.fit_turn(&mut trial, climbs, layer, Some(order.clone()))?;
            let captured = self.capture(climbs, layer, &trial)?;
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

    /// What a fit of `layer` needs of every batch, each of which goes up to it.
    fn capture(&mut self, climbs: &mut [Climb], layer: LayerId, draft: &Draft) -> Result<Vec<Captured>, CacheError> {
        self.found.layers_run += climbs.first().map_or(0, |climb| layer.0 + 1 - climb.from().0);
        let model = self.model;
        let captured = in_waves(climbs, self.options.parallel, |climb| climb.capture(model, layer, draft))?;
        let take = |(climb, (captured, run)): (&mut Climb, (Captured, _))| {
            climb.advance(layer, run);
            captured
        };
        Ok(climbs.iter_mut().zip(captured).map(take).collect())
    }

    /// Names fitted maps that are new, and the share of variance the maps of the changed layers leave unexplained.
    pub(super) fn note_fits(
        &mut self,
        draft: &Draft,
        layers: &[LayerId],
        from: LayerId,
    ) -> Result<Option<f64>, SearchError> {
        self.names.retain(|layer, _| draft.adapter(*layer).is_some());
        let mut worst = None;
        let mut climbs = climbs(&self.held, from);
        for &layer in layers {
            let Some(adapter) = draft.adapter(layer) else { continue };
            let name = format!("step{}.layer{layer}", self.found.steps.len());
            self.names.insert(layer, name.clone());
            self.found.adapters.insert(name, adapter.clone());
            if !self.held.is_empty() {
                let captured = self.capture(&mut climbs, layer, draft)?;
                let residual = with_samples(&self.held, &captured, layer, |s| fit::residual(adapter.mix.as_ref(), s))?;
                worst = Some(worst.map_or(residual, |worst: f64| worst.max(residual)));
            }
        }
        Ok(worst)
    }
}

fn climbs(batches: &[Watched], from: LayerId) -> Vec<Climb> {
    batches.iter().map(|watched| watched.batch.climb(from)).collect()
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
