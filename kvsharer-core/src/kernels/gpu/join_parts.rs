//! Joins the softmaxes over parts of the cells.

use cubecl::prelude::*;

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

    let mut top = f32::min_value();
    for split in 0..splits {
        top = max(top, parts[first + split * next + dim]);
    }
    let mut mass = 0.0f32;
    for split in 0..splits {
        let part = first + split * next + dim;
        mass += f32::exp(parts[part] - top) * parts[part + 1];
    }
    for channel in range_stepped(unit, dim, CUBE_DIM_X as usize) {
        let mut sum = 0.0f32;
        for split in 0..splits {
            let part = first + split * next;
            sum += f32::exp(parts[part + dim] - top) * parts[part + channel];
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
