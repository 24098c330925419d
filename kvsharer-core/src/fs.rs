//! Files that are either absent, old, or complete when they are written, and not too large when they are read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use tempfile::{NamedTempFile, TempDir};

/// Reads a file of at most `most` bytes: one that cannot be what it is read as is refused before it fills the memory.
///
/// # Errors
/// Whatever the system says, or that the file has more bytes.
pub fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let too_large =
        || Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("has more than {most} bytes: it is another file")));
    let file = File::open(path)?;
    if file.metadata()?.len() > most {
        return too_large();
    }
    let mut bytes = Vec::new();
    // A pipe does not say how long it is.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { too_large() } else { Ok(bytes) }
}

/// Names of temporary files.
const TEMPORARY: (&str, &str) = (".kvsharer-", ".part");

/// Writes a file so that no reader and no crash ever sees half of it: a temporary file beside it, flushed to disk,
/// then renamed over it. Temporary files that killed processes left in the folder are removed.
///
/// # Errors
/// Whatever the system says; the old file, if there was one, is untouched then and nothing is left behind.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Through a link, so that the link stays one; into a pipe or a device, which cannot be replaced.
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        return std::fs::write(path, bytes);
    }
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    remove_strays(folder);
    let mut file = temporary(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    // Temporary files are private; a result should be as readable as any other new file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// A new temporary folder in `parent`, for files that are to appear together: removed when it is dropped, and locked as
/// long as the file that comes with it is open. Folders that killed processes left are removed.
///
/// # Errors
/// Whatever the system says.
pub fn temporary_folder(parent: &Path) -> io::Result<(TempDir, Option<File>)> {
    remove_strays(parent);
    loop {
        let folder = tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempdir_in(parent)?;
        // Where a folder cannot be locked, strays stay.
        let lock = File::open(folder.path()).ok().filter(|folder| folder.lock().is_ok());
        if folder.path().exists() {
            return Ok((folder, lock));
        }
    }
}

/// A new temporary file, locked as long as it is open. Where the file system has no locks, strays stay.
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempfile_in(folder)?;
        let _ = file.as_file().lock();
        // Another process may have taken it for a stray before it was locked.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes temporary files and folders that no process holds; what fails is left for the next time.
fn remove_strays(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let temporary = name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1);
        if temporary
            && let Ok(kind) = entry.file_type()
            && (kind.is_file() || kind.is_dir())
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let path = entry.path();
            let _ = if kind.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strays_are_removed_and_files_in_work_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let stray = folder.path().join(".kvsharer-dead.part");
        std::fs::write(&stray, "half").unwrap();
        std::fs::write(folder.path().join(".kvsharer-other"), "precious").unwrap();
        let stray_folder = folder.path().join(".kvsharer-half.part");
        std::fs::create_dir(&stray_folder).unwrap();
        std::fs::write(stray_folder.join("a"), "half").unwrap();
        let live = temporary(folder.path()).unwrap();
        let (live_folder, _lock) = temporary_folder(folder.path()).unwrap();
        write_atomically(&folder.path().join("a"), b"whole").unwrap();
        assert!(live.path().exists() && !stray.exists());
        assert!(live_folder.path().exists() && !stray_folder.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn larger_files_than_expected_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"12345");
        assert!(read_at_most(&path, 4).unwrap_err().to_string().contains("more than 4 bytes"));
    }
}
