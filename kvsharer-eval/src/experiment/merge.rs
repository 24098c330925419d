//! Shards become one file.

use super::ExperimentError;
use super::record::{Record, check_same, parse};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All records of an experiment.
#[derive(Clone, Debug)]
pub struct Merged {
    /// In the order of their cells.
    pub records: Vec<Record>,
    /// Cells of the experiment.
    pub cells: usize,
}

/// Joins the results of shards. A cell that stands twice with the same result counts once.
///
/// # Errors
/// [`ExperimentError::Mixed`] for results of different experiments, versions, devices or dtypes,
/// [`ExperimentError::Conflict`] for two results of one cell, [`ExperimentError::Incomplete`] unless `partial`.
pub fn merge(paths: &[PathBuf], partial: bool) -> Result<Merged, ExperimentError> {
    let mut found: BTreeMap<usize, Record> = BTreeMap::new();
    let mut first: Option<Record> = None;
    for path in paths {
        for (line, record) in read(path)? {
            let expected = first.get_or_insert_with(|| record.clone());
            check_same(path, line, &record, expected)?;
            match found.get(&record.cell) {
                Some(before) if before.without_times() != record.without_times() => {
                    return Err(ExperimentError::Conflict { path: path.clone(), line, cell: record.cell });
                }
                Some(_) => {}
                None => _ = found.insert(record.cell, record),
            }
        }
    }
    let cells = first.map_or(0, |record| record.cells);
    if (found.len() < cells || cells == 0) && !partial {
        const SHOWN: usize = 8;
        // Cells are as many as the file says: they are not listed before they are shown.
        let missing = (0..cells).filter(|cell| !found.contains_key(cell)).map(|cell| cell.to_string());
        let mut list: Vec<String> = missing.take(SHOWN + 1).collect();
        if list.len() > SHOWN {
            list[SHOWN] = "…".into();
        }
        return Err(ExperimentError::Incomplete { found: found.len(), cells, missing: list.join(", ") });
    }
    Ok(Merged { records: found.into_values().collect(), cells })
}

/// A last line without an end is that of a run that was killed, or still runs; its cell is not finished.
fn read(path: &Path) -> Result<Vec<(usize, Record)>, ExperimentError> {
    let bytes = std::fs::read(path).map_err(|source| ExperimentError::Io { path: path.into(), source })?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    parse(path, &bytes[..whole])
}
