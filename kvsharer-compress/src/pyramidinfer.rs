//! The cache part of PyramidInfer (Yang et al., arXiv 2405.12532).

use crate::amounts::Amount;
use crate::options;
use crate::registry::Entry;
use crate::scored::{Decode, Method, Options, Scored};
use crate::spec::{Spec, SpecError};
use burn::tensor::Tensor;
use kvsharer_core::Evidence;
use std::f64::consts::PI;
use std::ops::Range;

pub(crate) const ENTRY: Entry = Entry {
    name: "pyramidinfer-cache",
    summary: "keep what the last fifth of the prompt looks at, a share that falls with depth; all tokens are computed",
    options: "final=50%, recent=20%, min=64, decode=grow|evict (every 16 tokens); protect=4",
    scored: true,
    solves: None,
    source: "arXiv 2405.12532; mutonix/pyramidinfer (cache part only)",
    parse: |spec| Ok(Box::new(Scored::new(PyramidInferCache::from_spec(spec)?))),
};

/// First tokens of the text that stay (`streamingllm_sink_len`).
const SINKS: usize = 4;

/// Tokens between two reductions while decoding (`exceed_length_to_compress`).
const CHUNK: usize = 16;

/// Weight of the newest query's row; the oldest of the recent ones has 1 (`distance_weight`).
const DISTANCE_WEIGHT: f32 = 1.2;

/// Keeps the recent tokens of the prompt and, of its context, the share that is looked at most by them.
///
/// As in `modeling_llama_pyramidinfer.py` rows of the last `1 + recent` queries are averaged over all heads, newer ones
/// weighing up to 1.2, one set of tokens serves all heads, the first 4 tokens stay, and layer `l` of `N` keeps
/// `rho_l = (1 - final) (cos(pi l / N) + 1) / 2 + final` of the context unless that is `min` tokens or less.
///
/// What is left out, hence the name: the reference passes only the chosen tokens on to deeper layers, so that these
/// compute and cache fewer tokens, shares multiply up from layer to layer, and prefill gets cheaper. Here every layer
/// computes all tokens, and reduces its own cache by its own share. While decoding, the reference thins out the chunk of
/// 16 tokens that leaves the recent ones; with `decode=evict` this one goes back to its budget every 16 tokens, by the
/// rows of the queries since then.
#[derive(Clone, Debug, PartialEq)]
pub struct PyramidInferCache {
    last_share: f64,
    recent: f64,
    least: usize,
    options: Options,
}

impl PyramidInferCache {
    /// Keeps `last_share` of the context in the last layer; 20 % of the prompt are recent.
    pub fn new(last_share: f64) -> Self {
        let options = Options { protect: SINKS, decode: Decode::Grow, ..Options::default() };
        Self { last_share: last_share.clamp(0.0, 1.0), recent: 0.2, least: 64, options }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let last_share = spec.share("final", 0.5)?;
        let recent = spec.share("recent", 0.2)?;
        let least = spec.number("min", 64, 1..=1 << 20)?;
        let protected = spec.has("protect");
        let mut options = options::take(&mut spec, &[("grow", Decode::Grow), ("evict", Decode::Every(CHUNK))])?;
        if !protected {
            options.protect = SINKS;
        }
        spec.finish()?;
        Ok(Self { last_share, recent, least, options })
    }

    fn recent_of(&self, prompt: usize) -> usize {
        1 + Amount::Share(self.recent).of(prompt)
    }
}

impl Method for PyramidInferCache {
    fn spec(&self) -> String {
        let decode = if self.options.decode == Decode::Grow { "" } else { ",decode=evict" };
        let protect = format!(",protect={}", self.options.protect);
        let common = options::print(Options { protect: 0, ..self.options });
        let Self { last_share, recent, least, .. } = self;
        format!("pyramidinfer-cache:final={last_share},recent={recent},min={least}{decode}{protect}{common}")
    }

    fn options(&self) -> Options {
        self.options
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        let recent = self.recent_of(prompt);
        let context = prompt.saturating_sub(recent);
        let way = PI * layer as f64 / layers as f64;
        let share = (1.0 - self.last_share) * (way.cos() + 1.0) / 2.0 + self.last_share;
        let kept = Amount::Share(share).of(context);
        recent + if kept > self.least.min(context) { kept } else { context }
    }

    fn recent(&self, _layer: usize, _layers: usize, prompt: usize) -> usize {
        self.recent_of(prompt)
    }

    fn weights(&self, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        let recent = self.recent_of(prompt);
        let start = prompt.saturating_sub(recent);
        let step = (DISTANCE_WEIGHT - 1.0) / (recent - 1).max(1) as f32;
        let evicts = self.options.decode != Decode::Grow;
        let weight = |query: usize| match query {
            query if query < start => 0.0,
            query if query < prompt => 1.0 + (query - start) as f32 * step,
            _ if evicts => 1.0,
            _ => 0.0,
        };
        Some(queries.map(weight).collect())
    }

    fn score(&self, evidence: &Evidence) -> Option<Tensor<3>> {
        over_all_heads(evidence)
    }

    fn forgets(&self) -> bool {
        true
    }
}

/// The mean mass over all query heads, for every key-value head: `[batch, kv_head, cell]`.
pub(crate) fn over_all_heads(evidence: &Evidence) -> Option<Tensor<3>> {
    let Evidence::KeyMass(mass) = evidence else {
        return None;
    };
    let [batch, heads, group, cells] = mass.dims();
    let mean = mass.clone().reshape([batch, heads * group, cells]).mean_dim(1);
    Some(mean.expand([batch, heads, cells]))
}
