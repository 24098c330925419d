//! StreamingLLM (Xiao et al., arXiv 2309.17453) and the plain window.

use crate::amounts::Amounts;
use crate::registry::Entry;
use crate::select::{Wanted, keep_best, worst};
use crate::spec::{Spec, SpecError};
use burn::tensor::{Int, Tensor};
use kvsharer_core::{Budget, Eviction, Group, GroupState, LayerKvPolicy, ModelShape, Positions};

pub(crate) const ENTRY: Entry = Entry {
    name: "streaming-llm",
    summary: "keep the first tokens (attention sinks) and the newest ones",
    options: "sinks=4, window=508 (or budget=512 for both), positions=cache|original",
    scored: false,
    solves: Some(&["window"]),
    source: "arXiv 2309.17453; mit-han-lab/streaming-llm",
    parse: |spec| Ok(Box::new(StreamingLlm::from_spec(spec)?)),
};

pub(crate) const WINDOW: Entry = Entry {
    name: "window",
    summary: "keep the newest tokens; what StreamingLLM is compared with",
    options: "budget=512, protect=0",
    scored: false,
    solves: Some(&[]),
    source: "arXiv 2309.17453, window attention",
    parse: |spec| Ok(Box::new(StreamingLlm::window_from_spec(spec)?)),
};

/// Keeps the first `sinks` tokens and the last `window` ones, so that memory is bounded whatever the length.
///
/// As in the reference (`kv_cache.py`, `evict_for_space`), room is made before tokens are appended, so a decoding
/// query sees `sinks + window` tokens, itself included; a longer prompt is attended in full and reduced after the
/// last layer that reads the cache. Chunks of a prompt are evicted in turn: they see less than a prompt in one pass.
///
/// Positions: by default the reference's cache slots (`pos_shift/modify_llama.py`), i.e. the sinks stand right before
/// the window. The reference stores keys unrotated and rotates all of them at every step; as rotary positions are
/// relative, turning only the sinks is the same. `positions=original` leaves keys where their tokens stood.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamingLlm {
    name: &'static str,
    sinks: usize,
    window: Amounts,
    original_positions: bool,
}

impl StreamingLlm {
    /// Sinks and window, with cache-slot positions.
    pub fn new(sinks: usize, window: impl Into<Amounts>) -> Self {
        Self { name: ENTRY.name, sinks, window: window.into(), original_positions: false }
    }

    /// The newest tokens alone, at their positions in the text.
    pub fn window(tokens: impl Into<Amounts>) -> Self {
        Self { name: WINDOW.name, original_positions: true, ..Self::new(0, tokens) }
    }

    /// Leaves keys at the positions of their tokens in the text.
    pub fn with_original_positions(self) -> Self {
        Self { original_positions: true, ..self }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let sinks = spec.number("sinks", 4, 0..=1 << 20)?;
        let window = match spec.has("budget") {
            true => spec.amounts("budget", "512")?.less(sinks),
            false => spec.amounts("window", "508")?,
        };
        let original_positions = spec.choice("positions", &["cache", "original"])? == "original";
        let policy = Self { name: ENTRY.name, sinks, window, original_positions };
        policy.check_window(&spec, if spec.took("budget") { "budget" } else { "window" })?;
        spec.finish()?;
        Ok(policy)
    }

    fn window_from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let sinks = spec.number("protect", 0, 0..=1 << 20)?;
        let window = spec.amounts("budget", "512")?.less(sinks);
        let policy = Self { name: WINDOW.name, sinks, window, original_positions: true };
        policy.check_window(&spec, "budget")?;
        spec.finish()?;
        Ok(policy)
    }

    fn check_window(&self, spec: &Spec<'_>, option: &str) -> Result<(), SpecError> {
        if self.window.least() > 0 {
            return Ok(());
        }
        let first = self.sinks;
        Err(spec.bad(option, &spec.text_of(option), format!("room for the newest token beside the first {first}")))
    }

    fn kept(&self, group: &Group, prompt: usize) -> usize {
        // A share of a short prompt may be nothing; the newest token stays.
        self.sinks + self.window.of(group.first().0, group.model_layers, prompt).max(1)
    }
}

impl LayerKvPolicy for StreamingLlm {
    fn name(&self) -> String {
        let Self { sinks, window, .. } = self;
        if self.name == WINDOW.name {
            let protect = if *sinks > 0 { format!(",protect={sinks}") } else { String::new() };
            return format!("window:budget={}{protect}", window.more(*sinks));
        }
        let positions = if self.original_positions { ",positions=original" } else { "" };
        format!("streaming-llm:sinks={sinks},window={window}{positions}")
    }

    fn check(&self, model: &ModelShape) -> Result<(), String> {
        self.window.check("window", model.len())
    }

    fn budget(&self, group: &Group) -> Option<Budget> {
        let (policy, group) = (self.clone(), group.clone());
        Some(Budget::of_prompt(move |prompt| policy.kept(&group, prompt)))
    }

    fn positions(&self, _group: &Group) -> Positions {
        match self.original_positions {
            true => Positions::Original,
            false => Positions::CacheSlot { sinks: self.sinks },
        }
    }

    fn evict(&mut self, group: &Group, state: &GroupState<'_>) -> Eviction {
        let excess = (state.len + state.incoming).saturating_sub(self.kept(group, state.prompt));
        // Sinks behind a sliding window are gone.
        let start = self.sinks.saturating_sub(state.visible_from).min(state.len);
        let end = (start + excess).min(state.len);
        if start == end {
            return Eviction::Nothing;
        }
        if state.padding.is_empty() {
            return Eviction::Span { start, end };
        }
        // Rows start at different tokens, so each has its own sinks: the age of a token is its score.
        let keep = state.len - (end - start);
        let wanted = Wanted { keep, protect: self.sinks, recent: 0 };
        let age = state.positions().float();
        match end - start {
            1 => Eviction::Drop(worst(age, state, wanted)),
            _ => keep_best(age, state, wanted, |_| {}).map_or(Eviction::Nothing, Eviction::Keep),
        }
    }

    fn regular(&self) -> bool {
        true
    }

    fn branch(&self, _rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
        Some(Box::new(self.clone()))
    }
}
