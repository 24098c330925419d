//! Kernels of our own for tensors on burn's CPU backend, where burn's are far from what the memory allows. For tensors
//! elsewhere, and without the feature `cpu-kernels`, there are none, and callers use burn's operations.

#[cfg(feature = "cpu-kernels")]
mod attend_one;

use burn::tensor::Tensor;

/// Attention of one query a sequence over all cells, `softmax(Q K^T / sqrt(head_dim)) V`, without a copy of the cache;
/// also the softmax's weights. `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `query` and result `[batch, kv_head, group, head_dim]`; `keys`, `values` `[batch, kv_head, cell, head_dim]`; weights
/// `[batch, kv_head, group, cell]`; all f32.
pub(crate) fn attend_one(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<(Tensor<4>, Tensor<4>)> {
    #[cfg(feature = "cpu-kernels")]
    return attend_one::attend_one(query, keys, values);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (query, keys, values);
        None
    }
}
