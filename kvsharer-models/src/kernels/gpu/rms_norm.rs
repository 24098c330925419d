//! RMS norm, a cube a row.

use super::{CubeTensor, address, grid, in_rows, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// Units of a cube, for rows of few and of many channels: what a unit reads one after the other takes its time.
const UNITS: [usize; 2] = [128, 512];

pub(in super::super) fn rms_norm<const D: usize>(x: &Tensor<D>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<D>> {
    if !known(x.dtype()) || !known(weight.dtype()) || x.dims().contains(&0) {
        return None;
    }
    let (shape, channels) = (x.shape(), x.dims()[D - 1]);
    let rows = x.clone().reshape([shape.num_elements() / channels, channels]);
    let y = Dispatch::rms_norm(rows.into_dispatch(), weight.clone().into_dispatch(), eps as f32);
    Some(Tensor::<2>::from_dispatch(y).reshape(shape))
}

#[backend_extension(Cube, Fusion)]
trait Norm: Backend {
    /// Each row of `x` `[row, channel]` scaled to a root mean square of 1, then by `weight` `[channel]`.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
}

impl Norm for CubeBackend {
    fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
        let (x, client) = (in_rows(x), weight.client.clone());
        let [rows, channels] = x.meta.shape().dims();
        let y = empty_device_contiguous_dtype(client.clone(), x.device.clone(), x.meta.shape().clone(), x.dtype);
        let pitch = x.meta.strides()[0];
        let width = width(&client, x.dtype.size().max(weight.dtype.size()), &[channels, pitch]);
        let address = address(&[&x, &weight, &y]);
        let dtypes = [x.dtype, weight.dtype].map(dtype_to_storage_type);
        let most = client.properties().hardware.max_units_per_cube as usize;
        let units = if channels >= 2048 && most >= UNITS[1] { UNITS[1] } else { UNITS[0] };
        let rounds_first = weight.dtype != DType::F32;
        // Safety: the kernel reads and writes below the numbers of rows and channels only.
        #[allow(unsafe_code)]
        unsafe {
            rms_norm_kernel::launch_unchecked(
                &client,
                grid(rows, 1),
                CubeDim::new_1d(units as u32),
                address,
                width,
                x.into_buffer_arg(),
                weight.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                rows,
                channels / width,
                pitch / width,
                eps,
                rounds_first,
                units,
                dtypes,
            );
        }
        y
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rms_norm_kernel<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[Vector<W, N>],
    y: &mut [Vector<X, N>],
    rows: usize,
    vectors: usize,
    pitch: usize,
    eps: f32,
    #[comptime] rounds_first: bool,
    #[comptime] units: usize,
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let unit = UNIT_POS_X as usize;
    // Cubes behind the last row do it again.
    let row = min(CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize, rows - 1);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    for i in range_stepped(unit, vectors, units) {
        let values = Vector::<f32, N>::cast_from(x[row * pitch + i]);
        squares += values * values;
    }
    let mut sum = 0.0f32;
    #[unroll]
    for k in 0..N::value() {
        sum += squares.extract(k);
    }
    let mut sums = Shared::<[f32]>::new_slice(units);
    sums[unit] = sum;
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        sync_cube();
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
    }
    sync_cube();
    let mean = sums[0] / f32::cast_from(vectors * N::value());
    let scale = Vector::<f32, N>::new(1.0f32 / f32::sqrt(mean + eps));
    for i in range_stepped(unit, vectors, units) {
        let mut scaled = Vector::<f32, N>::cast_from(x[row * pitch + i]) * scale;
        // A weight in f32 is applied before the result is rounded, another one after it.
        if comptime!(rounds_first) {
            scaled = Vector::cast_from(Vector::<X, N>::cast_from(scaled));
        }
        y[row * vectors + i] = Vector::cast_from(scaled * Vector::<f32, N>::cast_from(weight[i]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::RmsNorm;
    use burn::tensor::{Device, Distribution};
    use kvsharer_core::testing::gpu;

    #[test]
    fn a_gpu_norms_rows_as_the_cpu_does() {
        let Some(device) = gpu() else { return };
        for (rows, channels) in [(1, 1), (3, 7), (2, 64), (5, 576), (1, 4099), (33_000, 8)] {
            let cpu = Device::flex();
            let x = Tensor::<2>::random([rows, channels], Distribution::Normal(0.0, 3.0), &cpu);
            let weight = Tensor::<1>::random([channels], Distribution::Default, &cpu);
            let there = Tensor::<2>::from_data(x.to_data(), &device);
            let got = rms_norm(&there, &Tensor::from_data(weight.to_data(), &device), 1e-5).expect("a kernel");
            let got = Tensor::<2>::from_data(got.into_data(), (&cpu, DType::F32));
            let worst = (got - RmsNorm::new(weight, 1e-5).forward(x)).abs().max().into_scalar::<f32>();
            assert!(worst < 1e-5, "{rows} x {channels}: {worst}");
        }
    }
}
