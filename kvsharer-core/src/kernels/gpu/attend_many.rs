//! Causal attention of many tokens at once, without a queries x keys matrix (FlashAttention-2, arXiv 2307.08691): on tensor
//! cores where there are some for the dtype, in f32 otherwise.

use super::{CubeTensor, GRID, address, attend_tile, flash, in_rows, known};
use crate::attend::Hidden;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{
    Backend, Dispatch, DispatchDevice, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

pub(in super::super) fn attend_many(
    query: &Tensor<4>,
    keys: &Tensor<4>,
    values: &Tensor<4>,
    hidden: Option<&Hidden>,
) -> Option<Tensor<4>> {
    let ([batch, heads, tokens, dim], dtype) = (query.dims(), query.dtype());
    let [_, kv_heads, cells, _] = keys.dims();
    let same = [keys, values].iter().all(|tensor| tensor.dtype() == dtype && tensor.dims()[3] == dim);
    let fits = known(dtype)
        && same
        && (1..=cells).contains(&tokens)
        && heads % kv_heads == 0
        && (1..=GRID).contains(&(batch * heads));
    let device = query.device();
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
    if !fits || !(flash::runs(&device.client(), dtype, dim) || attend_tile::runs(&device.client(), dim)) {
        return None;
    }
    let [query, keys, values] = [query, keys, values].map(|tensor| tensor.clone().into_dispatch());
    let output = match hidden {
        None => Dispatch::attend_many(query, keys, values),
        Some(Hidden { positions, start, window, .. }) => {
            let start = i32::try_from(*start).ok()?;
            let window = window.map_or(Some(i32::MAX), |window| i32::try_from(window).ok())?;
            if positions.dtype() != DType::I32 || positions.dims() != [batch, kv_heads, cells] {
                return None;
            }
            let places = positions.clone().into_dispatch();
            Dispatch::attend_many_around(query, keys, values, places, start, window)
        }
    };
    Some(Tensor::<4>::from_dispatch(output).swap_dims(1, 2))
}

#[backend_extension(Cube, Fusion)]
trait AttendMany: Backend {
    /// `query` `[batch, head, token, dim]` are the last tokens of `keys` and `values` `[batch, kv_head, cell, dim]`; each
    /// sees itself and what stands before it. Heads of one token lie side by side in the result `[batch, token, head, dim]`,
    /// as the projection after it wants them.
    #[fusion(meta = by_token)]
    fn attend_many(query: FloatTensor<Self>, keys: FloatTensor<Self>, values: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same, but of the cells before it a query sees those whose place, `[batch, kv_head, cell]`, is not negative and
    /// among the last `window`; its own is `start` for the first query.
    #[fusion(meta = by_token_around)]
    fn attend_many_around(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        places: IntTensor<Self>,
        start: i32,
        window: i32,
    ) -> FloatTensor<Self>;
}

fn by_token(query: &TensorSpec, _keys: &TensorSpec, _values: &TensorSpec) -> TensorSpec {
    let [batch, heads, tokens, dim] = query.shape.dims();
    TensorSpec::new(Shape::new([batch, tokens, heads, dim]), query.dtype)
}

fn by_token_around(
    query: &TensorSpec,
    keys: &TensorSpec,
    values: &TensorSpec,
    _places: &TensorSpec,
    _start: &i32,
    _window: &i32,
) -> TensorSpec {
    by_token(query, keys, values)
}

impl AttendMany for CubeBackend {
    fn attend_many(query: CubeTensor, keys: CubeTensor, values: CubeTensor) -> CubeTensor {
        launch(query, keys, values, None)
    }

    fn attend_many_around(
        query: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        places: CubeTensor,
        start: i32,
        window: i32,
    ) -> CubeTensor {
        let places = if places.meta.strides()[2] == 1 { places } else { into_contiguous(places) };
        launch(query, keys, values, Some((places, start, window)))
    }
}

/// `holes` are the cells' places, that of the first query, and the window.
fn launch(
    query: CubeTensor,
    keys: CubeTensor,
    values: CubeTensor,
    holes: Option<(CubeTensor, i32, i32)>,
) -> CubeTensor {
    let client = query.client.clone();
    let [batch, heads, tokens, dim] = query.meta.shape().dims();
    let shape = Shape::new([batch, tokens, heads, dim]);
    let on_tensor_cores = flash::runs(&client, query.dtype, dim);
    let (width, queries, units) = match on_tensor_cores {
        true => (flash::WIDTH, flash::QUERIES, CubeDim::new_2d(32, flash::PLANES as u32)),
        false => (attend_tile::WIDTH, attend_tile::QUERIES, CubeDim::new_1d(attend_tile::UNITS as u32)),
    };
    let [query, keys, values] = [query, keys, values].map(|heads| in_rows(heads, width));
    let [_, kv_heads, cells, _] = keys.meta.shape().dims();
    let output = empty_device_contiguous_dtype(client.clone(), query.device.clone(), shape, query.dtype);
    let mut strides = SequenceArg::new();
    for tensor in [&query, &keys, &values] {
        tensor.meta.strides()[..3].iter().for_each(|stride| strides.push(stride / width));
    }
    let around = holes.is_some();
    let (places, start, window) = holes.unwrap_or_else(|| {
        // A kernel has all of its arguments, also those that nobody reads.
        let none = Shape::new([1, 1, 1]);
        (empty_device_contiguous_dtype(client.clone(), query.device.clone(), none, DType::I32), 0, 0)
    });
    places.meta.strides()[..2].iter().for_each(|stride| strides.push(*stride));
    let address = address(&[&query, &keys, &values, &output, &places]);
    let (dtype, tiles) = (dtype_to_storage_type(query.dtype), tokens.div_ceil(queries));
    let count = CubeCount::Static(tiles as u32, (batch * heads) as u32, 1);
    let kernel =
        if on_tensor_cores { flash::flash::launch_unchecked } else { attend_tile::attend_tile::launch_unchecked };
    // Safety: queries and cells behind the last are read as the last; the former are not written.
    #[allow(unsafe_code)]
    unsafe {
        kernel(
            &client,
            count,
            units,
            address,
            width,
            query.into_buffer_arg(),
            keys.into_buffer_arg(),
            values.into_buffer_arg(),
            places.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            strides,
            tiles,
            tokens,
            cells,
            heads,
            heads / kv_heads,
            start,
            window,
            around,
            dim,
            dtype,
        );
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::{Bool, Device, Distribution, Int, TensorData, activation::softmax};

    /// Every third cell holds none, and of the first sequence none of the first 20 does; others count on from 3.
    fn place(sequence: usize, cell: usize) -> i32 {
        if cell % 3 == 1 || (sequence == 0 && cell < 20) { -1 } else { cell as i32 + 3 }
    }

    #[test]
    fn tokens_see_themselves_and_what_stands_before_them_and_no_hidden_cell() {
        let Some(device) = gpu() else { return };
        for (dtype, unit) in [(DType::F32, 2e-6), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            for (batch, heads, kv_heads, tokens, cells, dim) in [
                (1, 1, 1, 1, 1, 64),
                (2, 3, 1, 17, 17, 64),
                (1, 4, 2, 64, 100, 128),
                (3, 2, 2, 33, 40, 16),
                (1, 2, 2, 130, 131, 64),
                (1, 8, 1, 300, 300, 128),
            ] {
                let cpu = Device::flex();
                let random = |shape: [usize; 4]| {
                    Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &cpu).cast(dtype).cast(DType::F32)
                };
                let query = random([batch, heads, tokens, dim]);
                let [keys, values] = [(); 2].map(|()| random([batch, kv_heads, cells, dim]));
                let there = |tensor: &Tensor<4>| Tensor::<4>::from_data(tensor.to_data(), (&device, dtype));
                let group = heads / kv_heads;
                let each = |tensor: &Tensor<4>| {
                    let groups = tensor.clone().unsqueeze_dim::<5>(2).expand([batch, kv_heads, group, cells, dim]);
                    groups.reshape([batch, heads, cells, dim])
                };
                let scores = query.clone().matmul(each(&keys).swap_dims(2, 3)) / (dim as f64).sqrt();
                let before = cells - tokens;
                let places: Vec<i32> =
                    (0..batch * kv_heads * cells).map(|at| place(at / (kv_heads * cells), at % cells)).collect();
                let places = Tensor::<1, Int>::from_ints(&places[..], &device).reshape([batch, kv_heads, cells]);
                for window in [None, Some(None), Some(Some(9))] {
                    let start = before + 3;
                    let hides = |sequence: usize, query: usize, cell: usize| {
                        let bound =
                            window.flatten().map_or(0, |window: usize| (start + query + 1).saturating_sub(window));
                        let hole = window.is_some() && place(sequence, cell) < bound as i32;
                        cell > before + query || (hole && cell != before + query)
                    };
                    let mask: Vec<bool> = (0..batch * tokens * cells)
                        .map(|at| hides(at / (tokens * cells), at / cells % tokens, at % cells))
                        .collect();
                    let mask = Tensor::<4, Bool>::from_data(TensorData::new(mask, [batch, 1, tokens, cells]), &cpu);
                    let mask = mask.expand([batch, heads, tokens, cells]);
                    let left = softmax(scores.clone().mask_fill(mask, f32::NEG_INFINITY), 3);
                    let wanted = left.matmul(each(&values));
                    let hidden =
                        window.map(|window| Hidden { positions: places.clone(), start, window, everywhere: false });
                    let got = attend_many(&there(&query), &there(&keys), &there(&values), hidden.as_ref());
                    let got = Tensor::<4>::from_data(got.expect("a kernel").into_data(), (&cpu, DType::F32));
                    let worst = (got - wanted).abs().max().into_scalar::<f32>();
                    let case = (batch, heads, kv_heads, tokens, cells, dim, window, dtype);
                    assert!(worst < unit, "{case:?}: {worst}");
                }
            }
        }
    }
}
