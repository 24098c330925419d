//! All a model sees of the cache: `begin`, then `attend` once for every layer.

mod evict;

use crate::attend::{MaskCache, attend};
use crate::{CacheError, Group, GroupId, Kv, LayerId, ModelShape, Plan, PlanError, Rope, Stack, Store};
use burn::tensor::{DType, Device, Tensor};
use evict::GroupCells;
pub use evict::KeptTokens;
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
