//! The shape of a decoder, whatever file it came from.

use crate::mlp::Activation;
use crate::{ModelError, RopeConfig};
use kvsharer_core::{KvShape, LayerId, ModelShape};
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
    /// Rotary encoding.
    pub rope: RopeConfig,
    /// Rotary encoding of layers with a sliding window, if it is another one.
    pub local_rope: Option<RopeConfig>,
    /// Sliding window of each layer, in tokens, itself included; empty if no layer has one.
    pub windows: Vec<Option<usize>>,
    /// Added to the mean square in every norm.
    pub norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Longest text the model was trained for.
    pub max_positions: usize,
    /// Whether the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has one.
    pub output_bias: bool,
    /// Whether the MLP's projections have them.
    pub mlp_bias: bool,
    /// Whether each head's queries and keys are normalised before they are turned.
    pub qk_norm: bool,
    /// Whether attention and MLP are followed by a norm as well, before the residual.
    pub post_norms: bool,
    /// Whether norm weights stay in f32 and are applied before the result is rounded to the model's dtype.
    pub full_norms: bool,
    /// What the MLP's gate goes through.
    pub activation: Activation,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What scores are multiplied by beside `1 / sqrt(head_dim)` and the scale of the rotary encoding.
    pub score_scale: f64,
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
        let ropes = [Some(&self.rope), self.local_rope.as_ref()].into_iter().flatten();
        for rope in ropes {
            if let Some((field, found, rule)) = rope.flaw(self.head_dim) {
                return bad(field, found, rule);
            }
        }
        if !self.windows.is_empty() && self.windows.len() != self.layers {
            let found = format!("{} for {} layers", self.windows.len(), self.layers);
            return bad("number of sliding windows", found, "is that of the layers");
        }
        if self.windows.contains(&Some(0)) {
            return bad("sliding window", "0".into(), "holds at least the token itself");
        }
        for (field, scale) in [("embedding scale", self.embedding_scale), ("score scale", self.score_scale)] {
            if !(scale.is_finite() && scale > 0.0) {
                return bad(field, scale.to_string(), "is positive");
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return bad("norm epsilon", self.norm_eps.to_string(), "is not negative");
        }
        Ok(self)
    }

    /// What a cache plan needs to know.
    pub fn shape(&self) -> ModelShape {
        let layer = |layer| KvShape { window: self.window(layer), ..KvShape::new(self.kv_heads, self.head_dim) };
        ModelShape::new((0..self.layers).map(|index| layer(LayerId(index))).collect())
    }

    /// The sliding window of a layer.
    pub fn window(&self, layer: LayerId) -> Option<usize> {
        self.windows.get(layer.0).copied().flatten()
    }

    /// The rotary encoding of a layer.
    pub fn rope_of(&self, layer: LayerId) -> &RopeConfig {
        match &self.local_rope {
            Some(local) if self.window(layer).is_some() => local,
            _ => &self.rope,
        }
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        // In 128 bits: sizes that are possible one by one may not be so together.
        let [hidden, inner, head_dim, heads, kv_heads] =
            [self.hidden, self.intermediate, self.head_dim, self.heads, self.kv_heads].map(|size| size as u128);
        let (query, kv) = (heads * head_dim, kv_heads * head_dim);
        let one = |flag: bool, size: u128| if flag { size } else { 0 };
        let biases =
            one(self.qkv_bias, query + 2 * kv) + one(self.output_bias, hidden) + one(self.mlp_bias, 2 * inner + hidden);
        let norms = 2 * hidden + one(self.post_norms, 2 * hidden) + one(self.qk_norm, 2 * head_dim);
        let attention = 2 * hidden * head_dim * (heads + kv_heads);
        let mlp = 3 * hidden * inner;
        let embeddings = self.vocab as u128 * hidden * if self.tied_head { 1 } else { 2 };
        let all = embeddings + self.layers as u128 * (attention + mlp + biases + norms) + hidden;
        usize::try_from(all).unwrap_or(usize::MAX)
    }
}
