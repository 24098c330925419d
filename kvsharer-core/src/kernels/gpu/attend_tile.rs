//! Attention of a tile of queries, in f32 and without tensor cores or plane operations.
//!
//! A cube goes over the cells a tile at a time: keys in shared memory, scores, their softmax so far, then values in the
//! place of the keys.

use cubecl::client::Client;
use cubecl::prelude::*;

/// Queries of a cube.
pub(super) const QUERIES: usize = 32;

/// Units of a cube.
pub(super) const UNITS: usize = 128;

/// Elements of a load.
pub(super) const WIDTH: usize = 4;

/// Cells of one turn, for heads of this size: as many as devices of 32 KiB of shared memory take.
fn turn(dim: usize) -> usize {
    if dim <= 64 { 32 } else { 16 }
}

/// Units that have scores of one query; each has those of two queries.
const ACROSS: usize = 2 * UNITS / QUERIES;

/// Queries of a unit that weighs scores and adds values up, for heads of this size: with two, values are read half as often.
fn owned(dim: usize) -> usize {
    if dim.is_multiple_of(2 * WIDTH * UNITS / QUERIES) { 2 } else { 1 }
}

/// Whether there is room for heads of this size.
pub(super) fn runs(client: &Client, dim: usize) -> bool {
    let cells = turn(dim);
    let shared = size_of::<f32>() * ((QUERIES + cells) * (dim + WIDTH) + QUERIES * (cells + 1) + UNITS * owned(dim));
    dim > 0
        && dim.is_multiple_of(WIDTH * UNITS / QUERIES)
        && dim <= 128
        && shared <= client.properties().hardware.max_shared_memory_size
}

