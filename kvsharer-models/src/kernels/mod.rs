//! Kernels of our own, where burn's are far from what the memory allows: for its CPU backend with the feature
//! `cpu-kernels`, for GPUs with `gpu-kernels`. For other tensors there are none, and callers use burn's operations.

#[cfg(feature = "cpu-kernels")]
mod few_rows;
#[cfg(feature = "cpu-kernels")]
mod gated;
#[cfg(feature = "gpu-kernels")]
mod gpu;
#[cfg(feature = "cpu-kernels")]
mod rms_norm;

use crate::mlp::Activation;
use burn::tensor::Tensor;

/// `x W^T` of each weight for a few rows of `x`, read at memory speed; `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `x` `[row, in]` in f32 or the dtype of the weights, weights `[out, in]` in f32, f16 or bf16; results `[row, out]` in
/// the dtype of `x`.
pub(crate) fn few_rows(x: &Tensor<2>, weights: &[&Tensor<2>]) -> Option<Vec<Tensor<2>>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&x.device()) {
        return gpu::few_rows(x, weights);
    }
    #[cfg(feature = "cpu-kernels")]
    return few_rows::few_rows(x, weights);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, weights);
        None
    }
}

/// `sum + x W^T`, where that is one piece of work; `None` where it is not.
///
/// # Shapes
/// As [`few_rows`]; `sum` `[row, out]`.
pub(crate) fn few_rows_added(x: &Tensor<2>, weight: &Tensor<2>, sum: &Tensor<2>) -> Option<Tensor<2>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&x.device()) {
        return gpu::few_rows_added(x, weight, sum);
    }
    let _ = (x, weight, sum);
    None
}

/// `activation(gate) * up`, element by element; `None` if there is no kernel for these tensors.
pub(crate) fn gated(activation: Activation, gate: &Tensor<3>, up: &Tensor<3>) -> Option<Tensor<3>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&up.device()) {
        return gpu::gated(activation, gate, up);
    }
    #[cfg(feature = "cpu-kernels")]
    return gated::gated(activation, gate, up);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (activation, gate, up);
        None
    }
}

/// Each row of `x` scaled to a root mean square of 1, then by a weight; `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `x` and result `[.., channel]`, `weight` `[channel]`.
pub(crate) fn rms_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    #[cfg(feature = "gpu-kernels")]
    if gpu::runs_on(&x.device()) {
        return gpu::rms_norm(x, weight, eps);
    }
    #[cfg(feature = "cpu-kernels")]
    return rms_norm::rms_norm(x, weight, eps);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, weight, eps);
        None
    }
}
