//! A few rows on tensor cores (`mma.m16n8k16`): a plane computes 32 outputs for up to 32 rows, the planes of a cube split
//! the inner axis and meet in shared memory.
//!
//! The order of the inner axis does not matter, so each unit takes 8 elements that lie side by side, of weights and rows
//! alike, for two instructions: loads have 16 bytes, and nothing is rearranged.

use super::few_rows::Job;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use cubecl::client::Client;
use cubecl::features::MmaConfig;
use cubecl::prelude::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// Elements of the inner axis that a plane takes in one turn.
pub(super) const BLOCK: usize = 32;

/// Outputs of one instruction.
const OUTPUTS: usize = 16;

/// Rows of one instruction.
const ROWS: usize = 8;

/// With fewer rows, planes without tensor cores read as fast.
const FEWEST: usize = 3;

/// What a cube computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MmaTile {
    /// Instructions side by side along the outputs and the rows.
    down: usize,
    across: usize,
    pub(super) planes: usize,
}

impl MmaTile {
    /// `None` where the device has no such instruction, or the shapes do not suit it.
    pub(super) fn new(rows: usize, input: usize, dtypes: [DType; 2], client: &Client) -> Option<Self> {
        let [of_x, of_weight] = dtypes;
        let elem = dtype_to_storage_type(of_weight);
        let config = MmaConfig {
            a_type: elem,
            b_type: elem,
            cd_type: dtype_to_storage_type(DType::F32),
            m: OUTPUTS as u32,
            n: ROWS as u32,
            k: 16,
        };
        let properties = client.properties();
        let known = properties.features.matmul.mma.contains(&config) && properties.hardware.plane_size_max == 32;
        let suits = of_x == of_weight && rows >= FEWEST && input.is_multiple_of(BLOCK);
        let across = rows.div_ceil(ROWS).next_power_of_two();
        // The sums of all planes fit into 32 KiB.
        (known && suits).then_some(Self { down: 2, across, planes: if across > 2 { 8 } else { 16 } })
    }

    /// Outputs of a cube.
    pub(super) fn outputs(&self) -> usize {
        OUTPUTS * self.down
    }
}

/// `sizes` are outputs, cubes and pitches of the three weights.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn by_tile<F: Float, N: Size>(
    x: &[Vector<F, N>],
    first: &[Vector<F, N>],
    second: &[Vector<F, N>],
    third: &[Vector<F, N>],
    summand: &[F],
    of_first: &mut [F],
    of_second: &mut [F],
    of_third: &mut [F],
    sizes: Sequence<usize>,
    blocks: usize,
    x_pitch: usize,
    rows: usize,
    #[comptime] tile: MmaTile,
    #[comptime] job: Job,
    #[define(F)] _dtype: ElemType,
) {
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tile.planes * tile.down * OUTPUTS * tile.across * ROWS));
    let (behind_first, behind_second) = (sizes[3], sizes[3] + sizes[4]);
    if comptime!(job.weights == 1) || cube < behind_first {
        let output = cube * comptime!(tile.down * OUTPUTS);
        multiply::<F, N>(x, first, &mut shared, output, blocks, x_pitch, sizes[6], rows, sizes[0], tile);
        sync_cube();
        gather::<F>(&shared, summand, of_first, output, rows, sizes[0], tile, job.added);
    } else if comptime!(job.weights == 2) || cube < behind_second {
        let output = (cube - behind_first) * comptime!(tile.down * OUTPUTS);
        multiply::<F, N>(x, second, &mut shared, output, blocks, x_pitch, sizes[7], rows, sizes[1], tile);
        sync_cube();
        gather::<F>(&shared, summand, of_second, output, rows, sizes[1], tile, false);
    } else if comptime!(job.weights == 3) {
        let output = (cube - behind_second) * comptime!(tile.down * OUTPUTS);
        multiply::<F, N>(x, third, &mut shared, output, blocks, x_pitch, sizes[8], rows, sizes[2], tile);
        sync_cube();
        gather::<F>(&shared, summand, of_third, output, rows, sizes[2], tile, false);
    }
}

