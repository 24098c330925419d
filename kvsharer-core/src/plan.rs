//! The frozen answer to "where": which buffer every layer reads, and what it all costs.

mod build;

use crate::{
    Budget, EvidenceKind, GroupId, Kv, KvShape, LayerId, Lengths, ModelShape, PlanError, Positions, SlotId, Stack,
    Storage,
};

/// One buffer: the keys or the values of its owner, `[batch, kv_head, cell, head_dim]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index of the slot in its plan.
    pub id: SlotId,
    /// Keys or values.
    pub kind: Kv,
    /// The one layer that writes.
    pub owner: LayerId,
    /// All layers that read, the owner first.
    pub readers: Vec<LayerId>,
    /// Shape of the owner's keys and values.
    pub shape: KvShape,
    /// The group whose tokens it keeps.
    pub group: GroupId,
}

/// Slots that some layer reads together, directly or through others, and that therefore keep the same tokens.
///
/// Without sharing a group is the key and the value slot of one layer. This is the unit policies evict from.
#[derive(Clone, Debug)]
pub struct Group {
    /// Index of the group in its plan.
    pub id: GroupId,
    /// Its slots.
    pub slots: Vec<SlotId>,
    /// All layers that read any of its slots, in order.
    pub layers: Vec<LayerId>,
    /// Key-value heads of its slots.
    pub kv_heads: usize,
    /// Sliding window of its layers, see [`KvShape::window`].
    pub window: Option<usize>,
    /// Layers of the whole model.
    pub model_layers: usize,
    /// How its slots are stored.
    pub storage: Storage,
    /// Cells its evictors need; empty if nobody evicts.
    pub budgets: Vec<Budget>,
    /// What its evictor must see.
    pub evidence: EvidenceKind,
    /// Which positions its keys stand at.
    pub positions: Positions,
    /// Bytes of state for each row, head and cell beside keys and values.
    pub bookkeeping: usize,
    pub(crate) evictors: Vec<usize>,
}

impl Group {
    /// The first layer, an owner.
    pub fn first(&self) -> LayerId {
        self.layers[0]
    }

    /// The layer after which a forward pass no longer needs the group.
    pub fn last_reader(&self) -> LayerId {
        self.layers[self.layers.len() - 1]
    }

    /// Cells to allocate for sequences of these lengths: what the evictors need, and no more than a sliding window
    /// shows. Quantised slots have one block more than their evictor needs:
    /// evicted cells are hidden until a whole block of them can be filled.
    pub fn capacity(&self, lengths: impl Into<Lengths>) -> usize {
        let lengths = lengths.into();
        let block = match self.storage {
            Storage::Full => 0,
            Storage::Quantised(codec) => codec.group(),
        };
        let cells = self.budgets.iter().map(|budget| budget.cells(lengths)).chain(self.window).min();
        cells.map_or(lengths.tokens, |cells| (cells + block).min(lengths.tokens))
    }

    /// Whether an evictor leaves the prompt whole until it is complete, so that it may need more cells till then.
    pub fn waits(&self) -> bool {
        self.budgets.iter().any(Budget::waits)
    }

    /// Whether the group needs no more cells however long the text gets.
    pub fn is_bounded(&self, lengths: impl Into<Lengths>) -> bool {
        let lengths = lengths.into();
        let windowed = self.window.is_some_and(|window| window <= lengths.tokens);
        windowed || self.budgets.iter().any(|budget| budget.is_bounded(lengths))
    }

    /// Sinks whose unturned keys are kept beside the cache (cache-slot positions, once something is evicted).
    pub fn original_sinks(&self, lengths: impl Into<Lengths>) -> usize {
        let lengths = lengths.into();
        self.sinks_beside(self.capacity(lengths), lengths)
    }

    fn sinks_beside(&self, capacity: usize, lengths: Lengths) -> usize {
        match (self.positions, self.storage) {
            (Positions::CacheSlot { sinks }, Storage::Full) if capacity < lengths.tokens => sinks,
            _ => 0,
        }
    }
}

/// Slots of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSlots {
    /// Where it reads its keys.
    pub key: SlotId,
    /// Where it reads its values.
    pub value: SlotId,
}

/// Which slot every layer reads, validated; knows its exact cost before anything is allocated.
#[derive(Clone, Debug)]
pub struct Plan {
    layers: Vec<LayerSlots>,
    slots: Vec<Slot>,
    groups: Vec<Group>,
}

impl Plan {
    /// Asks every policy of `stack` about every layer of `model` and checks that the answers fit together.
    ///
    /// # Errors
    /// [`PlanError`] names the layers and policies that clash.
    pub fn new(model: &ModelShape, stack: &Stack<'_>) -> Result<Self, PlanError> {
        build::build(model, stack)
    }

    /// The slots every layer reads, in order of layers.
    pub fn layers(&self) -> &[LayerSlots] {
        &self.layers
    }

    /// All slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// All groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether anything is ever evicted.
    pub fn evicts(&self) -> bool {
        self.groups.iter().any(|group| !group.budgets.is_empty())
    }

