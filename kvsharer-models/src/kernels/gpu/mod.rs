//! Kernels for GPUs in CubeCL, each as one operation that burn's fusion leaves whole.

// Buffers, their layouts and sizes: a kernel has many arguments.
#![allow(clippy::too_many_arguments)]

mod by_plane;
mod by_tile;
mod few_rows;
mod gated;
mod rms_norm;

pub(super) use few_rows::{few_rows, few_rows_added};
pub(super) use gated::gated;
pub(super) use rms_norm::rms_norm;

use burn_cubecl::kernel::into_contiguous;
pub(super) use kvsharer_core::gpu_common::runs_on;
use kvsharer_core::gpu_common::{CubeTensor, address, grid, known, width};

/// A matrix whose rows have their elements side by side; most have already.
fn in_rows(matrix: CubeTensor) -> CubeTensor {
    match matrix.meta.strides()[1] {
        1 => matrix,
        _ => into_contiguous(matrix),
    }
}
