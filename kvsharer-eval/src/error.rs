//! Errors of evaluations.

use crate::experiment::ExperimentError;
use crate::needles::NeedleError;
use crate::tasks::{Place, TaskError};
use kvsharer_compress::SpecError;
use kvsharer_core::{CacheError, CalibrationError, PlanError, SearchError, StrategyError};
use kvsharer_models::ModelError;
use kvsharer_models::import::ImportError;
use std::path::PathBuf;
use thiserror::Error;

/// Why an evaluation cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The policies do not fit together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A policy SPEC.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A strategy's fitted maps.
    #[error(transparent)]
    Adapters(#[from] kvsharer_core::AdaptersError),
    /// Options of a search that do not fit together.
    #[error("search: {0}")]
    BadSearch(String),
    /// A text without a token to predict.
    #[error("the text has {tokens} tokens: perplexity needs at least {least}, of which the last is predicted")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of the shortest text that can be scored.
        least: usize,
    },
    /// A window without a token to predict.
    #[error("a window of {window} tokens predicts nothing: use at least 2")]
    WindowTooShort {
        /// Tokens of the window.
        window: usize,
    },
    /// A memory budget without the one policy that it could set.
    #[error(
        "`{policies}` has {found} policies with a budget to solve for, one is needed: give one of streaming-llm, window, h2o, snapkv, pyramidkv, tova, knorm, random"
    )]
    NothingToSolve {
        /// The policies.
        policies: String,
        /// How many of them have a budget.
        found: usize,
    },
    /// A memory budget that no budget of the policy fits.
    #[error("`{policy}` does not fit {bytes} bytes: the smallest budget takes {needed}")]
    BudgetTooSmall {
        /// The policy.
        policy: String,
        /// The memory budget.
        bytes: usize,
        /// Bytes of the smallest plan.
        needed: usize,
    },
    /// A prefill that leaves no token to predict.
    #[error("a prefill of {prefill} tokens leaves nothing to predict in a window of {window}: use fewer")]
    PrefillTooLong {
        /// Tokens of the prefill.
        prefill: usize,
        /// Tokens of a document.
        window: usize,
    },
    /// A batch without documents.
    #[error("a batch of 0 documents scores nothing: use at least 1")]
    EmptyBatch,
    /// A sequence with nothing to score.
    #[error(
        "item {item}: tokens {scored:?} of a sequence of {tokens} tokens with a prompt of {prompt} cannot be scored: score some after the first, and leave some after the prompt"
    )]
    BadSequence {
        /// Index of the item.
        item: usize,
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens of its prompt.
        prompt: usize,
        /// What was to be scored.
        scored: std::ops::Range<usize>,
    },
    /// A likelihood that is no number.
    #[error("the model gives no finite probability for item {item}: its weights or dtype are broken")]
    NotFiniteItem {
        /// Index of the item.
        item: usize,
    },
    /// A task that nobody knows.
    #[error("no task `{name}`: known are {known}")]
    UnknownTask {
        /// What was asked for.
        name: String,
        /// All tasks.
        known: String,
    },
    /// No strategy of that name travels with the program.
    #[error("no built-in strategy `{name}`: there is {known}")]
    UnknownStrategy {
        /// What was asked for.
        name: String,
        /// All there are.
        known: String,
    },
    /// A task without its file.
    #[error("task {task} needs {files}: give it as {task}=PATH")]
    NoPath {
        /// The task.
        task: String,
        /// What it wants.
        files: String,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file without a token to predict.
    #[error("{}: the text has {tokens} tokens: perplexity needs at least {least}, of which the last is predicted", path.display())]
    FileTooShort {
        /// The file.
        path: PathBuf,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of the shortest text that can be scored.
        least: usize,
    },
    /// A calibration text without samples.
    #[error("{}: {source}", path.display())]
    Calibration {
        /// The text.
        path: PathBuf,
        /// What is wrong with it.
        source: CalibrationError,
    },
    /// An experiment or its results.
    #[error(transparent)]
    Experiment(Box<ExperimentError>),
    /// A task for a model without a tokenizer; what the model says.
    #[error("{0}")]
    NoTokenizer(String),
    /// A search.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// A strategy file.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// Nothing to time.
    #[error("batch {batch}, prompt {prompt}, generate {generate}, repeats {repeats}: each must be at least 1")]
    EmptyBench {
        /// Sequences.
        batch: usize,
        /// Tokens of a prompt.
        prompt: usize,
        /// Tokens to generate.
        generate: usize,
        /// Repeats.
        repeats: usize,
    },
    /// A share of the full cache's bytes for a task whose lengths vary.
    #[error("a stack with kv_share needs a task of fixed lengths (perplexity, stepwise, a bench), `{task}` has none")]
    NoLengths {
        /// The task.
        task: String,
    },
    /// More than the memory has room for.
    #[error(transparent)]
    DoesNotFit(#[from] crate::DoesNotFit),
    /// Retrieval prompts that cannot be made.
    #[error(transparent)]
    Needles(#[from] NeedleError<ImportError>),
    /// A benchmark's files.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A text that the model cannot take.
    #[error("{place}: {what}")]
    BadText {
        /// Where the item stands.
        place: Place,
        /// What is wrong.
        what: String,
    },
    /// A result that is no number.
    #[error(
        "the model gives no finite probability at token {token} of window {window}: its weights or dtype are broken"
    )]
    NotFinite {
        /// Index of the window or document.
        window: usize,
        /// Index of the predicted token in it.
        token: usize,
    },
}
