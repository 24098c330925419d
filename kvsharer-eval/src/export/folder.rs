//! A folder that appears complete or not at all.

use super::ExportError;
use kvsharer_core::temporary_folder;
use std::fs::File;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary folder beside the one it is to become.
pub(super) struct Staged {
    temporary: TempDir,
    /// Says that this process is alive.
    _lock: Option<File>,
    output: PathBuf,
}

impl Staged {
    /// # Errors
    /// [`ExportError::NotEmpty`] for a folder with files unless `force`, [`ExportError::Io`] for what is no folder and
    /// where nothing can be written.
    pub(super) fn new(output: &Path, force: bool) -> Result<Self, ExportError> {
        let io = |source| ExportError::Io { path: output.into(), source };
        if output.exists() && !force && std::fs::read_dir(output).map_err(io)?.next().is_some() {
            return Err(ExportError::NotEmpty { path: output.into() });
        }
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (temporary, lock) = temporary_folder(parent).map_err(io)?;
        Ok(Self { temporary, _lock: lock, output: output.into() })
    }

    pub(super) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Makes a folder in it.
    pub(super) fn new_folder(&self, name: &str) -> Result<PathBuf, ExportError> {
        let path = self.path().join(name);
        std::fs::create_dir(&path).map_err(|source| ExportError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// Moves everything to where it belongs; gives the files, sorted.
    pub(super) fn commit(self) -> Result<Vec<PathBuf>, ExportError> {
        let io = |source| ExportError::Io { path: self.output.clone(), source };
        let mut files = Vec::new();
        collect(self.path(), Path::new(""), &mut files).map_err(io)?;
        files.sort();
        // On disk before they have their names: a crash must not leave an empty file that looks complete.
        for file in &files {
            let path = self.path().join(file);
            open_to_all(&path, 0o644).and_then(|()| std::fs::File::open(&path)?.sync_all()).map_err(io)?;
        }
        let new = match std::fs::read_dir(&self.output) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => true,
        };
        if new {
            open_to_all(self.path(), 0o755).map_err(io)?;
            // An empty folder is replaced.
            if self.output.exists() {
                std::fs::remove_dir(&self.output).map_err(io)?;
            }
            let temporary = self.temporary.keep();
            return match std::fs::rename(&temporary, &self.output) {
                Ok(()) => Ok(files),
                Err(error) => {
                    let _ = std::fs::remove_dir_all(&temporary);
                    Err(io(error))
                }
            };
        }
        for file in &files {
            let target = self.output.join(file);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).map_err(io)?;
            }
            std::fs::rename(self.path().join(file), &target)
                .map_err(|source| ExportError::Io { path: target.clone(), source })?;
        }
        Ok(files)
    }
}

/// Temporary files and folders are private; a result should be as readable as any other new one.
fn open_to_all(path: &Path, mode: u32) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    let _ = (path, mode);
    Ok(())
}

/// All files below a folder, relative to it.
fn collect(folder: &Path, below: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => collect(folder, &name, files)?,
            false => files.push(name),
        }
    }
    Ok(())
}
