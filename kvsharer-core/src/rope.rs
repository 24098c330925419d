//! Rotary position encoding (RoFormer, arXiv 2104.09864) in the half-split layout of Llama and Hugging Face.

use crate::{axis, kernels};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::ops::Range;

/// Rotation frequencies of one head: channel `i` is paired with channel `i + head_dim / 2` and turned by
/// `position * inverse_frequency[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    inverse_frequencies: Vec<f64>,
}

/// Cosines and sines of a run of positions, both `[position, head_dim]` in f32.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rope {
    /// The standard frequencies `theta^(-2i / head_dim)`.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
        Self::from_inverse_frequencies((0..head_dim / 2).map(frequency).collect())
    }

    /// Frequencies computed elsewhere (scaled variants), one for each pair of channels.
    pub fn from_inverse_frequencies(inverse_frequencies: Vec<f64>) -> Self {
        Self { inverse_frequencies }
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// What each pair of channels turns by for a position.
    pub fn inverse_frequencies(&self) -> &[f64] {
        &self.inverse_frequencies
    }

    /// The table for `positions`. Angles are computed on the host in f64, so late positions are as exact as early ones.
    pub fn table(&self, positions: Range<usize>, device: &Device) -> RopeTable {
        self.table_of(positions, device)
    }

    /// The same for positions in any order.
    pub(crate) fn table_of(&self, positions: impl ExactSizeIterator<Item = usize>, device: &Device) -> RopeTable {
        let shape = [positions.len(), self.head_dim()];
        let (mut cos, mut sin) = (Vec::with_capacity(shape[0] * shape[1]), Vec::new());
        for position in positions {
            for _half in 0..2 {
                for frequency in &self.inverse_frequencies {
                    let (s, c) = (position as f64 * frequency).sin_cos();
                    cos.push(c as f32);
                    sin.push(s as f32);
                }
            }
        }
        RopeTable {
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
        }
    }

    /// Turns keys that are rotated already by `shift` further positions.
    ///
    /// # Shapes
    /// `keys` and result: `[batch, kv_head, token, head_dim]`.
    pub fn advance(&self, keys: Tensor<4>, shift: usize) -> Tensor<4> {
        self.table(shift..shift + 1, &keys.device()).apply(keys)
    }
}

impl RopeTable {
    /// Positions it has.
    pub fn len(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.cos.device()
    }

    /// The table of the one position in the row that `row` `[1]` names.
    pub fn row(&self, row: &Tensor<1, Int>) -> Self {
        let of = |table: &Tensor<2>| table.clone().select(0, row.clone());
        Self { cos: of(&self.cos), sin: of(&self.sin) }
    }

    /// Cosines and sines.
    pub(crate) fn rows(&self) -> [&Tensor<2>; 2] {
        [&self.cos, &self.sin]
    }

    /// Whether it has no position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rotates each token of each head by a position of its own, a row of this table.
    ///
    /// # Shapes
    /// `x` and result `[batch, head, token, head_dim]`; `positions` `[batch, head, token]`.
    pub fn apply_each(&self, x: Tensor<4>, positions: Tensor<3, Int>) -> Tensor<4> {
        let [batch, heads, tokens, dim] = x.dims();
        let rows = positions.reshape([batch * heads * tokens]);
        let each = |table: &Tensor<2>| {
            table.clone().select(0, rows.clone()).reshape([batch, heads, tokens, dim]).cast(x.dtype())
        };
        rotate(x.clone(), each(&self.cos), each(&self.sin))
    }

    /// Rotates queries or keys, each token by the position in its row of the table (one row serves all tokens).
    ///
    /// # Shapes
    /// `x` and result: `[batch, head, token, head_dim]`.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        if let Some(turned) = kernels::turn(&x, &self.cos, &self.sin) {
            return turned;
        }
        let dtype = x.dtype();
        let row = |table: &Tensor<2>| table.clone().cast(dtype).unsqueeze::<4>();
        rotate(x, row(&self.cos), row(&self.sin))
    }
}

pub(crate) fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let half = x.dims()[axis::DIM] / 2;
    let left = x.clone().slice_dim(axis::DIM, 0..half);
    let right = x.clone().slice_dim(axis::DIM, half..2 * half);
    let turned = Tensor::cat(vec![right.neg(), left], axis::DIM);
    x * cos + turned * sin
}
