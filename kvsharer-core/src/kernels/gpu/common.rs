//! What the kernels of this workspace need to be launched; not part of the interface of this crate.

use burn::backend::{DispatchDevice, tensor::FloatTensor};
use burn::tensor::{DType, Device};
use burn_cubecl::CubeBackend;
use cubecl::client::Client;
use cubecl::prelude::{AddressType, CubeCount};

/// A tensor on a device that runs CubeCL's kernels.
pub type CubeTensor = FloatTensor<CubeBackend>;

/// Whether a device runs CubeCL's kernels.
pub fn runs_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// Whether the kernels have a dtype.
pub fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Elements that one load takes, of `size` bytes each: those of 16 bytes, if that divides all `lengths`.
pub fn width(client: &Client, size: usize, lengths: &[usize]) -> usize {
    let fits = |width: &usize| lengths.iter().all(|length| length % width == 0);
    client.io_optimized_vector_sizes(size).find(fits).unwrap_or(1)
}

/// The type that addresses all elements of each of these.
pub fn address(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

/// A grid of at least `cubes` in its first two axes, whose lengths devices limit.
pub fn grid(cubes: usize, depth: usize) -> CubeCount {
    let across = cubes.min(1 << 15);
    CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, depth as u32)
}
