//! Errors of plans and caches. Each carries the offending values and says what to do.

use crate::{Kv, KvShape, LayerId};
use thiserror::Error;

/// Why policies cannot be turned into a [`Plan`](crate::Plan).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Two members of a stack decide where one layer reads.
    #[error("layer {layer}: both `{first}` and `{second}` decide where it reads; leave one of them out of the stack")]
    TwoRouters {
        /// The layer both answered for.
        layer: LayerId,
        /// The policy that answered first.
        first: String,
        /// The other one.
        second: String,
    },
    /// Two members of a stack evict from one group without an explicit order.
    #[error(
        "layer {layer}: both `{first}` and `{second}` evict from its cache; leave one out, or call \
         `Stack::evict_in_order` to run them one after the other"
    )]
    TwoEvictors {
        /// First layer of the group.
        layer: LayerId,
        /// The policy that answered first.
        first: String,
        /// The other one.
        second: String,
    },
    /// Two members of a stack decide how one slot is stored.
    #[error("layer {layer}: both `{first}` and `{second}` decide how its cache is stored; leave one out of the stack")]
    TwoStorages {
        /// First layer of the group.
        layer: LayerId,
        /// The policy that answered first.
        first: String,
        /// The other one.
        second: String,
    },
    /// Evictors run in order want different evidence or positions.
    #[error(
        "layer {layer}: `{policy}` wants other evidence or key positions than the evictor before it; use one of them"
    )]
    EvictorsClash {
        /// First layer of the group.
        layer: LayerId,
        /// The later policy.
        policy: String,
    },
    /// Options that do not fit the model.
    #[error("`{policy}`: {what}")]
    Refused {
        /// The policy.
        policy: String,
        /// What is wrong.
        what: String,
    },
    /// Heads that a codec cannot store.
    #[error(
        "layer {layer}: `{policy}` cannot store heads of {head_dim} channels: they must fill whole 32-bit words and whole groups"
    )]
    HeadDim {
        /// The owner.
        layer: LayerId,
        /// The policy.
        policy: String,
        /// Channels of a head.
        head_dim: usize,
    },
    /// A policy leaves no cell for the newest token.
    #[error("layer {layer}: `{policy}` leaves a budget of 0 tokens; give it room for at least the newest token")]
    EmptyBudget {
        /// First layer of the group.
        layer: LayerId,
        /// The policy.
        policy: String,
    },
    /// A sliding window in which not even the newest token is seen.
    #[error("layer {layer} has a sliding window of 0 tokens: the model's configuration is broken")]
    EmptyWindow {
        /// The layer.
        layer: LayerId,
    },
    /// Keys at cache-slot positions under a sliding window, which counts positions of the text.
    #[error(
        "layer {layer}: `{policy}` moves keys to their cache slots, but the layer has a sliding window of {window} \
         positions of the text; keep original positions (positions=original)"
    )]
    WindowedPositions {
        /// First layer of the group.
        layer: LayerId,
        /// The policy.
        policy: String,
        /// The layer's window.
        window: usize,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} does not exist: the model has layers 0 to {}", layers.saturating_sub(1))]
    UnknownLayer {
        /// The layer asked for.
        layer: LayerId,
        /// Number of layers of the model.
        layers: usize,
    },
    /// A donor at or after its borrower.
    #[error("layer {layer} cannot borrow the {kind}s of layer {donor}: a donor must come before its borrower")]
    DonorNotEarlier {
        /// Keys or values.
        kind: Kv,
        /// The borrower.
        layer: LayerId,
        /// The donor it named.
        donor: LayerId,
    },
    /// A borrower with two donors.
    #[error("layer {layer} borrows {kind}s from layer {first} and from layer {second}: name one donor")]
    TwoDonors {
        /// Keys or values.
        kind: Kv,
        /// The borrower.
        layer: LayerId,
        /// The donor named first.
        first: LayerId,
        /// The other one.
        second: LayerId,
    },
    /// A donor that borrows itself.
    #[error(
        "the {kind} map has the chain {}: a donor must own its cache; let layer {} read layer {} directly",
        arrows(chain), chain[0], chain[chain.len() - 1]
    )]
    Chain {
        /// Keys or values.
        kind: Kv,
        /// The layers from the borrower to the last donor.
        chain: Vec<LayerId>,
    },
    /// Layers whose caches have different shapes or windows.
    #[error("layer {layer} cannot borrow the {kind}s of layer {donor}: its cache is {mine:?}, the donor's {theirs:?}")]
    ShapeMismatch {
        /// Keys or values.
        kind: Kv,
        /// The borrower.
        layer: LayerId,
        /// The donor.
        donor: LayerId,
        /// The borrower's shape.
        mine: KvShape,
        /// The donor's shape.
        theirs: KvShape,
    },
}

fn arrows(chain: &[LayerId]) -> String {
    let ids: Vec<String> = chain.iter().map(|layer| layer.to_string()).collect();
    ids.join(" -> ")
}

/// Why a cache refuses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// More tokens than the cache was made for.
    #[error("the cache holds {capacity} tokens, {needed} are needed: make it longer or add an evicting policy")]
    Full {
        /// Cells per slot.
        capacity: usize,
        /// Tokens after the refused forward pass.
        needed: usize,
    },
    /// An eviction that cannot be carried out.
    #[error("layer {layer}: `{policy}` {what}")]
    BadEviction {
        /// First layer of the group.
        layer: LayerId,
        /// The evicting policy.
        policy: String,
        /// What is wrong with its answer.
        what: String,
    },
    /// A tensor whose shape does not fit the plan.
    #[error("layer {layer}: the {what} is {found:?}, the cache expects {expected:?}")]
    Shape {
        /// The layer.
        layer: LayerId,
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape the plan says.
        expected: Vec<usize>,
    },
    /// Layers run out of order, or without `begin`.
    #[error("layer {layer} was run out of turn: call `begin`, then every layer once in order")]
    OutOfTurn {
        /// The layer.
        layer: LayerId,
    },
    /// Padding that a batch cannot have.
    #[error(
        "{padding:?} is no padding of a first pass of {tokens} tokens in {batch} rows: give one number a row, less than the tokens, before anything else runs"
    )]
    Padding {
        /// What was given.
        padding: Vec<usize>,
        /// Tokens of the pass.
        tokens: usize,
        /// Rows of the batch.
        batch: usize,
    },
    /// Rows to branch from that are not there.
    #[error("cannot branch rows {rows:?} of a cache of {batch}: name at least one, each below {batch}")]
    NoRow {
        /// What was asked for.
        rows: Vec<usize>,
        /// Rows of the cache.
        batch: usize,
    },
    /// A policy whose state cannot be copied.
    #[error("the cache cannot branch: `{policy}` cannot be copied (see LayerKvPolicy::branch)")]
    CannotBranch {
        /// The policy.
        policy: String,
    },
    /// A result that the device could not give back.
    #[error("the device could not return a result: {0}")]
    Device(String),
    /// Something this version cannot do.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
}
