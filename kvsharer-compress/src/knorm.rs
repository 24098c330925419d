//! Key norms (Devoto et al., arXiv 2406.11430).

use crate::amounts::Amounts;
use crate::budgeted::Budgeted;
use crate::registry::Entry;
use crate::scored::{Method, Options, Scored};
use crate::spec::{Spec, SpecError};
use burn::tensor::{DType, Tensor};
use kvsharer_core::{Evidence, EvidenceKind};

pub(crate) const ENTRY: Entry = Entry {
    name: "knorm",
    summary: "keep the keys of the smallest L2 norm; needs no attention weights",
    options: "budget=512, decode=each|grow",
    scored: true,
    solves: Some(&[]),
    source: "arXiv 2406.11430; kvpress KnormPress",
    parse: |spec| Ok(Box::new(Scored::new(Knorm::from_spec(spec)?))),
};

/// Keeps the `budget` keys of each head with the smallest L2 norm, computed in f32.
///
/// kvpress reduces the prompt alone: `decode=grow`. Readers of one key cache see the same keys, so `readers` makes a
/// difference only where keys are shared by other layers than values.
#[derive(Clone, Debug, PartialEq)]
pub struct Knorm(Budgeted);

impl Knorm {
    /// Keeps `budget` tokens.
    pub fn new(budget: impl Into<Amounts>) -> Self {
        Self(Budgeted::new(budget))
    }

    /// The same with other common options.
    pub fn with_options(self, options: Options) -> Self {
        Self(Budgeted { options, ..self.0 })
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let budgeted = Budgeted::take(&mut spec)?;
        spec.finish()?;
        Ok(Self(budgeted))
    }
}

impl Method for Knorm {
    fn spec(&self) -> String {
        format!("knorm:budget={}{}", self.0.budget, self.0.print_options())
    }

    fn options(&self) -> Options {
        self.0.options
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.0.kept(layer, layers, prompt)
    }

    fn evidence(&self) -> EvidenceKind {
        EvidenceKind::Keys
    }

    fn score(&self, evidence: &Evidence) -> Option<Tensor<3>> {
        let Evidence::Keys(keys) = evidence else {
            return None;
        };
        let squares = keys.clone().cast(DType::F32).square().sum_dim(3);
        Some(squares.squeeze_dim::<3>(3).sqrt().neg())
    }

    fn accumulates(&self) -> bool {
        false
    }

    fn check(&self, layers: usize) -> Result<(), String> {
        self.0.check(layers, 0)
    }
}
