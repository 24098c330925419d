//! Where a transformer layer's KV cache lives, and which tokens stay in it.
//!
//! KVSharer (arXiv 2410.18517) lets a layer read an earlier layer's keys and values instead of keeping its own. This
//! crate is the part of it that knows no model and names no backend:
//!
//! - [`LayerKvPolicy`] is the plugin trait; a [`Stack`] composes policies, [`Sharing`] applies a map of layers.
//! - [`Plan`] freezes a stack's answers for a model, validates them, and tells the exact bytes before anything runs.
//! - [`Cache`] carries a plan out. A model calls [`Attend::attend`] once for every layer and sees nothing else; a
//!   borrower's projections are never computed.
//! - [`search`](fn@search) finds a map for any [`SearchModel`], and [`Strategy`] is the file it is kept in.
//!
//! # A policy of your own
//!
//! One that keeps the last few tokens and goes into a stack beside a sharing map:
//!
//! ```
//! use burn::tensor::{Device, DType, Tensor};
//! use kvsharer_core::*;
//!
//! struct Newest(usize);
//!
//! impl LayerKvPolicy for Newest {
//!     fn name(&self) -> String {
//!         format!("newest:tokens={}", self.0)
//!     }
//!     fn budget(&self, _group: &Group) -> Option<Budget> {
//!         Some(self.0.into())
//!     }
//!     fn evict(&mut self, _group: &Group, state: &GroupState<'_>) -> Eviction {
//!         let excess = (state.len + state.incoming).saturating_sub(self.0);
//!         Eviction::Span { start: 0, end: excess.min(state.len) }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::flex();
//! let model = ModelShape::uniform(4, KvShape::new(2, 8)); // 4 layers, 2 key-value heads of 8 channels
//! let stack = Stack::new().with(Sharing::both([(3, 1)])?).with(Newest(6));
//! let options = CacheOptions { batch: 1, tokens: 100, prompt: None, dtype: DType::F32, rope: None };
//! let mut cache = Cache::new(&model, stack, options, &device)?;
//! for _token in 0..20 {
//!     cache.begin(1)?;
//!     for layer in model.ids() {
//!         let query = Tensor::ones([1, 4, 1, 8], &device); // 4 query heads
//!         let projection = || Tensor::ones([1, 2, 1, 8], &device); // not called for layer 3
//!         cache.attend(layer, query, projection, projection)?;
//!     }
//! }
//! assert_eq!(cache.bytes(), 3 * 2 * (2 * 6 * 8) * 4); // 3 owners, keys and values, 6 cells
//! # Ok(())
//! # }
//! ```
//!
//! # Testing a backend
//!
//! Nothing here names a backend: everything runs on whatever burn `Device` it is given, and the device decides how
//! right the results are. The feature `testing` has a toy model whose weights do not depend on the device, so that one
//! device can be held against another (the module's documentation does so).
// Kernels are launched without checks of each access; what they may touch is said where they are launched.
#![cfg_attr(not(feature = "gpu-kernels"), forbid(unsafe_code))]

mod adapter;
mod adapters;
mod attend;
mod budget;
mod cache;
mod calibrate;
mod error;
mod fs;
mod ids;
mod kernels;
mod packing;
mod plan;
mod policy;
mod quantised;
mod rope;
mod search;
mod shape;
mod sharing;
mod stack;
mod store;
mod strategy;
#[cfg(feature = "testing")]
pub mod testing;

pub use adapter::{Adapter, Mix, Turn, inverse};
pub use adapters::{AdapterFile, AdaptersError};
pub use attend::{Fresh, Hidden, MaskCache, Pass, Window, attend};
pub use budget::{Budget, Lengths};
pub use cache::{Attend, Cache, CacheOptions, KeptTokens, Steps};
pub use calibrate::{Averages, CalibrationError, CalibrationSet, hex};
pub use error::{CacheError, PlanError};
pub use fs::{read_at_most, temporary_folder, write_atomically};
pub use ids::{GroupId, LayerId, SlotId, axis};
#[cfg(feature = "cpu-kernels")]
#[doc(hidden)]
pub use kernels::exp;
#[cfg(feature = "gpu-kernels")]
#[doc(hidden)]
pub use kernels::gpu_common;
#[doc(hidden)]
pub use kernels::put_row;
pub use kernels::{allow_tf32, logit_stats, product};
pub use packing::Quantisation;
pub use plan::{Group, LayerSlots, Plan, Slot};
pub use policy::{
    EMPTY, Eviction, Evidence, EvidenceKind, FullCache, GroupState, Kv, LayerKvPolicy, PADDING, Positions, Route,
    Source, Storage,
};
pub use quantised::QuantisedBuffer;
pub use rope::{Rope, RopeTable};
pub use search::{
    Adjacent, Ask, Beam, Change, Distance, Draft, DropLayers, Fit, Fixed, Found, Gate, Greedy, Ground, LayerTypesError,
    Move, Objective, Observer, Order, Pair, Paper, Progress, Refine, Refit, SearchError, SearchModel, SearchOptions,
    SearchStrategy, Step, Strategies, Target, Trial, Units, Verdict, search,
};
pub use shape::{KvShape, ModelShape};
pub use sharing::{LayerMap, Sharing};
pub use stack::Stack;
pub use store::Store;
pub use strategy::{CalibrationRecord, Fingerprint, SearchRecord, Strategy, StrategyError};
