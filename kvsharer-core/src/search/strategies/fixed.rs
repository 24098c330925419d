//! A map that comes from elsewhere, carried out as a whole.

use super::SearchStrategy;
use crate::search::{Change, Fit, Ground, Move, SearchError, Units};
use crate::{Kv, LayerId, LayerMap, PlanError, Sharing};
use thiserror::Error;

/// A given map: nothing is chosen, but its effect is recorded, as one step, and maps are fitted if the options say so,
/// from the lowest layer up: every layer's to what the fitted ones below it have made of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Fixed {
    /// The map.
    pub sharing: Sharing,
    /// Where it comes from.
    pub name: String,
}

/// Why a `layer_types` string cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayerTypesError {
    /// A part that is no layer.
    #[error("`{part}` (layer {layer}) is no layer: layer types are numbers joined by `_`, such as 0_1_1_3")]
    NoLayer {
        /// The part.
        part: String,
        /// Its place.
        layer: usize,
    },
    /// A sliding window.
    #[error("layer {layer} has a sliding window (`{part}`), which the loaded model decides, not the map")]
    Window {
        /// The part.
        part: String,
        /// Its place.
        layer: usize,
    },
    /// Another number of layers than the model has.
    #[error("{found} layer types for a model of {layers} layers")]
    Count {
        /// Types given.
        found: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A map that cannot be carried out.
    #[error("{0} (models whose layers read later layers must be trained that way)")]
    Map(#[from] PlanError),
}

impl Fixed {
    /// Reads LCKV's notation (github.com/whyNLP/LCKV, arXiv 2410.14442): the layer whose cache each layer reads, joined
    /// by `_`. Sliding windows (a trailing `s`) are refused.
    ///
    /// # Errors
    /// [`LayerTypesError`] names the layer.
    pub fn from_layer_types(text: &str, layers: usize) -> Result<Self, LayerTypesError> {
        let parts: Vec<&str> = text.trim().split('_').collect();
        if parts.len() != layers {
            return Err(LayerTypesError::Count { found: parts.len(), layers });
        }
        let mut pairs = Vec::new();
        for (layer, part) in parts.into_iter().enumerate() {
            if part.ends_with('s') {
                return Err(LayerTypesError::Window { part: part.into(), layer });
            }
            let donor: usize = part.parse().map_err(|_| LayerTypesError::NoLayer { part: part.into(), layer })?;
            if donor != layer {
                pairs.push((LayerId(layer), LayerId(donor)));
            }
        }
        let map = LayerMap::resolve(Kv::Key, pairs)?;
        Ok(Self { sharing: Sharing::new(map.clone(), map), name: "layer-types".into() })
    }

    /// The moves, keys and values together where they have the same donor.
    fn moves(&self, fitted: bool) -> Vec<Move> {
        let (keys, values) = (self.sharing.keys(), self.sharing.values());
        let both = |layer| keys.donor(layer).is_some() && keys.donor(layer) == values.donor(layer);
        let keys = keys.iter().map(|(borrower, donor)| {
            let units = if both(borrower) { Units::Both } else { Units::Keys };
            Move { borrower, donor, units, fitted }
        });
        let values = values.iter().filter(|&(borrower, _)| !both(borrower));
        let mut moves: Vec<Move> = keys
            .chain(values.map(|(borrower, donor)| Move { borrower, donor, units: Units::Values, fitted }))
            .collect();
        moves.sort();
        moves
    }
}

impl SearchStrategy for Fixed {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let moves = self.moves(ground.options().fit != Fit::None);
        let layers = ground.model().layers();
        let fits = |of: &Move| of.borrower.0 < layers.len() && layers[of.borrower.0] == layers[of.donor.0];
        if let Some(&Move { borrower, donor, .. }) = moves.iter().find(|of| !fits(of)) {
            let why = "the model has no such layer, or the two differ in shape";
            return Err(SearchError::BadMove { borrower, donor, why });
        }
        let changes: Vec<Change> = moves.into_iter().map(Change::Share).collect();
        if changes.is_empty() { Ok(()) } else { ground.accept(&changes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_types_name_the_layer_each_layer_reads() {
        let fixed = Fixed::from_layer_types("0_1_1_0_4", 5).unwrap();
        let expected = Sharing::both([(2, 1), (3, 0)]).unwrap();
        assert_eq!(fixed.sharing, expected);
        assert_eq!(fixed.moves(false).len(), 2);
    }

    #[test]
    fn layer_types_that_no_untrained_model_can_run_are_refused() {
        for (text, part) in
            [("0_2_2", "later layers"), ("0_1s_1", "sliding window"), ("0_x_1", "`x`"), ("0_1", "2 layer")]
        {
            let error = Fixed::from_layer_types(text, 3).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
