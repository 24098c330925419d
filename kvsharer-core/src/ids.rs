//! Typed indices of layers, slots and groups, so that they cannot be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub usize);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<usize> for $name {
            fn from(index: usize) -> Self {
                Self(index)
            }
        }
    };
}

id!(
    /// A decoder layer, counted from the input (0) to the output.
    LayerId
);
id!(
    /// One buffer of a [`Plan`](crate::Plan): the keys or the values of the layer that owns it.
    SlotId
);
id!(
    /// A set of slots that must keep the same tokens, see [`Group`](crate::Group).
    GroupId
);

/// Axes of a cache tensor, `[batch, kv_head, cell, head_dim]`.
pub mod axis {
    /// Sequences.
    pub const BATCH: usize = 0;
    /// Key-value heads (or query heads, for a query).
    pub const HEAD: usize = 1;
    /// Cells of the cache: one cached token each (or the tokens of a query).
    pub const CELL: usize = 2;
    /// Channels of a head.
    pub const DIM: usize = 3;
}
