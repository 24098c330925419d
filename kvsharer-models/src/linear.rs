//! A linear layer without bias.

use burn::tensor::Tensor;

/// `y = x W^T`, with the weight as PyTorch stores it.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`: this layout reads a weight row by row for a single token, which is faster on CPUs than `[in, out]`.
    weight: Tensor<2>,
}

impl Linear {
    /// A layer with the given weight `[out, in]`.
    pub fn new(weight: Tensor<2>) -> Self {
        Self { weight }
    }

    /// # Shapes
    /// `[batch, token, in]` to `[batch, token, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, input] = x.dims();
        let output = self.weight.dims()[0];
        // One matrix product over all rows, not one a sequence.
        let rows = x.reshape([batch * tokens, input]);
        rows.matmul(self.weight.clone().transpose()).reshape([batch, tokens, output])
    }
}
