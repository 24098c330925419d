//! A reading position in a file's bytes that never goes past their end.

use std::path::Path;

use super::super::{Fault, ImportError};

/// The longest name or key that the format allows, in bytes.
const LONGEST_NAME: u64 = u16::MAX as u64;

/// Reads little-endian values one after the other.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first of `bytes`; `path` is for messages.
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self::at_offset(path, bytes, 0)
    }

    /// Starts somewhere in `bytes`, at their end at the latest.
    pub(super) fn at_offset(path: &'a Path, bytes: &'a [u8], at: usize) -> Self {
        let at = at.min(bytes.len());
        Self { path, bytes, at }
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], ImportError> {
        self.check_left(count, 1, what)?;
        // The check has shown that count is at most a slice's length.
        let end = self.at + count as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Refuses a count of things that cannot fit into what is left, each of `size` bytes or more.
    /// To be called before anything is allocated for them.
    pub(super) fn check_left(&self, count: u64, size: u64, what: &str) -> Result<(), ImportError> {
        let left = (self.bytes.len() - self.at) as u64;
        let needed = count.saturating_mul(size);
        if needed > left {
            return Err(ImportError::Truncated { path: self.path.to_owned(), what: what.to_owned(), needed, left });
        }
        Ok(())
    }

    /// The next `N` bytes as an array, for `from_le_bytes`.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ImportError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    /// The next 32-bit number.
    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ImportError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// The next 64-bit number.
    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ImportError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The next string: its length in 64 bits, then its UTF-8 bytes.
    pub(super) fn str(&mut self, what: &str) -> Result<&'a str, ImportError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.broken(what, Fault::NotUtf8))
    }

    /// The next string, of a length that is proper for a name.
    pub(super) fn name(&mut self, what: &str) -> Result<&'a str, ImportError> {
        let name = self.str(what)?;
        let bytes = name.len() as u64;
        if bytes > LONGEST_NAME {
            let limit = LONGEST_NAME;
            return Err(self.broken(what, Fault::NameTooLong { bytes, limit }));
        }
        Ok(name)
    }

    /// The error for something wrong at a place in this file.
    pub(super) fn broken(&self, place: &str, fault: Fault) -> ImportError {
        ImportError::Broken { path: self.path.to_owned(), place: place.to_owned(), fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(bytes: &[u8]) -> Cursor<'_> {
        Cursor::new(Path::new("x.gguf"), bytes)
    }

    #[test]
    fn reads_numbers_and_strings_in_order() {
        let mut cursor = cursor(b"\x01\x02\0\0\x02\0\0\0\0\0\0\0hi");
        assert_eq!(cursor.u32("a").unwrap(), 0x201);
        assert_eq!(cursor.str("b").unwrap(), "hi");
        assert_eq!(cursor.at(), 14);
        assert!(matches!(cursor.u32("the end"), Err(ImportError::Truncated { needed: 4, left: 0, .. })));
    }

    #[test]
    fn absurd_lengths_and_foreign_bytes_are_refused() {
        let error = cursor(&[0xff; 12]).str("name").unwrap_err();
        assert!(matches!(error, ImportError::Truncated { needed: u64::MAX, left: 4, .. }));
        assert!(cursor(&[0; 8]).check_left(u64::MAX, u64::MAX, "list").is_err());
        let error = cursor(b"\x01\0\0\0\0\0\0\0\xff").str("name").unwrap_err();
        assert!(matches!(error, ImportError::Broken { fault: Fault::NotUtf8, .. }));
    }

    #[test]
    fn names_have_a_limit() {
        let mut bytes = 65536u64.to_le_bytes().to_vec();
        bytes.resize(8 + 65536, b'n');
        assert!(cursor(&bytes).str("a").is_ok());
        assert!(matches!(cursor(&bytes).name("a"), Err(ImportError::Broken { fault: Fault::NameTooLong { .. }, .. })));
    }
}
