//! `kvsharer demo`: the main job, end to end.

use super::Global;
use super::context::{ModelArg, StackPlan, check_output, load};
use super::error::CliError;
use super::output::{bar, complain, emit, emit_json, human_bytes, table};
use super::search::{SearchFlags, Searched, draw_sharing};
use clap::Args;
use kvsharer_core::{Cache, SearchModel, Strategy};
use kvsharer_eval::{DecodeSpeed, Perplexity, PerplexityOptions, decode_speed, perplexity, texts};
use kvsharer_models::{Decoder, GenerateOptions, ModelTokenizer, generate};
use serde::Serialize;
use std::path::PathBuf;

/// Tokens in the cache before decoding is timed, if the text has so many.
const DECODE_PROMPT: usize = 512;

const PROMPT: &str = "The first lighthouse on the reef was built of wood. It";

/// Ratios of perplexities above which the verdict speaks of some loss, and of a loss.
const SOME_LOSS: f64 = 1.01;
const LOSS: f64 = 1.1;

/// Options of `demo`; the defaults are the main job.
#[derive(Args)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    search: SearchFlags,
    /// Tokens of a sequence: perplexity windows, and the length bytes are told for
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(32..))]
    tokens: u32,
    /// Tokens of the embedded text that are scored
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(32..))]
    eval_tokens: u32,
    /// Tokens of a forward pass while scoring, at most an eighth of --tokens; evictions happen between passes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Timed decoding steps
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    decode_tokens: u32,
    /// New tokens of the sample texts
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    sample_text_tokens: u32,
    /// Also write the strategy to a file
    #[arg(long, short)]
    output: Option<PathBuf>,
}

impl DemoArgs {
    /// Tokens of a scoring pass: several passes a window, or no eviction would be seen.
    fn pass(&self) -> usize {
        self.chunk.min(self.tokens / 8) as usize
    }
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    cache: &'static str,
    policies: Vec<String>,
    kv_bytes: usize,
    perplexity: f64,
    perplexity_ratio: f64,
    predicted_tokens: usize,
    decode: DecodeSpeed,
    continuation: String,
}

#[derive(Serialize)]
struct Report<'a> {
    rows: &'a [Row],
    strategy: &'a Strategy,
    search_seconds: f64,
    tokens: u32,
    chunk: usize,
    prompt: &'static str,
    device: String,
    dtype: &'static str,
}

pub(super) fn run(args: &DemoArgs, global: &Global) -> Result<(), CliError> {
    let files = args.model.open(global)?;
    args.search.check(&files, global)?;
    if let Some(path) = &args.output {
        check_output(path)?;
    }
    let tokenizer = files.tokenizer()?;
    let set = args.search.calibration(&files, &tokenizer)?;
    let model = load(&files, global)?;
    let Searched { strategy, found, seconds } = args.search.search(&files, &model, &set, None, global)?;
    if let Some(path) = &args.output {
        strategy.save(path)?;
    }

    let sharing = strategy.sharing()?;
    // A quarter of the tokens stays, the first four among them.
    let spec = format!("streaming-llm:sinks=4,window={}", (args.tokens / 4).max(8) - 4);
    let configurations = [
        ("full", None, None),
        ("shared", Some(&sharing), None),
        ("streaming", None, Some(&spec)),
        ("shared + streaming", Some(&sharing), Some(&spec)),
    ];
    let mut text = tokenizer.encode(texts::DEMO).map_err(CliError::failure)?;
    text.truncate(args.eval_tokens as usize);
    let bar = bar((configurations.len() * text.len()) as u64, "measuring");
    let mut rows: Vec<Row> = Vec::new();
    for (cache, sharing, spec) in configurations {
        let plan = StackPlan::new(sharing.cloned(), spec.cloned().into_iter().collect(), &files)?;
        bar.set_message(cache);
        let scored = score(args, &model, &plan, &text, |tokens| bar.inc(tokens as u64))?;
        let prompt = &text[..text.len().min(DECODE_PROMPT)];
        let decode = decode_speed(&model, prompt, args.decode_tokens as usize, plan.stack()?)?;
        let full = rows.first().map_or(scored.value, |full| full.perplexity);
        rows.push(Row {
            cache,
            kv_bytes: plan.plan.bytes(1, args.tokens as usize, global.dtype.dtype().size()),
            perplexity: scored.value,
            perplexity_ratio: scored.value / full,
            predicted_tokens: scored.tokens,
            decode,
            continuation: continue_prompt(args, &model, &tokenizer, &plan)?,
            policies: plan.names,
        });
    }
    bar.finish_and_clear();
    if strategy.reached < strategy.requested {
        complain(&format!("warning: only {} of the {} layers asked for share", strategy.reached, strategy.requested));
    }
    if global.json {
        let (tokens, chunk) = (args.tokens, args.pass());
        let (device, dtype) = (global.device.to_string(), global.dtype.name());
        return emit_json(&Report {
            rows: &rows,
            strategy: &strategy,
            search_seconds: seconds,
            tokens,
            chunk,
            prompt: PROMPT,
            device,
            dtype,
        });
    }
    let layers = files.config().layers;
    emit(&format!(
        "{}: the paper's search shared {} of {layers} layers in {seconds:.1} s ({} trials)\n\n{}\n{}\n{}\n{}",
        files.name(),
        strategy.reached,
        found.trials.len(),
        draw_table(args, &rows),
        verdict(&rows),
        draw_sharing(found.draft.sharing(), layers),
        draw_texts(&rows),
    ))
}

