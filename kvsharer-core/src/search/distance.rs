//! How far apart two layers' caches are, and the order in which pairs are tried.

use crate::{Averages, Kv, LayerId};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Distance of two average caches; all variants are the mean of the keys' and the values' distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distance {
    /// As the official code has it: L2 norm over the channels of each (head, token), then the mean over both.
    #[default]
    Code,
    /// As the paper states it (arXiv 2410.18517, section 3): Euclidean distance of the flattened caches.
    Paper,
    /// One minus the cosine of the flattened caches, blind to their size. (An ablation; not in the paper.)
    Cosine,
}

/// Which pairs are tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The largest distance first, as the paper has it.
    #[default]
    Dissimilar,
    /// The smallest distance first, the paper's control.
    Similar,
    /// Any order, drawn with the seed of the search: what the gate alone achieves.
    Random,
}

/// What a layer that shares reads of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Units {
    /// Keys and values, as the paper has it.
    #[default]
    Both,
    /// Keys alone; it keeps its own values. (An ablation that the paper's reviewers asked for.)
    Keys,
    /// Values alone.
    Values,
    /// Keys and values, each with a donor of its own.
    Apart,
}

impl Units {
    /// What single replacements share.
    pub fn kinds(self) -> &'static [Units] {
        match self {
            Units::Both => &[Units::Both],
            Units::Keys => &[Units::Keys],
            Units::Values => &[Units::Values],
            Units::Apart => &[Units::Keys, Units::Values],
        }
    }

    /// Whether keys (or values) are shared.
    pub fn has(self, kind: Kv) -> bool {
        match self {
            Units::Both | Units::Apart => true,
            Units::Keys => kind == Kv::Key,
            Units::Values => kind == Kv::Value,
        }
    }

    /// `KV`, `K`, `V` or `K,V`.
    pub fn letters(self) -> &'static str {
        match self {
            Units::Both => "KV",
            Units::Keys => "K",
            Units::Values => "V",
            Units::Apart => "K,V",
        }
    }

    /// Distance of what would be shared: of both, the mean of the two.
    pub fn distance(self, pair: &Pair) -> f64 {
        match self {
            Units::Both | Units::Apart => (pair.key + pair.value) / 2.0,
            Units::Keys => pair.key,
            Units::Values => pair.value,
        }
    }
}

/// Two layers and the distance of their average caches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The layer nearer the input.
    pub donor: LayerId,
    /// The layer nearer the output, which would read the donor's cache.
    pub borrower: LayerId,
    /// Distance of the average keys.
    pub key: f64,
    /// Distance of the average values.
    pub value: f64,
}

impl Distance {
    /// All pairs of layers of equal shape, in ascending order of (donor, borrower).
    pub fn pairs(self, averages: &Averages) -> Vec<Pair> {
        let layers = averages.shapes.len();
        let pairs = (0..layers).flat_map(|donor| (donor + 1..layers).map(move |borrower| (donor, borrower)));
        pairs
            .filter(|&(i, j)| averages.shapes[i] == averages.shapes[j])
            .map(|(i, j)| {
                let dim = averages.shapes[i].head_dim;
                Pair {
                    donor: LayerId(i),
                    borrower: LayerId(j),
                    key: self.between(&averages.keys[i], &averages.keys[j], dim),
                    value: self.between(&averages.values[i], &averages.values[j], dim),
                }
            })
            .collect()
    }

    /// Distance of two flattened `[head, token, head_dim]` arrays.
    fn between(self, a: &[f64], b: &[f64], head_dim: usize) -> f64 {
        let norm = |a: &[f64], b: &[f64]| {
            let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
            squares.sum::<f64>().sqrt()
        };
        match self {
            Distance::Paper => norm(a, b),
            Distance::Cosine => {
                let product = a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let norm = |a: &[f64]| a.iter().map(|a| a * a).sum::<f64>().sqrt();
                1.0 - product / (norm(a) * norm(b))
            }
            Distance::Code => {
                let cells = a.chunks(head_dim).zip(b.chunks(head_dim));
                let count = a.len() / head_dim;
                cells.map(|(a, b)| norm(a, b)).sum::<f64>() / count as f64
            }
        }
    }
}

impl Order {
    /// Sorts pairs and what they would share into the order of trial; equal distances keep their order by (donor,
    /// borrower).
    pub fn sort(self, pairs: &mut [(Pair, Units)], seed: u64) {
        let distance = |(pair, units): &(Pair, Units)| units.distance(pair);
        match self {
            Order::Dissimilar => pairs.sort_by(|a, b| distance(b).total_cmp(&distance(a))),
            Order::Similar => pairs.sort_by(|a, b| distance(a).total_cmp(&distance(b))),
            Order::Random => pairs.shuffle(&mut ChaCha8Rng::seed_from_u64(seed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_match_hand_computed_values() {
        // Two cells of two channels: differences (3, 4) and (0, 1).
        let (a, b) = ([0.0, 0.0, 5.0, 5.0], [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(Distance::Code.between(&a, &b, 2), (5.0 + 1.0) / 2.0);
        assert_eq!(Distance::Paper.between(&a, &b, 2), 26.0_f64.sqrt());
        assert!(Distance::Cosine.between(&[1.0, 2.0], &[3.0, 6.0], 2).abs() < 1e-12);
        assert_eq!(Distance::Cosine.between(&[1.0, 0.0], &[0.0, 5.0], 2), 1.0);
    }

    #[test]
    fn ties_are_tried_in_order_of_layers() {
        let pair = |donor, borrower| {
            (Pair { donor: LayerId(donor), borrower: LayerId(borrower), key: 1.0, value: 1.0 }, Units::Both)
        };
        let expected = [pair(0, 1), pair(0, 2), pair(1, 2)];
        for order in [Order::Dissimilar, Order::Similar] {
            let mut pairs = expected;
            order.sort(&mut pairs, 0);
            assert_eq!(pairs, expected);
        }
    }
}
