//! A linear layer.

use crate::kernels::{few_rows, few_rows_added};
use burn::tensor::Tensor;
use kvsharer_core::product;

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

    /// `x W^T`; a weight kept in a smaller dtype is widened for it.
    fn product(&self, rows: Tensor<2>) -> Tensor<2> {
        let dtype = rows.dtype();
        product(rows, self.weight.clone().cast(dtype).transpose())
    }

    /// # Shapes
    /// `[batch, token, in]` to `[batch, token, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        Self::forward_all(&[self], x).remove(0)
    }

    /// `sum + forward(x)`, in one piece of work where few tokens run.
    ///
    /// # Shapes
    /// `x` `[batch, token, in]`; `sum` and result `[batch, token, out]`.
    pub(crate) fn forward_added(&self, x: Tensor<3>, sum: Tensor<3>) -> Tensor<3> {
        let ([batch, tokens, input], shape) = (x.dims(), sum.dims());
        let [rows, input, output] = [batch * tokens, input, shape[2]];
        let added = match self.bias {
            Some(_) => None,
            None => {
                few_rows_added(&x.clone().reshape([rows, input]), &self.weight, &sum.clone().reshape([rows, output]))
            }
        };
        added.map_or_else(|| sum + self.forward(x), |y| y.reshape(shape))
    }

    /// What each of several layers makes of the same states, which is less work than one after the other where few
    /// tokens run.
    pub(crate) fn forward_all(layers: &[&Self], x: Tensor<3>) -> Vec<Tensor<3>> {
        let [batch, tokens, input] = x.dims();
        // One matrix product over all rows, not one a sequence.
        let rows = x.reshape([batch * tokens, input]);
        let weights: Vec<&Tensor<2>> = layers.iter().map(|layer| &layer.weight).collect();
        let products = few_rows(&rows, &weights)
            .unwrap_or_else(|| layers.iter().map(|layer| layer.product(rows.clone())).collect());
        let shaped = |(y, layer): (Tensor<2>, &&Self)| {
            let output = y.dims()[1];
            let y = y.reshape([batch, tokens, output]);
            match &layer.bias {
                Some(bias) => y + bias.clone().reshape([1, 1, output]),
                None => y,
            }
        };
        products.into_iter().zip(layers).map(shaped).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, Distribution};

    #[test]
    fn a_weight_kept_in_half_counts_as_its_rounded_self() {
        let device = Device::flex();
        let weight = Tensor::<2>::random([24, 80], Distribution::Default, &device);
        for dtype in [DType::BF16, DType::F16] {
            let half = weight.clone().cast(dtype);
            let (kept, rounded) = (Linear::new(half.clone()), Linear::new(half.cast(DType::F32)));
            for tokens in [1, 3, 10] {
                let x = Tensor::<3>::random([1, tokens, 80], Distribution::Default, &device);
                let (y, wanted) = (kept.forward(x.clone()), rounded.forward(x));
                assert_eq!(y.dtype(), DType::F32);
                let worst = (y - wanted).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{tokens} tokens in {dtype:?}: {worst}");
            }
        }
    }
}
