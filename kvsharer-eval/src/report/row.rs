//! One measured number and everything it depends on.

use serde::Serialize;

/// What two numbers must have in common to be compared: all but strategy and policies. Rows that differ in any of it are
/// never averaged, and never stand under one delta.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Conditions {
    /// The model's name.
    pub model: String,
    /// SHA-256 over the model's tensors, where the file tells it.
    pub model_hash: Option<String>,
    /// What was measured.
    pub measure: Measure,
    /// The device.
    pub device: String,
    /// Dtype of weights and cache.
    pub dtype: String,
    /// Library and version.
    pub library: String,
}

/// What was measured, and by which rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The quality of a task.
    Task(TaskRules),
    /// Memory and speed.
    Bench {
        /// Sequences.
        batch: usize,
        /// Tokens of each prompt.
        prompt: usize,
        /// Tokens generated after it.
        generated: usize,
        /// Threads of the CPU.
        threads: usize,
    },
}

/// The rules of a task's number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TaskRules {
    /// Name of the task.
    pub task: String,
    /// Protocol of its scores.
    pub protocol: String,
    /// The harness' configuration.
    pub source: Option<String>,
    /// SHA-256 of the text.
    pub text_hash: String,
    /// Items scored.
    pub items: usize,
    /// Items asked for, if not all.
    pub limit: Option<usize>,
    /// Bad items skipped and items that the harness leaves out.
    pub without: [usize; 2],
    /// Examples before each item.
    pub shots: Option<usize>,
    /// Tokens of the longest text, where longer ones are cut.
    pub max_length: Option<usize>,
    /// Tokens of a window or document.
    pub window: usize,
    /// Tokens of a forward pass.
    pub chunk: usize,
    /// Tokens that ran in one pass and were not scored.
    pub prefill: usize,
}

/// What is compared: a strategy and the policies beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Setup {
    /// The strategy; `None` where no layer shares.
    pub strategy: Option<StrategyId>,
    /// SPECs of the policies, without the sharing map.
    pub policies: Vec<String>,
}

/// A strategy by name, and what tells it from others of that name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct StrategyId {
    /// As people call it: the experiment's name for it, or the file's.
    pub name: String,
    /// Hash of the experiment or the file, with whatever else sets the strategy apart.
    pub id: String,
}

impl Setup {
    /// A setup from the names of a stack, in which a sharing map stands as `sharing:…`, and the strategy behind it.
    pub fn new(names: &[String], strategy: Option<StrategyId>) -> Self {
        let (maps, policies): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| name.starts_with("sharing:"));
        let policies = policies.into_iter().filter(|name| *name != "full").cloned().collect();
        let unnamed = || maps.first().map(|map| StrategyId { name: "a map".into(), id: (*map).clone() });
        Self { strategy: strategy.or_else(unnamed), policies }
    }

    /// Whether this is the full cache, which all else is compared to.
    pub fn is_full(&self) -> bool {
        self.strategy.is_none() && self.policies.is_empty()
    }

    /// The strategy's name, `no sharing` without one.
    pub fn strategy_name(&self) -> &str {
        self.strategy.as_ref().map_or("no sharing", |strategy| &strategy.name)
    }

    /// The policies as one SPEC, `none` without any.
    pub fn policy_name(&self) -> String {
        if self.policies.is_empty() { "none".into() } else { self.policies.join(" + ") }
    }

    /// Both in short.
    pub fn label(&self) -> String {
        let strategy = self.strategy.iter().map(|strategy| strategy.name.as_str());
        let parts: Vec<&str> = strategy.chain(self.policies.iter().map(String::as_str)).collect();
        if parts.is_empty() { "full cache".into() } else { parts.join(" + ") }
    }
}

/// One measured number.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it may be compared with.
    pub conditions: Conditions,
    /// What it was measured for.
    pub setup: Setup,
    /// Name of the number.
    pub metric: String,
    /// The seed, where the file tells it.
    pub seed: Option<u64>,
    /// The number: of repeats, their median.
    pub value: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Least and greatest of repeats.
    pub range: Option<(f64, f64)>,
    /// KV bytes of the plan.
    pub kv_bytes: u64,
    /// The same of the full cache, where the file tells it.
    pub full_bytes: Option<u64>,
    /// What a reader of the number must know.
    pub notes: Vec<String>,
    /// File and line.
    pub place: String,
}

/// Whether a greater number is the better one; `None` for numbers that are neither.
pub fn greater_is_better(metric: &str) -> Option<bool> {
    let has = |parts: &[&str]| parts.iter().any(|part| metric.contains(part));
    if metric == "kl" || has(&["perplexity", "nll", "bits_per_byte", "_ms", "bytes"]) && !metric.starts_with("acc") {
        Some(false)
    } else if has(&["acc", "rouge", "same_top", "tokens_per_second", "log_likelihood"]) {
        Some(true)
    } else {
        None
    }
}
