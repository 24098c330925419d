//! wip
#![forbid(unsafe_code)]
#![deny(missing_docs)]
mod attend;
mod cache;
mod calibrate;
mod distance;
mod fs;
mod gate;
mod replay;
mod search;
mod strategy;
mod error;
mod ids;
mod plan;
mod policy;
mod rope;
mod shape;
mod sharing;
mod stack;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub use attend::*;
pub use cache::*;
pub use error::*;
pub use ids::*;
pub use plan::*;
pub use policy::*;
pub use rope::*;
pub use shape::*;
pub use sharing::*;
pub use stack::*;
pub use calibrate::*;
pub use distance::*;
pub use fs::*;
pub use gate::*;
pub use replay::SearchModel;
pub use search::*;
pub use store::Store;
pub use strategy::*;
