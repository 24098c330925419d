//! The gate of an MLP times what it lets through, in one pass.

use crate::mlp::Activation;
use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use kvsharer_core::exp;
use rayon::prelude::*;

/// Elements that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 14;

pub(super) fn gated(activation: Activation, gate: &Tensor<3>, up: &Tensor<3>) -> Option<Tensor<3>> {
    if gate.dtype() != DType::F32 || up.dtype() != DType::F32 {
        return None;
    }
    let (device, shape) = (gate.device(), gate.dims());
    let gate = gate.clone().try_into_primitive::<Flex>().ok()?;
    let up = up.clone().try_into_primitive::<Flex>().ok()?;
    let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
    let (gate, up) = (gate.as_slice::<f32>()?, up.as_slice::<f32>()?);
    let mut out = vec![0.0; gate.len()];
    let arch = pulp::Arch::new();
    let some = |((out, gate), up): ((&mut [f32], &[f32]), &[f32])| {
        arch.dispatch(|| {
            let parts = out.iter_mut().zip(gate).zip(up);
            match activation {
                Activation::Silu => parts.for_each(|((out, &gate), &up)| *out = silu(gate) * up),
                Activation::GeluTanh => parts.for_each(|((out, &gate), &up)| *out = gelu_tanh(gate) * up),
            }
        });
    };
    if out.len() < WORTH_A_THREAD {
        some(((&mut out, gate), up));
    } else {
        let chunks = gate.par_chunks(WORTH_A_THREAD).zip(up.par_chunks(WORTH_A_THREAD));
        out.par_chunks_mut(WORTH_A_THREAD).zip(chunks).for_each(|(out, (gate, up))| some(((out, gate), up)));
    }
    Some(Tensor::from_data(TensorData::new(out, shape), &device))
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x / 2 (1 + tanh(u))` is `x / (1 + e^(-2u))`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    x / (1.0 + exp(-TWO_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{
        Device, Distribution,
        activation::{gelu_approximate, silu},
    };

    #[test]
    fn gates_open_as_the_activations_say() {
        let device = Device::flex();
        for shape in [[1, 1, 1], [2, 3, 35], [1, 70, 512]] {
            let [gate, up] = [(); 2].map(|()| Tensor::<3>::random(shape, Distribution::Normal(0.0, 4.0), &device));
            for (activation, wanted) in
                [(Activation::Silu, silu(gate.clone())), (Activation::GeluTanh, gelu_approximate(gate.clone()))]
            {
                let got = gated(activation, &gate, &up).expect("a kernel");
                let worst = (got - wanted * up.clone()).abs().max().into_scalar::<f32>();
                assert!(worst < 2e-5, "{activation:?} {shape:?}: {worst}");
            }
        }
        let far = Tensor::<3>::from_data([[[-200.0_f32, 200.0, f32::NAN]]], &device);
        let got = gated(Activation::Silu, &far, &far.ones_like()).expect("a kernel").try_into_vec_as::<f32>().unwrap();
        assert_eq!(got[..2], [0.0, 200.0]);
        assert!(got[2].is_nan());
    }
}
