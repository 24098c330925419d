//! What happens to the tokens of a group around a forward pass: room is made before, tokens are evicted after.

use super::Cache;
use crate::attend::Fresh;
use crate::store::Kept;
use crate::{CacheError, Eviction, Group, GroupId, GroupState, Kv, Plan, Positions, SlotId, Stack, axis};
use burn::tensor::{Int, Tensor, TensorData};

/// Which tokens a group keeps, and where.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupCells {
    /// Cells in order of age, the oldest first.
    pub(super) by_age: Vec<usize>,
    /// Text position of each token, in order of age; per row and head once a `Keep` has run.
    pub(super) kept: KeptTokens,
    /// Where the tokens of the running forward pass go.
    pub(super) fresh: Option<Fresh>,
    pub(super) in_flight: bool,
    /// Tokens evicted behind the sinks: the positions by which the sinks have to be turned.
    pub(super) gap: usize,
    /// By how many the stored sinks are turned.
    pub(super) turned: usize,
}

/// Positions of the tokens a group keeps, oldest first.
#[derive(Clone, Debug)]
pub enum KeptTokens {
    /// The same in every row and head.
    Uniform(Vec<usize>),
    /// `[batch, kv_head, token]`.
    PerHead(Tensor<3, Int>),
}

impl Default for KeptTokens {
    fn default() -> Self {
        Self::Uniform(Vec::new())
    }
}

