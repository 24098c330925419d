//! Causal attention of many tokens on tensor cores, without a queries x keys matrix (FlashAttention-2, arXiv 2307.08691).
//!
//! A plane keeps 16 queries and goes over the cells, 16 at a time. The softmax's weights are where the second product
//! wants them. The order of channels does not matter within a product, so that units load 8 side by side.

use super::{CubeTensor, address};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::features::MmaConfig;
use cubecl::prelude::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// Queries of a plane, and cells of one turn.
const TILE: usize = 16;

/// Planes of a cube; they read the same cells at about the same time.
const PLANES: usize = 4;

/// Elements of a load.
const WIDTH: usize = 8;

/// Cubes along the second axis of the grid; devices have limits.
const GRID: usize = (1 << 16) - 1;

pub(in super::super) fn flash(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<Tensor<4>> {
    let ([batch, heads, tokens, dim], dtype) = (query.dims(), query.dtype());
    let [_, kv_heads, cells, _] = keys.dims();
    let same = [keys, values].iter().all(|tensor| tensor.dtype() == dtype && tensor.dims()[3] == dim);
    let suits = same
        && [64, 128].contains(&dim)
        && (1..=cells).contains(&tokens)
        && heads % kv_heads == 0
        && (1..=GRID).contains(&(batch * heads));
    if !suits || !has_instruction(&query.device(), dtype) {
        return None;
    }
    let [query, keys, values] = [query, keys, values].map(|tensor| tensor.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::flash(query, keys, values)))
}

fn has_instruction(device: &Device, dtype: DType) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return false };
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return false;
    }
    let elem = dtype_to_storage_type(dtype);
    let cd_type = dtype_to_storage_type(DType::F32);
    let config = MmaConfig { a_type: elem, b_type: elem, cd_type, m: 16, n: 8, k: 16 };
    let client = device.client();
    let properties = client.properties();
    properties.features.matmul.mma.contains(&config) && properties.hardware.plane_size_max == 32
}

