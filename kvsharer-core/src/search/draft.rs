//! A sharing map in the making: single replacements, and what they save.

use crate::{Adapter, Kv, KvShape, LayerId, LayerMap, ModelShape, Sharing, Units};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// One replacement: a layer reads another's cache instead of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Move {
    /// The layer that loses its cache.
    pub borrower: LayerId,
    /// The layer it reads.
    pub donor: LayerId,
    /// What it reads there.
    pub units: Units,
    /// Whether maps are fitted that make up for it.
    pub fitted: bool,
}

/// A change of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A layer starts to read another's cache.
    Share(Move),
    /// A layer gets its own cache back.
    Return {
        /// The layer.
        layer: LayerId,
        /// What it gets back.
        units: Units,
    },
    /// A layer does without attention: it has no cache, and adds nothing to the hidden states but its MLP.
    Drop {
        /// The layer.
        layer: LayerId,
    },
    /// The maps of a layer are fitted again, to what it reads by now.
    Refit {
        /// The layer.
        layer: LayerId,
    },
}

impl Change {
    /// The layer that reads differently.
    pub fn layer(&self) -> LayerId {
        match *self {
            Change::Share(Move { borrower, .. }) => borrower,
            Change::Return { layer, .. } | Change::Refit { layer } | Change::Drop { layer } => layer,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Share(Move { borrower, donor, units, fitted }) => {
                write!(f, "{borrower}{}{donor}:{}", if *fitted { "~" } else { "=" }, units.letters())
            }
            Change::Return { layer, units } => write!(f, "{layer}!:{}", units.letters()),
            Change::Refit { layer } => write!(f, "{layer}~"),
            Change::Drop { layer } => write!(f, "{layer}-"),
        }
    }
}

/// Whose maps of a layer are to be fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) keys: bool,
    pub(crate) values: bool,
}

/// A sharing map with its fitted maps.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    sharing: Sharing,
    adapters: BTreeMap<LayerId, Arc<Adapter>>,
    wanted: BTreeMap<LayerId, Wanted>,
    dropped: BTreeSet<LayerId>,
    /// All changes so far: fitted maps depend on the order in which they came.
    history: Vec<String>,
}

impl Draft {
    /// Who reads whose cache.
    pub fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// The fitted maps by layer.
    pub fn adapters(&self) -> BTreeMap<LayerId, Adapter> {
        self.adapters.iter().map(|(&layer, adapter)| (layer, Adapter::clone(adapter))).collect()
    }

    /// The fitted maps of a layer.
    pub fn adapter(&self, layer: LayerId) -> Option<&Adapter> {
        self.adapters.get(&layer).map(Arc::as_ref)
    }

    /// The layer whose keys (or values) a layer reads, itself if it does not borrow.
    pub fn source(&self, kind: Kv, layer: LayerId) -> LayerId {
        self.map(kind).donor(layer).unwrap_or(layer)
    }

    /// Whether a layer stores keys (or values) of its own.
    pub(crate) fn owns(&self, kind: Kv, layer: LayerId) -> bool {
        !self.dropped.contains(&layer) && self.map(kind).donor(layer).is_none()
    }

    /// Whether a layer reads the same in two drafts of one search, through the very same maps.
    pub(crate) fn reads_like(&self, other: &Self, layer: LayerId) -> bool {
        let source = |kind| self.source(kind, layer) == other.source(kind, layer);
        let adapters = match (self.adapters.get(&layer), other.adapters.get(&layer)) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        let dropped = self.dropped.contains(&layer) == other.dropped.contains(&layer);
        source(Kv::Key) && source(Kv::Value) && adapters && dropped
    }

    fn map(&self, kind: Kv) -> &LayerMap {
        match kind {
            Kv::Key => self.sharing.keys(),
            Kv::Value => self.sharing.values(),
        }
    }

    /// Layers without attention.
    pub fn dropped(&self) -> &BTreeSet<LayerId> {
        &self.dropped
    }

    pub(crate) fn set_adapter(&mut self, layer: LayerId, adapter: Adapter) {
        self.adapters.insert(layer, Arc::new(adapter));
    }

    /// What identifies the draft, its fitted maps included.
    pub(crate) fn history(&self) -> &[String] {
        &self.history
    }

    /// What of a layer is to be fitted.
    pub(crate) fn wanted(&self, layer: LayerId) -> Wanted {
        self.wanted.get(&layer).copied().unwrap_or_default()
    }

    /// The draft after some changes, and the layers whose maps have to be fitted anew.
    pub(crate) fn after(&self, changes: &[Change]) -> (Self, Vec<LayerId>) {
        let mut draft = self.clone();
        for change in changes {
            draft.apply(change);
            draft.history.push(change.to_string());
        }
        let is_open = |layer: &LayerId| draft.wanted(*layer) != Wanted::default() && draft.adapter(*layer).is_none();
        let fit = draft.wanted.keys().copied().filter(is_open).collect();
        (draft, fit)
    }

