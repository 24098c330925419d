//! RMS norm in one pass over each state.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

/// Elements that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 15;

/// Terms of a sum in work at once.
const LANES: usize = 16;

pub(super) fn rms_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    if x.dtype() != DType::F32 || weight.dtype() != DType::F32 {
        return None;
    }
    let (device, shape) = (x.device(), x.shape());
    let width = weight.dims()[0];
    let x = x.clone().try_into_primitive::<Flex>().ok()?.to_contiguous();
    let weight = weight.clone().try_into_primitive::<Flex>().ok()?;
    let (x, weight) = (x.as_slice::<f32>()?, weight.as_slice::<f32>()?);
    let mut out = vec![0.0; x.len()];
    let arch = pulp::Arch::new();
    let some = |(out, x): (&mut [f32], &[f32])| {
        arch.dispatch(|| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let scale = (squares(x) / width as f32 + eps as f32).sqrt().recip();
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * weight;
                }
            }
        });
    };
    if x.len() < WORTH_A_THREAD {
        some((&mut out, x));
    } else {
        let part = (WORTH_A_THREAD / width).max(1) * width;
        out.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(some);
    }
    Some(Tensor::from_data(TensorData::new(out, shape), &device))
}

#[inline(always)]
fn squares(x: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn states_are_scaled_as_the_formula_says() {
        let device = Device::flex();
        for shape in [[1, 1, 1], [2, 3, 35], [1, 70, 576]] {
            let x = Tensor::<3>::random(shape, Distribution::Normal(0.0, 3.0), &device);
            let weight = Tensor::<1>::random([shape[2]], Distribution::Default, &device);
            let mean = x.clone().square().mean_dim(2);
            let wanted = x.clone() * (mean + 1e-5).sqrt().recip() * weight.clone().unsqueeze();
            let turned = x.clone().swap_dims(0, 1).swap_dims(0, 1);
            for x in [x, turned] {
                let got = rms_norm(&x, &weight, 1e-5).expect("a kernel");
                let worst = (got - wanted.clone()).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{shape:?}: {worst}");
            }
        }
    }
}
