//! Access to a GGUF file's metadata by key.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::ImportError;
use super::cursor::Cursor;
use super::value::{FromValue, Kind, Value};

/// Where a value lies in the file, and what it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) kind: Kind,
    pub(super) at: usize,
}

/// The metadata of a GGUF file: keys like `llama.block_count` and typed values.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    pub(super) path: &'a Path,
    pub(super) bytes: &'a [u8],
    pub(super) entries: &'a BTreeMap<String, Stored>,
}

impl<'a> Metadata<'a> {
    /// The file, for messages.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().map(String::as_str)
    }

    /// A value of any kind; `None` if the key is absent.
    ///
    /// # Errors
    ///
    /// Only if the file was changed since it was opened.
    pub fn value(&self, key: &str) -> Result<Option<Value<'a>>, ImportError> {
        let read = |stored: &Stored| {
            let mut cursor = Cursor::at_offset(self.path, self.bytes, stored.at);
            Value::read(&mut cursor, stored.kind, key)
        };
        self.entries.get(key).map(read).transpose()
    }

    /// A value as a `u32`, `f32`, `bool`, `&str`, `Vec<&str>` …; `None` if the key is absent.
    ///
    /// # Errors
    ///
    /// [`ImportError::BadMetadata`] if the value is there and is something else, or out of range.
    pub fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, ImportError> {
        let Some(value) = self.value(key)? else {
            return Ok(None);
        };
        match T::from_value(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad(key, T::EXPECTED, &value.to_string())),
        }
    }

    /// A value that the model cannot do without.
    ///
    /// # Errors
    ///
    /// [`ImportError::BadMetadata`] if the key is absent or its value is something else.
    pub fn require<T: FromValue<'a>>(&self, key: &str) -> Result<T, ImportError> {
        self.get(key)?.ok_or_else(|| self.bad(key, T::EXPECTED, "nothing"))
    }

    /// The error for a value that is not what it should be.
    pub fn bad(&self, key: &str, expected: &'static str, found: &str) -> ImportError {
        ImportError::BadMetadata { path: self.path.to_owned(), key: key.to_owned(), expected, found: found.to_owned() }
    }
}