    fn apply(&mut self, change: &Change) {
        let layer = change.layer();
        // Its maps, if any, were fitted to what it read before.
        self.adapters.remove(&layer);
        let (units, fitted) = match *change {
            Change::Share(Move { units, fitted, .. }) => (units, fitted),
            Change::Return { units, .. } => (units, false),
            Change::Refit { .. } => return,
            Change::Drop { .. } => {
                self.dropped.insert(layer);
                return;
            }
        };
        let mut maps = [self.sharing.keys().clone(), self.sharing.values().clone()];
        let wanted = self.wanted.entry(layer).or_default();
        for (map, kind) in maps.iter_mut().zip([Kv::Key, Kv::Value]) {
            if !units.has(kind) {
                continue;
            }
            match kind {
                Kv::Key => wanted.keys = fitted,
                Kv::Value => wanted.values = fitted,
            }
            match *change {
                Change::Share(Move { donor, .. }) => {
                    // Its readers go with it to the new owner, where their maps do not fit.
                    map.readers(layer).for_each(|reader| drop(self.adapters.remove(&reader)));
                    map.share(layer, donor);
                }
                _ => map.take_back(layer),
            }
        }
        let [keys, values] = maps;
        self.sharing = Sharing::new(keys, values);
    }

    /// Whether a layer still has what a move takes from it, and the donor what it is to give. Readers of the layer move
    /// to the new donor with it.
    pub fn allows(&self, candidate: &Move) -> bool {
        let Move { borrower, donor, units, .. } = *candidate;
        donor < borrower
            && !self.dropped.contains(&borrower)
            && !self.dropped.contains(&donor)
            && [Kv::Key, Kv::Value].into_iter().filter(|&kind| units.has(kind)).all(|kind| {
                let map = self.map(kind);
                map.donor(borrower).is_none() && map.donor(donor).is_none()
            })
    }

    /// What is shared, one entry a layer and kind.
    pub fn shared(&self, units: Units) -> Vec<(LayerId, Units)> {
        let (keys, values) = (self.sharing.keys(), self.sharing.values());
        let of = |map: &LayerMap, units| map.iter().map(|(layer, _)| (layer, units)).collect::<Vec<_>>();
        match units {
            Units::Both => of(keys, Units::Both),
            Units::Keys => of(keys, Units::Keys),
            Units::Values => of(values, Units::Values),
            Units::Apart => [of(keys, Units::Keys), of(values, Units::Values)].concat(),
        }
    }

    /// Elements of keys and values a token no longer stores.
    pub fn saved(&self, model: &ModelShape) -> usize {
        let size = |layer: LayerId| size(&model.layers()[layer.0]);
        let of = |map: &LayerMap| map.iter().map(|(layer, _)| size(layer)).sum::<usize>();
        let dropped: usize = self.dropped.iter().map(|&layer| 2 * size(layer)).sum();
        of(self.sharing.keys()) + of(self.sharing.values()) + dropped
    }

    /// The same as a fraction of what the untouched model stores.
    pub fn saved_fraction(&self, model: &ModelShape) -> f64 {
        let all: usize = model.layers().iter().map(|shape| 2 * size(shape)).sum();
        self.saved(model) as f64 / all.max(1) as f64
    }
}

/// Elements of a token's keys (or values) in a layer.
pub(crate) fn size(shape: &KvShape) -> usize {
    shape.kv_heads * shape.head_dim
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(borrower: usize, donor: usize, units: Units) -> Change {
        Change::Share(Move { borrower: LayerId(borrower), donor: LayerId(donor), units, fitted: false })
    }

    #[test]
    fn keys_and_values_go_their_own_ways_and_come_back() {
        let model = ModelShape::uniform(4, KvShape::new(2, 8));
        let (draft, _) = Draft::default().after(&[share(3, 1, Units::Keys), share(2, 0, Units::Values)]);
        assert_eq!(draft.saved(&model), 32);
        assert_eq!(draft.saved_fraction(&model), 0.25);
        let back = Change::Return { layer: LayerId(3), units: Units::Keys };
        let (draft, _) = draft.after(&[back]);
        assert_eq!(draft.shared(Units::Apart), [(LayerId(2), Units::Values)]);
    }

    proptest! {
        #[test]
        fn drafts_of_allowed_moves_are_valid_maps_and_save_what_they_share(
            moves in prop::collection::vec((0_usize..8, 0_usize..8, 0_usize..3), 0..40),
        ) {
            let model = ModelShape::uniform(8, KvShape::new(1, 4));
            let mut draft = Draft::default();
            let mut units_shared = 0;
            for (borrower, donor, units) in moves {
                let units = [Units::Both, Units::Keys, Units::Values][units];
                let candidate = Move { borrower: LayerId(borrower), donor: LayerId(donor), units, fitted: false };
                if draft.allows(&candidate) {
                    draft = draft.after(&[Change::Share(candidate)]).0;
                    units_shared += if units == Units::Both { 2 } else { 1 };
                }
            }
            prop_assert_eq!(draft.saved(&model), units_shared * 4);
            for map in [draft.sharing().keys(), draft.sharing().values()] {
                prop_assert!(map.iter().all(|(borrower, donor)| donor < borrower && map.donor(donor).is_none()));
            }
        }
    }
}
