//! The numbers to hide and their cities.

use super::NeedleKind;
use super::text::CITIES;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;
use std::ops::Range;

/// A number, and whose it is.
pub(super) struct Fact {
    pub(super) city: &'static str,
    pub(super) number: String,
}

/// Draws the facts of one sample after the other, no number twice.
pub(super) struct Draw {
    rng: ChaCha8Rng,
    range: Range<u32>,
    used: HashSet<u32>,
}

impl Draw {
    /// A stream for each length and depth, whatever the others are.
    pub(super) fn new(kind: NeedleKind, seed: u64, length: usize, depth: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let fraction = (depth * f64::from(u32::MAX)) as u32;
        rng.set_stream((length as u64) << 32 | u64::from(fraction));
        Self { rng, range: range(kind), used: HashSet::new() }
    }

    /// Numbers that can be drawn: half of what there is, lest the last ones take long to find.
    pub(super) fn most(kind: NeedleKind) -> usize {
        range(kind).len() / 2
    }

    pub(super) fn facts(&mut self, needles: usize) -> Vec<Fact> {
        let mut cities = CITIES;
        cities.shuffle(&mut self.rng);
        cities.into_iter().take(needles).map(|city| Fact { city, number: self.number().to_string() }).collect()
    }

    fn number(&mut self) -> u32 {
        loop {
            let number = self.rng.random_range(self.range.clone());
            if self.used.insert(number) {
                return number;
            }
        }
    }
}

/// As many digits throughout, so that no prompt's answer is easier to copy.
fn range(kind: NeedleKind) -> Range<u32> {
    match kind {
        NeedleKind::Passkey => 10_000..100_000,
        NeedleKind::Needle | NeedleKind::NeedleEach => 1_000_000..10_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_digits_and_never_repeat() {
        for (kind, digits) in [(NeedleKind::Passkey, 5), (NeedleKind::Needle, 7)] {
            let mut draw = Draw::new(kind, 1, 1000, 0.5);
            let numbers: Vec<String> = (0..500).flat_map(|_| draw.facts(4)).map(|fact| fact.number).collect();
            assert!(numbers.iter().all(|number| number.len() == digits));
            assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), 2000);
        }
    }

    #[test]
    fn cities_of_a_sample_differ() {
        let facts = Draw::new(NeedleKind::Needle, 1, 1000, 0.5).facts(CITIES.len());
        assert_eq!(facts.iter().map(|fact| fact.city).collect::<HashSet<_>>().len(), CITIES.len());
    }
}
