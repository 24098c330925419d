//! The conformance suite on the CPU.

use burn::tensor::{DType, Device};
use kvsharer_core::testing::{Subject, failures};
use kvsharer_models::testing::suite;

#[test]
fn the_cpu_conforms_in_every_dtype() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let failed = failures(&suite(), &Subject::new(Device::flex(), dtype));
        assert!(failed.is_empty(), "{dtype:?}:\n{}", failed.join("\n"));
    }
}
