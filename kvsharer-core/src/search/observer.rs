//! Looking on while a search runs.

use super::{Draft, Trial};
use crate::LayerMap;

/// What a search tells while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The trial just judged.
    pub trial: &'a Trial,
    /// The draft after it.
    pub draft: &'a Draft,
    /// Bytes saved so far over bytes to save, at most 1.
    pub reached: f64,
    /// The same with the part of the running step that is done.
    pub done: f64,
    /// Trials so far.
    pub trials: usize,
}

impl Progress<'_> {
    /// Who reads whose keys (or values, if only those are shared).
    pub fn map(&self) -> &LayerMap {
        let sharing = self.draft.sharing();
        if sharing.keys().is_empty() { sharing.values() } else { sharing.keys() }
    }
}

/// Who looks on while a search runs, and may remember trials of an earlier, interrupted run. Closures over
/// [`Progress`] only look on.
pub trait Observer {
    /// Called after every trial, and again for a trial that is accepted after others were tried.
    fn watch(&mut self, progress: Progress<'_>);

    /// The loss of a trial that was judged before, and whether that was the whole of it.
    fn recall(&mut self, key: &str) -> Option<(f64, bool)> {
        let _ = key;
        None
    }

    /// Keeps the loss of a trial.
    ///
    /// # Errors
    /// What went wrong; the search stops.
    fn keep(&mut self, key: &str, loss: f64, whole: bool) -> Result<(), String> {
        let _ = (key, loss, whole);
        Ok(())
    }
}

impl<F: FnMut(Progress<'_>)> Observer for F {
    fn watch(&mut self, progress: Progress<'_>) {
        self(progress);
    }
}
