//! A weight matrix times a few rows: a plane computes some outputs for all rows, so that each weight is read once.

use super::{CubeTensor, address, grid, in_rows, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_contiguous_dtype};
use cubecl::client::Client;
use cubecl::{features::Plane, prelude::*};

/// With more rows, tensor cores are faster.
const ROWS: usize = 32;

/// Units of a cube.
const UNITS: usize = 128;

pub(in super::super) fn few_rows(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    let [rows, input] = x.dims();
    let same = x.dtype() == DType::F32 || x.dtype() == weight.dtype();
    if rows > ROWS || rows * input * weight.dims()[0] == 0 || !same || !known(weight.dtype()) {
        return None;
    }
    let y = Dispatch::few_rows(x.clone().into_dispatch(), weight.clone().into_dispatch());
    Some(Tensor::from_dispatch(y))
}

#[backend_extension(Cube, Fusion)]
trait FewRows: Backend {
    /// `x W^T` for `x` `[row, in]` and `W` `[out, in]`.
    #[fusion(dtype = x, shape = Shape::new([x[0], weight[0]]))]
    fn few_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl FewRows for CubeBackend {
    fn few_rows(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let (x, weight) = (in_rows(x), in_rows(weight));
        let client = x.client.clone();
        let [rows, input] = x.meta.shape().dims();
        let outputs = weight.meta.shape()[0];
        let y = empty_device_contiguous_dtype(client.clone(), x.device.clone(), Shape::new([rows, outputs]), x.dtype);
        let (x_pitch, w_pitch) = (x.meta.strides()[0], weight.meta.strides()[0]);
        let width = width(&client, weight.dtype.size(), &[input, x_pitch, w_pitch]);
        let tile = Tile::new(rows, &client);
        let count = grid(outputs.div_ceil(tile.outputs * tile.planes), rows.div_ceil(tile.rows));
        let address = address(&[&x, &weight, &y]);
        let dtypes = [x.dtype, weight.dtype].map(dtype_to_storage_type);
        // Safety: the kernel reads and writes below the numbers of rows and outputs only.
        #[allow(unsafe_code)]
        unsafe {
            few_rows_kernel::launch_unchecked(
                &client,
                count,
                CubeDim::new_2d(tile.lanes as u32, tile.planes as u32),
                address,
                width,
                x.into_buffer_arg(),
                weight.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                input / width,
                x_pitch / width,
                w_pitch / width,
                rows,
                outputs,
                tile,
                dtypes,
            );
        }
        y
    }
}

/// What one plane computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    outputs: usize,
    /// Units, which share the sum of each output.
    lanes: usize,
    /// Planes of a cube.
    planes: usize,
    /// Whether the units of a plane can sum without shared memory.
    plane_sums: bool,
}