#[backend_extension(Cube, Fusion)]
trait Flash: Backend {
    /// `query` `[batch, head, token, dim]` are the last tokens of `keys` and `values` `[batch, kv_head, cell, dim]`; each
    /// sees itself and what stands before it.
    #[fusion(dtype = query, shape = query)]
    fn flash(query: FloatTensor<Self>, keys: FloatTensor<Self>, values: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Flash for CubeBackend {
    fn flash(query: CubeTensor, keys: CubeTensor, values: CubeTensor) -> CubeTensor {
        let in_rows = |tensor: CubeTensor| {
            let strides = tensor.meta.strides();
            let fits = strides[3] == 1 && strides[..3].iter().all(|stride| stride.is_multiple_of(WIDTH));
            if fits { tensor } else { into_contiguous(tensor) }
        };
        let [query, keys, values] = [query, keys, values].map(in_rows);
        let client = query.client.clone();
        let shape = query.meta.shape().clone();
        let [batch, heads, tokens, dim] = shape.dims();
        let [_, kv_heads, cells, _] = keys.meta.shape().dims();
        let output = empty_device_contiguous_dtype(client.clone(), query.device.clone(), shape, query.dtype);
        let mut places = SequenceArg::new();
        for tensor in [&query, &keys, &values] {
            tensor.meta.strides()[..3].iter().for_each(|stride| places.push(stride / WIDTH));
        }
        let address = address(&[&query, &keys, &values, &output]);
        let (dtype, tiles) = (dtype_to_storage_type(query.dtype), tokens.div_ceil(TILE * PLANES));
        // Safety: queries and cells behind the last are read as the last; the former are not written.
        #[allow(unsafe_code)]
        unsafe {
            flash_kernel::launch_unchecked(
                &client,
                CubeCount::Static(tiles as u32, (batch * heads) as u32, 1),
                CubeDim::new_2d(32, PLANES as u32),
                address,
                WIDTH,
                query.into_buffer_arg(),
                keys.into_buffer_arg(),
                values.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                places,
                tiles,
                tokens,
                cells,
                heads,
                heads / kv_heads,
                dim,
                dtype,
            );
        }
        output
    }
}

/// `places` are the strides of queries, keys and values by sequence, head and token, in vectors.
#[cube(launch_unchecked, address_type = "dynamic")]
fn flash_kernel<F: Float, N: Size>(
    query: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    output: &mut [Vector<F, N>],
    places: Sequence<usize>,
    tiles: usize,
    tokens: usize,
    cells: usize,
    heads: usize,
    group: usize,
    #[comptime] dim: usize,
    #[define(F)] _dtype: ElemType,
) {
    let lane = UNIT_POS_X as usize;
    // Of an instruction's operands, the line and which of its four parts this unit has.
    let (line, part) = (lane / 4, lane % 4);
    // The last queries see most: they start first.
    let tile = (tiles - 1 - CUBE_POS_X as usize) * PLANES + UNIT_POS_Y as usize;
    let first = tile * TILE;
    let (sequence, head) = (CUBE_POS_Y as usize / heads, CUBE_POS_Y as usize % heads);
    let first_query = sequence * places[0] + head * places[1];
    let first_key = sequence * places[3] + head / group * places[4];
    let first_value = sequence * places[6] + head / group * places[7];
    let before = cells - tokens;

    let definition = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let size!(NA) = definition.vector_size(MatrixIdent::A);
    let size!(NB) = definition.vector_size(MatrixIdent::B);
    let size!(NC) = definition.vector_size(MatrixIdent::Accumulator);

    // Channels 8 by 8, of two queries each.
    let mut queries = Array::<Vector<F, N>>::new(comptime!(dim / 16));
    #[unroll]
    for block in 0..comptime!(dim / 32) {
        #[unroll]
        for half in 0..2usize {
            let row = min(first + line + half * 8, tokens - 1);
            queries[comptime!(block * 2 + half)] = query[first_query + row * places[2] + block * 4 + part];
        }
    }
    let mut outputs = Array::<Vector<f32, NC>>::new(comptime!(dim / 4));
    #[unroll]
    for index in 0..comptime!(dim / 4) {
        outputs[index] = Vector::new(0.0f32);
    }
    let mut tops = Array::<f32>::new(2usize);
    let mut masses = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        tops[half] = f32::min_value();
        masses[half] = 0.0f32;
    }
    let scale = 1.0f32 / f32::sqrt(f32::cast_from(dim));
    // Planes behind the last query have nothing to see.
    let mut end = min(before + first + TILE, cells);
    if first >= tokens {
        end = 0usize;
    }
    for start in range_stepped(0usize, end, TILE) {
        let mut scores = Array::<f32>::new(8usize);
        #[unroll]
        for side in 0..2usize {
            let cell = min(start + side * 8 + line, cells - 1);
            let mut sums = Array::<Vector<f32, NC>>::new(2usize);
            sums[0] = Vector::new(0.0f32);
            sums[1] = Vector::new(0.0f32);
            #[unroll]
            for block in 0..comptime!(dim / 32) {
                let channels = keys[first_key + cell * places[5] + block * 4 + part];
                #[unroll]
                for four in 0..2usize {
                    let mut a = Array::<Vector<F, NA>>::new(4usize);
                    #[unroll]
                    for register in 0..4usize {
                        let own = queries[comptime!(block * 2 + register % 2)];
                        let from = comptime!(four * 4 + register / 2 * 2);
                        let mut pair = Vector::<F, NA>::empty();
                        pair.insert(0usize, own.extract(from));
                        pair.insert(1usize, own.extract(comptime!(from + 1)));
                        a[register] = pair;
                    }
                    let mut b = Array::<Vector<F, NB>>::new(2usize);
                    #[unroll]
                    for register in 0..2usize {
                        let from = comptime!(four * 4 + register * 2);
                        let mut pair = Vector::<F, NB>::empty();
                        pair.insert(0usize, channels.extract(from));
                        pair.insert(1usize, channels.extract(comptime!(from + 1)));
                        b[register] = pair;
                    }
                    let found = definition.execute(&a, &b, &sums);
                    sums[0] = found[0];
                    sums[1] = found[1];
                }
            }
            #[unroll]
            for half in 0..2usize {
                #[unroll]
                for k in 0..2usize {
                    let mut score = sums[half].extract(k) * scale;
                    if start + side * 8 + part * 2 + k > before + first + line + half * 8 {
                        score = f32::min_value();
                    }
                    scores[comptime!(side * 4 + half * 2 + k)] = score;
                }
            }
        }
        let mut factors = Array::<f32>::new(2usize);
        #[unroll]
        for half in 0..2usize {
            let mut top = tops[half];
            #[unroll]
            for side in 0..2usize {
                #[unroll]
                for k in 0..2usize {
                    top = max(top, scores[comptime!(side * 4 + half * 2 + k)]);
                }
            }
            // The four units of a line have its other cells.
            top = max(top, plane_shuffle_xor(top, 1u32));
            top = max(top, plane_shuffle_xor(top, 2u32));
            factors[half] = f32::exp(tops[half] - top);
            tops[half] = top;
            let mut mass = masses[half] * factors[half];
            #[unroll]
            for side in 0..2usize {
                #[unroll]
                for k in 0..2usize {
                    let chance = f32::exp(scores[comptime!(side * 4 + half * 2 + k)] - top);
                    scores[comptime!(side * 4 + half * 2 + k)] = chance;
                    mass += chance;
                }
            }
            masses[half] = mass;
        }
        #[unroll]
        for index in 0..comptime!(dim / 4) {
            outputs[index] *= Vector::new(factors[comptime!(index % 2)]);
        }
        let mut a = Array::<Vector<F, NA>>::new(4usize);
        #[unroll]
        for register in 0..4usize {
            let at = comptime!(register / 2 * 4 + register % 2 * 2);
            let mut pair = Vector::<F, NA>::empty();
            pair.insert(0usize, F::cast_from(scores[at]));
            pair.insert(1usize, F::cast_from(scores[comptime!(at + 1)]));
            a[register] = pair;
        }
        #[unroll]
        for block in 0..comptime!(dim / 64) {
            let mut rows = Array::<Vector<F, N>>::new(4usize);
            #[unroll]
            for row in 0..4usize {
                let cell = min(start + part * 2 + comptime!(row / 2 * 8 + row % 2), cells - 1);
                rows[row] = values[first_value + cell * places[8] + block * 8 + line];
            }
            #[unroll]
            for channel in 0..8usize {
                let mut b = Array::<Vector<F, NB>>::new(2usize);
                #[unroll]
                for register in 0..2usize {
                    let mut pair = Vector::<F, NB>::empty();
                    pair.insert(0usize, rows[comptime!(register * 2)].extract(channel));
                    pair.insert(1usize, rows[comptime!(register * 2 + 1)].extract(channel));
                    b[register] = pair;
                }
                let place = comptime!((block * 8 + channel) * 2);
                let mut c = Array::<Vector<f32, NC>>::new(2usize);
                c[0] = outputs[place];
                c[1] = outputs[comptime!(place + 1)];
                let found = definition.execute(&a, &b, &c);
                outputs[place] = found[0];
                outputs[comptime!(place + 1)] = found[1];
            }
        }
    }
    #[unroll]
    for half in 0..2usize {
        let mut mass = masses[half];
        mass += plane_shuffle_xor(mass, 1u32);
        mass += plane_shuffle_xor(mass, 2u32);
        let row = first + line + half * 8;
        if row < tokens {
            let to = (CUBE_POS_Y as usize * tokens + row) * comptime!(dim / 8);
            #[unroll]
            for block in 0..comptime!(dim / 64) {
                #[unroll]
                for k in 0..2usize {
                    let mut channels = Vector::<F, N>::empty();
                    #[unroll]
                    for channel in 0..8usize {
                        let sum = outputs[comptime!((block * 8 + channel) * 2 + half)].extract(k);
                        channels.insert(channel, F::cast_from(sum / mass));
                    }
                    output[to + block * 8 + part * 2 + k] = channels;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;
    use burn::tensor::{Bool, Distribution, activation::softmax};

    #[test]
    fn tokens_see_themselves_and_what_stands_before_them() {
        let Some(device) = gpu() else { return };
        for (dtype, unit) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            if !device.supports_dtype(dtype) || !has_instruction(&device, dtype) {
                continue;
            }
            for (batch, heads, kv_heads, tokens, cells, dim) in [
                (1, 1, 1, 1, 1, 64),
                (2, 3, 1, 17, 17, 64),
                (1, 4, 2, 64, 100, 128),
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
                let got = flash(&there(&query), &there(&keys), &there(&values)).expect("a kernel");
                let group = heads / kv_heads;
                let each = |tensor: Tensor<4>| {
                    tensor
                        .unsqueeze_dim::<5>(2)
                        .expand([batch, kv_heads, group, cells, dim])
                        .reshape([batch, heads, cells, dim])
                };
                let scores = query.matmul(each(keys).swap_dims(2, 3)) / (dim as f64).sqrt();
                let hidden = Tensor::<2, Bool>::tril_mask([tokens, cells], (cells - tokens) as i64, &cpu);
                let hidden = hidden.unsqueeze::<4>().expand([batch, heads, tokens, cells]);
                let wanted = softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3).matmul(each(values));
                let got = Tensor::<4>::from_data(got.into_data(), (&cpu, DType::F32));
                let worst = (got - wanted).abs().max().into_scalar::<f32>();
                assert!(worst < unit, "{batch} {heads} {kv_heads} {tokens} {cells} {dim} {dtype:?}: {worst}");
            }
        }
    }
}
