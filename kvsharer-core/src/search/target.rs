//! How much a search is to share.

use super::draft::size;
use super::{SearchError, Units};
use crate::ModelShape;

/// How much to share: layers, or a fraction of all KV bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// What so many layers of average size hold of what is shared.
    Layers(usize),
    /// A fraction of the bytes of keys and values of all layers, above 0 and below 1.
    Bytes(f64),
}

impl Target {
    /// Elements a token is no longer to store, and the least that one replacement saves.
    ///
    /// # Errors
    /// [`SearchError`] if that is nothing or more than can be shared.
    pub(crate) fn elements(self, model: &ModelShape, units: Units) -> Result<(f64, usize), SearchError> {
        let sizes: Vec<usize> = model.layers().iter().map(size).collect();
        let parts = if matches!(units, Units::Keys | Units::Values) { 1 } else { 2 };
        let all: usize = sizes.iter().sum();
        let smallest = sizes.iter().min().copied().unwrap_or(0) * if units == Units::Both { 2 } else { 1 };
        let most = (all - sizes.first().copied().unwrap_or(0)) * parts;
        let wanted = match self {
            Target::Layers(layers) => {
                if layers == 0 || layers >= sizes.len() {
                    return Err(SearchError::BadShare { requested: layers, layers: sizes.len() });
                }
                layers as f64 * all as f64 / sizes.len() as f64 * parts as f64
            }
            Target::Bytes(fraction) => {
                let wanted = fraction * 2.0 * all as f64;
                if !(fraction > 0.0 && wanted <= most as f64) {
                    let percent = |part: f64| part / (2 * all).max(1) as f64 * 100.0;
                    return Err(SearchError::BadBytes { percent: fraction * 100.0, most: percent(most as f64) });
                }
                wanted
            }
        };
        Ok((wanted.max(smallest as f64), smallest))
    }
}

/// Whether `saved` elements are as near to `wanted` as steps of `smallest` come; half a step counts as not yet there.
pub(crate) fn is_reached(saved: usize, wanted: f64, smallest: usize) -> bool {
    saved as f64 + smallest as f64 / 2.0 > wanted + 1e-9 * wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvShape;

    /// Replacements a search makes until it is there.
    fn steps(target: Target, layers: usize, units: Units) -> usize {
        let model = ModelShape::uniform(layers, KvShape::new(3, 64));
        let (wanted, smallest) = target.elements(&model, units).unwrap();
        (1..1000).find(|steps| is_reached(steps * smallest, wanted, smallest)).unwrap()
    }

    #[test]
    fn percentages_are_bytes_and_round_to_the_nearest_replacement() {
        assert_eq!(steps(Target::Bytes(0.25), 30, Units::Both), 8);
        assert_eq!(steps(Target::Bytes(0.25), 32, Units::Both), 8);
        assert_eq!(steps(Target::Bytes(0.25), 30, Units::Apart), 15);
        assert_eq!(steps(Target::Bytes(0.25), 30, Units::Values), 15);
        assert_eq!(steps(Target::Bytes(0.01), 30, Units::Both), 1);
        assert_eq!(steps(Target::Layers(8), 30, Units::Both), 8);
        assert_eq!(steps(Target::Layers(8), 30, Units::Apart), 16);
        assert_eq!(steps(Target::Layers(2), 30, Units::Keys), 2);
    }

    #[test]
    fn more_than_can_be_shared_is_refused() {
        let model = ModelShape::uniform(4, KvShape::new(1, 8));
        for (target, units) in [
            (Target::Layers(0), Units::Both),
            (Target::Layers(4), Units::Both),
            (Target::Bytes(0.0), Units::Both),
            (Target::Bytes(0.8), Units::Both),
            (Target::Bytes(0.5), Units::Keys),
            (Target::Bytes(f64::NAN), Units::Apart),
        ] {
            assert!(target.elements(&model, units).is_err(), "{target:?} {units:?}");
        }
    }
}
