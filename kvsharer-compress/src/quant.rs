//! Quantised storage (KIVI, Liu et al., arXiv 2402.02750).

use crate::registry::Entry;
use crate::spec::{Spec, SpecError};
use burn::tensor::{Int, Tensor};
use kvsharer_core::{Group, LayerKvPolicy, Quantisation, Storage};

pub(crate) const ENTRY: Entry = Entry {
    name: "quant",
    summary: "store keys (per channel) and values (per token) in 8 or 4 bits; stacks with any other policy",
    options: "bits=8|4, group=32, residual=128",
    scored: false,
    solves: None,
    source: "arXiv 2402.02750; jy-yuan/KIVI",
    parse: |spec| Ok(Box::new(Quant::from_spec(spec)?)),
};

/// Stores all slots in few bits: keys channel by channel over blocks of `group` tokens, values token by token over
/// `group` channels, the newest `residual` tokens (up to one block more) in full.
///
/// A storage codec: it evicts nothing and composes with sharing and with any evictor. Under an evictor, dropped cells
/// are hidden until a block of them can be filled; a block keeps the range of values it once had (KIVI itself never
/// evicts). Everything is decoded before it is read, in the dtype of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quant(Quantisation);

impl Quant {
    /// Storage as `codec` has it.
    pub fn new(codec: Quantisation) -> Self {
        Self(codec)
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let bits = if spec.choice("bits", &["8", "4"])? == "4" { 4 } else { 8 };
        let group = spec.number("group", 32, 1..=4096)?;
        let residual = spec.number("residual", 128, 0..=1 << 20)?;
        let codec = Quantisation::new(bits, group, residual)
            .ok_or_else(|| spec.bad("group", &group.to_string(), "groups that the codec has".into()))?;
        spec.finish()?;
        Ok(Self(codec))
    }
}

impl LayerKvPolicy for Quant {
    fn name(&self) -> String {
        format!("quant:bits={},group={},residual={}", self.0.bits(), self.0.group(), self.0.residual())
    }

    fn storage(&self, _group: &Group) -> Option<Storage> {
        Some(Storage::Quantised(self.0))
    }

    fn branch(&self, _rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
        Some(Box::new(*self))
    }
}
