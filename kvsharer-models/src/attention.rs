//! Grouped-query self-attention with rotary positions, blind to who keeps the cache.

use crate::linear::Linear;
use crate::norm::RmsNorm;
use burn::tensor::Tensor;
use kvsharer_core::{Attend, CacheError, LayerId, RopeTable};

/// Projections of one layer's attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[heads * head_dim, hidden]`.
    pub query: Linear,
    /// `[kv_heads * head_dim, hidden]`.
    pub key: Linear,
    /// `[kv_heads * head_dim, hidden]`.
    pub value: Linear,
    /// `[hidden, heads * head_dim]`.
    pub output: Linear,
    /// `[head_dim]`, of each head's queries, before they are turned.
    pub query_norm: Option<RmsNorm>,
    /// `[head_dim]`, of each head's keys, before they are turned.
    pub key_norm: Option<RmsNorm>,
    /// What scores are multiplied by beside `1 / sqrt(head_dim)`.
    pub score_scale: f64,
    /// Channels of a head.
    pub head_dim: usize,
}

impl Attention {
    /// # Shapes
    /// `[batch, token, hidden]` to the same.
    ///
    /// # Errors
    /// Whatever `attend` refuses.
    pub fn forward<A: Attend>(
        &self,
        layer: LayerId,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: &mut A,
    ) -> Result<Tensor<3>, CacheError> {
        Ok(self.output.forward(self.mix(layer, x, rope, attend)?))
    }

    /// What the output projection is given, `[batch, token, heads * head_dim]`.
    pub(crate) fn mix<A: Attend>(
        &self,
        layer: LayerId,
        x: Tensor<3>,
        rope: &RopeTable,
        attend: &mut A,
    ) -> Result<Tensor<3>, CacheError> {
        let normed = |x: Tensor<4>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let (owns_keys, owns_values) = attend.owns(layer);
        let mut layers = vec![&self.query];
        layers.extend(owns_keys.then_some(&self.key));
        layers.extend(owns_values.then_some(&self.value));
        let mut projected = Linear::forward_all(&layers, x.clone()).into_iter();
        let query = projected.next().unwrap_or_else(|| self.query.forward(x.clone()));
        let key = owns_keys.then(|| projected.next()).flatten();
        let value = owns_values.then(|| projected.next()).flatten();
        // Turning is linear: it does not matter which comes first.
        let query = normed(self.split_heads(query), &self.query_norm);
        let query = if self.score_scale == 1.0 { query } else { query * self.score_scale };
        let key = || {
            let key = key.unwrap_or_else(|| self.key.forward(x.clone()));
            normed(self.split_heads(key), &self.key_norm)
        };
        let value = || self.split_heads(value.unwrap_or_else(|| self.value.forward(x.clone())));
        let mixed = attend.attend_unturned(layer, rope, query, key, value)?;
        let [batch, heads, tokens, dim] = mixed.dims();
        Ok(mixed.swap_dims(1, 2).reshape([batch, tokens, heads * dim]))
    }

    /// `[batch, token, head * head_dim]` to `[batch, head, token, head_dim]`.
    fn split_heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, width] = x.dims();
        x.reshape([batch, tokens, width / self.head_dim, self.head_dim]).swap_dims(1, 2)
    }
}
