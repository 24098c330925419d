//! The plugin trait: where a layer's keys and values live, and which tokens stay.

use crate::cache::KeptTokens;
use crate::{Budget, Group, LayerId, ModelShape, Quantisation};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::fmt;
use std::ops::Range;

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
    /// The softmax mass each cell received, summed over the queries of the forward pass, each with the weight that
    /// [`LayerKvPolicy::weights`] gives it.
    KeyMass,
    /// The keys themselves: nothing is computed, and the fused attention path runs.
    Keys,
}

/// The evidence a policy asked for, in f32 whatever the model's dtype.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// `[batch, kv_head, group, cell]`: mass by query head; query head = `kv_head * group_size + group`.
    KeyMass(Tensor<4>),
    /// `[batch, kv_head, cell, head_dim]`, rotated, in the dtype of the cache. Do not hold on to it: a second handle
    /// makes the next write copy the buffer.
    Keys(Tensor<4>),
}

/// Stands for a position in a cell that holds no token: its token was dropped and nothing has taken its place.
pub const EMPTY: i64 = -1;

/// Stands for a position in a cell that holds padding of a shorter row of the batch. Nobody looks at it.
pub const PADDING: i64 = -2;

/// What a policy is told when it is asked to evict.
#[derive(Clone, Debug)]
pub struct GroupState<'a> {
    /// Cached tokens of each row and head, padding and those of the running forward pass (once they are appended)
    /// included.
    pub len: usize,
    /// Cells in use, [`EMPTY`] ones included: the last axis of evidence.
    pub cells: usize,
    /// Tokens about to be appended; 0 when the question is asked after the last reader.
    pub incoming: usize,
    /// Cells allocated for the group.
    pub capacity: usize,
    /// Tokens the cache has been given so far, evicted ones included.
    pub seen: usize,
    /// Tokens of the running forward pass.
    pub pass: usize,
    /// Length of the prompt: what the cache was made for, or else the first forward pass.
    pub prompt: usize,
    /// Padding before the first token of each row of the batch; empty if there is none.
    pub padding: &'a [usize],
    /// Position of the oldest token that later queries may look at: 0 but for a sliding window. Older ones that are
    /// still cached are of no more use.
    pub visible_from: usize,
    pub(crate) tokens: Tokens<'a>,
}

/// Where the tokens of a group stand.
#[derive(Clone, Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) kept: &'a KeptTokens,
    pub(crate) by_age: &'a [usize],
    /// Rows and key-value heads.
    pub(crate) shape: [usize; 2],
    pub(crate) device: &'a Device,
}

impl GroupState<'_> {
    /// Whether the prompt has been run, the running forward pass included.
    pub fn prompt_done(&self) -> bool {
        self.seen >= self.prompt
    }

    /// Text position of the token in each cell, or [`EMPTY`], or [`PADDING`]. Of two tokens of a row and head the
    /// older one has the smaller position.
    ///
    /// # Shapes
    /// `[batch, kv_head, cell]`.
    pub fn positions(&self) -> Tensor<3, Int> {
        self.tokens.positions(self.cells)
    }
}

impl Tokens<'_> {
    pub(crate) fn positions(&self, cells: usize) -> Tensor<3, Int> {
        match self.kept {
            KeptTokens::PerHead(positions) => positions.clone(),
            KeptTokens::Uniform(kept) => {
                let mut by_cell = vec![EMPTY; cells];
                for (&cell, &position) in self.by_age.iter().zip(kept) {
                    by_cell[cell] = position as i64;
                }
                let [batch, heads] = self.shape;
                Tensor::<1, Int>::from_data(TensorData::from(&by_cell[..]), self.device)
                    .reshape([1, 1, cells])
                    .expand([batch, heads, cells])
            }
        }
    }
}

/// A policy's answer to "which tokens go?".
#[derive(Clone, Debug)]
pub enum Eviction {
    /// Keep everything.
    Nothing,
    /// Drop the tokens `start..end` by age, the oldest being 0, of every row and head.
    Span {
        /// First token dropped.
        start: usize,
        /// First younger token that stays.
        end: usize,
    },
    /// Keep exactly the tokens in these cells, per row and head: `[batch, kv_head, kept]`. They move together, so it
    /// suits the reduction of a prompt.
    Keep(Tensor<3, Int>),
    /// Drop the tokens in these cells, per row and head: `[batch, kv_head, dropped]`. The next tokens take their
    /// places, so that at a full budget nothing moves.
    Drop(Tensor<3, Int>),
}

/// How a slot stores its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// In the dtype of the cache.
    #[default]
    Full,
    /// In few bits, the newest tokens apart; read through a transient copy in the dtype of the cache.
    Quantised(Quantisation),
}