/// `strides` are those of queries, keys and values by sequence, head and token, in vectors, and of `places` by sequence and
/// head. A query sees no cell behind its own, nor, if there are holes, one whose place is negative or not among the last
/// `window` of its own; the first query's place is `start`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend_tile<F: Float, N: Size>(
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
    let unit = UNIT_POS_X as usize;
    let vectors = comptime!(dim / WIDTH);
    let turn = comptime!(turn(dim));
    let owned = comptime!(owned(dim));
    // Units of a query when its scores are weighed and its values added up.
    let parts = comptime!(UNITS * owned / QUERIES);
    // Lines of shared memory are longer than a head, so that units that read one channel of several lines do not wait.
    let pitch = comptime!(vectors + 1);
    // The last queries see most: they start first.
    let first = (tiles - 1 - CUBE_POS_X as usize) * QUERIES;
    let (sequence, head) = (CUBE_POS_Y as usize / heads, CUBE_POS_Y as usize % heads);
    let first_query = sequence * strides[0] + head * strides[1];
    let first_key = sequence * strides[3] + head / group * strides[4];
    let first_value = sequence * strides[6] + head / group * strides[7];
    let first_place = sequence * strides[9] + head / group * strides[10];
    let before = cells - tokens;

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(QUERIES * (vectors + 1)));
    let mut lines = Shared::<[Vector<f32, N>]>::new_slice(comptime!(turn * (vectors + 1)));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(QUERIES * (turn + 1)));
    let mut tops = Shared::<[f32]>::new_slice(comptime!(UNITS * owned));
    let scale = Vector::<f32, N>::new(1.0f32 / f32::sqrt(f32::cast_from(dim)));
    for index in range_stepped(unit, comptime!(QUERIES * vectors), UNITS) {
        let (line, channel) = (index / vectors, index % vectors);
        let row = min(first + line, tokens - 1);
        queries[line * pitch + channel] =
            Vector::<f32, N>::cast_from(query[first_query + row * strides[2] + channel]) * scale;
    }
    // Of the two queries and every so many cells that this unit scores.
    let (pair, column) = (unit / ACROSS * 2, unit % ACROSS);
    // Of the queries that this unit adds up, and every so many of their channels.
    let (own, part) = (unit / parts * owned, unit % parts);
    let mut outputs = Array::<Vector<f32, N>>::new(comptime!(owned * vectors / parts));
    #[unroll]
    for index in 0..comptime!(owned * vectors / parts) {
        outputs[index] = Vector::new(0.0f32);
    }
    let mut top = Array::<f32>::new(owned);
    let mut masses = Array::<f32>::new(owned);
    #[unroll]
    for q in 0..owned {
        top[q] = f32::min_value();
        masses[q] = 0.0f32;
    }

    let end = min(before + first + QUERIES, cells);
    for tile in range_stepped(0usize, end, turn) {
        sync_cube();
        for index in range_stepped(unit, comptime!(turn * vectors), UNITS) {
            let (line, channel) = (index / vectors, index % vectors);
            let cell = min(tile + line, cells - 1);
            lines[line * pitch + channel] = Vector::cast_from(keys[first_key + cell * strides[5] + channel]);
        }
        sync_cube();
        let mut sums = Array::<Vector<f32, N>>::new(comptime!(2 * turn / ACROSS));
        #[unroll]
        for index in 0..comptime!(2 * turn / ACROSS) {
            sums[index] = Vector::new(0.0f32);
        }
        for channel in 0..vectors {
            let upper = queries[pair * pitch + channel];
            let lower = queries[(pair + 1) * pitch + channel];
            #[unroll]
            for index in 0..comptime!(turn / ACROSS) {
                let line = lines[(column + comptime!(index * ACROSS)) * pitch + channel];
                sums[comptime!(2 * index)] += upper * line;
                sums[comptime!(2 * index + 1)] += lower * line;
            }
        }
        #[unroll]
        for index in 0..comptime!(turn / ACROSS) {
            let at = column + comptime!(index * ACROSS);
            let cell = tile + at;
            let mut place = 0i32;
            if comptime!(holes) {
                place = places[first_place + min(cell, cells - 1)];
            }
            #[unroll]
            for side in 0..2usize {
                let own_cell = before + first + pair + side;
                let mut score = 0.0f32;
                #[unroll]
                for k in 0..N::value() {
                    score += sums[comptime!(2 * index + side)].extract(k);
                }
                let mut hides = cell > own_cell;
                if comptime!(holes) {
                    let bound = max(start + (first + pair + side) as i32 + 1 - window, 0);
                    hides = hides || (place < bound && cell != own_cell);
                }
                if hides {
                    score = f32::min_value();
                }
                scores[(pair + side) * comptime!(turn + 1) + at] = score;
            }
        }
        sync_cube();
        #[unroll]
        for q in 0..owned {
            let mut higher = top[q];
            #[unroll]
            for index in 0..comptime!(turn / parts) {
                let at = (own + q) * comptime!(turn + 1) + part + comptime!(index * parts);
                higher = max(higher, scores[at]);
            }
            tops[unit * owned + q] = higher;
        }
        // Nobody reads keys any more.
        for index in range_stepped(unit, comptime!(turn * vectors), UNITS) {
            let (line, channel) = (index / vectors, index % vectors);
            let cell = min(tile + line, cells - 1);
            lines[line * pitch + channel] = Vector::cast_from(values[first_value + cell * strides[8] + channel]);
        }
        sync_cube();
        // Where all cells so far are hidden, the highest score is theirs; what they weigh is gone with the first other
        // one, and each query sees its own cell.
        #[unroll]
        for q in 0..owned {
            let mut higher = top[q];
            #[unroll]
            for other in 0..parts {
                higher = max(higher, tops[(unit / parts * parts + other) * owned + q]);
            }
            #[unroll]
            for index in 0..comptime!(turn / parts) {
                let at = (own + q) * comptime!(turn + 1) + part + comptime!(index * parts);
                scores[at] = f32::exp(scores[at] - higher);
            }
            let factor = f32::exp(top[q] - higher);
            top[q] = higher;
            masses[q] *= factor;
            #[unroll]
            for index in 0..comptime!(vectors / parts) {
                outputs[comptime!(q * vectors / parts + index)] *= Vector::new(factor);
            }
        }
        sync_cube();
        for at in 0..turn {
            let mut chances = Array::<f32>::new(owned);
            #[unroll]
            for q in 0..owned {
                chances[q] = scores[(own + q) * comptime!(turn + 1) + at];
                masses[q] += chances[q];
            }
            #[unroll]
            for index in 0..comptime!(vectors / parts) {
                let channels = lines[at * pitch + part + comptime!(index * parts)];
                #[unroll]
                for q in 0..owned {
                    outputs[comptime!(q * vectors / parts + index)] += channels * Vector::new(chances[q]);
                }
            }
        }
    }
    #[unroll]
    for q in 0..owned {
        let row = first + own + q;
        if row < tokens {
            let to = ((sequence * tokens + row) * heads + head) * vectors + part;
            #[unroll]
            for index in 0..comptime!(vectors / parts) {
                let sum = outputs[comptime!(q * vectors / parts + index)];
                output[to + comptime!(index * parts)] = Vector::cast_from(sum / Vector::new(masses[q]));
            }
        }
    }
}
