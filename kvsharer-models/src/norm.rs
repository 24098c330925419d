//! RMS norm (arXiv 1910.07467).

use crate::kernels::rms_norm;
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

    /// The weight `[hidden]`.
    pub fn weight(&self) -> &Tensor<1> {
        &self.weight
    }

    /// `x / sqrt(mean(x^2) + eps) * weight`, the division in f32 as Hugging Face has it. A weight in f32 is applied
    /// before the result is rounded to the dtype of `x`, another one after it.
    ///
    /// # Shapes
    /// `x` and result: `[.., hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if let Some(normed) = rms_norm(&x, &self.weight, self.eps) {
            return normed;
        }
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let scale = (x.clone().square().mean_dim(D - 1) + self.eps).sqrt().recip();
        match self.weight.dtype() {
            DType::F32 => (x * scale * self.weight.clone().unsqueeze()).cast(dtype),
            _ => (x * scale).cast(dtype) * self.weight.clone().unsqueeze(),
        }
    }
}
