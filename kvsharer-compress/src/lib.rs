//! KV cache compressors within a layer, each composing with sharing across layers.
//!
//! Every method is one file with one small policy, named after its paper; [`policies`] lists them and
//! [`parse_policy`] makes them from SPECs. All are [`LayerKvPolicy`](kvsharer_core::LayerKvPolicy)s and go into a
//! [`Stack`](kvsharer_core::Stack) beside a sharing map: donor and readers of a cache keep the same tokens.
//!
//! Add a method: (1) a file with a struct and its policy, (2) an `ENTRY` beside it, (3) a line in `registry.rs`,
//! (4) a row in the matrix of `tests/composition.rs`, (5) a row in the README.
#![forbid(unsafe_code)]

mod amounts;
mod h2o;
mod knorm;
mod options;
mod pyramidinfer;
mod pyramidkv;
mod quant;
mod random;
mod registry;
mod scored;
mod select;
mod snapkv;
mod spec;
mod streaming_llm;
mod tova;

pub use amounts::{Amount, Amounts};
pub use h2o::H2o;
pub use knorm::Knorm;
pub use pyramidinfer::PyramidInferCache;
pub use pyramidkv::PyramidKv;
pub use quant::Quant;
pub use random::Random;
pub use registry::{Entry, common_options, parse_policy, policies, with_budget};
pub use scored::{Decode, Method, Options, Readers, Reduction, Scored};
pub use snapkv::{Pool, SnapKv};
pub use spec::{Spec, SpecError};
pub use streaming_llm::StreamingLlm;
pub use tova::Tova;
