//! Whether a file is the one that the hub promised.

use kvsharer_core::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What an etag of the hub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EtagKind {
    /// The SHA-256 of a large file.
    Sha256,
    /// Git's SHA-1 of a small file, that of `blob SIZE\0` and the file.
    GitBlob,
    /// Something of a mirror's own, which cannot be checked.
    Other,
}

impl EtagKind {
    pub(super) fn of(etag: &str) -> Self {
        match etag.len() {
            _ if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) => Self::Other,
            64 => Self::Sha256,
            40 => Self::GitBlob,
            _ => Self::Other,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "its SHA-256",
            Self::GitBlob => "its Git hash",
            Self::Other => "its hash",
        }
    }

    /// The hash of a file; `None` if it cannot be compared.
    pub(super) fn hash(self, path: &Path) -> io::Result<Option<String>> {
        let mut file = File::open(path)?;
        match self {
            Self::Sha256 => digest::<Sha256>(Sha256::new(), &mut file).map(Some),
            Self::GitBlob => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {}\0", file.metadata()?.len()));
                digest(hasher, &mut file).map(Some)
            }
            Self::Other => Ok(None),
        }
    }
}

fn digest<D: Digest>(mut hasher: D, file: &mut File) -> io::Result<String> {
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&block[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `git hash-object` and `sha256sum` give them.
    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        for hash in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            assert_eq!(EtagKind::of(hash).hash(file.path()).unwrap().as_deref(), Some(hash));
        }
        assert_eq!(EtagKind::of("33a64df5-5").hash(file.path()).unwrap(), None);
    }
}
