//! A GPU to test kernels on.

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};
use std::panic::catch_unwind;

/// The GPU that burn takes by default; `None` if this machine has none, which burn tells by a panic.
pub fn gpu() -> Option<Device> {
    let device = catch_unwind(|| {
        let device = Device::default();
        Tensor::<1>::zeros([1], &device).into_data();
        device
    });
    device.ok().filter(|device| matches!(device.as_dispatch(), DispatchDevice::Cube(_)))
}
