//! A linear layer without bias.

use burn::tensor::Tensor;
use rayon::prelude::*;

/// `y = x W^T`, with the weight as PyTorch stores it.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`: this layout reads a weight row by row for a single token, which is faster on CPUs than `[in, out]`.
    weight: Tensor<2>,
    host_threads: usize,
}

impl Linear {
    /// A layer with the given weight `[out, in]`.
    pub fn new(weight: Tensor<2>) -> Self {
        Self { weight, host_threads: 1 }
    }

    /// Splits the product of a single row over this many threads, for devices that compute on the host: there, such a
    /// product is bound by how fast one thread reads the weight. The result is the same to the bit.
    pub(crate) fn set_host_threads(&mut self, threads: usize) {
        self.host_threads = threads.max(1);
    }

    /// # Shapes
    /// `[batch, token, in]` to `[batch, token, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, input] = x.dims();
        let output = self.weight.dims()[0];
        // One matrix product over all rows, not one a sequence.
        let rows = x.reshape([batch * tokens, input]);
        let product = match self.host_threads {
            threads if threads > 1 && batch * tokens == 1 => self.split_row(rows, threads),
            _ => rows.matmul(self.weight.clone().transpose()),
        };
        product.reshape([batch, tokens, output])
    }

    fn split_row(&self, row: Tensor<2>, threads: usize) -> Tensor<2> {
        let output = self.weight.dims()[0];
        let parts = self.weight.clone().split(output.div_ceil(threads), 0);
        let parts = parts.into_par_iter().map(|part| row.clone().matmul(part.transpose()));
        Tensor::cat(parts.collect(), 1)
    }
}
