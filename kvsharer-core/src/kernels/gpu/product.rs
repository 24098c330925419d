//! Matrix products by other kernels than those that burn takes without trying all of them for each shape: f32 is multiplied
//! in f32, where burn's own rounds what it multiplies to TF32, 10 bits behind the point; half precision is more than twice
//! as fast (2,048 tokens through Llama-2-7B's matrices on an H100: kvsharer-eval/docs/performance.md).

use super::{CubeTensor, known};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;
use cubecl::tf32;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::{launch::launch_ref, multi_level, strategy::Strategy};
use cubek::std::InputBinding;

pub(in super::super) fn rounds_f32(x: &Tensor<4>) -> bool {
    x.dtype() == DType::F32 && rounds(&x.device())
}

/// Whether burn's product rounds f32 on this device.
fn rounds(device: &Device) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return false };
    device.client().properties().supports_type(tf32::elem_type_native())
}

pub(in super::super) fn product<const D: usize>(lhs: &Tensor<D>, rhs: &Tensor<D>) -> Option<Tensor<D>> {
    // Devices that round f32 have what the kernels for halves need.
    if lhs.dtype() != rhs.dtype() || !known(lhs.dtype()) || !rounds(&lhs.device()) {
        return None;
    }
    let y = Dispatch::product(lhs.clone().into_dispatch(), rhs.clone().into_dispatch());
    Some(Tensor::from_dispatch(y))
}

#[backend_extension(Cube, Fusion)]
trait Product: Backend {
    /// `[.., row, inner]` times `[.., inner, column]`; axes in front are equal or 1.
    #[fusion(meta = product_spec)]
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;
}

fn product_spec(lhs: &TensorSpec, rhs: &TensorSpec) -> TensorSpec {
    TensorSpec::new(product_shape(&lhs.shape, &rhs.shape), lhs.dtype)
}

fn product_shape(lhs: &Shape, rhs: &Shape) -> Shape {
    let last = lhs.num_dims() - 1;
    let axis = |axis: usize| match last - axis {
        0 => rhs[axis],
        1 => lhs[axis],
        _ => lhs[axis].max(rhs[axis]),
    };
    Shape::from((0..=last).map(axis).collect::<Vec<_>>())
}

impl Product for CubeBackend {
    fn product(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
        let (client, dtype) = (lhs.client.clone(), dtype_to_storage_type(lhs.dtype));
        let shape = product_shape(lhs.meta.shape(), rhs.meta.shape());
        let y = empty_device_contiguous_dtype(client.clone(), lhs.device.clone(), shape, lhs.dtype);
        let strategy = Strategy::MultiLevel(match lhs.dtype {
            DType::F32 => multi_level::Strategy::SimpleUnit(Default::default()),
            _ => multi_level::Strategy::SpecializedTmaMma(Default::default()),
        });
        let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems { lhs: dtype, rhs: dtype, out: dtype });
        let [left, right] = [&lhs, &rhs].map(|tensor| InputBinding::new(tensor.clone().binding(), dtype));
        match launch_ref(&strategy, &client, left, right, y.clone().binding(), &mut dtypes) {
            Ok(()) => y,
            // Shapes that do not suit it.
            Err(_) => {
                let dtype = lhs.dtype;
                matmul(lhs, rhs, Some(y), MatmulStrategy::default(), dtype).expect("burn's own product")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::Distribution;

    #[test]
    fn f32_is_multiplied_in_f32() {
        let Some(device) = gpu() else { return };
        let cpu = Device::flex();
        for (left, right) in [
            ([1, 1, 70, 31], [1, 1, 31, 33]),
            ([2, 3, 5, 64], [2, 3, 64, 9]),
            ([2, 3, 40, 16], [1, 3, 16, 16]),
            ([1, 1, 300, 576], [1, 1, 576, 100]),
        ] {
            let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &cpu);
            let (lhs, rhs) = (random(left), random(right).swap_dims(2, 3));
            let wanted = lhs.clone().matmul(rhs.clone().swap_dims(2, 3));
            let [lhs, rhs] = [lhs, rhs].map(|tensor| Tensor::<4>::from_data(tensor.into_data(), &device));
            let got = crate::kernels::product(lhs, rhs.swap_dims(2, 3));
            let got = Tensor::<4>::from_data(got.into_data(), &cpu);
            let worst = (got - wanted).abs().max().into_scalar::<f32>();
            assert!(worst < 1e-5 * left[3] as f32, "{left:?} x {right:?}: {worst}");
        }
    }
}
