//! Attention of a tile of queries on tensor cores.
//!
//! A plane keeps 16 queries and goes over the cells, 16 at a time. The softmax's weights are where the second product
//! wants them. The order of channels does not matter within a product, so that units load 8 side by side.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use cubecl::client::Client;
use cubecl::features::MmaConfig;
use cubecl::prelude::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// Queries of a plane, and cells of one turn.
const TILE: usize = 16;

/// Planes of a cube; they read the same cells at about the same time.
pub(super) const PLANES: usize = 4;

/// Queries of a cube.
pub(super) const QUERIES: usize = TILE * PLANES;

/// Elements of a load.
pub(super) const WIDTH: usize = 8;

/// Whether a device has the instruction for heads of this dtype and size.
pub(super) fn runs(client: &Client, dtype: DType, dim: usize) -> bool {
    if !matches!(dtype, DType::F16 | DType::BF16) || ![64, 128].contains(&dim) {
        return false;
    }
    let elem = dtype_to_storage_type(dtype);
    let cd_type = dtype_to_storage_type(DType::F32);
    let config = MmaConfig { a_type: elem, b_type: elem, cd_type, m: 16, n: 8, k: 16 };
    let properties = client.properties();
    properties.features.matmul.mma.contains(&config) && properties.hardware.plane_size_max == 32
}

/// Arguments as those of `attend_tile`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn flash<F: Float, N: Size>(
    query: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    places: &[i32],
    output: &mut [Vector<F, N>],
    strides: Sequence<usize>,
    tiles: usize,
    tokens: usize,
    cells: usize,
    heads: usize,
    group: usize,
    start: i32,
    window: i32,
    #[comptime] holes: bool,
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
    let first_query = sequence * strides[0] + head * strides[1];
    let first_key = sequence * strides[3] + head / group * strides[4];
    let first_value = sequence * strides[6] + head / group * strides[7];
    let first_place = sequence * strides[9] + head / group * strides[10];
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
            queries[comptime!(block * 2 + half)] = query[first_query + row * strides[2] + block * 4 + part];
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
    for turn in range_stepped(0usize, end, TILE) {
        let mut scores = Array::<f32>::new(8usize);
        #[unroll]
        for side in 0..2usize {
            let cell = min(turn + side * 8 + line, cells - 1);
            let mut sums = Array::<Vector<f32, NC>>::new(2usize);
            sums[0] = Vector::new(0.0f32);
            sums[1] = Vector::new(0.0f32);
            #[unroll]
            for block in 0..comptime!(dim / 32) {
                let channels = keys[first_key + cell * strides[5] + block * 4 + part];
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
                    let (cell, row) = (turn + side * 8 + part * 2 + k, first + line + half * 8);
                    let mut hides = cell > before + row;
                    if comptime!(holes) {
                        let bound = max(start + row as i32 + 1 - window, 0);
                        let place = places[first_place + min(cell, cells - 1)];
                        hides = hides || (place < bound && cell != before + row);
                    }
                    // What hidden cells weigh is gone with the first other one, and each query sees its own cell.
                    if hides {
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
                let cell = min(turn + part * 2 + comptime!(row / 2 * 8 + row % 2), cells - 1);
                rows[row] = values[first_value + cell * strides[8] + block * 8 + line];
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
            let to = ((sequence * tokens + row) * heads + head) * comptime!(dim / 8);
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
