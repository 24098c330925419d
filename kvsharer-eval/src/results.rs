//! The results file of `eval`.

use serde::Serialize;
use std::collections::BTreeMap;

/// A value and how far it may be off by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// The value.
    pub value: f64,
    /// Its standard error; `None` where it cannot be told.
    pub stderr: Option<f64>,
}

/// What one task gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskResult {
    /// Name of the task.
    pub task: String,
    /// Protocol of its scores.
    pub protocol: String,
    /// Items asked for, if not all.
    pub limit: Option<usize>,
    /// Scores by name.
    pub metrics: BTreeMap<String, Metric>,
    /// Items scored (windows or documents).
    pub items: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Items that had to be cut.
    pub truncated: usize,
    /// SHA-256 of the file.
    pub text_hash: String,
    /// Tokens of a window or document.
    pub window: usize,
    /// Tokens of a forward pass.
    pub chunk: usize,
    /// First tokens of a document that ran in one pass and were not scored.
    pub prefill: usize,
    /// Items that went through one cache at once, at most.
    pub batch: usize,
    /// Whether the score sees what the stack evicts; true if it evicts nothing.
    pub sees_evictions: bool,
}

/// The content of a results file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// One entry a task.
    pub results: Vec<TaskResult>,
    /// The model's name.
    pub model: String,
    /// SHA-256 over the model's tensors, as in strategy files.
    pub model_hash: String,
    /// Path of the strategy file.
    pub strategy: Option<String>,
    /// SHA-256 of the strategy file.
    pub strategy_hash: Option<String>,
    /// SPECs of the whole stack, the sharing map included.
    pub policies: Vec<String>,
    /// KV bytes of the plan for the largest batch and length that the run used.
    pub plan_bytes: usize,
    /// The device.
    pub device: String,
    /// Dtype of weights and cache.
    pub dtype: String,
    /// Wall time of the tasks.
    pub seconds: f64,
    /// Library and version.
    pub library: String,
}
