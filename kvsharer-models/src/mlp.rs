//! The gated MLP (SwiGLU and GeGLU, arXiv 2002.05202).

use crate::kernels::gated;
use crate::linear::Linear;
use burn::tensor::{
    Tensor,
    activation::{gelu_approximate, silu},
};
use serde::Serialize;

/// What the gate goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

impl Activation {
    pub(crate) fn forward(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Activation::Silu => silu(x),
            Activation::GeluTanh => gelu_approximate(x),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[intermediate, hidden]`.
    pub gate: Linear,
    /// `[intermediate, hidden]`.
    pub up: Linear,
    /// `[hidden, intermediate]`.
    pub down: Linear,
    /// What the gate goes through.
    pub activation: Activation,
}

impl Mlp {
    /// # Shapes
    /// `[batch, token, hidden]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(self.open(x))
    }

    /// What the down projection is given, `[batch, token, intermediate]`.
    pub(crate) fn open(&self, x: Tensor<3>) -> Tensor<3> {
        let mut parts = Linear::forward_all(&[&self.gate, &self.up], x);
        let (up, gate) = (parts.remove(1), parts.remove(0));
        let open = gated(self.activation, &gate, &up);
        open.unwrap_or_else(|| self.activation.forward(gate) * up)
    }
}
