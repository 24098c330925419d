//! TOVA, token omission via attention (Oren et al., arXiv 2401.06104).

use crate::amounts::Amounts;
use crate::budgeted::Budgeted;
use crate::pyramidinfer::over_all_heads;
use crate::registry::Entry;
use crate::scored::{Decode, Method, Options, Scored};
use crate::spec::{Spec, SpecError};
use burn::tensor::Tensor;
use kvsharer_core::Evidence;
use std::ops::Range;

pub(crate) const ENTRY: Entry = Entry {
    name: "tova",
    summary: "drop the token that the newest query attends to least, the same in all heads",
    options: "budget=512, decode=each|grow",
    scored: true,
    solves: Some(&[]),
    source: "arXiv 2401.06104; schwartz-lab-NLP/TOVA, kvpress TOVAPress",
    parse: |spec| Ok(Box::new(Scored::new(Tova::from_spec(spec)?))),
};

/// Keeps the `budget` tokens with the greatest softmax weight of the newest query, averaged over all heads
/// (`tova_cache.py`, `reduce`).
///
/// The newest token always stays, as in kvpress; the original does not enforce it. `decode=grow` reduces the prompt
/// alone, as kvpress does.
#[derive(Clone, Debug, PartialEq)]
pub struct Tova(Budgeted);

impl Tova {
    /// Keeps `budget` tokens.
    pub fn new(budget: impl Into<Amounts>) -> Self {
        Self(Budgeted::new(budget))
    }

    /// The same with other common options; a reduction over the query group has no meaning here.
    pub fn with_options(self, options: Options) -> Self {
        Self(Budgeted { options, ..self.0 })
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let budgeted = Budgeted::take(&mut spec)?;
        spec.finish()?;
        Ok(Self(budgeted))
    }
}

impl Method for Tova {
    fn spec(&self) -> String {
        format!("tova:budget={}{}", self.0.budget, self.0.print_options())
    }

    fn options(&self) -> Options {
        self.0.options
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.0.kept(layer, layers, prompt)
    }

    fn recent(&self, _layer: usize, _layers: usize, _prompt: usize) -> usize {
        1
    }

    fn weights(&self, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        // With nothing to do after the prompt, its newest query counts, even if a pass goes on behind it.
        let end = if self.0.options.decode == Decode::Grow { queries.end.min(prompt) } else { queries.end };
        Some(queries.map(|query| if query + 1 == end { 1.0 } else { 0.0 }).collect())
    }

    fn score(&self, evidence: &Evidence) -> Option<Tensor<3>> {
        over_all_heads(evidence)
    }

    fn accumulates(&self) -> bool {
        false
    }

    fn check(&self, layers: usize) -> Result<(), String> {
        self.0.check(layers, 1)
    }
}
