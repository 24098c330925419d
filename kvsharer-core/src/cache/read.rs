//! What a layer reads: keys where they are to stand, and the cells it may look at.

use super::Cache;
use crate::attend::{Hidden, Window};
use crate::cache::group::{KeptTokens, Place};
use crate::{CacheError, EvidenceKind, GroupId, PADDING, Positions, Storage, axis};
use burn::tensor::{Int, Tensor, TensorData};

impl Cache<'_> {
    /// Positions of a group's cells, fresh ones included, if there are cells nobody may look at, or those that a
    /// window hides differ by row and head; `None` if not.
    pub(super) fn hidden(&mut self, id: GroupId) -> Option<Hidden> {
        let windowed = self.plan.groups().iter().any(|group| group.window.is_some());
        if self.plan.evicts() || windowed {
            return self.hidden_cells(id);
        }
        // Nothing but padding: the same for all groups of one shape.
        let key = (self.plan.group(id).kv_heads, self.groups[id.0].width);
        if let Some(hidden) = self.padded.get(&key) {
            return Some(hidden.clone());
        }
        let hidden = Hidden { everywhere: true, ..self.hidden_cells(id)? };
        self.padded.insert(key, hidden.clone());
        Some(hidden)
    }

    fn hidden_cells(&self, id: GroupId) -> Option<Hidden> {
        let cells = &self.groups[id.0];
        let [batch, heads] = [self.options.batch, self.plan.group(id).kv_heads];
        let window = self.plan.group(id).window;
        let slides_by_head = window.is_some() && !cells.is_uniform();
        if cells.empty == 0 && self.padding.is_empty() && !slides_by_head {
            return None;
        }
        let start = self.positions.start;
        let old = (cells.cells > 0).then(|| self.tokens(id).positions(cells.cells));
        let appended = cells.width - cells.cells;
        let new = (appended > 0).then(|| {
            let pad = |row: usize| if start == 0 { self.padding.get(row).copied().unwrap_or(0) } else { 0 };
            let position = |row, i| if i < pad(row) { PADDING } else { (start + i) as i64 };
            let new: Vec<i64> = (0..batch).flat_map(|row| (0..appended).map(move |i| position(row, i))).collect();
            let new = TensorData::new(new, [batch, 1, appended]);
            Tensor::<3, Int>::from_data(new, &self.device).expand([batch, heads, appended])
        });
        let parts: Vec<Tensor<3, Int>> = [old, new].into_iter().flatten().collect();
        Some(Hidden { positions: Tensor::cat(parts, 2), start, window, everywhere: false })
    }

    /// What the window of a group hides from several new tokens, where all rows and heads keep the same ones. A single
    /// token sees all that is left: what had left its window was dropped before.
    pub(super) fn window(&self, id: GroupId) -> Option<Window> {
        let (size, cells) = (self.plan.group(id).window?, &self.groups[id.0]);
        let (KeptTokens::Uniform(kept), Some(Place::Cells(_) | Place::InFlight)) = (&cells.kept, &cells.place) else {
            return None;
        };
        if self.positions.len() == 1 || self.positions.end <= size {
            return None;
        }
        let mut behind = vec![0; cells.cells];
        for (&cell, &position) in cells.by_age.iter().zip(kept) {
            behind[cell] = self.positions.start - position;
        }
        Some(Window::new(size, behind))
    }

    /// What each query of the running pass counts for in the key mass, as the evictor that asks for it says.
    pub(super) fn weights(&self, id: GroupId) -> Option<Vec<f32>> {
        let group = self.plan.group(id);
        let evictors = group.evictors.iter().filter_map(|&evictor| self.stack.members().nth(evictor));
        let mut asking = evictors.filter(|policy| policy.evidence(group) == EvidenceKind::KeyMass);
        asking.next().and_then(|policy| policy.weights(group, self.positions.clone(), self.prompt))
    }

    /// Keys as they are to be read: turned to their cache slots where that was not done when they were stored.
    pub(super) fn turned(&mut self, id: GroupId, keys: Tensor<4>) -> Result<Tensor<4>, CacheError> {
        let group = self.plan.group(id);
        let cells = &self.groups[id.0];
        let late_sinks = cells.gap > 0 && group.storage != Storage::Full;
        if cells.turn.is_none() && !late_sinks {
            return Ok(keys);
        }
        let Some(rope) = &self.options.rope else {
            return Err(CacheError::Unsupported("cache-slot positions without the model's rotary encoding"));
        };
        if let Some(turn) = &cells.turn {
            if self.turns.as_ref().is_none_or(|table| table.len() < self.positions.end) {
                self.turns = Some(rope.table(0..self.positions.end.next_power_of_two(), &self.device));
            }
            let [batch, heads, width, _] = keys.dims();
            let appended = width - turn.dims()[2];
            let turn = match appended {
                0 => turn.clone(),
                _ => Tensor::cat(vec![turn.clone(), Tensor::zeros([batch, heads, appended], &self.device)], 2),
            };
            return Ok(self.turns.as_ref().map_or(keys.clone(), |table| table.apply_each(keys, turn)));
        }
        let Positions::CacheSlot { sinks } = group.positions else {
            return Ok(keys);
        };
        let turn = |keys: Tensor<4>, &cell: &usize| {
            let sink = keys.clone().slice_dim(axis::CELL, cell..cell + 1);
            let [batch, heads, _, dim] = keys.dims();
            keys.slice_assign([0..batch, 0..heads, cell..cell + 1, 0..dim], rope.advance(sink, cells.gap))
        };
        Ok(cells.by_age[..sinks].iter().fold(keys, turn))
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
}
