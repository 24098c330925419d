//! The softmax over some cells of one head, for all queries of its group at once.
//!
//! Units share sums through shared memory alone, so that it runs where there are no plane operations.

use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 128;

/// Cells that a cube looks at in one turn.
pub(super) const TILE: usize = 64;

/// Units that weigh the cells of a tile for one query.
const RUNS: usize = 8;

/// Queries a head at most: what each unit keeps in registers grows with them.
pub(super) const GROUP: usize = 8;

/// What is known of a head when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Head {
    group: usize,
    /// Vectors of one key.
    vectors: usize,
    /// Units that share the dot product of one key: their loads lie side by side.
    lanes: usize,
    /// Whether scores are kept.
    watched: bool,
    /// Whether the device says how many cells count.
    counted: bool,
    /// Whether some cells are hidden.
    holes: bool,
}

impl Head {
    pub(super) fn new(group: usize, vectors: usize, watched: bool, counted: bool, holes: bool) -> Self {
        let lanes = [4, 2, 1].into_iter().find(|lanes| vectors % lanes == 0).unwrap_or(1);
        Self { group, vectors, lanes, watched, counted, holes }
    }

    /// Shared memory for heads of this size, at most.
    pub(super) fn shared_bytes(group: usize, dim: usize) -> usize {
        let (lanes, width) = (4, 8);
        size_of::<f32>() * (group * (dim + TILE * lanes + TILE + RUNS + 1) + UNITS * width)
    }
}

