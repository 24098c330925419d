//! The sharing map and the policy that applies it.

use crate::{Kv, LayerId, LayerKvPolicy, PlanError, Route, Source};
use burn::tensor::{Int, Tensor};
use std::collections::BTreeMap;

/// Borrower -> donor for the borrowed layers only. Every donor owns its cache: chains are resolved on construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerMap(BTreeMap<LayerId, LayerId>);

impl LayerMap {
    /// Builds a map for `kind` from (borrower, donor) pairs; a donor that borrows itself is followed to its owner.
    ///
    /// # Errors
    /// [`PlanError::DonorNotEarlier`] if a donor does not come before its borrower, [`PlanError::TwoDonors`] if a
    /// borrower is named twice.
    pub fn resolve<L: Into<LayerId>>(kind: Kv, pairs: impl IntoIterator<Item = (L, L)>) -> Result<Self, PlanError> {
        let mut map = BTreeMap::new();
        for (borrower, donor) in pairs {
            let (layer, donor) = (borrower.into(), donor.into());
            if donor >= layer {
                return Err(PlanError::DonorNotEarlier { kind, layer, donor });
            }
            if let Some(first) = map.insert(layer, donor)
                && first != donor
            {
                return Err(PlanError::TwoDonors { kind, layer, first, second: donor });
            }
        }
        // Donors come first, so one pass in ascending order meets every donor already resolved.
        let borrowers: Vec<LayerId> = map.keys().copied().collect();
        for layer in borrowers {
            if let Some(owner) = map.get(&map[&layer]).copied() {
                map.insert(layer, owner);
            }
        }
        Ok(Self(map))
    }

    /// The owner that `layer` borrows from, if it borrows.
    pub fn donor(&self, layer: LayerId) -> Option<LayerId> {
        self.0.get(&layer).copied()
    }

    /// The layers that read `donor`'s cache instead of one of their own, in order.
    pub fn readers(&self, donor: LayerId) -> impl Iterator<Item = LayerId> + '_ {
        self.iter().filter(move |&(_, owner)| owner == donor).map(|(borrower, _)| borrower)
    }

    /// Gives a borrower its own cache back.
    pub fn take_back(&mut self, borrower: LayerId) {
        self.0.remove(&borrower);
    }

    /// Number of borrowing layers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody borrows.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// (borrower, donor) in ascending order of borrowers.
    pub fn iter(&self) -> impl Iterator<Item = (LayerId, LayerId)> + '_ {
        self.0.iter().map(|(&borrower, &donor)| (borrower, donor))
    }

    /// Lets `borrower` read `donor`'s cache, resolved to its owner. Layers that read `borrower` so far, which will
    /// not have a cache any more, are moved to the same owner, as the official code does.
    ///
    /// Both must be in range and `donor < borrower`; see [`resolve`](Self::resolve) for unchecked input.
    pub fn share(&mut self, borrower: LayerId, donor: LayerId) {
        debug_assert!(donor < borrower);
        let owner = self.donor(donor).unwrap_or(donor);
        for target in self.0.values_mut().filter(|target| **target == borrower) {
            *target = owner;
        }
        self.0.insert(borrower, owner);
    }
}

/// The policy that lets layers read other layers' caches, keys and values apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    keys: LayerMap,
    values: LayerMap,
}

impl Sharing {
    /// Shares keys by one map and values by another.
    pub fn new(keys: LayerMap, values: LayerMap) -> Self {
        Self { keys, values }
    }

    /// Shares keys and values alike, by (borrower, donor) pairs.
    ///
    /// # Errors
    /// As [`LayerMap::resolve`].
    pub fn both<L: Into<LayerId>>(pairs: impl IntoIterator<Item = (L, L)>) -> Result<Self, PlanError> {
        let keys = LayerMap::resolve(Kv::Key, pairs)?;
        Ok(Self::new(keys.clone(), keys))
    }

    /// The map of the keys.
    pub fn keys(&self) -> &LayerMap {
        &self.keys
    }

    /// The map of the values.
    pub fn values(&self) -> &LayerMap {
        &self.values
    }
}

impl LayerKvPolicy for Sharing {
    fn name(&self) -> String {
        let list = |map: &LayerMap| {
            let pairs: Vec<_> = map.iter().map(|(b, d)| format!("{b}={d}")).collect();
            pairs.join(",")
        };
        if self.keys == self.values {
            format!("sharing:{}", list(&self.keys))
        } else {
            format!("sharing:keys({}),values({})", list(&self.keys), list(&self.values))
        }
    }

    fn route(&self, layer: LayerId) -> Option<Route> {
        let source = |map: &LayerMap| map.donor(layer).map_or(Source::Own, Source::Borrow);
        Some(Route { key: source(&self.keys), value: source(&self.values) })
    }

    fn branch(&self, _rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
        Some(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(map: &LayerMap) -> Vec<(usize, usize)> {
        map.iter().map(|(b, d)| (b.0, d.0)).collect()
    }

    #[test]
    fn chains_resolve_to_the_owner() {
        let map = LayerMap::resolve(Kv::Key, [(9, 5), (5, 2), (12, 9)]).unwrap();
        assert_eq!(pairs(&map), [(5, 2), (9, 2), (12, 2)]);
    }

    #[test]
    fn a_donor_at_or_above_its_borrower_is_refused() {
        for donor in [3, 4] {
            let error = LayerMap::resolve(Kv::Value, [(3, donor)]).unwrap_err();
            assert!(matches!(error, PlanError::DonorNotEarlier { .. }), "{error}");
        }
    }

    #[test]
    fn sharing_a_donor_moves_its_readers() {
        let mut map = LayerMap::resolve(Kv::Key, [(8, 5), (9, 5)]).unwrap();
        map.share(LayerId(5), LayerId(1));
        assert_eq!(pairs(&map), [(5, 1), (8, 1), (9, 1)]);
    }
}
