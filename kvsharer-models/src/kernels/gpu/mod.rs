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

use burn::backend::{DispatchDevice, tensor::FloatTensor};
use burn::tensor::{DType, Device};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::client::Client;
use cubecl::prelude::{AddressType, CubeCount};

type CubeTensor = FloatTensor<CubeBackend>;

/// Whether a device runs CubeCL's kernels.
pub(super) fn runs_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// Whether the kernels have a dtype.
fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// A matrix whose rows have their elements side by side; most have already.
fn in_rows(matrix: CubeTensor) -> CubeTensor {
    match matrix.meta.strides()[1] {
        1 => matrix,
        _ => into_contiguous(matrix),
    }
}

/// Elements that one load takes, of `size` bytes each: those of 16 bytes, if that divides all `lengths`.
fn width(client: &Client, size: usize, lengths: &[usize]) -> usize {
    let fits = |width: &usize| lengths.iter().all(|length| length % width == 0);
    client.io_optimized_vector_sizes(size).find(fits).unwrap_or(1)
}

/// The type that addresses all elements of each of these.
fn address(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// A grid of at least `cubes` in its first two axes, whose lengths devices limit.
fn grid(cubes: usize, depth: usize) -> CubeCount {
    let across = cubes.min(1 << 15);
    CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, depth as u32)
}
