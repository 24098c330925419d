//! The results file of `eval`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A value and how far it may be off by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The value.
    pub value: f64,
    /// Its standard error; `None` where it cannot be told.
    pub stderr: Option<f64>,
}

/// What one task gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Tokens of a window or document; of a benchmark, the longest text the model was given.
    pub window: usize,
    /// Tokens of a forward pass; 0 where a text or what follows a prompt ran in one.
    pub chunk: usize,
    /// First tokens of a document that ran in one pass and were not scored.
    pub prefill: usize,
    /// Items that went through one cache at once, at most.
    pub batch: usize,
    /// Whether the score sees what the stack evicts; true if it evicts nothing.
    pub sees_evictions: bool,
    /// Of a benchmark, the rest of what its number depends on.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<BenchmarkResult>,
}

/// What the number of a benchmark depends on, and its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkResult {
    /// Examples before each item.
    pub shots: usize,
    /// Tokens of the longest text, where longer ones are cut.
    pub max_length: usize,
    /// The harness' configuration that the prompts restate.
    pub source: String,
    /// Bad items that were skipped because that was asked for.
    pub skipped: usize,
    /// Items that the harness leaves out.
    pub left_out: usize,
    /// Scores of the benchmark's parts, where it has several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subsets: BTreeMap<String, BTreeMap<String, Metric>>,
    /// Tokens that went through the model, without padding; what texts begin with in common may count once.
    #[serde(default)]
    pub tokens_run: usize,
    /// Tokens that went through the model a second.
    pub tokens_per_second: f64,
    /// Where each text only runs, whole, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_prefill: Option<PrefillSpeed>,
}

/// How fast texts run that are not scored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillSpeed {
    /// Their tokens, without padding.
    pub tokens: usize,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// One item of a benchmark, as `--samples-out` writes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Name of the task.
    pub task: String,
    /// Protocol of the scores.
    pub protocol: String,
    /// Index among the items.
    pub index: usize,
    /// File and line.
    pub place: String,
    /// Its part of the benchmark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// The right choice, if there is one.
    pub gold: Option<usize>,
    /// Texts as they were asked: context and what was scored.
    pub texts: Vec<(String, String)>,
    /// One a choice: log-likelihoods by lm-eval, mean losses (or likelihoods) by OpenCompass.
    pub scores: Vec<f64>,
    /// Whether greedy decoding gives the scored text, one a choice.
    pub greedy: Vec<bool>,
    /// The choice that each measure picks.
    pub picks: BTreeMap<String, usize>,
    /// What the item counts in each metric.
    pub metrics: BTreeMap<String, f64>,
    /// What was generated, where the task generates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
    /// Whether the text was cut to the model's context.
    pub truncated: bool,
}

/// The content of a results file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
