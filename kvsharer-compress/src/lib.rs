//! KV cache compressors within a layer, each composing with sharing across layers.
//!
//! Every method is one file with one small policy, named after its paper; [`policies`] lists them and
//! [`parse_policy`] makes them from SPECs. All are [`LayerKvPolicy`](kvsharer_core::LayerKvPolicy)s and go into a
//! [`Stack`](kvsharer_core::Stack) beside a sharing map: donor and readers of a cache keep the same tokens.
//!
//! # Composing a policy
//!
//! A stack is what a cache does: who reads whose cache, what is evicted, how it is stored. Each question has one answer
//! for a slot; two members that answer the same one are an error of the plan, before anything is allocated.
//!
//! ```
//! use kvsharer_compress::parse_policy;
//! use kvsharer_core::{KvShape, LayerKvPolicy, Lengths, ModelShape, Plan, PlanError, Sharing, Stack};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelShape::uniform(30, KvShape::new(3, 64)); // 30 layers, 3 key-value heads of 64 channels
//! let sharing = || Sharing::both([(20, 10), (21, 10)]); // layers 20 and 21 read layer 10's keys and values
//!
//! // Policies come from SPECs, as typed on the command line, or are made by hand; boxes and references are policies too.
//! let h2o: Box<dyn LayerKvPolicy> = parse_policy("h2o:heavy=64,recent=63")?;
//! let stack = Stack::new().with(sharing()?).with(h2o).with(parse_policy("quant:bits=8")?);
//! println!("{}", stack.names().join(" + "));
//!
//! // Donor and readers keep the same tokens: they are one group, which evicts after its last reader.
//! let plan = Plan::new(&model, &stack)?;
//! assert_eq!(plan.groups().len(), 28);
//! assert_eq!(plan.groups()[10].last_reader().0, 21);
//! let lengths = Lengths::new(1024, 1536); // a prompt of 1,024 tokens, 512 generated
//! let full = Plan::new(&model, &Stack::new())?;
//! assert!(plan.bytes(1, lengths, 2) < full.bytes(1, lengths, 2) / 8);
//!
//! // Two evictors of one slot clash.
//! let both = Stack::new().with(parse_policy("tova:budget=64")?).with(parse_policy("window:budget=64")?);
//! assert!(matches!(Plan::new(&model, &both), Err(PlanError::TwoEvictors { .. })));
//! # Ok(())
//! # }
//! ```
//!
//! `kvsharer_core::Cache::new` takes the same stack and carries it out; `Decoder::cache` of `kvsharer-models` does so for
//! a real model. A method that scores tokens is a [`Method`] of some twenty lines, which [`Scored`] makes a policy of:
//! `examples/custom_policy.rs` has one, beside a sharing map. Anything else implements
//! [`LayerKvPolicy`](kvsharer_core::LayerKvPolicy) itself, as the example of `kvsharer-core` does.
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
