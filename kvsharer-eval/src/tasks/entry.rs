//! What a task is to those who run it: its files, its protocols, and the items a protocol makes of them.

use super::read::Reader;
use super::{Fault, Item, Row, TaskError};
use kvsharer_core::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};

/// Whose prompts and scoring rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// EleutherAI's lm-evaluation-harness.
    #[serde(rename = "lm-eval")]
    LmEval,
    /// OpenCompass, its perplexity mode (the KVSharer paper's harness).
    OpenCompass,
}

impl Protocol {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::LmEval => "lm-eval",
            Protocol::OpenCompass => "opencompass",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a protocol asks a task.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Examples that the protocol's own configuration shows.
    pub shots: usize,
    /// Metrics that the harness reports for the task.
    pub metrics: &'static [&'static str],
    /// The configuration these rules restate.
    pub source: &'static str,
    /// The item a row becomes; `None` for rows that the harness leaves out (without a gold label, say).
    pub(super) item: fn(&Row) -> Result<Option<Item>, Fault>,
}

impl Rules {
    /// Without examples.
    pub(super) const fn new(
        source: &'static str,
        metrics: &'static [&'static str],
        item: fn(&Row) -> Result<Option<Item>, Fault>,
    ) -> Self {
        Self { shots: 0, metrics, source, item }
    }
}

/// A task.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name on the command line and in results.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// Files it wants.
    pub files: &'static str,
    /// As lm-eval asks it.
    pub lm_eval: Option<Rules>,
    /// As OpenCompass asks it.
    pub opencompass: Option<Rules>,
    /// How those files are read.
    pub(super) reader: Reader,
}

/// What a task is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFiles {
    /// Items.
    pub items: PathBuf,
    /// Items for examples; where the benchmark has a place for them, that if `None`.
    pub dev: Option<PathBuf>,
    /// Examples; the protocol's own number if `None`.
    pub shots: Option<usize>,
    /// The first items only.
    pub limit: Option<usize>,
    /// Count and skip bad items instead of failing.
    pub skip_bad: bool,
}

impl TaskFiles {
    /// All items of a file or folder.
    pub fn new(items: impl Into<PathBuf>) -> Self {
        Self { items: items.into(), dev: None, shots: None, limit: None, skip_bad: false }
    }

    /// SHA-256 of what a task reads from them, in hexadecimal: of the one file, or of the hashes of several, one a line
    /// in the order they are read in. Files of examples count if there are examples.
    ///
    /// # Errors
    /// [`TaskError::Io`].
    pub fn hash(&self, entry: &Entry, shots: usize) -> Result<String, TaskError> {
        let dev = if shots == 0 { None } else { self.dev(entry) };
        let mut hashes = Vec::new();
        for path in [Some(self.items.clone()), dev].into_iter().flatten() {
            for file in (entry.reader.files)(&path)? {
                let beside = (entry.reader.beside)(&file);
                for file in [Some(file), beside].into_iter().flatten() {
                    let bytes = std::fs::read(&file).map_err(|source| TaskError::Io { path: file, source })?;
                    hashes.push(hex(&Sha256::digest(bytes)));
                }
            }
        }
        Ok(match &hashes[..] {
            [one] => one.clone(),
            several => hex(&Sha256::digest(several.join("\n"))),
        })
    }

    /// Where the items for examples are.
    fn dev(&self, entry: &Entry) -> Option<PathBuf> {
        self.dev.clone().or_else(|| (entry.reader.dev)(&self.items))
    }
}

/// The items of a task, ready to be asked.
#[derive(Clone, Debug)]
pub struct Items {
    /// The items, with their examples.
    pub items: Vec<Item>,
    /// Examples before each.
    pub shots: usize,
    /// Bad items that were skipped, and what was wrong with them.
    pub bad: Vec<String>,
    /// Items that the protocol leaves out.
    pub left_out: usize,
}

