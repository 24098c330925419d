//! `kvsharer bench`.

use super::Global;
use super::context::{ModelArg, StackArgs, check_fits, check_output, check_placement};
use super::error::CliError;
use super::output::{bar, emit, emit_json, human_bytes, table, write_json};
use clap::Args;
use kvsharer_core::Lengths;
use kvsharer_eval::experiment::{BenchRow, BenchSpec, bench};
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
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens generated after it
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// Repeats after one run to warm up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
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
    let checked = args.stack.check(&files)?;
    check_placement(&files, &checked.plan, global)?;
    let (model_hash, strategy_hash) = (files.fingerprint()?.hash, args.stack.strategy_hash()?);
    let spec = BenchSpec {
        batch: args.batch.iter().map(|&batch| batch as usize).collect(),
        prompt: args.prompt as usize,
        generate: args.generate as usize,
        repeats: args.repeats as usize,
    };
    let lengths = Lengths::new(spec.prompt, spec.prompt + spec.generate);
    let largest = spec.batch.iter().copied().max().unwrap_or(1);
    let size = global.dtype.dtype().size();
    check_fits(&files, checked.plan.prefill_peak_bytes(largest, lengths, spec.prompt, size), global)?;
    let model = checked.load(&files, global)?;
    let bar = bar((spec.batch.len() * (spec.repeats + 1)) as u64, "timing");
    let mut rows = Vec::new();
    for &batch in &spec.batch {
        bar.set_message(format!("batch {batch}"));
        let row = bench(&model, &spec, batch, || checked.stack(), |runs| bar.inc(runs as u64))?;
        rows.push(Row {
            row,
            model: files.name().into(),
            model_hash: model_hash.clone(),
            strategy: args.stack.strategy.as_ref().map(|path| path.display().to_string()),
            strategy_hash: strategy_hash.clone(),
            policies: checked.names.clone(),
            device: global.device_names(),
            dtype: global.dtype.name(),
            threads: rayon::current_num_threads(),
            library: concat!("kvsharer ", env!("CARGO_PKG_VERSION")),
        });
    }
    bar.finish_and_clear();
    if let Some(path) = &args.output {
        write_json(path, &rows)?;
    }
    if global.json { emit_json(&rows) } else { emit(&describe(&rows)) }
}

fn describe(rows: &[Row]) -> String {
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
