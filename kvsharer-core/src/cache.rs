//! All a model sees of the cache: `begin`, then `attend` once for every layer.

mod arrange;
mod branch;
mod compact;
mod evict;
mod group;
mod place;
mod read;
mod slide;
mod steps;

use crate::attend::{Fresh, Hidden, MaskCache, Pass, attend};
use crate::{
    CacheError, EvidenceKind, GroupId, Kv, LayerId, Lengths, ModelShape, Plan, PlanError, Rope, RopeTable, SlotId,
    Stack, Store,
};
use burn::tensor::{DType, Device, Tensor};
pub use group::KeptTokens;
use group::{GroupCells, Place};
use std::collections::HashMap;
use std::ops::Range;
pub use steps::Steps;

/// What a decoder layer calls for its attention, whoever keeps the keys and values.
pub trait Attend {
    /// Positions of the tokens of the running forward pass, for the rotary encoding.
    fn positions(&self) -> Range<usize>;

    /// Whether `layer` is known to keep keys, and values, of its own: they are best computed along with the queries then.
    fn owns(&self, layer: LayerId) -> (bool, bool) {
        let _ = layer;
        (false, false)
    }

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

    /// [`attend`](Self::attend) with a query and keys that are not rotated yet, but by `rope`: what can be one piece of
    /// work with writing them.
    ///
    /// # Errors
    /// As `attend`.
    fn attend_unturned(
        &mut self,
        layer: LayerId,
        rope: &RopeTable,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        self.attend(layer, rope.apply(query), || rope.apply(key()), value)
    }
}

/// Sizes and types of a cache.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Sequences.
    pub batch: usize,
    /// Longest sequence, prompt and generated tokens together.
    pub tokens: usize,
    /// Length of the prompt. Policies that reduce it once wait until it is complete, however many forward passes it
    /// takes, and bytes are exact. If it is not given, the first forward pass is the prompt.
    pub prompt: Option<usize>,
    /// Dtype of keys and values.
    pub dtype: DType,
    /// The model's rotary encoding; needed only by policies with cache-slot positions.
    pub rope: Option<Rope>,
}

impl CacheOptions {
    /// The same, for a prompt of known length.
    pub fn for_prompt(self, tokens: usize) -> Self {
        Self { prompt: Some(tokens), ..self }
    }

    /// The lengths bytes are counted for.
    pub fn lengths(&self) -> Lengths {
        Lengths { prompt: self.prompt, tokens: self.tokens }
    }
}

