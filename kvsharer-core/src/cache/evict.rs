//! Carrying out evictions, before a forward pass and after its last reader.

use super::Cache;
use super::arrange::arrange;
use super::group::{KeptTokens, Place};
use crate::policy::Tokens;
use crate::store::Kept;
use crate::{CacheError, EMPTY, Eviction, GroupId, GroupState, PADDING, Positions, Storage, axis};
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
            capacity: group.capacity(self.options.lengths()),
            seen: if incoming > 0 { pass.start } else { pass.end },
            pass: pass.len(),
            prompt: self.prompt,
            padding: &self.padding,
            tokens: Tokens {
                kept: &cells.kept,
                by_age: &cells.by_age,
                shape: [self.options.batch, group.kv_heads],
                device: &self.device,
            },
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
            if self.groups[id.0].gap == 0 && group.storage == Storage::Full {
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

    /// Moves what a group keeps together if there are empty cells.
    pub(super) fn close(&mut self, id: GroupId) -> Result<(), CacheError> {
        let (before, after) = self.quantised(id);
        let cells = &mut self.groups[id.0];
        if !cells.is_uniform() {
            if cells.empty == 0 {
                return Ok(());
            }
            let keep = self.live_by_head(id, |live| {
                let ordered: Vec<usize> = live.iter().map(|&(_, cell)| cell).collect();
                *live = arrange(&ordered, before, after).into_iter().map(|cell| (0, cell)).collect();
            })?;
            return self.keep(id, keep);
        }
        if cells.empty == 0 && cells.by_age.is_sorted() {
            return Ok(());
        }
        let mut live = cells.by_age.clone();
        if before > 0 {
            live.sort_unstable();
        }
        let from = arrange(&live, before, after);
        let mut moved = vec![0; cells.cells];
        from.iter().enumerate().for_each(|(to, &cell)| moved[cell] = to);
        cells.by_age.iter_mut().for_each(|cell| *cell = moved[*cell]);
        let len = std::mem::replace(&mut cells.cells, from.len());
        (cells.empty, cells.freed) = (0, None);
        let kept = Kept::Cells(from.clone());
        for &slot in &self.plan.group(id).slots {
            self.store.keep(slot, len, &kept);
        }
        if !from.is_empty() {
            let shape = [self.options.batch, self.plan.group(id).kv_heads, from.len()];
            let from: Vec<i64> = from.into_iter().map(|cell| cell as i64).collect();
            let from = Tensor::<1, Int>::from_data(TensorData::from(&from[..]), &self.device);
            self.tell_evictors(id, &from.reshape([1, 1, shape[2]]).expand(shape));
        }
        Ok(())
    }

    /// Moves the tokens in the cells `keep` to the front of every slot of the group; the rest is gone.
    fn keep(&mut self, id: GroupId, keep: Tensor<3, Int>) -> Result<(), CacheError> {
        let positions = self.by_head(id)?;
        if let Some(turn) = self.groups[id.0].turn.take() {
            self.groups[id.0].turn = Some(self.turn_after(positions.clone(), turn, keep.clone())?);
        }
        let cells = &mut self.groups[id.0];
        cells.kept = KeptTokens::PerHead(positions.gather(2, keep.clone()));
        let len = std::mem::replace(&mut cells.cells, keep.dims()[2]);
        (cells.empty, cells.freed) = (0, None);
        let kept = Kept::PerHead(keep.clone());
        for &slot in &self.plan.group(id).slots {
            self.store.keep(slot, len, &kept);
        }
        self.tell_evictors(id, &keep);
        Ok(())
    }

    fn tell_evictors(&mut self, id: GroupId, from: &Tensor<3, Int>) {
        let group = self.plan.group(id);
        for &evictor in &group.evictors {
            self.stack.member_mut(evictor).rearrange(group, from);
        }
    }

    /// From now on tokens are noted by row and head: text positions of the cells, `[batch, kv_head, cell]`.
    fn by_head(&mut self, id: GroupId) -> Result<Tensor<3, Int>, CacheError> {
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

    /// Turns of the kept cells: each key moves up by the number of younger tokens that left.
    fn turn_after(
        &self,
        positions: Tensor<3, Int>,
        turn: Tensor<3, Int>,
        keep: Tensor<3, Int>,
    ) -> Result<Tensor<3, Int>, CacheError> {
        let [_, _, cells] = positions.dims();
        let shape = keep.dims();
        let (positions, turn, keep) = (to_host(positions)?, to_host(turn)?, to_host(keep)?);
        let heads = positions.chunks(cells).zip(turn.chunks(cells)).zip(keep.chunks(shape[2]));
        let turned = heads.flat_map(|((positions, turn), keep)| {
            let mut left: Vec<i64> = positions.to_vec();
            keep.iter().for_each(|&cell| left[cell as usize] = EMPTY);
            left.retain(|&position| position >= 0);
            left.sort_unstable();
            let younger = move |position: i64| left.len() - left.partition_point(|&p| p < position);
            let turned = |&cell: &i64| turn[cell as usize] + younger(positions[cell as usize]) as i64;
            keep.iter().map(turned).collect::<Vec<i64>>()
        });
        Ok(Tensor::from_data(TensorData::new(turned.collect::<Vec<i64>>(), shape), &self.device))
    }

    /// Cells that stand quantised now, and how many will when the gaps are closed.
    fn quantised(&self, id: GroupId) -> (usize, usize) {
        let group = self.plan.group(id);
        match group.storage {
            Storage::Full => (0, 0),
            Storage::Quantised(codec) => {
                (self.store.quantised(group.slots[0]), codec.quantised_cells(self.groups[id.0].len()))
            }
        }
    }

    /// The same cells; if they stand quantised, ordered so that they stay in their blocks.
    fn arranged(&self, id: GroupId, keep: Tensor<3, Int>) -> Result<Tensor<3, Int>, CacheError> {
        let Storage::Quantised(codec) = self.plan.group(id).storage else {
            return Ok(keep);
        };
        let shape = keep.dims();
        let (before, after) = (self.quantised(id).0, codec.quantised_cells(shape[2]));
        let ordered = to_host(keep)?;
        let ordered = ordered.chunks(shape[2]).flat_map(|head| {
            let mut live: Vec<usize> = head.iter().map(|&cell| cell as usize).collect();
            live.sort_unstable();
            arrange(&live, before, after)
        });
        let ordered: Vec<i64> = ordered.map(|cell| cell as i64).collect();
        Ok(Tensor::from_data(TensorData::new(ordered, shape), &self.device))
    }

    /// Cells that hold something, `[batch, kv_head, live]`, after `edit` had its way with each head's `(position,
    /// cell)` in order of cells. All heads must end up with as many.
    fn live_by_head(
        &mut self,
        id: GroupId,
        edit: impl Fn(&mut Vec<(i64, usize)>),
    ) -> Result<Tensor<3, Int>, CacheError> {
        let positions = self.by_head(id)?;
        let [batch, heads, cells] = positions.dims();
        let mut live = Vec::new();
        for head in to_host(positions)?.chunks(cells) {
            let mut head: Vec<(i64, usize)> = head.iter().copied().zip(0..).filter(|&(p, _)| p != EMPTY).collect();
            edit(&mut head);
            live.extend(head.into_iter().map(|(_, cell)| cell as i64));
        }
        let count = live.len() / (batch * heads);
        Ok(Tensor::from_data(TensorData::new(live, [batch, heads, count]), &self.device))
    }

    /// Writes the sinks of a group at their cache-slot positions, if something was evicted behind them.
    pub(super) fn turn_sinks(&mut self, id: GroupId) -> Result<(), CacheError> {
        let cells = &self.groups[id.0];
        if cells.gap == cells.turned {
            return Ok(());
        }
        let Some(rope) = &self.options.rope else {
            return Err(CacheError::Unsupported("cache-slot positions without the model's rotary encoding"));
        };
        for slot in self.key_slots(id) {
            if let Some(originals) = self.store.sinks(slot).cloned() {
                let sinks = &cells.by_age[..originals.dims()[axis::CELL]];
                self.store.write(slot, sinks, rope.advance(originals, cells.gap));
            }
        }
        self.groups[id.0].turned = self.groups[id.0].gap;
        Ok(())
    }

    /// After the last reader: the new tokens count as cached, evictors reduce, tokens in flight land.
    pub(super) fn settle(&mut self, id: GroupId) -> Result<(), CacheError> {
        let pass = self.positions.clone();
        let Some(place) = self.groups[id.0].place.take() else {
            return Ok(());
        };
        self.note(id, &place);
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
            return Err(self.bad_eviction(id, group.evictors[0], what));
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
    fn note(&mut self, id: GroupId, place: &Place) {
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
        let policy = self.stack.members().nth(evictor).map_or_else(String::new, |policy| policy.name());
        CacheError::BadEviction { layer: self.plan.group(id).first(), policy, what }
    }
}

fn to_host(tensor: Tensor<3, Int>) -> Result<Vec<i64>, CacheError> {
    tensor.try_into_vec_as::<i64>().map_err(|error| CacheError::Device(error.to_string()))
}
