//! Weight matrices times a few rows: each weight is read once for all rows, several weights in one launch, and what the
//! product is added to is read on the way.

use super::by_plane::{PlaneTile, by_plane};
use super::by_tile::{BLOCK, MmaTile, by_tile};
use super::{CubeTensor, address, grid, in_rows, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// With more rows, a matrix product that shares them among units is faster.
const ROWS: usize = 32;

/// `x W^T` of each of 1 to 3 weights.
pub(in super::super) fn few_rows(x: &Tensor<2>, weights: &[&Tensor<2>]) -> Option<Vec<Tensor<2>>> {
    if !weights.iter().all(|weight| fits(x, weight)) {
        return None;
    }
    let x = x.clone().into_dispatch();
    let given = |weight: &Tensor<2>| weight.clone().into_dispatch();
    let products = match *weights {
        [weight] => vec![Dispatch::few_rows(x, given(weight))],
        [first, second] => {
            let (a, b) = Dispatch::few_rows_of_two(x, given(first), given(second));
            vec![a, b]
        }
        [first, second, third] => {
            let (a, b, c) = Dispatch::few_rows_of_three(x, given(first), given(second), given(third));
            vec![a, b, c]
        }
        _ => return None,
    };
    Some(products.into_iter().map(Tensor::from_dispatch).collect())
}

/// `sum + x W^T`.
pub(in super::super) fn few_rows_added(x: &Tensor<2>, weight: &Tensor<2>, sum: &Tensor<2>) -> Option<Tensor<2>> {
    if !fits(x, weight) || sum.dtype() != x.dtype() {
        return None;
    }
    let [x, weight, sum] = [x, weight, sum].map(|tensor| tensor.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::few_rows_added(x, weight, sum)))
}

fn fits(x: &Tensor<2>, weight: &Tensor<2>) -> bool {
    let [rows, input] = x.dims();
    let same = x.dtype() == DType::F32 || x.dtype() == weight.dtype();
    rows <= ROWS && rows * input * weight.dims()[0] > 0 && same && known(weight.dtype())
}