fn score(
    args: &DemoArgs,
    model: &Decoder,
    plan: &StackPlan,
    text: &[u32],
    done: impl Fn(usize) + Sync,
) -> Result<Perplexity, CliError> {
    let options =
        PerplexityOptions { window: args.tokens as usize, chunk: args.pass(), ..PerplexityOptions::default() };
    Ok(perplexity(model, text, &options, || plan.stack(), done)?)
}

fn continue_prompt(
    args: &DemoArgs,
    model: &Decoder,
    tokenizer: &ModelTokenizer,
    plan: &StackPlan,
) -> Result<String, CliError> {
    let prompt = tokenizer.encode(PROMPT).map_err(CliError::failure)?;
    let options = GenerateOptions { max_tokens: args.sample_text_tokens as usize, ..GenerateOptions::default() };
    let cache_options = model.cache_options(1, prompt.len() + options.max_tokens);
    let mut cache = Cache::new(model.shape(), plan.stack()?, cache_options, &model.device())?;
    Ok(generate(model, tokenizer, &prompt, &mut cache, &options, |_| {})?.text)
}

fn draw_table(args: &DemoArgs, rows: &[Row]) -> String {
    let full = rows.first().map_or(1, |row| row.kv_bytes) as f64;
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.cache.into(),
                human_bytes(row.kv_bytes),
                format!("{:.1} %", 100.0 * row.kv_bytes as f64 / full),
                format!("{:.2}", row.perplexity),
                format!("x{:.2}", row.perplexity_ratio),
                format!("{:.1}", row.decode.tokens_per_second.median),
            ]
        })
        .collect();
    let header =
        ["cache", &format!("KV at {} tokens", args.tokens), "of full", "perplexity", "of full", "decode tokens/s"];
    let predicted = rows.first().map_or(0, |row| row.predicted_tokens);
    format!(
        "{}perplexity: {predicted} tokens in windows of {}, {} a pass, so that evictions count; decode: median at {} tokens\n",
        table(&header, &lines, false),
        args.tokens,
        args.pass(),
        DECODE_PROMPT.min(args.eval_tokens as usize)
    )
}

/// Says in words what was lost.
fn verdict(rows: &[Row]) -> String {
    let Some(full) = rows.first() else {
        return String::new();
    };
    let line = |row: &Row| {
        let saved = 100.0 * (1.0 - row.kv_bytes as f64 / full.kv_bytes as f64);
        let what = match row.perplexity_ratio {
            ratio if ratio > LOSS => "quality is LOST",
            ratio if ratio > SOME_LOSS => "some quality is lost",
            _ => "no loss of quality seen",
        };
        format!(
            "{}: saves {saved:.1} % of the KV bytes; {what}: perplexity {:.2} instead of {:.2} (x{:.2})\n",
            row.cache, row.perplexity, full.perplexity, row.perplexity_ratio
        )
    };
    rows[1..].iter().map(line).collect()
}

fn draw_texts(rows: &[Row]) -> String {
    let continuations =
        rows.iter().take(2).map(|row| format!("  {}:{}\n", row.cache, row.continuation.replace('\n', "\n    ")));
    format!("\"{PROMPT}\" continued\n{}", continuations.collect::<String>())
}
