//! The conformance suite on the CPU.

use burn::tensor::{DType, Device};
use kvsharer_core::testing::{Subject, failures};
use kvsharer_models::testing::suite;

#[test]
fn the_cpu_conforms_in_every_dtype() {
    let run = |dtype| (dtype, failures(&suite(), &Subject::new(Device::flex(), dtype)));
    let failed: Vec<_> = [DType::F32, DType::F16, DType::BF16].map(run).into();
    assert!(failed.iter().all(|(_, failed)| failed.is_empty()), "{failed:#?}");
}
