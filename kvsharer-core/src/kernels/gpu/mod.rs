//! Kernels for GPUs in CubeCL, each as one operation that burn's fusion leaves whole.

// Buffers, their layouts and sizes: a kernel has many arguments.
#![allow(clippy::too_many_arguments)]

mod attend_many;
mod attend_one;
mod attend_part;
mod attend_tile;
pub mod common;
mod flash;
mod join_parts;
mod logit_stats;
mod pick_rows;
mod place;
mod product;
mod put;
mod turn;

pub(super) use attend_many::attend_many;
pub(super) use attend_one::{attend_counted, attend_holes, attend_one, attend_one_unwatched};
pub(super) use logit_stats::logit_stats;
pub(super) use pick_rows::pick_rows;
pub(super) use place::place;
pub(super) use product::{product, rounds_f32};
pub(super) use put::{put, put_row};
pub(super) use turn::turn;

use burn_cubecl::kernel::into_contiguous;
pub(super) use common::runs_on;
use common::{CubeTensor, address, grid, known, width};

/// Cubes along one axis of a grid; devices have limits.
const GRID: usize = (1 << 16) - 1;

/// Heads whose channels lie side by side, from places that are multiples of `width`; most do already.
fn in_rows(heads: CubeTensor, width: usize) -> CubeTensor {
    let strides = heads.meta.strides();
    let fits = strides[3] == 1 && strides[..3].iter().all(|stride| stride.is_multiple_of(width));
    if fits { heads } else { into_contiguous(heads) }
}