impl Entry {
    /// The rules of a protocol.
    ///
    /// # Errors
    /// [`TaskError::NoProtocol`].
    pub fn rules(&self, protocol: Protocol) -> Result<&Rules, TaskError> {
        let rules = match protocol {
            Protocol::LmEval => &self.lm_eval,
            Protocol::OpenCompass => &self.opencompass,
        };
        let known = || self.protocols().map(Protocol::name).collect::<Vec<_>>().join(" and ");
        rules.as_ref().ok_or_else(|| TaskError::NoProtocol {
            task: self.name,
            protocol: protocol.name(),
            known: known(),
        })
    }

    /// Its protocols.
    pub fn protocols(&self) -> impl Iterator<Item = Protocol> {
        let lm_eval = self.lm_eval.map(|_| Protocol::LmEval);
        lm_eval.into_iter().chain(self.opencompass.map(|_| Protocol::OpenCompass))
    }

    /// Reads the items as `protocol` asks them, each with its examples: the first of the file of examples, of the same
    /// subset.
    ///
    /// # Errors
    /// [`TaskError`] names the file, the line and what is wrong.
    pub fn read(&self, files: &TaskFiles, protocol: Protocol) -> Result<Items, TaskError> {
        let rules = self.rules(protocol)?;
        let mut read = self.items(rules, &files.items, files.skip_bad, files.limit)?;
        read.shots = files.shots.unwrap_or(rules.shots);
        if read.shots == 0 {
            return Ok(read);
        }
        let Some(dev) = files.dev(self) else {
            return Err(self.too_few_shots(protocol, None, read.shots, 0));
        };
        let examples = self.items(rules, &dev, files.skip_bad, None)?;
        read.bad.extend(examples.bad);
        for item in &mut read.items {
            let same = examples.items.iter().filter(|example| example.subset == item.subset);
            item.shots = same.map(|example| example.shot.clone()).take(read.shots).collect();
            if item.shots.iter().any(String::is_empty) {
                return Err(TaskError::NoShots { task: self.name, protocol: protocol.name() });
            }
            if item.shots.len() < read.shots {
                return Err(self.too_few_shots(protocol, item.subset.as_deref(), read.shots, item.shots.len()));
            }
        }
        Ok(read)
    }

    fn too_few_shots(&self, protocol: Protocol, subset: Option<&str>, wanted: usize, found: usize) -> TaskError {
        let of = subset.map_or_else(String::new, |subset| format!(" of {subset}"));
        TaskError::TooFewShots { task: self.name, protocol: protocol.name(), of, wanted, found }
    }

    fn items(&self, rules: &Rules, path: &Path, skip_bad: bool, limit: Option<usize>) -> Result<Items, TaskError> {
        let mut found = Items { items: Vec::new(), shots: 0, bad: Vec::new(), left_out: 0 };
        let mut first_bad = None;
        for row in self.reader.read(path)? {
            if limit.is_some_and(|limit| found.items.len() >= limit) {
                break;
            }
            let item = row.and_then(|row| {
                let fault = |fault| TaskError::BadItem { place: row.place.clone(), fault };
                let item = (rules.item)(&row).map_err(fault)?;
                Ok(item.map(|item| Item { subset: item.subset.or(row.subset), ..item }))
            });
            match item {
                Ok(Some(item)) => found.items.push(item),
                Ok(None) => found.left_out += 1,
                Err(TaskError::BadItem { place, fault }) if skip_bad => {
                    found.bad.push(format!("{place}: {fault}"));
                    first_bad.get_or_insert(TaskError::BadItem { place, fault });
                }
                Err(error) => return Err(error),
            }
        }
        // Nothing but bad items: this is no file of the task.
        match first_bad {
            Some(error) if found.items.is_empty() => Err(error),
            None if found.items.is_empty() => {
                Err(TaskError::Empty { task: self.name, files: self.files, path: path.into() })
            }
            _ => Ok(found),
        }
    }
}
