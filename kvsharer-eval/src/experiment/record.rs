//! The results file: one JSON line a finished cell, whole lines only.

use super::ExperimentError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A finished cell with everything its number depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the experiment.
    pub experiment: String,
    /// SHA-256 of what the experiment file says.
    pub experiment_hash: String,
    /// Index of the cell.
    pub cell: usize,
    /// Cells of the experiment.
    pub cells: usize,
    /// Library and version.
    pub library: String,
    /// The model's name.
    pub model: String,
    /// SHA-256 over the model's tensors, as in strategy files.
    pub model_hash: String,
    /// The seed.
    pub seed: u64,
    /// Name of the strategy.
    pub strategy: String,
    /// The strategy itself: its maps and how it was found, without its trials; null for the full cache.
    pub strategy_record: Value,
    /// Name of the stack.
    pub stack: String,
    /// SPECs of the whole stack, the sharing map included.
    pub policies: Vec<String>,
    /// The task or bench as the experiment describes it.
    pub spec: Value,
    /// The result: of a task as in results files, of a bench one entry a batch.
    pub result: Value,
    /// KV bytes of the plan for the largest batch and length that the cell used.
    pub plan_bytes: usize,
    /// The same without strategy and stack.
    pub full_bytes: usize,
    /// The device.
    pub device: String,
    /// Dtype of weights and cache.
    pub dtype: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// Wall time of the cell, its search not counted.
    pub seconds: f64,
    /// Seconds of the search that found the strategy, if it was made for these results, in one go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_seconds: Option<f64>,
    /// When it was finished, in seconds since 1970.
    pub finished: u64,
}

/// Fields that differ from run to run.
const TIMES: [&str; 3] = ["seconds", "finished", "threads"];

impl Record {
    /// The record without what two runs of one cell differ in: times and speeds.
    pub fn without_times(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            TIMES.iter().for_each(|field| _ = fields.remove(*field));
            if let Some(result) = fields.get_mut("result") {
                strip_speeds(result);
            }
        }
        value
    }
}

/// Removes what a clock or the system's memory told.
fn strip_speeds(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let told = |key: &str| {
                key.ends_with("_ms") || key.contains("per_s") || key.contains("seconds") || key == "peak_rss"
            };
            fields.retain(|key, _| !told(key));
            fields.values_mut().for_each(strip_speeds);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_speeds),
        _ => {}
    }
}

/// A results file that is being written, locked against other programs.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
    cut: usize,
}

impl Records {
    /// Opens or makes the file and reads what is done. A last line that a killed run left incomplete is cut off.
    ///
    /// # Errors
    /// [`ExperimentError`] names the file, and the line that is no record.
    pub fn open(path: &Path) -> Result<Self, ExperimentError> {
        let io = |source| ExperimentError::Io { path: path.into(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ExperimentError::Locked(path.into())),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let cut = bytes.len() - whole;
        let records = parse(path, &bytes[..whole])?.into_iter().map(|(_, record)| record).collect();
        if cut > 0 {
            file.set_len(whole as u64).map_err(io)?;
        }
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self { path: path.into(), file, records, cut })
    }

    /// Finished cells.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Bytes of an incomplete line that were cut off.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Appends a record as one line and waits until it is on the disk. If that fails, what was written of it is cut off
    /// again.
    ///
    /// # Errors
    /// [`ExperimentError::Io`].
    pub fn append(&mut self, record: Record) -> Result<(), ExperimentError> {
        let io = |source| ExperimentError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&record).map_err(|error| io(error.into()))?;
        line.push(b'\n');
        let before = self.file.stream_position().map_err(io)?;
        if let Err(error) = self.file.write_all(&line).and_then(|()| self.file.sync_data()) {
            let _ = self.file.set_len(before);
            return Err(io(error));
        }
        self.records.push(record);
        Ok(())
    }
}

/// Records by line.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<(usize, Record)>, ExperimentError> {
    let lines = bytes.split(|&byte| byte == b'\n').zip(1..).filter(|(line, _)| !line.trim_ascii().is_empty());
    let record = |(line, number): (&[u8], usize)| {
        let bad = |what: String| ExperimentError::BadLine { path: path.into(), line: number, what };
        match serde_json::from_slice(line) {
            Ok(Record { cell, cells, .. }) if cell >= cells => Err(bad(format!("cell {cell} of {cells}"))),
            Ok(record) => Ok((number, record)),
            Err(error) => Err(bad(error.to_string())),
        }
    };
    lines.map(record).collect()
}

/// Refuses a record of another experiment, version, device or dtype than `expected`.
pub(super) fn check_same(path: &Path, line: usize, found: &Record, expected: &Record) -> Result<(), ExperimentError> {
    let same = [
        ("experiment", &found.experiment_hash, &expected.experiment_hash),
        ("version", &found.library, &expected.library),
        ("device", &found.device, &expected.device),
        ("dtype", &found.dtype, &expected.dtype),
    ];
    match same.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((field, found, expected)) => Err(ExperimentError::Mixed {
            path: path.into(),
            line,
            field,
            found: found.clone(),
            expected: expected.clone(),
        }),
    }
}
