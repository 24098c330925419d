//! `kvsharer eval`.

use super::Global;
use super::context::{ModelArg, StackArgs, StackPlan, check_output, load, read_text};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json, human_bytes, table};
use clap::Args;
use kvsharer_core::{hex, write_atomically};
use kvsharer_eval::{Metric, PerplexityOptions, Results, TaskResult, perplexity};
use kvsharer_models::{Decoder, ModelTokenizer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

/// Options of `eval`.
#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// What to measure as NAME=PATH; may be repeated. Known: perplexity=TEXTFILE
    #[arg(long = "task", required = true, value_name = "NAME=PATH")]
    tasks: Vec<TaskArg>,
    /// Tokens of a perplexity window
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Tokens of a forward pass: evictions between passes count. 0 runs a window at once, which sees no eviction
    #[arg(long, default_value_t = 0)]
    chunk: u32,
    /// The first windows only
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Where to write the results
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// A task as typed.
#[derive(Clone)]
enum TaskArg {
    Perplexity(PathBuf),
}

impl FromStr for TaskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("perplexity", path)) if !path.is_empty() => Ok(Self::Perplexity(path.into())),
            Some((name, path)) if !path.is_empty() => Err(format!("no task `{name}`: known is perplexity")),
            _ => Err("expected NAME=PATH, such as perplexity=text.txt".into()),
        }
    }
}

pub(super) fn run(args: &EvalArgs, global: &Global) -> Result<(), CliError> {
    args.stack.parse()?;
    let files = args.model.open(global)?;
    let checked = args.stack.check(&files)?;
    // Of the file as it is now, not as it may be when the run ends.
    let strategy_hash = match &args.stack.strategy {
        Some(path) => Some(hash(&std::fs::read(path).map_err(|error| CliError::file(path, error))?)),
        None => None,
    };
    if let Some(path) = &args.output {
        check_output(path)?;
    }
    // Texts are read before the weights: a wrong path should not cost a wait.
    let texts: Vec<(&Path, String)> = args
        .tasks
        .iter()
        .map(|TaskArg::Perplexity(path)| Ok((path.as_path(), read_text(path)?)))
        .collect::<Result<_, CliError>>()?;
    if checked.evicts() && args.chunk == 0 {
        complain(
            "warning: a window runs in one pass, so this perplexity does not see what the policies evict; use --chunk 64",
        );
    }
    let tokenizer = files.tokenizer()?;
    let model = load(&files, global)?;
    let start = Instant::now();
    let (mut results, mut plan_bytes) = (Vec::new(), 0);
    for (path, text) in &texts {
        let (result, longest) = run_perplexity(args, &checked, &model, &tokenizer, path, text)?;
        plan_bytes = plan_bytes.max(checked.plan.bytes(1, longest, global.dtype.dtype().size()));
        results.push(result);
    }
    let results = Results {
        results,
        model: files.name().into(),
        model_hash: files.fingerprint()?.hash,
        strategy: args.stack.strategy.as_ref().map(|path| path.display().to_string()),
        strategy_hash,
        policies: checked.names,
        plan_bytes,
        device: global.device.to_string(),
        dtype: global.dtype.name().into(),
        seconds: start.elapsed().as_secs_f64(),
        library: concat!("kvsharer ", env!("CARGO_PKG_VERSION")).into(),
    };
    if let Some(path) = &args.output {
        let mut text = serde_json::to_vec_pretty(&results).map_err(CliError::failure)?;
        text.push(b'\n');
        write_atomically(path, &text).map_err(|error| CliError::file(path, error))?;
    }
    if global.json { emit_json(&results) } else { emit(&describe(&results)) }
}

fn run_perplexity(
    args: &EvalArgs,
    checked: &StackPlan,
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    path: &Path,
    text: &str,
) -> Result<(TaskResult, usize), CliError> {
    let ids = tokenizer.encode(text).map_err(CliError::failure)?;
    let limit = args.limit.map(|limit| limit as usize);
    let options = PerplexityOptions { window: args.window as usize, chunk: args.chunk as usize, limit };
    let scored = limit.map_or(ids.len(), |limit| ids.len().min(limit * options.window));
    let bar = bar(scored as u64, "scoring");
    let result =
        perplexity(model, &ids, &options, || checked.stack(), |tokens| bar.inc(tokens as u64)).map_err(|error| {
            match error {
                kvsharer_eval::EvalError::TextTooShort { .. } => {
                    CliError::Failure(format!("{}: {error}", path.display()).into())
                }
                other => other.into(),
            }
        })?;
    bar.finish_and_clear();
    let metrics = BTreeMap::from([
        ("perplexity".to_owned(), Metric { value: result.value, stderr: result.stderr }),
        ("nll".to_owned(), Metric { value: result.nll, stderr: result.stderr.map(|stderr| stderr / result.value) }),
    ]);
    let task = TaskResult {
        task: "perplexity".into(),
        protocol: "windows".into(),
        limit,
        metrics,
        items: result.windows,
        tokens: result.tokens,
        truncated: 0,
        text_hash: hash(text.as_bytes()),
        window: options.window,
        chunk: if options.chunk == 0 { options.window } else { options.chunk.min(options.window) },
        sees_evictions: !checked.evicts() || (options.chunk > 0 && options.chunk < options.window),
    };
    Ok((task, result.longest))
}

fn describe(results: &Results) -> String {
    let rows: Vec<Vec<String>> = results
        .results
        .iter()
        .map(|task| {
            let metric = task.metrics["perplexity"];
            let stderr = metric.stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.3}"));
            vec![
                task.task.clone(),
                task.protocol.clone(),
                format!("{:.4}{stderr}", metric.value),
                task.items.to_string(),
                task.tokens.to_string(),
            ]
        })
        .collect();
    format!(
        "{} with {}, {} KV at most, {:.1} s on {} in {}\n{}",
        results.model,
        results.policies.join(" + "),
        human_bytes(results.plan_bytes),
        results.seconds,
        results.device,
        results.dtype,
        table(&["task", "protocol", "perplexity", "windows", "tokens"], &rows, false)
    )
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
