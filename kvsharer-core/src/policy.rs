//! The plugin trait: where a layer's keys and values live, and which tokens stay.

use crate::{Group, LayerId};
use burn::tensor::{Int, Tensor};
use std::fmt;

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kv {
    /// Keys, after rotary position encoding.
    Key,
    /// Values.
    Value,
}

impl fmt::Display for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kv::Key => "key",
            Kv::Value => "value",
        })
    }
}

/// Where a layer finds its keys (or its values).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// In a cache of its own.
    #[default]
    Own,
    /// In the cache of an earlier layer that owns one; its own projection is never computed.
    Borrow(LayerId),
}

/// Where a layer finds its keys and, apart from them, its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Source of the keys.
    pub key: Source,
    /// Source of the values.
    pub value: Source,
}

/// What a policy must see of the attention over a group; what nobody asks for is never computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvidenceKind {
    /// Nothing: the fused attention path runs.
    #[default]
    None,
    /// The softmax mass each cell received, summed over the queries of the forward pass.
    KeyMass,
    /// The softmax rows of the last `n` queries of the forward pass (fewer if it has fewer).
    LastQueries(usize),
}

/// The evidence a policy asked for, in f32 whatever the model's dtype.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// `[batch, kv_head, group, cell]`: mass by query head; query head = `kv_head * group_size + group`.
    KeyMass(Tensor<4>),
    /// `[batch, kv_head, group, query, cell]`: the rows of the last queries, oldest first.
    LastQueries(Tensor<5>),
}

/// What a policy is told when it is asked to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Cached tokens, those of the running forward pass included once they are appended.
    pub len: usize,
    /// Tokens about to be appended; 0 when the question is asked after the last reader.
    pub incoming: usize,
    /// Cells allocated for the group.
    pub capacity: usize,
    /// Tokens the cache has been given so far, evicted ones included.
    pub seen: usize,
}

/// A policy's answer to "which tokens go?". Tokens are counted by age, the oldest is 0.
#[derive(Clone, Debug)]
pub enum Eviction {
    /// Keep everything.
    Nothing,
    /// Drop the tokens `start..end` of every row and head.
    Span {
        /// First token dropped.
        start: usize,
        /// First younger token that stays.
        end: usize,
    },
    /// Keep exactly these cells, per row and head: `[batch, kv_head, kept]`, ascending along the last axis.
    ///
    /// Cells stand in order of age as long as every eviction of the group was a `Keep` made after the last reader.
    Keep(Tensor<3, Int>),
}

/// How a slot stores its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// In the dtype of the cache.
    #[default]
    Full,
}

/// Which position a cached key stands at for the rotary encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Where its token stood in the text.
    #[default]
    Original,
    /// Its place in the cache, counted by age, as StreamingLLM has it: after evictions the oldest `sinks` tokens
    /// move up to the ones behind them. Only [`Eviction::Span`]s that start at `sinks` are allowed with it.
    CacheSlot {
        /// Tokens at the start of the text that never leave.
        sinks: usize,
    },
}

/// A plugin that decides on a transformer's KV cache. Every method has a default ("no opinion"), so that a policy
/// answers only the questions it is about; a [`Stack`](crate::Stack) composes policies that answer different ones.
///
/// Where and how much are asked once, while the [`Plan`](crate::Plan) is made; `observe` and `evict` run during
/// inference. A policy with state serves one cache at a time.
pub trait LayerKvPolicy: Send {
    /// Name and options as a SPEC, `name:key=value,…`, for reports and errors.
    fn name(&self) -> String;

    /// Where `layer` finds its keys and values; `None` leaves the question to others (own cache if nobody answers).
    fn route(&self, layer: LayerId) -> Option<Route> {
        let _ = layer;
        None
    }

    /// Cells `group` needs at most while decoding token by token, the newest token included; `Some` makes this
    /// policy the evictor of the group.
    fn budget(&self, group: &Group) -> Option<usize> {
        let _ = group;
        None
    }

    /// What must be seen of the attention over `group`. Asked of its evictor only.
    fn evidence(&self, group: &Group) -> EvidenceKind {
        let _ = group;
        EvidenceKind::None
    }

    /// How the slots of `group` are stored; `None` leaves the question to others.
    fn storage(&self, group: &Group) -> Option<Storage> {
        let _ = group;
        None
    }

    /// Which positions the keys of `group` stand at. Asked of its evictor only.
    fn positions(&self, group: &Group) -> Positions {
        let _ = group;
        Positions::Original
    }

    /// Takes in what `reader` saw of `group` in this forward pass, once for every reader.
    fn observe(&mut self, group: &Group, reader: LayerId, evidence: &Evidence) {
        let _ = (group, reader, evidence);
    }

    /// Which tokens of `group` go. Asked before a forward pass appends (`state.incoming > 0`: make room) and after
    /// the last reader (`state.incoming == 0`: reduce). All slots of the group, so donor and readers, follow.
    fn evict(&mut self, group: &Group, state: &GroupState) -> Eviction {
        let _ = (group, state);
        Eviction::Nothing
    }

    /// Forgets everything observed, for a cache that starts over.
    fn reset(&mut self) {}
}

/// The identity: every layer keeps its own full cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct FullCache;

impl LayerKvPolicy for FullCache {
    fn name(&self) -> String {
        "full".into()
    }
}

macro_rules! forward_policy {
    ($(#[$attr:meta])* $ty:ty) => {
        $(#[$attr])*
        impl<P: LayerKvPolicy + ?Sized> LayerKvPolicy for $ty {
            fn name(&self) -> String {
                (**self).name()
            }
            fn route(&self, layer: LayerId) -> Option<Route> {
                (**self).route(layer)
            }
            fn budget(&self, group: &Group) -> Option<usize> {
                (**self).budget(group)
            }
            fn evidence(&self, group: &Group) -> EvidenceKind {
                (**self).evidence(group)
            }
            fn storage(&self, group: &Group) -> Option<Storage> {
                (**self).storage(group)
            }
            fn positions(&self, group: &Group) -> Positions {
                (**self).positions(group)
            }
            fn observe(&mut self, group: &Group, reader: LayerId, evidence: &Evidence) {
                (**self).observe(group, reader, evidence)
            }
            fn evict(&mut self, group: &Group, state: &GroupState) -> Eviction {
                (**self).evict(group, state)
            }
            fn reset(&mut self) {
                (**self).reset()
            }
        }
    };
}
forward_policy!(Box<P>);
forward_policy!(&mut P);