/// Keys and values of one batch of sequences under a stack of policies.
///
/// Rows of a batch have equal lengths, shorter ones padded in front ([`Cache::begin_padded`]). Capacity is what the
/// policies need, see [`Plan::bytes`].
pub struct Cache<'p> {
    model: ModelShape,
    plan: Plan,
    stack: Stack<'p>,
    store: Store,
    options: CacheOptions,
    /// Of the group that is being worked on.
    device: Device,
    /// The device of each group.
    homes: Vec<Device>,
    groups: Vec<GroupCells>,
    /// Cells of each group.
    capacities: Vec<usize>,
    /// Whether the cache may be given more tokens than it was made for.
    bounded: bool,
    masks: MaskCache,
    /// Padding by key-value heads and cells, for the running pass.
    padded: HashMap<(usize, usize), Hidden>,
    /// Rotations of keys that are turned when they are read, by number of positions.
    turns: Option<RopeTable>,
    padding: Vec<usize>,
    /// Set by the first forward pass.
    prompt: usize,
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
        Self::placed(model, stack, options, &vec![device.clone(); model.len()])
    }

    /// Plans and allocates for a model whose layers are on several devices, given one a layer.
    ///
    /// What layers read together lies together, on the device of the first of them: without sharing across devices,
    /// the owner's. Queries of a borrower elsewhere are sent there, and what they find is sent back.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// If there are not as many devices as layers.
    pub fn placed(
        model: &ModelShape,
        stack: Stack<'p>,
        options: CacheOptions,
        devices: &[Device],
    ) -> Result<Self, PlanError> {
        assert_eq!(devices.len(), model.len(), "one device a layer");
        let plan = Plan::new(model, &stack)?;
        let homes: Vec<Device> = plan.groups().iter().map(|group| devices[group.first().0].clone()).collect();
        let store = Store::place(&plan, options.batch, options.lengths(), options.dtype, &homes);
        Ok(Self {
            groups: vec![GroupCells::default(); plan.groups().len()],
            capacities: plan.groups().iter().map(|group| group.capacity(options.lengths())).collect(),
            bounded: plan.groups().iter().all(|group| group.is_bounded(options.lengths())),
            model: model.clone(),
            plan,
            stack,
            store,
            options,
            device: homes.first().cloned().unwrap_or_default(),
            homes,
            masks: MaskCache::default(),
            padded: HashMap::new(),
            turns: None,
            padding: Vec::new(),
            prompt: 0,
            positions: 0..0,
            next: 0,
        })
    }

    /// The frozen plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it was made for.
    pub fn options(&self) -> &CacheOptions {
        &self.options
    }

    /// Bytes held, counted from the buffers.
    pub fn bytes(&self) -> usize {
        self.store.bytes()
    }

    /// Tokens given so far, evicted ones included.
    pub fn seen(&self) -> usize {
        self.positions.end
    }

    /// Which tokens `layer` can read: of its keys and of its values, which are always the same.
    pub fn kept(&self, layer: LayerId) -> &KeptTokens {
        &self.groups[self.group_of(layer).0].kept
    }

    /// Starts over with empty buffers of the same size.
    pub fn reset(&mut self) {
        self.stack.reset();
        self.store.clear();
        self.groups.fill(GroupCells::default());
        self.masks.clear();
        self.padded.clear();
        self.padding.clear();
        (self.positions, self.next) = (0..0, 0);
    }

    /// Announces a forward pass of `tokens` tokens a row: policies make room, cells are set aside.
    ///
    /// # Errors
    /// [`CacheError::Full`] if nobody evicts and the tokens do not fit, [`CacheError::OutOfTurn`] if the last forward
    /// pass was not finished.
    pub fn begin(&mut self, tokens: usize) -> Result<(), CacheError> {
        self.begin_padded(tokens, &[])
    }

    /// [`begin`](Self::begin) for the first forward pass of prompts of different lengths: row `b` has `padding[b]`
    /// tokens of padding in front. Nobody looks at padding, it leaves before any token does, and rows do not
    /// influence each other. Budgets that are shares of the prompt count the longest row.
    ///
    /// # Errors
    /// As `begin`, and [`CacheError::Padding`] for a later pass, or a row that is nothing but padding.
    pub fn begin_padded(&mut self, tokens: usize, padding: &[usize]) -> Result<(), CacheError> {
        if self.next != 0 && self.next != self.model.len() {
            return Err(CacheError::OutOfTurn { layer: LayerId(self.next) });
        }
        let padded = padding.iter().any(|&pad| pad > 0);
        let fits = padding.len() == self.options.batch && padding.iter().all(|&pad| pad < tokens);
        if padded && (self.seen() > 0 || !fits) {
            return Err(CacheError::Padding { padding: padding.to_vec(), tokens, batch: self.options.batch });
        }
        // Everything that can be refused without asking a policy is refused before any state changes.
        let needed = self.seen() + tokens;
        if needed > self.options.tokens && !self.bounded {
            return Err(CacheError::Full { capacity: self.options.tokens, needed });
        }
        if self.seen() == 0 {
            self.prompt = self.options.prompt.unwrap_or(tokens);
            self.padding = if padded { padding.to_vec() } else { Vec::new() };
        }
        self.masks.clear();
        self.padded.clear();
        let pass = self.seen()..needed;
        for index in 0..self.groups.len() {
            self.go_to(GroupId(index));
            self.make_room(GroupId(index), &pass)?;
        }
        self.positions = pass;
        self.next = 0;
        Ok(())
    }

    /// Tensors are made on the device of a group from now on.
    fn go_to(&mut self, id: GroupId) {
        let home = &self.homes[id.0];
        if self.device != *home {
            self.device = home.clone();
            self.turns = None;
            self.masks.clear();
        }
    }

    fn group_of(&self, layer: LayerId) -> GroupId {
        self.plan.slot(self.plan.layers()[layer.0].key).group
    }

    fn capacity(&self, group: GroupId) -> usize {
        self.capacities[group.0]
    }

    /// Whether a query of `tokens` tokens a row has the shape of its layer.
    fn check_query(&self, layer: LayerId, query: &Tensor<4>, tokens: usize) -> Result<(), CacheError> {
        let kv_heads = self.plan.group(self.group_of(layer)).kv_heads;
        let ([batch, heads, queries, dim], shape) = (query.dims(), self.model.layers()[layer.0]);
        if [batch, queries, dim] != [self.options.batch, tokens, shape.head_dim] || heads % kv_heads != 0 {
            let expected = vec![self.options.batch, kv_heads, tokens, shape.head_dim];
            return Err(CacheError::Shape { layer, what: "query", found: query.dims().to_vec(), expected });
        }
        Ok(())
    }

    /// Where the new keys or values of a layer go, if they have its shape.
    fn check_values(&self, layer: LayerId, kind: Kv, values: &Tensor<4>, tokens: usize) -> Result<SlotId, CacheError> {
        let slot = self.plan.slot(self.plan.layers()[layer.0].of(kind));
        let expected = [self.options.batch, slot.shape.kv_heads, tokens, slot.shape.head_dim];
        if values.dims() != expected {
            let what = if kind == Kv::Key { "key" } else { "value" };
            return Err(CacheError::Shape { layer, what, found: values.dims().to_vec(), expected: expected.to_vec() });
        }
        Ok(slot.id)
    }

    /// Takes the owner's new keys or values in.
    fn store(&mut self, layer: LayerId, kind: Kv, values: Tensor<4>) -> Result<(), CacheError> {
        let cells = &self.groups[self.plan.slot(self.plan.layers()[layer.0].of(kind)).group.0];
        let place = cells.place.as_ref().ok_or(CacheError::OutOfTurn { layer })?;
        let slot = self.check_values(layer, kind, &values, self.positions.len())?;
        let values = values.cast(self.options.dtype).to_device(&self.device);
        match place {
            Place::InFlight => self.store.fly(slot, cells.cells, values),
            Place::Cells(fresh) => self.store.write(slot, fresh.cells(), values),
            Place::PerHead(fresh) => self.store.scatter(slot, fresh.clone(), values),
        }
        Ok(())
    }
}

