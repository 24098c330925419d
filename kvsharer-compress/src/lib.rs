//! KV cache compressors within a layer, each composing with sharing across layers.
//!
//! Every method is one file with one small policy, named after its paper; [`policies`] lists them and
//! [`parse_policy`] makes them from SPECs. All are [`LayerKvPolicy`](kvsharer_core::LayerKvPolicy)s and go into a
//! [`Stack`](kvsharer_core::Stack) beside a sharing map: donor and readers of a cache keep the same tokens.
//!
//! The README says what each keeps and costs, what was measured, and how to add one in 6 steps.
#![forbid(unsafe_code)]

mod amounts;
mod budgeted;
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
#[cfg(feature = "testing")]
pub mod testing;
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

/// Compiles and runs what the README shows.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
