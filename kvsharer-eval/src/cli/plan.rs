//! `kvsharer plan`.

use super::Global;
use super::context::{ModelArg, StackArgs, StackPlan};
use super::error::CliError;
use super::output::{emit, emit_json, human_bytes, table};
use bytesize::ByteSize;
use clap::Args;
use kvsharer_core::{Lengths, Plan};
use kvsharer_eval::Target;
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
    /// Tokens of the prompt, which policies that reduce it depend on; if not given, the bytes are the most that any
    /// prompt could need
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: Option<u32>,
    /// Tokens of the largest forward pass; the whole prompt if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// Memory for keys and values, such as 64MiB: sets the budget of the evicting policy to what fits
    #[arg(long, value_name = "BYTES")]
    kv_budget: Option<ByteSize>,
}

/// What a plan costs.
struct Cost {
    slots: usize,
    bytes: usize,
    bookkeeping: usize,
    peak: usize,
}

pub(super) fn run(args: &PlanArgs, global: &Global) -> Result<(), CliError> {
    args.stack.parse()?;
    let (batch, tokens) = (args.batch as usize, args.tokens as usize);
    let lengths = Lengths { prompt: args.prompt.map(|prompt| prompt as usize), tokens };
    if let Some(prompt) = lengths.prompt.filter(|&prompt| prompt > tokens) {
        return Err(CliError::usage(format!("--prompt {prompt} is longer than the sequence, --tokens {tokens}")));
    }
    let files = args.model.open(global)?;
    let element_bytes = global.dtype.dtype().size();
    let full = StackPlan::new(None, Vec::new(), &files)?.plan;
    // Refused here, because the sums below must not overflow.
    let widest =
        full.slots().len().saturating_mul(files.config().kv_heads * files.config().head_dim * element_bytes * 4);
    if widest.checked_mul(batch).and_then(|bytes| bytes.checked_mul(tokens)).is_none() {
        return Err(CliError::usage(format!("{batch} sequences of {tokens} tokens are more than any memory holds")));
    }
    let mut checked = args.stack.check(&files)?;
    if let Some(budget) = args.kv_budget {
        let bytes = usize::try_from(budget.as_u64()).unwrap_or(usize::MAX);
        checked = checked.solved(Target { bytes, batch, lengths, element_bytes })?;
    }
    let chunk = args.chunk.map_or(tokens, |chunk| chunk as usize);
    let cost = |plan: &Plan| Cost {
        slots: plan.slots().len(),
        bytes: plan.bytes(batch, lengths, element_bytes),
        bookkeeping: plan.bookkeeping_bytes(batch, lengths),
        peak: plan.prefill_peak_bytes(batch, lengths, chunk, element_bytes),
    };
    let (full, planned) = (cost(&full), cost(&checked.plan));
    if global.json {
        return emit_json(&json!({
            "model": files.name(), "model_hash": files.fingerprint()?.hash,
            "strategy": args.stack.strategy, "strategy_hash": args.stack.strategy_hash()?,
            "library": concat!("kvsharer ", env!("CARGO_PKG_VERSION")), "policies": checked.names, "batch": batch, "tokens": tokens,
            "prompt": lengths.prompt, "chunk": chunk, "dtype": global.dtype_name(),
            "kv_budget": args.kv_budget.map(|budget| budget.as_u64()), "plan_bytes": planned.bytes,
            "bookkeeping_bytes": planned.bookkeeping, "prefill_peak_bytes": planned.peak, "full_bytes": full.bytes,
            "full_prefill_peak_bytes": full.peak, "slots": planned.slots, "full_slots": full.slots,
        }));
    }
    let row = |name: &str, cost: &Cost| {
        let share = format!("{:.1} %", 100.0 * cost.bytes as f64 / full.bytes as f64);
        let notes = if cost.bookkeeping == 0 { "-".into() } else { human_bytes(cost.bookkeeping) };
        let (slots, bytes) = (cost.slots.to_string(), cost.bytes.to_string());
        vec![name.into(), slots, bytes, human_bytes(cost.bytes), share, notes, human_bytes(cost.peak)]
    };
    let rows = [row("full cache", &full), row(&checked.names.join(" + "), &planned)];
    let header = ["cache", "K and V slots", "bytes", "", "of full", "scores, positions", "peak in prefill"];
    let prompt = lengths.prompt.map_or_else(|| "any prompt".into(), |prompt| format!("a prompt of {prompt}"));
    emit(&format!(
        "{}, batch {batch}, {tokens} tokens with {prompt}, {}, prefill in passes of {}\n{}",
        files.name(),
        global.dtype_name(),
        chunk.min(lengths.prompt.unwrap_or(tokens)),
        table(&header, &rows, false)
    ))
}
