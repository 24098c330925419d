//! `kvsharer eval`.

mod task;

use super::Global;
use super::context::{ModelArg, StackArgs, check_output, load, read_text};
use super::error::CliError;
use super::output::{complain, emit, emit_json, human_bytes, table};
use clap::Args;
use kvsharer_core::{hex, write_atomically};
use kvsharer_eval::{PerplexityOptions, Results, StepwiseOptions};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::Instant;
use task::{Protocol, TaskArg, run_task};

/// Options of `eval`.
#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// What to measure as NAME=PATH; may be repeated. Known: perplexity=TEXTFILE by windows, stepwise=TEXTFILE by
    /// documents that run token by token, so that every eviction counts
    #[arg(long = "task", required = true, value_name = "NAME=PATH")]
    tasks: Vec<TaskArg>,
    /// Tokens of a window or document
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Task perplexity: tokens of a forward pass; evictions between passes count. 0 runs a window at once, which sees
    /// no eviction
    #[arg(long, default_value_t = 0)]
    chunk: u32,
    /// Task stepwise: first tokens of a document that run in one pass, as a prompt does, and are not scored
    #[arg(long, default_value_t = 0)]
    prefill: u32,
    /// Task stepwise: documents that go through one cache at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// The first windows or documents only
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Where to write the results
    #[arg(long, short)]
    output: Option<PathBuf>,
}

impl EvalArgs {
    fn limit(&self) -> Option<usize> {
        self.limit.map(|limit| limit as usize)
    }

    fn windows(&self) -> PerplexityOptions {
        PerplexityOptions { window: self.window as usize, chunk: self.chunk as usize, limit: self.limit() }
    }

    fn stepwise(&self) -> StepwiseOptions {
        StepwiseOptions {
            document: self.window as usize,
            prefill: self.prefill as usize,
            batch: self.batch as usize,
            limit: self.limit(),
        }
    }

    fn has(&self, protocol: Protocol) -> bool {
        self.tasks.iter().any(|task| task.protocol == protocol)
    }

    /// Refuses options that do not fit together or that no task would heed.
    fn check(&self) -> Result<(), CliError> {
        if self.has(Protocol::Stepwise) {
            self.stepwise().check()?;
        } else if self.prefill > 0 || self.batch > 1 {
            return Err(CliError::usage("--prefill and --batch are for --task stepwise=PATH, which is not asked for"));
        }
        if self.chunk > 0 && !self.has(Protocol::Windows) {
            return Err(CliError::usage("--chunk is for --task perplexity=PATH: stepwise runs token by token"));
        }
        Ok(())
    }
}

pub(super) fn run(args: &EvalArgs, global: &Global) -> Result<(), CliError> {
    args.check()?;
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
    let texts: Vec<String> = args.tasks.iter().map(|task| read_text(&task.path)).collect::<Result<_, _>>()?;
    if checked.evicts() && args.chunk == 0 && args.has(Protocol::Windows) {
        complain(
            "warning: a window runs in one pass, so this perplexity does not see what the policies evict; use --chunk 64",
        );
    }
    let first_pass = if args.has(Protocol::Windows) { args.chunk } else { 1 };
    if checked.depends_on_prompt() && args.prefill == 0 && first_pass > 0 {
        complain(&format!(
            "warning: a policy depends on the length of the prompt, and the first pass of {first_pass} tokens counts as one; use --task stepwise=… with --prefill"
        ));
    }
    let tokenizer = files.tokenizer()?;
    let model = load(&files, global)?;
    let start = Instant::now();
    let (mut results, mut plan_bytes) = (Vec::new(), 0);
    for (task, text) in args.tasks.iter().zip(&texts) {
        let (result, bytes) = run_task(args, &checked, &model, &tokenizer, task, text)?;
        plan_bytes = plan_bytes.max(bytes);
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
        table(&["task", "protocol", "perplexity", "items", "tokens"], &rows, false)
    )
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
