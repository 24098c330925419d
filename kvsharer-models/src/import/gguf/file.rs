//! A GGUF file as a source of tensors.

use std::path::Path;

use super::super::mmap::MappedFile;
use super::super::source::missing;
use super::super::{ImportError, TensorBytes, TensorInfo, TensorSource};
use super::header::Header;
use super::metadata::Metadata;

/// An open GGUF file. Its tensors are dequantised one by one, when they are loaded.
#[derive(Debug)]
pub struct GgufFile {
    file: MappedFile,
    header: Header,
}

impl GgufFile {
    /// Opens a GGUF file and checks its header: all that lies before the tensors' values.
    ///
    /// # Errors
    ///
    /// [`ImportError::Io`], [`ImportError::NotAModel`] for another kind of file, and
    /// [`ImportError::Truncated`], [`ImportError::Broken`] or [`ImportError::UnsupportedDtype`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImportError> {
        let file = MappedFile::open(path.as_ref())?;
        let header = Header::parse(file.path(), &file)?;
        Ok(Self { file, header })
    }

    /// The file's metadata.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { path: self.file.path(), bytes: &self.file, entries: &self.header.entries }
    }
}

impl TensorSource for GgufFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<&str> {
        self.header.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name).map(|tensor| &tensor.info)
    }

    fn raw(&self, name: &str) -> Result<TensorBytes<'_>, ImportError> {
        let tensor = self.header.tensors.get(name).ok_or_else(|| missing(name, self.path()))?;
        Ok(TensorBytes::borrowed(&self.file[tensor.bytes.clone()]))
    }
}
