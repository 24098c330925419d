//! The frozen answer to "where": which buffer every layer reads, and what it all costs.

use crate::{
    EvidenceKind, GroupId, Kv, KvShape, LayerId, ModelShape, PlanError, Positions, Route, SlotId, Source, Stack,
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
    /// How its tensors are stored.
    pub storage: Storage,
}

/// Slots that some layer reads together, directly or through others, and that therefore keep the same tokens.
///
/// Without sharing a group is the key and the value slot of one layer. This is the unit policies evict from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Index of the group in its plan.
    pub id: GroupId,
    /// Its slots.
    pub slots: Vec<SlotId>,
    /// All layers that read any of its slots, in order.
    pub layers: Vec<LayerId>,
    /// Key-value heads of its slots.
    pub kv_heads: usize,
    /// Cells its evictor needs, the newest token included; `None` if nobody evicts.
    pub budget: Option<usize>,
    /// What its evictor must see.
    pub evidence: EvidenceKind,
    /// Which positions its keys stand at.
    pub positions: Positions,
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

    /// Cells to allocate for sequences of up to `tokens` tokens.
    pub fn capacity(&self, tokens: usize) -> usize {
        self.budget.map_or(tokens, |budget| budget.min(tokens))
    }

    /// Sinks whose unturned keys are kept beside the cache (cache-slot positions, once something is evicted).
    pub fn original_sinks(&self, tokens: usize) -> usize {
        match self.positions {
            Positions::CacheSlot { sinks } if self.capacity(tokens) < tokens => sinks,
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let routes = model.ids().map(|layer| route(layer, stack)).collect::<Result<Vec<_>, _>>()?;
        let (layers, mut slots) = assign_slots(model, &routes)?;
        let mut groups = form_groups(&layers, &mut slots);
        for group in &mut groups {
            ask_policies(group, &mut slots, stack)?;
        }
        Ok(Self { layers, slots, groups })
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

    /// Bytes a store allocates for `batch` sequences of up to `tokens` tokens with elements of `element_bytes`.
    ///
    /// Exact: a [`Store`](crate::Store) made for the same numbers holds this many bytes.
    pub fn bytes(&self, batch: usize, tokens: usize, element_bytes: usize) -> usize {
        let slot_bytes = |slot: &Slot| {
            let group = self.group(slot.group);
            let sinks = match slot.kind {
                Kv::Key => group.original_sinks(tokens),
                Kv::Value => 0,
            };
            (group.capacity(tokens) + sinks) * token_bytes(slot, batch, element_bytes)
        };
        self.slots.iter().map(slot_bytes).sum()
    }

    /// The most bytes that can be held while tokens are appended `chunk` at a time up to `tokens`: the allocation plus
    /// the largest sum of groups in flight, which hold old cells and the chunk in full until their last reader.
    ///
    /// Exact for a prompt run in one pass (`chunk == tokens`); an upper bound for smaller chunks, as a policy may make
    /// room before a chunk comes.
    pub fn prefill_peak_bytes(&self, batch: usize, tokens: usize, chunk: usize, element_bytes: usize) -> usize {
        let chunk = chunk.min(tokens);
        let in_flight_at = |layer: LayerId| -> usize {
            let written = |slot: &&Slot| {
                let group = self.group(slot.group);
                slot.owner <= layer && layer <= group.last_reader() && chunk > 1
            };
            let cost = |slot: &Slot| {
                let capacity = self.group(slot.group).capacity(tokens);
                // What may stand in the slot when the chunk arrives: nothing for a prefill from an empty cache.
                let old = capacity.min(tokens - chunk);
                let cells = if old + chunk > capacity { old + chunk } else { 0 };
                cells * token_bytes(slot, batch, element_bytes)
            };
            self.slots.iter().filter(written).map(cost).sum()
        };
        let peak = (0..self.layers.len()).map(|l| in_flight_at(LayerId(l))).max();
        self.bytes(batch, tokens, element_bytes) + peak.unwrap_or(0)
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

fn token_bytes(slot: &Slot, batch: usize, element_bytes: usize) -> usize {
    match slot.storage {
        Storage::Full => batch * slot.shape.kv_heads * slot.shape.head_dim * element_bytes,
    }
}

/// The one answer among `stack` to where `layer` reads.
fn route(layer: LayerId, stack: &Stack<'_>) -> Result<Route, PlanError> {
    let mut answers = stack.members().filter_map(|policy| policy.route(layer).map(|route| (policy, route)));
    let Some((first, route)) = answers.next() else {
        return Ok(Route::default());
    };
    match answers.next() {
        None => Ok(route),
        Some((second, _)) => Err(PlanError::TwoRouters { layer, first: first.name(), second: second.name() }),
    }
}

fn assign_slots(model: &ModelShape, routes: &[Route]) -> Result<(Vec<LayerSlots>, Vec<Slot>), PlanError> {
    let mut slots: Vec<Slot> = Vec::new();
    let mut layers: Vec<LayerSlots> = Vec::new();
    for (layer, route) in model.ids().zip(routes) {
        let mut find = |kind, source| -> Result<SlotId, PlanError> {
            let shape = model.layers()[layer.0];
            match source {
                Source::Own => {
                    let id = SlotId(slots.len());
                    slots.push(Slot {
                        id,
                        kind,
                        owner: layer,
                        readers: vec![layer],
                        shape,
                        group: GroupId(usize::MAX),
                        storage: Storage::Full,
                    });
                    Ok(id)
                }
                Source::Borrow(donor) => {
                    check_donor(model, routes, kind, layer, donor)?;
                    let id = layers[donor.0].of(kind);
                    slots[id.0].readers.push(layer);
                    Ok(id)
                }
            }
        };
        let key = find(Kv::Key, route.key)?;
        let value = find(Kv::Value, route.value)?;
        layers.push(LayerSlots { key, value });
    }
    Ok((layers, slots))
}

fn check_donor(
    model: &ModelShape,
    routes: &[Route],
    kind: Kv,
    layer: LayerId,
    donor: LayerId,
) -> Result<(), PlanError> {
    let layers = model.len();
    if donor.0 >= layers {
        return Err(PlanError::UnknownLayer { layer: donor, layers });
    }
    if donor >= layer {
        return Err(PlanError::DonorNotEarlier { kind, layer, donor });
    }
    let mut chain = vec![layer, donor];
    let mut at = donor;
    while let Source::Borrow(next) = source(&routes[at.0], kind) {
        chain.push(next);
        if next >= at {
            break;
        }
        at = next;
    }
    if chain.len() > 2 {
        return Err(PlanError::Chain { kind, chain });
    }
    let (mine, theirs) = (model.layers()[layer.0], model.layers()[donor.0]);
    if mine != theirs {
        return Err(PlanError::ShapeMismatch { kind, layer, donor, mine, theirs });
    }
    Ok(())
}

fn source(route: &Route, kind: Kv) -> Source {
    match kind {
        Kv::Key => route.key,
        Kv::Value => route.value,
    }
}

/// Joins the key and the value slot of every layer: connected components become groups, ordered by first layer.
fn form_groups(layers: &[LayerSlots], slots: &mut [Slot]) -> Vec<Group> {
    let mut root: Vec<usize> = (0..slots.len()).collect();
    fn find(root: &[usize], mut slot: usize) -> usize {
        while root[slot] != slot {
            slot = root[slot];
        }
        slot
    }
    for layer in layers {
        let (a, b) = (find(&root, layer.key.0), find(&root, layer.value.0));
        root[a.max(b)] = a.min(b);
    }
    let mut groups: Vec<Group> = Vec::new();
    for index in 0..slots.len() {
        let lead = find(&root, index);
        if lead == index {
            slots[index].group = GroupId(groups.len());
            groups.push(Group {
                id: GroupId(groups.len()),
                slots: Vec::new(),
                layers: Vec::new(),
                kv_heads: slots[index].shape.kv_heads,
                budget: None,
                evidence: EvidenceKind::None,
                positions: Positions::Original,
                evictors: Vec::new(),
            });
        } else {
            slots[index].group = slots[lead].group;
        }
        let group = &mut groups[slots[index].group.0];
        group.slots.push(SlotId(index));
        group.layers.extend(&slots[index].readers);
    }
    for group in &mut groups {
        group.layers.sort();
        group.layers.dedup();
    }
    groups
}

/// Fills in what the policies want of `group`.
fn ask_policies(group: &mut Group, slots: &mut [Slot], stack: &Stack<'_>) -> Result<(), PlanError> {
    let mut stored_by: Option<String> = None;
    for (index, policy) in stack.members().enumerate() {
        if let Some(storage) = policy.storage(group) {
            if let Some(first) = stored_by.replace(policy.name()) {
                return Err(PlanError::TwoStorages { layer: group.first(), first, second: policy.name() });
            }
            for &slot in &group.slots {
                slots[slot.0].storage = storage;
            }
        }
        let Some(budget) = policy.budget(group) else {
            continue;
        };
        if budget == 0 {
            return Err(PlanError::EmptyBudget { layer: group.first(), policy: policy.name() });
        }
        if let Some(&first) = group.evictors.first()
            && !stack.evicts_in_order()
        {
            return Err(PlanError::TwoEvictors {
                layer: group.first(),
                first: stack.members().nth(first).map_or_else(String::new, |p| p.name()),
                second: policy.name(),
            });
        }
        let (evidence, positions) = (policy.evidence(group), policy.positions(group));
        let clash = !group.evictors.is_empty()
            && (positions != group.positions
                || (evidence != EvidenceKind::None && group.evidence != EvidenceKind::None));
        if clash {
            return Err(PlanError::EvictorsClash { layer: group.first(), policy: policy.name() });
        }
        group.positions = positions;
        if evidence != EvidenceKind::None {
            group.evidence = evidence;
        }
        group.budget = Some(group.budget.map_or(budget, |other| other.min(budget)));
        group.evictors.push(index);
    }
    Ok(())
}
