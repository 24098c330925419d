//! One token a sequence: its query turned, its key turned into the cache, its value beside it, in one launch.

use super::{CubeTensor, address, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 128;

pub(in super::super) fn place(
    [cos, sin]: [&Tensor<2>; 2],
    [query, key, value]: [&Tensor<4>; 3],
    [keys, values]: [Tensor<4>; 2],
    cell: &Tensor<1, Int>,
) -> (Option<Tensor<4>>, Tensor<4>, Tensor<4>) {
    let ([_, _, _, dim], dtype) = (query.dims(), query.dtype());
    let one = [cos, sin].iter().all(|table| table.dims() == [1, dim] && table.dtype() == DType::F32);
    let same = [key, value, &keys, &values].iter().all(|tensor| tensor.dtype() == dtype && tensor.dims()[3] == dim);
    if !one || !same || !known(dtype) || cell.dtype() != DType::I32 || !dim.is_multiple_of(2) {
        return (None, keys, values);
    }
    let [cos, sin] = [cos, sin].map(|table| table.clone().into_dispatch());
    let [query, key, value] = [query, key, value].map(|tensor| tensor.clone().into_dispatch());
    let (keys, values, cell) = (keys.into_dispatch(), values.into_dispatch(), cell.clone().into_dispatch());
    let (query, keys, values) = Dispatch::place(query, key, value, cos, sin, keys, values, cell);
    (Some(Tensor::from_dispatch(query)), Tensor::from_dispatch(keys), Tensor::from_dispatch(values))
}

#[backend_extension(Cube, Fusion)]
trait Place: Backend {
    /// The turned query, and the buffers, which are written in place whoever else holds them.
    #[fusion(meta = query_and_buffers)]
    fn place(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        cell: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

fn query_and_buffers(
    query: &TensorSpec,
    _key: &TensorSpec,
    _value: &TensorSpec,
    _cos: &TensorSpec,
    _sin: &TensorSpec,
    keys: &TensorSpec,
    values: &TensorSpec,
    _cell: &TensorSpec,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    (query.clone(), keys.clone(), values.clone())
}

impl Place for CubeBackend {
    fn place(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        cell: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let (cos, sin) = (into_contiguous(cos), into_contiguous(sin));
        let (keys, values) = (into_contiguous(keys), into_contiguous(values));
        let in_rows = |x: CubeTensor| if x.meta.strides()[3] == 1 { x } else { into_contiguous(x) };
        let fresh = [query, key, value].map(in_rows);
        let client = keys.client.clone();
        let [batch, heads, _, dim] = fresh[0].meta.shape().dims();
        let [_, kv_heads, capacity, _] = keys.meta.shape().dims();
        let shape = fresh[0].meta.shape().clone();
        let turned = empty_device_contiguous_dtype(client.clone(), keys.device.clone(), shape, keys.dtype);
        let strides: Vec<usize> =
            fresh.iter().flat_map(|tensor| [tensor.meta.strides()[0], tensor.meta.strides()[1]]).collect();
        let width = width(&client, DType::F32.size(), &[&strides[..], &[dim / 2]].concat());
        let address = address(&[&keys, &values, &fresh[0], &turned]);
        let pairs = dim / 2 / width;
        let mut places = SequenceArg::new();
        strides.iter().for_each(|stride| places.push(stride / width));
        let lines = batch * (heads + 2 * kv_heads);
        let dtype = dtype_to_storage_type(keys.dtype);
        let [query, key, value] = fresh;
        // Safety: units behind the last line do nothing; a cell behind the last is not written.
        #[allow(unsafe_code)]
        unsafe {
            place_kernel::launch_unchecked(
                &client,
                CubeCount::Static((lines * pairs).div_ceil(UNITS) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                query.into_buffer_arg(),
                key.into_buffer_arg(),
                value.into_buffer_arg(),
                cos.into_buffer_arg(),
                sin.into_buffer_arg(),
                cell.into_buffer_arg(),
                turned.clone().into_buffer_arg(),
                keys.clone().into_buffer_arg(),
                values.clone().into_buffer_arg(),
                places,
                lines,
                heads,
                kv_heads,
                capacity,
                pairs,
                dtype,
            );
        }
        (turned, keys, values)
    }
}

/// Lines are the heads of queries, of keys and of values of one sequence after the other; `pairs` are the vectors of half
/// a head.
#[cube(launch_unchecked, address_type = "dynamic")]
fn place_kernel<F: Float, N: Size>(
    query: &[Vector<F, N>],
    key: &[Vector<F, N>],
    value: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    cell: &[i32],
    turned: &mut [Vector<F, N>],
    keys: &mut [Vector<F, N>],
    values: &mut [Vector<F, N>],
    places: Sequence<usize>,
    lines: usize,
    heads: usize,
    kv_heads: usize,
    capacity: usize,
    pairs: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
    let (line, left) = (unit / pairs, unit % pairs);
    let all = heads + 2 * kv_heads;
    let (sequence, head, at) = (line / all, line % all, cell[0] as usize);
    if line < lines {
        if head < heads {
            let from = sequence * places[0] + head * places[1] + left;
            let to = (sequence * heads + head) * 2 * pairs + left;
            let (a, b) = (Vector::<f32, N>::cast_from(query[from]), Vector::<f32, N>::cast_from(query[from + pairs]));
            turned[to] = Vector::cast_from(a * cos[left] - b * sin[left]);
            turned[to + pairs] = Vector::cast_from(b * cos[left + pairs] + a * sin[left + pairs]);
        } else if head < heads + kv_heads && at < capacity {
            let own = head - heads;
            let from = sequence * places[2] + own * places[3] + left;
            let to = ((sequence * kv_heads + own) * capacity + at) * 2 * pairs + left;
            let (a, b) = (Vector::<f32, N>::cast_from(key[from]), Vector::<f32, N>::cast_from(key[from + pairs]));
            keys[to] = Vector::cast_from(a * cos[left] - b * sin[left]);
            keys[to + pairs] = Vector::cast_from(b * cos[left + pairs] + a * sin[left + pairs]);
        } else if head >= heads + kv_heads && at < capacity {
            let own = head - heads - kv_heads;
            let from = sequence * places[4] + own * places[5] + left;
            let to = ((sequence * kv_heads + own) * capacity + at) * 2 * pairs + left;
            values[to] = value[from];
            values[to + pairs] = value[from + pairs];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rope;
    use crate::testing::gpu;
    use burn::tensor::Distribution;

    #[test]
    fn a_token_is_turned_and_placed_as_one_after_the_other() {
        let Some(device) = gpu() else { return };
        for (batch, heads, kv_heads, dim, cells, at) in [(1, 1, 1, 2, 3, 2), (2, 6, 2, 64, 9, 0), (3, 4, 4, 20, 5, 4)] {
            let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
            let fresh = |heads: usize| random([batch, 1, heads, dim]).swap_dims(1, 2);
            let (query, key, value) = (fresh(heads), fresh(kv_heads), fresh(kv_heads));
            let buffers = [(); 2].map(|()| random([batch, kv_heads, cells, dim]));
            let table = Rope::new(dim, 1e4).table(7..8, &device);
            let wanted_query = table.apply(query.clone()).into_data();
            let put = |buffer: &Tensor<4>, token: Tensor<4>| {
                buffer.clone().slice_assign([0..batch, 0..kv_heads, at..at + 1, 0..dim], token).into_data()
            };
            let wanted = [put(&buffers[0], table.apply(key.clone())), put(&buffers[1], value.clone())];
            let cell = Tensor::<1, Int>::from_ints([at as i32], &device);
            let (got, keys, values) = place(table.rows(), [&query, &key, &value], buffers, &cell);
            assert_eq!(got.expect("a kernel").into_data(), wanted_query);
            assert_eq!([keys.into_data(), values.into_data()], wanted);
        }
    }
}
