//! All a model sees of the cache: `begin`, then `attend` once for every layer.

use crate::attend::{Fresh, MaskCache, attend};
use crate::store::{Kept, Store};
use crate::{
    CacheError, Eviction, Group, GroupId, GroupState, Kv, LayerId, ModelShape, Plan, PlanError, Positions, Rope, Stack,
    axis,
};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use std::ops::Range;

/// What a decoder layer calls for its attention, whoever keeps the keys and values.
pub trait Attend {
    /// Positions of the tokens of the running forward pass, for the rotary encoding.
    fn positions(&self) -> Range<usize>;

    /// Causal attention of `layer` over everything cached and the new tokens.
    ///
    /// `key` and `value` compute the layer's own projections (keys rotated for [`positions`](Self::positions)); they
    /// are not called where the layer borrows.
    ///
    /// # Shapes
    /// `query` and result `[batch, query_head, token, head_dim]`; `key`, `value` `[batch, kv_head, token, head_dim]`.
    ///
    /// # Errors
    /// [`CacheError`] if the layer is out of turn, a shape does not fit, or the cache cannot take the tokens.
    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError>;
}

/// Sizes and types of a cache.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Sequences.
    pub batch: usize,
    /// Longest sequence, prompt and generated tokens together.
    pub tokens: usize,
    /// Dtype of keys and values.
    pub dtype: DType,
    /// The model's rotary encoding; needed only by policies with cache-slot positions.
    pub rope: Option<Rope>,
}

/// Keys and values of one batch of sequences under a stack of policies.
///
/// Rows of a batch have equal lengths. Capacity is what the policies need, see [`Plan::bytes`].
pub struct Cache<'p> {
    model: ModelShape,
    plan: Plan,
    stack: Stack<'p>,
    store: Store,
    options: CacheOptions,
    device: Device,
    groups: Vec<GroupCells>,
    masks: MaskCache,
    positions: Range<usize>,
    next: usize,
}

/// Which tokens a group keeps, and where.
#[derive(Clone, Debug, Default)]
struct GroupCells {
    /// Cells in order of age, the oldest first.
    by_age: Vec<usize>,
    /// Text position of each token, in order of age; per row and head once a `Keep` has run.
    kept: KeptTokens,
    /// Where the tokens of the running forward pass go.
    fresh: Option<Fresh>,
    in_flight: bool,
    /// Tokens evicted behind the sinks: the positions by which the sinks have to be turned.
    gap: usize,
    /// By how many the stored sinks are turned.
    turned: usize,
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

impl<'p> Cache<'p> {
    /// Plans and allocates.
    ///
    /// # Errors
    /// [`PlanError`] if the policies do not fit together or the model.
    pub fn new(
        model: &ModelShape,
        stack: Stack<'p>,
        options: CacheOptions,
        device: &Device,
    ) -> Result<Self, PlanError> {
        let plan = Plan::new(model, &stack)?;
        let store = Store::allocate(&plan, options.batch, options.tokens, options.dtype, device);
        Ok(Self {
            groups: vec![GroupCells::default(); plan.groups().len()],
            model: model.clone(),
            plan,
            stack,
            store,
            options,
            device: device.clone(),
            masks: MaskCache::default(),
            positions: 0..0,
            next: 0,
        })
    }

    /// The frozen plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes held, counted from the buffers.
    pub fn bytes(&self) -> usize {
        self.store.bytes()
    }

    /// Tokens given so far, evicted ones included.
    pub fn seen(&self) -> usize {
        self.positions.end
    }

    /// Which tokens `layer` can read, oldest first: of its keys and of its values, which are always the same.
    pub fn kept(&self, layer: LayerId) -> &KeptTokens {
        &self.groups[self.group_of(layer).0].kept
    }

    /// Starts over with empty buffers of the same size.
    pub fn reset(&mut self) {
        self.stack.reset();
        self.groups.fill(GroupCells::default());
        self.masks.clear();
        (self.positions, self.next) = (0..0, 0);
    }

    /// Announces a forward pass of `tokens` tokens a row: policies make room, cells are set aside.
    ///
    /// # Errors
    /// [`CacheError::Full`] if nobody evicts and the tokens do not fit, [`CacheError::OutOfTurn`] if the last forward
    /// pass was not finished.
    pub fn begin(&mut self, tokens: usize) -> Result<(), CacheError> {
        if self.next != 0 && self.next != self.model.len() {
            return Err(CacheError::OutOfTurn { layer: LayerId(self.next) });
        }
        if self.model.layers().iter().any(|shape| shape.window.is_some()) {
            return Err(CacheError::Unsupported("sliding windows of a model"));
        }
        // Everything that can be refused without asking a policy is refused before any state changes.
        let needed = self.seen() + tokens;
        let bounded = |group: &Group| group.budget.is_some_and(|budget| budget <= self.options.tokens);
        if needed > self.options.tokens && !self.plan.groups().iter().all(bounded) {
            return Err(CacheError::Full { capacity: self.options.tokens, needed });
        }
        self.masks.clear();
        for index in 0..self.groups.len() {
            self.make_room(GroupId(index), tokens)?;
        }
        self.positions = self.seen()..needed;
        self.next = 0;
        Ok(())
    }

