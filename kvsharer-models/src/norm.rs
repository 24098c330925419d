//! RMS norm (arXiv 1910.07467).

use burn::tensor::{DType, Tensor};

/// Scales every hidden state to a root mean square of 1, then by a learned weight.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[hidden]`.
    weight: Tensor<1>,
    eps: f64,
}

impl RmsNorm {
    /// A norm with the given weight `[hidden]`.
    pub fn new(weight: Tensor<1>, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// `x / sqrt(mean(x^2) + eps) * weight`, the division in f32 as Hugging Face has it.
    ///
    /// # Shapes
    /// `x` and result: `[.., hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let scale = (x.clone().square().mean_dim(D - 1) + self.eps).sqrt().recip();
        (x * scale).cast(dtype) * self.weight.clone().unsqueeze()
    }
}
