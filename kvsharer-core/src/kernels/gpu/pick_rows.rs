//! Sequences of a buffer copied into another one with more or fewer cells.

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

pub(in super::super) fn pick_rows(buffer: &Tensor<4>, rows: &Tensor<1, Int>, capacity: usize) -> Option<Tensor<4>> {
    let any = capacity > 0 && rows.dims()[0] > 0 && !buffer.dims().contains(&0);
    if !any || !known(buffer.dtype()) || rows.dtype() != DType::I32 {
        return None;
    }
    let (buffer, rows) = (buffer.clone().into_dispatch(), rows.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::pick_rows(buffer, rows, capacity)))
}

#[backend_extension(Cube, Fusion)]
trait PickRows: Backend {
    /// The sequences `rows` `[row]` of `buffer` `[batch, head, cell, dim]`, `[row, head, capacity, dim]`, with zeros behind
    /// the last cell.
    #[fusion(meta = picked)]
    fn pick_rows(buffer: FloatTensor<Self>, rows: IntTensor<Self>, capacity: usize) -> FloatTensor<Self>;
}

fn picked(buffer: &TensorSpec, rows: &TensorSpec, capacity: &usize) -> TensorSpec {
    let [_, heads, _, dim] = buffer.shape.dims();
    TensorSpec::new(Shape::new([rows.shape[0], heads, *capacity, dim]), buffer.dtype)
}

impl PickRows for CubeBackend {
    fn pick_rows(buffer: CubeTensor, rows: CubeTensor, capacity: usize) -> CubeTensor {
        let (buffer, client) = (into_contiguous(buffer), rows.client.clone());
        let [_, heads, cells, dim] = buffer.meta.shape().dims();
        let count = rows.meta.shape()[0];
        let shape = Shape::new([count, heads, capacity, dim]);
        let output = empty_device_contiguous_dtype(client.clone(), buffer.device.clone(), shape, buffer.dtype);
        let width = width(&client, buffer.dtype.size(), &[dim]);
        let address = address(&[&buffer, &rows, &output]);
        let vectors = dim / width;
        let all = count * heads * capacity * vectors;
        let dtype = dtype_to_storage_type(buffer.dtype);
        // Safety: units behind the last vector do nothing; cells behind the last are not read. That rows are there, the
        // cache has seen to.
        #[allow(unsafe_code)]
        unsafe {
            pick_rows_kernel::launch_unchecked(
                &client,
                grid(all.div_ceil(UNITS), 1),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                buffer.into_buffer_arg(),
                into_contiguous(rows).into_buffer_arg(),
                output.clone().into_buffer_arg(),
                all,
                heads,
                cells,
                capacity,
                vectors,
                dtype,
            );
        }
        output
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn pick_rows_kernel<F: Float, N: Size>(
    buffer: &[Vector<F, N>],
    rows: &[i32],
    output: &mut [Vector<F, N>],
    all: usize,
    heads: usize,
    cells: usize,
    capacity: usize,
    vectors: usize,
    #[define(F)] _dtype: ElemType,
) {
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let to = cube * UNITS + UNIT_POS_X as usize;
    if to < all {
        let (line, channel) = (to / vectors, to % vectors);
        let (head, cell) = (line / capacity, line % capacity);
        let mut value = Vector::<F, N>::new(F::from_int(0));
        if cell < cells {
            let from = rows[head / heads] as usize * heads + head % heads;
            value = buffer[(from * cells + cell) * vectors + channel];
        }
        output[to] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::Distribution;

    #[test]
    fn rows_go_where_they_are_asked_for_with_zeros_behind_them() {
        let Some(device) = gpu() else { return };
        for (batch, heads, cells, dim, capacity) in
            [(1, 1, 1, 1, 1), (3, 2, 5, 7, 9), (2, 3, 8, 64, 4), (4, 3, 16, 64, 40)]
        {
            let buffer = Tensor::<4>::random([batch, heads, cells, dim], Distribution::Default, &device);
            let rows: Vec<i32> = (0..2 * batch as i32 + 1).map(|row| (row * 5 + 2) % batch as i32).collect();
            let rows = Tensor::<1, Int>::from_ints(&rows[..], &device);
            let got = pick_rows(&buffer, &rows, capacity).expect("a kernel");
            let picked = buffer.select(0, rows).slice_dim(2, 0..cells.min(capacity));
            let behind = Tensor::zeros([2 * batch + 1, heads, capacity.saturating_sub(cells), dim], &device);
            let wanted = if cells < capacity { Tensor::cat(vec![picked, behind], 2) } else { picked };
            assert_eq!(got.into_data(), wanted.into_data(), "{batch} {heads} {cells} {dim} {capacity}");
        }
    }
}
