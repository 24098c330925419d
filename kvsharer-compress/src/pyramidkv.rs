//! PyramidKV (Cai et al., arXiv 2406.02069).

use crate::registry::Entry;
use crate::scored::{Decode, Method, Options, Scored};
use crate::snapkv::SnapKv;
use crate::spec::{Spec, SpecError};
use std::ops::Range;

pub(crate) const ENTRY: Entry = Entry {
    name: "pyramidkv",
    summary: "SnapKV with more tokens for the first layers and fewer for the last, the budget being their mean",
    options: "beta=20, and those of snapkv",
    scored: true,
    solves: Some(&[]),
    source: "arXiv 2406.02069; KVCache-Factory PyramidKVCluster, kvpress PyramidKVPress",
    parse: |spec| Ok(Box::new(Scored::new(PyramidKv::from_spec(spec)?))),
};

/// A prompt that is longer than any budget.
const ENDLESS: usize = 1 << 32;

/// Scores tokens as [`SnapKv`] does; budgets fall in equal steps from the first layer to the last, about the same mean.
///
/// `beta` says how pointed the pyramid is: without the window the last layer keeps a `beta`-th of the mean. Original
/// (`pyramidkv_utils.py`, `PyramidKVCluster`): whole numbers, a prompt within the budget stays whole, one shorter than
/// twice the budget gives all layers the same. kvpress: budgets are shares of the prompt, rounded at the end, and all
/// layers get the same where the last one would have less than the window. With `decode=evict` budgets are those of a
/// prompt without end.
#[derive(Clone, Debug, PartialEq)]
pub struct PyramidKv {
    snapkv: SnapKv,
    beta: usize,
}

impl PyramidKv {
    /// The pyramid of a SnapKV whose budget is the mean over the layers.
    pub fn new(snapkv: SnapKv, beta: usize) -> Self {
        Self { snapkv, beta: beta.max(1) }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let beta = spec.number("beta", 20, 1..=1000)?;
        let snapkv = SnapKv::take(&mut spec)?;
        spec.finish()?;
        Ok(Self { snapkv, beta })
    }

    fn original(&self, mean: usize, layer: usize, layers: usize, prompt: usize) -> usize {
        let window = self.snapkv.window();
        let outside = mean.saturating_sub(window);
        if prompt < mean || prompt < 2 * outside {
            return mean;
        }
        let (mut least, mut most) = (outside / self.beta, 2 * outside - outside / self.beta);
        if most + window >= prompt {
            most = prompt.saturating_sub(window);
            least = (2 * outside).saturating_sub(most);
        }
        let step = most.saturating_sub(least) / layers.saturating_sub(1).max(1);
        most.saturating_sub(layer * step) + window
    }

    fn kvpress(&self, mean: f64, layer: usize, layers: usize, prompt: usize) -> usize {
        let (window, prompt) = (self.snapkv.window() as f64, prompt as f64);
        let mut least = mean / self.beta as f64;
        let mut most = 2.0 * mean - least;
        if most >= prompt - window {
            most = prompt - window;
            least = 2.0 * mean - most;
        }
        if !(prompt >= most && most >= least && least >= window) {
            return (mean.round_ties_even() as usize).max(1);
        }
        let step = if layers > 1 { (most - least) / (layers - 1) as f64 } else { 0.0 };
        (most - layer as f64 * step).round_ties_even() as usize
    }
}

impl Method for PyramidKv {
    fn spec(&self) -> String {
        format!("pyramidkv:beta={},{}", self.beta, self.snapkv.print())
    }

    fn options(&self) -> Options {
        self.snapkv.options()
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        let budget = self.snapkv.budget();
        // A cache that is reduced again and again gets to where a long prompt would be at once.
        let length = if self.options().decode == Decode::Grow { prompt } else { prompt.max(ENDLESS) };
        match self.snapkv.is_kvpress() {
            true => self.kvpress(budget.exactly(layer, layers, prompt), layer, layers, length),
            false => self.original(budget.of(layer, layers, prompt), layer, layers, length),
        }
    }

    fn recent(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.snapkv.recent(layer, layers, prompt)
    }

    fn weights(&self, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        self.snapkv.weights(queries, prompt)
    }

    fn forgets(&self) -> bool {
        true
    }

    fn finish(&self, candidates: &mut [(i64, f32)], seen: usize) {
        self.snapkv.finish(candidates, seen)
    }

    fn check(&self, layers: usize) -> Result<(), String> {
        self.snapkv.check(layers)
    }
}
