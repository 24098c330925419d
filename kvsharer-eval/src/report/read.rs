//! Reading result files: what is no result is named and skipped.

use super::kinds::{Content, content};
use super::{ReportError, Results};
use kvsharer_core::{Strategy, hex};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Results are text; anything larger is something else.
const MAX_BYTES: u64 = 512 << 20;

/// Layers of the deepest model whose strategies are drawn.
const MAX_LAYERS: usize = 1024;

/// Complaints about one file that are kept; the others are counted.
const MAX_PROBLEMS: usize = 20;

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, and the line where there is one.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// Reads files, and all .json and .jsonl files of folders. What is no result is skipped and listed among the problems.
///
/// # Errors
/// [`ReportError::Io`] for a file that cannot be read, [`ReportError::Nothing`] if no result is left.
pub fn read(paths: &[PathBuf]) -> Result<Results, ReportError> {
    let mut results = Results::default();
    let mut hashes: BTreeMap<String, String> = BTreeMap::new();
    for path in files(paths)? {
        let name = path.display().to_string();
        let bytes = bytes(&path)?;
        let hash = hex(&Sha256::digest(&bytes));
        results.files.push(name.clone());
        match hashes.get(&hash) {
            Some(first) => results.problem(&name, None, &format!("the same content as {first}, counted once")),
            None => {
                hashes.insert(hash.clone(), name);
                file(&path, &bytes, &hash, &mut results);
            }
        }
    }
    results.drop_repeats();
    if results.is_empty() {
        let first = results.problems.into_iter().next();
        return Err(ReportError::Nothing { files: results.files.len(), first });
    }
    Ok(results)
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ReportError> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let io = |source| ReportError::Io { path: path.clone(), source };
        let entries = std::fs::read_dir(path).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        let is_result =
            |path: &PathBuf| path.is_file() && path.extension().is_some_and(|e| e == "json" || e == "jsonl");
        let mut inside: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(is_result).collect();
        inside.sort();
        found.extend(inside);
    }
    Ok(found)
}

fn bytes(path: &Path) -> Result<Vec<u8>, ReportError> {
    let io = |source| ReportError::Io { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_BYTES {
        return Err(ReportError::TooLarge { path: path.into(), bytes });
    }
    std::fs::read(path).map_err(io)
}

fn file(path: &Path, bytes: &[u8], hash: &str, results: &mut Results) {
    let name = path.display().to_string();
    if bytes.trim_ascii().is_empty() {
        results.problem(&name, None, "the file is empty");
        return;
    }
    let whole = match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => {
            let is_strategy = value.get("key_map").is_some() && value.get("trials").is_some();
            if is_strategy {
                match Strategy::load(path) {
                    Ok(strategy) if strategy.model.layers > MAX_LAYERS => {
                        results.problem(
                            &name,
                            None,
                            &format!("a model of {} layers cannot be drawn", strategy.model.layers),
                        );
                    }
                    Ok(strategy) => results.strategies.push((path.into(), hash.into(), strategy)),
                    Err(error) => results.problem(&name, None, &error.to_string()),
                }
            } else {
                match content(value, &name) {
                    Ok(content) => results.take(content),
                    Err(what) => results.problem(&name, None, &what),
                }
            }
            return;
        }
        Err(error) => error,
    };
    let (mut good, mut bad, mut all_json) = (Vec::new(), Vec::new(), true);
    let ends = bytes.last() == Some(&b'\n');
    let lines: Vec<(usize, &[u8])> = (1..).zip(bytes.split(|&byte| byte == b'\n')).collect();
    let last = lines.iter().rev().map(|(line, _)| *line).next().filter(|_| !ends);
    for (line, text) in lines.into_iter().filter(|(_, text)| !text.trim_ascii().is_empty()) {
        let read = serde_json::from_slice(text).map_err(|error| match last == Some(line) {
            true => "an incomplete last line: the run was killed, or still writes".into(),
            false => format!("no JSON: {error}"),
        });
        all_json &= read.is_ok();
        match read.and_then(|value| content(value, &format!("{name}:{line}"))) {
            Ok(content) => good.push(content),
            Err(what) => bad.push((line, what)),
        }
    }
    if good.is_empty() {
        // Lines of JSON say what they are not; a file that is not made of such lines, where it breaks off.
        match bad.first().filter(|_| all_json) {
            Some((line, what)) => results.problem(&name, Some(*line), what),
            None => {
                let line = (whole.line() > 0).then_some(whole.line());
                results.problem(&name, line, &format!("no result of kvsharer: {whole}"));
            }
        }
        return;
    }
    good.into_iter().for_each(|content| results.take(content));
    for (line, what) in bad.iter().take(MAX_PROBLEMS) {
        results.problem(&name, Some(*line), what);
    }
    if let Some(more) = bad.len().checked_sub(MAX_PROBLEMS).filter(|more| *more > 0) {
        results.problem(&name, None, &format!("{more} more lines are no results"));
    }
}

impl Results {
    fn take(&mut self, content: Content) {
        self.rows.extend(content.rows);
        self.memory.extend(content.memory);
        self.conformance.extend(content.conformance);
    }

    fn problem(&mut self, file: &str, line: Option<usize>, what: &str) {
        let place = line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"));
        // The file is in its own messages, too.
        let what = what.strip_prefix(&format!("{file}: ")).unwrap_or(what).to_owned();
        self.problems.push(Problem { place, what });
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.strategies.is_empty() && self.memory.is_empty() && self.conformance.is_empty()
    }

    /// One cell and seed gives one number: what stands twice (in shards and where they were merged, say) counts once, and
    /// a second number that differs is left out and named. Speeds may be measured again and again.
    fn drop_repeats(&mut self) {
        /// Sums on several threads differ by this.
        const NOISE: f64 = 1e-5;
        let mut first: BTreeMap<_, Vec<(f64, String)>> = BTreeMap::new();
        let mut kept = Vec::with_capacity(self.rows.len());
        for row in std::mem::take(&mut self.rows) {
            let key = (row.conditions.clone(), row.setup.clone(), row.metric.clone(), row.seed, row.kv_bytes);
            let before = first.entry(key).or_default();
            let same = |value: f64| (value - row.value).abs() <= NOISE * value.abs().max(row.value.abs());
            let timed = row.range.is_some();
            match before.iter().find(|(value, _)| if timed { *value == row.value } else { same(*value) }) {
                Some(_) => continue,
                None if timed || before.is_empty() => {
                    before.push((row.value, row.place.clone()));
                    kept.push(row);
                }
                None => {
                    let (value, place) = &before[0];
                    let (metric, own) = (&row.metric, row.value);
                    let what = format!("{metric} {own} of a cell and seed for which {place} has {value}: left out");
                    self.problems.push(Problem { place: row.place.clone(), what });
                }
            }
        }
        self.rows = kept;
    }
}
