//! Moving what a group keeps together, in every slot alike.

use super::Cache;
use super::arrange::arrange;
use super::group::GroupCells;
use crate::store::Kept;
use crate::{CacheError, EMPTY, GroupId, KeptTokens, Storage};
use burn::tensor::{Int, Tensor, TensorData};

impl Cache<'_> {
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
        self.move_cells(id, len, &Kept::Cells(from.clone()));
        let shape = [self.options.batch, self.plan.group(id).kv_heads, from.len()];
        let from: Vec<i64> = from.into_iter().map(|cell| cell as i64).collect();
        let from = Tensor::<3, Int>::from_data(TensorData::new(from, [1, 1, shape[2]]), &self.device);
        // Nothing to expand if nothing is left.
        let from = if shape[2] == 0 { Tensor::empty(shape, &self.device) } else { from.expand(shape) };
        self.tell_evictors(id, &from, len);
        Ok(())
    }

    /// Moves the tokens in the cells `keep` to the front of every slot of the group; the rest is gone.
    pub(super) fn keep(&mut self, id: GroupId, keep: Tensor<3, Int>) -> Result<(), CacheError> {
        if keep.dims()[2] == 0 {
            let GroupCells { in_flight, cells, .. } = self.groups[id.0];
            self.move_cells(id, cells, &Kept::Cells(Vec::new()));
            self.groups[id.0] = GroupCells { in_flight, ..GroupCells::default() };
            self.tell_evictors(id, &keep, cells);
            return Ok(());
        }
        let positions = self.by_head(id)?;
        if let Some(turn) = self.groups[id.0].turn.take() {
            self.groups[id.0].turn = Some(self.turn_after(positions.clone(), turn, keep.clone())?);
        }
        let cells = &mut self.groups[id.0];
        cells.kept = KeptTokens::PerHead(positions.gather(2, keep.clone()));
        let len = std::mem::replace(&mut cells.cells, keep.dims()[2]);
        (cells.empty, cells.freed) = (0, None);
        self.move_cells(id, len, &Kept::PerHead(keep.clone()));
        self.tell_evictors(id, &keep, len);
        Ok(())
    }

    fn move_cells(&mut self, id: GroupId, cells: usize, kept: &Kept) {
        for &slot in &self.plan.group(id).slots {
            self.store.keep(slot, cells, kept);
        }
    }

    fn tell_evictors(&mut self, id: GroupId, from: &Tensor<3, Int>, cells: usize) {
        let group = self.plan.group(id);
        for &evictor in &group.evictors {
            self.stack.member_mut(evictor).rearrange(group, from, cells);
        }
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
    pub(super) fn arranged(&self, id: GroupId, keep: Tensor<3, Int>) -> Result<Tensor<3, Int>, CacheError> {
        let Storage::Quantised(codec) = self.plan.group(id).storage else {
            return Ok(keep);
        };
        let shape = keep.dims();
        if shape[2] == 0 {
            return Ok(keep);
        }
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
    pub(super) fn live_by_head(
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
}

fn to_host(tensor: Tensor<3, Int>) -> Result<Vec<i64>, CacheError> {
    tensor.try_into_vec_as::<i64>().map_err(|error| CacheError::Device(error.to_string()))
}
