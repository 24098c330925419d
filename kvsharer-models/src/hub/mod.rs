//! Models and data sets of the Hugging Face hub, in the cache that its other programs share.
//!
//! The `hf-hub` crate gives the layout of the cache. Its downloads are not used: version 0.5 checks no hash, appends a
//! whole file to the half of one when a server ignores ranges, and knows neither HF_HUB_OFFLINE nor 429 (version 1.0
//! brings an async runtime and some 250 crates). Ours are a few small files here, over `ureq`.
//!
//! A file is downloaded as `blobs/ETAG.incomplete` under a lock, its size and hash are checked, and only then it gets
//! its name; what was downloaded before a connection broke is kept and gone on from. `huggingface_hub` names and locks
//! the same files, so that both may fetch the same model at once.

mod client;
mod download;
mod error;
mod fetch;
mod folder;
mod reference;
mod select;
mod settings;
mod verify;

pub use error::HubError;
pub use fetch::{Hub, HubProgress};
pub use reference::{HubReference, RepositoryKind};
pub use settings::HubSettings;
