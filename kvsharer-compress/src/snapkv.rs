//! SnapKV (Li et al., arXiv 2404.14469).

use crate::amounts::Amounts;
use crate::options::{self, check_room};
use crate::registry::Entry;
use crate::scored::{Decode, Method, Options, Scored};
use crate::spec::{Spec, SpecError};
use std::ops::Range;

pub(crate) const ENTRY: Entry = Entry {
    name: "snapkv",
    summary: "keep what the last queries of the prompt look at, smoothed over neighbours; then all tokens stay",
    options: "variant=original|kvpress, budget=512 (kvpress: 50%), window=32 (kvpress: 64), kernel=5, pool=avg|max, decode=grow|evict",
    scored: true,
    solves: Some(&[]),
    source: "arXiv 2404.14469; FasterDecoding/SnapKV, KVCache-Factory, kvpress SnapKVPress",
    parse: |spec| Ok(Box::new(Scored::new(SnapKv::from_spec(spec)?))),
};

/// How scores are smoothed over neighbouring tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// Mean, zeros beyond the ends counted (`avg_pool1d`).
    #[default]
    Avg,
    /// Maximum (`max_pool1d`).
    Max,
}

/// Keeps the last `window` tokens of the prompt and, of the older ones, those with the greatest softmax mass from these
/// queries, pooled over `kernel` neighbours (`snapkv_utils.py`, `update_kv`).
///
/// A prompt within the budget stays whole, and so do all tokens after it: the cache grows. With `decode=evict`, which
/// no reference has, the same happens again every `window` tokens, by the queries since the last time.
///
/// The original works on keys repeated for each query head; here as in KVCache-Factory's grouped path scores are
/// reduced over the query group (before pooling; kvpress pools first, which is the same for a mean).
#[derive(Clone, Debug, PartialEq)]
pub struct SnapKv {
    kvpress: bool,
    budget: Amounts,
    window: usize,
    kernel: usize,
    pool: Pool,
    options: Options,
}

impl SnapKv {
    /// The original with a window of 32 and mean pooling over 5 tokens.
    pub fn new(budget: impl Into<Amounts>) -> Self {
        let options = Options { decode: Decode::Grow, ..Options::default() };
        Self { kvpress: false, budget: budget.into(), window: 32, kernel: 5, pool: Pool::Avg, options }
    }

    /// The same with another window.
    pub fn with_window(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// The same with other pooling.
    pub fn with_pool(self, pool: Pool, kernel: usize) -> Self {
        Self { pool, kernel, ..self }
    }

    /// Reduces the cache to its budget again every `window` tokens.
    pub fn evicting(mut self) -> Self {
        self.options.decode = Decode::Every(self.window);
        self
    }

    /// The same with other common options, but for `decode`.
    pub fn with_options(self, options: Options) -> Self {
        Self { options: Options { decode: self.options.decode, ..options }, ..self }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let policy = Self::take(&mut spec)?;
        spec.finish()?;
        Ok(policy)
    }

    /// Takes the options out that PyramidKV has too.
    pub(crate) fn take(spec: &mut Spec<'_>) -> Result<Self, SpecError> {
        let kvpress = spec.choice("variant", &["original", "kvpress"])? == "kvpress";
        let budget = spec.amounts("budget", if kvpress { "50%" } else { "512" })?;
        let window = spec.number("window", if kvpress { 64 } else { 32 }, 1..=4096)?;
        let kernel = spec.odd("kernel", 5, 1..=255)?;
        let pool = if spec.choice("pool", &["avg", "max"])? == "max" { Pool::Max } else { Pool::Avg };
        let options = options::take(spec, &[("grow", Decode::Grow), ("evict", Decode::Every(window))])?;
        Ok(Self { kvpress, budget, window, kernel, pool, options })
    }

    pub(crate) fn is_kvpress(&self) -> bool {
        self.kvpress
    }

    pub(crate) fn budget(&self) -> &Amounts {
        &self.budget
    }

    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// The options as a SPEC has them, after the name.
    pub(crate) fn print(&self) -> String {
        let variant = if self.kvpress { "variant=kvpress," } else { "" };
        let pool = if self.pool == Pool::Max { ",pool=max" } else { "" };
        let decode = if self.options.decode == Decode::Grow { "" } else { ",decode=evict" };
        let common = options::print(self.options);
        let Self { budget, window, kernel, .. } = self;
        format!("{variant}budget={budget},window={window},kernel={kernel}{pool}{decode}{common}")
    }
}

impl Method for SnapKv {
    fn spec(&self) -> String {
        format!("snapkv:{}", self.print())
    }

    fn options(&self) -> Options {
        self.options
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.budget.of(layer, layers, prompt)
    }

    fn recent(&self, _layer: usize, _layers: usize, _prompt: usize) -> usize {
        self.window
    }

    fn weights(&self, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        let evicts = self.options.decode != Decode::Grow;
        let window = prompt.saturating_sub(self.window)..prompt;
        let counts = |query: usize| window.contains(&query) || (query >= prompt && evicts);
        Some(queries.map(|query| if counts(query) { 1.0 } else { 0.0 }).collect())
    }

    fn forgets(&self) -> bool {
        true
    }

    fn finish(&self, candidates: &mut [(i64, f32)], _seen: usize) {
        let scores: Vec<f32> = candidates.iter().map(|(_, score)| *score).collect();
        for (index, (_, score)) in candidates.iter_mut().enumerate() {
            let reach = self.kernel / 2;
            let near = &scores[index.saturating_sub(reach)..(index + reach + 1).min(scores.len())];
            *score = match self.pool {
                Pool::Avg => near.iter().sum::<f32>() / self.kernel as f32,
                Pool::Max => near.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            };
        }
    }

    fn check(&self, layers: usize) -> Result<(), String> {
        self.budget.check("budget", layers)?;
        check_room(self.budget.least(), self.options.protect, self.window)
    }
}
