//! Kernels of our own for tensors on burn's CPU backend, where burn's are far from what the memory allows. For tensors
//! elsewhere, and without the feature `cpu-kernels`, there are none, and callers use burn's operations.

#[cfg(feature = "cpu-kernels")]
mod attend_block;
#[cfg(feature = "cpu-kernels")]
mod attend_one;
#[cfg(feature = "cpu-kernels")]
mod exp;
#[cfg(feature = "cpu-kernels")]
mod rows;
#[cfg(feature = "cpu-kernels")]
mod turn;

use burn::tensor::{Bool, Tensor};
#[cfg(feature = "cpu-kernels")]
pub use exp::exp;

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

/// The same of many queries, each of which sees the cells that `mask` does not hide, without the weights.
///
/// # Shapes
/// `query` and result `[batch, kv_head, query, head_dim]`; `keys`, `values` `[batch, kv_head, cell, head_dim]`; `mask`
/// `[batch or 1, kv_head or 1, query, cell]`; all f32.
pub(crate) fn attend_block(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
) -> Option<Tensor<4>> {
    #[cfg(feature = "cpu-kernels")]
    return attend_block::attend_block(query, keys, values, mask);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (query, keys, values, mask);
        None
    }
}

/// The rotary encoding of heads, `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `x` and result `[batch, head, token, head_dim]`; `cos`, `sin` `[token or 1, head_dim]`; all f32.
pub(crate) fn turn(x: &Tensor<4>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<4>> {
    #[cfg(feature = "cpu-kernels")]
    return turn::turn(x, cos, sin);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, cos, sin);
        None
    }
}
