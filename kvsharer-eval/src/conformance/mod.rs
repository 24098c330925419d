//! Conformance of a device: the suites of the other crates, and a real model against itself on another device.

mod model;

use kvsharer_core::testing::Case;
pub use model::{ModelText, model_cases};

/// Every case that needs no model from a file.
pub fn suite() -> Vec<Case> {
    let parts =
        [kvsharer_core::testing::suite(), kvsharer_compress::testing::suite(), kvsharer_models::testing::suite()];
    parts.into_iter().flatten().collect()
}