/// A part of `parts` `[head, split, group, dim + 2]` for each cube: the output before it is divided by the mass, the
/// highest score, and the mass. Scores go to `scores` `[head, group, cell]`.
///
/// `places` are the strides of keys and values by sequence, head and cell, in vectors. Of `cells` cells the first
/// `count[0]` are looked at, if the device is to say so; or, if there are holes, those with a place of at least `bound` in
/// `count` `[head, cell]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend_part<F: Float, N: Size>(
    query: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    count: &[i32],
    parts: &mut [f32],
    scores: &mut [f32],
    places: Sequence<usize>,
    heads: usize,
    cells: usize,
    tiles: usize,
    bound: i32,
    #[comptime] of: Head,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let head = CUBE_POS_X as usize;
    let split = CUBE_POS_Y as usize;
    let dim = comptime!(of.vectors) * N::value();
    let first_key = head / heads * places[0] + head % heads * places[1];
    let first_value = head / heads * places[3] + head % heads * places[4];

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(of.group * of.vectors));
    let scale = 1.0f32 / f32::sqrt(f32::cast_from(dim));
    for index in range_stepped(unit, comptime!(of.group * of.vectors), UNITS) {
        let channels = Vector::<f32, N>::cast_from(query[head * comptime!(of.group * of.vectors) + index]);
        queries[index] = channels * Vector::new(scale);
    }
    let mut partial = Shared::<[f32]>::new_slice(comptime!(of.group * TILE * of.lanes));
    let mut chances = Shared::<[f32]>::new_slice(comptime!(of.group * TILE));
    let mut tops = Shared::<[f32]>::new_slice(comptime!(of.group * RUNS));
    let mut factors = Shared::<[f32]>::new_slice(of.group);
    sync_cube();

    // Of the query and run of cells that this unit weighs, if any.
    let (own_query, run) = (unit / RUNS, unit % RUNS);
    let weighs = unit < of.group * RUNS;
    let mut top = f32::min_value();
    let mut mass = 0.0f32;
    // Of the column of values that this unit sums, over every so many cells.
    let (column, first) = (unit % of.vectors, unit / of.vectors);
    let strands = comptime!(UNITS / of.vectors);
    let mut outputs = Array::<Vector<f32, N>>::new(of.group);

    let start = split * tiles * TILE;
    let mut live = cells;
    if comptime!(of.counted) {
        live = min(count[0] as usize, cells);
    }
    let end = min(start + tiles * TILE, live);
    for tile in range_stepped(start, end, TILE) {
        let lane = unit % of.lanes;
        for cell in range_stepped(unit / of.lanes, TILE, comptime!(UNITS / of.lanes)) {
            // Behind the last cell it is read again, and counts nothing.
            let key = first_key + min(tile + cell, live - 1) * places[2];
            let mut sums = Array::<f32>::new(of.group);
            for turn in 0..comptime!(of.vectors / of.lanes) {
                let at = turn * of.lanes + lane;
                let channels = Vector::<f32, N>::cast_from(keys[key + at]);
                #[unroll]
                for g in 0..of.group {
                    let products = channels * queries[g * of.vectors + at];
                    #[unroll]
                    for k in 0..N::value() {
                        sums[g] += products.extract(k);
                    }
                }
            }
            #[unroll]
            for g in 0..of.group {
                partial[(g * TILE + cell) * of.lanes + lane] = sums[g];
            }
        }
        sync_cube();
        let mut own = Array::<f32>::new(comptime!(TILE / RUNS));
        if weighs {
            let mut highest = f32::min_value();
            #[unroll]
            for i in 0..comptime!(TILE / RUNS) {
                let cell = i * RUNS + run;
                let mut score = 0.0f32;
                #[unroll]
                for other in 0..of.lanes {
                    score += partial[(own_query * TILE + cell) * of.lanes + other];
                }
                if tile + cell < live {
                    if comptime!(of.holes) && count[head * cells + tile + cell] < bound {
                        score = f32::min_value();
                    }
                    if comptime!(of.watched) {
                        scores[(head * of.group + own_query) * cells + tile + cell] = score;
                    }
                } else {
                    score = f32::min_value();
                }
                own[i] = score;
                highest = max(highest, score);
            }
            tops[unit] = highest;
        }
        sync_cube();
        if weighs {
            let mut higher = top;
            #[unroll]
            for other in 0..RUNS {
                higher = max(higher, tops[own_query * RUNS + other]);
            }
            let factor = f32::exp(top - higher);
            top = higher;
            mass *= factor;
            if run == 0 {
                factors[own_query] = factor;
            }
            #[unroll]
            for i in 0..comptime!(TILE / RUNS) {
                let mut chance = f32::exp(own[i] - higher);
                // Where all cells so far are hidden, the highest score is that of a hidden one.
                if comptime!(of.holes) && own[i] == f32::min_value() {
                    chance = 0.0f32;
                }
                mass += chance;
                chances[own_query * TILE + i * RUNS + run] = chance;
            }
        }
        sync_cube();
        if first < strands {
            #[unroll]
            for g in 0..of.group {
                outputs[g] *= Vector::new(factors[g]);
            }
            for cell in range_stepped(first, TILE, strands) {
                let value = first_value + min(tile + cell, live - 1) * places[5];
                let channels = Vector::<f32, N>::cast_from(values[value + column]);
                #[unroll]
                for g in 0..of.group {
                    outputs[g] += channels * Vector::new(chances[g * TILE + cell]);
                }
            }
        }
    }

    let part = (head * CUBE_COUNT_Y as usize + split) * of.group;
    let mut strand = Shared::<[Vector<f32, N>]>::new_slice(UNITS);
    #[unroll]
    for g in 0..of.group {
        strand[unit] = outputs[g];
        sync_cube();
        if unit < of.vectors {
            let mut sum = strand[unit];
            for other in 1..strands {
                sum += strand[other * of.vectors + unit];
            }
            #[unroll]
            for k in 0..N::value() {
                parts[(part + g) * (dim + 2) + unit * N::value() + k] = sum.extract(k);
            }
        }
        sync_cube();
    }
    if weighs {
        tops[unit] = mass;
    }
    sync_cube();
    if weighs && run == 0 {
        let mut sum = 0.0f32;
        #[unroll]
        for other in 0..RUNS {
            sum += tops[own_query * RUNS + other];
        }
        parts[(part + own_query) * (dim + 2) + dim] = top;
        parts[(part + own_query) * (dim + 2) + dim + 1] = sum;
    }
}
