//! `kvsharer generate`.

mod prompts;

use super::Global;
use super::context::{ModelArg, StackArgs, StackPlan, check_fits, check_placement};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json, human_bytes};
use super::sampling::{SamplingArgs, reason};
use clap::Args;
use kvsharer_core::{Cache, Lengths};
use kvsharer_models::{Decoder, GenerateOptions, Generated, ModelTokenizer, generate, generate_batch};
use prompts::Prompt;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Options of `generate`.
#[derive(Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    stack: StackArgs,
    /// The text to continue
    #[arg(long, short, required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// A file of texts to continue: one a line, or a .jsonl file of {"prompt": TEXT}
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Prompts of --prompts that run at once; the N-th prompt of the file draws with the seed --seed + N, from 0
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), conflicts_with = "prompt")]
    batch: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What is needed to continue prompts.
struct Run<'a> {
    model: &'a Decoder,
    tokenizer: &'a ModelTokenizer,
    checked: &'a StackPlan,
    options: GenerateOptions,
}

pub(super) fn run(args: &GenerateArgs, global: &Global) -> Result<(), CliError> {
    let options = args.sampling.options(global)?;
    args.stack.parse()?;
    let texts = match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => prompts::read(path)?,
        (None, None) => return Err(CliError::usage("give --prompt or --prompts")),
    };
    let files = args.model.open(global)?;
    let checked = args.stack.check(&files)?;
    check_placement(&files, &checked.plan, global)?;
    let tokenizer = files.tokenizer()?;
    let prompts = prompts::encode(texts, &tokenizer)?;
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let tokens = longest + options.max_tokens;
    let trained = files.config().max_positions;
    if tokens > trained {
        complain(&format!(
            "warning: {tokens} tokens are more than the {trained} the model was trained for; expect nonsense"
        ));
    }
    let batch = prompts.len().min(args.batch as usize);
    let (lengths, size) = (Lengths::new(longest, tokens), global.dtype.dtype().size());
    let plan_bytes = checked.plan.bytes(batch, lengths, size);
    check_fits(&files, checked.plan.prefill_peak_bytes(batch, lengths, longest, size), global)?;
    let model = checked.load(&files, global)?;
    let run = Run { model: &model, tokenizer: &tokenizer, checked: &checked, options };
    let about = json!({
        "model": files.name(), "strategy": args.stack.strategy, "policies": checked.names, "plan_bytes": plan_bytes,
        "device": global.device_names(), "dtype": global.dtype_name(),
    });
    match args.prompts {
        None => run.one(&prompts[0], about, global),
        Some(_) => run.many(&prompts, batch, about, global),
    }
}

impl Run<'_> {
    fn cache(&self, batch: usize, prompt: usize) -> Result<Cache<'static>, CliError> {
        let options = self.model.cache_options(batch, prompt + self.options.max_tokens).for_prompt(prompt);
        Ok(self.model.cache(self.checked.stack()?, options)?)
    }

    fn one(&self, prompt: &Prompt, mut about: Value, global: &Global) -> Result<(), CliError> {
        let mut cache = self.cache(1, prompt.ids.len())?;
        let mut written = Ok(());
        if !global.json {
            emit(&prompt.text)?;
        }
        let generated = generate(self.model, self.tokenizer, &prompt.ids, &mut cache, &self.options, |text| {
            if !global.json && written.is_ok() {
                written = emit(text);
            }
        })?;
        written?;
        let prefill_rate = prompt.ids.len() as f64 / generated.prefill.as_secs_f64();
        // The first new token comes from the prefill.
        let steps = generated.ids.len().saturating_sub(1);
        let decode_rate = (steps > 0).then(|| steps as f64 / generated.decode.as_secs_f64());
        if global.json {
            merge(&mut about, result(prompt, &generated));
            merge(
                &mut about,
                json!({
                    "prefill_tokens_per_second": prefill_rate, "decode_tokens_per_second": decode_rate,
                    "kv_bytes": cache.bytes(),
                }),
            );
            return emit_json(&about);
        }
        emit("\n")?;
        let decode = decode_rate.map_or_else(String::new, |rate| format!(", decode {rate:.1} tokens/s"));
        complain(&format!(
            "[{} prompt tokens, prefill {prefill_rate:.1} tokens/s, {} new tokens{decode}, KV {}]",
            prompt.ids.len(),
            generated.ids.len(),
            human_bytes(cache.bytes())
        ));
        Ok(())
    }

    /// All prompts, `batch` at once; texts are printed in the order of the file, a batch when it is done.
    fn many(&self, prompts: &[Prompt], batch: usize, mut about: Value, global: &Global) -> Result<(), CliError> {
        let bar = bar(prompts.len() as u64, "generating");
        let (mut results, mut new, mut seconds) = (Vec::new(), 0, 0.0);
        for (index, prompts) in prompts.chunks(batch).enumerate() {
            let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
            let mut cache = self.cache(prompts.len(), longest)?;
            let mut options = self.options.clone();
            options.sampling.seed = options.sampling.seed.wrapping_add((index * batch) as u64);
            let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
            let generated = generate_batch(self.model, self.tokenizer, &ids, &mut cache, &options)?;
            seconds += generated.first().map_or(0.0, |first| (first.prefill + first.decode).as_secs_f64());
            for (prompt, generated) in prompts.iter().zip(&generated) {
                new += generated.ids.len();
                if global.json {
                    results.push(result(prompt, generated));
                } else {
                    bar.suspend(|| emit(&format!("{}{}\n", prompt.text, generated.text)))?;
                }
            }
            bar.inc(prompts.len() as u64);
        }
        bar.finish_and_clear();
        let rate = new as f64 / seconds;
        if global.json {
            merge(&mut about, json!({ "batch": batch, "results": results, "tokens_per_second": rate }));
            return emit_json(&about);
        }
        complain(&format!("[{} prompts, {new} new tokens, {rate:.1} tokens/s]", prompts.len()));
        Ok(())
    }
}

fn result(prompt: &Prompt, generated: &Generated) -> Value {
    json!({
        "prompt": prompt.text, "text": generated.text, "ids": generated.ids, "prompt_tokens": prompt.ids.len(),
        "stopped": reason(generated.stopped),
    })
}

/// Adds the fields of one object to another.
fn merge(about: &mut Value, more: Value) {
    if let (Value::Object(about), Value::Object(more)) = (about, more) {
        about.extend(more);
    }
}
