//! What a model must tell about its layers before a cache can be planned.

use crate::LayerId;
use serde::{Deserialize, Serialize};

/// Keys and values of one layer: both are `[batch, kv_heads, tokens, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvShape {
    /// Number of key-value heads (fewer than query heads under grouped-query attention).
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Tokens a query sees at most, itself included; `None` sees all.
    pub window: Option<usize>,
}

impl KvShape {
    /// A layer without a sliding window.
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self { kv_heads, head_dim, window: None }
    }
}

/// The cache-relevant shape of a model: one [`KvShape`] a layer, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    layers: Vec<KvShape>,
}

impl ModelShape {
    /// A model whose layers may differ.
    pub fn new(layers: Vec<KvShape>) -> Self {
        Self { layers }
    }

    /// A model of `layers` equal layers.
    pub fn uniform(layers: usize, shape: KvShape) -> Self {
        Self::new(vec![shape; layers])
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether the model has no layer at all.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The layers' shapes, in order.
    pub fn layers(&self) -> &[KvShape] {
        &self.layers
    }

    /// All layer ids, in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = LayerId> + use<> {
        (0..self.layers.len()).map(LayerId)
    }
}
