//! What a layer does to make up for reading another layer's cache.
//!
//! Both parts fold into the layer's own projections ([`Turn`] into the query's, [`Mix`] into the output's), so that a
//! fitted map costs nothing at run time. Here stands their explicit form, which searches use and tests compare with.

use crate::kernels::product;
use crate::rope::rotate;
use burn::tensor::{DType, Tensor};

/// Maps that make up for borrowed keys and values.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    /// Which head of the slot each group of query heads reads, `[kv_head]`, a permutation; the same head if `None`.
    /// What the layer owns itself is stored in the slot's order, too.
    pub heads: Option<Vec<usize>>,
    /// For borrowed keys.
    pub turn: Option<Turn>,
    /// For whatever is borrowed.
    pub mix: Option<Mix>,
}

/// One complex factor for each key-value head and rotary frequency, `K_own ~ c * K_borrowed`: channels `f` and
/// `f + head_dim / 2` are real and imaginary part. It commutes with the rotary encoding, so `q . (c k) = (conj(c) q) . k`
/// folds into the query projection.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Real parts `[kv_head, head_dim / 2]`, f32.
    pub real: Tensor<2>,
    /// Imaginary parts, likewise.
    pub imaginary: Tensor<2>,
}

/// A linear map of the attention's output, `Z' = Z W + b`. As attention is linear in the values and its weights sum to
/// one, this is the same as mapping the values, `V_own ~ V_borrowed W + b`.
#[derive(Clone, Debug)]
pub enum Mix {
    /// Head by head: all query heads of a key-value head have the same map.
    Heads {
        /// `[kv_head, head_dim, head_dim]`, f32; a row is an input channel.
        weight: Tensor<3>,
        /// `[kv_head, head_dim]`, f32.
        bias: Tensor<2>,
    },
    /// Across all query heads: head by head, and what the product of two thin matrices adds.
    LowRank {
        /// `[kv_head, head_dim, head_dim]`, f32, as of [`Mix::Heads`].
        heads: Tensor<3>,
        /// `[heads * head_dim, rank]`, f32; a row is an input channel.
        left: Tensor<2>,
        /// `[rank, heads * head_dim]`, f32.
        right: Tensor<2>,
        /// `[heads * head_dim]`, f32.
        bias: Tensor<1>,
    },
    /// Across all query heads.
    Full {
        /// `[heads * head_dim, heads * head_dim]`, f32; a row is an input channel.
        weight: Tensor<2>,
        /// `[heads * head_dim]`, f32.
        bias: Tensor<1>,
    },
}

impl Adapter {
    /// Queries as the slot's keys want them.
    ///
    /// # Shapes
    /// `query` and result `[batch, query_head, token, head_dim]`.
    pub fn before(&self, query: Tensor<4>) -> Tensor<4> {
        let query = match &self.turn {
            Some(turn) => turn.apply(query),
            None => query,
        };
        match &self.heads {
            Some(heads) => reorder(query, &inverse(heads)),
            None => query,
        }
    }

    /// The attention's output, brought back to what the layer's own output projection expects.
    ///
    /// # Shapes
    /// `mixed` and result `[batch, query_head, token, head_dim]`.
    pub fn after(&self, mixed: Tensor<4>) -> Tensor<4> {
        let mixed = self.unmixed(mixed);
        match &self.mix {
            Some(mix) => mix.apply(mixed),
            None => mixed,
        }
    }

    /// [`after`](Self::after) without the mix: the heads alone.
    pub(crate) fn unmixed(&self, mixed: Tensor<4>) -> Tensor<4> {
        match &self.heads {
            Some(heads) => reorder(mixed, heads),
            None => mixed,
        }
    }

    /// The layer's own keys or values in the order in which its slot keeps heads.
    ///
    /// # Shapes
    /// `own` and result `[batch, kv_head, token, head_dim]`.
    pub fn stored(&self, own: Tensor<4>) -> Tensor<4> {
        match &self.heads {
            Some(heads) => reorder(own, &inverse(heads)),
            None => own,
        }
    }
}

impl Turn {
    /// `conj(c) q`, `[batch, query_head, token, head_dim]` to the same.
    pub fn apply(&self, query: Tensor<4>) -> Tensor<4> {
        let ([_, heads, _, dim], [kv_heads, half]) = (query.dims(), self.real.dims());
        let spread = |part: &Tensor<2>| {
            let part = part.clone().cast(query.dtype()).reshape([kv_heads, 1, 1, half]);
            part.expand([kv_heads, heads / kv_heads, 2, half]).reshape([1, heads, 1, dim])
        };
        rotate(query.clone(), spread(&self.real), spread(&self.imaginary).neg())
    }
}

impl Mix {
    /// `Z W + b`, `[batch, query_head, token, head_dim]` to the same.
    pub fn apply(&self, mixed: Tensor<4>) -> Tensor<4> {
        let ([batch, heads, tokens, dim], dtype) = (mixed.dims(), mixed.dtype());
        let mixed = mixed.cast(DType::F32);
        let mapped = match self {
            Mix::Heads { weight, bias } => {
                let kv_heads = weight.dims()[0];
                let rows = mixed.reshape([batch, kv_heads, heads / kv_heads * tokens, dim]);
                let mapped = product(rows, weight.clone().unsqueeze::<4>());
                (mapped + bias.clone().reshape([1, kv_heads, 1, dim])).reshape([batch, heads, tokens, dim])
            }
            Mix::LowRank { heads: by_head, left, right, bias } => {
                let kv_heads = by_head.dims()[0];
                let rows = mixed.clone().swap_dims(1, 2).reshape([batch * tokens, heads * dim]);
                let added = product(product(rows, left.clone()), right.clone()) + bias.clone().unsqueeze::<2>();
                let rows = mixed.reshape([batch, kv_heads, heads / kv_heads * tokens, dim]);
                let mapped = product(rows, by_head.clone().unsqueeze::<4>()).reshape([batch, heads, tokens, dim]);
                mapped + added.reshape([batch, tokens, heads, dim]).swap_dims(1, 2)
            }
            Mix::Full { weight, bias } => {
                let rows = mixed.swap_dims(1, 2).reshape([batch * tokens, heads * dim]);
                let mapped = product(rows, weight.clone()) + bias.clone().unsqueeze::<2>();
                mapped.reshape([batch, tokens, heads, dim]).swap_dims(1, 2)
            }
        };
        mapped.cast(dtype)
    }
}

/// Puts groups of heads into another order: group `g` of the result is group `order[g]` of `x`.
pub(crate) fn reorder(x: Tensor<4>, order: &[usize]) -> Tensor<4> {
    let group = x.dims()[1] / order.len();
    let parts = order.iter().map(|&from| x.clone().slice_dim(1, from * group..(from + 1) * group));
    Tensor::cat(parts.collect(), 1)
}

/// The permutation that undoes `order`.
pub fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(index, &of)| inverse[of] = index);
    inverse
}
