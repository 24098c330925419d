//! How a plan comes about: slots from routes, groups from slots, and what the policies want of each group.

use super::{Group, LayerSlots, Plan, Slot};
use crate::{
    EvidenceKind, GroupId, Kv, LayerId, ModelShape, PlanError, Positions, Route, SlotId, Source, Stack, Storage,
};

/// Asks every policy of `stack` about every layer of `model`.
pub(super) fn build(model: &ModelShape, stack: &Stack<'_>) -> Result<Plan, PlanError> {
    if let Some(layer) = model.ids().find(|layer| model.layers()[layer.0].window == Some(0)) {
        return Err(PlanError::EmptyWindow { layer });
    }
    for policy in stack.members() {
        policy.check(model).map_err(|what| PlanError::Refused { policy: policy.name(), what })?;
    }
    let routes = model.ids().map(|layer| route(layer, stack)).collect::<Result<Vec<_>, _>>()?;
    let (layers, mut slots) = assign_slots(model, &routes)?;
    let mut groups = form_groups(&layers, &mut slots);
    for group in &mut groups {
        ask_storage(group, &slots, stack)?;
        ask_evictors(group, stack)?;
    }
    Ok(Plan { layers, slots, groups })
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
                window: slots[index].shape.window,
                model_layers: layers.len(),
                storage: Storage::Full,
                budgets: Vec::new(),
                evidence: EvidenceKind::None,
                positions: Positions::Original,
                bookkeeping: 0,
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

/// Who stores the group, and how.
fn ask_storage(group: &mut Group, slots: &[Slot], stack: &Stack<'_>) -> Result<(), PlanError> {
    let mut stored_by: Option<String> = None;
    for policy in stack.members() {
        let Some(storage) = policy.storage(group) else {
            continue;
        };
        if let Some(first) = stored_by.replace(policy.name()) {
            return Err(PlanError::TwoStorages { layer: group.first(), first, second: policy.name() });
        }
        if let Storage::Quantised(codec) = storage
            && let Some(slot) = group.slots.iter().map(|slot| &slots[slot.0]).find(|s| !codec.fits(s.shape.head_dim))
        {
            let head_dim = slot.shape.head_dim;
            return Err(PlanError::HeadDim { layer: slot.owner, policy: policy.name(), head_dim });
        }
        group.storage = storage;
    }
    Ok(())
}

/// Who evicts from the group, and what that takes.
fn ask_evictors(group: &mut Group, stack: &Stack<'_>) -> Result<(), PlanError> {
    for (index, policy) in stack.members().enumerate() {
        let Some(budget) = policy.budget(group) else {
            continue;
        };
        if budget.kept(1 << 20) == 0 {
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
        if let (Some(window), true) = (group.window, positions != Positions::Original) {
            return Err(PlanError::WindowedPositions { layer: group.first(), policy: policy.name(), window });
        }
        group.positions = positions;
        if evidence != EvidenceKind::None {
            group.evidence = evidence;
        }
        group.bookkeeping += policy.bookkeeping(group);
        group.budgets.push(budget);
        group.evictors.push(index);
    }
    Ok(())
}
