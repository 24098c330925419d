//! The shape of a decoder, whatever file it came from.

use crate::ModelError;
use kvsharer_core::{KvShape, ModelShape};
use serde::Serialize;

/// Hyperparameters of a decoder-only transformer with RMS norms, rotary positions and a gated MLP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecoderConfig {
    /// Family name, as in the registry of [`family`](crate::family).
    pub architecture: String,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Channels of the hidden state.
    pub hidden: usize,
    /// Channels inside the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; query heads are a multiple.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    pub norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Longest text the model was trained for.
    pub max_positions: usize,
}

impl DecoderConfig {
    /// Checks that the numbers can belong to a model.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] names the first number that cannot.
    pub fn validated(self) -> Result<Self, ModelError> {
        let bad = |field, found: String, rule| Err(ModelError::BadConfig { field, found, rule });
        let sizes = [
            ("vocabulary size", self.vocab),
            ("hidden size", self.hidden),
            ("intermediate size", self.intermediate),
            ("number of layers", self.layers),
            ("number of heads", self.heads),
            ("number of key-value heads", self.kv_heads),
            ("head dimension", self.head_dim),
        ];
        for (field, size) in sizes {
            if size == 0 || size > 1 << 24 {
                return bad(field, size.to_string(), "lies between 1 and 2^24");
            }
        }
        if self.layers > 1 << 12 {
            return bad("number of layers", self.layers.to_string(), "is at most 4096");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let found = format!("{} for {} key-value heads", self.heads, self.kv_heads);
            return bad("number of heads", found, "is a multiple of the number of key-value heads");
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad("head dimension", self.head_dim.to_string(), "is even, for rotary positions");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return bad("rope theta", self.rope_theta.to_string(), "is positive");
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return bad("norm epsilon", self.norm_eps.to_string(), "is not negative");
        }
        Ok(self)
    }

    /// What a cache plan needs to know.
    pub fn shape(&self) -> ModelShape {
        ModelShape::uniform(self.layers, KvShape::new(self.kv_heads, self.head_dim))
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        let attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads);
        let mlp = 3 * self.hidden * self.intermediate;
        let embeddings = self.vocab * self.hidden * if self.tied_head { 1 } else { 2 };
        embeddings + self.layers * (attention + mlp + 2 * self.hidden) + self.hidden
    }
}
