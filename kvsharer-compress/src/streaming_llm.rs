//! StreamingLLM (Xiao et al., arXiv 2309.17453).

use crate::registry::Entry;
use crate::spec::{Spec, SpecError};
use kvsharer_core::{Eviction, Group, GroupState, LayerKvPolicy, Positions};

pub(crate) const ENTRY: Entry = Entry {
    name: "streaming-llm",
    summary: "keep the first tokens (attention sinks) and the newest ones",
    options: "sinks=4, window=508, positions=cache|original",
    source: "arXiv 2309.17453; mit-han-lab/streaming-llm",
    parse: |spec| Ok(Box::new(StreamingLlm::from_spec(spec)?)),
};

/// Keeps the first `sinks` tokens and the last `window` ones, so that memory is bounded whatever the length.
///
/// As in the reference (`kv_cache.py`, `evict_for_space`), room is made before tokens are appended, so a decoding
/// query sees `sinks + window` tokens, itself included; a longer prompt is attended in full and reduced after the
/// last layer that reads the cache.
///
/// Positions: by default the reference's cache slots (`pos_shift/modify_llama.py`), i.e. the sinks stand right before
/// the window. The reference stores keys unrotated and rotates all of them at every step; as rotary positions are
/// relative, turning only the sinks is the same. `positions=original` leaves keys where their tokens stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingLlm {
    sinks: usize,
    window: usize,
    original_positions: bool,
}

impl StreamingLlm {
    /// Sinks and window, with cache-slot positions.
    pub fn new(sinks: usize, window: usize) -> Self {
        Self { sinks, window, original_positions: false }
    }

    /// Leaves keys at the positions of their tokens in the text.
    pub fn with_original_positions(self) -> Self {
        Self { original_positions: true, ..self }
    }

    fn from_spec(mut spec: Spec<'_>) -> Result<Self, SpecError> {
        let policy = Self {
            sinks: spec.number("sinks", 4, 0..=1 << 20)?,
            window: spec.number("window", 508, 1..=1 << 24)?,
            original_positions: spec.choice("positions", &["cache", "original"])? == "original",
        };
        spec.finish()?;
        Ok(policy)
    }
}

impl LayerKvPolicy for StreamingLlm {
    fn name(&self) -> String {
        let positions = if self.original_positions { ",positions=original" } else { "" };
        format!("streaming-llm:sinks={},window={}{positions}", self.sinks, self.window)
    }

    fn budget(&self, _group: &Group) -> Option<usize> {
        Some(self.sinks + self.window)
    }

    fn positions(&self, _group: &Group) -> Positions {
        match self.original_positions {
            true => Positions::Original,
            false => Positions::CacheSlot { sinks: self.sinks },
        }
    }

    fn evict(&mut self, _group: &Group, state: &GroupState) -> Eviction {
        let excess = (state.len + state.incoming).saturating_sub(self.sinks + self.window);
        let start = self.sinks.min(state.len);
        let end = (start + excess).min(state.len);
        if start == end { Eviction::Nothing } else { Eviction::Span { start, end } }
    }
}
