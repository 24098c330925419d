//! One query a sequence: cells are split among cubes, each of which reads keys and values once for the whole group of
//! query heads and leaves a softmax of its own part; a second kernel joins the parts (Flash-Decoding,
//! <https://crfm.stanford.edu/2023/10/12/flashdecoding.html>).

use super::attend_part::{GROUP, Head, TILE, UNITS, attend_part};
use super::join_parts::{MOST, join_parts};
use super::{CubeTensor, GRID, address, in_rows, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{
    Backend, Dispatch, DispatchDevice, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// Cubes that keep a large GPU busy; with more, cubes take several tiles.
const CUBES: usize = MOST;

pub(in super::super) fn attend_one(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
) -> Option<(Tensor<4>, Tensor<4>)> {
    if !fits(query, keys, values) {
        return None;
    }
    let [query, keys, values] = [query, keys, values].map(|tensor| tensor.clone().into_dispatch());
    let (output, weights) = Dispatch::attend_one(query, keys, values);
    Some((Tensor::from_dispatch(output), Tensor::from_dispatch(weights)))
}

pub(in super::super) fn attend_one_unwatched(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
) -> Option<Tensor<4>> {
    if !fits(query, keys, values) {
        return None;
    }
    let [query, keys, values] = [query, keys, values].map(|tensor| tensor.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::attend_one_unwatched(query, keys, values)))
}

/// The same where cells are hidden: those whose `place` `[batch, kv_head, cell]` is below `bound`.
pub(in super::super) fn attend_holes(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    places: &Tensor<3, Int>,
    bound: i32,
) -> Option<(Tensor<4>, Tensor<4>)> {
    let [batch, heads, cells, _] = keys.dims();
    if !fits(query, keys, values) || places.dtype() != DType::I32 || places.dims() != [batch, heads, cells] {
        return None;
    }
    let [query, keys, values] = [query, keys, values].map(|tensor| tensor.clone().into_dispatch());
    let (output, weights) = Dispatch::attend_holes(query, keys, values, places.clone().into_dispatch(), bound);
    Some((Tensor::from_dispatch(output), Tensor::from_dispatch(weights)))
}

pub(in super::super) fn attend_counted(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    count: &Tensor<1, Int>,
) -> Option<Tensor<4>> {
    if !fits(query, keys, values) || count.dtype() != DType::I32 {
        return None;
    }
    let [query, keys, values] = [query, keys, values].map(|tensor| tensor.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::attend_counted(query, keys, values, count.clone().into_dispatch())))
}

fn fits(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> bool {
    let ([batch, heads, group, dim], cells) = (query.dims(), keys.dims()[2]);
    let (dtype, device) = (query.dtype(), query.device());
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return false };
    let shared = device.client().properties().hardware.max_shared_memory_size;
    known(dtype)
        && [keys, values].iter().all(|tensor| tensor.dtype() == dtype && tensor.dims()[3] == dim)
        && (1..=GROUP).contains(&group)
        && (1..=UNITS * aligned(dim)).contains(&dim)
        && Head::shared_bytes(group, dim) <= shared
        && (1..=GRID).contains(&(batch * heads))
        && cells > 0
}

/// Channels that can be read at once from any key, so that no more units read one key than a cube has.
fn aligned(dim: usize) -> usize {
    if dim.is_multiple_of(4) { 4 } else { 1 }
}

