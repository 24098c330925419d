//! The gated MLP (SwiGLU, arXiv 2002.05202).

use crate::linear::Linear;
use burn::tensor::{Tensor, activation::silu};

/// `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[intermediate, hidden]`.
    pub gate: Linear,
    /// `[intermediate, hidden]`.
    pub up: Linear,
    /// `[hidden, intermediate]`.
    pub down: Linear,
}

impl Mlp {
    /// # Shapes
    /// `[batch, token, hidden]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(silu(self.gate.forward(x.clone())) * self.up.forward(x))
    }
}