/// Which position a cached key stands at for the rotary encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Where its token stood in the text.
    #[default]
    Original,
    /// Its place in the cache, counted by age in its row and head: whenever a token leaves, all older ones move up.
    ///
    /// [`Eviction::Span`]s that start behind the `sinks` cost next to nothing: the sinks alone are turned, and kept
    /// unturned beside the cache. With `Keep` and `Drop` keys are turned whenever they are read.
    CacheSlot {
        /// Tokens at the start of the text that no `Span` drops.
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

    /// Whether the options fit the model (a list of budgets has one a layer, …); asked first.
    ///
    /// # Errors
    /// What is wrong, with the value: it becomes [`PlanError::Refused`](crate::PlanError::Refused).
    fn check(&self, model: &ModelShape) -> Result<(), String> {
        let _ = model;
        Ok(())
    }

    /// Cells `group` needs at most while decoding token by token, the newest token included; `Some` makes this
    /// policy the evictor of the group.
    fn budget(&self, group: &Group) -> Option<Budget> {
        let _ = group;
        None
    }

    /// Bytes of state beside the keys and values for each row, head and cell of `group`: scores, and 8 for the cache's
    /// list of positions if the policy evicts by head (`Keep`, `Drop`).
    fn bookkeeping(&self, group: &Group) -> usize {
        let _ = group;
        0
    }

    /// What must be seen of the attention over `group`. Asked of its evictor only.
    fn evidence(&self, group: &Group) -> EvidenceKind {
        let _ = group;
        EvidenceKind::None
    }

    /// What the queries at the positions `queries` count for in the key mass of `group`; `None` if all count alike,
    /// which is the default. Queries of weight 0 cost nothing, and a pass of nothing else is not observed.
    fn weights(&self, group: &Group, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
        let _ = (group, queries, prompt);
        None
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

    /// Takes in what `reader` saw of `group` in this forward pass, once for every reader; only if evidence was asked for.
    fn observe(&mut self, group: &Group, reader: LayerId, evidence: &Evidence) {
        let _ = (group, reader, evidence);
    }

    /// Which tokens of `group` go. Asked before a forward pass appends (`state.incoming > 0`: make room) and after
    /// the last reader (`state.incoming == 0`: reduce). All slots of the group, so donor and readers, follow.
    fn evict(&mut self, group: &Group, state: &GroupState<'_>) -> Eviction {
        let _ = (group, state);
        Eviction::Nothing
    }

    /// Whether evictions for a single token follow from counts alone, whatever the tokens are, and always are spans:
    /// then steps can be planned ahead ([`Cache::plan_steps`](crate::Cache::plan_steps)). Only asked of policies that
    /// evict something.
    fn regular(&self) -> bool {
        false
    }

    /// The `cells` cells of `group` were rearranged, by this policy's own `Keep` or for another reason: cell `i` now
    /// holds what stood in cell `from[i]`. State by cell must follow. `from` is empty if nothing is left.
    ///
    /// # Shapes
    /// `from`: `[batch, kv_head, cell]`.
    fn rearrange(&mut self, group: &Group, from: &Tensor<3, Int>, cells: usize) {
        let _ = (group, from, cells);
    }

    /// Forgets everything observed, for a cache that starts over.
    fn reset(&mut self) {}

    /// The policy with all it has observed, for a cache whose row `i` goes on from row `rows[i]` of this one; what is
    /// kept by row takes those rows. `None`, the default, if it cannot be copied: then caches under it do not
    /// [branch](crate::Cache::branch), and texts with a common prefix are run one by one.
    ///
    /// # Shapes
    /// `rows`: `[row]`.
    fn branch(&self, rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
        let _ = rows;
        None
    }
}

/// The identity: every layer keeps its own full cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct FullCache;

impl LayerKvPolicy for FullCache {
    fn name(&self) -> String {
        "full".into()
    }

    fn branch(&self, _rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
        Some(Box::new(*self))
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
            fn check(&self, model: &ModelShape) -> Result<(), String> {
                (**self).check(model)
            }
            fn budget(&self, group: &Group) -> Option<Budget> {
                (**self).budget(group)
            }
            fn bookkeeping(&self, group: &Group) -> usize {
                (**self).bookkeeping(group)
            }
            fn evidence(&self, group: &Group) -> EvidenceKind {
                (**self).evidence(group)
            }
            fn weights(&self, group: &Group, queries: Range<usize>, prompt: usize) -> Option<Vec<f32>> {
                (**self).weights(group, queries, prompt)
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
            fn evict(&mut self, group: &Group, state: &GroupState<'_>) -> Eviction {
                (**self).evict(group, state)
            }
            fn regular(&self) -> bool {
                (**self).regular()
            }
            fn rearrange(&mut self, group: &Group, from: &Tensor<3, Int>, cells: usize) {
                (**self).rearrange(group, from, cells)
            }
            fn reset(&mut self) {
                (**self).reset()
            }
            fn branch(&self, rows: &Tensor<1, Int>) -> Option<Box<dyn LayerKvPolicy>> {
                (**self).branch(rows)
            }
        }
    };
}
forward_policy!(Box<P>);
forward_policy!(&mut P);
