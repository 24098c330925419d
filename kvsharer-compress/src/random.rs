//! Tokens by chance: what any method must beat.

use crate::amounts::Amounts;
use crate::budgeted::Budgeted;
use crate::registry::Entry;
use crate::scored::{Method, Options, Scored};
use crate::spec::{Spec, SpecError};
use burn::tensor::{Tensor, TensorData};
use kvsharer_core::{EvidenceKind, Group, GroupState};

pub(crate) const ENTRY: Entry = Entry {
    name: "random",
    summary: "keep tokens by chance, a control",
    options: "budget=512, seed=0, decode=each|grow",
    scored: true,
    solves: Some(&[]),
    source: "kvpress RandomPress (other random numbers)",
    parse: |spec| Ok(Box::new(Scored::new(Random::from_spec(spec)?))),
};

/// Keeps `budget` tokens of each head whose scores, hashes of seed, owner layer, head and position in the row, are the
/// highest. The same on every backend, whatever the batch or the chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    budgeted: Budgeted,
    seed: u64,
}

impl Random {
    /// Keeps `budget` tokens.
    pub fn new(budget: impl Into<Amounts>, seed: u64) -> Self {
        Self { budgeted: Budgeted::new(budget), seed }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let budgeted = Budgeted::take(&mut spec)?;
        let seed = spec.number("seed", 0, 0..=usize::MAX >> 1)? as u64;
        spec.finish()?;
        Ok(Self { budgeted, seed })
    }
}

/// 24 bits, so that a score is exact in f32. (SplitMix64, Steele et al. 2014.)
fn hash(seed: u64, layer: usize, head: usize, position: u64) -> f32 {
    let key = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (layer as u64) << 48 ^ (head as u64) << 32 ^ position;
    let mut z = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32
}

impl Method for Random {
    fn spec(&self) -> String {
        let Self { budgeted, seed } = self;
        format!("random:budget={},seed={seed}{}", budgeted.budget, budgeted.print_options())
    }

    fn options(&self) -> Options {
        self.budgeted.options
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.budgeted.kept(layer, layers, prompt)
    }

    fn evidence(&self) -> EvidenceKind {
        EvidenceKind::None
    }

    fn assign(&self, group: &Group, state: &GroupState<'_>) -> Option<Tensor<3>> {
        let positions = state.positions();
        let ([_, heads, cells], device) = (positions.dims(), positions.device());
        let shape = positions.dims();
        let positions = positions.try_into_vec_as::<i64>().ok()?;
        let score = |(index, position): (usize, i64)| {
            let (row, head) = (index / cells / heads, index / cells % heads);
            let start = state.padding.get(row).copied().unwrap_or(0) as i64;
            hash(self.seed, group.first().0, head, (position - start).max(0) as u64)
        };
        let scores: Vec<f32> = positions.into_iter().enumerate().map(score).collect();
        Some(Tensor::from_data(TensorData::new(scores, shape), &device))
    }

    fn check(&self, layers: usize) -> Result<(), String> {
        self.budgeted.check(layers, 0)
    }
}