    /// The slot of an id of this plan.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.0]
    }

    /// The group of an id of this plan.
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0]
    }

    /// Whether `layer` computes and stores its own keys (or values).
    pub fn owns(&self, layer: LayerId, kind: Kv) -> bool {
        self.slot(self.layers[layer.0].of(kind)).owner == layer
    }

    /// The most sequences of these lengths whose store takes at most `bytes` bytes.
    pub fn largest_batch(&self, lengths: impl Into<Lengths>, element_bytes: usize, bytes: u64) -> usize {
        let one = self.bytes(1, lengths, element_bytes).max(1);
        usize::try_from(bytes / one as u64).unwrap_or(usize::MAX)
    }

    /// Bytes a store allocates for `batch` sequences of these lengths with elements of `element_bytes`.
    ///
    /// Exact: a [`Store`](crate::Store) made for the same numbers holds this many bytes.
    pub fn bytes(&self, batch: usize, lengths: impl Into<Lengths>, element_bytes: usize) -> usize {
        let lengths = lengths.into();
        let capacities = self.capacities(lengths);
        let slot_bytes = |slot: &Slot| {
            let (group, cells, shape) = (self.group(slot.group), capacities[slot.group.0], slot.shape);
            let one = match group.storage {
                Storage::Full => {
                    let sinks = if slot.kind == Kv::Key { group.sinks_beside(cells, lengths) } else { 0 };
                    (cells + sinks) * shape.head_dim * element_bytes
                }
                Storage::Quantised(codec) => codec.bytes(slot.kind, cells, shape.head_dim, element_bytes),
            };
            batch * shape.kv_heads * one
        };
        self.slots.iter().map(slot_bytes).sum()
    }

    /// Cells of each group.
    fn capacities(&self, lengths: Lengths) -> Vec<usize> {
        self.groups.iter().map(|group| group.capacity(lengths)).collect()
    }

    /// Bytes of what policies and cache note about the tokens: scores and positions by cell.
    pub fn bookkeeping_bytes(&self, batch: usize, lengths: impl Into<Lengths>) -> usize {
        let lengths = lengths.into();
        let group_bytes = |group: &Group| batch * group.kv_heads * group.capacity(lengths) * group.bookkeeping;
        self.groups.iter().map(group_bytes).sum()
    }

    /// The most bytes that can be held while a prompt is appended `chunk` tokens at a time and the rest token by token:
    /// the allocation, plus at any layer the groups in flight (old cells and the chunk in full until their last
    /// reader, or until the end of the prompt if their evictor waits for it), plus what a layer reads of quantised
    /// slots, in full. Scratch memory of the attention itself is not counted.
    ///
    /// Exact for a prompt run in one pass (`chunk` at least its length); an upper bound for smaller chunks, as a
    /// policy may make room before a chunk comes.
    pub fn prefill_peak_bytes(
        &self,
        batch: usize,
        lengths: impl Into<Lengths>,
        chunk: usize,
        element_bytes: usize,
    ) -> usize {
        let lengths = lengths.into();
        let prompt = lengths.prompt.unwrap_or(lengths.tokens).min(lengths.tokens);
        let chunk = chunk.min(prompt);
        let capacities = self.capacities(lengths);
        let full = |slot: &Slot, cells| cells * batch * slot.shape.kv_heads * slot.shape.head_dim * element_bytes;
        let flying = |slot: &Slot| {
            let (group, capacity) = (self.group(slot.group), capacities[slot.group.0]);
            // What may stand in the slot when the chunk arrives: nothing for a prefill from an empty cache.
            let old = if group.waits() { prompt - chunk } else { capacity.min(prompt - chunk) };
            let fits = old + chunk <= capacity && group.storage == Storage::Full;
            // A single token takes the place of one that made room for it, unless all wait for the end of the prompt.
            let single = chunk <= 1 && !group.waits();
            if fits || single { 0 } else { old + chunk }
        };
        let held = |slot: &Slot, layer: LayerId| {
            let group = self.group(slot.group);
            let waiting = group.waits() && chunk < prompt && layer <= group.last_reader();
            let cells = flying(slot);
            if waiting || (slot.owner <= layer && layer <= group.last_reader()) { full(slot, cells) } else { 0 }
        };
        let read = |slot: &Slot| {
            let group = self.group(slot.group);
            let quantised = group.storage != Storage::Full && flying(slot) == 0;
            if quantised { full(slot, capacities[slot.group.0]) } else { 0 }
        };
        let at = |layer: LayerId| {
            let slots = self.layers[layer.0];
            let in_flight: usize = self.slots.iter().map(|slot| held(slot, layer)).sum();
            in_flight + read(self.slot(slots.key)) + read(self.slot(slots.value))
        };
        let peak = (0..self.layers.len()).map(|layer| at(LayerId(layer))).max();
        self.bytes(batch, lengths, element_bytes) + peak.unwrap_or(0)
    }
}

impl LayerSlots {
    /// The slot of keys or of values.
    pub fn of(&self, kind: Kv) -> SlotId {
        match kind {
            Kv::Key => self.key,
            Kv::Value => self.value,
        }
    }
}
