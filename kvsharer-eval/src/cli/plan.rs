//! `kvsharer plan`.

use super::Global;
use super::context::{ModelArg, StackArgs, StackPlan};
use super::error::CliError;
use super::output::{emit, emit_json, human_bytes, table};
use clap::Args;
use serde_json::json;

/// Options of `plan`.
#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// Sequences
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Longest sequence, prompt and generated tokens together
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Tokens of the largest forward pass; the whole sequence if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
}

pub(super) fn run(args: &PlanArgs, global: &Global) -> Result<(), CliError> {
    args.stack.parse()?;
    let files = args.model.open(global)?;
    let checked = args.stack.check(&files)?;
    let full = StackPlan::new(None, Vec::new(), &files)?.plan;
    let (batch, tokens) = (args.batch as usize, args.tokens as usize);
    let chunk = args.chunk.map_or(tokens, |chunk| chunk as usize);
    let element = global.dtype.dtype().size();
    // Refused here, because the sums below must not overflow.
    let widest = full.slots().len().saturating_mul(files.config().kv_heads * files.config().head_dim * element * 4);
    if widest.checked_mul(batch).and_then(|bytes| bytes.checked_mul(tokens)).is_none() {
        return Err(CliError::usage(format!("{batch} sequences of {tokens} tokens are more than any memory holds")));
    }
    let (bytes, full_bytes) = (checked.plan.bytes(batch, tokens, element), full.bytes(batch, tokens, element));
    let peak = checked.plan.prefill_peak_bytes(batch, tokens, chunk, element);
    let full_peak = full.prefill_peak_bytes(batch, tokens, chunk, element);
    let owned = checked.plan.slots().len();
    if global.json {
        return emit_json(&json!({
            "model": files.name(), "policies": checked.names, "batch": batch, "tokens": tokens, "chunk": chunk,
            "dtype": global.dtype.name(), "plan_bytes": bytes, "prefill_peak_bytes": peak, "full_bytes": full_bytes,
            "full_prefill_peak_bytes": full_peak, "slots": owned, "full_slots": full.slots().len(),
        }));
    }
    let row = |name: &str, slots: usize, bytes: usize, peak: usize| {
        let share = format!("{:.1} %", 100.0 * bytes as f64 / full_bytes as f64);
        vec![name.into(), slots.to_string(), bytes.to_string(), human_bytes(bytes), share, human_bytes(peak)]
    };
    let rows = [
        row("full cache", full.slots().len(), full_bytes, full_peak),
        row(&checked.names.join(" + "), owned, bytes, peak),
    ];
    let header = ["cache", "K and V slots", "bytes", "", "of full", "peak in prefill"];
    emit(&format!(
        "{}, batch {batch}, {tokens} tokens, {}, prefill in passes of {chunk}\n{}",
        files.name(),
        global.dtype.name(),
        table(&header, &rows, false)
    ))
}