    fn group_of(&self, layer: LayerId) -> GroupId {
        self.plan.slot(self.plan.layers()[layer.0].key).group
    }

    fn capacity(&self, group: GroupId) -> usize {
        self.plan.group(group).capacity(self.options.tokens)
    }

    /// Lets the evictors of a group answer, then sets cells aside for `tokens` tokens: freed cells first, so that a
    /// full cache moves no data.
    fn make_room(&mut self, id: GroupId, tokens: usize) -> Result<(), CacheError> {
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
                other => self.compact(id, evictor, other)?,
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
            if !freed.is_empty() {
                let kept = Kept::Cells(cells.by_age.clone());
                for &slot in &self.plan.group(id).slots {
                    self.store.keep(slot, high, &kept);
                }
            }
            let cells = &mut self.groups[id.0];
            let len = cells.by_age.len();
            cells.by_age = (0..len).collect();
            cells.in_flight = true;
            (len..len + tokens).collect()
        };
        self.groups[id.0].fresh = Some(Fresh::new(place));
        Ok(())
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

    /// Takes the owner's new keys or values in.
    fn store(&mut self, layer: LayerId, kind: Kv, values: Tensor<4>) -> Result<(), CacheError> {
        let slot = self.plan.slot(self.plan.layers()[layer.0].of(kind));
        let cells = &self.groups[slot.group.0];
        let fresh = cells.fresh.as_ref().ok_or(CacheError::OutOfTurn { layer })?;
        let expected = [self.options.batch, slot.shape.kv_heads, fresh.len(), slot.shape.head_dim];
        if values.dims() != expected {
            let what = if kind == Kv::Key { "key" } else { "value" };
            return Err(CacheError::Shape { layer, what, found: values.dims().to_vec(), expected: expected.to_vec() });
        }
        let values = values.cast(self.options.dtype);
        if cells.in_flight {
            self.store.fly(slot.id, cells.by_age.len(), values);
        } else {
            self.store.write(slot.id, fresh.cells(), values);
        }
        Ok(())
    }

    /// After the last reader: the new tokens count as cached, evictors reduce, tokens in flight land.
    fn settle(&mut self, id: GroupId) -> Result<(), CacheError> {
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
        if std::mem::take(&mut self.groups[id.0].in_flight) {
            // Landed already if something was evicted; a no-op answer that fits by chance lands here.
            for &slot in &self.plan.group(id).slots {
                self.store.keep(slot, len, &Kept::Cells((0..len).collect()));
            }
        }
        Ok(())
    }
}

impl Attend for Cache<'_> {
    fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        if layer.0 != self.next || layer.0 >= self.model.len() || self.positions.is_empty() {
            return Err(CacheError::OutOfTurn { layer });
        }
        if self.plan.owns(layer, Kv::Key) {
            self.store(layer, Kv::Key, key())?;
        }
        if self.plan.owns(layer, Kv::Value) {
            self.store(layer, Kv::Value, value())?;
        }
        let id = self.group_of(layer);
        let group = self.plan.group(id);
        let cells = &self.groups[id.0];
        let fresh = cells.fresh.as_ref().ok_or(CacheError::OutOfTurn { layer })?;
        let [batch, heads, queries, dim] = query.dims();
        let shape = self.model.layers()[layer.0];
        if [batch, queries, dim] != [self.options.batch, fresh.len(), shape.head_dim] || heads % group.kv_heads != 0 {
            let expected = vec![self.options.batch, group.kv_heads, fresh.len(), shape.head_dim];
            return Err(CacheError::Shape { layer, what: "query", found: query.dims().to_vec(), expected });
        }
        let len = cells.by_age.len() + fresh.len();
        let slots = self.plan.layers()[layer.0];
        let (keys, values) = (self.store.view(slots.key, len), self.store.view(slots.value, len));
        let dtype = query.dtype();
        let query = query.cast(self.options.dtype);
        let (output, evidence) = attend(query, keys, values, fresh, group.evidence, &mut self.masks);
        if let Some(evidence) = evidence {
            for &evictor in &group.evictors {
                self.stack.member_mut(evictor).observe(group, layer, &evidence);
            }
        }
        if layer == group.last_reader() {
            self.settle(id)?;
        }
        self.next += 1;
        Ok(output.cast(dtype))
    }
}

fn key_slots<'a>(plan: &'a Plan, group: &'a Group) -> impl Iterator<Item = crate::SlotId> + 'a {
    group.slots.iter().copied().filter(|&slot| plan.slot(slot).kind == Kv::Key)
}

fn bad_eviction(group: &Group, stack: &Stack<'_>, evictor: usize, what: String) -> CacheError {
    CacheError::BadEviction {
        layer: group.first(),
        policy: stack.members().nth(evictor).map_or_else(String::new, |policy| policy.name()),
        what,
    }
}
