//! Kernels for GPUs in CubeCL, each as one operation that burn's fusion leaves whole.

// Buffers, their layouts and sizes: a kernel has many arguments.
#![allow(clippy::too_many_arguments)]

mod attend_many;
mod attend_one;
mod attend_part;
mod attend_tile;
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

use burn::backend::{DispatchDevice, tensor::FloatTensor};
use burn::tensor::{DType, Device};
use burn_cubecl::CubeBackend;
use cubecl::client::Client;
use cubecl::prelude::AddressType;

type CubeTensor = FloatTensor<CubeBackend>;

/// Whether a device runs CubeCL's kernels.
pub(super) fn runs_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// Whether the kernels have a dtype.
fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
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
