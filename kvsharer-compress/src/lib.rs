//! KV cache compressors within a layer, each composing with sharing across layers.
//!
//! Every method is one file with one small policy, named after its paper; [`policies`] lists them and
//! [`parse_policy`] makes them from SPECs. All are [`LayerKvPolicy`](kvsharer_core::LayerKvPolicy)s and go into a
//! [`Stack`](kvsharer_core::Stack) beside a sharing map: donor and readers of a cache keep the same tokens.
//!
//! Add a method: (1) a file with a struct and its policy, (2) an `ENTRY` beside it, (3) a line in `registry.rs`,
//! (4) a row in the matrix of `tests/composition.rs`, (5) a row in the README.
#![forbid(unsafe_code)]

mod registry;
mod spec;
mod streaming_llm;

pub use registry::{Entry, parse_policy, policies};
pub use spec::{Spec, SpecError};
pub use streaming_llm::StreamingLlm;
