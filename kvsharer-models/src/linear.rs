//! A linear layer.

use crate::kernels::few_rows;
use burn::tensor::Tensor;

/// `y = x W^T + b`, with the weight as PyTorch stores it.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`: this layout reads a weight row by row for a single token, which is faster on CPUs than `[in, out]`.
    weight: Tensor<2>,
    /// `[out]`.
    bias: Option<Tensor<1>>,
}

impl Linear {
    /// A layer with the given weight `[out, in]`.
    pub fn new(weight: Tensor<2>) -> Self {
        Self { weight, bias: None }
    }

    /// Adds a bias `[out]`.
    pub fn with_bias(self, bias: Tensor<1>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// The weight `[out, in]`.
    pub fn weight(&self) -> &Tensor<2> {
        &self.weight
    }

    /// The bias `[out]`, if there is one.
    pub fn bias(&self) -> Option<&Tensor<1>> {
        self.bias.as_ref()
    }

    /// # Shapes
    /// `[batch, token, in]` to `[batch, token, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, input] = x.dims();
        let output = self.weight.dims()[0];
        // One matrix product over all rows, not one a sequence.
        let rows = x.reshape([batch * tokens, input]);
        let y = few_rows(&rows, &self.weight).unwrap_or_else(|| rows.matmul(self.weight.clone().transpose()));
        let y = y.reshape([batch, tokens, output]);
        match &self.bias {
            Some(bias) => y + bias.clone().reshape([1, 1, output]),
            None => y,
        }
    }
}
