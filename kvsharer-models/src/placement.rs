//! Which layer of a model goes to which of several devices.

use crate::DecoderConfig;
use kvsharer_core::{Kv, LayerId, Plan};
use std::ops::Range;
use thiserror::Error;

/// Layers in order on devices in order, a run of layers each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The first layer of every device, and the number of layers.
    bounds: Vec<usize>,
}

/// Why a model cannot be spread over devices.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// A device without a layer.
    #[error("{devices} devices for {layers} layers: name at least one device, and at most one a layer")]
    Devices {
        /// Devices.
        devices: usize,
        /// Layers.
        layers: usize,
    },
    /// A borrower that would read another device's memory.
    #[error(
        "layer {borrower} on device {reader} borrows the {kind}s of layer {donor} on device {owner}: search a strategy for these devices, or allow reading across devices"
    )]
    Across {
        /// Keys or values.
        kind: Kv,
        /// The borrower.
        borrower: LayerId,
        /// Index of its device.
        reader: usize,
        /// The donor.
        donor: LayerId,
        /// Index of its device.
        owner: usize,
    },
}

impl Placement {
    /// Spreads a model by the bytes of its weights: the embedding is with the first layer, the head with the last.
    /// Caches are not counted, as their lengths are not known.
    ///
    /// # Errors
    /// [`PlacementError::Devices`].
    pub fn of_model(config: &DecoderConfig, devices: usize) -> Result<Self, PlacementError> {
        let table = config.vocab * config.hidden;
        let tables = if config.tied_head { table } else { 2 * table };
        let layer = (config.parameters() - tables - config.hidden) / config.layers;
        let mut weights = vec![layer; config.layers];
        // On several devices a tied head is a copy.
        weights[0] += table;
        weights[config.layers - 1] += table;
        Self::by_weight(&weights, devices)
    }

    /// Spreads layers so that the heaviest device is as light as it can be; of several such ways, the one whose first
    /// devices are the lightest.
    ///
    /// # Errors
    /// [`PlacementError::Devices`] without devices, or with more devices than layers.
    pub fn by_weight(weights: &[usize], devices: usize) -> Result<Self, PlacementError> {
        let layers = weights.len();
        if devices == 0 || devices > layers {
            return Err(PlacementError::Devices { devices, layers });
        }
        let sums: Vec<usize> = std::iter::once(0)
            .chain(weights.iter().scan(0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            }))
            .collect();
        // The heaviest of the remaining devices for the layers from `at` on, for one device more in every round.
        let mut heaviest: Vec<Vec<usize>> = vec![(0..=layers).map(|at| sums[layers] - sums[at]).collect()];
        for more in 1..devices {
            let rest = &heaviest[more - 1];
            let best = |at: usize| {
                let ends = at + 1..=layers.saturating_sub(more);
                ends.map(|end| rest[end].max(sums[end] - sums[at])).min().unwrap_or(usize::MAX)
            };
            heaviest.push((0..=layers).map(best).collect());
        }
        let most = heaviest[devices - 1][0];
        let mut bounds = vec![0];
        for rest in heaviest[..devices - 1].iter().rev() {
            let at = bounds[bounds.len() - 1];
            let fits = |end: &usize| rest[*end] <= most && sums[*end] - sums[at] <= most;
            bounds.push((at + 1..layers).find(fits).unwrap_or(at + 1));
        }
        bounds.push(layers);
        Ok(Self { bounds })
    }

    /// Number of devices.
    pub fn devices(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Layers of a device.
    pub fn layers(&self, device: usize) -> Range<usize> {
        self.bounds[device]..self.bounds[device + 1]
    }

    /// Index of a layer's device.
    pub fn device(&self, layer: LayerId) -> usize {
        self.bounds[1..self.devices()].partition_point(|&first| first <= layer.0)
    }

    /// Checks that no layer borrows across devices.
    ///
    /// # Errors
    /// [`PlacementError::Across`] names the first that does.
    pub fn check(&self, plan: &Plan) -> Result<(), PlacementError> {
        for slot in plan.slots() {
            let owner = self.device(slot.owner);
            if let Some(&borrower) = slot.readers.iter().find(|&&reader| self.device(reader) != owner) {
                let (kind, donor, reader) = (slot.kind, slot.owner, self.device(borrower));
                return Err(PlacementError::Across { kind, borrower, reader, donor, owner });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvsharer_core::{KvShape, ModelShape, Sharing, Stack};
    use proptest::prelude::*;

    fn load(weights: &[usize], placement: &Placement) -> usize {
        (0..placement.devices()).map(|device| weights[placement.layers(device)].iter().sum()).max().unwrap_or(0)
    }

    /// The lightest heaviest device, by trying every cut.
    fn lightest(weights: &[usize], devices: usize) -> usize {
        if devices == 1 {
            return weights.iter().sum();
        }
        let cuts = 1..=weights.len() - (devices - 1);
        let cut = |at: usize| weights[..at].iter().sum::<usize>().max(lightest(&weights[at..], devices - 1));
        cuts.map(cut).min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn layers_stay_in_order_and_the_heaviest_device_is_as_light_as_possible(
            weights in proptest::collection::vec(0usize..50, 1..11),
            devices in 1usize..5,
        ) {
            let placed = Placement::by_weight(&weights, devices);
            prop_assume!(devices <= weights.len() || { assert!(placed.is_err()); false });
            let placed = placed.unwrap();
            let all: Vec<usize> = (0..devices).flat_map(|device| placed.layers(device)).collect();
            prop_assert_eq!(all, (0..weights.len()).collect::<Vec<_>>());
            for device in 0..devices {
                prop_assert!(!placed.layers(device).is_empty());
                prop_assert!(placed.layers(device).all(|layer| placed.device(LayerId(layer)) == device));
            }
            prop_assert_eq!(load(&weights, &placed), lightest(&weights, devices));
        }
    }

    #[test]
    fn a_model_is_cut_in_the_middle_but_for_its_embedding() {
        let config = crate::random_config("llama2-7b").unwrap();
        let halves = Placement::of_model(&config, 2).unwrap();
        assert_eq!((halves.layers(0), halves.layers(1)), (0..16, 16..32));
        // SmolLM2's embedding weighs as much as eight of its thirty layers.
        let thirds = Placement::of_model(&crate::random_config("smollm2-135m").unwrap(), 3).unwrap();
        assert_eq!((thirds.layers(0), thirds.layers(1), thirds.layers(2)), (0..7, 7..22, 22..30));
        for devices in [0, 33] {
            assert_eq!(Placement::of_model(&config, devices), Err(PlacementError::Devices { devices, layers: 32 }));
        }
    }

    #[test]
    fn a_borrower_on_another_device_is_named() {
        let placed = Placement::by_weight(&[1; 4], 2).unwrap();
        let model = ModelShape::uniform(4, KvShape::new(1, 8));
        let check = |sharing: Sharing| placed.check(&Plan::new(&model, &Stack::new().with(sharing)).unwrap());
        assert_eq!(check(Sharing::both([(1, 0), (3, 2)]).unwrap()), Ok(()));
        let error = check(Sharing::both([(1, 0), (3, 1 - 1)]).unwrap()).unwrap_err();
        assert!(
            error.to_string().starts_with("layer 3 on device 1 borrows the keys of layer 0 on device 0"),
            "{error}"
        );
    }
}