impl Cache<'_> {
    /// Lets the evictors of a group answer, then sets cells aside for `tokens` tokens: freed cells first, so that a
    /// full cache moves no data.
    pub(super) fn make_room(&mut self, id: GroupId, tokens: usize) -> Result<(), CacheError> {
        let capacity = self.capacity(id);
        let mut freed = Vec::new();
        for evictor in self.plan.group(id).evictors.clone() {
            let eviction = self.ask(id, evictor, tokens);
            let len = self.groups[id.0].by_age.len();
            match eviction {
                Eviction::Span { start, end } if start < end && end <= len && freed.len() + end - start <= tokens => {
                    freed.extend(self.drop_span(id, start, end, evictor)?);
                }
                // More goes than comes: no cell may stay empty, so the rest moves together.
                other => {
                    self.close_gaps(id, std::mem::take(&mut freed).len());
                    self.compact(id, evictor, other)?;
                }
            }
        }
        self.turn_sinks(id)?;
        let cells = &mut self.groups[id.0];
        let high = cells.by_age.len() + freed.len();
        let grown = tokens.saturating_sub(freed.len());
        let place = if high + grown <= capacity {
            cells.in_flight = false;
            freed.into_iter().chain(high..).take(tokens).collect()
        } else {
            self.close_gaps(id, freed.len());
            let cells = &mut self.groups[id.0];
            let len = cells.by_age.len();
            cells.in_flight = true;
            (len..len + tokens).collect()
        };
        self.groups[id.0].fresh = Some(Fresh::new(place));
        Ok(())
    }

    /// Moves what a group keeps to the front if `freed` cells stand empty between.
    fn close_gaps(&mut self, id: GroupId, freed: usize) {
        let cells = &mut self.groups[id.0];
        if freed == 0 && cells.by_age.is_sorted() {
            return;
        }
        let (len, kept) = (cells.by_age.len(), Kept::Cells(std::mem::take(&mut cells.by_age)));
        cells.by_age = (0..len).collect();
        for &slot in &self.plan.group(id).slots {
            self.store.keep(slot, len + freed, &kept);
        }
    }

    fn ask(&mut self, id: GroupId, evictor: usize, incoming: usize) -> Eviction {
        let group = self.plan.group(id);
        let state = GroupState {
            len: self.groups[id.0].by_age.len(),
            incoming,
            capacity: group.capacity(self.options.tokens),
            seen: self.positions.end,
        };
        self.stack.member_mut(evictor).evict(group, &state)
    }

    /// Forgets the tokens `start..end` by age and returns their cells.
    fn drop_span(&mut self, id: GroupId, start: usize, end: usize, evictor: usize) -> Result<Vec<usize>, CacheError> {
        let group = self.plan.group(id);
        let cells = &mut self.groups[id.0];
        if let Positions::CacheSlot { sinks } = group.positions {
            if start != sinks {
                let what = format!(
                    "evicts tokens {start}..{end}, but with cache-slot positions a span must start behind the {sinks} sinks"
                );
                return Err(bad_eviction(group, &self.stack, evictor, what));
            }
            if cells.gap == 0 {
                for slot in key_slots(&self.plan, group) {
                    self.store.save_sinks(slot, &cells.by_age[..sinks]);
                }
            }
            cells.gap += end - start;
        }
        match &mut cells.kept {
            KeptTokens::Uniform(kept) => drop(kept.drain(start..end)),
            KeptTokens::PerHead(kept) => {
                let len = kept.dims()[2];
                let parts = [0..start, end..len].into_iter().filter(|part| !part.is_empty());
                *kept = Tensor::cat(parts.map(|part| kept.clone().slice_dim(2, part)).collect(), 2);
            }
        }
        Ok(cells.by_age.drain(start..end).collect())
    }

    /// Carries out an eviction by moving what stays to the front of every slot of the group.
    fn compact(&mut self, id: GroupId, evictor: usize, eviction: Eviction) -> Result<(), CacheError> {
        let len = self.groups[id.0].by_age.len();
        let bad = |cache: &Self, what: String| bad_eviction(cache.plan.group(id), &cache.stack, evictor, what);
        let (kept, count) = match eviction {
            Eviction::Nothing => return Ok(()),
            Eviction::Span { start, end } if start == end && end <= len => return Ok(()),
            Eviction::Span { start, end } => {
                if start > end || end > len {
                    return Err(bad(self, format!("evicts tokens {start}..{end} of {len}")));
                }
                self.drop_span(id, start, end, evictor)?;
                let kept = self.groups[id.0].by_age.clone();
                let count = kept.len();
                (Kept::Cells(kept), count)
            }
            Eviction::Keep(keep) => {
                let group = self.plan.group(id);
                let [batch, heads, count] = keep.dims();
                if [batch, heads] != [self.options.batch, group.kv_heads] || count > len {
                    let what = format!(
                        "keeps {:?} of {len} cells, expected [batch {}, kv_heads {}, at most {len}]",
                        keep.dims(),
                        self.options.batch,
                        group.kv_heads
                    );
                    return Err(bad(self, what));
                }
                if group.positions != Positions::Original {
                    return Err(bad(self, "keeps tokens by head, which cache-slot positions do not support".into()));
                }
                let kept = self.positions_by_cell(id).gather(2, keep.clone());
                self.groups[id.0].kept = KeptTokens::PerHead(kept);
                (Kept::PerHead(keep), count)
            }
        };
        for &slot in &self.plan.group(id).slots {
            self.store.keep(slot, len, &kept);
        }
        self.groups[id.0].by_age = (0..count).collect();
        Ok(())
    }

    /// Text positions of a group's cells, `[batch, kv_head, cell]`.
    fn positions_by_cell(&self, id: GroupId) -> Tensor<3, Int> {
        let cells = &self.groups[id.0];
        let shape = [self.options.batch, self.plan.group(id).kv_heads, cells.by_age.len()];
        match &cells.kept {
            KeptTokens::PerHead(kept) => kept.clone(),
            KeptTokens::Uniform(kept) => {
                let mut by_cell = vec![0_i64; kept.len()];
                for (&cell, &position) in cells.by_age.iter().zip(kept) {
                    by_cell[cell] = position as i64;
                }
                Tensor::<1, Int>::from_data(TensorData::from(&by_cell[..]), &self.device)
                    .reshape([1, 1, shape[2]])
                    .expand(shape)
            }
        }
    }

    /// Writes the sinks of a group at their cache-slot positions, if something was evicted behind them.
    fn turn_sinks(&mut self, id: GroupId) -> Result<(), CacheError> {
        let cells = &mut self.groups[id.0];
        if cells.gap == cells.turned {
            return Ok(());
        }
        let Some(rope) = &self.options.rope else {
            return Err(CacheError::Unsupported("cache-slot positions without the model's rotary encoding"));
        };
        cells.turned = cells.gap;
        for slot in key_slots(&self.plan, self.plan.group(id)) {
            if let Some(originals) = self.store.sinks(slot).cloned() {
                let sinks = &cells.by_age[..originals.dims()[axis::CELL]];
                self.store.write(slot, sinks, rope.advance(originals, cells.gap));
            }
        }
        Ok(())
    }

    /// After the last reader: the new tokens count as cached, evictors reduce, tokens in flight land.
    pub(super) fn settle(&mut self, id: GroupId) -> Result<(), CacheError> {
        let cells = &mut self.groups[id.0];
        let Some(fresh) = cells.fresh.take() else {
            return Ok(());
        };
        cells.by_age.extend(fresh.cells());
        match &mut cells.kept {
            KeptTokens::Uniform(kept) => kept.extend(self.positions.clone()),
            KeptTokens::PerHead(kept) => {
                let [batch, heads, _] = kept.dims();
                let range = self.positions.start as i64..self.positions.end as i64;
                let new = Tensor::<1, Int>::arange(range, &self.device).reshape([1, 1, fresh.len()]);
                *kept = Tensor::cat(vec![kept.clone(), new.expand([batch, heads, fresh.len()])], 2);
            }
        }
        for evictor in self.plan.group(id).evictors.clone() {
            let eviction = self.ask(id, evictor, 0);
            self.compact(id, evictor, eviction)?;
        }
        let (len, capacity) = (self.groups[id.0].by_age.len(), self.capacity(id));
        if len > capacity {
            let group = self.plan.group(id);
            let what = format!("leaves {len} tokens where it asked for {capacity} cells");
            return Err(bad_eviction(group, &self.stack, group.evictors[0], what));
        }
        self.groups[id.0].in_flight = false;
        for &slot in &self.plan.group(id).slots {
            self.store.land(slot);
        }
        Ok(())
    }
}

fn key_slots<'a>(plan: &'a Plan, group: &'a Group) -> impl Iterator<Item = SlotId> + 'a {
    group.slots.iter().copied().filter(|&slot| plan.slot(slot).kind == Kv::Key)
}

fn bad_eviction(group: &Group, stack: &Stack<'_>, evictor: usize, what: String) -> CacheError {
    CacheError::BadEviction {
        layer: group.first(),
        policy: stack.members().nth(evictor).map_or_else(String::new, |policy| policy.name()),
        what,
    }
}
