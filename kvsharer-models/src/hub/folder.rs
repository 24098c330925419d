//! A repository in the cache: `refs/REVISION` names a commit, `snapshots/COMMIT/FILE` links to `blobs/ETAG`.

use super::reference::is_commit;
use super::select::{INDEX, SINGLE, shards};
use super::{HubError, HubReference, HubSettings, RepositoryKind};
use hf_hub::{Cache, Repo, RepoType};
use kvsharer_core::write_atomically;
use std::path::{Path, PathBuf};

pub(super) struct RepositoryFolder {
    cache: Cache,
    repo: Repo,
}

impl RepositoryFolder {
    pub(super) fn new(settings: &HubSettings, reference: &HubReference) -> Self {
        let kind = match reference.kind {
            RepositoryKind::Model => RepoType::Model,
            RepositoryKind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(reference.repository.clone(), kind, reference.revision.clone());
        Self { cache: Cache::new(settings.cache.clone()), repo }
    }

    fn path(&self) -> PathBuf {
        self.cache.path().join(self.repo.folder_name())
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.path().join("blobs").join(etag)
    }

    /// What a process holds while it writes a blob.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.cache.path().join(".locks").join(self.repo.folder_name()).join(format!("{etag}.lock"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    /// The commit that the revision meant when it was last looked up.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(self.repo.revision()) {
            return Some(self.repo.revision().into());
        }
        let commit = std::fs::read_to_string(self.path().join("refs").join(self.repo.revision())).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit the revision means.
    pub(super) fn remember(&self, commit: &str) -> Result<(), HubError> {
        if is_commit(self.repo.revision()) {
            return Ok(());
        }
        let path = self.path().join("refs").join(self.repo.revision());
        let io = |source| HubError::Io { path: path.clone(), source };
        create_parent(&path)?;
        write_atomically(&path, commit.as_bytes()).map_err(io)
    }

    /// Gives a blob its name in a snapshot.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<(), HubError> {
        let (blob, pointer) = (self.blob(etag), self.snapshot(commit).join(file));
        create_parent(&pointer)?;
        let ups = file.split('/').count() + 1;
        let relative: PathBuf = std::iter::repeat_n("..", ups).chain(["blobs", etag]).collect();
        match link(&relative, &blob, &pointer) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(HubError::Io { path: pointer, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a folder has all weights of a model, which come last.
pub(super) fn is_complete(folder: &Path) -> bool {
    if !folder.join("config.json").exists() {
        return false;
    }
    let index = || shards(&std::fs::read(folder.join(INDEX)).ok()?);
    folder.join(SINGLE).exists() || index().is_some_and(|shards| shards.iter().all(|shard| folder.join(shard).exists()))
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|source| HubError::Io { path: folder.into(), source })
}

#[cfg(unix)]
fn link(relative: &Path, _: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

/// Links need rights that few users have there.
#[cfg(not(unix))]
fn link(_: &Path, blob: &Path, pointer: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, pointer)
}
