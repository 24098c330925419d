//! H2O, the heavy hitter oracle (Zhang et al., arXiv 2306.14048).

use crate::amounts::{Amount, Amounts};
use crate::options::{self, check_room};
use crate::registry::Entry;
use crate::scored::{Decode, Method, Options, Scored};
use crate::spec::{Spec, SpecError};
use std::ops::Range;

pub(crate) const ENTRY: Entry = Entry {
    name: "h2o",
    summary: "keep the tokens that received the most attention so far, and the newest ones",
    options: "variant=real-drop|streaming|ratio|observed, heavy=256, recent=256 (or budget=512 for both; ratio: 10% each; observed: budget=50%), decode=each|grow",
    scored: true,
    solves: Some(&["heavy", "recent"]),
    source: "arXiv 2306.14048; FMInference/H2O, kvpress ObservedAttentionPress",
    parse: |spec| Ok(Box::new(Scored::new(H2o::from_spec(spec)?))),
};

/// Keeps the `heavy` tokens with the greatest softmax mass, summed over all queries so far, among those before the
/// `recent` newest ones, and the latter.
///
/// Variants, by published code:
/// - [`real_drop`](Self::real_drop): `utils_real_drop/modify_llama.py`, `H2OKVCache_LayerWise.__call__`: the prompt is
///   attended in full, evictions follow each forward pass, keys stay at the positions of their tokens.
/// - [`streaming`](Self::streaming): `H2OLlamaAttention_streaming` there: keys stand at their place in the cache.
/// - [`ratio`](Self::ratio): budgets are shares of the prompt, as in `utils_hh/modify_llama.py`. That code masks tokens
///   and can bring a masked one back; here they are dropped.
/// - [`observed`](Self::observed): kvpress' `ObservedAttentionPress`: the mass is divided by the number of queries that
///   saw the key, nothing is kept for being recent, and only the prompt is reduced.
///
/// The references sum over a batch; here each row keeps its own tokens. They know multi-head attention only: the mass
/// of a query group is reduced in each pass as the option `group` says.
#[derive(Clone, Debug, PartialEq)]
pub struct H2o {
    variant: Variant,
    heavy: Amounts,
    recent: Amounts,
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    RealDrop,
    Streaming,
    Ratio,
    Observed,
}

impl H2o {
    /// Heavy hitters and recent tokens, at their positions in the text.
    pub fn real_drop(heavy: impl Into<Amounts>, recent: impl Into<Amounts>) -> Self {
        let options = Options::default();
        Self { variant: Variant::RealDrop, heavy: heavy.into(), recent: recent.into(), options }
    }

    /// Heavy hitters and recent tokens, at their places in the cache.
    pub fn streaming(heavy: impl Into<Amounts>, recent: impl Into<Amounts>) -> Self {
        let options = Options { cache_positions: true, ..Options::default() };
        Self { variant: Variant::Streaming, options, ..Self::real_drop(heavy, recent) }
    }

    /// Heavy hitters and recent tokens as shares of the prompt.
    pub fn ratio(heavy: f64, recent: f64) -> Self {
        let share = |share| Amounts::Same(Amount::Share(share));
        Self { variant: Variant::Ratio, ..Self::real_drop(share(heavy), share(recent)) }
    }

    /// kvpress' observed attention, keeping `budget` tokens of the prompt.
    pub fn observed(budget: impl Into<Amounts>) -> Self {
        let options = Options { decode: Decode::Grow, ..Options::default() };
        Self { variant: Variant::Observed, options, ..Self::real_drop(budget, 0) }
    }

    /// The same with other common options.
    pub fn with_options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let variant = spec.choice("variant", &["real-drop", "streaming", "ratio", "observed"])?;
        let observed = variant == "observed";
        let budget = if observed || spec.has("budget") { Some(spec.amounts("budget", "50%")?) } else { None };
        let policy = match (variant, budget) {
            ("observed", Some(budget)) => Self::observed(budget),
            (_, budget) => {
                let default = if variant == "ratio" { "10%" } else { "256" };
                let (heavy, recent) = match budget {
                    Some(budget) => budget.halves(),
                    None => (spec.amounts("heavy", default)?, spec.amounts("recent", default)?),
                };
                match variant {
                    "streaming" => Self::streaming(heavy, recent),
                    "ratio" => Self { variant: Variant::Ratio, ..Self::real_drop(heavy, recent) },
                    _ => Self::real_drop(heavy, recent),
                }
            }
        };
        let decodes = [("each", Decode::Each), ("grow", Decode::Grow)];
        let mut options = options::take(&mut spec, &if observed { [decodes[1], decodes[0]] } else { decodes })?;
        options.cache_positions |= variant == "streaming";
        spec.finish()?;
        Ok(policy.with_options(options))
    }
}

impl Method for H2o {
    fn spec(&self) -> String {
        let Self { heavy, recent, .. } = self;
        let start = match self.variant {
            Variant::RealDrop => format!("h2o:heavy={heavy},recent={recent}"),
            Variant::Streaming => format!("h2o:variant=streaming,heavy={heavy},recent={recent}"),
            Variant::Ratio => format!("h2o:variant=ratio,heavy={heavy},recent={recent}"),
            Variant::Observed => format!("h2o:variant=observed,budget={heavy}"),
        };
        let streaming = self.variant == Variant::Streaming;
        let printed = Options { cache_positions: self.options.cache_positions && !streaming, ..self.options };
        let decode = match (self.variant, self.options.decode) {
            (Variant::Observed, Decode::Each) => ",decode=each",
            (Variant::RealDrop | Variant::Streaming | Variant::Ratio, Decode::Grow) => ",decode=grow",
            _ => "",
        };
        format!("{start}{decode}{}", options::print(printed))
    }

    fn options(&self) -> Options {
        self.options
    }

    fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.heavy.of(layer, layers, prompt) + self.recent.of(layer, layers, prompt)
    }

    fn recent(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.recent.of(layer, layers, prompt)
    }

    fn weights(&self, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        let idle = self.options.decode == Decode::Grow;
        idle.then(|| queries.map(|query| if query < prompt { 1.0 } else { 0.0 }).collect())
    }

    fn finish(&self, candidates: &mut [(i64, f32)], seen: usize) {
        if self.variant == Variant::Observed {
            candidates.iter_mut().for_each(|(position, score)| *score /= (seen as i64 - *position) as f32);
        }
    }

    fn check(&self, layers: usize) -> Result<(), String> {
        self.heavy.check("heavy", layers)?;
        self.recent.check("recent", layers)?;
        check_room(self.heavy.least(), self.options.protect, 0)
    }
}
