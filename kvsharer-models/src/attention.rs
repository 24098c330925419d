//! Grouped-query self-attention with rotary positions, blind to who keeps the cache.

use crate::linear::Linear;
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
        let query = rope.apply(self.split_heads(self.query.forward(x.clone())));
        let key = || rope.apply(self.split_heads(self.key.forward(x.clone())));
        let value = || self.split_heads(self.value.forward(x.clone()));
        let mixed = attend.attend(layer, query, key, value)?;
        let [batch, heads, tokens, dim] = mixed.dims();
        Ok(self.output.forward(mixed.swap_dims(1, 2).reshape([batch, tokens, heads * dim])))
    }

    /// `[batch, token, head * head_dim]` to `[batch, head, token, head_dim]`.
    fn split_heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, width] = x.dims();
        x.reshape([batch, tokens, width / self.head_dim, self.head_dim]).swap_dims(1, 2)
    }
}
