//! What a search has judged so far, on the disk: a search that was killed goes on from there.

use crate::EvalError;
use kvsharer_core::{Observer, Progress};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One line: the search that the file belongs to, or a trial of it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Search { search: String },
    Trial { key: String, loss: f64, whole: bool },
}

/// A file of judged trials. A search is deterministic: run again, it asks for the same trials in the same order and
/// finds them here, so that at most the one that was in work is lost.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    known: HashMap<String, (f64, bool)>,
    written: usize,
}

impl Journal {
    /// Opens the journal of the search called `search` (a hash of all it depends on). One of another search is begun
    /// anew; an incomplete last line is cut off. `None` while another process writes it: two searches into one file do
    /// not share a journal.
    ///
    /// # Errors
    /// [`EvalError::Io`] if the file cannot be read or written.
    pub fn open(path: &Path, search: &str) -> Result<Option<Self>, EvalError> {
        let io = |source| EvalError::Io { path: path.into(), source };
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io)?;
        let mut known = HashMap::new();
        let (mut kept, mut ours) = (0, false);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            match serde_json::from_slice(line).ok().filter(|_| line.ends_with(b"\n")) {
                Some(Line::Search { search: found }) if kept == 0 && found == search => ours = true,
                Some(Line::Trial { key, loss, whole }) if ours => drop(known.insert(key, (loss, whole))),
                _ => break,
            }
            kept += line.len();
        }
        file.set_len(kept as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let mut journal = Self { path: path.into(), file, known, written: 0 };
        if !ours && let Err(error) = journal.append(&Line::Search { search: search.into() }) {
            // Most likely a full disk, which keeps nothing of a line.
            let _ = std::fs::remove_file(path);
            return Err(io(error));
        }
        Ok(Some(journal))
    }

    /// Trials that were judged before.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing was judged, before or now.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.written == 0
    }

    /// Removes the file of a finished search.
    ///
    /// # Errors
    /// [`EvalError::Io`] if that fails.
    pub fn remove(self) -> Result<(), EvalError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(EvalError::Io { path: self.path, source: error })
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, line: &Line) -> std::io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)
    }
}

/// A [`Journal`] with someone who looks on.
pub struct Journaled<'a, F> {
    /// The journal, if one is kept.
    pub journal: Option<&'a mut Journal>,
    /// Who looks on.
    pub watch: F,
}

impl<F: FnMut(Progress<'_>)> Observer for Journaled<'_, F> {
    fn watch(&mut self, progress: Progress<'_>) {
        (self.watch)(progress);
    }

    fn recall(&mut self, key: &str) -> Option<(f64, bool)> {
        self.journal.as_ref().and_then(|journal| journal.known.get(key).copied())
    }

    fn keep(&mut self, key: &str, loss: f64, whole: bool) -> Result<(), String> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        // JSON has no NaN; such a search ends with an error anyway.
        if !loss.is_finite() {
            return Ok(());
        }
        let written = journal.append(&Line::Trial { key: key.into(), loss, whole });
        journal.written += 1;
        written.map_err(|error| format!("{}: {error}", journal.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_goes_on_after_a_cut_line_and_begins_anew_for_another_search() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.journal");
        let mut journal = Journal::open(&path, "a").unwrap().unwrap();
        assert!(Journal::open(&path, "a").unwrap().is_none(), "another process has it");
        let mut watched = Journaled { journal: Some(&mut journal), watch: |_: Progress<'_>| {} };
        watched.keep("x", 0.1 + 0.2, true).unwrap();
        watched.keep("y", 2.0, false).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        let mut journal = Journal::open(&path, "a").unwrap().unwrap();
        assert_eq!(journal.len(), 1);
        let mut watched = Journaled { journal: Some(&mut journal), watch: |_: Progress<'_>| {} };
        assert_eq!(watched.recall("x"), Some((0.1 + 0.2, true)));
        watched.keep("y", 2.0, false).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert!(Journal::open(&path, "b").unwrap().unwrap().is_empty());
    }
}
