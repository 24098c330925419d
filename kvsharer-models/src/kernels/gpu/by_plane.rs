//! A few rows without tensor cores: a plane computes some outputs for all rows.

use super::few_rows::Job;
use cubecl::client::Client;
use cubecl::{features::Plane, prelude::*};

/// Units of a cube.
const UNITS: usize = 128;

/// What one plane computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlaneTile {
    pub(super) rows: usize,
    pub(super) outputs: usize,
    /// Units, which share the sum of each output.
    pub(super) lanes: usize,
    /// Planes of a cube.
    pub(super) planes: usize,
    /// Whether the units of a plane can sum without shared memory.
    plane_sums: bool,
}

impl PlaneTile {
    /// Rows come in powers of two, so that few kernels are compiled. The more rows, the more outputs: they share what
    /// is read of the rows.
    pub(super) fn new(rows: usize, client: &Client) -> Self {
        let rows = rows.next_power_of_two().min(16);
        let (hardware, features) = (&client.properties().hardware, &client.properties().features);
        let plane_sums = features.plane.contains(Plane::Ops) && hardware.plane_size_min == hardware.plane_size_max;
        let lanes = if plane_sums { hardware.plane_size_max as usize } else { 32 };
        // Shared memory is for the sums of a single plane.
        let planes = if plane_sums { UNITS / lanes } else { 1 };
        Self { rows, outputs: rows.div_ceil(2).min(4), lanes, planes, plane_sums }
    }
}

/// `sizes` are outputs, cubes and pitches of the three weights.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn by_plane<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    first: &[Vector<W, N>],
    second: &[Vector<W, N>],
    third: &[Vector<W, N>],
    summand: &[X],
    of_first: &mut [X],
    of_second: &mut [X],
    of_third: &mut [X],
    sizes: Sequence<usize>,
    vectors: usize,
    x_pitch: usize,
    rows: usize,
    #[comptime] tile: PlaneTile,
    #[comptime] job: Job,
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let (behind_first, behind_second) = (sizes[3], sizes[3] + sizes[4]);
    if comptime!(job.weights == 1) || cube < behind_first {
        one::<X, W, N>(x, first, summand, of_first, cube, vectors, x_pitch, sizes[6], rows, sizes[0], tile, job.added);
    } else if comptime!(job.weights == 2) || cube < behind_second {
        let at = cube - behind_first;
        one::<X, W, N>(x, second, summand, of_second, at, vectors, x_pitch, sizes[7], rows, sizes[1], tile, false);
    } else if comptime!(job.weights == 3) {
        let at = cube - behind_second;
        one::<X, W, N>(x, third, summand, of_third, at, vectors, x_pitch, sizes[8], rows, sizes[2], tile, false);
    }
}

#[cube]
fn one<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[Vector<W, N>],
    summand: &[X],
    y: &mut [X],
    cube: usize,
    vectors: usize,
    x_pitch: usize,
    w_pitch: usize,
    rows: usize,
    outputs: usize,
    #[comptime] tile: PlaneTile,
    #[comptime] added: bool,
) {
    let lane = UNIT_POS_X as usize;
    let first_output = (cube * tile.planes + UNIT_POS_Y as usize) * tile.outputs;
    let first_row = CUBE_POS_Z as usize * tile.rows;
    let mut sums = Array::<f32>::new(comptime!(tile.rows * tile.outputs));
    for i in range_stepped(lane, vectors, tile.lanes) {
        let mut weights = Array::<Vector<f32, N>>::new(tile.outputs);
        #[unroll]
        for o in 0..tile.outputs {
            // What lies behind the last row is computed as the last row and not kept.
            let output = min(first_output + o, outputs - 1);
            weights[o] = Vector::cast_from(weight[output * w_pitch + i]);
        }
        #[unroll]
        for r in 0..tile.rows {
            let row = min(first_row + r, rows - 1);
            let values = Vector::<f32, N>::cast_from(x[row * x_pitch + i]);
            #[unroll]
            for o in 0..tile.outputs {
                let products = weights[o] * values;
                #[unroll]
                for k in 0..N::value() {
                    sums[comptime!(r * tile.outputs + o)] += products.extract(k);
                }
            }
        }
    }
    if comptime!(tile.plane_sums) {
        #[unroll]
        for index in 0..comptime!(tile.rows * tile.outputs) {
            let mut sum = plane_sum(sums[index]);
            let row = first_row + comptime!(index / tile.outputs);
            let output = first_output + comptime!(index % tile.outputs);
            if lane == comptime!(index % tile.lanes) && row < rows && output < outputs {
                if comptime!(added) {
                    sum += f32::cast_from(summand[row * outputs + output]);
                }
                y[row * outputs + output] = X::cast_from(sum);
            }
        }
    } else {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(tile.rows * tile.outputs * tile.lanes));
        #[unroll]
        for index in 0..comptime!(tile.rows * tile.outputs) {
            shared[index * tile.lanes + lane] = sums[index];
        }
        sync_cube();
        for index in range_stepped(lane, comptime!(tile.rows * tile.outputs), tile.lanes) {
            let row = first_row + index / tile.outputs;
            let output = first_output + index % tile.outputs;
            if row < rows && output < outputs {
                let mut sum = 0.0f32;
                for other in 0..tile.lanes {
                    sum += shared[index * tile.lanes + other];
                }
                if comptime!(added) {
                    sum += f32::cast_from(summand[row * outputs + output]);
                }
                y[row * outputs + output] = X::cast_from(sum);
            }
        }
    }
}
