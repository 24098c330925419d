//! Reading models from disk: tensors from safetensors folders and GGUF files, and their tokenizers.
//!
//! [`TensorSource`] is what the rest of the crate sees of a file; [`SafetensorsFolder`] and
//! [`GgufFile`] implement it, and [`ModelTokenizer`] is read from a `tokenizer.json` or from GGUF
//! metadata. Files are untrusted: a broken one gives an [`ImportError`], never a panic.

mod error;
pub mod gguf;
mod mmap;
mod safetensors;
mod source;
mod tokenizer;

pub use error::{Fault, ImportError, TokenizerFault};
pub use gguf::GgufFile;
pub use safetensors::SafetensorsFolder;
pub use source::{SourceDtype, TensorBytes, TensorInfo, TensorSource, load_shaped};
pub use tokenizer::{AddedPiece, DecodeStream, ModelTokenizer};