/// The part of each plane, `[plane][row][output]`.
#[cube]
fn multiply<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    shared: &mut [f32],
    first_output: usize,
    blocks: usize,
    x_pitch: usize,
    w_pitch: usize,
    rows: usize,
    outputs: usize,
    #[comptime] tile: MmaTile,
) {
    let (lane, plane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    // Of an instruction, the row of the weight or of `x` that this unit loads, and which of the four vectors of a block.
    let (line, part) = (lane / 4, lane % 4);
    let definition = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let size!(NA) = definition.vector_size(MatrixIdent::A);
    let size!(NB) = definition.vector_size(MatrixIdent::B);
    let size!(NC) = definition.vector_size(MatrixIdent::Accumulator);

    let mut sums = Array::<Vector<f32, NC>>::new(comptime!(tile.down * tile.across * 2));
    #[unroll]
    for index in 0..comptime!(tile.down * tile.across * 2) {
        sums[index] = Vector::new(0.0f32);
    }
    for block in range_stepped(plane, blocks, tile.planes) {
        let at = block * 4 + part;
        let mut weights = Array::<Vector<F, N>>::new(comptime!(tile.down * 2));
        #[unroll]
        for half in 0..comptime!(tile.down * 2) {
            let output = min(first_output + half * 8 + line, outputs - 1);
            weights[half] = weight[output * w_pitch + at];
        }
        let mut values = Array::<Vector<F, N>>::new(tile.across);
        #[unroll]
        for column in 0..tile.across {
            let row = min(column * ROWS + line, rows - 1);
            values[column] = x[row * x_pitch + at];
        }
        // The first and the second four of the eight elements.
        #[unroll]
        for four in 0..2 {
            #[unroll]
            for down in 0..tile.down {
                let mut a = Array::<Vector<F, NA>>::new(4usize);
                #[unroll]
                for register in 0..4 {
                    let half = weights[comptime!(down * 2 + register % 2)];
                    let from = comptime!(four * 4 + register / 2 * 2);
                    let mut pair = Vector::<F, NA>::empty();
                    pair.insert(0usize, half.extract(from));
                    pair.insert(1usize, half.extract(comptime!(from + 1)));
                    a[register] = pair;
                }
                #[unroll]
                for column in 0..tile.across {
                    let mut b = Array::<Vector<F, NB>>::new(2usize);
                    #[unroll]
                    for register in 0..2 {
                        let from = comptime!(four * 4 + register * 2);
                        let mut pair = Vector::<F, NB>::empty();
                        pair.insert(0usize, values[column].extract(from));
                        pair.insert(1usize, values[column].extract(comptime!(from + 1)));
                        b[register] = pair;
                    }
                    let place = comptime!((down * tile.across + column) * 2);
                    let mut c = Array::<Vector<f32, NC>>::new(2usize);
                    c[0] = sums[place];
                    c[1] = sums[comptime!(place + 1)];
                    let d = definition.execute(&a, &b, &c);
                    sums[place] = d[0];
                    sums[comptime!(place + 1)] = d[1];
                }
            }
        }
    }
    #[unroll]
    for down in 0..tile.down {
        #[unroll]
        for column in 0..tile.across {
            #[unroll]
            for half in 0..2 {
                #[unroll]
                for k in 0..2 {
                    let row = column * ROWS + part * 2 + k;
                    let output = down * OUTPUTS + half * 8 + line;
                    let to = (plane * comptime!(tile.across * ROWS) + row) * comptime!(tile.down * OUTPUTS) + output;
                    shared[to] = sums[comptime!((down * tile.across + column) * 2 + half)].extract(k);
                }
            }
        }
    }
}

/// Adds the parts of all planes up.
#[cube]
fn gather<F: Float>(
    shared: &[f32],
    summand: &[F],
    y: &mut [F],
    first_output: usize,
    rows: usize,
    outputs: usize,
    #[comptime] tile: MmaTile,
    #[comptime] added: bool,
) {
    let unit = UNIT_POS_Y as usize * 32 + UNIT_POS_X as usize;
    let all = comptime!(tile.down * OUTPUTS * tile.across * ROWS);
    for index in range_stepped(unit, all, comptime!(32 * tile.planes)) {
        let row = index / comptime!(tile.down * OUTPUTS);
        let output = first_output + index % comptime!(tile.down * OUTPUTS);
        if row < rows && output < outputs {
            let mut sum = 0.0f32;
            #[unroll]
            for plane in 0..tile.planes {
                sum += shared[plane * all + index];
            }
            if comptime!(added) {
                sum += f32::cast_from(summand[row * outputs + output]);
            }
            y[row * outputs + output] = F::cast_from(sum);
        }
    }
}
