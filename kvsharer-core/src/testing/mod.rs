//! A conformance suite for backends and policies, and what it is made of (feature `testing`).
//!
//! A [`Case`] runs something of this workspace on a [`Subject`] (a device, and the dtype of what is stored and attended)
//! and measures how far it is from a reference, which is computed on the host in f64 where that is feasible. It reports
//! and never panics. [`suite`] is this crate's part; kvsharer-compress adds every policy and kvsharer-models every model
//! family, each in its own `testing`. [`policy_cases`] makes cases of any policy.
//!
//! ```
//! use burn::tensor::{DType, Device};
//! use kvsharer_core::testing::{Subject, Verdict, suite};
//!
//! let subject = Subject::new(Device::flex(), DType::F32);
//! for case in suite().iter().take(3) {
//!     let outcome = case.run(&subject);
//!     assert_eq!(outcome.verdict, Verdict::Passed, "{outcome}");
//! }
//! ```

mod attention;
mod caching;
mod case;
#[cfg(feature = "gpu-kernels")]
mod gpu;
mod host;
mod mirror;
mod policies;
mod quantising;
mod reference;
mod searching;
mod storing;
mod toy;

pub use case::{Case, Measured, Outcome, Subject, Tolerance, Unmeasured, Verdict, failures};
#[cfg(feature = "gpu-kernels")]
pub use gpu::gpu;
pub use host::{host, kept_tokens, largest, worst};
pub use mirror::Mirror;
pub use policies::{follow, policy_cases};
pub use quantising::{bound_used, rounding};
pub use searching::compare_trials;
pub use toy::{ToyModel, max_difference, toy_tokens};

/// Store, plan, attention with and without evidence, windows, sharing, quantised storage and search.
pub fn suite() -> Vec<Case> {
    [attention::cases(), storing::cases(), quantising::cases(), caching::cases(), searching::cases()]
        .into_iter()
        .flatten()
        .collect()
}
