//! Decoder-only language models on burn, blind to who keeps their KV cache.
//!
//! [`open_model`] turns a name, a folder or a file into [`ModelFiles`]; [`ModelFiles::load`] gives a [`Decoder`], whose
//! attention goes through a [`kvsharer_core::Cache`] under any stack of policies; [`generate`](fn@generate) continues a
//! prompt, [`chat`] talks. A model family is one file in [`family`].
//!
//! No backend is named here: the caller brings the burn `Device`.

mod attention;
mod catalogue;
pub mod chat;
mod config;
mod decoder;
mod error;
mod export;
pub mod family;
mod fetch;
mod files;
mod fold;
mod generate;
pub mod hub;
pub mod import;
mod kernels;
mod linear;
mod mlp;
mod norm;
mod placement;
mod random;
mod rope;
mod sample;
#[cfg(feature = "testing")]
pub mod testing;

pub use attention::Attention;
pub use catalogue::{
    CatalogueEntry, DEFAULT_MODEL, catalogue, fetch_model, fetched, open_local, open_model, verify_model,
};
pub use config::DecoderConfig;
pub use decoder::{BareLayer, Decoder, DecoderLayer};
pub use error::ModelError;
pub use export::ExportError;
pub use fetch::home;
pub use files::{Dtypes, ModelFiles};
pub use generate::{DeviceLoop, GenerateOptions, Generated, Stopped, generate, generate_batch, generate_from};
pub use import::ModelTokenizer;
pub use linear::Linear;
pub use mlp::{Activation, Mlp};
pub use norm::RmsNorm;
pub use placement::{Placement, PlacementError};
pub use random::{random_config, random_shapes};
pub use rope::{RopeConfig, RopeScaling};
pub use sample::{Sampler, Sampling};
