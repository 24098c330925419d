//! Joins the softmaxes over parts of the cells.

use cubecl::prelude::*;

/// Parts of a head at most.
pub(super) const MOST: usize = 1024;

/// From `parts` as `attend_part` leaves them, `output` `[head, group, dim]`; if `watched`, `weights`
/// `[head, group, cell]` from the scores in their place. A cube a query.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn join_parts<F: Float>(
    parts: &[f32],
    output: &mut [F],
    weights: &mut [f32],
    splits: usize,
    dim: usize,
    cells: usize,
    #[comptime] watched: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS_X as usize;
    let group = CUBE_COUNT_Y as usize;
    let query = CUBE_POS_X as usize * group + CUBE_POS_Y as usize;
    let first = (CUBE_POS_X as usize * splits * group + CUBE_POS_Y as usize) * (dim + 2);
    let next = group * (dim + 2);

    // Read by all units at once.
    let mut tops = Shared::<[f32]>::new_slice(MOST);
    let mut masses = Shared::<[f32]>::new_slice(MOST);
    for split in range_stepped(unit, splits, CUBE_DIM_X as usize) {
        tops[split] = parts[first + split * next + dim];
        masses[split] = parts[first + split * next + dim + 1];
    }
    sync_cube();
    let mut top = f32::min_value();
    for split in 0..splits {
        top = max(top, tops[split]);
    }
    let mut mass = 0.0f32;
    for split in 0..splits {
        mass += f32::exp(tops[split] - top) * masses[split];
    }
    for channel in range_stepped(unit, dim, CUBE_DIM_X as usize) {
        let mut sum = 0.0f32;
        for split in 0..splits {
            sum += f32::exp(tops[split] - top) * parts[first + split * next + channel];
        }
        output[query * dim + channel] = F::cast_from(sum / mass);
    }
    if comptime!(watched) {
        for cell in range_stepped(unit, cells, CUBE_DIM_X as usize) {
            let at = query * cells + cell;
            weights[at] = f32::exp(weights[at] - top) / mass;
        }
    }
}
