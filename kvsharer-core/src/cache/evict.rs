//! Carrying out evictions, before a forward pass and after its last reader.

use super::Cache;
use super::group::{KeptTokens, Place};
use crate::{CacheError, EMPTY, Eviction, GroupId, GroupState, PADDING, Positions, Storage};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use std::ops::Range;

impl Cache<'_> {
    pub(super) fn ask(&mut self, id: GroupId, evictor: usize, pass: &Range<usize>, incoming: usize) -> Eviction {
        let group = self.plan.group(id);
        let cells = &self.groups[id.0];
        let state = GroupState {
            len: cells.len(),
            cells: cells.cells,
            incoming,
            capacity: self.capacities[id.0],
            seen: if incoming > 0 { pass.start } else { pass.end },
            pass: pass.len(),
            prompt: self.prompt,
            padding: &self.padding,
            visible_from: group.window.map_or(0, |window| {
                let next = if incoming > 0 { pass.start } else { pass.end };
                (next + 1).saturating_sub(window)
            }),
            tokens: cells.tokens([self.options.batch, group.kv_heads], &self.device),
        };
        self.stack.member_mut(evictor).evict(group, &state)
    }

    /// Carries out an answer.
    pub(super) fn carry_out(&mut self, id: GroupId, evictor: usize, eviction: Eviction) -> Result<(), CacheError> {
        match eviction {
            Eviction::Nothing => Ok(()),
            Eviction::Span { start, end } if self.groups[id.0].is_uniform() => {
                self.drop_span(id, start, end, evictor)?;
                match self.plan.group(id).storage {
                    Storage::Quantised(_) if !self.groups[id.0].in_flight => Ok(()),
                    _ => self.close(id),
                }
            }
            Eviction::Span { start, end } => {
                self.check_span(id, start, end, evictor)?;
                let keep = self.live_by_head(id, |live| {
                    live.sort_by_key(|&(position, cell)| (position, cell));
                    live.drain(start..end);
                })?;
                self.keep(id, keep)
            }
            Eviction::Keep(keep) => {
                self.check_cells(id, evictor, &keep, "keeps")?;
                let keep = self.arranged(id, keep)?;
                self.keep(id, keep)
            }
            Eviction::Drop(dropped) => {
                self.check_cells(id, evictor, &dropped, "drops")?;
                self.drop_cells(id, dropped)
            }
        }
    }

    /// Forgets the tokens `start..end` by age and returns their cells, which are empty now.
    pub(super) fn drop_span(
        &mut self,
        id: GroupId,
        start: usize,
        end: usize,
        evictor: usize,
    ) -> Result<Vec<usize>, CacheError> {
        self.check_span(id, start, end, evictor)?;
        if start == end {
            return Ok(Vec::new());
        }
        let group = self.plan.group(id);
        if let Positions::CacheSlot { sinks } = group.positions {
            if start != sinks {
                let what = format!(
                    "evicts tokens {start}..{end}, but with cache-slot positions a span must start behind the {sinks} sinks"
                );
                return Err(self.bad_eviction(id, evictor, what));
            }
            if sinks > 0 && self.groups[id.0].gap == 0 && group.storage == Storage::Full {
                for slot in self.key_slots(id) {
                    self.store.save_sinks(slot, &self.groups[id.0].by_age[..sinks]);
                }
            }
            self.groups[id.0].gap += end - start;
        }
        let cells = &mut self.groups[id.0];
        if let KeptTokens::Uniform(kept) = &mut cells.kept {
            kept.drain(start..end);
        }
        cells.empty += end - start;
        Ok(cells.by_age.drain(start..end).collect())
    }

    /// Empties cells; the next tokens may fill them.
    fn drop_cells(&mut self, id: GroupId, dropped: Tensor<3, Int>) -> Result<(), CacheError> {
        let positions = self.by_head(id)?;
        let [batch, heads, count] = dropped.dims();
        let gone = positions.clone().gather(2, dropped.clone());
        let cells = &mut self.groups[id.0];
        if let Some(turn) = &mut cells.turn {
            let pairs = [batch, heads, cells.cells, count];
            let older = positions.clone().unsqueeze_dim::<4>(3).expand(pairs);
            let younger = gone.unsqueeze_dim::<4>(2).expand(pairs);
            *turn = turn.clone() + older.lower(younger).int().sum_dim(3).squeeze_dim::<3>(3);
        }
        let empty = Tensor::full([batch, heads, count], EMPTY, &self.device);
        cells.kept = KeptTokens::PerHead(positions.scatter(2, dropped.clone(), empty, IndexingUpdateOp::Assign));
        cells.empty += count;
        cells.freed = Some(match cells.freed.take() {
            Some(before) => Tensor::cat(vec![before, dropped], 2),
            None => dropped,
        });
        if self.groups[id.0].in_flight { self.close(id) } else { Ok(()) }
    }

    /// From now on tokens are noted by row and head: text positions of the cells, `[batch, kv_head, cell]`.
    pub(super) fn by_head(&mut self, id: GroupId) -> Result<Tensor<3, Int>, CacheError> {
        let positions = self.tokens(id).positions(self.groups[id.0].cells);
        let slots = self.plan.group(id).positions != Positions::Original;
        let cells = &mut self.groups[id.0];
        if cells.gap > 0 {
            return Err(CacheError::Unsupported("evictions by head after spans under cache-slot positions"));
        }
        if slots && cells.turn.is_none() {
            cells.turn = Some(Tensor::zeros(positions.dims(), &self.device));
        }
        cells.kept = KeptTokens::PerHead(positions.clone());
        cells.by_age.clear();
        Ok(positions)
    }

    /// After the last reader: the new tokens count as cached, evictors reduce, tokens in flight land.
    pub(super) fn settle(&mut self, id: GroupId) -> Result<(), CacheError> {
        let pass = self.positions.clone();
        let Some(place) = self.groups[id.0].place.take() else {
            return Ok(());
        };
        self.note(id, &place);
        if self.groups[id.0].in_flight && self.plan.group(id).window.is_some() {
            // What no later token sees need not land.
            self.slide(id, pass.end)?;
            self.close(id)?;
        }
        for evictor in self.plan.group(id).evictors.clone() {
            let eviction = self.ask(id, evictor, &pass, 0);
            self.carry_out(id, evictor, eviction)?;
        }
        let group = self.plan.group(id);
        if group.waits() && pass.end < self.prompt {
            return Ok(());
        }
        let (cells, capacity) = (&self.groups[id.0], self.capacity(id));
        if cells.cells > capacity {
            let what = format!("leaves {} tokens where it asked for {capacity} cells", cells.len());
            return Err(self.bad_eviction(id, group.evictors.first().copied().unwrap_or(usize::MAX), what));
        }
        if cells.in_flight {
            for &slot in &group.slots {
                self.store.land(slot);
            }
            self.groups[id.0].in_flight = false;
        }
        Ok(())
    }

    /// Notes the positions of the tokens of the running forward pass.
    pub(super) fn note(&mut self, id: GroupId, place: &Place) {
        let pass = self.positions.clone();
        let [batch, heads] = [self.options.batch, self.plan.group(id).kv_heads];
        let cells = &mut self.groups[id.0];
        let new_cells: Vec<usize> = match place {
            Place::Cells(fresh) => fresh.cells().to_vec(),
            Place::InFlight => (cells.cells..cells.width).collect(),
            Place::PerHead(_) => Vec::new(),
        };
        cells.cells = cells.width;
        let padded = pass.start == 0 && !self.padding.is_empty();
        let padding = &self.padding;
        let new = || {
            let pad = |row: usize| if padded { padding[row] } else { 0 };
            let row = |row: usize| pass.clone().map(move |p| if p < pad(row) { PADDING } else { p as i64 });
            let new: Vec<i64> = (0..batch).flat_map(row).collect();
            let new = Tensor::<3, Int>::from_data(TensorData::new(new, [batch, 1, pass.len()]), &self.device);
            new.expand([batch, heads, pass.len()])
        };
        match &mut cells.kept {
            KeptTokens::Uniform(_) if padded => cells.kept = KeptTokens::PerHead(new()),
            KeptTokens::Uniform(kept) => {
                kept.extend(pass.clone());
                cells.by_age.extend(new_cells);
            }
            KeptTokens::PerHead(positions) if !new_cells.is_empty() => {
                *positions = Tensor::cat(vec![positions.clone(), new()], 2);
                if let Some(turn) = &mut cells.turn {
                    let none = Tensor::zeros([batch, heads, pass.len()], &self.device);
                    *turn = Tensor::cat(vec![turn.clone(), none], 2);
                }
            }
            KeptTokens::PerHead(_) => {}
        }
    }

    fn check_span(&self, id: GroupId, start: usize, end: usize, evictor: usize) -> Result<(), CacheError> {
        let len = self.groups[id.0].len();
        if start <= end && end <= len {
            return Ok(());
        }
        Err(self.bad_eviction(id, evictor, format!("evicts tokens {start}..{end} of {len}")))
    }

    fn check_cells(&self, id: GroupId, evictor: usize, found: &Tensor<3, Int>, verb: &str) -> Result<(), CacheError> {
        let (len, [batch, heads, count]) = (self.groups[id.0].len(), found.dims());
        let kv_heads = self.plan.group(id).kv_heads;
        if [batch, heads] == [self.options.batch, kv_heads] && count <= len {
            return Ok(());
        }
        let shape = found.dims();
        let rows = self.options.batch;
        let what =
            format!("{verb} {shape:?} of {len} cells, expected [batch {rows}, kv_heads {kv_heads}, at most {len}]");
        Err(self.bad_eviction(id, evictor, what))
    }

    fn bad_eviction(&self, id: GroupId, evictor: usize, what: String) -> CacheError {
        let policy = self.stack.members().nth(evictor).map_or_else(|| "window".into(), |policy| policy.name());
        CacheError::BadEviction { layer: self.plan.group(id).first(), policy, what }
    }
}
