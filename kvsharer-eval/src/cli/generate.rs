//! `kvsharer generate`.

use super::Global;
use super::context::{ModelArg, StackArgs, check_memory};
use super::error::CliError;
use super::output::{complain, emit, emit_json, human_bytes};
use clap::Args;
use kvsharer_core::{Cache, Lengths, SearchModel};
use kvsharer_models::{GenerateOptions, Sampler, Sampling, Stopped, generate};
use serde_json::json;

/// Options of `generate`.
#[derive(Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// The text to continue
    #[arg(long, short)]
    prompt: String,
    /// New tokens at most
    #[arg(long, short = 'n', default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 always takes the best token, 1 samples from the model's own distribution
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample from the K best tokens only; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the smallest set of best tokens that reaches this probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Weaken tokens seen before; 1 is off
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// A text that ends the generation; may be repeated
    #[arg(long)]
    stop: Vec<String>,
    /// Go on past the model's end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Prompt tokens of a forward pass; 0 is all
    #[arg(long, default_value_t = 0)]
    chunk: usize,
}

pub(super) fn run(args: &GenerateArgs, global: &Global) -> Result<(), CliError> {
    let options = GenerateOptions {
        max_tokens: args.max_tokens as usize,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            repetition_penalty: args.repetition_penalty,
            seed: global.seed,
        },
        stop: args.stop.clone(),
        ignore_eos: args.ignore_eos,
        prefill_chunk: args.chunk,
    };
    Sampler::new(options.sampling.clone())?;
    args.stack.parse()?;
    let files = args.model.open(global)?;
    let checked = args.stack.check(&files)?;
    let tokenizer = files.tokenizer()?;
    let prompt = tokenizer.encode(&args.prompt).map_err(CliError::failure)?;
    let tokens = prompt.len() + options.max_tokens;
    let trained = files.config().max_positions;
    if tokens > trained {
        complain(&format!(
            "warning: {tokens} tokens are more than the {trained} the model was trained for; expect nonsense"
        ));
    }
    let plan_bytes = checked.plan.bytes(1, Lengths::new(prompt.len(), tokens), global.dtype.dtype().size());
    check_memory(plan_bytes)?;
    let model = checked.load(&files, global)?;
    let cache_options = model.cache_options(1, tokens).for_prompt(prompt.len());
    let mut cache = Cache::new(model.shape(), checked.stack()?, cache_options, &model.device())?;
    let mut written = Ok(());
    if !global.json {
        emit(&args.prompt)?;
    }
    let generated = generate(&model, &tokenizer, &prompt, &mut cache, &options, |text| {
        if !global.json && written.is_ok() {
            written = emit(text);
        }
    })?;
    written?;
    let prefill_rate = prompt.len() as f64 / generated.prefill.as_secs_f64();
    // The first new token comes from the prefill.
    let steps = generated.ids.len().saturating_sub(1);
    let decode_rate = (steps > 0).then(|| steps as f64 / generated.decode.as_secs_f64());
    if global.json {
        return emit_json(&json!({
            "model": files.name(), "strategy": args.stack.strategy, "policies": checked.names, "prompt": args.prompt,
            "text": generated.text, "ids": generated.ids, "prompt_tokens": prompt.len(),
            "stopped": match generated.stopped {
                Stopped::Length => "length",
                Stopped::EndOfText => "end-of-text",
                Stopped::StopString => "stop-string",
            },
            "prefill_tokens_per_second": prefill_rate, "decode_tokens_per_second": decode_rate,
            "plan_bytes": plan_bytes, "kv_bytes": cache.bytes(), "device": global.device.to_string(), "dtype": global.dtype.name(),
        }));
    }
    emit("\n")?;
    let decode = decode_rate.map_or_else(String::new, |rate| format!(", decode {rate:.1} tokens/s"));
    complain(&format!(
        "[{} prompt tokens, prefill {prefill_rate:.1} tokens/s, {} new tokens{decode}, KV {}]",
        prompt.len(),
        generated.ids.len(),
        human_bytes(cache.bytes())
    ));
    Ok(())
}
