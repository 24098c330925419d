//! One task of `eval`.

use super::{EvalArgs, hash};
use crate::cli::context::StackPlan;
use crate::cli::error::CliError;
use crate::cli::output::bar;
use kvsharer_core::Lengths;
use kvsharer_eval::{EvalError, Metric, TaskResult, perplexity, stepwise};
use kvsharer_models::{Decoder, ModelTokenizer};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// A task as typed.
#[derive(Clone)]
pub(super) struct TaskArg {
    pub(super) protocol: Protocol,
    pub(super) path: PathBuf,
}

/// How perplexity is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Windows,
    Stepwise,
}

impl FromStr for TaskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').unwrap_or_default();
        if path.is_empty() {
            return Err("expected NAME=PATH, such as perplexity=text.txt".into());
        }
        let protocol = match name {
            "perplexity" => Protocol::Windows,
            "stepwise" => Protocol::Stepwise,
            _ => return Err(format!("no task `{name}`: known are perplexity and stepwise")),
        };
        Ok(Self { protocol, path: path.into() })
    }
}

/// Scores one text; also gives the KV bytes of the plan for the largest batch and length.
pub(super) fn run_task(
    args: &EvalArgs,
    checked: &StackPlan,
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    task: &TaskArg,
    text: &str,
) -> Result<(TaskResult, usize), CliError> {
    let ids = tokenizer.encode(text).map_err(CliError::failure)?;
    let (windows, steps) = (args.windows(), args.stepwise());
    let window = windows.window;
    let (chunk, prompt) = match task.protocol {
        Protocol::Windows if windows.chunk == 0 => (window, None),
        Protocol::Windows => (windows.chunk.min(window), None),
        Protocol::Stepwise => (1, steps.prompt()),
    };
    let read = args.limit().map_or(ids.len(), |limit| ids.len().min(limit * window));
    let unscored = read.div_ceil(window) * prompt.unwrap_or(1);
    let bar = bar(read.saturating_sub(unscored) as u64, "scoring");
    let (stack, done) = (|| checked.stack(), |tokens| bar.inc(tokens as u64));
    let scored = match task.protocol {
        Protocol::Windows => perplexity(model, &ids, &windows, stack, done),
        Protocol::Stepwise => stepwise(model, &ids, &steps, stack, done),
    };
    let scored = scored.map_err(|error| match error {
        EvalError::TextTooShort { .. } => CliError::Failure(format!("{}: {error}", task.path.display()).into()),
        other => other.into(),
    })?;
    bar.finish_and_clear();
    let metrics = BTreeMap::from([
        ("perplexity".to_owned(), Metric { value: scored.value, stderr: scored.stderr }),
        ("nll".to_owned(), Metric { value: scored.nll, stderr: scored.stderr.map(|stderr| stderr / scored.value) }),
    ]);
    let (name, protocol) = match task.protocol {
        Protocol::Windows => ("perplexity", "windows"),
        Protocol::Stepwise => ("stepwise", "stepwise"),
    };
    let result = TaskResult {
        task: name.into(),
        protocol: protocol.into(),
        limit: args.limit(),
        metrics,
        items: scored.windows,
        tokens: scored.tokens,
        truncated: 0,
        text_hash: hash(text.as_bytes()),
        window,
        chunk,
        prefill: prompt.unwrap_or(0),
        batch: scored.batch,
        sees_evictions: !checked.evicts() || chunk < window,
    };
    let lengths = Lengths { prompt, tokens: scored.longest };
    let bytes = checked.plan.bytes(scored.batch, lengths, model.dtype().size());
    Ok((result, bytes))
}
