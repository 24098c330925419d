//! Tokens into cells that the device knows and the host does not.

use super::{CubeTensor, address, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 128;

pub(in super::super) fn put(
    buffer: Tensor<4>,
    values: &Tensor<4>,
    first: &Tensor<1, Int>,
) -> Result<Tensor<4>, Tensor<4>> {
    let fits = values.dtype() == buffer.dtype() && known(buffer.dtype()) && first.dtype() == DType::I32;
    if !fits || values.dims().contains(&0) {
        return Err(buffer);
    }
    let (values, first) = (values.clone().into_dispatch(), first.clone().into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::put(buffer.into_dispatch(), values, first)))
}

pub(in super::super) fn put_row(
    rows: Tensor<2, Int>,
    row: &Tensor<2, Int>,
    at: &Tensor<1, Int>,
) -> Result<Tensor<2, Int>, Tensor<2, Int>> {
    if [rows.dtype(), row.dtype(), at.dtype()] != [DType::I32; 3] || row.dims()[1] == 0 {
        return Err(rows);
    }
    let (row, at) = (row.clone().into_dispatch(), at.clone().into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::put_row(rows.into_dispatch(), row, at)))
}

#[backend_extension(Cube, Fusion)]
trait Put: Backend {
    /// Writes the tokens of `values` `[batch, head, token, dim]` into cells of `buffer` `[batch, head, cell, dim]`, from
    /// the one that `first` `[1]` names, whoever else holds the buffer.
    #[fusion(dtype = buffer, shape = buffer)]
    fn put(buffer: FloatTensor<Self>, values: FloatTensor<Self>, first: IntTensor<Self>) -> FloatTensor<Self>;

    /// Writes `row` `[1, column]` into the row of `rows` `[row, column]` that `at` `[1]` names.
    #[fusion(dtype = rows, shape = rows)]
    fn put_row(rows: IntTensor<Self>, row: IntTensor<Self>, at: IntTensor<Self>) -> IntTensor<Self>;
}

impl Put for CubeBackend {
    fn put(buffer: CubeTensor, values: CubeTensor, first: CubeTensor) -> CubeTensor {
        let buffer = into_contiguous(buffer);
        let values = if values.meta.strides()[3] == 1 { values } else { into_contiguous(values) };
        let strides: [usize; 3] = std::array::from_fn(|axis| values.meta.strides()[axis]);
        let (shape, capacity) = (values.meta.shape().dims(), buffer.meta.shape()[2]);
        launch(buffer, capacity, values, shape, strides, first)
    }

    fn put_row(rows: CubeTensor, row: CubeTensor, at: CubeTensor) -> CubeTensor {
        let (rows, row) = (into_contiguous(rows), into_contiguous(row));
        let [count, columns] = rows.meta.shape().dims();
        launch(rows, count, row, [1, 1, 1, columns], [columns; 3], at)
    }
}

/// Writes `values` of this shape and these strides of batch, head and token into `buffer`, which has `capacity` cells.
fn launch(
    buffer: CubeTensor,
    capacity: usize,
    values: CubeTensor,
    [batch, heads, tokens, dim]: [usize; 4],
    strides: [usize; 3],
    first: CubeTensor,
) -> CubeTensor {
    let client = buffer.client.clone();
    let width = width(&client, buffer.dtype.size(), &[&strides[..], &[dim]].concat());
    let (vectors, address) = (dim / width, address(&[&buffer, &values]));
    let mut places = SequenceArg::new();
    strides.iter().for_each(|stride| places.push(stride / width));
    let lines = batch * heads * tokens;
    let dtype = dtype_to_storage_type(buffer.dtype);
    // Safety: units behind the last vector do nothing; a cell behind the last is not written.
    #[allow(unsafe_code)]
    unsafe {
        put_kernel::launch_unchecked(
            &client,
            CubeCount::Static((lines * vectors).div_ceil(UNITS) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            address,
            width,
            values.into_buffer_arg(),
            first.into_buffer_arg(),
            buffer.clone().into_buffer_arg(),
            places,
            lines,
            heads,
            tokens,
            capacity,
            vectors,
            dtype,
        );
    }
    buffer
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn put_kernel<F: Numeric, N: Size>(
    values: &[Vector<F, N>],
    first: &[i32],
    buffer: &mut [Vector<F, N>],
    places: Sequence<usize>,
    lines: usize,
    heads: usize,
    tokens: usize,
    capacity: usize,
    vectors: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
    let (line, left) = (unit / vectors, unit % vectors);
    if line < lines {
        let (head, token) = (line / tokens, line % tokens);
        let cell = first[0] as usize + token;
        if cell < capacity {
            let from = head / heads * places[0] + head % heads * places[1] + token * places[2] + left;
            buffer[(head * capacity + cell) * vectors + left] = values[from];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::Distribution;

    #[test]
    fn tokens_stand_where_the_device_says_and_nothing_else_changes() {
        let Some(device) = gpu() else { return };
        for (batch, heads, tokens, dim, cells, first) in [(1, 1, 1, 4, 3, 2), (2, 3, 1, 64, 9, 0), (2, 2, 3, 7, 8, 4)] {
            let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
            // Heads of one token lie side by side, as projections leave them.
            let values = random([batch, tokens, heads, dim]).swap_dims(1, 2);
            let buffer = random([batch, heads, cells, dim]);
            let wanted =
                buffer.clone().slice_assign([0..batch, 0..heads, first..first + tokens, 0..dim], values.clone());
            let wanted = wanted.into_data();
            let first = Tensor::<1, Int>::from_ints([first as i32], &device);
            let got = put(buffer, &values, &first).expect("a kernel");
            assert_eq!(got.into_data(), wanted);
        }
        let rows = Tensor::<2, Int>::from_ints([[1, 2, 3], [4, 5, 6]], &device);
        let (row, at) = (Tensor::from_ints([[7, 8, 9]], &device), Tensor::from_ints([1], &device));
        let got = put_row(rows.clone(), &row, &at).expect("a kernel");
        let wanted = Tensor::<2, Int>::from_ints([[1, 2, 3], [7, 8, 9]], &device).into_data();
        assert_eq!(got.into_data(), wanted);
        assert_eq!(rows.into_data(), wanted, "in place");
    }
}
