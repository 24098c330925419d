//! Rotary position encoding (RoFormer, arXiv 2104.09864) in the half-split layout of Llama and Hugging Face.

use burn::tensor::{Device, Tensor, TensorData};
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

    /// The table for `positions`. Angles are computed on the host in f64, so late positions are as exact as early ones.
    pub fn table(&self, positions: Range<usize>, device: &Device) -> RopeTable {
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
    /// Rotates queries or keys, each token by the position in its row of the table (one row serves all tokens).
    ///
    /// # Shapes
    /// `x` and result: `[batch, head, token, head_dim]`.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, heads, tokens, dim] = x.dims();
        let dtype = x.dtype();
        let half = dim / 2;
        let left = x.clone().slice([0..batch, 0..heads, 0..tokens, 0..half]);
        let right = x.clone().slice([0..batch, 0..heads, 0..tokens, half..dim]);
        let turned = Tensor::cat(vec![right.neg(), left], 3);
        let cos = self.cos.clone().cast(dtype).unsqueeze::<4>();
        let sin = self.sin.clone().cast(dtype).unsqueeze::<4>();
        x * cos + turned * sin
    }
}
