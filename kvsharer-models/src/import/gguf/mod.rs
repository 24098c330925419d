//! GGUF, the file format of llama.cpp: one file with metadata, a tokenizer and quantised tensors.
//!
//! Versions 2 and 3, little-endian. The format is described at
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod dequant;
mod file;
mod header;
mod metadata;
mod value;

pub use dequant::dequantize;
pub use file::GgufFile;
pub use metadata::Metadata;
pub use value::{Array, FromValue, Kind, Value};
