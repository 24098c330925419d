//! `kvsharer bench`.

use super::Global;
use super::context::{ModelArg, StackArgs, check_fits, check_output, check_placement};
use super::error::CliError;
use super::output::{bar, emit, emit_json, human_bytes, table, write_json};
use bytesize::ByteSize;
use clap::Args;
use kvsharer_core::{Lengths, Plan};
use kvsharer_eval::experiment::{BenchRow, BenchSpec, bench};
use kvsharer_models::ModelFiles;
use serde::Serialize;
use std::path::PathBuf;

/// Options of `bench`.
#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// Sequences at once; several as 1,4,16
    #[arg(long, value_delimiter = ',', default_values_t = [1], value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Instead of --batch, the most sequences whose keys and values fit so many bytes (4GiB), for the full cache and for
    /// what --strategy and --policy make of it: what sharing is worth where memory is short
    #[arg(long, conflicts_with = "batch")]
    kv_budget: Option<ByteSize>,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens generated after it
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// Repeats after one run to warm up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// On a GPU, read the scores of each step back instead of choosing tokens there
    #[arg(long)]
    eager: bool,
    /// Where to write the rows as JSON
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// A row with what it was measured on.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    row: BenchRow,
    model: String,
    model_hash: String,
    strategy: Option<String>,
    strategy_hash: Option<String>,
    policies: Vec<String>,
    kv_budget: Option<u64>,
    device: String,
    dtype: &'static str,
    threads: usize,
    library: &'static str,
}

pub(super) fn run(args: &BenchArgs, global: &Global) -> Result<(), CliError> {
    args.stack.parse()?;
    if let Some(path) = &args.output {
        check_output(path)?;
    }
    let files = args.model.open(global)?;
    let spec = BenchSpec {
        batch: args.batch.iter().map(|&batch| batch as usize).collect(),
        prompt: args.prompt as usize,
        generate: args.generate as usize,
        repeats: args.repeats as usize,
        on_device: !args.eager && global.device.runs_ahead(),
    };
    let mut stacks = vec![&args.stack];
    let full = StackArgs::default();
    if args.kv_budget.is_some() && (args.stack.strategy.is_some() || !args.stack.policies.is_empty()) {
        stacks.insert(0, &full);
    }
    // All are judged before the first is run.
    let check = |stack: &&StackArgs| {
        let checked = stack.check(&files)?;
        check_placement(&files, &checked.plan, global)?;
        let batches = batches(args, &spec, &checked.plan, &files, global)?;
        Ok((checked, stack.strategy_hash()?, batches))
    };
    let checked = stacks.iter().map(check).collect::<Result<Vec<_>, CliError>>()?;
    let model_hash = files.fingerprint()?.hash;
    let runs: usize = checked.iter().map(|(.., batches)| batches.len()).sum();
    let bar = bar((runs * (spec.repeats + 1)) as u64, "timing");
    let mut rows = Vec::new();
    for (stack, (checked, strategy_hash, batches)) in stacks.iter().zip(checked) {
        let model = checked.load(&files, global)?;
        for batch in batches {
            bar.set_message(format!("{}, batch {batch}", checked.names.join(" + ")));
            let row = bench(&model, &spec, batch, || checked.stack(), |runs| bar.inc(runs as u64))?;
            rows.push(Row {
                row,
                model: files.name().into(),
                model_hash: model_hash.clone(),
                strategy: stack.strategy.as_ref().map(|path| path.display().to_string()),
                strategy_hash: strategy_hash.clone(),
                policies: checked.names.clone(),
                kv_budget: args.kv_budget.map(|budget| budget.as_u64()),
                device: global.device_names(),
                dtype: global.dtype_name(),
                threads: rayon::current_num_threads(),
                library: concat!("kvsharer ", env!("CARGO_PKG_VERSION")),
            });
        }
    }
    bar.finish_and_clear();
    if let Some(path) = &args.output {
        write_json(path, &rows)?;
    }
    if global.json { emit_json(&rows) } else { emit(&describe(&rows)) }
}

/// The batches to time under a plan, all of which fit the device.
fn batches(
    args: &BenchArgs,
    spec: &BenchSpec,
    plan: &Plan,
    files: &ModelFiles,
    global: &Global,
) -> Result<Vec<usize>, CliError> {
    let lengths = Lengths::new(spec.prompt, spec.prompt + spec.generate);
    let size = global.dtype.dtype().size();
    let batches = match args.kv_budget {
        None => spec.batch.clone(),
        Some(budget) => match plan.largest_batch(lengths, size, budget.as_u64()) {
            0 => {
                let one = human_bytes(plan.bytes(1, lengths, size));
                return Err(CliError::usage(format!("one sequence takes {one}, more than --kv-budget {budget}")));
            }
            most => vec![most],
        },
    };
    let largest = batches.iter().copied().max().unwrap_or(1);
    check_fits(files, plan.prefill_peak_bytes(largest, lengths, spec.prompt, size), global)?;
    Ok(batches)
}

/// A table for each cache.
fn describe(rows: &[Row]) -> String {
    let tables = rows.chunk_by(|a, b| a.policies == b.policies).map(describe_one).collect::<Vec<_>>().join("\n");
    let speed = |row: &Row| row.row.tokens_per_second.median;
    match rows {
        [full, shared] if full.kv_budget.is_some() => format!(
            "{tables}\nwithin {}: {} sequences instead of {}, x{:.2} the tokens a second of the full cache\n",
            full.kv_budget.map_or(String::new(), |budget| human_bytes(budget as usize)),
            shared.row.batch,
            full.row.batch,
            speed(shared) / speed(full)
        ),
        _ => tables,
    }
}

fn describe_one(rows: &[Row]) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|Row { row, .. }| {
            let spread = |spread: &kvsharer_eval::Spread, digits: usize| {
                format!("{:.digits$} ({:.digits$} to {:.digits$})", spread.median, spread.min, spread.max)
            };
            vec![
                row.batch.to_string(),
                spread(&row.prefill_ms, 0),
                spread(&row.decode_ms_per_step, 1),
                spread(&row.tokens_per_second, 1),
                human_bytes(row.kv_bytes_plan),
                row.bytes_in_use.or(row.peak_rss).map_or_else(|| "-".into(), |bytes| human_bytes(bytes as usize)),
            ]
        })
        .collect();
    let memory = if first.row.bytes_in_use.is_some() { "bytes in use" } else { "peak RSS so far" };
    let header = ["batch", "prefill ms", "ms a step", "tokens/s", "KV bytes", memory];
    format!(
        "{} with {}, prompt {}, {} tokens generated, on {} in {}, {} threads; median (least to greatest)\n{}",
        first.model,
        first.policies.join(" + "),
        first.row.prompt,
        first.row.generated,
        first.device,
        first.dtype,
        first.threads,
        table(&header, &lines, false)
    )
}