impl Tile {
    /// Rows come in powers of two, so that few kernels are compiled. The more rows, the more outputs: they share what
    /// is read of the rows.
    fn new(rows: usize, client: &Client) -> Self {
        let rows = rows.next_power_of_two().min(16);
        let (hardware, features) = (&client.properties().hardware, &client.properties().features);
        let plane_sums = features.plane.contains(Plane::Ops) && hardware.plane_size_min == hardware.plane_size_max;
        let lanes = if plane_sums { hardware.plane_size_max as usize } else { 32 };
        // Shared memory is for the sums of a single plane.
        let planes = if plane_sums { UNITS / lanes } else { 1 };
        Self { rows, outputs: rows.div_ceil(2).min(4), lanes, planes, plane_sums }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn few_rows_kernel<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[Vector<W, N>],
    y: &mut [X],
    vectors: usize,
    x_pitch: usize,
    w_pitch: usize,
    rows: usize,
    outputs: usize,
    #[comptime] tile: Tile,
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let lane = UNIT_POS_X as usize;
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let first_output = (cube * tile.planes + UNIT_POS_Y as usize) * tile.outputs;
    let first_row = CUBE_POS_Z as usize * tile.rows;
    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.outputs));
    for i in range_stepped(lane, vectors, tile.lanes) {
        let mut weights = Array::<Vector<f32, N>>::new(tile.outputs);
        #[unroll]
        for o in 0..tile.outputs {
            // What lies behind the last row is computed as the last row and not kept.
            let output = min(first_output + o, outputs - 1);
            weights[o] = Vector::cast_from(weight[output * w_pitch + i]);
        }
        #[unroll]
        for r in 0..tile.rows {
            let row = min(first_row + r, rows - 1);
            let values = Vector::<f32, N>::cast_from(x[row * x_pitch + i]);
            #[unroll]
            for o in 0..tile.outputs {
                let products = weights[o] * values;
                #[unroll]
                for k in 0..N::value() {
                    sums[comptime!(r * tile.outputs + o)] += products.extract(k);
                }
            }
        }
    }
    if comptime!(tile.plane_sums) {
        #[unroll]
        for index in 0..comptime!(tile.rows * tile.outputs) {
            let sum = plane_sum(sums[index]);
            let row = first_row + comptime!(index / tile.outputs);
            let output = first_output + comptime!(index % tile.outputs);
            if lane == comptime!(index % tile.lanes) && row < rows && output < outputs {
                y[row * outputs + output] = X::cast_from(sum);
            }
        }
    } else {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(tile.rows * tile.outputs * tile.lanes));
        #[unroll]
        for index in 0..comptime!(tile.rows * tile.outputs) {
            shared[index * tile.lanes + lane] = sums[index];
        }
        sync_cube();
        for index in range_stepped(lane, comptime!(tile.rows * tile.outputs), tile.lanes) {
            let row = first_row + index / tile.outputs;
            let output = first_output + index % tile.outputs;
            if row < rows && output < outputs {
                let mut sum = 0.0f32;
                for other in 0..tile.lanes {
                    sum += shared[index * tile.lanes + other];
                }
                y[row * outputs + output] = X::cast_from(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};
    use kvsharer_core::testing::gpu;

    /// The largest error, in parts of what rounding allows.
    fn error(got: Tensor<2>, wanted: Tensor<2>, unit: f32, input: usize) -> f32 {
        let got = Tensor::<2>::from_data(got.into_data(), (&wanted.device(), DType::F32));
        let allowed = wanted.clone().abs() * unit + 1e-5 * input as f32;
        ((got - wanted).abs() / allowed).max().into_scalar()
    }

    #[test]
    #[allow(clippy::print_stderr)]
    fn a_gpu_multiplies_a_few_rows_as_the_cpu_does() {
        let Some(device) = gpu() else {
            eprintln!("skipped: this machine has no GPU and no driver that stands in for one");
            return;
        };
        let (cpu, half) = (Device::flex(), [(DType::F16, 1e-3), (DType::BF16, 8e-3)]);
        let known = half.into_iter().filter(|(dtype, _)| device.supports_dtype(*dtype));
        let dtypes: Vec<_> = [(DType::F32, 1e-6)].into_iter().chain(known).collect();
        for (rows, input, output) in [
            (1, 1, 1),
            (1, 31, 5),
            (2, 64, 3),
            (3, 576, 193),
            (4, 33, 2049),
            (1, 96, 4099),
            (7, 576, 37),
            (9, 100, 40),
            (16, 576, 49),
            (17, 64, 50),
            (32, 130, 3),
        ] {
            let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &cpu);
            let (x, weight) = (random([rows, input]), random([output, input]));
            for &(dtype, unit) in &dtypes {
                let weight = weight.clone().cast(dtype);
                let there = Tensor::<2>::from_data(weight.clone().into_data(), (&device, dtype));
                for (of_x, unit) in [(DType::F32, 1e-6), (dtype, unit)] {
                    let x = x.clone().cast(of_x);
                    let wanted = x.clone().cast(DType::F32).matmul(weight.clone().cast(DType::F32).transpose());
                    let x = Tensor::<2>::from_data(x.into_data(), (&device, of_x));
                    let got = few_rows(&x, &there).expect("a kernel");
                    assert_eq!((got.dims(), got.dtype()), ([rows, output], of_x));
                    let worst = error(got, wanted, unit, input);
                    assert!(worst < 1.0, "{rows} x {input} x {output}, {of_x:?} by {dtype:?}: {worst}");
                }
            }
        }
    }

    #[test]
    fn many_rows_are_left_to_others() {
        if let Some(device) = gpu() {
            let many = Tensor::<2>::zeros([ROWS + 1, 8], &device);
            assert!(few_rows(&many, &Tensor::zeros([8, 8], &device)).is_none());
        }
    }
}