#[backend_extension(Cube, Fusion)]
trait FewRows: Backend {
    /// `x W^T` for `x` `[row, in]` and `W` `[out, in]`.
    #[fusion(dtype = x, shape = Shape::new([x[0], weight[0]]))]
    fn few_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same, added to `sum` `[row, out]`.
    #[fusion(dtype = x, shape = sum)]
    fn few_rows_added(x: FloatTensor<Self>, weight: FloatTensor<Self>, sum: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same of two weights.
    #[fusion(meta = of_two)]
    fn few_rows_of_two(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The same of three weights.
    #[fusion(meta = of_three)]
    fn few_rows_of_three(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

fn product_of(x: &TensorSpec, weight: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([x.shape[0], weight.shape[0]]), x.dtype)
}

fn of_two(x: &TensorSpec, first: &TensorSpec, second: &TensorSpec) -> (TensorSpec, TensorSpec) {
    (product_of(x, first), product_of(x, second))
}

fn of_three(
    x: &TensorSpec,
    first: &TensorSpec,
    second: &TensorSpec,
    third: &TensorSpec,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    (product_of(x, first), product_of(x, second), product_of(x, third))
}

impl FewRows for CubeBackend {
    fn few_rows(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let [y] = launch(x, [weight], None);
        y
    }

    fn few_rows_added(x: CubeTensor, weight: CubeTensor, sum: CubeTensor) -> CubeTensor {
        let [y] = launch(x, [weight], Some(sum));
        y
    }

    fn few_rows_of_two(x: CubeTensor, first: CubeTensor, second: CubeTensor) -> (CubeTensor, CubeTensor) {
        let [a, b] = launch(x, [first, second], None);
        (a, b)
    }

    fn few_rows_of_three(
        x: CubeTensor,
        first: CubeTensor,
        second: CubeTensor,
        third: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [a, b, c] = launch(x, [first, second, third], None);
        (a, b, c)
    }
}

/// What a launch is about beside its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Job {
    /// How many of the weights count.
    pub(super) weights: usize,
    /// Whether products are added to `sum`.
    pub(super) added: bool,
}

fn launch<const W: usize>(x: CubeTensor, weights: [CubeTensor; W], sum: Option<CubeTensor>) -> [CubeTensor; W] {
    let (x, weights, sum) = (in_rows(x), weights.map(in_rows), sum.map(burn_cubecl::kernel::into_contiguous));
    let client = x.client.clone();
    let [rows, input] = x.meta.shape().dims();
    let job = Job { weights: W, added: sum.is_some() };
    let outputs: [usize; W] = std::array::from_fn(|w| weights[w].meta.shape()[0]);
    let empty = |outputs| {
        let shape = Shape::new([rows, outputs]);
        empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape, x.dtype)
    };
    let products = outputs.map(empty);
    let pitches: [usize; W] = std::array::from_fn(|w| weights[w].meta.strides()[0]);
    let x_pitch = x.meta.strides()[0];
    // Arguments that do not count repeat the last that does.
    let of = |w: usize| w.min(W - 1);
    let weight_dtype = weights[0].dtype;
    let lengths = [&pitches[..], &[input, x_pitch]].concat();
    let width = width(&client, weight_dtype.size(), &lengths);
    let tensors: Vec<&CubeTensor> = weights.iter().chain(&products).chain([&x]).collect();
    let address = address(&tensors);
    let summand = sum.unwrap_or_else(|| x.clone());
    let tile = (width * weight_dtype.size() == 16)
        .then(|| MmaTile::new(rows, input, [x.dtype, weight_dtype], &client))
        .flatten();
    // All cubes where each has so many outputs; outputs, cubes and pitches of each weight.
    let shares = |each: usize| {
        let cubes = outputs.map(|outputs| outputs.div_ceil(each));
        let mut sizes = SequenceArg::new();
        for of_weights in [outputs, cubes] {
            (0..3).for_each(|w| sizes.push(if w < W { of_weights[w] } else { 0 }));
        }
        (0..3).for_each(|w| sizes.push(pitches[of(w)] / width));
        (cubes.iter().sum(), sizes)
    };
    match tile {
        Some(tile) => {
            let (cubes, sizes) = shares(tile.outputs());
            // Safety: rows and outputs behind the last are read as the last and not written.
            #[allow(unsafe_code)]
            unsafe {
                by_tile::launch_unchecked(
                    &client,
                    grid(cubes, 1),
                    CubeDim::new_2d(32, tile.planes as u32),
                    address,
                    width,
                    x.into_buffer_arg(),
                    weights[0].clone().into_buffer_arg(),
                    weights[of(1)].clone().into_buffer_arg(),
                    weights[of(2)].clone().into_buffer_arg(),
                    summand.into_buffer_arg(),
                    products[0].clone().into_buffer_arg(),
                    products[of(1)].clone().into_buffer_arg(),
                    products[of(2)].clone().into_buffer_arg(),
                    sizes,
                    input / BLOCK,
                    x_pitch / width,
                    rows,
                    tile,
                    job,
                    dtype_to_storage_type(weight_dtype),
                );
            }
        }
        None => {
            let tile = PlaneTile::new(rows, &client);
            let (cubes, sizes) = shares(tile.outputs * tile.planes);
            // Safety: the kernel reads and writes below the numbers of rows and outputs only.
            #[allow(unsafe_code)]
            unsafe {
                by_plane::launch_unchecked(
                    &client,
                    grid(cubes, rows.div_ceil(tile.rows)),
                    CubeDim::new_2d(tile.lanes as u32, tile.planes as u32),
                    address,
                    width,
                    x.clone().into_buffer_arg(),
                    weights[0].clone().into_buffer_arg(),
                    weights[of(1)].clone().into_buffer_arg(),
                    weights[of(2)].clone().into_buffer_arg(),
                    summand.into_buffer_arg(),
                    products[0].clone().into_buffer_arg(),
                    products[of(1)].clone().into_buffer_arg(),
                    products[of(2)].clone().into_buffer_arg(),
                    sizes,
                    input / width,
                    x_pitch / width,
                    rows,
                    tile,
                    job,
                    [x.dtype, weight_dtype].map(dtype_to_storage_type),
                );
            }
        }
    }
    products
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
            (16, 256, 96),
            (8, 608, 33),
            (27, 96, 48),
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
                    for weights in 1..=3 {
                        for got in few_rows(&x, &vec![&there; weights]).expect("a kernel") {
                            assert_eq!((got.dims(), got.dtype()), ([rows, output], of_x));
                            let worst = error(got, wanted.clone(), unit, input);
                            assert!(worst < 1.0, "{rows} x {input} x {output}, {of_x:?} by {dtype:?}: {worst}");
                        }
                    }
                    let sum = Tensor::<2>::ones([rows, output], (&device, of_x));
                    let got = few_rows_added(&x, &there, &sum).expect("a kernel");
                    let worst = error(got, wanted + 1.0, unit, input);
                    assert!(worst < 1.0, "added, {rows} x {input} x {output}, {of_x:?} by {dtype:?}: {worst}");
                }
            }
        }
    }

    #[test]
    fn many_rows_are_left_to_others() {
        if let Some(device) = gpu() {
            let many = Tensor::<2>::zeros([ROWS + 1, 8], &device);
            assert!(few_rows(&many, &[&Tensor::zeros([8, 8], &device)]).is_none());
        }
    }
}
