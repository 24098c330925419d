//! Kernels of our own for tensors on burn's CPU backend, where burn's are far from what the memory allows. For tensors
//! elsewhere, and without the feature `cpu-kernels`, there are none, and callers use burn's operations.

#[cfg(feature = "cpu-kernels")]
mod few_rows;
#[cfg(feature = "cpu-kernels")]
mod gated;
#[cfg(feature = "cpu-kernels")]
mod rms_norm;

use crate::mlp::Activation;
use burn::tensor::Tensor;

/// `x W^T` of each weight for a few rows of `x`, read at memory speed; `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `x` `[row, in]` in f32, weights `[out, in]` in f32, f16 or bf16; results `[row, out]` in f32.
pub(crate) fn few_rows(x: &Tensor<2>, weights: &[&Tensor<2>]) -> Option<Vec<Tensor<2>>> {
    #[cfg(feature = "cpu-kernels")]
    return few_rows::few_rows(x, weights);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, weights);
        None
    }
}

/// `activation(gate) * up`, all of one shape and in f32; `None` if there is no kernel for these tensors.
pub(crate) fn gated(activation: Activation, gate: &Tensor<3>, up: &Tensor<3>) -> Option<Tensor<3>> {
    #[cfg(feature = "cpu-kernels")]
    return gated::gated(activation, gate, up);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (activation, gate, up);
        None
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight`; `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `x` and result `[.., hidden]`, `weight` `[hidden]`; all f32.
pub(crate) fn rms_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    #[cfg(feature = "cpu-kernels")]
    return rms_norm::rms_norm(x, weight, eps);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, weight, eps);
        None
    }
}
