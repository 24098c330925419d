//! A file mapped into memory for reading: the crate's only `unsafe`.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::ImportError;

/// A read-only file in memory; its bytes are paged in when they are first touched.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a regular file. A folder, a pipe or a device is refused before it is opened.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io { path: path.to_owned(), source };
        if !path.metadata().map_err(io)?.is_file() {
            return Err(ImportError::NotAModel { path: path.to_owned(), why: "it is not a regular file".to_owned() });
        }
        let file = File::open(path).map_err(io)?;
        let map = map_read_only(&file).map_err(io)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The path that was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[allow(unsafe_code)]
fn map_read_only(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the bytes are only read, and never as anything but `u8` before they are checked and
    // copied. What remains is that another process changes or shortens the file while it is
    // mapped; no program can rule that out, and every reader of weights by mapping (safetensors,
    // llama.cpp) asks the same of its user: leave a model's files alone while it is loaded.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_bytes_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.bin");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert_eq!(*MappedFile::open(&path).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn an_empty_file_has_no_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.bin");
        std::fs::write(&path, []).unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
    }

    #[test]
    fn folders_and_missing_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path| MappedFile::open(path).unwrap_err();
        assert!(matches!(open(folder.path()), ImportError::NotAModel { .. }));
        let missing = folder.path().join("missing");
        assert!(matches!(open(&missing), ImportError::Io { .. }));
    }
}
