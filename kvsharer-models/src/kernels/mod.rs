//! Kernels of our own for tensors on burn's CPU backend, where burn's are far from what the memory allows. For tensors
//! elsewhere, and without the feature `cpu-kernels`, there are none, and callers use burn's operations.

#[cfg(feature = "cpu-kernels")]
mod few_rows;

use burn::tensor::Tensor;

/// `x W^T` for a few rows of `x`, read at memory speed; `None` if there is no kernel for these tensors.
///
/// # Shapes
/// `x` `[row, in]` in f32, `weight` `[out, in]` in f32, f16 or bf16; result `[row, out]` in f32.
pub(crate) fn few_rows(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    #[cfg(feature = "cpu-kernels")]
    return few_rows::few_rows(x, weight);
    #[cfg(not(feature = "cpu-kernels"))]
    {
        let _ = (x, weight);
        None
    }
}
