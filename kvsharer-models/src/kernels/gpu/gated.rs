//! The gate of an MLP.

use super::{CubeTensor, address, grid, known, width};
use crate::mlp::Activation;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 128;

pub(in super::super) fn gated(activation: Activation, gate: &Tensor<3>, up: &Tensor<3>) -> Option<Tensor<3>> {
    let same = gate.dtype() == up.dtype() && gate.dims() == up.dims();
    if !same || !known(up.dtype()) || up.dims().contains(&0) {
        return None;
    }
    let (gate, up) = (gate.clone().into_dispatch(), up.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::gate(gate, up, activation)))
}

#[backend_extension(Cube, Fusion)]
trait Gate: Backend {
    /// `activation(gate) * up`.
    #[fusion(dtype = up, shape = up)]
    fn gate(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
}

impl Gate for CubeBackend {
    fn gate(gate: CubeTensor, up: CubeTensor, activation: Activation) -> CubeTensor {
        let (gate, up) = (into_contiguous(gate), into_contiguous(up));
        let (client, shape) = (up.client.clone(), up.meta.shape().clone());
        let elements = shape.num_elements();
        let product = empty_device_contiguous_dtype(client.clone(), up.device.clone(), shape, up.dtype);
        let width = width(&client, up.dtype.size(), &[elements]);
        let (address, vectors) = (address(&[&up, &product]), elements / width);
        let dtype = dtype_to_storage_type(up.dtype);
        // Safety: all three have `vectors` vectors, behind which the kernel does nothing.
        #[allow(unsafe_code)]
        unsafe {
            gate_kernel::launch_unchecked(
                &client,
                grid(vectors.div_ceil(UNITS), 1),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                gate.into_buffer_arg(),
                up.into_buffer_arg(),
                product.clone().into_buffer_arg(),
                vectors,
                activation,
                dtype,
            );
        }
        product
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gate_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    product: &mut [Vector<F, N>],
    vectors: usize,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let at = cube * UNITS + UNIT_POS_X as usize;
    if at < vectors {
        let x = Vector::<f32, N>::cast_from(gate[at]);
        let one = Vector::<f32, N>::new(1.0f32);
        let opened = match activation {
            Activation::Silu => x / (one + Vector::exp(-x)),
            Activation::GeluTanh => {
                let cubic = x + x * x * x * Vector::new(0.044715f32);
                let inner = cubic * Vector::new(0.797_884_6f32);
                x * Vector::new(0.5f32) * (one + Vector::tanh(inner))
            }
        };
        product[at] = Vector::cast_from(opened * Vector::<f32, N>::cast_from(up[at]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, Distribution};
    use kvsharer_core::testing::gpu;

    #[test]
    fn a_gate_opens_on_a_gpu_as_on_the_cpu() {
        let Some(device) = gpu() else { return };
        for elements in [1, 7, 64, 1537] {
            let (cpu, normal) = (Device::flex(), Distribution::Normal(0.0, 4.0));
            let [opens, up] = [(); 2].map(|()| Tensor::<3>::random([2, 1, elements], normal, &cpu));
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let [x, y] = [&opens, &up].map(|tensor| Tensor::<3>::from_data(tensor.to_data(), &device));
                let got = gated(activation, &x, &y).expect("a kernel");
                let got = Tensor::<3>::from_data(got.into_data(), (&cpu, DType::F32));
                let worst = (got - activation.forward(opens.clone()) * up.clone()).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-4, "{activation:?} of {elements}: {worst}");
            }
        }
    }
}