#[backend_extension(Cube, Fusion)]
trait AttendOne: Backend {
    /// Output and the softmax's weights in f32.
    #[fusion(meta = output_and_weights)]
    fn attend_one(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The output alone.
    #[fusion(dtype = query, shape = query)]
    fn attend_one_unwatched(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Output and weights over the cells whose place `[batch, kv_head, cell]` is at least `bound`.
    #[fusion(meta = over_places)]
    fn attend_holes(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        places: IntTensor<Self>,
        bound: i32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The same over the first cells, of which there are `count` `[1]`.
    #[fusion(dtype = query, shape = query)]
    fn attend_counted(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        count: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

fn output_and_weights(query: &TensorSpec, keys: &TensorSpec, _values: &TensorSpec) -> (TensorSpec, TensorSpec) {
    let [batch, heads, group, _] = query.shape.dims();
    let weights = TensorSpec::new(Shape::new([batch, heads, group, keys.shape[2]]), DType::F32);
    (query.clone(), weights)
}

fn over_places(
    query: &TensorSpec,
    keys: &TensorSpec,
    values: &TensorSpec,
    _places: &TensorSpec,
    _bound: &i32,
) -> (TensorSpec, TensorSpec) {
    output_and_weights(query, keys, values)
}

impl AttendOne for CubeBackend {
    fn attend_one(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        launch(query, keys, values, Sight::All, true)
    }

    fn attend_holes(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        places: IntTensor<Self>,
        bound: i32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        launch(query, keys, values, Sight::From(into_contiguous(places), bound), true)
    }

    fn attend_one_unwatched(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        launch(query, keys, values, Sight::All, false).0
    }

    fn attend_counted(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        count: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        launch(query, keys, values, Sight::First(count), false).0
    }
}

/// Which cells are looked at.
enum Sight {
    All,
    /// As many as the device says, `[1]`.
    First(CubeTensor),
    /// Those with at least such a place, `[batch, kv_head, cell]`.
    From(CubeTensor, i32),
}

/// The output, and the weights if they are `watched`.
fn launch(
    query: CubeTensor,
    keys: CubeTensor,
    values: CubeTensor,
    sight: Sight,
    watched: bool,
) -> (CubeTensor, CubeTensor) {
    let [batch, heads, group, dim] = query.meta.shape().dims();
    let query = into_contiguous(query);
    let [keys, values] = [keys, values].map(|heads| in_rows(heads, aligned(dim)));
    let cells = keys.meta.shape()[2];
    let client = query.client.clone();
    let strides = |tensor: &CubeTensor| -> [usize; 3] { std::array::from_fn(|axis| tensor.meta.strides()[axis]) };
    let strides = [strides(&keys), strides(&values)].concat();
    let width = width(&client, query.dtype.size(), &[&strides[..], &[dim]].concat());

    let tiles = cells.div_ceil(TILE);
    let tiles_each = (tiles * batch * heads).div_ceil(CUBES).max(tiles.div_ceil(GRID));
    let splits = tiles.div_ceil(tiles_each);
    let empty = |shape: Vec<usize>, dtype| {
        empty_device_contiguous_dtype(client.clone(), query.device.clone(), Shape::from(shape), dtype)
    };
    let parts = empty(vec![batch * heads, splits, group, dim + 2], DType::F32);
    let weights = empty(if watched { vec![batch, heads, group, cells] } else { vec![1; 4] }, DType::F32);
    let output = empty(vec![batch, heads, group, dim], query.dtype);
    let (counted, holes) = (matches!(sight, Sight::First(_)), matches!(sight, Sight::From(..)));
    let (count, bound) = match sight {
        // A kernel has all of its arguments, also those that nobody reads.
        Sight::All => (empty(vec![1], DType::I32), 0),
        Sight::First(count) => (count, 0),
        Sight::From(places, bound) => (places, bound),
    };
    let address = address(&[&keys, &values, &parts, &weights]);
    let dtype = dtype_to_storage_type(query.dtype);
    let mut places = SequenceArg::new();
    strides.iter().for_each(|stride| places.push(stride / width));
    // Safety: cells are read below their number, and parts and weights have a place for all that is written.
    #[allow(unsafe_code)]
    unsafe {
        attend_part::launch_unchecked(
            &client,
            CubeCount::Static((batch * heads) as u32, splits as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            address,
            width,
            query.into_buffer_arg(),
            keys.into_buffer_arg(),
            values.into_buffer_arg(),
            count.into_buffer_arg(),
            parts.clone().into_buffer_arg(),
            weights.clone().into_buffer_arg(),
            places,
            heads,
            cells,
            tiles_each,
            bound,
            Head::new(group, dim / width, watched, counted, holes),
            dtype,
        );
        join_parts::launch_unchecked(
            &client,
            CubeCount::Static((batch * heads) as u32, group as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            address,
            parts.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            weights.clone().into_buffer_arg(),
            splits,
            dim,
            cells,
            watched,
            dtype,
        );
    }
    (output, weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::{Bool, Device, Distribution, TensorData, activation::softmax};

    /// The largest error against a tensor on the CPU, in parts of what rounding allows.
    fn error(got: Tensor<4>, wanted: Tensor<4>, unit: f32) -> f32 {
        let got = Tensor::<4>::from_data(got.into_data(), (&wanted.device(), DType::F32));
        let allowed = wanted.clone().abs() * unit + 1e-5;
        ((got - wanted).abs() / allowed).max().into_scalar()
    }

    #[test]
    #[allow(clippy::print_stderr)]
    fn a_gpu_attends_as_the_formula_says_whatever_lies_around_the_cells() {
        let Some(device) = gpu() else {
            eprintln!("skipped: this machine has no GPU and no driver that stands in for one");
            return;
        };
        let half = [(DType::F16, 1e-3), (DType::BF16, 8e-3)];
        let known = half.into_iter().filter(|(dtype, _)| device.supports_dtype(*dtype));
        for (dtype, unit) in [(DType::F32, 1e-6)].into_iter().chain(known) {
            for (batch, heads, group, dim, cells, capacity) in [
                (1, 1, 1, 4, 1, 1),
                (2, 3, 3, 64, 65, 80),
                (1, 2, 1, 7, 63, 64),
                (3, 1, 8, 20, 64, 128),
                (1, 2, 4, 80, 129, 256),
                (2, 1, 8, 128, 200, 200),
                (1, 1, 1, 256, 70, 128),
                (1, 4, 3, 64, 1000, 1024),
                // More cells than cubes of one tile each.
                (16, 16, 1, 4, 64 * 9 + 1, 640),
            ] {
                let (cpu, normal) = (Device::flex(), Distribution::Normal(0.0, 1.0));
                let random = |shape: [usize; 4]| Tensor::<4>::random(shape, normal, &cpu).cast(dtype);
                let query = random([batch, heads, group, dim]);
                let buffers = [(); 2].map(|()| random([batch, heads, capacity, dim]));
                let moved = |tensor: Tensor<4>| Tensor::<4>::from_data(tensor.into_data(), (&device, dtype));
                // As a cache gives them: the first cells of a longer buffer.
                let [keys, values] = buffers.clone().map(|buffer| moved(buffer).slice_dim(2, 0..cells));
                let [rows, columns] = buffers.map(|buffer| buffer.cast(DType::F32).slice_dim(2, 0..cells));
                let scores = (query.clone().cast(DType::F32) / (dim as f64).sqrt()).matmul(rows.swap_dims(2, 3));
                let wanted = softmax(scores.clone(), 3);
                let query = moved(query);
                let (got, weights) = attend_one(&query, &keys, &values).expect("a kernel");
                let alone = attend_one_unwatched(&query, &keys, &values).expect("a kernel");
                let of_more = |tensor: &Tensor<4>| {
                    let behind = Tensor::full([batch, heads, 70, dim], 9.0, (&device, dtype));
                    Tensor::cat(vec![tensor.clone(), behind], 2)
                };
                let count = Tensor::<1, Int>::from_ints([cells as i32], &device);
                let counted = attend_counted(&query, &of_more(&keys), &of_more(&values), &count).expect("a kernel");
                let output = wanted.clone().matmul(columns.clone());
                let worst = error(counted, output, unit);
                assert!(worst < 1.0, "counted {batch} {heads} {group} {dim} {cells} {dtype:?}: {worst}");
                assert_eq!((got.dtype(), weights.dtype()), (dtype, DType::F32));
                assert_eq!(got.to_data(), alone.into_data(), "watching changes nothing");
                // Every third cell hidden, in the first sequence also the first two tiles if there are more.
                let hides = |batch: usize, cell: usize| (batch == 0 && cell < 128 && cells > 200) || cell % 3 == 1;
                let place = |at: usize| if hides(at / (heads * cells), at % cells) { -1 } else { 5 };
                let places: Vec<i32> = (0..batch * heads * cells).map(place).collect();
                let hidden: Vec<bool> = places.iter().map(|&place| place < 0).collect();
                let places = Tensor::<1, Int>::from_ints(&places[..], &device).reshape([batch, heads, cells]);
                let hidden = Tensor::<1, Bool>::from_data(TensorData::from(&hidden[..]), &cpu);
                let hidden = hidden.reshape([batch, heads, 1, cells]).expand(scores.shape());
                let left = softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3);
                let (around, of_left) = attend_holes(&query, &keys, &values, &places, 0).expect("a kernel");
                let worst = error(of_left, left.clone(), 1e-4).max(error(around, left.matmul(columns.clone()), unit));
                assert!(worst < 1.0, "holes {batch} {heads} {group} {dim} {cells} {dtype:?}: {worst}");
                let output = wanted.clone().matmul(columns);
                for (worst, what) in [(error(weights, wanted, 1e-4), "weights"), (error(got, output, unit), "output")] {
                    assert!(worst < 1.0, "{what} {batch} {heads} {group} {dim} {cells} {dtype:?}: {worst}");
                }
            }
        }
    }

    #[test]
    fn keys_that_do_not_lie_in_rows_are_read_all_the_same() {
        let Some(device) = gpu() else { return };
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
        let (query, turned) = (random([1, 2, 1, 4]), random([1, 2, 4, 9]).swap_dims(2, 3));
        let straight = Tensor::from_data(turned.to_data(), &device);
        let [of_turned, of_straight] =
            [turned, straight].map(|keys| attend_one_unwatched(&query, &keys, &keys).expect("a kernel").into_data());
        assert_eq!(of_turned, of_straight);
    }
}