impl Attend for Cache<'_> {
    fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    fn owns(&self, layer: LayerId) -> (bool, bool) {
        let known = layer.0 < self.model.len();
        (known && self.plan.owns(layer, Kv::Key), known && self.plan.owns(layer, Kv::Value))
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
        self.check_query(layer, &query, self.positions.len())?;
        let id = self.group_of(layer);
        self.go_to(id);
        if self.plan.owns(layer, Kv::Key) {
            self.store(layer, Kv::Key, key())?;
        }
        if self.plan.owns(layer, Kv::Value) {
            self.store(layer, Kv::Value, value())?;
        }
        let group = self.plan.group(id);
        let cells = &self.groups[id.0];
        let fresh = match cells.place.as_ref().ok_or(CacheError::OutOfTurn { layer })? {
            Place::Cells(fresh) => fresh.clone(),
            Place::InFlight => Fresh::appended(cells.cells, self.positions.len()),
            // A single token, which may look everywhere.
            Place::PerHead(_) => Fresh::new(vec![0]),
        };
        let (last, width) = (group.last_reader(), cells.width);
        let slots = self.plan.layers()[layer.0];
        let (keys, values) = (self.store.view(slots.key, width), self.store.view(slots.value, width));
        let keys = self.turned(id, keys)?;
        let hidden = self.hidden(id);
        let window = if hidden.is_none() { self.window(id) } else { None };
        let dtype = query.dtype();
        let device = query.device();
        let query = query.cast(self.options.dtype).to_device(&self.device);
        let group = self.plan.group(id);
        let weights = match group.evidence {
            EvidenceKind::KeyMass => self.weights(id),
            _ => None,
        };
        let pass = Pass {
            fresh: &fresh,
            hidden: hidden.as_ref(),
            window: window.as_ref(),
            evidence: group.evidence,
            weights: weights.as_deref(),
        };
        let (output, evidence) = attend(query, keys, values, &pass, &mut self.masks);
        if let Some(evidence) = evidence {
            for &evictor in &group.evictors {
                let policy = self.stack.member_mut(evictor);
                if policy.evidence(group) != EvidenceKind::None {
                    policy.observe(group, layer, &evidence);
                }
            }
        }
        if layer == last {
            self.settle(id)?;
        }
        self.next += 1;
        Ok(output.cast(dtype).to_device(&device))
    }
}
