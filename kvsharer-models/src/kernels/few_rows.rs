//! Weight matrices times a few rows: each weight is read once, by all threads together. Several matrices that take the
//! same rows are one piece of work, so that threads are woken and waited for once.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

/// With more rows, a matrix product that keeps weights in registers is faster.
const ROWS: usize = 4;

/// Terms of a dot product in work at once: four vectors of eight.
const LANES: usize = 32;

/// Elements of a weight that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 15;

pub(super) fn few_rows(x: &Tensor<2>, weights: &[&Tensor<2>]) -> Option<Vec<Tensor<2>>> {
    let [rows, input] = x.dims();
    let dtype = weights.first()?.dtype();
    if rows > ROWS || x.dtype() != DType::F32 || weights.iter().any(|weight| weight.dtype() != dtype) {
        return None;
    }
    let device = x.device();
    let x = x.clone().try_into_primitive::<Flex>().ok()?.to_contiguous();
    let primitive = |weight: &&Tensor<2>| (*weight).clone().try_into_primitive::<Flex>().ok();
    let weights = weights.iter().map(primitive).collect::<Option<Vec<_>>>()?;
    let (x, sizes) = (x.as_slice::<f32>()?, (rows, input));
    let weights = weights.iter();
    let found = match dtype {
        DType::F32 => products(x, &weights.map(|w| w.as_slice::<f32>()).collect::<Option<Vec<_>>>()?, sizes),
        DType::BF16 => products(x, &weights.map(|w| w.as_slice::<bf16>()).collect::<Option<Vec<_>>>()?, sizes),
        DType::F16 => products(x, &weights.map(|w| w.as_slice::<f16>()).collect::<Option<Vec<_>>>()?, sizes),
        _ => return None,
    };
    let tensor = |y: Vec<f32>| {
        let output = y.len() / rows;
        let y = Tensor::<2>::from_data(TensorData::new(y, [output, rows]), &device);
        if rows == 1 { y.reshape([1, output]) } else { y.transpose() }
    };
    Some(found.into_iter().map(tensor).collect())
}

/// `W x^T`, `[out, row]`, of `x` `[row, in]` and each `W` `[out, in]`.
fn products<W: Weight>(x: &[f32], weights: &[&[W]], (rows, input): (usize, usize)) -> Vec<Vec<f32>> {
    let mut found: Vec<Vec<f32>> = weights.iter().map(|weight| vec![0.0; weight.len() / input.max(1) * rows]).collect();
    let all: usize = weights.iter().map(|weight| weight.len()).sum();
    let threads = rayon::current_num_threads().min(all / WORTH_A_THREAD).max(1);
    // Pieces of one size, however many outputs a matrix has.
    let outputs = (all / input.max(1)).div_ceil(threads).max(1);
    let pieces = found
        .iter_mut()
        .zip(weights)
        .flat_map(|(y, weight)| y.chunks_mut(outputs * rows).zip(weight.chunks(outputs * input.max(1))));
    let arch = pulp::Arch::new();
    let one = |(y, weight): (&mut [f32], &[W])| {
        arch.dispatch(|| {
            for (y, weight) in y.chunks_exact_mut(rows).zip(weight.chunks_exact(input)) {
                for (y, x) in y.iter_mut().zip(x.chunks_exact(input)) {
                    *y = dot(x, weight);
                }
            }
        });
    };
    if threads == 1 {
        pieces.for_each(one);
    } else {
        pieces.collect::<Vec<_>>().into_par_iter().for_each(one);
    }
    found
}

#[inline(always)]
fn dot<W: Weight>(x: &[f32], weight: &[W]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (x, weight) = (x.chunks_exact(LANES), weight.chunks_exact(LANES));
    let rest: f32 = x.remainder().iter().zip(weight.remainder()).map(|(x, w)| x * w.widen()).sum();
    for (x, weight) in x.zip(weight) {
        for ((sum, x), w) in sums.iter_mut().zip(x).zip(weight) {
            *sum += x * w.widen();
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// A number that a vector unit widens to f32 by shifts.
trait Weight: Copy + Sync {
    fn widen(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let (sign, rest) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
        // The exponent counts from 15, f32's from 127: a product by 2^112, which is exact, subnormals included.
        let finite = f32::from_bits(rest) * f32::from_bits((112 + 127) << 23);
        let special = rest | 0x7f80_0000;
        let magnitude = if bits & 0x7c00 == 0x7c00 { special } else { finite.to_bits() };
        f32::from_bits(sign | magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            let same = |ours: f32, theirs: f32| ours == theirs || ours.is_nan() && theirs.is_nan();
            assert!(same(half.widen(), half.to_f32()), "{bits:#x}");
            assert!(same(brain.widen(), brain.to_f32()), "{bits:#x}");
        }
    }

    #[test]
    fn a_few_rows_are_multiplied_as_many_are() {
        let device = Device::flex();
        for (rows, input, output) in
            [(1, 1, 1), (1, 31, 5), (2, 64, 3), (3, 576, 192), (4, 33, 2048), (1, 96, 4099_usize)]
        {
            let x = Tensor::<2>::random([rows, input], Distribution::Default, &device);
            let weight = Tensor::<2>::random([output, input], Distribution::Default, &device);
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let weight = weight.clone().cast(dtype);
                let wanted = x.clone().matmul(weight.clone().cast(DType::F32).transpose());
                let half = weight.clone().slice_dim(0, 0..output.div_ceil(2));
                let [got, of_half] = &few_rows(&x, &[&weight, &half]).expect("a kernel")[..] else { panic!("two") };
                assert_eq!(got.dims(), [rows, output]);
                let worst = (got.clone() - wanted).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5 * input as f32, "{rows} x {input} x {output} in {dtype:?}: {worst}");
                let apart = got.clone().slice_dim(1, 0..output.div_ceil(2)) - of_half.clone();
                assert_eq!(apart.abs().max().into_scalar::<f32>(), 0.0);
            }
        }
        let many = Tensor::<2>::zeros([ROWS + 1, 8], &device);
        assert!(few_rows(&many, &[&Tensor::zeros([8, 8], &device)]).is_none());
    }
}
