//! What the likelihood of a token and greedy decoding need of a row of logits, in one reading; a cube a row.

use super::{CubeTensor, address, grid, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 256;

pub(in super::super) fn logit_stats(logits: &Tensor<2>, targets: &Tensor<1, Int>) -> Option<Tensor<2>> {
    if !known(logits.dtype()) || targets.dtype() != DType::I32 || logits.dims().contains(&0) {
        return None;
    }
    let (logits, targets) = (logits.clone().into_dispatch(), targets.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::logit_stats(logits, targets)))
}

#[backend_extension(Cube, Fusion)]
trait LogitStats: Backend {
    /// Of each row of `logits` `[row, vocab]`: the greatest, the sum of what all are of it (`exp(logit - greatest)`), the
    /// one of its target in `targets` `[row]`, and the first that is the greatest.
    #[fusion(meta = four_a_row)]
    fn logit_stats(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self>;
}

fn four_a_row(logits: &TensorSpec, _targets: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([logits.shape[0], 4]), DType::F32)
}

impl LogitStats for CubeBackend {
    fn logit_stats(logits: CubeTensor, targets: CubeTensor) -> CubeTensor {
        let (logits, client) = (into_contiguous(logits), targets.client.clone());
        let [rows, vocab] = logits.meta.shape().dims();
        let shape = Shape::new([rows, 4]);
        let stats = empty_device_contiguous_dtype(client.clone(), logits.device.clone(), shape, DType::F32);
        let width = width(&client, logits.dtype.size(), &[vocab]);
        let address = address(&[&logits, &targets, &stats]);
        let dtype = dtype_to_storage_type(logits.dtype);
        // Safety: the kernel reads and writes below the numbers of rows and logits only.
        #[allow(unsafe_code)]
        unsafe {
            logit_stats_kernel::launch_unchecked(
                &client,
                grid(rows, 1),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                logits.into_buffer_arg(),
                into_contiguous(targets).into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                rows,
                vocab / width,
                dtype,
            );
        }
        stats
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn logit_stats_kernel<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[i32],
    stats: &mut [f32],
    rows: usize,
    vectors: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    // Cubes behind the last row do it again.
    let row = min(CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize, rows - 1);
    let target = targets[row] as usize;
    let mut top = f32::min_value();
    let mut mass = 0.0f32;
    let mut first = 0usize;
    for i in range_stepped(unit, vectors, UNITS) {
        let values = Vector::<f32, N>::cast_from(logits[row * vectors + i]);
        let before = top;
        #[unroll]
        for k in 0..N::value() {
            let value = values.extract(k);
            if value > top {
                top = value;
                first = i * N::value() + k;
            }
            if i * N::value() + k == target {
                stats[row * 4 + 2] = value;
            }
        }
        mass *= f32::exp(before - top);
        #[unroll]
        for k in 0..N::value() {
            mass += f32::exp(values.extract(k) - top);
        }
    }
    let mut tops = Shared::<[f32]>::new_slice(UNITS);
    let mut masses = Shared::<[f32]>::new_slice(UNITS);
    let mut firsts = Shared::<[u32]>::new_slice(UNITS);
    tops[unit] = top;
    masses[unit] = mass;
    firsts[unit] = first as u32;
    #[unroll]
    for step in 0..comptime!(UNITS.ilog2() as usize) {
        sync_cube();
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let (own, other) = (tops[unit], tops[unit + half]);
            let both = max(own, other);
            masses[unit] = masses[unit] * f32::exp(own - both) + masses[unit + half] * f32::exp(other - both);
            if other > own || (other == own && firsts[unit + half] < firsts[unit]) {
                firsts[unit] = firsts[unit + half];
            }
            tops[unit] = both;
        }
    }
    if unit == 0 {
        stats[row * 4] = tops[0];
        stats[row * 4 + 1] = masses[0];
        stats[row * 4 + 3] = f32::cast_from(firsts[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn a_row_is_told_as_its_numbers_say_and_of_equal_greatest_logits_the_first() {
        let Some(device) = gpu() else { return };
        for (rows, vocab) in [(1, 1), (3, 7), (5, 1000), (2, 49_152), (33_000, 8)] {
            let cpu = Device::flex();
            let logits = Tensor::<2>::random([rows, vocab], Distribution::Normal(0.0, 3.0), &cpu);
            // Of few values, so that the greatest stands in several places.
            let logits = (logits * 2.0).round() / 2.0 + 30.0;
            let targets: Vec<i32> = (0..rows).map(|row| (row * 31 % vocab) as i32).collect();
            let there = Tensor::<2>::from_data(logits.to_data(), &device);
            let got = logit_stats(&there, &Tensor::from_ints(&targets[..], &device)).expect("a kernel");
            let got: Vec<f32> = got.into_data().to_vec().expect("f32");
            let logits: Vec<f32> = logits.into_data().to_vec().expect("f32");
            for ((row, got), &target) in logits.chunks(vocab).zip(got.chunks(4)).zip(&targets) {
                let top = row.iter().copied().fold(f32::MIN, f32::max);
                let mass: f64 = row.iter().map(|&logit| f64::from(logit - top).exp()).sum();
                let first = row.iter().position(|&logit| logit == top).expect("one is");
                assert_eq!([got[0], got[2], got[3]], [top, row[target as usize], first as f32], "{rows} x {vocab}");
                assert!((f64::from(got[1]) / mass - 1.0).abs() < 3e-6, "{rows} x {vocab}: {} of {mass}", got[1]);
            }
        }
    }
}
